# What a block goes through beside its rule: preparing the gradient, measuring, and the stages after the rule.
# Compiled once per level, after rules.pxi; the same rules of the house hold.


# ---- before the rule ---------------------------------------------------------------------------

from libc.math cimport ldexp

# h = limit(scale g) - offset + decay p: maximize, scaling, clipping, centering, coupled weight decay and the dtype
# of the gradient, in one pass in L1. The limit, of absolute value, is infinite where there is none; NaN passes.
# c: scale, decay, offset, limit, exponent. With an exponent the scale is c[0] 2^c[4], which float32 has not, and is
# multiplied with in double.
cdef inline float limit32(float x, float most) noexcept nogil:
    cdef float low = -most if x < -most else x
    return most if low > most else low

cdef inline double limit64(double x, double most) noexcept nogil:
    cdef double low = -most if x < -most else x
    return most if low > most else low

cdef inline loop prepare_loop(vec h, source g, vec p, Py_ssize_t n, vec c, bint decay, bint more,
                              double wide) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if vec is f32:
            x = clean32(<float>(wide * <double>g[i])) if wide else c[0] * clean32(<float>g[i])
            z = limit32(x, c[3]) - c[2]
            y = clean32(p[i])
        else:
            x = c[0] * clean64(<double>g[i])
            z = limit64(x, c[3]) - c[2]
            y = clean64(p[i])
        if more and decay:
            h[i] = z + c[1] * y
        elif more:
            h[i] = z
        elif decay:
            h[i] = x + c[1] * y
        else:
            h[i] = x

cdef void prepare(vec h, source g, vec p, Py_ssize_t n, vec c) noexcept nogil:
    if c[4] and c[1]:
        prepare_loop(h, g, p, n, c, True, True, ldexp(<double>c[0], <int>c[4]))
    elif c[4]:
        prepare_loop(h, g, p, n, c, False, True, ldexp(<double>c[0], <int>c[4]))
    elif c[3] and c[1]:
        prepare_loop(h, g, p, n, c, True, True, 0)
    elif c[3]:
        prepare_loop(h, g, p, n, c, False, True, 0)
    elif c[1]:
        prepare_loop(h, g, p, n, c, True, False, 0)
    else:
        prepare_loop(h, g, p, n, c, False, False, 0)


# ---- measures ----------------------------------------------------------------------------------

# Sums are taken in double, in 16 lanes that are added in a fixed order: the same bits on every level.

from libc.float cimport DBL_EPSILON, DBL_MAX, DBL_MIN
from libc.math cimport INFINITY, NAN, pow

cdef enum:
    LANES = 16           # a literal in range(), which needs one

cdef double total(const double *lanes) noexcept nogil:
    cdef double sums[4]
    cdef Py_ssize_t k
    for k in range(4):
        sums[k] = (lanes[k] + lanes[k + 4]) + (lanes[k + 8] + lanes[k + 12])
    return (sums[0] + sums[1]) + (sums[2] + sums[3])

cdef extern from *:
    """
    /* x^2 + sum. The square of a float is exact in double, and then FMA, where there is one, has the same bits. */
    #ifdef __FP_FAST_FMA
      #define FASTOPT_ADD_SQUARE(x, sum) __builtin_fma(x, x, sum)
    #else
      #define FASTOPT_ADD_SQUARE(x, sum) ((x) * (x) + (sum))
    #endif
    static inline double fastopt_add_square(double x, double sum) { return FASTOPT_ADD_SQUARE(x, sum); }
    """
    double add_square "fastopt_add_square"(double x, double sum) noexcept nogil

# what an element adds: x^2 (order 2), |x| (1), x within [-most, most] less `start` (0), x (-1); `exact`: x^2 is
cdef inline double added(double sum, double x, int order, double most, double start, bint exact) noexcept nogil:
    if order == 2:
        return add_square(x, sum) if exact else sum + x * x
    return sum + (fabs(x) if order == 1 else (limit64(x, most) - start if order == 0 else x))

