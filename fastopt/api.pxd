# The rules for Cython and C callers: free functions, no GIL, no Python object.
#
#     from fastopt.api cimport fastopt_rule, find_rule
#     cdef fastopt_rule adam = find_rule("adam", sizeof(float))
#     cdef float coefficients[FASTOPT_COEFFICIENTS]
#     coefficients[0], ..., coefficients[FASTOPT_COEFFICIENTS - 1] = b1, ..., 0
#     adam(param, grad, exp_avg, exp_avg_sq, NULL, NULL, n, coefficients)
#
# `coefficients` has the dtype of the parameter and room for FASTOPT_COEFFICIENTS numbers. The last is what the
# gradient is multiplied with: 0 leaves it as it is, -1 maximizes, less than 1 clips. The first are, in order:
#   sgd      mu, tau, x, y                    b = mu b + tau g;  p -= x b + y g
#   adagrad  eta, eps, eps_in                 s += g^2;  p -= eta g / (sqrt(s + eps_in) + eps)
#   rmsprop  alpha, 1-alpha, eta, eps, eps_in, mu
#   adam     b1, 1-b1, b2, 1-b2, eta/(1-b1^t), 1/sqrt(1-b2^t), eps, eps_in, eta*lambda
#   radam    b1, 1-b1, b2, 1-b2, a, eps, eta*lambda, 1 if adaptive
#   nadam    b1, 1-b1, b2, 1-b2, x, y, 1/sqrt(1-b2^t), eps, eta*lambda
#   adamax   b1, 1-b1, b2, eta/(1-b1^t), eps
#   adadelta rho, 1-rho, eps, eta
#   asgd     1-lambd*eta, eta, mu, 1 if averaging
#   rprop    minus, plus, least, most, 0, 1, -1
#   average  w, 1-w                           p += w (g - p): p is the average of the parameter g; no scale
# State arrays come in the order of the method's slots; NULL where the options need none (see kernels/rules.pxi).
# Arrays must not overlap. Nothing is checked and subnormals are not flushed: that is the caller's.

cdef enum:
    FASTOPT_COEFFICIENTS = 12

ctypedef void (*fastopt_rule)(void *param, void *grad, void *state0, void *state1, void *state2, void *state3,
                              Py_ssize_t n, const void *coefficients) noexcept nogil

# The rule of this name for elements of 4 or 8 bytes, compiled for this CPU; NULL if there is none.
cdef fastopt_rule find_rule(const char *name, int itemsize) noexcept nogil
