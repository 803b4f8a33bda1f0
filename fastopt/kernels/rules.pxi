# Every rule: its formula, then its code, for one element. The loops around them are made by loops.py.
#
#   u = rule(q, g, states, forms, coefficients)
#     u       the update: p -= u, or u + decay q with decoupled weight decay, is the loop's
#     q       the parameter, every NaN in it the same one; a rule that needs neither leaves it out
#     g       its gradient, as the stages before the rule left it
#     real *  the element's state, in the order of the method's slots
#     bint    a form: what is decided once for a run of elements, so that no loop has a branch
#     real    the other coefficients of this step, in double until rounded once
#   p = rule(p, g, ...) has no update: what it returns is the new parameter.
#
# A name is assigned by one expression only, and arithmetic has no literals: else the loop would be double.


# b = mu b + tau g;  u = x b, or x b + y g with Nesterov's.   Sutskever et al. 2013.
# First step: b = 0 and tau = 1, so that b = g. Without momentum: u = y g.
# nesterov needs momentum
cdef inline real sgd(real g, real *b, bint momentum, bint nesterov,
                     real mu, real tau, real x, real y) noexcept nogil:
    if not momentum:
        return y * g
    b[0] = mu * b[0] + tau * g
    return x * b[0] + y * g if nesterov else x * b[0]


# s = s + g^2;  u = eta g / (sqrt(s + eps_in) + eps).   Duchi, Hazan, Singer 2011.
cdef inline real adagrad(real g, real *s, real eta, real eps, real eps_in) noexcept nogil:
    s[0] = s[0] + g * g
    return eta * g / (root(s[0] + eps_in) + eps)


# v = alpha v + (1-alpha) g^2;  a = alpha a + (1-alpha) g;  d = sqrt(max(v - a^2, 0) + eps_in) + eps
# b = mu b + g / d;  u = eta b.   Tieleman, Hinton 2012; centered: Graves 2013.
# The variance v - a^2 rounds below 0 for a steady gradient. Where both are infinite, for a finite a, it is v, as in
# torch, which does not round a^2: no step, and no NaN.
cdef inline real rmsprop(real g, real *v, real *b, real *a, bint momentum, bint centered,
                         real alpha, real beta, real eta, real eps, real eps_in, real mu) noexcept nogil:
    zero = mu - mu  # no literal: it would be a double
    v[0] = alpha * v[0] + beta * g * g
    if centered:
        a[0] = alpha * a[0] + beta * g
    x = v[0] - a[0] * a[0] if centered else v[0]
    y = x if x == x else v[0] + (a[0] - a[0]) if centered else v[0]
    cdef real w = (zero if y < zero else y) + eps_in if centered else y + eps_in
    d = root(w) + eps
    if not momentum:
        return eta * g / d
    b[0] = mu * b[0] + g / d
    return eta * b[0]


# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  w = max(w, v);  u = a m / (r sqrt(v + eps_in) + eps)
# Kingma, Ba 2015; Reddi et al. 2018. With a = eta / (1-b1^t) and r = 1 / sqrt(1-b2^t): one division and one root.
cdef inline real adam(real q, real g, real *m, real *v, real *w, bint amsgrad,
                      real b1, real u1, real b2, real u2, real a, real r, real eps, real eps_in) noexcept nogil:
    m[0] = b1 * m[0] + u1 * g
    v[0] = b2 * v[0] + u2 * g * g
    if amsgrad:
        w[0] = w[0] if w[0] >= v[0] else v[0]  # a NaN in v wins, as in torch
    return a * m[0] / (root((w[0] if amsgrad else v[0]) + eps_in) * r + eps)


# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  u = a m / (sqrt(v) + eps), or a m while the variance is not tractable.
# Liu et al. 2020, arXiv 1908.03265. a = eta / (1-b1^t), times rho sqrt(1-b2^t) in the first case.
cdef inline real radam(real q, real g, real *m, real *v, bint adaptive,
                       real b1, real u1, real b2, real u2, real a, real eps) noexcept nogil:
    m[0] = b1 * m[0] + u1 * g
    v[0] = b2 * v[0] + u2 * g * g
    return a * m[0] / (root(v[0]) + eps) if adaptive else a * m[0]


# m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  u = (x g + y m) / (r sqrt(v) + eps).   Dozat 2016.
# x = eta (1-mu_t) / (1-P_t) and y = eta mu_(t+1) / (1-P_(t+1)), with P the product of the mu; r = 1 / sqrt(1-b2^t).
cdef inline real nadam(real q, real g, real *m, real *v,
                       real b1, real u1, real b2, real u2, real x, real y, real r, real eps) noexcept nogil:
    m[0] = b1 * m[0] + u1 * g
    v[0] = b2 * v[0] + u2 * g * g
    return (x * g + y * m[0]) / (root(v[0]) * r + eps)


