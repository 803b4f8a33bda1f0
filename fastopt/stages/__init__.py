"""Names for the stages of a step: ways to clip, what a step did, and learning rates that fall by layer.

The stages themselves are set with `Optimizer.set_stages`. Each is an object with a file of its own: see `stage.Stage`.
"""

from .clip import Adaptive, Clip, GlobalNorm, ParameterNorm, Value
from .lr_scale import layer_decay
from .nonfinite import NonFiniteGradient
from .options import Stages
from .step import Step

__all__ = ["Adaptive", "Clip", "GlobalNorm", "NonFiniteGradient", "ParameterNorm", "Stages", "Step", "Value",
           "layer_decay"]
