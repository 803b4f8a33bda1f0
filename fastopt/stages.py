"""Names for the stages of a step: ways to clip, what a step did, and learning rates that fall by layer.

The stages themselves are set with `Optimizer.set_stages`.
"""

from .optimizers.clipping import Adaptive, Clip, GlobalNorm, ParameterNorm, Value
from .optimizers.stages import NonFiniteGradient, Stages, Step, layer_decay

__all__ = ["Adaptive", "Clip", "GlobalNorm", "NonFiniteGradient", "ParameterNorm", "Stages", "Step", "Value",
           "layer_decay"]
