"""Ways to clip gradients inside a step: what they measure, and the scale that results."""

import math
from dataclasses import dataclass

from ..checks import nonnegative, positive

__all__ = ["Adaptive", "Clip", "GlobalNorm", "ParameterNorm", "Value"]


def order(name, value):
    """The p of a norm: above 0, infinity included."""
    if value == math.inf or value == "inf":
        return math.inf
    return positive(name, value)


class Clip:
    """Base of the ways to clip; see `Optimizer.set_stages`."""


@dataclass(frozen=True)
class Norm(Clip):
    """Base of those by a norm; the arguments are `GlobalNorm`'s."""

    max_norm: float
    norm_type: float = 2.0
    eps: float = 1e-6

    def __post_init__(self):
        checked(self, max_norm=positive, norm_type=order, eps=nonnegative)


class GlobalNorm(Norm):
    """Scales all gradients by min(1, max_norm / (‖g‖ + eps)), ‖g‖ their norm as one vector.

    Args:
        max_norm: above 0.
        norm_type: p, above 0; infinity takes the largest absolute value. Only 2 serves complex numbers.
        eps: torch's 1e-6; 0 makes the result have exactly the norm, to rounding.

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063; torch's `clip_grad_norm_`.
    """


class ParameterNorm(Norm):
    """Scales each gradient by min(1, max_norm / (‖g‖ + eps)) with its own norm. The arguments are `GlobalNorm`'s.

    Source: Keras's `clipnorm`.
    """


@dataclass(frozen=True)
class Value(Clip):
    """Limits each element to [-clip_value, clip_value]; not for complex numbers.

    Source: torch's `clip_grad_value_`.
    """

    clip_value: float

    def __post_init__(self):
        checked(self, clip_value=positive)


@dataclass(frozen=True)
class Adaptive(Clip):
    """Adaptive gradient clipping: bounds the norm of each unit's gradient by a fraction of its weights' norm.

    A unit is a row of the first dimension, or all of a vector or scalar: g is scaled by
    clip_factor max(‖w‖, eps) / max(‖g‖, 1e-6) where ‖g‖ is above clip_factor max(‖w‖, eps).

    Args:
        clip_factor: λ, above 0.
        eps: above 0; the least norm of weights that counts, so that units whose weights are near 0 can leave it.

    Source: Brock et al. 2021, arXiv 2102.06171.
    """

    clip_factor: float = 0.01
    eps: float = 1e-3

    def __post_init__(self):
        checked(self, clip_factor=positive, eps=positive)


def checked(clip, **checks):
    for name, check in checks.items():
        object.__setattr__(clip, name, check(name, getattr(clip, name)))


def as_clip(value):
    """A way to clip; a number is a global norm."""
    if value is None or isinstance(value, Clip):
        return value
    try:
        return GlobalNorm(positive("clip", value))
    except TypeError:
        raise TypeError("clip must be a number, the largest global norm, or one of fastopt.stages.GlobalNorm, "
                        f"ParameterNorm, Value and Adaptive; got {value!r}") from None
