# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""The walk over blocks: every pass of a step over its arrays. No Python runs in it."""

from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, fabs, frexp, hypot, ldexp, sqrt
from libc.string cimport memcpy, memset

from .rules cimport DECAY, STATES
from .tables cimport (
    AFTER, BEFORE, BLOCKS, FACTORS, GRADIENT, MEASURES, MOVED, OF_DECAY, OF_GRADIENT, OF_MASK, OF_RATE, OPERANDS, PARAM,
    PREPARED, REHEARSE, RULED, STAGED, STEP, Cohort, Follower, Gradient, Item, Scalars, Walk, prepare_t, rule_t)

include "clean.pxi"
include "flush.pxi"
include "sums.pxi"

cdef extern from *:
    """
    #ifdef _MSC_VER
      #define FASTOPT_APART __declspec(noinline) void
    #else
      #define FASTOPT_APART __attribute__((noinline)) void
    #endif
    /* asks for the cache lines of a row that will soon be written */
    static void fastopt_prefetch(const char *row, Py_ssize_t bytes) {
    #if defined(__GNUC__) || defined(__clang__)
      Py_ssize_t at;
      if (row) for (at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1, 3);
    #endif
    }
    """
    ctypedef void apart "FASTOPT_APART"  # not inlined: its frame and registers are not the caller's
    void fastopt_prefetch(const char *row, Py_ssize_t bytes) noexcept nogil

cdef enum:
    PIECE = 512           # elements of a block that go through several stages: then all arrays stream side by side
    QUARTER = 1024        # of a page: arrays of NumPy and of arrays.aligned begin at 0, 1/8, 3/8, 5/8 or 7/8 of one;
    BETWEEN = 256         # scratch pieces lie between: at one place of two pages, loads wait for stores
    APART = 8 * PIECE + QUARTER
    AHEAD = 16            # rows: a touched row is asked for while so many others are stepped; misses cost the most
    AHEAD_BYTES = 1024    # of a row, at most: its rest the hardware fetches


ctypedef fused real:
    float
    double


cdef inline Py_ssize_t cut(const Item *item, Py_ssize_t work) noexcept nogil:
    """The first element of `item` at or after `work`: 0, a multiple of BLOCK, or its size."""
    cdef Py_ssize_t into = work - item.start
    if into <= 0:
        return 0
    if into >= item.size:
        return item.size
    return into - into % BLOCK


cdef inline void sum_rows(real *sums, const Gradient *gradient, Py_ssize_t k, Py_ssize_t first, Py_ssize_t length,
                          Py_ssize_t n) noexcept nogil:
    """Writes n elements, from `first`, of the touched row k into `sums`: those of its stored rows, one by one."""
    cdef const real *row
    cdef Py_ssize_t s, i
    memset(sums, 0, n * sizeof(real))
    for s in range(gradient.starts[k], gradient.starts[k + 1]):
        row = <const real*>gradient.data + gradient.order[s] * length + first
        for i in range(n):
            sums[i] += row[i]