cdef inline double lane_sum(source x, Py_ssize_t n, int order, double most, double start) noexcept nogil:
    cdef double lanes[LANES]
    cdef double sum = 0.0
    cdef Py_ssize_t i, k, whole = n - n % LANES
    cdef bint exact = source is f32
    if whole:
        for k in range(LANES):
            lanes[k] = 0.0
        for i in range(0, whole, 16):
            for k in range(LANES):
                lanes[k] = added(lanes[k], <double>x[i + k], order, most, start, exact)
        sum = total(lanes)
    for i in range(whole, n):
        sum = added(sum, <double>x[i], order, most, start, exact)
    return sum

# The largest |x|; NaN if there is one.
cdef double largest(source x, Py_ssize_t n) noexcept nogil:
    cdef double most[LANES]
    cdef double bad[LANES]
    cdef double a, found = 0.0, wrong = 0.0
    cdef Py_ssize_t i, k, whole = n - n % LANES
    for k in range(LANES):
        most[k] = 0.0
        bad[k] = 0.0
    for i in range(0, whole, 16):
        for k in range(LANES):
            a = fabs(<double>x[i + k])
            most[k] = a if a > most[k] else most[k]
            bad[k] = bad[k] if a == a else 1.0
    for i in range(whole, n):
        a = fabs(<double>x[i])
        found = a if a > found else found
        wrong = wrong if a == a else 1.0
    for k in range(LANES):
        found = most[k] if most[k] > found else found
        wrong += bad[k]
    return <double>NAN if wrong else found

# sum x
cdef double plain_sum(source x, Py_ssize_t n) noexcept nogil:
    return lane_sum(x, n, -1, <double>INFINITY, 0)

# The mean of x, n > 0, with every x limited to [-most, most]: exactly x where all are equal, hence summed from the
# first one on.
cdef double limited_mean(source x, Py_ssize_t n, double most) noexcept nogil:
    cdef double start = limit64(<double>x[0], most)
    if not fabs(start) <= DBL_MAX:
        start = 0.0  # the infinities are to meet in the sum
    return start + lane_sum(x, n, 0, most, start) / <double>n

# sum |x|^order; for an infinite order the largest |x|
cdef double power_sum(source x, Py_ssize_t n, double order) noexcept nogil:
    cdef double sum = 0.0
    cdef Py_ssize_t i
    if order == 2:
        return lane_sum(x, n, 2, order, 0)
    if order == 1:
        return lane_sum(x, n, 1, order, 0)
    if order > DBL_MAX:
        return largest(x, n)
    for i in range(n):
        sum += pow(fabs(<double>x[i]), order)
    return sum

cdef enum:
    WIDE_LANES = 32      # of float32: as many as hide the time of an addition

# Minus the root of sum x^2, which is out of range; or 0, or infinite.
cdef double minus_root(source x, Py_ssize_t n) noexcept nogil:
    cdef double sum, y, most = largest(x, n)
    cdef Py_ssize_t i
    if most == 0.0 or most > DBL_MAX:
        return most
    sum = 0.0
    for i in range(n):
        y = <double>x[i] / most
        sum += y * y
    return -most * sqrt(sum)

# sum x^2 for logs, n <= 512: to 1e-5 of its value, in float32 if x is, unless that may be out of range;
# minus its root, if it is out of the range of double
cdef double near_sum(vec x, Py_ssize_t n) noexcept nogil:
    cdef float lanes[WIDE_LANES]
    cdef double halves[LANES]
    cdef double sum
    cdef Py_ssize_t i, k, whole = n - n % WIDE_LANES
    if vec is f32:
        for k in range(WIDE_LANES):
            lanes[k] = 0
        for i in range(0, whole, 32):
            for k in range(WIDE_LANES):
                lanes[k] += x[i + k] * x[i + k]
        for k in range(LANES):
            halves[k] = <double>lanes[k] + <double>lanes[k + LANES]
        sum = total(halves)
        if <double>1e-30 < sum < <double>1e30:
            return sum + power_sum(x + whole, n - whole, 2)
    sum = power_sum(x, n, 2)
    if vec is f64 and not DBL_MIN / DBL_EPSILON <= sum <= DBL_MAX and sum == sum:
        return minus_root(x, n)
    return sum