# m = b1 m + (1-b1) g;  z = max(b2 z, |g| + eps);  u = a m / z.   Kingma, Ba 2015. a = eta / (1-b1^t)
cdef inline real adamax(real g, real *m, real *z, real b1, real u1, real b2, real a, real eps) noexcept nogil:
    m[0] = b1 * m[0] + u1 * g
    x = b2 * z[0]
    y = magnitude(g) + eps
    most = x if x >= y else y  # a NaN in y, the gradient, wins
    z[0] = x if x != x else most
    return a * m[0] / z[0]


# v = rho v + (1-rho) g^2;  d = g sqrt(a + eps) / sqrt(v + eps);  a = rho a + (1-rho) d^2;  u = eta d
# Zeiler 2012, arXiv 1212.5701.
cdef inline real adadelta(real g, real *v, real *a, real rho, real one_rho, real eps, real eta) noexcept nogil:
    v[0] = rho * v[0] + one_rho * g * g
    d = root(a[0] + eps) / root(v[0] + eps) * g
    a[0] = rho * a[0] + one_rho * d * d
    return eta * d


# u = eta g + loss q;  a = q - u, later a + mu (q - u - a).   Polyak, Juditsky 1992. loss = lambd eta.
cdef inline real asgd(real q, real g, real *a, bint averaging, real loss, real eta, real mu) noexcept nogil:
    u = eta * g + loss * q
    p = q - u
    a[0] = a[0] + mu * (p - a[0]) if averaging else p
    return u


# s = g prev;  z = clamp(z f, least, most) with f = plus, minus or 1 where s > 0, s < 0 or s = 0
# g = 0 where s < 0;  u = sign(g) z;  prev = g.   Riedmiller, Braun 1993 (iRprop-).
# Selects are written so that a NaN goes through.
cdef inline real rprop(real g, real *prev, real *z,
                       real minus, real plus, real least, real most, real zero, real one) noexcept nogil:
    s = g * prev[0]
    x = plus if s > zero else s
    y = minus if s < zero else x
    w = z[0] * (one if s == zero else y)
    low = least if w < least else w
    z[0] = most if low > most else low
    prev[0] = zero if s < zero else g
    return signed(one, prev[0]) * z[0]


# x = b1 m + (1-b1) g;  u = eta sign(x);  m = b2 m + (1-b2) g.   Chen et al. 2023, arXiv 2302.06675.
cdef inline real lion(real g, real *m, real b1, real u1, real b2, real u2, real eta) noexcept nogil:
    x = b1 * m[0] + u1 * g
    m[0] = b2 * m[0] + u2 * g
    return signed(eta, x)


# m = b1 m + (1-b1) g;  s = b3 s + (1-b3) g;  v = b2 v + (1-b2) g^2;  u = (a m + k s) / (r sqrt(v) + eps)
# Pagliardini, Ablin, Grangier 2024, arXiv 2409.03137. a = eta / (1-b1^t), r = 1 / sqrt(1-b2^t), k = eta alpha: s is not
# corrected.
cdef inline real ademamix(real g, real *m, real *s, real *v, real b1, real u1, real b2, real u2, real b3, real u3,
                          real a, real k, real r, real eps) noexcept nogil:
    m[0] = b1 * m[0] + u1 * g
    s[0] = b3 * s[0] + u3 * g
    v[0] = b2 * v[0] + u2 * g * g
    return (a * m[0] + k * s[0]) / (root(v[0]) * r + eps)


# ---- what is no optimizer ----------------------------------------------------------------------

# p = p - w (p - g) where w < 1/2, else p = g - rest (g - p), with rest = 1 - w; a copy of g the first time. Here p is
# the average and g the parameter that it follows. The two forms are one in exact arithmetic; each rounds least on its
# side, and is torch's lerp. Of two NaN a difference takes the first: none has to be cleaned.
# Polyak, Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407.
# light needs not first
cdef inline real average(real p, real g, bint first, bint light, real w, real rest) noexcept nogil:
    return g if first else p - w * (p - g) if light else g - rest * (g - p)


# p = p + w g, or w g the first time: micro-batches are summed in p.
cdef inline real accumulate(real p, real g, bint first, real w) noexcept nogil:
    return w * clean(g) if first else p + w * clean(g)


# Reads g, reads and writes p and every state array with one multiplication each: what a rule with this many state
# arrays would cost if its arithmetic were free. Only the benchmarks use it.
# two needs one
# three needs two
cdef inline real traffic(real p, real g, real *s0, real *s1, real *s2, bint one, bint two, bint three,
                         real x) noexcept nogil:
    if one:
        s0[0] = x * s0[0]
    if two:
        s1[0] = x * s1[0]
    if three:
        s2[0] = x * s2[0]
    return x * p + g