cdef apart walk_rows(const Item *item, const Gradient *gradient, rule_t rule, const void *c, prepare_t prepare,
                    const void *prepare_c, Py_ssize_t lo, Py_ssize_t hi, void *scratch) noexcept nogil:
    """Steps the rows of a sparse gradient that fall to the elements lo to hi, were the rows spread evenly."""
    cdef double sums[PIECE]
    cdef Py_ssize_t length, k, j, last, n, at, into
    cdef char *h
    if gradient.count == 0 or item.size == 0:
        return
    length = item.size // item.rows
    last = gradient.count * hi // item.size
    for k in range(gradient.count * lo // item.size, last):
        if k + AHEAD < last:
            at = <Py_ssize_t>gradient.rows[k + AHEAD] * length * item.width
            n = length * item.width if length * item.width < AHEAD_BYTES else AHEAD_BYTES
            fastopt_prefetch(item.param + at, n)
            for j in range(STATES):
                if item.state[j] != NULL:
                    fastopt_prefetch(item.state[j] + at, n)
        into = 0
        while into < length:
            n = length - into if length - into < PIECE else PIECE
            at = (<Py_ssize_t>gradient.rows[k] * length + into) * item.width
            if gradient.starts[k + 1] == gradient.starts[k] + 1:
                h = gradient.data + (gradient.order[gradient.starts[k]] * length + into) * gradient.width
            else:
                h = <char*>sums
                if gradient.width == 4:
                    sum_rows(<float*>sums, gradient, k, into, length, n)
                else:
                    sum_rows(<double*>sums, gradient, k, into, length, n)
            if prepare != NULL:
                prepare(scratch, h, item.param + at, n, prepare_c)
                h = <char*>scratch
            rule(item.param + at, h,
                 item.state[0] + at if item.state[0] != NULL else NULL,
                 item.state[1] + at if item.state[1] != NULL else NULL,
                 item.state[2] + at if item.state[2] != NULL else NULL,
                 item.state[3] + at if item.state[3] != NULL else NULL,
                 n, c)
            into += n


cdef apart sum_blocks(const Walk *w, Py_ssize_t k, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Sums the blocks of a gradient from lo to hi."""
    cdef const Gradient *gradient = &w.gradients[k]
    cdef double *sums = w.sums + (w.items[k].block + lo // BLOCK) * MEASURES
    cdef Py_ssize_t n
    while lo < hi:
        n = hi - lo if hi - lo < BLOCK else BLOCK
        sums[0] = w.power[gradient.width == 8](gradient.data + lo * gradient.width, n, w.order)
        sums += MEASURES
        lo += n


cdef apart sum_units(const Walk *w, Py_ssize_t k, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Sums the units that start between begin and end, each whole."""
    cdef const Item *item = &w.items[k]
    cdef const Gradient *gradient = &w.gradients[k]
    cdef Py_ssize_t u, n = item.unit, first = begin - item.start, last = end - item.start
    cdef const char *g
    cdef double *sums
    if n == 0:
        return
    u = (first + n - 1) // n if first > 0 else 0
    while u * n < last and u * n < item.size:
        g = gradient.data + u * n * gradient.width
        sums = w.sums + (item.first_unit + u) * MEASURES
        if w.centers:
            sums[0] = w.limited[gradient.width == 8](g, n, w.limit)
        if w.adapts:
            sums[1] = w.power[gradient.width == 8](g, n, 2)
            sums[2] = w.power[item.width == 8](item.param + u * n * item.width, n, 2)
        u += 1


cdef bint float32_bears(double scale) noexcept nogil:
    """Whether a gradient may be multiplied with this in float32: with a smaller one it may itself be out of range."""
    return 2.0**-60 <= fabs(scale) <= 2.0**126


cdef void set_scale(Scalars *c, double scale) noexcept nogil:
    """The scale of the prepare stage. Where float32, or a float64 gradient made that, may not bear it: see prepare."""
    cdef int exponent = 0
    c.f64[0], c.f64[4] = scale, 0
    if not float32_bears(scale) and scale != 0 and fabs(scale) <= DBL_MAX:
        c.f32[0] = <float>frexp(scale, &exponent)
        if c.f32[3] == 0:
            c.f32[3] = INFINITY
    else:
        c.f32[0] = <float>scale
    c.f32[4] = <float>exponent


cdef double combined(double a, double b) noexcept nogil:
    """Sums of squares, or minus their roots where they are out of range, joined."""
    if (a >= 0 and b >= 0 and a + b <= DBL_MAX) or a != a or b != b:
        return a + b
    return -hypot(sqrt(a) if a >= 0 else -a, sqrt(b) if b >= 0 else -b)


cdef void prepare_units(const Walk *w, const Item *item, const Gradient *gradient, const Scalars *common,
                        prepare_t prepare, Py_ssize_t lo, Py_ssize_t n, char *out) noexcept nogil:
    """Prepares n elements of a gradient, from lo, each unit with its own scale and offset."""
    cdef Scalars c = common[0]
    cdef const void *own_c
    cdef Py_ssize_t at = lo, m
    cdef const double *own
    while at < lo + n:
        m = item.unit - at % item.unit
        if m > lo + n - at:
            m = lo + n - at
        own = w.units + 2 * (item.first_unit + at // item.unit)
        c.f64[3] = common.f64[3] if common.f64[3] != 0 else INFINITY
        c.f32[3] = <float>c.f64[3]
        set_scale(&c, common.f64[0] * own[0])
        # rounded and limited as an element is: equal ones leave exactly 0
        c.f64[2] = c.f64[0] * own[1]
        c.f32[2] = (<float>(ldexp(c.f32[0], <int>c.f32[4]) * own[1]) if c.f32[4] != 0 else
                    c.f32[0] * <float>own[1])
        c.f64[2] = min(max(c.f64[2], -c.f64[3]), c.f64[3])
        c.f32[2] = min(max(c.f32[2], -c.f32[3]), c.f32[3])
        own_c = <const void*>c.f64 if item.width == 8 else <const void*>c.f32
        prepare(out + (at - lo) * item.width, gradient.data + at * gradient.width, item.param + at * item.width, m,
                own_c)
        at += m


cdef inline char *ready(const Walk *w, const Item *item, const Gradient *gradient, const Scalars *common, bint prepared,
                        Py_ssize_t lo, Py_ssize_t n, char *scratch) noexcept nogil:
    """n elements of a gradient, from lo: in `scratch` where the prepare stage has something to do."""
    cdef int wide = item.width == 8
    cdef prepare_t prepare = w.prepare[wide][gradient.width == 8]
    cdef const void *c = <const void*>common.f64 if wide else <const void*>common.f32
    cdef char *g = gradient.data + lo * gradient.width
    if w.units != NULL:
        prepare_units(w, item, gradient, common, prepare, lo, n, scratch)
    elif prepared or gradient.width != item.width:
        prepare(scratch, g, item.param + lo * item.width, n, c)
    else:
        return g
    return scratch


cdef bint prepare_as(const Walk *w, const Cohort *cohort, Py_ssize_t k, Scalars *c) noexcept nogil:
    """Writes the coefficients of the prepare stage for an item with factors; whether it has something to do."""
    cdef const double *factors = w.factors + k * FACTORS
    c[0] = cohort.prepare
    c.f64[1] *= factors[OF_DECAY]
    c.f32[1] = <float>c.f64[1]
    c.f64[3] *= fabs(factors[OF_GRADIENT])  # of what is scaled by all but this
    c.f32[3] = <float>c.f64[3]
    set_scale(c, cohort.prepare.f64[0] * factors[OF_GRADIENT])
    return c.f64[0] != 1 or c.f64[1] != 0 or c.f64[3] != 0


cdef inline char *between(char *memory) noexcept nogil:
    """The first place in `memory` where a scratch piece may begin; others follow APART bytes after each other."""
    return memory + (QUARTER + BETWEEN - <size_t>memory % QUARTER) % QUARTER


cdef apart walk_staged(const Walk *w, Py_ssize_t k, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Steps the elements lo to hi of an item, with the stages beside its rule."""
    cdef char memory[4 * APART]
    cdef char *scratch = between(memory)
    cdef char *before = scratch + APART
    cdef char *room = before + APART
    cdef char *u = room + APART
    cdef const Item *item = &w.items[k]
    cdef const Gradient *gradient = &w.gradients[k]
    cdef const Cohort *cohort = NULL  # a step without any gradient has none
    cdef Scalars mixed   # of the prepare stage of an item with factors,
    cdef const Scalars *common = NULL
    cdef Scalars own_c   # and of what is done to the update: weight decay and rate, and the mask of cautious
    cdef const Follower *follower
    cdef const void *c
    cdef char *state[STATES]
    cdef char *h
    cdef char *p
    cdef char *own
    cdef double *sums = NULL
    cdef Py_ssize_t n, at, next_n, j
    cdef int wide = item.width == 8
    cdef bint given = gradient.width != 0
    cdef bint prepared = False, sees = w.cautious or w.careful
    cdef int decays = 0, rated = 0
    if given:
        cohort = &w.cohorts[item.cohort]
        common, prepared = &cohort.prepare, cohort.prepared
        own_c.f64[0], own_c.f32[0] = cohort.rule.f64[DECAY], cohort.rule.f32[DECAY]
        own_c.f64[1] = own_c.f32[1] = own_c.f64[2] = own_c.f32[2] = 1
        if w.factors != NULL:
            common, prepared = &mixed, prepare_as(w, cohort, k, &mixed)
            own_c.f64[1], own_c.f64[2] = w.factors[k * FACTORS + OF_RATE], w.factors[k * FACTORS + OF_MASK]
            own_c.f32[1], own_c.f32[2] = <float>own_c.f64[1], <float>own_c.f64[2]
        rated = own_c.f64[1] != 1
        sees = sees or rated
        if cohort.decays[wide]:
            decays = 2 if w.careful else 1
    while lo < hi:
        n = hi - lo if hi - lo < PIECE else PIECE
        next_n = hi - lo - n if hi - lo - n < PIECE else PIECE
        at = lo * item.width
        p = item.param + at
        h = NULL
        if w.sums_taken:
            sums = w.sums + (item.block + lo // BLOCK) * MEASURES
            if lo % BLOCK == 0:
                memset(sums, 0, MEASURES * sizeof(double))
        for j in range(STATES):
            state[j] = item.state[j] + at if item.state[j] != NULL else NULL
        if given:  # a pass over a piece waits for one array at a time: the others can come meanwhile
            fastopt_prefetch(gradient.data + (lo + n) * gradient.width, next_n * gradient.width)
            fastopt_prefetch(p + n * item.width, next_n * item.width)
            for j in range(STATES):
                if state[j] != NULL:
                    fastopt_prefetch(state[j] + n * item.width, next_n * item.width)
        if w.keeps:
            memcpy(before, p, n * item.width)
        if given:
            if w.sum_gradient:
                sums[0] = combined(sums[0], w.near[gradient.width == 8](gradient.data + lo * gradient.width, n))
            h = ready(w, item, gradient, common, prepared, lo, n, scratch)
            c = <const void*>cohort.rule.f64 if wide else <const void*>cohort.rule.f32
            if sees:
                cohort.update[wide](u, p, h, state[0], state[1], state[2], state[3], n, c)
                if w.cautious:
                    w.mask[wide](u, h, n, <const void*>&own_c.f64[2] if wide else <const void*>&own_c.f32[2])
                w.subtract[wide][rated][decays](p, u, n, <const void*>own_c.f64 if wide else <const void*>own_c.f32)
            else:
                cohort.loop[wide](p, h, state[0], state[1], state[2], state[3], n, c)
        for j in range(w.followers):
            follower = &w.follower[j]
            if not follower.active or not (given or follower.always):
                continue
            if follower.memory != NULL and follower.memory[k] == NULL:
                continue
            c = <const void*>follower.c.f64 if wide else <const void*>follower.c.f32
            own = NULL
            if follower.memory != NULL:
                own = follower.memory[k] + at
                fastopt_prefetch(own + n * item.width, next_n * item.width)
            follower.stage[wide](own, p, NULL, NULL, NULL, NULL, n, c)
        if w.sum_param:
            sums[1] = combined(sums[1], w.near[wide](p, n))
        if w.sum_update:
            sums[2] = combined(sums[2], w.moved[wide](p, before, room, n))
        if w.zero and given:
            memset(gradient.data + lo * gradient.width, 0, n * gradient.width)
        lo += n


cdef apart rehearse(const Walk *w, Py_ssize_t k, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Sums what the step of the elements lo to hi of an item would do: it is made on copies."""
    cdef char memory[(STATES + 5) * APART]
    cdef char *scratch = between(memory)
    cdef char *piece[OPERANDS]
    cdef const Item *item = &w.items[k]
    cdef const Gradient *gradient = &w.gradients[k]
    cdef const Cohort *cohort = &w.cohorts[item.cohort]
    cdef Scalars mixed, bare
    cdef const Scalars *common = &cohort.prepare
    cdef const void *c
    cdef const void *own
    cdef const void *decay
    cdef double *sums
    cdef Py_ssize_t n, next_n, j
    cdef int wide = item.width == 8
    cdef bint prepared = cohort.prepared
    if w.factors != NULL:
        common, prepared = &mixed, prepare_as(w, cohort, k, &mixed)
    if w.bares and common.f64[1] != 0:
        bare = common[0]
        bare.f64[1] = bare.f32[1] = 0
    c = <const void*>cohort.rule.f64 if wide else <const void*>cohort.rule.f32
    own = <const void*>cohort.constants.f64 if wide else <const void*>cohort.constants.f32
    decay = <const void*>&cohort.rule.f64[DECAY] if wide else <const void*>&cohort.rule.f32[DECAY]
    for j in range(OPERANDS):
        piece[j] = NULL
    piece[RULED] = scratch + 2 * APART
    while lo < hi:
        n = hi - lo if hi - lo < PIECE else PIECE
        sums = w.sums + (item.block + lo // BLOCK) * MEASURES
        if lo % BLOCK == 0:
            memset(sums, 0, MEASURES * sizeof(double))
        next_n = hi - lo - n if hi - lo - n < PIECE else PIECE
        fastopt_prefetch(gradient.data + (lo + n) * gradient.width, next_n * gradient.width)
        piece[PARAM] = item.param + lo * item.width
        fastopt_prefetch(piece[PARAM] + n * item.width, next_n * item.width)
        piece[PREPARED] = ready(w, item, gradient, common, prepared, lo, n, scratch)
        piece[GRADIENT] = piece[PREPARED]
        if w.bares and common.f64[1] != 0:
            piece[GRADIENT] = ready(w, item, gradient, &bare, True, lo, n, scratch + APART)
        for j in range(STATES):
            if item.state[j] != NULL:
                piece[BEFORE + j] = item.state[j] + lo * item.width
                if w.rehearses:
                    fastopt_prefetch(piece[BEFORE + j] + n * item.width, next_n * item.width)
                    piece[AFTER + j] = scratch + (5 + j) * APART
                    memcpy(piece[AFTER + j], piece[BEFORE + j], n * item.width)
        if w.rehearses:
            cohort.update[wide](piece[RULED], piece[PARAM], piece[PREPARED], piece[AFTER], piece[AFTER + 1],
                                piece[AFTER + 2], piece[AFTER + 3], n, c)
        piece[MOVED] = piece[RULED]
        if w.moves and cohort.decays[wide]:
            piece[MOVED] = scratch + 3 * APART
            w.move[wide](piece[MOVED], piece[RULED], piece[PARAM], n, decay)
        for j in range(w.measures):
            sums[j] += w.measure[j].sum[wide](piece[w.measure[j].a], piece[w.measure[j].b], scratch + 4 * APART, n, own)
        lo += n


cdef void walk(const Walk *w, int purpose, Py_ssize_t part, Py_ssize_t parts) noexcept nogil:
    """Does share `part` of `parts` of the plan's work, block by block.

    The blocks are the same for any number of parts; they are cut at parameter ends.
    """
    cdef char memory[APART]
    cdef char *scratch = between(memory)
    cdef const Item *item
    cdef const Gradient *gradient
    cdef const Cohort *cohort
    cdef const void *c
    cdef const void *prepare_c
    cdef prepare_t prepare
    cdef rule_t rule
    cdef char *h
    cdef char *p
    cdef fastopt_mode mode = 0
    cdef Py_ssize_t low = 0, high = w.count, middle, lo, hi, n, at, k, block
    cdef Py_ssize_t begin = w.work // parts * part + w.work % parts * part // parts
    cdef Py_ssize_t end = w.work // parts * (part + 1) + w.work % parts * (part + 1) // parts
    cdef bint flush = w.flush and (purpose == STEP or purpose == STAGED or purpose == REHEARSE)

    while low < high:                    # the last item that starts at or before `begin`
        middle = (low + high) // 2
        if w.items[middle].start <= begin:
            low = middle + 1
        else:
            high = middle
    k = low - 1 if low > 0 else 0

    if flush:
        mode = fastopt_flush_on()
    while k < w.count and w.items[k].start < end:
        item = &w.items[k]
        gradient = &w.gradients[k]
        k += 1
        if gradient.width == 0 and purpose != STAGED:
            continue
        lo = cut(item, begin)
        hi = cut(item, end)
        if purpose != STEP:
            if purpose == STAGED:
                if gradient.width == 0 or w.cohorts[item.cohort].loop[item.width == 8] != NULL:
                    walk_staged(w, k - 1, lo, hi)
            elif purpose == BLOCKS:
                sum_blocks(w, k - 1, lo, hi)
            elif purpose == REHEARSE:
                if w.cohorts[item.cohort].loop[item.width == 8] != NULL:
                    rehearse(w, k - 1, lo, hi)
            else:
                sum_units(w, k - 1, begin, end)
            continue
        cohort = &w.cohorts[item.cohort]
        rule = cohort.loop[item.width == 8]
        if rule == NULL:  # it is stepped elsewhere
            continue
        c = <const void*>cohort.rule.f64 if item.width == 8 else <const void*>cohort.rule.f32
        prepare = NULL
        prepare_c = NULL
        block = BLOCK
        if cohort.prepared or gradient.width != item.width:
            block = PIECE
            prepare = w.prepare[item.width == 8][gradient.width == 8]
            prepare_c = <const void*>cohort.prepare.f64 if item.width == 8 else <const void*>cohort.prepare.f32
        if gradient.rows != NULL:
            walk_rows(item, gradient, rule, c, prepare, prepare_c, lo, hi, scratch)
            continue
        while lo < hi:
            n = hi - lo if hi - lo < block else block
            at = lo * item.width
            p = item.param + at
            h = gradient.data + lo * gradient.width
            if prepare != NULL:
                prepare(scratch, h, p, n, prepare_c)
                h = scratch
            rule(p, h,
                 item.state[0] + at if item.state[0] != NULL else NULL,
                 item.state[1] + at if item.state[1] != NULL else NULL,
                 item.state[2] + at if item.state[2] != NULL else NULL,
                 item.state[3] + at if item.state[3] != NULL else NULL,
                 n, c)
            lo += n
    if flush:
        fastopt_flush_restore(mode)
