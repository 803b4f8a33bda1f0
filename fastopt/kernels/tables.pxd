# The tables of one step: what the plan fills in and the walk reads. Not for users: see fastopt/api.pxd.

from .rules cimport COEFFICIENTS, STATES

cdef enum:
    SCALARS = 2          # numbers a parameter can have beside its state arrays
    FOLLOWERS = 8        # stages after the rule
    MEASURES = 4         # sums over a block that a walk can take
    FACTORS = 4          # numbers that each parameter can have in a step: see Plan.run

ctypedef void (*rule_t)(void *p, void *g, void *s0, void *s1, void *s2, void *s3,
                        Py_ssize_t n, const void *c) noexcept nogil
ctypedef double (*sum_t)(const void *x, Py_ssize_t n, double order) noexcept nogil
ctypedef double (*near_t)(void *x, Py_ssize_t n) noexcept nogil
ctypedef double (*moved_t)(void *p, void *before, void *room, Py_ssize_t n) noexcept nogil
ctypedef void (*update_t)(void *u, void *p, void *g, void *s0, void *s1, void *s2, void *s3,
                          Py_ssize_t n, const void *c) noexcept nogil
ctypedef void (*move_t)(void *m, void *u, void *p, Py_ssize_t n, const void *c) noexcept nogil
ctypedef void (*pair_t)(void *a, void *b, Py_ssize_t n, const void *c) noexcept nogil
ctypedef double (*measure_t)(void *a, void *b, void *room, Py_ssize_t n, const void *k) noexcept nogil
ctypedef void (*prepare_t)(void *h, void *g, void *p, Py_ssize_t n, const void *c) noexcept nogil

cdef struct Item:            # one parameter
    char *param
    char *state[STATES]      # NULL: its group does not have this slot
    Py_ssize_t size          # elements
    Py_ssize_t start         # work before this item, see Walk.work
    Py_ssize_t rows          # length of the first dimension, at least 1
    int width                # bytes of an element: 4 or 8
    int group
    int variant              # what the caller tells parameters of one group apart by
    int cohort               # its coefficients in this step
    bint ready               # its state arrays exist
    long long step           # steps made
    double scalar[SCALARS]
    Py_ssize_t block         # of its first element, counted over all parameters
    Py_ssize_t unit          # elements of a unit: a run that has a scale and an offset of its own
    Py_ssize_t first_unit    # counted over all parameters
    size_t header            # what the shape and the type of its array are, in one number
    char *apart[2]           # where its gradients lay that were last found apart from all that a step writes
    bint held                # somebody else held the bound gradient at the last step

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

cdef struct Cohort:          # the items of one group and variant that are at the same step
    int group
    int variant
    long long step
    double scalar[SCALARS]   # of its items before this step
    double after[SCALARS]    # and after it
    bint prepared            # the prepare stage has something to do beside converting
    rule_t loop[2]           # the loop of its rule, for float32 and float64,
    update_t update[2]       # and the one that leaves the parameter alone, where stages are set
    bint decays[2]           # decoupled weight decay
    Scalars prepare          # scale, coupled decay, offset, limit (0: neither), exponent of the scale
    Scalars constants        # of the sums of Plan.measure
    Scalars rule

cdef struct Follower:        # a stage after the rule
    rule_t stage[2]          # float32, float64
    char **memory            # an array of each item, or NULL for an item that it leaves out; NULL: it has none
    bint always              # also where there is no gradient in this step
    bint active
    Scalars c

cdef struct Measure:         # a sum of two operands: see Plan.measure
    measure_t sum[2]         # float32, float64
    int a
    int b

cdef struct Walk:
    Item *items
    Py_ssize_t count
    Gradient *gradients
    Cohort *cohorts
    void **loops             # of every rule of the level: see rules.pxd
    prepare_t prepare[2][2]  # [parameter][gradient]
    Py_ssize_t work          # what the threads share: elements, and a constant for each item
    bint flush               # subnormals to zero
    # ---- stages beside the rule and its prepare stage; a walk without them does not look at the rest
    bint staged
    bint keeps               # a sum needs the block as it was before the rule
    bint cautious            # masks the update by the sign of the gradient
    bint careful             # and the decoupled weight decay by that of the update
    bint zero                # clears the gradient behind itself
    Py_ssize_t followers
    Follower follower[FOLLOWERS]
    const double *units      # of each unit: scale and offset of the gradient; NULL: 1 and 0
    const double *factors    # of each item: FACTORS numbers; NULL: 1
    move_t move[2]
    pair_t mask[2]           # of cautious
    pair_t subtract[2][2][3]  # what takes the update off: [dtype][with a rate][without decay, with, careful]
    # ---- sums
    double *sums             # of each block, or unit: MEASURES numbers
    sum_t power[2]           # float32, float64
    sum_t limited[2]
    double order             # of the norm whose powers are summed
    bint centers             # of units: the mean of g with its elements limited,
    double limit             # to this,
    bint adapts              # and sum g^2 and sum p^2
    bint sums_taken          # in a step, any of:
    bint sum_gradient        # sums[0]: sum g^2, or minus its root where that is out of range,
    bint sum_param           # sums[1]: sum p^2, after the rule
    bint sum_update          # sums[2]: sum (p - before)^2
    near_t near[2]
    moved_t moved[2]
    Measure measure[MEASURES]  # ahead of a step
    int measures
    int slots                # bits: the state arrays that they need
    bint ruled               # they need the update,
    bint rehearses           # or anything that the rule would do,
    bint moves               # what that takes off the parameter in all,
    bint bares               # and the gradient without coupled weight decay

cdef enum:                   # operands of a sum, each a piece of an array:
    PARAM                    # the parameter
    GRADIENT                 # its gradient as the rule gets it, but for coupled weight decay
    PREPARED                 # and with that
    RULED                    # the update of the rule
    MOVED                    # and with decoupled weight decay
    BEFORE                   # the first state array of the parameter, and so on
    AFTER = BEFORE + 4       # and the same after the step
    OPERANDS = AFTER + 4

cdef enum:                   # factors of an item:
    OF_GRADIENT              # its scale
    OF_DECAY                 # the coupled weight decay
    OF_RATE                  # the update and the decoupled weight decay
    OF_MASK                  # what cautious leaves

cdef enum:
    STEP                     # what a walk does: steps,
    STAGED                   # with stages or factors,
    REHEARSE                 # sums what a step would do,
    BLOCKS                   # sums each block of the gradients,
    UNITS                    # or each unit: mean g, sum g^2, sum p^2
