"""Clipping of gradients on its own, under torch.nn.utils' names.

An optimizer clips inside its step, without writing to the gradients: see `Optimizer.set_stages`. These functions are
for gradients that something else uses too.

>>> import numpy as np, fastopt
>>> grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
>>> fastopt.clip_grad_norm_(grads, max_norm=2.5)
5.0
>>> {name: grad.round(4).tolist() for name, grad in grads.items()}
{'w': [1.5, 0.0], 'b': [2.0]}
"""

import math

import numpy as np

from .checks import flag, nonnegative, real
from .interrupts import uninterrupted
from .kernels.arrays import as_array
from .kernels.checks import check_overlap
from .norms import norm_of, reals, shrink, times
from .optimizers.base import Grads
from .optimizers.tree import flatten

__all__ = ["clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm"]


def clip_grad_norm_(grads: Grads, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
                    eps: float = 1e-6) -> float:
    """Scales gradients in place so that their norm, as one vector, is at most `max_norm`.

    With ‖g‖ the norm of all elements of all gradients::

        g = min(1, max_norm / (‖g‖ + eps)) g

    Args:
        grads: writable float32, float64, complex64 or complex128 gradients, C-contiguous: an array, or any nesting of
            sequences and mappings of them. A None among the arrays is left out.
        max_norm: the largest norm, at least 0. Infinity measures without clipping.
        norm_type: p, above 0: ‖g‖ = (Σ |g|^p)^(1/p); infinity takes the largest |g|.
        error_if_nonfinite: raises where the norm is NaN or infinite. Otherwise such a norm scales as the formula says,
            as in torch: an infinite one makes all gradients 0 but those with infinite elements, which become NaN; NaN
            makes all gradients NaN.
        eps: at least 0: torch's 1e-6; 0 makes the result have exactly the norm, to rounding.

    Returns:
        The norm before clipping; 0.0 where there is nothing. Gradients of at most `max_norm` are not written.

    Raises:
        TypeError, ValueError: an argument is not as described, or two gradients share memory; nothing was changed.
        RuntimeError: the norm is not finite, with `error_if_nonfinite`; nothing was changed.

    The norm is summed in double precision (torch's, in float32, loses digits over millions of elements), and has
    the same bits on every SIMD level. Powers that overflow or underflow are summed again relative to the largest
    element: where torch returns infinity and clears the gradients, or 0, the norm is right.

    >>> import numpy as np, fastopt
    >>> grads = [np.full(4, 1e200), None]
    >>> fastopt.clip_grad_norm_(grads, 1.0), grads[0]
    (2e+200, array([0.5, 0.5, 0.5, 0.5]))

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063.
    """
    labels, arrays = gradients(grads, write=True)
    most, eps = bound("max_norm", max_norm), nonnegative("eps", eps)
    norm = total_norm_of(labels, arrays, norm_type, error_if_nonfinite)
    scale(arrays, most, norm, eps)
    return norm


