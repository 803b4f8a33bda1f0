# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What norms of arrays are made of: sums of powers, in double, with the same bits on every level."""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, hypot, pow, sqrt

import numpy as np

from . import simd

cnp.import_array()

include "sums.pxi"

ctypedef double (*sum_t)(const void *x, Py_ssize_t n, double order) noexcept nogil

ctypedef fused real:
    float
    double


cdef void magnitudes(double *out, const real *x, Py_ssize_t n, bint pairs, double unit) noexcept nogil:
    """out = |x| / unit, but for the sign of a real x; `pairs`: x is n complex numbers."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = hypot(x[2 * i] / unit, x[2 * i + 1] / unit) if pairs else x[i] / unit


cdef double array_sum(const sum_t *power, const char *data, Py_ssize_t size, bint wide, bint pairs, double order,
                      double unit) noexcept nogil:
    """sum (|x| / unit)^order over `size` elements; for an infinite order the largest."""
    cdef double scratch[BLOCK]
    cdef double part, sum = 0.0
    cdef Py_ssize_t n, at = 0, width = (8 if wide else 4) * (2 if pairs else 1)
    while at < size:
        n = size - at if size - at < BLOCK else BLOCK
        if not pairs and unit == 1.0:
            part = power[wide](data + at * width, n, order)
        else:
            if wide:
                magnitudes(scratch, <const double*>(data + at * width), n, pairs, unit)
            else:
                magnitudes(scratch, <const float*>(data + at * width), n, pairs, unit)
            part = power[1](scratch, n, order)
        sum = joined(sum, part, order > DBL_MAX)
        at += n
    return sum


cdef int find(sum_t *power, level) except -1:
    cdef Py_ssize_t k
    for k in range(2):
        power[k] = <sum_t>PyCapsule_GetPointer(simd.table(level or simd.level()).SUMS["power"][k], "fastopt.rule")
    return 0


def run_norms(cnp.ndarray array not None, Py_ssize_t length, const Py_ssize_t[::1] which, double order, level=None):
    """The norms of some of the runs that a real array is cut into, summed relative to the largest element of each.

    Args:
        array: C-contiguous, float32 or float64; nothing is checked.
        length: elements of a run.
        which: the positions of the runs.
        order: above 0 and finite.
        level: as for `power_sum`.
    """
    cdef sum_t power[2]
    cdef bint wide = cnp.PyArray_ITEMSIZE(array) == 8
    cdef const char *data = <const char*>cnp.PyArray_DATA(array)
    cdef Py_ssize_t k, bytes = length * cnp.PyArray_ITEMSIZE(array)
    cdef double most, sum
    cdef double[::1] out
    result = np.empty(len(which))
    out = result
    find(power, level)
    with nogil:
        for k in range(which.shape[0]):
            most = array_sum(power, data + which[k] * bytes, length, wide, False, INFINITY, 1.0)
            if 0.0 < most <= DBL_MAX:
                sum = array_sum(power, data + which[k] * bytes, length, wide, False, order, most)
                most *= sqrt(sum) if order == 2 else pow(sum, 1.0 / order)
            out[k] = most
    return result


def power_sum(list arrays not None, double order, double unit=1.0, level=None):
    """sum (|x| / unit)^order over all elements; for an infinite order the largest |x| / unit, NaN if there is one.

    The sums of the arrays are added one by one, as Plan.powers() does.

    Args:
        arrays: C-contiguous float32, float64, complex64 or complex128 arrays; nothing is checked.
        order: above 0.
        level: the compiled level to run; None is the one in use.
    """
    cdef sum_t power[2]
    cdef cnp.ndarray array
    cdef const char *data
    cdef Py_ssize_t size
    cdef bint wide, complex_, pairs
    cdef double part, sum = 0.0
    find(power, level)
    for array in arrays:
        data, size = <const char*>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array)
        complex_ = cnp.PyArray_ISCOMPLEX(array)
        pairs = complex_ and order != 2  # |z|^2 is the sum over both parts
        wide = cnp.PyArray_ITEMSIZE(array) == (16 if complex_ else 8)
        if complex_ and not pairs:
            size *= 2
        if size < HOLD_GIL:
            part = array_sum(power, data, size, wide, pairs, order, unit)
        else:
            with nogil:
                part = array_sum(power, data, size, wide, pairs, order, unit)
        sum = joined(sum, part, order > DBL_MAX)
    return sum


def trust_ratios(double[:] squares, double[:] others, double rate):
    """rate sqrt(a / b) for each pair of sums of squares; 1 where one of them is 0."""
    cdef Py_ssize_t i
    cdef double[::1] ratios
    result = np.empty(squares.shape[0])
    ratios = result
    for i in range(squares.shape[0]):
        ratios[i] = 1 if squares[i] == 0 or others[i] == 0 else rate * sqrt(squares[i] / others[i])
    return result
