# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Rows named in any order, some more than once: which there are, and where each is named."""

import numpy as np

from libc.string cimport memset

cdef enum:
    DIGIT = 11             # bits that one pass sorts by: the counts stay in L1
    BINS = 1 << DIGIT

cdef bint ascending(const long long[::1] rows) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, rows.shape[0]):
        if rows[i - 1] >= rows[i]:
            return False
    return True


def group(const long long[::1] rows, long long length):
    """Groups equal entries of `rows`, each from 0 to length - 1.

    Returns (unique, starts, order): row unique[k] is named at order[starts[k]], ..., order[starts[k + 1] - 1], in
    the order given. `unique` ascends.
    """
    cdef Py_ssize_t n = rows.shape[0], i, k
    order_array, spare_array = np.arange(n, dtype=np.int64), np.empty(n, np.int64)
    cdef long long[::1] order = order_array, spare = spare_array, unique, starts
    cdef Py_ssize_t counts[BINS]
    cdef Py_ssize_t at, count
    cdef int shift = 0
    if not ascending(rows):
        while (length - 1) >> shift:  # least significant digit first; each pass keeps the order of equals
            with nogil:
                memset(counts, 0, sizeof(counts))
                for i in range(n):
                    counts[(rows[i] >> shift) & (BINS - 1)] += 1
                at = 0
                for k in range(BINS):
                    count = counts[k]
                    counts[k] = at
                    at += count
                for i in range(n):
                    k = (rows[order[i]] >> shift) & (BINS - 1)
                    spare[counts[k]] = order[i]
                    counts[k] += 1
            order, spare = spare, order
            order_array, spare_array = spare_array, order_array
            shift += DIGIT
    count = n > 0
    for i in range(1, n):
        count += rows[order[i]] != rows[order[i - 1]]
    unique_array, starts_array = np.empty(count, np.int64), np.empty(count + 1, np.int64)
    unique, starts = unique_array, starts_array
    k = 0
    for i in range(n):
        if i == 0 or rows[order[i]] != rows[order[i - 1]]:
            unique[k] = rows[order[i]]
            starts[k] = i
            k += 1
    starts[count] = n
    return unique_array, starts_array, order_array