def get_total_norm(grads: Grads, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    """Returns the norm of gradients, or of any arrays, as one vector.

    Args:
        grads: as for `clip_grad_norm_`; they are only read, and may be read-only or numbers.
        norm_type, error_if_nonfinite: as for `clip_grad_norm_`.

    Raises:
        TypeError, ValueError: an argument is not as described.
        RuntimeError: the norm is not finite, with `error_if_nonfinite`.

    >>> import numpy as np, fastopt
    >>> fastopt.get_total_norm([np.array([1.0, -7.0]), np.array([3 + 4j])], norm_type=float("inf"))
    7.0
    """
    labels, arrays = gradients(grads, write=False)
    return total_norm_of(labels, arrays, norm_type, error_if_nonfinite)


def clip_grads_with_norm_(grads: Grads, max_norm: float, total_norm: float, eps: float = 1e-6) -> None:
    """Scales gradients in place as `clip_grad_norm_` does, by a norm that is known already.

    Args:
        grads, max_norm, eps: as for `clip_grad_norm_`.
        total_norm: the norm to bring down to `max_norm`, at least 0; it may be infinite or NaN.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was changed.

    >>> import numpy as np, fastopt
    >>> half = np.array([2.0, 4.0])
    >>> fastopt.clip_grads_with_norm_(half, max_norm=5.0, total_norm=10.0)
    >>> half.round(4)
    array([1., 2.])
    """
    _, arrays = gradients(grads, write=True)
    most, eps = bound("max_norm", max_norm), nonnegative("eps", eps)
    norm = real("total_norm", total_norm)
    if norm < 0:
        raise ValueError(f"total_norm must be at least 0, got {total_norm!r}")
    scale(arrays, most, norm, eps)


def clip_grad_value_(grads: Grads, clip_value: float) -> None:
    """Limits every element of gradients, in place, to [-clip_value, clip_value].

    Args:
        grads: as for `clip_grad_norm_`, but real, as in torch: complex numbers have no order.
        clip_value: the largest absolute value, at least 0. NaN elements stay.

    Raises:
        TypeError, ValueError: an argument is not as described; nothing was changed.

    >>> import numpy as np, fastopt
    >>> grad = np.array([0.5, -3.0, np.inf, np.nan])
    >>> fastopt.clip_grad_value_(grad, 1.0)
    >>> grad
    array([ 0.5, -1. ,  1. ,  nan])
    """
    labels, arrays = gradients(grads, write=True)
    most = bound("clip_value", clip_value)
    for label, array in zip(labels, arrays, strict=True):
        if array.dtype.kind == "c":
            raise TypeError(f"{label} must be float32 or float64 to be clipped by value, got {array.dtype}")
    with uninterrupted(), np.errstate(all="ignore"):
        for array in arrays:
            np.clip(array, -most, most, out=array)


# ---- arguments

def gradients(grads, write):
    """What error messages call each gradient, and the gradients as arrays; raises unless they can be used."""
    labels, arrays = [], []
    for position, (name, leaf) in enumerate(flatten(grads)):
        if leaf is None and grads is not None:
            continue
        label = f"gradient {position}" if name is None else f"gradient {name!r}"
        array = as_array(leaf, label, scalar=not write)
        if array.dtype.char not in "fdFD":
            raise TypeError(f"{label} must be float32, float64, complex64 or complex128, got {array.dtype}")
        flags = array.flags
        if write and not flags.writeable:
            raise ValueError(f"{label} is read-only")
        if not (flags.c_contiguous and flags.aligned and array.dtype.isnative):
            raise ValueError(f"{label} must be C-contiguous, aligned and in native byte order")
        labels.append(label)
        arrays.append(array)
    if write:
        check_overlap(arrays, labels.__getitem__)
    return labels, arrays


def bound(name, value):
    """A number of at least 0, infinity included."""
    x = real(name, value)
    if not x >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return x


# ---- norms

def total_norm_of(labels, arrays, norm_type, error_if_nonfinite):
    order = math.inf if isinstance(norm_type, str) and norm_type == "inf" else real("norm_type", norm_type)
    if not order > 0:
        raise ValueError(f"norm_type must be above 0, got {norm_type!r}")
    error = flag("error_if_nonfinite", error_if_nonfinite)
    norm = norm_of(arrays, order)
    if error and not math.isfinite(norm):
        at = next((label for label, array in zip(labels, arrays, strict=True) if not np.isfinite(array).all()), None)
        cause = "it is too large for a float" if at is None else f"{at} has elements that are not finite"
        raise RuntimeError(f"the total norm of order {order} is {norm}: {cause}")
    return norm


# ---- scaling

def scale(arrays: list[np.ndarray], most: float, norm: float, eps: float) -> None:
    """Multiplies by min(1, most / (norm + eps)), in place."""
    ratio = shrink(norm, most, eps)
    if ratio != 1.0:
        multiply(arrays, ratio)


def multiply(arrays: list[np.ndarray], factor: float) -> None:
    """Multiplies in place, complex numbers as pairs of reals, in the precision of each array."""
    with uninterrupted(), np.errstate(all="ignore"):
        for array in map(reals, arrays):
            times(array, factor, array)

