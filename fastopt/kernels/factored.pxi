# Adafactor (Shazeer, Stern 2018, arXiv 1804.04235), compiled once per level, after stages.pxi.
#
#   R = (1-w) R + w rowmeans(G^2);  C = (1-w) C + w colmeans(G^2);  V = R C / max(mean(R), eps1)
#   U = G / sqrt(max(V, eps1^2));  P = P - alpha / max(1, RMS(U) / d) U - decay P;  alpha = rho max(eps2, RMS(P))
#
# RMS(U) is needed before P can be written, and all of G before V is known: read literally, three sweeps. But where
# no element of V is under eps1^2, sum U^2 = mean(R) sum_j (sum_i g_ij^2 / r_i) / c_j: r_i is known as soon as row i
# has been read, so that the inner sum is taken from the row while it is in cache, and c_j at the end. So there are
# two sweeps: one that only reads G and P, and the update. A row or column of zeros adds nothing to the sum, whatever
# V is there. If V is under eps1^2 where G is not 0, or the sum is not finite, one more sweep reads G.
# A matrix of a few rows is taken in panels of columns instead, with the parts of rows and columns exchanged: sums of
# its columns in scratch would take nearly as much as the matrix.
#
# Sums are taken in double, in 16 lanes or 4 rows at a time, in an order that depends on the shape only.


cdef enum:
    PANEL = 4096         # columns whose factors are kept on the stack
    FEW = 64             # rows: a panel of so many is 1 MB of float32

cdef struct Factored:
    double w             # 1 - beta2
    double eps1
    double eps2
    double d
    double rho
    double decay
    double sign          # -1 ascends

# An element of the gradient in the dtype of the parameter, as double.
cdef inline double element(vec like, source g, Py_ssize_t i) noexcept nogil:
    if vec is f32:
        return <double><float>g[i]
    else:
        return <double>g[i]

cdef inline void store(vec to, Py_ssize_t i, double x) noexcept nogil:
    if vec is f32:
        to[i] = clean32(<float>x)
    else:
        to[i] = clean64(x)

# Both forms of torch's lerp: which one is used decides what becomes of an infinity.
cdef inline double lerp(double start, double end, double w) noexcept nogil:
    if w < 0.5:
        return start + w * (end - start)
    return end - (end - start) * (1.0 - w)


# ---- reductions of a run -----------------------------------------------------------------------

# sum g^2
cdef double squares(vec like, source g, Py_ssize_t n) noexcept nogil:
    cdef double lanes[LANES]
    cdef double x, sum = 0.0
    cdef Py_ssize_t i, k, whole = n - n % LANES
    if whole:
        for k in range(LANES):
            lanes[k] = 0.0
        for i in range(0, whole, 16):
            for k in range(LANES):
                x = element(like, g, i + k)
                lanes[k] += x * x
        sum = total(lanes)
    for i in range(whole, n):
        x = element(like, g, i)
        sum += x * x
    return sum

# sum g^2 y
cdef double weighted_squares(vec like, source g, f64 y, Py_ssize_t n) noexcept nogil:
    cdef double lanes[LANES]
    cdef double x, sum = 0.0
    cdef Py_ssize_t i, k, whole = n - n % LANES
    if whole:
        for k in range(LANES):
            lanes[k] = 0.0
        for i in range(0, whole, 16):
            for k in range(LANES):
                x = element(like, g, i + k)
                lanes[k] += x * x * y[i + k]
        sum = total(lanes)
    for i in range(whole, n):
        x = element(like, g, i)
        sum += x * x * y[i]
    return sum

# sum u^2 with u = g min(a b, most), as `apply` has it; a NaN in a b stays
cdef double update_squares(source g, vec b, Py_ssize_t n, double a, double most) noexcept nogil:
    cdef double lanes[LANES]
    cdef double x, y, z, sum = 0.0
    cdef Py_ssize_t i, k, whole = n - n % LANES
    for k in range(LANES):
        lanes[k] = 0.0
    for i in range(0, whole, 16):
        for k in range(LANES):
            y = a * <double>b[i + k]
            z = most if y > most else y
            x = element(b, g, i + k) * z
            lanes[k] += x * x
    sum = total(lanes)
    for i in range(whole, n):
        y = a * <double>b[i]
        z = most if y > most else y
        x = element(b, g, i) * z
        sum += x * x
    return sum

