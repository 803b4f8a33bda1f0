"""Norms of arrays that are right in every range, and the scales that follow from them."""

import math
import sys
from typing import Any

import numpy as np

from .kernels.norms import power_sum, run_norms


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
