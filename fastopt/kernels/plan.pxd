# What plan.pyx and parallel.pyx share: the tables of one step and the walk over them.
# Not for users: see fastopt/api.pxd.

cdef enum:
    STATES = 4           # state arrays a rule can have
    COEFFICIENTS = 12    # coefficients a rule can have
    SCALARS = 2          # numbers a parameter can have beside its state arrays

ctypedef void (*rule_t)(void *p, void *g, void *s0, void *s1, void *s2, void *s3,
                        Py_ssize_t n, const void *c) noexcept nogil
ctypedef void (*prepare_t)(void *h, void *g, void *p, Py_ssize_t n, const void *c) noexcept nogil

cdef struct Item:            # one parameter
    char *param
    char *state[STATES]      # NULL: its group does not have this slot
    Py_ssize_t size          # elements
    Py_ssize_t start         # work before this item, see Walk.work
    Py_ssize_t rows          # length of the first dimension, at least 1
    int width                # bytes of an element: 4 or 8
    int group
    int cohort               # its coefficients in this step
    bint ready               # its state arrays exist
    long long step           # steps made
    double scalar[SCALARS]

cdef struct Gradient:
    char *data
    int width                # 0: none in this step
    const long long *rows    # NULL: dense; else the touched rows: see SparseRows
    Py_ssize_t count         # of touched rows
    const long long *starts  # row rows[k] is the sum of rows order[starts[k]], ..., order[starts[k + 1] - 1] of data
    const long long *order

cdef struct Scalars:         # coefficients in the two dtypes, rounded once
    float f32[COEFFICIENTS]
    double f64[COEFFICIENTS]

cdef struct Cohort:          # the items of one group that are at the same step
    int group
    long long step
    double scalar[SCALARS]   # of its items before this step
    double after[SCALARS]    # and after it
    bint prepared            # the prepare stage has something to do beside converting
    Scalars prepare          # scale, coupled decay
    Scalars rule

cdef struct Walk:
    Item *items
    Py_ssize_t count
    Gradient *gradients
    Cohort *cohorts
    rule_t rule[2]           # float32, float64
    prepare_t prepare[2][2]  # [parameter][gradient]
    Py_ssize_t work          # what the threads share: elements, and a constant for each item
    bint flush               # subnormals to zero

cdef void walk(const Walk *w, Py_ssize_t part, Py_ssize_t parts) noexcept nogil