# col += sum of g^2 over `rows` (4 or 1) rows;  y += sum of g^2 x likewise
cdef inline loop add_rows(vec like, source g, Py_ssize_t stride, Py_ssize_t n, f64 col, f64 y, const double *x,
                          int rows, bint weighted) noexcept nogil:
    cdef Py_ssize_t j
    cdef double x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3]
    cdef double g0, g1, g2, g3
    for j in range(n):
        g0 = element(like, g, j)
        g0 = g0 * g0
        if rows == 4:
            g1 = element(like, g, j + stride)
            g2 = element(like, g, j + 2 * stride)
            g3 = element(like, g, j + 3 * stride)
            g1 = g1 * g1
            g2 = g2 * g2
            g3 = g3 * g3
            col[j] += (g0 + g1) + (g2 + g3)
            if weighted:
                y[j] += (g0 * x0 + g1 * x1) + (g2 * x2 + g3 * x3)
        else:
            col[j] += g0
            if weighted:
                y[j] += g0 * x0

cdef void add_four(vec like, source g, Py_ssize_t stride, Py_ssize_t n, f64 col, f64 y, const double *x) noexcept nogil:
    if y == NULL:
        add_rows(like, g, stride, n, col, y, x, 4, False)
    else:
        add_rows(like, g, stride, n, col, y, x, 4, True)

cdef void add_one(vec like, source g, Py_ssize_t stride, Py_ssize_t n, f64 col, f64 y, const double *x) noexcept nogil:
    if y == NULL:
        add_rows(like, g, stride, n, col, y, x, 1, False)
    else:
        add_rows(like, g, stride, n, col, y, x, 1, True)


# ---- the update of a run -----------------------------------------------------------------------

# p -= s g min(a b, most) + decay p
cdef inline loop apply_loop(vec p, source g, vec b, Py_ssize_t n, const double *c, bint decayed) noexcept nogil:
    cdef Py_ssize_t i
    if vec is f32:
        s, a, most, decay = <float>c[0], <float>c[1], <float>c[2], <float>c[3]
    else:
        s, a, most, decay = c[0], c[1], c[2], c[3]
    for i in range(n):
        if vec is f32:
            h = clean32(<float>g[i])
            q = clean32(p[i])
        else:
            h = clean64(<double>g[i])
            q = clean64(p[i])
        x = a * b[i]
        z = most if x > most else x
        if decayed:
            p[i] = q - (s * (z * h) + decay * q)
        else:
            p[i] = q - s * (z * h)

cdef void apply(vec p, source g, vec b, Py_ssize_t n, const double *c) noexcept nogil:
    if c[3]:
        apply_loop(p, g, b, n, c, True)
    else:
        apply_loop(p, g, b, n, c, False)


# ---- matrices ----------------------------------------------------------------------------------

cdef struct Sums:
    double update        # sum U^2 / max(mean(R), eps1)
    double row, col      # the least of R and of C where there is a gradient
    double mean          # max(mean(R), eps1)

cdef void finish_mean(vec row, Py_ssize_t rows, const Factored *f, Sums *out) noexcept nogil:
    cdef Py_ssize_t i
    out.mean = 0.0
    for i in range(rows):
        out.mean += <double>row[i]
    out.mean = out.mean / <double>rows
    if out.mean < f.eps1:
        out.mean = f.eps1

# A matrix of many rows: sums of its columns in scratch, 4 rows at a time.
cdef void read_rows(vec row, vec col, source g, Py_ssize_t rows, Py_ssize_t cols, f64 scratch,
                    const Factored *f, Sums *out) noexcept nogil:
    cdef Py_ssize_t i, j, k, some
    cdef double x[4]
    cdef double sum
    cdef f64 y = scratch + cols
    for j in range(2 * cols):
        scratch[j] = 0.0
    for k in range(4):
        x[k] = 0.0
    i = 0
    while i < rows:
        some = 4 if rows - i >= 4 else 1
        for k in range(some):
            sum = squares(row, g + (i + k) * cols, cols)
            store(row, i + k, lerp(<double>row[i + k], sum / <double>cols, f.w))
            x[k] = 1.0 / <double>row[i + k] if sum != 0.0 else 0.0
            if sum > 0.0 and <double>row[i + k] < out.row:
                out.row = <double>row[i + k]
        if some == 4:
            add_four(row, g + i * cols, cols, cols, scratch, y, x)
        else:
            add_one(row, g + i * cols, cols, cols, scratch, y, x)
        i += some
    for j in range(cols):
        store(col, j, lerp(<double>col[j], scratch[j] / <double>rows, f.w))
        if scratch[j] != 0.0:
            out.update += y[j] / <double>col[j]
            if <double>col[j] < out.col:
                out.col = <double>col[j]
    finish_mean(row, rows, f, out)

