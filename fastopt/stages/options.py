"""The options of `Optimizer.set_stages`."""

from dataclasses import dataclass
from typing import Any

from .accumulate import Accumulate
from .average import Averages
from .bounds import Bounds
from .cautious import Cautious
from .cautious_decay import CautiousDecay
from .centralize import Centralize
from .clip import Clip, Clipping
from .clip_update import ClipUpdate
from .decay import CorrectedDecay, NoDecay
from .lookahead import Lookahead
from .lr_scale import LrScale
from .nonfinite import NonFinite
from .statistics import Statistics
from .zero import Zero

# in the order in which a step asks them: what is done to the gradient, to the settings, to a piece after the rule
ORDER = (Clipping, NonFinite, Centralize, NoDecay, CorrectedDecay, LrScale, ClipUpdate, Cautious, CautiousDecay,
         Lookahead, Bounds, Averages, Statistics, Zero)


@dataclass(frozen=True)
class Stages:
    """What a step does beside the rule; see `Optimizer.set_stages`."""

    clip: Clip | float | None = None
    on_nonfinite: str = "propagate"
    max_skips: int | None = None
    average: Any = ()
    zero_grad: bool = False
    accumulation: str = "mean"
    centralize: bool = False
    cautious: bool | str = False
    cautious_weight_decay: bool = False
    corrected_weight_decay: float | None = None
    no_decay: Any = ()
    lr_scale: Any = None
    clip_update: float | None = None
    bounds: tuple[float, float] | str | None = None
    lookahead: tuple[int, float] | None = None
    statistics: bool = False

    def __post_init__(self):
        for stage in (*ORDER, Accumulate):
            for name, check in stage.options.items():
                object.__setattr__(self, name, check(name, getattr(self, name)))
