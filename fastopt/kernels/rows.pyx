# cython: boundscheck=False, wraparound=False
"""Sums of rows, one after the other: the same bits on every machine."""

ctypedef fused real:
    float
    double


def add_rows(real[:, ::1] sums, const real[:, ::1] values, const Py_ssize_t[::1] order, const Py_ssize_t[::1] place):
    """Adds row `order[k]` of `values` to row `place[k]` of `sums`, for one k after the other."""
    cdef Py_ssize_t k, j
    with nogil:
        for k in range(order.shape[0]):
            for j in range(values.shape[1]):
                sums[place[k], j] += values[order[k], j]
