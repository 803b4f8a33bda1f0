"""Ways to clip gradients inside a step: what they measure, and the scale that follows."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.norms import power_sum, run_norms
from .checks import nonnegative, positive

__all__ = ["Adaptive", "Clip", "GlobalNorm", "ParameterNorm", "Value"]


def order(name, value):
    """The p of a norm: above 0, infinity included."""
    if value == math.inf or value == "inf":
        return math.inf
    return positive(name, value)


def shrink(norm, most, eps):
    """torch's coefficient: most / (norm + eps), never above 1; NaN stays NaN."""
    return 1.0 if norm + eps <= most else most / (norm + eps)


def shrunk(norm, most, eps, scale):
    """What to multiply gradients with that have this norm before they are scaled: `scale`, shrunk.

    The norm may be out of range once it is scaled.
    """
    scaled = scale * norm
    return most / norm if scaled == math.inf > norm else scale * shrink(scaled, most, eps)


def each_shrunk(norms, most, eps, scale, least=0.0):
    """The same for an array of norms, each taken to be at least `least` where it shrinks."""
    scaled = scale * norms
    ratios = np.where(scaled + eps <= most, 1.0, most / (np.maximum(scaled, least) + eps))
    return np.where(np.isinf(scaled) & np.isfinite(norms), most / norms, scale * ratios)


def root(total, order):
    """The norm of an order whose powers have this sum; of an infinite one the largest element."""
    if order == 2.0:
        return math.sqrt(total)
    try:
        return total if order == math.inf else total ** (1.0 / order)
    except OverflowError:
        return math.inf


LEAST = sys.float_info.min / sys.float_info.epsilon  # a smaller sum of powers may have lost bits to underflow


def is_safe(total):
    """Whether a sum of powers kept its bits."""
    return LEAST <= total < math.inf or total != total


def norm_of(arrays, order, total=None):
    """The norm of finite or infinite order of all arrays as one vector.

    `total` is what `power_sum` has found, if it was asked. Where powers overflow or underflow they are summed again,
    relative to the largest element.
    """
    if total is None:
        total = power_sum(arrays, order)
    if order == math.inf or is_safe(total):
        return root(total, order)
    largest = power_sum(arrays, math.inf)
    if not 0.0 < largest < math.inf:
        return largest
    return largest * root(power_sum(arrays, order, largest), order)


@np.errstate(all="ignore")
def norms_of(powers, order, pieces):
    """The norms whose powers have these sums, each as `norm_of` has it.

    `pieces()` has the (position, count, array) whose sums these are: of the array, cut into `count` runs of one
    length, from the position on. Others are 0.
    """
    if order == math.inf:
        return powers
    norms = np.sqrt(powers) if order == 2.0 else powers ** (1.0 / order)
    unsafe = (powers < LEAST) | (powers == math.inf)
    if unsafe.any():
        for start, count, array in pieces():
            array = reals(array)
            if array.itemsize == 4 and order <= 6.0:
                continue  # whose powers are in range: a sum of 0 or infinity is what it says
            which = np.flatnonzero(unsafe[start : start + count])
            norms[start + which] = run_norms(array, array.size // max(count, 1), which, order)
    return norms


def reals(array: np.ndarray) -> Any:
    """A C-contiguous array, over the same memory, of its real and imaginary parts."""
    return array.reshape(-1).view(array.real.dtype) if array.dtype.kind == "c" else array


def times(array, factor, out):
    """Writes array · factor to `out`, in its precision, or double where it cannot hold a factor."""
    limits = np.finfo(out.dtype)
    least, most = np.min(np.abs(factor), initial=math.inf), np.max(np.abs(factor), initial=0.0)
    narrow = array.dtype == out.dtype and limits.tiny <= least and most <= limits.max
    np.multiply(array, factor, out=out, dtype=out.dtype if narrow else np.float64, casting="unsafe")


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
    """Adaptive gradient clipping: keeps the norm of each unit's gradient below a fraction of its weights' norm.

    A unit is a row of the first dimension, or all of a vector or scalar: g is scaled by
    clip_factor max(‖w‖, eps) / max(‖g‖, 1e-6) where ‖g‖ is above clip_factor max(‖w‖, eps).

    Args:
        clip_factor: λ, above 0.
        eps: above 0: units whose weights are near 0 can leave it.

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
