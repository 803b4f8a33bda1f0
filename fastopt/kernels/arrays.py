"""Foreign memory as NumPy arrays without a copy, and state memory."""

import math

import numpy as np

CPU = 1  # kDLCPU


def as_array(given, label, *, scalar=False):
    """Returns `given` as an ndarray over the same memory.

    Accepted: an ndarray, and what exports memory by DLPack (on the CPU), by the buffer protocol or by
    `__array_interface__`. With `scalar`, Python and NumPy numbers too (they are copied, so only for reading).
    Raises TypeError, naming `label`, for anything else: a copy would lose in-place updates.
    """
    if isinstance(given, np.ndarray):
        return given
    if scalar and isinstance(given, (float, complex, np.inexact)):
        return np.asarray(given)
    try:
        if hasattr(given, "__dlpack__") and not isinstance(given, np.generic):
            if given.__dlpack_device__()[0] != CPU:
                raise TypeError("its memory is not on the CPU")
            return np.from_dlpack(given)
        if hasattr(given, "__array_interface__") and not isinstance(given, np.generic):
            return np.asarray(given)
        return np.asarray(memoryview(given))
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise TypeError(
            f"{label} must be an array, or export its memory by DLPack, the buffer protocol or "
            f"__array_interface__; got {type(given).__name__} ({error})"
        ) from error


def aligned(shape, dtype, value=0.0):
    """A new C-contiguous array, on a cache line of its own, filled with `value`.

    It is a view, so that `ndarray.resize` cannot take the memory away under a plan.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + size].view(dtype).reshape(shape)
    if value:
        array.fill(value)
    return array


def full_like(param, value):
    """A new state array for `param`: of its shape and dtype, filled with `value` (in both parts, if complex)."""
    return aligned(param.shape, param.dtype, complex(value, value) if param.dtype.kind == "c" else value)