# sum (p - q)^2 likewise; t is room for n numbers
cdef double moved_sum(vec p, vec q, vec t, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        t[i] = p[i] - q[i]
    return near_sum(t, n)


# ---- ahead of a step ---------------------------------------------------------------------------

# What a step would do, when it is rehearsed: sum(a, b, room, n, k) of two operands of one dtype (see Operand in
# tables.pxd), with room for n numbers, and constants k.

# sum a b
cdef double dot(vec a, vec b, vec room, Py_ssize_t n, vec k) noexcept nogil:
    cdef double lanes[LANES]
    cdef double sum = 0.0
    cdef Py_ssize_t i, j, whole = n - n % LANES
    if whole:
        for j in range(LANES):
            lanes[j] = 0.0
        for i in range(0, whole, 16):
            for j in range(LANES):
                lanes[j] += <double>a[i + j] * <double>b[i + j]
        sum = total(lanes)
    for i in range(whole, n):
        sum += <double>a[i] * <double>b[i]
    return sum

# sum a^2, of float32 in float32 lanes where no square is out of range: right to 1e-6
cdef double square(vec a, vec b, vec room, Py_ssize_t n, vec k) noexcept nogil:
    if vec is f32:
        return near_sum(a, n)
    else:
        return power_sum(a, n, 2)

# sum (a - b)^2
cdef double distance(vec a, vec b, vec room, Py_ssize_t n, vec k) noexcept nogil:
    cdef double lanes[LANES]
    cdef double x, sum = 0.0
    cdef Py_ssize_t i, j, whole = n - n % LANES
    if whole:
        for j in range(LANES):
            lanes[j] = 0.0
        for i in range(0, whole, 16):
            for j in range(LANES):
                x = <double>a[i + j] - <double>b[i + j]
                lanes[j] += x * x
        sum = total(lanes)
    for i in range(whole, n):
        x = <double>a[i] - <double>b[i]
        sum += x * x
    return sum

# sum |a|
cdef double absolute(vec a, vec b, vec room, Py_ssize_t n, vec k) noexcept nogil:
    return lane_sum(a, n, 1, 0, 0)

# how many elements of both have the same sign: u h > 0
cdef double agreement(vec u, vec h, vec room, Py_ssize_t n, vec k) noexcept nogil:
    cdef Py_ssize_t i
    cdef int count = 0
    for i in range(n):
        # no zero: a literal is a double
        count += ((u[i] > -u[i]) & (h[i] > -h[i])) | ((u[i] < -u[i]) & (h[i] < -h[i]))
    return count

# sum h^2 / max(k0 v, k1)
cdef double ratio(vec h, vec v, vec room, Py_ssize_t n, vec k) noexcept nogil:
    cdef Py_ssize_t i
    unbias, least = k[0], k[1]
    for i in range(n):
        x = unbias * v[i]
        d = least if x < least else x
        room[i] = h[i] * (h[i] / d)  # h^2 may be out of range
    return plain_sum(room, n)

# m = u + c0 p: all that a step takes off the parameter
cdef void move(vec m, vec u, vec p, Py_ssize_t n, vec c) noexcept nogil:
    cdef Py_ssize_t i
    decay = c[0]
    for i in range(n):
        m[i] = u[i] + decay * p[i]


# ---- where the update is seen before it is made ------------------------------------------------

# u = m u, with m = c0 where u has the sign of the gradient and 0 elsewhere.   Liang et al. 2024, arXiv 2411.16085.
cdef void cautious(vec u, vec h, Py_ssize_t n, vec c) noexcept nogil:
    cdef Py_ssize_t i
    s = c[0]
    zero = s - s  # no literal: it would be a double
    for i in range(n):
        x = h[i] if u[i] > zero else -h[i]
        m = s if x > zero else zero
        u[i] = m * u[i]

# p = p - c1 (u + c0 p), or without c1, or without the decay c0: what the loop of a rule does itself where nothing has
# to see u. `careful` decays only where u has the sign of p, or none.   Chen et al. 2025, arXiv 2510.12402.
cdef inline loop subtract_loop(vec p, vec u, Py_ssize_t n, vec c, bint decays, bint careful, bint rated) noexcept nogil:
    cdef Py_ssize_t i
    decay, rate = c[0], c[1]
    zero = decay - decay
    for i in range(n):
        q = clean(p[i])
        v = u[i]
        w = v + decay * q
        x = q if v > zero else zero
        y = -q if v < zero else x
        z = w if y >= zero else v
        m = z if careful else w if decays else v
        p[i] = q - rate * m if rated else q - m

cdef void subtract(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, False, False, False)

cdef void subtract_decays(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, True, False, False)

cdef void subtract_careful(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, True, True, False)

cdef void subtract_rated(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, False, False, True)

cdef void subtract_decays_rated(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, True, False, True)

cdef void subtract_careful_rated(vec p, vec u, Py_ssize_t n, vec c) noexcept nogil:
    subtract_loop(p, u, n, c, True, True, True)


# ---- after the rule ----------------------------------------------------------------------------

# stage(own, p, NULL, NULL, NULL, NULL, n, c): `own` is an array that the stage keeps, or NULL; p, which it writes, is a
# piece of the parameter after the rule. The average of rules.pxi is one too.

# p = min(max(p, c0), c1); NaN passes
cdef void project(vec own, vec p, vec _0, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    cdef Py_ssize_t i
    low, high = c[0], c[1]
    for i in range(n):
        x = high if p[i] > high else p[i]
        p[i] = low if x < low else x

# slow = slow - c0 (slow - p);  p = slow.   Lookahead: Zhang et al. 2019, arXiv 1907.08610.
cdef void lookahead(vec own, vec p, vec _0, vec _1, vec _2, vec _3, Py_ssize_t n, vec c) noexcept nogil:
    cdef Py_ssize_t i
    alpha = c[0]
    for i in range(n):
        x = own[i] - alpha * (own[i] - p[i])
        own[i] = x
        p[i] = x


# ---- what the plan imports ---------------------------------------------------------------------

# (dtype of the parameter, dtype of the gradient), in bytes -> prepare
PREPARE = {
    (4, 4): capsule(<void*>prepare[f32, f32]),
    (4, 8): capsule(<void*>prepare[f32, f64]),
    (8, 4): capsule(<void*>prepare[f64, f32]),
    (8, 8): capsule(<void*>prepare[f64, f64]),
}

# name -> (float32, float64)
SUMS = {
    "power": (capsule(<void*>power_sum[f32]), capsule(<void*>power_sum[f64])),
    "limited": (capsule(<void*>limited_mean[f32]), capsule(<void*>limited_mean[f64])),
}
NORMS = {
    "near": (capsule(<void*>near_sum[f32]), capsule(<void*>near_sum[f64])),
    "moved": (capsule(<void*>moved_sum[f32]), capsule(<void*>moved_sum[f64])),
}
MEASURES = {
    "dot": (capsule(<void*>dot[f32]), capsule(<void*>dot[f64])),
    "distance": (capsule(<void*>distance[f32]), capsule(<void*>distance[f64])),
    "square": (capsule(<void*>square[f32]), capsule(<void*>square[f64])),
    "absolute": (capsule(<void*>absolute[f32]), capsule(<void*>absolute[f64])),
    "agreement": (capsule(<void*>agreement[f32]), capsule(<void*>agreement[f64])),
    "ratio": (capsule(<void*>ratio[f32]), capsule(<void*>ratio[f64])),
}
UPDATES = {
    "move": (capsule(<void*>move[f32]), capsule(<void*>move[f64])),
    "cautious": (capsule(<void*>cautious[f32]), capsule(<void*>cautious[f64])),
    "subtract": (capsule(<void*>subtract[f32]), capsule(<void*>subtract[f64])),
    "subtract_decays": (capsule(<void*>subtract_decays[f32]), capsule(<void*>subtract_decays[f64])),
    "subtract_careful": (capsule(<void*>subtract_careful[f32]), capsule(<void*>subtract_careful[f64])),
    "subtract_rated": (capsule(<void*>subtract_rated[f32]), capsule(<void*>subtract_rated[f64])),
    "subtract_decays_rated": (capsule(<void*>subtract_decays_rated[f32]), capsule(<void*>subtract_decays_rated[f64])),
    "subtract_careful_rated": (
        capsule(<void*>subtract_careful_rated[f32]), capsule(<void*>subtract_careful_rated[f64])),
}
STAGES = {
    "project": (capsule(<void*>project[f32]), capsule(<void*>project[f64])),
    "lookahead": (capsule(<void*>lookahead[f32]), capsule(<void*>lookahead[f64])),
}