# A matrix of few rows: a panel of columns at a time.
cdef void read_panels(vec row, vec col, source g, Py_ssize_t rows, Py_ssize_t cols,
                      const Factored *f, Sums *out) noexcept nogil:
    cdef Py_ssize_t i, j, at, n, some
    cdef double x[4]
    cdef double sums[FEW]
    cdef double parts[FEW]
    cdef double panel[PANEL]
    for i in range(4):
        x[i] = 0.0
    for i in range(rows):
        sums[i] = 0.0
        parts[i] = 0.0
    for at in range(0, cols, 4096):
        n = cols - at if cols - at < PANEL else PANEL
        for j in range(n):
            panel[j] = 0.0
        i = 0
        while i < rows:
            some = 4 if rows - i >= 4 else 1
            if some == 4:
                add_four(row, g + i * cols + at, cols, n, <f64>panel, NULL, x)
            else:
                add_one(row, g + i * cols + at, cols, n, <f64>panel, NULL, x)
            i += some
        for j in range(n):
            store(col, at + j, lerp(<double>col[at + j], panel[j] / <double>rows, f.w))
            if panel[j] != 0.0:
                panel[j] = 1.0 / <double>col[at + j]
                if <double>col[at + j] < out.col:
                    out.col = <double>col[at + j]
        for i in range(rows):
            sums[i] += squares(row, g + i * cols + at, n)
            parts[i] += weighted_squares(row, g + i * cols + at, <f64>panel, n)
    for i in range(rows):
        store(row, i, lerp(<double>row[i], sums[i] / <double>cols, f.w))
        if sums[i] != 0.0:
            out.update += parts[i] / <double>row[i]
            if <double>row[i] < out.row:
                out.row = <double>row[i]
    finish_mean(row, rows, f, out)

