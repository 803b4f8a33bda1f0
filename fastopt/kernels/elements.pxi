# What the loops of a level work on: restrict pointers, elements of either dtype, and what a formula may do to one.
#
# What keeps a loop vectorised (gcc 12 and clang, checked by tests/test_vectorised.py):
#   - `vec` is a restrict pointer, and the loop lives in the function that has it as a parameter;
#   - a name is assigned by one expression only: with two, it is inferred as double;
#   - no literal constants in arithmetic: they are double, and so would the loop be;
#   - forms are compile-time arguments of a `loop`, which is always inlined: no branch inside;
#   - one function for each form: of many loops in one function gcc leaves some scalar, silently.
# Products and sums are never contracted: every level gives the same bits. Where two NaN meet in a sum, which one
# survives depends on the order in which a compiler puts them; so `clean` turns every NaN that comes in into the one
# that the CPU itself makes, and all are the same. It hides behind the loads.

from libc.math cimport fabs, fabsf, sqrt, sqrtf
from cpython.pycapsule cimport PyCapsule_New

include "clean.pxi"

cdef extern from *:
    """
    #ifdef _MSC_VER
      #define FASTOPT_RESTRICT __restrict
      #define FASTOPT_LOOP __forceinline void
    #else
      #define FASTOPT_RESTRICT __restrict__
      #define FASTOPT_LOOP __attribute__((always_inline)) void
    #endif
    typedef float  *FASTOPT_RESTRICT fastopt_f32;
    typedef double *FASTOPT_RESTRICT fastopt_f64;
    """
    ctypedef float* f32 "fastopt_f32"
    ctypedef double* f64 "fastopt_f64"
    ctypedef void loop "FASTOPT_LOOP"

ctypedef fused vec:
    f32
    f64

ctypedef fused source:
    f32
    f64

ctypedef fused real:
    float
    double

cdef inline real clean(real x) noexcept nogil:
    if real is float:
        return clean32(x)
    else:
        return clean64(x)

cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)

cdef inline real magnitude(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)

# size with the sign of x; x itself where it has none: 0, NaN
cdef inline real signed(real size, real x) noexcept nogil:
    up = size if x > -x else x
    return -size if x < -x else up

cdef object capsule(void *function):
    return PyCapsule_New(function, "fastopt.rule", NULL)
