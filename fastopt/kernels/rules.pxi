# Every rule: its formula, then its loop. Compiled once per level; see level_*.pyx.
#
#   rule(p, g, s0, s1, s2, s3, n, c)
#     p       the parameter, n elements, updated in place
#     g       its gradient, already prepared (coupled decay, limit, dtype) but for its scale, read only
#     s0..s3  the state arrays in the order of the method's slots, NULL where the group has none
#     c       the coefficients of this step, in double until rounded once to the dtype of p; the last, c[SCALE], is
#             what g is to be multiplied with, 0: nothing (not in the average, the sum and the limit at the end)
#
# What keeps a loop vectorised (gcc 12 and clang, checked by tests/test_vectorised.py):
#   - `vec` is a restrict pointer, and the loop lives in the function that has it as a parameter;
#   - a name is assigned by one expression only: with two, it is inferred as double;
#   - no literal constants in arithmetic: they are double, and so would the loop be;
#   - options are compile-time arguments of a `loop`, which is always inlined: no branch inside.
# Products and sums are never contracted: every level gives the same bits. Where two NaN meet in a sum, which one
# survives depends on the order in which a compiler puts them; so clean32 and clean64 turn every NaN that comes in
# into the one that the CPU itself makes, and all are the same. It hides behind the loads.

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

cdef enum:
    SCALE = 11           # as in tables.pxd

ctypedef fused vec:
    f32
    f64

ctypedef fused source:
    f32
    f64


# ---- SGD ---------------------------------------------------------------------------------------

# b = mu b + tau g;  p -= x b + y g.   Sutskever et al. 2013; Nesterov where y != 0.
# First step: b = 0 and tau = 1, so that b = g.
cdef inline loop sgd_loop(vec p, vec g, vec b, Py_ssize_t n,
                          vec c, bint scaled, bint momentum, bint nesterov) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    mu, tau, x, y = c[0], c[1], c[2], c[3]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        if momentum:
            b[i] = mu * b[i] + tau * h
        if momentum and nesterov:
            p[i] = p[i] - (x * b[i] + y * h)
        elif momentum:
            p[i] = p[i] - x * b[i]
        else:
            p[i] = p[i] - y * h

cdef inline loop sgd_kind(vec p, vec g, vec b, vec _1, vec _2, vec _3, Py_ssize_t n, vec c, bint scaled) noexcept nogil:
    if b == NULL:
        sgd_loop(p, g, b, n, c, scaled, False, False)
    elif c[3]:
        sgd_loop(p, g, b, n, c, scaled, True, True)
    else:
        sgd_loop(p, g, b, n, c, scaled, True, False)

