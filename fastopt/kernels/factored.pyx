# cython: boundscheck=False, wraparound=False
"""Adafactor's step of one parameter: pointers and scratch for the compiled sweeps of factored.pxi."""

cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_GetPointer

from . import simd, threads

cnp.import_array()

include "flush.pxi"

cdef enum:
    FEW = 64              # as in factored.pxi
    HOLD_GIL = 8192       # a step of fewer elements ends sooner than a GIL hand-over pays

cdef struct Factored:     # as in factored.pxi
    double w
    double eps1
    double eps2
    double d
    double rho
    double decay
    double sign

ctypedef void (*step_t)(void *p, void *g, void *row, void *col, void *scratch, Py_ssize_t count, Py_ssize_t rows,
                        Py_ssize_t cols, const Factored *f) noexcept nogil


cdef void make(step_t function, void *p, void *g, void *row, void *col, void *scratch, Py_ssize_t count,
               Py_ssize_t rows, Py_ssize_t cols, const Factored *f, bint flush) noexcept nogil:
    cdef fastopt_mode mode = 0
    if flush:
        mode = fastopt_flush_on()
    function(p, g, row, col, scratch, count, rows, cols, f)
    if flush:
        fastopt_flush_restore(mode)


def step(str level, cnp.ndarray param not None, cnp.ndarray grad not None, cnp.ndarray row not None, cnp.ndarray col,
         tuple coefficients not None):
    """Steps one parameter in place; nothing is checked.

    Args:
        level: the compiled level to run.
        param, grad: C-contiguous float32 or float64 arrays of one shape.
        row, col: the factors of the second moment, of the dtype of `param`; without `col`, `row` is all of it.
        coefficients: 1-β₂, ε₁, ε₂, d, ρ, the decoupled decay, and the sign of the step.
    """
    cdef Factored f
    cdef Py_ssize_t count = 1, rows = 1, cols = cnp.PyArray_SIZE(param), size = cols
    cdef int dims = cnp.PyArray_NDIM(param)
    cdef void *scratch = NULL
    cdef void *p = cnp.PyArray_DATA(param)
    cdef void *g = cnp.PyArray_DATA(grad)
    cdef void *r = cnp.PyArray_DATA(row)
    cdef void *c = NULL if col is None else cnp.PyArray_DATA(col)
    cdef bint flush = threads.flush_subnormals
    cdef step_t function
    if size == 0:
        return
    f.w, f.eps1, f.eps2, f.d, f.rho, f.decay, f.sign = coefficients
    function = <step_t>PyCapsule_GetPointer(
        simd.table(level).ADAFACTOR[col is not None, cnp.PyArray_ITEMSIZE(param), cnp.PyArray_ITEMSIZE(grad)],
        "fastopt.rule")
    if col is not None:
        cols = cnp.PyArray_DIM(param, dims - 1)
        rows = cnp.PyArray_DIM(param, dims - 2)
        count = size // (rows * cols)
        if rows > FEW:
            scratch = PyMem_Malloc(2 * cols * sizeof(double))
            if scratch == NULL:
                raise MemoryError()
    if size < HOLD_GIL:
        make(function, p, g, r, c, scratch, count, rows, cols, &f, flush)
    else:
        with nogil:
            make(function, p, g, r, c, scratch, count, rows, cols, &f, flush)
    PyMem_Free(scratch)
