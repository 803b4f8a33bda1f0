"""Foreign memory as NumPy arrays without a copy, and state memory."""

import math
from itertools import cycle

import numpy as np

CPU = 1  # kDLCPU
LINE, PAGE = 64, 4096  # bytes
LARGE = 32_768  # bytes
QUARTERS = cycle(range(PAGE // 8, PAGE, PAGE // 4))  # not at the beginning: there NumPy's own large arrays lie


def as_array(given, label, *, scalar=False):
    """Returns `given` as a plain ndarray over the same memory; every array that a caller gives comes through here.

    Accepted: an ndarray (of a subclass: a plain view), and what exports memory by DLPack (on the CPU), by the buffer
    protocol or by `__array_interface__`. With `scalar`, Python and NumPy numbers too (they are copied, so only for
    reading). Raises TypeError, naming `label`, for a masked array, whose mask would be lost, and for anything else: a
    copy would lose in-place updates.
    """
    if type(given) is np.ndarray:
        return given
    if isinstance(given, np.ndarray):
        return plain(given, label)
    if scalar and isinstance(given, (float, complex, np.inexact)):
        return np.asarray(given)
    try:
        if hasattr(given, "__dlpack__") and not isinstance(given, np.generic):
            if given.__dlpack_device__()[0] != CPU:
                raise TypeError("its memory is not on the CPU")
            return np.from_dlpack(given)
        if hasattr(given, "__array_interface__") and not isinstance(given, np.generic):
            return plain(np.asarray(given), label)
        return plain(np.asarray(memoryview(given)), label)
    except Exception as error:  # an exporter may raise anything
        raise TypeError(
            f"{label} must be an array, or export its memory by DLPack, the buffer protocol or "
            f"__array_interface__; got {type(given).__name__} ({error})"
        ) from error


def plain(array, label):
    """An array of any subclass as a plain one; raises TypeError for a masked one."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array: its mask has no meaning here; pass array.filled(0) or array.data")
    return np.ndarray.view(array, np.ndarray)


def readable(given, label):
    """Returns `given` as a plain array of native byte order, for reading: a copy where it is another.

    Raises TypeError for a masked array, and for what is no array.
    """
    try:
        array = np.asanyarray(given)
    except Exception as error:  # an exporter may raise anything
        raise TypeError(f"{label} must be an array; got {type(given).__name__} ({error})") from error
    array = plain(array, label)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def aligned(shape, dtype, value=0.0):
    """A new C-contiguous array, on a cache line of its own, filled with `value`.

    It is a view, so that `ndarray.resize` cannot take the memory away under a plan. Large arrays begin at different
    quarters of a page, one after the other: where the arrays of a step lie at nearly the same place in their pages,
    the CPU takes the loads of one for what it has just stored to another, and AdamW takes up to 1.3 times as long.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    place, grain = (next(QUARTERS), PAGE) if size >= LARGE else (0, LINE)
    raw = np.zeros(size + grain, np.uint8)
    start = (place - raw.ctypes.data) % grain
    array = raw[start : start + size].view(dtype).reshape(shape)
    if value:
        array.fill(value)
    return array


def full_like(param, value):
    """A new state array for `param`: of its shape and dtype, filled with `value` (in both parts, if complex)."""
    return aligned(param.shape, param.dtype, complex(value, value) if param.dtype.kind == "c" else value)


def owned(array, dtype=None):
    """A copy of `array` in aligned memory, of its dtype or another."""
    copy = aligned(array.shape, array.dtype if dtype is None else dtype)
    copy[...] = array
    return copy