cdef void sgd(vec p, vec g, vec b, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        sgd_kind(p, g, b, _1, _2, _3, n, c, True)
    else:
        sgd_kind(p, g, b, _1, _2, _3, n, c, False)


# ---- Adagrad -----------------------------------------------------------------------------------

# s = s + g^2;  p -= eta g / (sqrt(s + eps_in) + eps).   Duchi, Hazan, Singer 2011.
cdef inline loop adagrad_loop(vec p, vec g, vec s, vec _1, vec _2, vec _3, Py_ssize_t n,
                              vec c, bint scaled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    eta, eps, eps_in = c[0], c[1], c[2]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        s[i] = s[i] + h * h
        if vec is f32:
            d = sqrtf(s[i] + eps_in) + eps
        else:
            d = sqrt(s[i] + eps_in) + eps
        p[i] = p[i] - eta * h / d

cdef void adagrad(vec p, vec g, vec s, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        adagrad_loop(p, g, s, _1, _2, _3, n, c, True)
    else:
        adagrad_loop(p, g, s, _1, _2, _3, n, c, False)


# ---- RMSprop -----------------------------------------------------------------------------------

# v = alpha v + (1-alpha) g^2;  a = alpha a + (1-alpha) g;  d = sqrt(max(v - a^2, 0) + eps_in) + eps
# b = mu b + g / d;  p -= eta b.   Tieleman, Hinton 2012; centered: Graves 2013.
# The variance v - a^2 rounds below 0 for a steady gradient. Where both are infinite, for a finite a, it is v, as in
# torch, which does not round a^2: no step, and no NaN.
cdef inline loop rmsprop_loop(vec p, vec g, vec v, vec b, vec a, Py_ssize_t n, vec c,
                              bint scaled, bint momentum, bint centered) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    alpha, beta, eta, eps, eps_in, mu = c[0], c[1], c[2], c[3], c[4], c[5]
    zero = mu - mu  # no literal: it would be a double
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        v[i] = alpha * v[i] + beta * h * h
        if centered:
            a[i] = alpha * a[i] + beta * h
        x = v[i] - a[i] * a[i] if centered else v[i]
        y = x if x == x else v[i] + (a[i] - a[i]) if centered else v[i]
        w = (zero if y < zero else y) + eps_in if centered else y + eps_in
        if vec is f32:
            d = sqrtf(w) + eps
        else:
            d = sqrt(w) + eps
        if momentum:
            b[i] = mu * b[i] + h / d
            p[i] = p[i] - eta * b[i]
        else:
            p[i] = p[i] - eta * h / d

cdef inline loop rmsprop_kind(vec p, vec g, vec v, vec b, vec a, vec _3, Py_ssize_t n,
                              vec c, bint scaled) noexcept nogil:
    if b == NULL and a == NULL:
        rmsprop_loop(p, g, v, b, a, n, c, scaled, False, False)
    elif a == NULL:
        rmsprop_loop(p, g, v, b, a, n, c, scaled, True, False)
    elif b == NULL:
        rmsprop_loop(p, g, v, b, a, n, c, scaled, False, True)
    else:
        rmsprop_loop(p, g, v, b, a, n, c, scaled, True, True)

cdef void rmsprop(vec p, vec g, vec v, vec b, vec a, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        rmsprop_kind(p, g, v, b, a, _3, n, c, True)
    else:
        rmsprop_kind(p, g, v, b, a, _3, n, c, False)


# ---- Adam, AdamW, AMSGrad ----------------------------------------------------------------------

# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w = max(w, v)
# p -= a m / (r sqrt(v + eps_in) + eps) + decay p.   Kingma, Ba 2015; Loshchilov, Hutter 2019; Reddi et al. 2018.
# a = eta / (1-b1^t) and r = 1 / sqrt(1-b2^t): one division and one square root per element.
# The decay joins the update before the one rounding of p, so that a tiny eta lambda does not vanish in float32.
cdef inline loop adam_loop(vec p, vec g, vec m, vec v, vec w, Py_ssize_t n, vec c,
                           bint scaled, bint amsgrad, bint decoupled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    b1, u1, b2, u2, a, r, eps, eps_in, decay = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
            q = clean32(p[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
            q = clean64(p[i])
        m[i] = b1 * m[i] + u1 * h
        v[i] = b2 * v[i] + u2 * h * h
        if amsgrad:
            w[i] = w[i] if w[i] >= v[i] else v[i]  # a NaN in v wins, as in torch
        x = (w[i] if amsgrad else v[i]) + eps_in
        if vec is f32:
            d = sqrtf(x) * r + eps
        else:
            d = sqrt(x) * r + eps
        if decoupled:
            p[i] = q - (a * m[i] / d + decay * q)
        else:
            p[i] = q - a * m[i] / d

cdef inline loop adam_kind(vec p, vec g, vec m, vec v, vec w, vec _3, Py_ssize_t n, vec c, bint scaled) noexcept nogil:
    if w == NULL and c[8]:
        adam_loop(p, g, m, v, w, n, c, scaled, False, True)
    elif w == NULL:
        adam_loop(p, g, m, v, w, n, c, scaled, False, False)
    elif c[8]:
        adam_loop(p, g, m, v, w, n, c, scaled, True, True)
    else:
        adam_loop(p, g, m, v, w, n, c, scaled, True, False)

cdef void adam(vec p, vec g, vec m, vec v, vec w, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        adam_kind(p, g, m, v, w, _3, n, c, True)
    else:
        adam_kind(p, g, m, v, w, _3, n, c, False)


# ---- RAdam -------------------------------------------------------------------------------------

# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
# p -= a m / (sqrt(v) + eps) + decay p;  p -= a m + decay p while the variance is not tractable.
# Liu et al. 2020, arXiv 1908.03265. a = eta / (1-b1^t), times r sqrt(1-b2^t) in the first case.
cdef inline loop radam_loop(vec p, vec g, vec m, vec v, Py_ssize_t n, vec c,
                            bint scaled, bint adaptive, bint decoupled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    b1, u1, b2, u2, a, eps, decay = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
            q = clean32(p[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
            q = clean64(p[i])
        m[i] = b1 * m[i] + u1 * h
        v[i] = b2 * v[i] + u2 * h * h
        if vec is f32:
            d = sqrtf(v[i]) + eps
        else:
            d = sqrt(v[i]) + eps
        step = a * m[i] / d if adaptive else a * m[i]
        p[i] = q - (step + decay * q) if decoupled else q - step

cdef inline loop radam_kind(vec p, vec g, vec m, vec v, vec _2, vec _3, Py_ssize_t n,
                            vec c, bint scaled) noexcept nogil:
    if c[7] and c[6]:
        radam_loop(p, g, m, v, n, c, scaled, True, True)
    elif c[7]:
        radam_loop(p, g, m, v, n, c, scaled, True, False)
    elif c[6]:
        radam_loop(p, g, m, v, n, c, scaled, False, True)
    else:
        radam_loop(p, g, m, v, n, c, scaled, False, False)

cdef void radam(vec p, vec g, vec m, vec v, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        radam_kind(p, g, m, v, _2, _3, n, c, True)
    else:
        radam_kind(p, g, m, v, _2, _3, n, c, False)


# ---- NAdam -------------------------------------------------------------------------------------

# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
# p -= (x g + y m) / (r sqrt(v) + eps) + decay p.   Dozat 2016.
# x = eta (1-mu_t) / (1-P_t) and y = eta mu_(t+1) / (1-P_(t+1)), with P the product of the mu; r = 1 / sqrt(1-b2^t).
cdef inline loop nadam_loop(vec p, vec g, vec m, vec v, Py_ssize_t n,
                            vec c, bint scaled, bint decoupled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    b1, u1, b2, u2, x, y, r, eps, decay = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
            q = clean32(p[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
            q = clean64(p[i])
        m[i] = b1 * m[i] + u1 * h
        v[i] = b2 * v[i] + u2 * h * h
        if vec is f32:
            d = sqrtf(v[i]) * r + eps
        else:
            d = sqrt(v[i]) * r + eps
        step = (x * h + y * m[i]) / d
        p[i] = q - (step + decay * q) if decoupled else q - step

cdef inline loop nadam_kind(vec p, vec g, vec m, vec v, vec _2, vec _3, Py_ssize_t n,
                            vec c, bint scaled) noexcept nogil:
    if c[8]:
        nadam_loop(p, g, m, v, n, c, scaled, True)
    else:
        nadam_loop(p, g, m, v, n, c, scaled, False)

cdef void nadam(vec p, vec g, vec m, vec v, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        nadam_kind(p, g, m, v, _2, _3, n, c, True)
    else:
        nadam_kind(p, g, m, v, _2, _3, n, c, False)


# ---- Adamax ------------------------------------------------------------------------------------

# m = b1 m + (1-b1) g;  u = max(b2 u, |g| + eps);  p -= a m / u.   Kingma, Ba 2015. a = eta / (1-b1^t)
cdef inline loop adamax_loop(vec p, vec g, vec m, vec u, vec _2, vec _3, Py_ssize_t n,
                             vec c, bint scaled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    b1, u1, b2, a, eps = c[0], c[1], c[2], c[3], c[4]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        m[i] = b1 * m[i] + u1 * h
        x = b2 * u[i]
        if vec is f32:
            y = fabsf(h) + eps
        else:
            y = fabs(h) + eps
        z = x if x >= y else y  # a NaN in y, the gradient, wins
        u[i] = x if x != x else z
        p[i] = p[i] - a * m[i] / u[i]

cdef void adamax(vec p, vec g, vec m, vec u, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        adamax_loop(p, g, m, u, _2, _3, n, c, True)
    else:
        adamax_loop(p, g, m, u, _2, _3, n, c, False)


# ---- Adadelta ----------------------------------------------------------------------------------

# v = rho v + (1-rho) g^2;  d = g sqrt(a + eps) / sqrt(v + eps);  a = rho a + (1-rho) d^2;  p -= eta d.
# Zeiler 2012, arXiv 1212.5701.
cdef inline loop adadelta_loop(vec p, vec g, vec v, vec a, vec _2, vec _3, Py_ssize_t n,
                               vec c, bint scaled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    rho, one_rho, eps, eta = c[0], c[1], c[2], c[3]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        v[i] = rho * v[i] + one_rho * h * h
        if vec is f32:
            d = sqrtf(a[i] + eps) / sqrtf(v[i] + eps) * h
        else:
            d = sqrt(a[i] + eps) / sqrt(v[i] + eps) * h
        a[i] = rho * a[i] + one_rho * d * d
        p[i] = p[i] - eta * d

cdef void adadelta(vec p, vec g, vec v, vec a, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        adadelta_loop(p, g, v, a, _2, _3, n, c, True)
    else:
        adadelta_loop(p, g, v, a, _2, _3, n, c, False)


# ---- ASGD --------------------------------------------------------------------------------------

# p -= decay p + eta g;  a = p, later a + mu (p - a).   Polyak, Juditsky 1992. decay = lambd eta joins the update
# before the one rounding of p, as in Adam.
cdef inline loop asgd_loop(vec p, vec g, vec a, Py_ssize_t n, vec c, bint scaled, bint averaging) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    decay, eta, mu = c[0], c[1], c[2]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
            q = clean32(p[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
            q = clean64(p[i])
        p[i] = q - (eta * h + decay * q)
        a[i] = a[i] + mu * (p[i] - a[i]) if averaging else p[i]

cdef inline loop asgd_kind(vec p, vec g, vec a, vec _1, vec _2, vec _3, Py_ssize_t n,
                           vec c, bint scaled) noexcept nogil:
    if c[3]:
        asgd_loop(p, g, a, n, c, scaled, True)
    else:
        asgd_loop(p, g, a, n, c, scaled, False)

cdef void asgd(vec p, vec g, vec a, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        asgd_kind(p, g, a, _1, _2, _3, n, c, True)
    else:
        asgd_kind(p, g, a, _1, _2, _3, n, c, False)


# ---- Rprop -------------------------------------------------------------------------------------

# s = g prev;  z = clamp(z f, least, most) with f = plus, minus or 1 where s > 0, s < 0 or s = 0
# g = 0 where s < 0;  p -= sign(g) z;  prev = g.   Riedmiller, Braun 1993 (iRprop-).
# Selects are written so that a NaN goes through.
cdef inline loop rprop_loop(vec p, vec g, vec prev, vec z, vec _2, vec _3, Py_ssize_t n,
                            vec c, bint scaled) noexcept nogil:
    cdef Py_ssize_t i
    scale = c[SCALE]
    minus, plus, least, most, zero, one, negative = c[0], c[1], c[2], c[3], c[4], c[5], c[6]
    for i in range(n):
        if vec is f32:
            h = clean32(scale * g[i] if scaled else g[i])
        else:
            h = clean64(scale * g[i] if scaled else g[i])
        s = h * prev[i]
        x = plus if s > zero else s
        y = minus if s < zero else x
        f = one if s == zero else y
        w = z[i] * f
        low = least if w < least else w
        z[i] = most if low > most else low
        prev[i] = zero if s < zero else h
        up = one if prev[i] > zero else prev[i]
        sign = negative if prev[i] < zero else up
        p[i] = p[i] - sign * z[i]

cdef void rprop(vec p, vec g, vec prev, vec z, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[SCALE]:
        rprop_loop(p, g, prev, z, _2, _3, n, c, True)
    else:
        rprop_loop(p, g, prev, z, _2, _3, n, c, False)


# ---- the average of weights --------------------------------------------------------------------

# p = p - w (p - g) where w < 1/2, else p = g - u (g - p), with u = 1 - w; a copy of g where u = 0. Here p is the
# average and g the parameter that it follows. The two forms are one in exact arithmetic; each rounds least on its
# side, and is torch's lerp. Of two NaN a difference takes the first: none has to be cleaned.
# Polyak, Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407.
cdef inline loop average_loop(vec p, vec g, Py_ssize_t n, vec c, bint first, bint light) noexcept nogil:
    cdef Py_ssize_t i
    w, u = c[0], c[1]
    for i in range(n):
        h, q = g[i], p[i]
        p[i] = h if first else q - w * (q - h) if light else h - u * (h - q)

cdef void average(vec p, vec g, vec _0, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[0] < c[1]:
        average_loop(p, g, n, c, False, True)
    elif c[1]:
        average_loop(p, g, n, c, False, False)
    else:
        average_loop(p, g, n, c, True, False)


# ---- the sum of gradients ----------------------------------------------------------------------

# p = p + w g, or w g the first time: micro-batches are summed in p.
cdef inline loop accumulate_loop(vec p, vec g, Py_ssize_t n, vec c, bint first) noexcept nogil:
    cdef Py_ssize_t i
    w = c[0]
    for i in range(n):
        if vec is f32:
            h = clean32(g[i])
        else:
            h = clean64(g[i])
        if first:
            p[i] = w * h
        else:
            p[i] = p[i] + w * h

cdef void accumulate(vec p, vec g, vec _0, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if c[1]:
        accumulate_loop(p, g, n, c, True)
    else:
        accumulate_loop(p, g, n, c, False)


# ---- the same-traffic limit --------------------------------------------------------------------

# Reads g, reads and writes p and every state array with one multiplication each: what a rule with this
# many state arrays would cost if its arithmetic were free. Only the benchmarks use it.
cdef inline loop traffic_loop(vec p, vec g, vec s0, vec s1, vec s2, Py_ssize_t n, vec c, int states) noexcept nogil:
    cdef Py_ssize_t i
    x = c[0]
    for i in range(n):
        p[i] = x * p[i] + g[i]
        if states > 0:
            s0[i] = x * s0[i]
        if states > 1:
            s1[i] = x * s1[i]
        if states > 2:
            s2[i] = x * s2[i]

cdef void traffic(vec p, vec g, vec s0, vec s1, vec s2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    if s0 == NULL:
        traffic_loop(p, g, s0, s1, s2, n, c, 0)
    elif s1 == NULL:
        traffic_loop(p, g, s0, s1, s2, n, c, 1)
    elif s2 == NULL:
        traffic_loop(p, g, s0, s1, s2, n, c, 2)
    else:
        traffic_loop(p, g, s0, s1, s2, n, c, 3)


# ---- what the plan imports ---------------------------------------------------------------------

cdef object capsule(void *function):
    return PyCapsule_New(function, "fastopt.rule", NULL)

# name -> (float32, float64)
RULES = {
    "sgd": (capsule(<void*>sgd[f32]), capsule(<void*>sgd[f64])),
    "adagrad": (capsule(<void*>adagrad[f32]), capsule(<void*>adagrad[f64])),
    "rmsprop": (capsule(<void*>rmsprop[f32]), capsule(<void*>rmsprop[f64])),
    "adam": (capsule(<void*>adam[f32]), capsule(<void*>adam[f64])),
    "radam": (capsule(<void*>radam[f32]), capsule(<void*>radam[f64])),
    "nadam": (capsule(<void*>nadam[f32]), capsule(<void*>nadam[f64])),
    "adamax": (capsule(<void*>adamax[f32]), capsule(<void*>adamax[f64])),
    "adadelta": (capsule(<void*>adadelta[f32]), capsule(<void*>adadelta[f64])),
    "asgd": (capsule(<void*>asgd[f32]), capsule(<void*>asgd[f64])),
    "rprop": (capsule(<void*>rprop[f32]), capsule(<void*>rprop[f64])),
    "average": (capsule(<void*>average[f32]), capsule(<void*>average[f64])),
    "accumulate": (capsule(<void*>accumulate[f32]), capsule(<void*>accumulate[f64])),
    "traffic": (capsule(<void*>traffic[f32]), capsule(<void*>traffic[f64])),
}
