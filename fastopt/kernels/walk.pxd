# The walk over the tables of a step, and what the plan computes as the walk does.

from .tables cimport Scalars, Walk

cdef double combined(double a, double b) noexcept nogil
cdef bint float32_bears(double scale) noexcept nogil
cdef void set_scale(Scalars *c, double scale) noexcept nogil
cdef void walk(const Walk *w, int purpose, Py_ssize_t part, Py_ssize_t parts) noexcept nogil
