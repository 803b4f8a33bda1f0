# What plan.pyx needs of checks.pyx, beside its Python functions.

cimport numpy as cnp

cdef int check_spans(list spans, label, most) except -1
cdef bint shares(cnp.ndarray array, char *data, Py_ssize_t bytes)
cdef int check_state(state, param, label) except -1
