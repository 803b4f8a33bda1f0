# cython: boundscheck=False, wraparound=False
"""Checks of arrays."""

cimport numpy as cnp

cnp.import_array()


def called(i, name):
    """How error messages call the parameter at position `i`."""
    return f"parameter {i}" if name is None else f"parameter {name!r}"


def check_parameter(param, str label not None):
    """Raises unless `param` is a writable C-contiguous array of a dtype that can be stepped."""
    if not isinstance(param, cnp.ndarray):
        raise TypeError(f"{label} must be an array, got {type(param).__name__}")
    if param.dtype.char not in "fdFD":
        raise TypeError(f"{label} must be float32, float64, complex64 or complex128, got {param.dtype}")
    if not param.flags.writeable:
        raise ValueError(f"{label} is read-only")
    if not cnp.PyArray_ISCARRAY(<cnp.ndarray>param):
        raise ValueError(
            f"{label} must be C-contiguous, aligned and in native byte order: it is updated in place, "
            f"so a copy would lose the update"
        )


def check_overlap(list arrays not None, label, most=None):
    """Raises if two of the arrays share memory; `label(i)` is how the error calls the array at position i.

    With `most`, only if one of them is among the first so many.
    """
    if len(arrays) == 1:
        return
    spans = [(<size_t>cnp.PyArray_BYTES(array), cnp.PyArray_NBYTES(array), i)
             for i, array in enumerate(arrays) if cnp.PyArray_SIZE(array)]
    spans.sort()
    check_spans(spans, label, most)


cdef int check_spans(list spans, label, most) except -1:
    """Raises if one of these (address, bytes, position), ascending, reaches into the next."""
    for (low, size, i), (high, _, j) in zip(spans, spans[1:]):
        if low + size > high and (most is None or min(i, j) < most):
            first, second = sorted((i, j))
            raise ValueError(
                f"{label(first)} and {label(second)} share memory: it would be updated more than once"
            )
    return 0


cdef bint shares(cnp.ndarray array, char *data, Py_ssize_t bytes):
    """Whether an array lies, in part at least, in the memory at `data`."""
    cdef char *low = cnp.PyArray_BYTES(array)
    return low < data + bytes and data < low + cnp.PyArray_NBYTES(array)


cdef int check_state(state, param, label) except -1:
    """Raises unless `state` can be a state array, or an array of a stage, of this parameter."""
    if not isinstance(state, cnp.ndarray) or not cnp.PyArray_ISCARRAY(<cnp.ndarray>state):
        raise ValueError(f"state of {label} must be a writable C-contiguous array")
    if state.shape != param.shape or state.dtype != param.dtype:
        raise ValueError(
            f"state of {label} must have shape {param.shape} and dtype {param.dtype}, "
            f"got {state.shape} and {state.dtype}"
        )
    return 0


def flat(gradients, list names not None):
    """Gradients as a list, if they are a list of arrays and None, or a dict with these names in this order; else None.

    Whatever structure the parameters were given in, these are in their order.
    """
    cdef Py_ssize_t i = 0
    if type(gradients) is list:
        for gradient in <list>gradients:
            if gradient is not None and not cnp.PyArray_CheckExact(gradient):
                return None
        return gradients
    if type(gradients) is not dict or len(<dict>gradients) != len(names):
        return None
    for name in <dict>gradients:
        if name is not names[i] and name != names[i]:
            return None
        i += 1
    return list((<dict>gradients).values())
