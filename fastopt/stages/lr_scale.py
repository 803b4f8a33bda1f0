"""Learning rates of single parameters."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ..checks import check_matches, nonnegative, positive
from .stage import Stage


def unchecked(name, value):
    return value  # until the names of the parameters are known


class LrScale(Stage):
    options = {"lr_scale": unchecked}
    elementwise = True

    def __init__(self, options):
        self.scale = options.lr_scale

    def check(self, engine):
        if engine.method.rate_free:
            raise ValueError(f"lr_scale has no meaning for {engine.method.__name__}: lr is only where its step sizes "
                             "begin")

    def kinds(self, plan):
        """The multiplier of each parameter's learning rate; the first pattern that fits counts."""
        if isinstance(self.scale, Mapping):
            check_matches("lr_scale", self.scale, plan.names)
            checked = {pattern: nonnegative(f"lr_scale[{pattern!r}]", scale) for pattern, scale in self.scale.items()}
            return [next((scale for pattern, scale in checked.items() if fnmatchcase(name, pattern)), 1.0)
                    for name in plan.names]
        if not isinstance(self.scale, Sequence) or isinstance(self.scale, str):
            raise TypeError("lr_scale must be a mapping of patterns of names to numbers, or one number for each "
                            f"parameter, got {self.scale!r}")
        scales = [nonnegative("lr_scale", scale) for scale in self.scale]
        if len(scales) != len(plan):
            raise ValueError(f"lr_scale must have {len(plan)} numbers, one for each parameter, got {len(scales)}")
        return scales

    def adapt(self, settings, scale):
        settings["lr"] *= scale


def layer_decay(layers: Sequence[str], decay: float) -> dict[str, float]:
    """Learning rates that fall from the last layer to the first: an `lr_scale` for `Optimizer.set_stages`.

    Args:
        layers: patterns of the names of each layer's parameters, from the first layer to the last.
        decay: the rate of a layer as a fraction of the next one's; above 0.

    >>> layer_decay(["embed.*", "block0.*", "head.*"], 0.5)
    {'embed.*': 0.25, 'block0.*': 0.5, 'head.*': 1.0}

    Source: Howard, Ruder 2018, arXiv 1801.06146; Bao et al. 2021, arXiv 2106.08254.
    """
    decay = positive("decay", decay)
    return {pattern: decay ** (len(layers) - 1 - i) for i, pattern in enumerate(layers)}