# The second factor of 1 / sqrt(V) for a panel, and the first for a row.
cdef inline loop column_factors(vec b, vec col, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(n):
        if vec is f32:
            b[j] = clean32(<float>(1.0 / sqrt(<double>col[j])))
        else:
            b[j] = clean64(1.0 / sqrt(col[j]))

cdef inline double row_factor(vec row, Py_ssize_t i, double mean) noexcept nogil:
    return clean64(1.0 / sqrt(<double>row[i] / mean))

# sum U^2 from V itself
cdef double reread(vec row, vec col, source g, Py_ssize_t rows, Py_ssize_t cols, double mean,
                   const Factored *f) noexcept nogil:
    cdef Py_ssize_t i, at, n
    cdef double sum = 0.0, most = 1.0 / f.eps1
    cdef double room[PANEL]
    cdef vec b = <vec>room
    for at in range(0, cols, 4096):
        n = cols - at if cols - at < PANEL else PANEL
        column_factors(b, col + at, n)
        for i in range(rows):
            sum += update_squares(g + i * cols + at, b, n, row_factor(row, i, mean), most)
    return sum

# Steps `count` matrices: row has count x rows, col count x cols, scratch 2 cols if rows > FEW.
cdef void matrices(vec p, source g, vec row, vec col, f64 scratch, Py_ssize_t count, Py_ssize_t rows,
                   Py_ssize_t cols, const Factored *f) noexcept nogil:
    cdef Py_ssize_t size = rows * cols, m, i, at, n
    cdef double c[4]
    cdef double room[PANEL]
    cdef vec b = <vec>room
    cdef vec r
    cdef double norm, sum, all = 0.0
    cdef Sums sums
    norm = sqrt(squares(row, p, count * size) / <double>(count * size))
    for m in range(count):
        sums.update = 0.0
        sums.row = DBL_MAX
        sums.col = DBL_MAX
        r = row + m * rows
        if rows > FEW:
            read_rows(r, col + m * cols, g + m * size, rows, cols, scratch, f, &sums)
        else:
            read_panels(r, col + m * cols, g + m * size, rows, cols, f, &sums)
        sum = sums.update * sums.mean
        if not (sums.row / sums.mean * sums.col >= f.eps1 * f.eps1 and sum <= DBL_MAX):
            sum = reread(r, col + m * cols, g + m * size, rows, cols, sums.mean, f)
        all += sum
    scale(f, norm, sqrt(all / <double>(count * size)), c)
    c[2] = 1.0 / f.eps1
    for m in range(count):
        r = row + m * rows
        finish_mean(r, rows, f, &sums)
        for at in range(0, cols, 4096):
            n = cols - at if cols - at < PANEL else PANEL
            column_factors(b, col + m * cols + at, n)
            for i in range(rows):
                c[1] = row_factor(r, i, sums.mean)
                apply(p + m * size + i * cols + at, g + m * size + i * cols + at, b, n, c)

# c[0] and c[3] of an update, from the norms of P and of U; where one is NaN, it does not count, as in torch.
cdef void scale(const Factored *f, double norm, double update, double *c) noexcept nogil:
    cdef double alpha = (norm if norm > f.eps2 else f.eps2) * f.rho
    update = update / f.d
    c[0] = f.sign * alpha / (update if update > 1.0 else 1.0)
    c[3] = f.decay


# ---- vectors -----------------------------------------------------------------------------------

# v = (1-w) v + w g^2;  y = g^2 / max(v, eps1^2)
cdef inline loop vector_loop(vec y, source g, vec v, Py_ssize_t n, const double *c, bint late) noexcept nogil:
    cdef Py_ssize_t i
    if vec is f32:
        w, keep, least = <float>c[0], <float>c[1], <float>c[2]
    else:
        w, keep, least = c[0], c[1], c[2]
    for i in range(n):
        if vec is f32:
            h = clean32(<float>g[i])
        else:
            h = clean64(<double>g[i])
        x = h * h
        v[i] = v[i] + w * (x - v[i]) if late else x - (x - v[i]) * keep
        y[i] = x / (least if v[i] < least else v[i])

# p -= s g / sqrt(max(v, eps1^2)) + decay p
cdef inline loop apply_vector(vec p, source g, vec v, Py_ssize_t n, const double *c, bint decayed) noexcept nogil:
    cdef Py_ssize_t i
    if vec is f32:
        s, least, decay = <float>c[0], <float>c[2], <float>c[3]
    else:
        s, least, decay = c[0], c[2], c[3]
    for i in range(n):
        if vec is f32:
            h = clean32(<float>g[i])
            q = clean32(p[i])
        else:
            h = clean64(<double>g[i])
            q = clean64(p[i])
        x = least if v[i] < least else v[i]
        if vec is f32:
            y = sqrtf(x)
        else:
            y = sqrt(x)
        if decayed:
            p[i] = q - (s * (h / y) + decay * q)
        else:
            p[i] = q - s * (h / y)

cdef void vector(vec p, source g, vec v, vec _1, f64 _2, Py_ssize_t _3, Py_ssize_t _4, Py_ssize_t size,
                 const Factored *f) noexcept nogil:
    cdef double c[4]
    cdef double room[PANEL]
    cdef double norm = sqrt(squares(v, p, size) / <double>size), sum = 0.0
    cdef Py_ssize_t at, n
    c[0] = f.w
    c[1] = 1.0 - f.w
    c[2] = f.eps1 * f.eps1
    for at in range(0, size, 4096):
        n = size - at if size - at < PANEL else PANEL
        if f.w < 0.5:
            vector_loop(<vec>room, g + at, v + at, n, c, True)
        else:
            vector_loop(<vec>room, g + at, v + at, n, c, False)
        sum += plain_sum(<vec>room, n)
    scale(f, norm, sqrt(sum / <double>size), c)
    if f.decay:
        apply_vector(p, g, v, size, c, True)
    else:
        apply_vector(p, g, v, size, c, False)


# (factored, dtype of the parameter, dtype of the gradient), in bytes -> function
ADAFACTOR = {
    (True, 4, 4): capsule(<void*>matrices[f32, f32]),
    (True, 4, 8): capsule(<void*>matrices[f32, f64]),
    (True, 8, 4): capsule(<void*>matrices[f64, f32]),
    (True, 8, 8): capsule(<void*>matrices[f64, f64]),
    (False, 4, 4): capsule(<void*>vector[f32, f32]),
    (False, 4, 8): capsule(<void*>vector[f32, f64]),
    (False, 8, 4): capsule(<void*>vector[f64, f32]),
    (False, 8, 8): capsule(<void*>vector[f64, f64]),
}
