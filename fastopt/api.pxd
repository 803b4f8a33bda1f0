# The rules for Cython and C callers: free functions, no GIL, no Python object.
#
#     from fastopt.api cimport *
#     cdef fastopt_rule adam = find_rule("adam", sizeof(float), FASTOPT_DECAYS)
#     cdef float coefficients[FASTOPT_COEFFICIENTS]
#     coefficients[FASTOPT_ADAM_B1], coefficients[FASTOPT_ADAM_U1] = b1, 1 - b1
#     ...
#     adam(param, grad, exp_avg, exp_avg_sq, NULL, NULL, n, coefficients)
#
# A loop is found by the name of its rule, the size of an element and its forms, joined with |: FASTOPT_SCALED
# multiplies the gradient with coefficients[FASTOPT_SCALE] (-1 maximizes, less than 1 clips), FASTOPT_DECAYS takes
# coefficients[FASTOPT_DECAY] times the parameter off beside the update; the others are of a rule, such as
# FASTOPT_ADAM_AMSGRAD. `coefficients` has the dtype of the parameter. api_rules.pxi lists the forms and coefficients of
# every rule, and fastopt/kernels/rules.pxi has the formulas. State arrays come in the order of the method's slots; NULL
# where the forms need none. Arrays must not overlap. Nothing is checked and subnormals are not flushed: that is the
# caller's.

include "api_rules.pxi"

ctypedef void (*fastopt_rule)(void *param, void *grad, void *state0, void *state1, void *state2, void *state3,
                              Py_ssize_t n, const void *coefficients) noexcept nogil

# The loop compiled for this CPU, for elements of 4 or 8 bytes; NULL if there is none.
cdef fastopt_rule find_rule(const char *name, int itemsize, int forms) noexcept nogil
