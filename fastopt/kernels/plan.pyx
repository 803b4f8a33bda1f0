# cython: cdivision=True, boundscheck=False, wraparound=False, initializedcheck=False
"""Plan: the tables of everything that an optimizer steps, filled in and checked before each walk over them."""

cimport cython
cimport numpy as cnp

from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport PyObject
from libc.float cimport DBL_MAX, DBL_MIN, FLT_MIN
from libc.math cimport INFINITY, sqrt
from libc.string cimport memcpy, memset

import numpy as np

from bisect import bisect

from . import simd, threads
from .arrays import as_array
from .checks import called, check_overlap, check_parameter
from .sparse import SparseRows

from .checks cimport check_spans, check_state, shares
from .headers cimport (
    ALIKE, UNMOVED, WRITEABLE, fastopt_all_there, fastopt_header, fastopt_is_array, fastopt_look, fastopt_memory,
    fastopt_native_type, fastopt_plain, fastopt_type)
from .hold cimport Hold
from .rules cimport (
    ADVANCE, COEFFICIENTS, DECAY, DECAYS, FORMS, KINDS, SCALE, SCALED, STATES, UPDATE, Coefficients,
    number_of)
from .memory cimport Memory
from .tables cimport (
    AFTER, BEFORE, BLOCKS, FACTORS, FOLLOWERS, GRADIENT, MEASURES, MOVED, REHEARSE, RULED, SCALARS, STAGED, STEP, UNITS,
    Cohort, Follower, Gradient, Item, Measure, Scalars, Walk, measure_t, move_t, moved_t, near_t, pair_t, prepare_t,
    rule_t, sum_t)
from .walk cimport combined, float32_bears, set_scale, walk
from .watched cimport Settled, Watched
from .written cimport Written

cnp.import_array()

cdef dict PROCESS = threads.__dict__  # its settings, without the detour by attributes

include "clean.pxi"
include "sums.pxi"

cdef extern from *:
    PyObject *PyList_GET_ITEM(list items, Py_ssize_t i) noexcept  # borrowed; Cython's own takes a reference
    PyObject **list_items "PySequence_Fast_ITEMS"(list items) noexcept
    Py_ssize_t Py_REFCNT(PyObject *o) noexcept
    int PyDict_Update(dict target, dict values) except -1  # of keys that are str: no Python code runs

cdef enum:
    ITEM_WORK = 32        # what an item costs beside its elements, in elements


cdef int fill(Scalars *scalars, tuple values) except -1:
    cdef Py_ssize_t i
    cdef double x
    if len(values) > COEFFICIENTS:
        raise ValueError(f"there are at most {COEFFICIENTS} coefficients, got {len(values)}")
    for i in range(len(values)):
        x = clean64(values[i])
        scalars.f64[i] = x
        scalars.f32[i] = <float>x
    return 0


# in the order of tables.pxd
OPERAND_NAMES = ("param", "gradient", "prepared", "update", "move", *(f"before{k}" for k in range(STATES)),
                 *(f"after{k}" for k in range(STATES)))
ALONE = ("square", "absolute")  # sums of one operand
FACTOR_NAMES = ("gradient", "decay", "rate", "mask")

# of a gradient that is neither scaled nor limited, without weight decay: see Plan.run
AS_IT_IS = (1.0, 0.0, 0.0, 0.0)


cdef inline void write(Scalars *scalars, const double *values, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    cdef double x
    for i in range(count):
        x = clean64(values[i])
        scalars.f64[i] = x
        scalars.f32[i] = <float>x


cdef inline Py_ssize_t blocks(Py_ssize_t size) noexcept nogil:
    return (size + BLOCK - 1) // BLOCK


cdef inline bint belongs(const Item *item, const Cohort *cohort, Py_ssize_t scalars) noexcept nogil:
    """Whether an item is at the same point of its trajectory as a cohort."""
    return (cohort.group == item.group and cohort.variant == item.variant and cohort.step == item.step + 1 and (
        scalars == 0 or (cohort.scalar[0] == item.scalar[0] and cohort.scalar[1] == item.scalar[1])))


cdef tuple numbers(const double *scalar, Py_ssize_t count):
    return () if count == 0 else tuple([scalar[k] for k in range(count)])


@cython.final
cdef class Plan(Hold):
    """Pointer tables of the parameters, gradients and states that a rule steps; without one (None), any rules.

    It also checks, keeps and counts for parameters that are stepped elsewhere: `taken()` has the gradients, and a step
    of no others is ended by `finish()`.

    The arrays are held for as long as the plan lives. A method that raises leaves the plan as it was.

    Whoever steps, reads or changes it has it meanwhile: see `Hold`. One step is `cohorts = begin(gradients)`, then
    `run(coefficients)`, which counts what it has done before a signal can be delivered.
    """

    cdef Walk walk
    cdef Memory items, gradients, cohorts, sums  # what the walk has pointers to
    cdef Py_ssize_t cohort_count
    cdef Py_ssize_t elements       # elements of the parameters that take part in this step
    cdef bint begun                # begin() has looked at the gradients of a step
    cdef public long long steps    # made so far
    cdef readonly bint has_bound
    cdef readonly Py_ssize_t unready  # items without state
    cdef readonly list params
    cdef readonly list names
    cdef list states               # per item: a list of arrays or None
    cdef list columns              # or of arrays that are only lent: per slot
    cdef readonly list bound_gradients
    cdef list given                # the gradients of this step: the bound ones, those of the caller, or
    cdef list kept                 # those that it keeps: see keep()
    cdef bint alike                # all of the last step was as it nearly always is: see again()
    cdef list spans                # (address, bytes, position) of the parameters, ascending
    cdef readonly str rule
    cdef int number                # of the rule
    cdef readonly str level
    cdef bint takes_dense, takes_sparse
    cdef object on_sparse          # see accept(); or None
    cdef Written written           # the memory that a step writes
    cdef char **cleared            # gradients in whose memory nothing else lies; NULL: not known
    cdef Memory cleared_memory
    cdef list guarded              # arrays beside states and stages that a step writes: (parameter, array)
    cdef readonly Watched watched  # containers that hold parameters
    cdef object on_change          # see watch()
    cdef public int lent           # times that other values stand in the parameters: no step is made
    cdef Py_ssize_t unit_count
    cdef list noted                # see note()
    cdef list followers            # keeps the arrays of the stages alive,
    cdef list follower_memory      # and the pointers to them
    cdef object units              # keeps the numbers of the units alive
    cdef Memory factors            # of the step
    cdef tuple asked               # the sums that were asked for last
    cdef Py_ssize_t scalars        # numbers that each parameter has beside its state arrays,
    cdef Py_ssize_t shared         # and that those of a cohort have in common: all or none
    cdef bint rehearsed            # every step has factors

    def __cinit__(self, str rule, level=None, Py_ssize_t scalars=0, bint shared=True, bint rehearsed=False):
        if scalars > SCALARS:
            raise ValueError(f"a parameter has at most {SCALARS} scalars, got {scalars}")
        self.scalars, self.shared, self.rehearsed = scalars, scalars if shared else 0, rehearsed
        self.takes_dense, self.takes_sparse = True, False
        self.level = level or simd.level()
        threads.get_num_threads()  # a wrong environment variable is told here, before any step
        table = simd.table(self.level)
        self.rule, self.number = rule, -1 if rule is None else number_of(rule)
        self.walk.loops = <void**>PyCapsule_GetPointer(table.RULES, "fastopt.rule")
        self.params = []
        self.names = []
        self.states = []
        self.bound_gradients = []
        self.guarded, self.kept = [], []
        self.watched, self.written = Watched(), Written()
        self.items, self.gradients, self.cohorts, self.sums = Memory(), Memory(), Memory(), Memory()
        self.cleared_memory, self.factors = Memory(), Memory()
        for k in range(2):
            self.walk.power[k] = <sum_t>PyCapsule_GetPointer(table.SUMS["power"][k], "fastopt.rule")
            self.walk.limited[k] = <sum_t>PyCapsule_GetPointer(table.SUMS["limited"][k], "fastopt.rule")
            self.walk.near[k] = <near_t>PyCapsule_GetPointer(table.NORMS["near"][k], "fastopt.rule")
            self.walk.moved[k] = <moved_t>PyCapsule_GetPointer(table.NORMS["moved"][k], "fastopt.rule")
            self.walk.move[k] = <move_t>PyCapsule_GetPointer(table.UPDATES["move"][k], "fastopt.rule")
            self.walk.mask[k] = <pair_t>PyCapsule_GetPointer(table.UPDATES["cautious"][k], "fastopt.rule")
            for rated, rate in enumerate(("", "_rated")):
                for i, decay in enumerate(("", "_decays", "_careful")):
                    self.walk.subtract[k][rated][i] = <pair_t>PyCapsule_GetPointer(
                        table.UPDATES[f"subtract{decay}{rate}"][k], "fastopt.rule")
        for (p, g), address in table.PREPARE.items():
            self.walk.prepare[p == 8][g == 8] = <prepare_t>PyCapsule_GetPointer(address, "fastopt.rule")
        self.room_for_cohort()  # a walk points at one of each item, in a step without gradients too

    def __len__(self):
        return self.walk.count

    # ---- parameters and state

    cdef int give(self) except -1:
        """Gives the plan back; a step that was begun and not made is forgotten."""
        cdef Py_ssize_t i
        if self.begun:
            if self.given is self.kept:
                for i in range(self.walk.count):
                    self.kept[i] = None
            self.walk.units = self.walk.factors = NULL
            self.given = self.units = self.noted = None
            self.begun = False
        self.owner = 0
        return 0

    cdef int reserve(self, Py_ssize_t count) except -1:
        self.walk.items = <Item*>self.items.grow(count * sizeof(Item))
        self.walk.gradients = <Gradient*>self.gradients.grow(count * sizeof(Gradient))
        return 0

    def label(self, Py_ssize_t i):
        """How error messages call parameter `i`."""
        return called(i, self.names[i])

    def extend(self, params, names, group):
        """Adds parameters, writable C-contiguous arrays of a dtype that can be stepped, of a group or of one each."""
        cdef Py_ssize_t first = self.walk.count, i
        params = list(params)
        groups = list(group) if isinstance(group, list) else [group] * len(params)
        names = list(names)
        for i, (param, name) in enumerate(zip(params, names, strict=True), first):
            check_parameter(param, called(i, name))
        self.place(params, names, first)
        self.stage([])
        self.moved()
        self.reserve(first + len(params))
        self.params += params
        self.names += names
        self.states += [None] * len(params)
        for i in range(first, len(self.params)):
            memset(&self.walk.items[i], 0, sizeof(Item))
            self.walk.items[i].group = groups[i - first]
            self.point(i, self.params[i])
            self.walk.gradients[i].data = NULL
            self.walk.gradients[i].width = 0
            self.bound_gradients.append(None)
            self.kept.append(None)
        self.has_bound = False  # there is none for the new ones
        self.walk.count = len(self.params)
        self.unready += len(params)
        self.lay_out(first)

    cdef place(self, list params, list names, Py_ssize_t first):
        """Notes where parameters from position `first` lie; raises if one shares memory with another, old or new."""
        cdef list added = [(<size_t>cnp.PyArray_BYTES(array), cnp.PyArray_NBYTES(array), i)
                           for i, array in enumerate(params, first) if cnp.PyArray_SIZE(array)]
        cdef list spans = self.spans[:] if first else []
        cdef Py_ssize_t at
        every = self.names[:first] + names if 16 * len(added) > len(spans) else self.names + names
        if 16 * len(added) > len(spans):
            spans += added
            spans.sort()
            check_spans(spans, lambda i: called(i, every[i]), None)
        else:  # few among many: groups that come one by one
            for span in added:
                at = bisect(spans, span)
                check_spans([*spans[max(0, at - 1) : at], span, *spans[at : at + 1]], lambda i: called(i, every[i]),
                            None)
                spans.insert(at, span)
        self.spans = spans

    cdef point(self, Py_ssize_t i, cnp.ndarray param):
        """A complex number is a pair of reals, as in torch."""
        cdef int parts = 2 if cnp.PyArray_ISCOMPLEX(param) else 1
        cdef Item *item = &self.walk.items[i]
        item.param = cnp.PyArray_BYTES(param)
        item.size = parts * cnp.PyArray_SIZE(param)
        item.width = <int>(cnp.PyArray_ITEMSIZE(param) // parts)
        item.rows = max(1, cnp.PyArray_DIMS(param)[0]) if cnp.PyArray_NDIM(param) else 1
        item.header = fastopt_header(param)

    cdef lay_out(self, Py_ssize_t first):
        """Counts work and blocks, from an item on."""
        cdef Py_ssize_t i, block = 0
        cdef Item *item
        self.walk.work = 0
        if first:
            item = &self.walk.items[first - 1]
            self.walk.work, block = item.start + item.size + ITEM_WORK, item.block + blocks(item.size)
        for i in range(first, self.walk.count):
            item = &self.walk.items[i]
            item.start = self.walk.work
            self.walk.work += item.size + ITEM_WORK
            item.block = block
            block += blocks(item.size)

    cdef moved(self):
        """The memory that a step writes is another now."""
        self.cleared = NULL
        self.written.known = False

    def rebind(self, params):
        """Points the plan at other arrays of the same shapes and dtypes."""
        cdef Py_ssize_t i
        params = list(params)
        if len(params) != self.walk.count:
            raise ValueError(f"params must have {self.walk.count} arrays, got {len(params)}")
        for i in range(self.walk.count):
            check_parameter(params[i], self.label(i))
            old, new = self.params[i], params[i]
            if self.walk.items[i].header != fastopt_header(new):
                raise ValueError(
                    f"{self.label(i)} must have shape {old.shape} and dtype {old.dtype}, "
                    f"got {new.shape} and {new.dtype}"
                )
        spans = self.spans
        self.place(params, self.names, 0)
        beside = self.beside()
        kept = [array for array in self.bound_gradients if array is not None]
        try:
            check_overlap(params + [array for _, array, _ in beside] + kept, lambda i: (
                self.label(i) if i < len(params) else
                self.name_of(beside[i - len(params)]) if i < len(params) + len(beside) else "a bound gradient"),
                len(params))
        except ValueError:
            self.spans = spans
            raise
        self.params[:] = params
        self.moved()
        for i in range(self.walk.count):
            self.point(i, params[i])

    def replace(self, Py_ssize_t i, param):
        """Puts another array, of any shape, in the place of parameter `i`; its state and bound gradients go."""
        check_parameter(param, self.label(i))
        params = list(self.params)
        params[i] = param
        beside = self.beside()
        check_overlap([param] + [other[1] for other in beside], lambda k: (
            f"the new array of {self.label(i)}" if k == 0 else self.name_of(beside[k - 1])), 1)
        self.place(params, self.names, 0)
        self.stage([])
        self.drop_state(i)
        self.moved()
        self.params[i] = param
        self.point(i, param)
        self.lay_out(0)
        self.unbind()

    # ---- what a step writes

    def guard(self, arrays):
        """Names arrays, as (parameter, array), that steps write beside those that the plan has been given."""
        self.guarded = list(arrays)
        self.written.known = False

    cdef list beside(self):
        """The arrays that a step writes beside parameters, as (parameter, array, what it is)."""
        cdef Py_ssize_t i
        found = [(i, array, "the state") for i in range(self.walk.count) if self.states[i] is not None
                 for array in self.states[i] if array is not None]
        found += [(i, array, "the state") for column in self.columns or () for i, array in enumerate(column)]
        found += [(i, array, "the state") for i, array in self.guarded]
        for name, arrays, _ in self.followers or ():
            if arrays is not None:
                what = "the slow weights" if name == "lookahead" else "an average"
                found += [(i, arrays[i], what) for i in range(self.walk.count) if arrays[i] is not None]
        return found

    cdef name_of(self, tuple beside):
        i, _, what = beside
        return f"{what} of {self.label(i)}"

    cdef int find_written(self) except -1:
        """Tells what a step writes, and forgets which gradients were found apart from it."""
        cdef Py_ssize_t i, k, bytes
        cdef Item *item
        self.written.begin(self.walk.count * (1 + STATES + self.walk.followers) + len(self.guarded))
        for i in range(self.walk.count):
            item = &self.walk.items[i]
            item.apart[0] = item.apart[1] = NULL
            bytes = item.size * item.width
            self.written.add(item.param, bytes)
            for k in range(STATES):
                self.written.add(item.state[k], bytes)
            for k in range(self.walk.followers):
                if self.walk.follower[k].memory != NULL:
                    self.written.add(self.walk.follower[k].memory[i], bytes)
        for _, array in self.guarded:
            self.written.add(cnp.PyArray_BYTES(<cnp.ndarray>array), cnp.PyArray_NBYTES(array))
        return self.written.end()

    cdef inline int check_clear(self, Py_ssize_t i, char *data, Py_ssize_t bytes) except -1:
        """Raises if a gradient lies in memory that the step writes."""
        if not self.written.apart_from(data, bytes):
            self.not_clear(i, data, bytes)
        return 0

    cdef not_clear(self, Py_ssize_t i, char *data, Py_ssize_t bytes):
        own = None
        for k, array in enumerate(self.params):
            if shares(array, data, bytes):
                if k == i:
                    raise ValueError(f"gradient of {self.label(i)} shares memory with its parameter; pass a copy")
                own = self.label(k)
                break
        else:
            for other in self.beside():
                if shares(other[1], data, bytes):
                    own = self.name_of(other)
                    break
        raise ValueError(f"gradient of {self.label(i)} and {own} share memory: the step would read what it writes; "
                         f"pass a copy")

    # ---- who holds the parameters

    def watch(self, containers, on_change=None):
        """Compares lists and dicts that hold parameters, at each begin(), with what they hold now.

        Where one has changed, `on_change`, a weak reference to a function, is called: it raises, or calls watch().
        """
        self.watched = Watched()
        self.watched.add(containers)
        self.on_change = on_change

    def check_watched(self):
        """Raises if a container holds another parameter than it did."""
        if not self.watched.same():
            self.look_again()

    def look_again(self):
        """Calls the function that watch() was given."""
        self.on_change()()

    def check_lent(self):
        """Raises RuntimeError while averages stand in the parameters."""
        if self.lent:
            raise RuntimeError("step() while averages are in the parameters: leave average_parameters() first")

    def set_state(self, Py_ssize_t i, states):
        """Gives parameter `i` its state arrays, in the order of the slots, None for a slot without one."""
        cdef Py_ssize_t k
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        states = list(states)
        if len(states) > STATES:
            raise ValueError(f"a rule has at most {STATES} state arrays, got {len(states)}")
        for array in states:
            if array is not None:
                check_state(array, self.params[i], self.label(i))
        states += [None] * (STATES - len(states))
        self.states[i] = states
        for k in range(STATES):
            self.walk.items[i].state[k] = NULL if states[k] is None else cnp.PyArray_BYTES(states[k])
        self.unready -= not self.walk.items[i].ready
        self.walk.items[i].ready = True
        self.written.known = False

    def drop_state(self, Py_ssize_t i):
        """Forgets the state of parameter `i`: it is made anew at its next gradient."""
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        self.states[i] = None
        memset(self.walk.items[i].state, 0, sizeof(self.walk.items[i].state))
        self.unready += self.walk.items[i].ready
        self.walk.items[i].ready = False
        self.walk.items[i].step = 0
        self.written.known = False

    def has_state(self, Py_ssize_t i):
        """Whether parameter `i` has been given its state arrays."""
        return self.states[i] is not None

    def exposed(self, Py_ssize_t i):
        """Whether anybody but the optimizer and this plan has a state array of parameter `i`, or a view of one."""
        cdef PyObject *array
        for k in range(len(self.states[i] or ())):
            array = PyList_GET_ITEM(self.states[i], k)
            if <object>array is not None and (Py_REFCNT(array) > 2 or Py_REFCNT(
                    <PyObject*>cnp.PyArray_BASE(<cnp.ndarray>array)) > 1):
                return True
        return False

    def group(self, Py_ssize_t i):
        """The group of parameter `i`."""
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        return self.walk.items[i].group

    def get_step(self, Py_ssize_t i):
        """How many steps parameter `i` has made."""
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        return self.walk.items[i].step

    def set_step(self, Py_ssize_t i, long long step):
        """Sets how many steps parameter `i` has made."""
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        self.walk.items[i].step = step

    def accept(self, str sparse not None, on_sparse=None):
        """Says which gradients are taken: sparse ones are not ("no"), may be ("too") or must be ("only").

        `on_sparse` is a weak reference to a function that is called with a position and a SparseRows, and returns
        those to step with.
        """
        self.takes_dense, self.takes_sparse = sparse != "only", sparse != "no"
        self.on_sparse = on_sparse

    def get_scalars(self, Py_ssize_t i):
        """The numbers that parameter `i` has beside its state arrays."""
        if not 0 <= i < self.walk.count:
            raise IndexError(f"parameter index {i} out of range")
        return numbers(self.walk.items[i].scalar, self.scalars)

    def set_scalars(self, Py_ssize_t i, tuple scalars not None):
        """Sets the numbers that parameter `i` has beside its state arrays."""
        cdef Py_ssize_t k
        if not 0 <= i < self.walk.count or len(scalars) != self.scalars:
            raise IndexError(f"parameter index {i} or number of scalars out of range")
        for k in range(self.scalars):
            self.walk.items[i].scalar[k] = scalars[k]

    # ---- arrays that are only lent

    def let_go(self):
        """Forgets the arrays of parameters and state, but not where and what they were: see take_up()."""
        if self.columns is None:
            self.states = [None] * self.walk.count
        self.params = self.columns = None

    def take_up(self, params, tuple columns not None, long long step):
        """Goes on with arrays that are where and what those were that were let go, after `step` steps of each.

        `params`, and the entry of each state slot in `columns`, is one array or a list or tuple of them. Returns
        whether they are; if not, nothing was changed. What was checked holds then: it is of memory, not of objects.
        """
        cdef Py_ssize_t i, k, given = len(columns)
        cdef list held = []
        cdef list arrays = None if step < 0 else self.those_known(params, -1)
        if arrays is None:
            return False
        for k in range(STATES):
            if self.walk.items[0].state[k] != NULL:
                own = self.those_known(columns[k], k) if k < given else None
                if own is None:
                    return False
                held.append(own)
        self.params, self.columns = arrays, held
        for i in range(self.walk.count):
            self.walk.items[i].step = step
        return True

    cdef list those_known(self, given, int slot):
        """A list of these arrays, if they are where and what the parameters (slot -1) or their state arrays were."""
        cdef Item *first = self.walk.items
        cdef list arrays
        if type(given) is list:
            arrays = (<list>given)[:]
        else:
            arrays = list(given) if isinstance(given, (list, tuple)) else [given]
        if len(arrays) != self.walk.count or not fastopt_all_there(
                list_items(arrays), self.walk.count, <char*>(&first.param if slot < 0 else &first.state[slot]),
                <char*>&first.header, sizeof(Item)):
            return None
        return arrays

    # ---- gradients

    cdef inline int take(self, Item *item, cnp.ndarray param, Py_ssize_t i, object given, Gradient *out) except -1:
        """Checks one gradient against its parameter and writes its pointer and width."""
        cdef cnp.ndarray gradient
        cdef int k, kind
        if given is None:
            out.data = NULL
            out.width = 0
            return 0
        if not cnp.PyArray_CheckExact(given):
            if isinstance(given, SparseRows) or hasattr(given, "tocoo"):
                return self.take_rows(item, i, given, out)
            given = self.given[i] = as_array(given, f"gradient of {self.label(i)}", scalar=not self.walk.zero)
        out.rows = NULL
        if not self.takes_dense:
            self.wrong_sparsity(i, "dense")
        gradient = <cnp.ndarray>given
        kind = cnp.PyArray_TYPE(gradient)
        if kind == cnp.NPY_FLOAT32 or kind == cnp.NPY_COMPLEX64:
            out.width = 4
        elif kind == cnp.NPY_FLOAT64 or kind == cnp.NPY_COMPLEX128:
            out.width = 8
        else:
            self.wrong_dtype(i, gradient)
        if cnp.PyArray_ISCOMPLEX(gradient) != cnp.PyArray_ISCOMPLEX(param):
            self.wrong_dtype(i, gradient)
        if cnp.PyArray_NDIM(gradient) != cnp.PyArray_NDIM(param):
            self.wrong_shape(i, gradient)
        for k in range(cnp.PyArray_NDIM(param)):
            if cnp.PyArray_DIMS(gradient)[k] != cnp.PyArray_DIMS(param)[k]:
                self.wrong_shape(i, gradient)
        if not cnp.PyArray_ISCARRAY_RO(gradient):
            raise ValueError(
                f"gradient of {self.label(i)} must be C-contiguous, aligned and in native byte order; "
                f"pass numpy.ascontiguousarray(gradient)"
            )
        out.data = cnp.PyArray_BYTES(gradient)
        return self.check_clear(i, out.data, item.size * out.width)

    cdef int take_rows(self, Item *item, Py_ssize_t i, object given, Gradient *out) except -1:
        """Checks a sparse gradient and writes its pointers."""
        cdef cnp.ndarray values
        if not self.takes_sparse:
            self.wrong_sparsity(i, "sparse")
        if self.walk.staged:
            raise TypeError(f"gradient of {self.label(i)} is sparse: the stages of a step need dense gradients")
        if not isinstance(given, SparseRows):
            given = SparseRows.of(given)
        param = self.params[i]
        if given.shape != param.shape:
            self.wrong_shape(i, given)
        if given.stored.dtype.kind != param.dtype.kind:
            self.wrong_dtype(i, given.stored)
        if self.on_sparse is not None:
            given = self.on_sparse()(i, given)
        values = given.stored
        self.given[i] = given
        out.data = cnp.PyArray_BYTES(values)
        out.width = <int>(cnp.PyArray_ITEMSIZE(values) // (2 if cnp.PyArray_ISCOMPLEX(values) else 1))
        out.count = len(given.indices)
        out.rows = <const long long*>cnp.PyArray_BYTES(<cnp.ndarray>given.indices)
        out.starts = <const long long*>cnp.PyArray_BYTES(<cnp.ndarray>given.starts)
        out.order = <const long long*>cnp.PyArray_BYTES(<cnp.ndarray>given.order)
        return self.check_clear(i, out.data, cnp.PyArray_NBYTES(values))

    cdef wrong_sparsity(self, Py_ssize_t i, str kind):
        raise TypeError(
            f"gradient of {self.label(i)} is {kind}: "
            + ("this method takes sparse gradients only" if kind == "dense"
               else "this method takes dense gradients only; SGD, Adagrad and SparseAdam accept sparse ones")
        )

    cdef wrong_dtype(self, Py_ssize_t i, cnp.ndarray gradient):
        kinds = "complex64 or complex128" if self.params[i].dtype.kind == "c" else "float32 or float64"
        raise TypeError(f"gradient of {self.label(i)} must be {kinds}, got {(<object>gradient).dtype}")

    cdef wrong_shape(self, Py_ssize_t i, gradient):
        raise ValueError(
            f"gradient of {self.label(i)} must have shape {self.params[i].shape}, got {gradient.shape}"
        )

    cdef list keep(self, list gradients):
        """The gradients, in a list that nobody changes.

        It is always the same: its memory would have to be allocated, which takes long where many small arrays were
        just freed.
        """
        cdef Py_ssize_t i
        for i in range(self.walk.count):
            self.kept[i] = gradients[i]
        return self.kept

    cdef wrong_count(self, list gradients):
        raise ValueError(
            f"grads must have one entry for each of the {self.walk.count} parameters "
            f"(None skips one), got {len(gradients)}"
        )

    def every_scalar(self):
        """The numbers that parameters have beside their state arrays: shape (parameters, scalars)."""
        cdef Py_ssize_t i, k
        cdef double[:, ::1] values
        result = np.empty((self.walk.count, self.scalars))
        values = result
        for i in range(self.walk.count):
            for k in range(self.scalars):
                values[i, k] = self.walk.items[i].scalar[k]
        return result

    cdef int set_every_scalar(self, double[:, ::1] values) except -1:
        """Sets them for the parameters that have made the step."""
        cdef Py_ssize_t i, k
        for i in range(self.walk.count):
            if self.walk.gradients[i].width != 0:
                for k in range(self.scalars):
                    self.walk.items[i].scalar[k] = values[i, k]
        return 0

    def cohorts_of(self):
        """The number of each parameter's cohort, in this step; -1 without a gradient. None: all are in one."""
        cdef Py_ssize_t i
        cdef Py_ssize_t[::1] values
        if self.cohort_count == 1:
            return None
        result = np.empty(self.walk.count, np.intp)
        values = result
        for i in range(self.walk.count):
            values[i] = self.walk.items[i].cohort if self.walk.gradients[i].width != 0 else -1
        return result

    def bind(self, list gradients not None):
        """Keeps these gradients for every begin(None) from now on; None in the list skips a parameter."""
        cdef Py_ssize_t i
        cdef cnp.ndarray param
        cdef Gradient looked
        if len(gradients) != self.walk.count:
            self.wrong_count(gradients)
        arrays = [None if gradient is None else as_array(gradient, f"gradient of {self.label(i)}")
                  for i, gradient in enumerate(gradients)]
        if not self.written.known:
            self.find_written()
        for i in range(self.walk.count):
            param, given = self.params[i], arrays[i]
            self.take(&self.walk.items[i], param, i, given, &looked)
        for i in range(self.walk.count):
            self.walk.items[i].held = False
        self.bound_gradients[:] = arrays
        self.has_bound = True

    def unbind(self):
        """Forgets the gradients that bind() was given."""
        self.bound_gradients[:] = [None] * self.walk.count
        self.has_bound = False

    # ---- one step

    def step(self, list gradients, engine, num_threads=None):
        """Makes a step, with a list of one gradient for each parameter, or (None) with the bound ones.

        One that is like the last is made here: what run() takes for a cohort is in `engine.groups`, or given by
        `engine.answer(group, number of this step, scalars)`, which may be None. Any other is made by
        `engine.make(gradients)`.
        """
        self.acquire()
        try:
            if not (self.alike and self.again(gradients, engine, num_threads)):
                engine.make(gradients)
        finally:
            self.give()

    cdef bint again(self, list gradients, engine, num_threads) except -1:
        """Makes a step of the cohorts of the last one, if all is as it nearly always is; else it does nothing.

        No Python code runs between the look and the end of the step, so that the gradients need no other owner; but
        where there are threads, or the GIL is released. Where options have to be read, which may run a schedule, it
        looks first too: a schedule is not asked in a step that will be refused, or for a group without a gradient.
        """
        cdef Py_ssize_t k
        cdef Cohort *cohort
        cdef Settled group
        cdef list groups = engine.groups, answers = []
        cdef bint bound = gradients is None, looked = False
        self.alike = False
        for k in range(self.cohort_count):
            cohort = &self.walk.cohorts[k]
            cohort.step += 1
            memcpy(cohort.scalar, cohort.after, sizeof(cohort.after))
        if self.walk.staged or self.lent or self.unready or not self.written.known or not self.watched.same():
            return False
        if not self.has_bound if bound else len(gradients) != self.walk.count:
            return False
        self.begun = True
        if bound:
            self.given = self.bound_gradients
        elif self.elements >= HOLD_GIL or num_threads is not None or PROCESS["num_threads"] != 1:
            self.given = self.keep(gradients)
        else:
            self.given = gradients
        for k in range(self.cohort_count):
            cohort = &self.walk.cohorts[k]
            group = groups[cohort.group]
            answered = None if self.shared else group.answer(cohort.step)
            if answered is None:
                if not looked:
                    if self.given is gradients:
                        self.given = self.keep(gradients)
                    if self.look_at_plain(0, self.given, bound, False) < self.walk.count:
                        return False
                    looked = True
                answered = engine.answer(cohort.group, cohort.step, numbers(cohort.scalar, self.shared))
            if answered is None:
                return False
            answers.append(answered)
        self.answer(answers, 0)
        self.elements = 0
        if self.look_at_plain(0, self.given, bound, False) < self.walk.count:
            return False
        if self.given is gradients and self.elements >= HOLD_GIL:
            return False
        self.go(STEP, num_threads)
        self.count(None)
        self.alike = True
        return True

    def begin(self, list gradients):
        """Checks what a step will touch.

        Returns the cohorts of the step, as (group, number of this step, scalars before it), to be answered in
        the same order by run(). With None the bound gradients are used.
        """
        cdef Py_ssize_t i, k
        cdef int seen
        cdef bint clear, alike, bound = gradients is None
        cdef list original = gradients
        cdef Item *item
        cdef Gradient *gradient
        cdef PyObject *param
        cdef PyObject *given
        if not self.watched.same():
            self.check_watched()
        if self.lent:
            self.check_lent()
        if bound:
            if not self.has_bound:
                raise ValueError("step() needs grads: none were given and none are bound (see bind_grads)")
            self.given = self.bound_gradients
        elif len(gradients) != self.walk.count:
            self.wrong_count(gradients)
        else:  # to convert a gradient, and to ask for a coefficient, may run code that changes the list
            self.given = self.keep(gradients)
        gradients = self.given
        self.begun = True
        if not self.written.known:
            self.find_written()
        self.cohort_count = 0
        self.elements = 0
        self.alike = False
        alike = self.rule is not None and not self.rehearsed and not self.walk.staged and self.takes_dense
        clear = self.walk.zero and self.cleared != NULL  # the gradients are known to overlap nothing
        i = 0
        while i < self.walk.count:
            i = self.look_at_plain(i, gradients, bound, clear)
            if i == self.walk.count:
                break
            item = &self.walk.items[i]
            gradient = &self.walk.gradients[i]
            param = PyList_GET_ITEM(self.params, i)
            given = PyList_GET_ITEM(gradients, i)
            seen = fastopt_look(param, given, item.param, item.header)
            if seen & ALIKE and self.takes_dense:
                gradient.data = cnp.PyArray_BYTES(<cnp.ndarray>given)
                gradient.width = item.width
                gradient.rows = NULL
                self.check_clear(i, gradient.data, item.size * item.width)
            else:
                alike = False
                self.take(item, <cnp.ndarray>param, i, <object>given, gradient)
                if not bound and len(original) != self.walk.count:
                    self.wrong_count(original)
            i += 1
            if gradient.width == 0 and not self.walk.staged:
                continue
            if bound and gradient.width != 0:
                if Py_REFCNT(given) > 1:
                    item.held = True
                elif item.held and cnp.PyArray_BASE(<cnp.ndarray><object>given) == NULL:  # else others may write to it
                    self.dropped(i - 1)
            if clear:
                clear = seen & WRITEABLE and self.cleared[i - 1] == gradient.data
            if not seen & UNMOVED:
                self.changed_parameter(i - 1, <cnp.ndarray>param)
            if gradient.width == 0:  # a stage after the rule may visit it nevertheless
                continue
            self.elements += item.size if gradient.rows == NULL else item.size // item.rows * gradient.count
            k = self.cohort_of(item)
            if k < 0:
                k = self.new_cohort(item)
            item.cohort = <int>k
        if self.walk.staged:
            self.look_at_followers()
        if self.walk.zero and not clear:
            self.check_clearing(gradients)
        self.alike = alike
        return [(self.walk.cohorts[k].group, self.walk.cohorts[k].step,
                 numbers(self.walk.cohorts[k].scalar, self.shared)) for k in range(self.cohort_count)]

    def check_apart(self):
        """Raises if a gradient of this step lies in memory that the step writes: in what the plan got to know of since
        begin()."""
        cdef Py_ssize_t i
        cdef Gradient *gradient
        if not self.written.known:
            self.find_written()
        for i in range(self.walk.count):
            gradient = &self.walk.gradients[i]
            if gradient.width == 0:
                continue
            values = self.given[i]
            if gradient.rows != NULL:
                self.check_clear(i, gradient.data, values.stored.nbytes)
            else:
                self.check_clear(i, gradient.data, self.walk.items[i].size * gradient.width)

    cdef Py_ssize_t look_at_plain(self, Py_ssize_t i, list gradients, bint bound, bint clear) noexcept:
        """Looks at the parameters from `i` on, up to one of which anything is not as it nearly always is."""
        cdef Py_ssize_t elements = 0, k = 0
        cdef PyObject **params = list_items(self.params) + i
        cdef PyObject **given = list_items(gradients) + i
        cdef Item *item = &self.walk.items[i]
        cdef Item *end = &self.walk.items[self.walk.count]
        cdef Gradient *gradient = &self.walk.gradients[i]
        cdef const Cohort *cohort = &self.walk.cohorts[0]
        cdef cnp.PyArray_Descr *descr = NULL
        cdef char *data
        if self.cohort_count == 0 or not self.takes_dense:
            return i
        while item < end:
            if not belongs(item, cohort, self.shared):
                k = self.cohort_of(item)
                if k < 0:
                    break
                cohort = &self.walk.cohorts[k]
            if fastopt_type(params[0]) != descr:
                descr = fastopt_native_type(params[0])
            if (not fastopt_is_array(given[0])
                    or not fastopt_plain(params[0], given[0], item.param, item.header, descr, clear)):
                break
            data = fastopt_memory(given[0])
            if data != item.apart[0] and data != item.apart[1] and not self.lies_apart(item, data):
                break
            if bound:
                if Py_REFCNT(given[0]) > 1:
                    item.held = True
                elif item.held:
                    break
            if clear and self.cleared[item - self.walk.items] != data:
                break
            gradient.data, gradient.width, gradient.rows = data, item.width, NULL
            item.cohort = <int>k
            elements += item.size
            item += 1
            gradient += 1
            params += 1
            given += 1
        self.elements += elements
        return item - self.walk.items

    cdef bint lies_apart(self, Item *item, char *data) noexcept:
        """Whether a gradient lies apart from what is written. Two addresses are kept: new ones lie at two in turn."""
        if not self.written.apart_from(data, item.size * item.width):
            return False
        item.apart[1] = item.apart[0]
        item.apart[0] = data
        return True

    cdef Py_ssize_t cohort_of(self, const Item *item) noexcept:
        """The cohort of this step that an item belongs to; -1: there is none yet."""
        cdef Py_ssize_t k = self.cohort_count - 1  # items come group by group: the last one nearly always fits
        while k >= 0 and not belongs(item, &self.walk.cohorts[k], self.shared):
            k -= 1
        return k

    cdef dropped(self, Py_ssize_t i):
        raise ValueError(f"the bound gradient of {self.label(i)} is held by nobody else any more: no new values can "
                         f"come into it; call bind_grads() with the gradients of now")

    cdef look_at_followers(self):
        """Raises unless the arrays of the stages are where and what they were, and can be written."""
        cdef Py_ssize_t i, k
        cdef PyObject *array
        for k in range(self.walk.followers):
            if self.walk.follower[k].memory == NULL:
                continue
            name, arrays, _ = self.followers[k]
            for i in range(self.walk.count):
                array = PyList_GET_ITEM(arrays, i)
                if self.walk.follower[k].memory[i] != NULL and not UNMOVED & fastopt_look(
                        array, NULL, self.walk.follower[k].memory[i], self.walk.items[i].header):
                    what = "the slow weights" if name == "lookahead" else "an average"
                    raise ValueError(f"{what} of {self.label(i)} must be a writable array in its own memory: "
                                     f"it is read-only, or was changed")

    cdef check_clearing(self, list gradients):
        """Raises unless the gradients can be cleared and nothing else lies in their memory.

        Gradients that are where they were when this was last found are not sorted again.
        """
        cdef Py_ssize_t i, count = self.walk.count
        cdef bint known = self.cleared != NULL
        for i in range(count):
            if self.walk.gradients[i].width != 0:
                array = gradients[i]
                if not cnp.PyArray_CheckExact(array):
                    array = as_array(array, f"gradient of {self.label(i)}")
                if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>array):
                    raise ValueError(f"gradient of {self.label(i)} is read-only: it cannot be cleared")
                known = known and self.cleared[i] == self.walk.gradients[i].data
        if known:
            return
        self.cleared = NULL
        arrays = [np.empty(0) if given is None else as_array(given, f"gradient of {self.label(i)}")
                  for i, given in enumerate(gradients)]
        check_overlap(arrays + self.params,
                      lambda i: f"gradient of {self.label(i)}" if i < count else self.label(i - count))
        self.cleared = <char**>self.cleared_memory.grow(count * sizeof(char*))
        for i in range(count):
            self.cleared[i] = self.walk.gradients[i].data

    cdef changed_parameter(self, Py_ssize_t i, cnp.ndarray param):
        if not cnp.PyArray_ISWRITEABLE(param):
            raise ValueError(f"{self.label(i)} is read-only")
        if cnp.PyArray_BYTES(param) == self.walk.items[i].param:
            raise ValueError(f"{self.label(i)} was given another shape, dtype or layout in place: it is of shape "
                             f"{(<object>param).shape} and dtype {(<object>param).dtype} now; undo that, or see "
                             f"replace_param()")
        raise ValueError(f"the memory of {self.label(i)} has moved since it was given; call rebind(params)")

    cdef int room_for_cohort(self) except -1:
        self.walk.cohorts = <Cohort*>self.cohorts.grow((self.cohort_count + 1) * sizeof(Cohort))
        return 0

    cdef Py_ssize_t new_cohort(self, Item *item) except -1:
        cdef Cohort *cohort
        self.room_for_cohort()
        cohort = &self.walk.cohorts[self.cohort_count]
        cohort.group = item.group
        cohort.variant = item.variant
        cohort.step = item.step + 1
        memcpy(cohort.scalar, item.scalar, sizeof(item.scalar))
        self.cohort_count += 1
        return self.cohort_count - 1

    def missing(self):
        """The parameters that take part in this step and have no state yet."""
        if self.unready == 0:
            return ()
        return [i for i in range(self.walk.count)
                if self.walk.gradients[i].width != 0 and not self.walk.items[i].ready]

    cdef int answer(self, list coefficients, int ahead) except -1:
        """Writes the coefficients of the cohorts down, and chooses the loop of each, or none without coefficients.

        `ahead` is the kind of loop that is needed beside the one that steps: see rules.pxd.
        """
        cdef Py_ssize_t i, k
        cdef int kind
        cdef Cohort *cohort
        cdef double scale, coupled, decay, limit
        cdef Coefficients rule
        cdef bint looped = False
        if not self.begun or len(coefficients) != self.cohort_count:
            raise RuntimeError("run() answers the cohorts of begin()")
        for k in range(self.cohort_count):
            cohort = &self.walk.cohorts[k]
            prepare, rule, after = coefficients[k]
            if len(after) != self.shared:
                raise ValueError(f"the parameters of a cohort share {self.shared} scalars, got {len(after)}")
            if rule is None and self.number < 0:
                cohort.loop[0] = cohort.loop[1] = NULL
                continue
            looped = True
            if rule is None or self.number not in (-1, rule.rule):
                raise ValueError(f"a step of the rule {self.rule!r} needs its coefficients, got {rule!r}")
            scale, coupled, decay, limit = prepare
            write(&cohort.rule, rule.own, rule.count)
            for i in range(self.shared):
                cohort.after[i] = after[i]
            cohort.prepare.f64[1], cohort.prepare.f64[3] = clean64(coupled), clean64(limit)
            cohort.prepare.f32[1], cohort.prepare.f32[3] = <float>cohort.prepare.f64[1], <float>cohort.prepare.f64[3]
            set_scale(&cohort.prepare, scale)
            cohort.prepared = scale != 1 or cohort.prepare.f64[1] != 0 or cohort.prepare.f64[3] != 0
            cohort.rule.f64[DECAY] = clean64(decay)
            cohort.rule.f32[DECAY] = <float>cohort.rule.f64[DECAY]
            kind = 0
            # the rule scales the gradient where nothing else has to be done to it
            if (scale != 1 and float32_bears(scale) and cohort.prepare.f64[1] == 0 and cohort.prepare.f64[3] == 0
                    and self.walk.units == NULL and not ahead):
                kind = SCALED
                cohort.rule.f64[SCALE], cohort.rule.f32[SCALE] = scale, <float>scale
                cohort.prepare.f64[0] = cohort.prepare.f32[0] = 1
                cohort.prepared = False
            cohort.decays[0], cohort.decays[1] = cohort.rule.f32[DECAY] != 0, cohort.rule.f64[DECAY] != 0
            for i in range(2):
                self.choose(&cohort.loop[i], i, rule, kind | (DECAYS if cohort.decays[i] else 0))
                if ahead:
                    self.choose(<rule_t*>&cohort.update[i], i, rule, ahead)
        if not looped:
            self.elements = 0  # nothing is worth a thread
        return 0

    cdef inline int choose(self, rule_t *loop, Py_ssize_t wide, Coefficients rule, int kind) except -1:
        """The loop of a form of a rule, for float32 or, `wide`, float64."""
        loop[0] = <rule_t>self.walk.loops[((rule.rule * 2 + wide) * FORMS + rule.form) * KINDS + kind]
        if loop[0] == NULL:
            raise ValueError(f"{rule!r} has no update: it neither scales its gradient nor decays")
        return 0

    def run_plain(self, list coefficients not None, num_threads=None, then=None):
        """What run() does, without the stages that are set."""
        cdef bint staged = self.walk.staged
        self.walk.staged = False
        try:
            self.run(coefficients, num_threads, then)
        finally:
            self.walk.staged = staged

    def run(self, list coefficients not None, num_threads=None, then=None, dict factors=None,
            double[:, ::1] scalars=None):
        """Makes the step, and counts it before a signal can be delivered.

        `coefficients` has for each cohort: (scale of the gradient, coupled decay, decoupled decay, limit of an element
        or 0), the rule's Coefficients (None: its parameters are stepped elsewhere), scalars after the step. `then` is
        what else the step counts: see finish().

        `factors` has, by name, an array with a number for each parameter: "gradient" multiplies its scale, "decay" its
        coupled decay, "rate" its update and its decoupled decay, "mask" what `cautious` leaves of the update. `scalars`
        has those after the step of all parameters, where cohorts do not share them.

        Returns what take_sums() asked for, or None: of each parameter the 2-norms of g, of p and of the update.
        """
        cdef bint staged
        if scalars is not None and (scalars.shape[0] != self.walk.count or scalars.shape[1] != self.scalars):
            raise ValueError(f"scalars must have shape {(self.walk.count, self.scalars)}")
        self.set_factors(factors)
        staged = self.walk.staged or factors is not None
        self.answer(coefficients, UPDATE if staged and (factors is not None or self.walk.cautious or self.walk.careful)
                    else 0)
        self.go(STAGED if staged else STEP, num_threads)
        if scalars is not None:
            self.set_every_scalar(scalars)
        self.count(then)
        return self.norms() if self.walk.sums_taken else None

    cdef int set_factors(self, dict factors) except -1:
        """Puts the factors of a step into one table: see run()."""
        cdef double[:] values
        cdef double *table
        cdef Py_ssize_t i
        cdef int k
        self.walk.factors = NULL
        if factors is None:
            return 0
        self.check_dense()
        table = <double*>self.factors.grow((self.walk.count + 1) * FACTORS * sizeof(double))
        for i in range(self.walk.count * FACTORS):
            table[i] = 1
        for name, numbers in factors.items():
            if name not in FACTOR_NAMES:
                raise ValueError(f"factors may be {', '.join(FACTOR_NAMES)}, got {name!r}")
            if np.shape(numbers) != (self.walk.count,):
                raise ValueError(f"factor {name!r} must have shape {(self.walk.count,)}, got {np.shape(numbers)}")
            values = numbers
            k = FACTOR_NAMES.index(name)
            for i in range(self.walk.count):
                table[i * FACTORS + k] = clean64(values[i])
        self.walk.factors = table
        return 0

    def measure(self, list coefficients not None, what, num_threads=None, *, list constants=None, dict factors=None):
        """Sums what the step that run() would make with these coefficients and factors would do; nothing is changed.

        `what` names the sums: (kind, operand) or (kind, operand, operand). Kinds: "dot" (sum a b), "distance"
        (sum (a - b)^2), "square" (sum a^2), "absolute" (sum |a|), "agreement" (how many elements of both have one
        sign), "ratio" (sum a^2 / max(k0 b, k1), with k0 and k1 of each cohort in `constants`). Operands: "param";
        "gradient", scaled and limited; "prepared", with coupled decay; "update", that of the rule; "move", with
        decoupled decay; "before0", ... the state arrays, and "after0", ... those after the step. Returns an array of
        shape (parameters, sums), 0 for a parameter without a gradient.
        """
        cdef int k
        cdef Scalars *own
        if what is not self.asked:
            self.asked = None
            self.ask(what)
            self.asked = what if type(what) is tuple else None
        for k in range(STATES):
            if self.walk.slots >> k & 1:
                self.check_slot(k)
        self.set_factors(factors)
        self.answer(coefficients, UPDATE if self.walk.ruled else ADVANCE)
        for k in range(self.cohort_count):
            own = &self.walk.cohorts[k].constants
            if constants is not None:
                fill(own, constants[k])
                own.f32[1] = max(own.f32[1], FLT_MIN)  # 0/0 is no ratio
                own.f64[1] = max(own.f64[1], DBL_MIN)
        self.reserve_sums(0)
        self.sweep(REHEARSE, num_threads)
        return self.collect(self.walk.measures, False, True)

    cdef int ask(self, what) except -1:
        """Finds the sums that measure() is to take."""
        cdef int k, a, b, count = 0
        cdef Measure *measure
        if not 0 < len(what) <= MEASURES:
            raise ValueError(f"there must be 1 to {MEASURES} sums at a time, got {len(what)}")
        table = simd.table(self.level).MEASURES
        self.walk.rehearses = self.walk.ruled = self.walk.moves = self.walk.bares = False
        self.walk.slots = 0
        for kind, *operands in what:
            if kind not in table:
                raise ValueError(f"a sum must be one of {', '.join(table)}, got {kind!r}")
            unknown = [name for name in operands if name not in OPERAND_NAMES]
            if unknown or len(operands) != (1 if kind in ALONE else 2):
                raise ValueError(f"{kind} needs {1 if kind in ALONE else 2} of the operands "
                                 f"{', '.join(OPERAND_NAMES)}, got {', '.join(map(repr, operands))}")
            a, b = OPERAND_NAMES.index(operands[0]), OPERAND_NAMES.index(operands[len(operands) - 1])
            measure = &self.walk.measure[count]
            measure.a, measure.b = a, b
            for k in range(2):
                measure.sum[k] = <measure_t>PyCapsule_GetPointer(table[kind][k], "fastopt.rule")
            for k in (a, b):
                if k >= BEFORE:
                    self.walk.slots |= 1 << (k - (AFTER if k >= AFTER else BEFORE))
                self.walk.ruled |= k == RULED or k == MOVED
                self.walk.rehearses |= self.walk.ruled or k >= AFTER
                self.walk.moves |= k == MOVED
                self.walk.bares |= k == GRADIENT
            count += 1
        self.walk.measures = count
        return 0

    cdef int check_slot(self, int slot) except -1:
        """Raises unless every parameter that takes part has the state array."""
        cdef Py_ssize_t i
        for i in range(self.walk.count):
            if self.walk.gradients[i].width != 0 and self.walk.items[i].state[slot] == NULL:
                raise ValueError(f"{self.label(i)} has no state array {slot}")
        return 0

    cdef go(self, int purpose, num_threads):
        """Walks, with as many threads as pay."""
        cdef Py_ssize_t parts = 1
        self.walk.flush = PROCESS["flush_subnormals"]
        if num_threads is not None or PROCESS["num_threads"] != 1:
            parts = threads.resolve(num_threads, self.elements)
        if parts > 1:
            threads.parallel().run(<size_t>&self.walk, purpose, parts)
        elif self.elements < HOLD_GIL:
            walk(&self.walk, purpose, 0, 1)
        else:
            with nogil:
                walk(&self.walk, purpose, 0, 1)

    # ---- stages and sums

    @property
    def staged(self):
        """Whether stages are set; extend() takes them away."""
        return self.walk.staged

    def stage(self, list followers not None, *, bint on=False, bint keeps=False, bint cautious=False,
              bint careful=False, bint zero=False):
        """Sets the stages beside the rule, `on` for any at all, in place of those so far.

        `followers` are run after the rule, in this order: (name, arrays or None, always). There is an array, or None,
        for each parameter. With `always` a stage also visits parameters without a gradient. Its coefficients are set
        by follow(). `cautious` masks the update where it has not the sign of the gradient, `careful` the decoupled
        weight decay where the update has not the sign of the parameter. `keeps` the parameters before the rule, for
        take_sums(). `zero` clears the gradients.
        """
        cdef Py_ssize_t i, k
        cdef Follower *follower
        cdef Memory memory
        if len(followers) > FOLLOWERS:
            raise ValueError(f"there are at most {FOLLOWERS} stages after the rule, got {len(followers)}")
        for _, arrays, _ in followers:
            if arrays is not None:
                if len(arrays) != self.walk.count:
                    raise ValueError(f"there must be {self.walk.count} arrays, got {len(arrays)}")
                for i in range(self.walk.count):
                    if arrays[i] is not None:
                        check_state(arrays[i], self.params[i], self.label(i))
        self.walk.followers = 0
        self.walk.staged = False
        self.followers, self.follower_memory = followers, []
        table = simd.table(self.level).STAGES
        for k, (name, arrays, always) in enumerate(followers):
            follower = &self.walk.follower[k]
            follower.memory = NULL
            for i in range(2):
                follower.stage[i] = NULL  # a rule: see follow()
                if name in table:
                    follower.stage[i] = <rule_t>PyCapsule_GetPointer(table[name][i], "fastopt.rule")
            if arrays is not None:
                memory = Memory()
                follower.memory = <char**>memory.grow(self.walk.count * sizeof(char*))
                self.follower_memory.append(memory)
                for i in range(self.walk.count):
                    follower.memory[i] = NULL if arrays[i] is None else cnp.PyArray_BYTES(arrays[i])
            follower.always, follower.active = always, True
            self.walk.followers = k + 1
        self.walk.keeps, self.walk.zero, self.walk.staged = keeps, zero, on
        self.walk.cautious, self.walk.careful = cautious, careful
        self.take_sums()
        self.moved()

    def follow(self, Py_ssize_t k, coefficients, bint active=True):
        """Sets the coefficients of a stage, Coefficients where it is a rule, and whether it runs."""
        cdef Coefficients rule
        if not 0 <= k < self.walk.followers:
            raise IndexError(f"stage {k} out of range")
        if type(coefficients) is Coefficients:
            rule = coefficients
            self.choose(&self.walk.follower[k].stage[0], 0, rule, 0)
            self.choose(&self.walk.follower[k].stage[1], 1, rule, 0)
            write(&self.walk.follower[k].c, rule.own, rule.count)
        else:
            fill(&self.walk.follower[k].c, coefficients)
        self.walk.follower[k].active = active

    def take_sums(self, *, bint gradient=False, bint param=False, bint update=False):
        """Says which sums the next steps take, for run() to return. `update` needs `keeps` of stage()."""
        if gradient or param or update:
            self.reserve_sums(0)
        self.walk.sum_gradient, self.walk.sum_param, self.walk.sum_update = gradient, param, update
        self.walk.sums_taken = gradient or param or update

    cdef int reserve_sums(self, Py_ssize_t count) except -1:
        """Room for the sums of every block, and of `count` units."""
        if self.walk.count:
            count = max(count, self.walk.items[self.walk.count - 1].block
                        + blocks(self.walk.items[self.walk.count - 1].size))
        self.walk.sums = <double*>self.sums.grow(count * MEASURES * sizeof(double))
        return 0

    cdef sweep(self, int purpose, num_threads):
        if not self.begun:
            raise RuntimeError("the gradients of a step are summed between begin() and run()")
        self.check_dense()
        self.go(purpose, num_threads)

    cdef int check_dense(self) except -1:
        cdef Py_ssize_t i
        for i in range(self.walk.count):
            if self.walk.gradients[i].width and self.walk.gradients[i].rows != NULL:
                raise TypeError(f"gradient of {self.label(i)} is sparse: the stages of a step need dense gradients")
        return 0

    def powers(self, double order, num_threads=None):
        """sum |g|^order of all gradients: of those of each parameter, summed in turn.

        For an infinite order it is the largest |g|.
        """
        cdef Py_ssize_t i
        cdef bint largest = order > DBL_MAX
        cdef double total = 0
        self.reserve_sums(0)
        self.walk.order = order
        self.sweep(BLOCKS, num_threads)
        for i in range(self.walk.count):
            if self.walk.gradients[i].width != 0:
                total = joined(total, self.gather(i, 0, largest), largest)
        return total

    def each_power(self, double order):
        """What powers() has just summed, for each parameter; 0 without a gradient."""
        return self.collect(1, order > DBL_MAX, True)[:, 0]

    cdef double gather(self, Py_ssize_t i, int j, bint largest) noexcept:
        """The sum over its blocks, or the largest of them, of number `j` of parameter `i`."""
        cdef double result = 0
        cdef Py_ssize_t k
        for k in range(self.walk.items[i].block, self.walk.items[i].block + blocks(self.walk.items[i].size)):
            result = joined(result, self.walk.sums[k * MEASURES + j], largest)
        return result

    cdef norms(self):
        """The norms whose squares the step has summed, of each parameter."""
        cdef Py_ssize_t i, j, k
        cdef double sum
        cdef double[:, ::1] out
        result = np.zeros((self.walk.count, 3))
        out = result
        for i in range(self.walk.count):
            for j in range(3):
                sum = 0
                for k in range(self.walk.items[i].block, self.walk.items[i].block + blocks(self.walk.items[i].size)):
                    sum = combined(sum, self.walk.sums[k * MEASURES + j])
                out[i, j] = clean64(sqrt(sum) if sum >= 0 else -sum)
        return result

    cdef collect(self, Py_ssize_t columns, bint largest, bint given):
        """The first numbers of each parameter, one NaN for all; with `given`, 0 for those without a gradient."""
        cdef Py_ssize_t i, j
        cdef double[:, ::1] out
        result = np.zeros((self.walk.count, columns))
        out = result
        for i in range(self.walk.count):
            if self.walk.gradients[i].width != 0 or not given:
                for j in range(columns):
                    out[i, j] = clean64(self.gather(i, j, largest))
        return result

    def divide(self, bint rows):
        """Cuts the gradients of this step into units: rows, or one of all elements. Returns where each begins."""
        cdef Py_ssize_t i, count = 0
        cdef Item *item
        first = []
        for i in range(self.walk.count):
            item = &self.walk.items[i]
            item.unit = item.size // item.rows if rows and self.params[i].ndim > 1 else item.size
            item.first_unit = count
            first.append(count)
            if self.walk.gradients[i].width != 0 and item.unit != 0:
                count += item.size // item.unit
        self.unit_count = count
        return [*first, count]

    def unit_sums(self, num_threads=None, *, bint centers=False, double limit=<double>INFINITY, bint adapts=False):
        """Of each unit: the mean of g with every element limited to [-limit, limit], sum g^2, sum p^2.

        The first is 0 unless `centers`, the others are unless `adapts`.
        """
        cdef double[:, ::1] values
        cdef Py_ssize_t i
        self.walk.centers, self.walk.limit, self.walk.adapts = centers, limit, adapts
        self.reserve_sums(self.unit_count)
        if self.unit_count:
            memset(self.walk.sums, 0, self.unit_count * MEASURES * sizeof(double))
        self.sweep(UNITS, num_threads)
        values = np.empty((self.unit_count, 3))
        for i in range(self.unit_count):
            values[i, 0] = clean64(self.walk.sums[i * MEASURES])
            values[i, 1] = self.walk.sums[i * MEASURES + 1]
            values[i, 2] = self.walk.sums[i * MEASURES + 2]
        return np.asarray(values)

    def use_units(self, units):
        """Gives each unit a scale and an offset, which is taken off before scaling: shape (units, 2). None: 1 and 0."""
        cdef double[:, ::1] values
        if units is None:
            self.walk.units = NULL
        else:
            values = units
            if values.shape[0] != self.unit_count or values.shape[1] != 2:
                raise ValueError(f"units must have shape {(self.unit_count, 2)}")
            self.walk.units = &values[0, 0] if self.unit_count else NULL
        self.units = units

    def set_variants(self, variants):
        """Tells parameters of one group apart: those of one number, of one group and step, are one cohort."""
        cdef Py_ssize_t i
        variants = [int(variant) for variant in variants]
        if len(variants) != self.walk.count:
            raise ValueError(f"there must be {self.walk.count} variants, got {len(variants)}")
        for i in range(self.walk.count):
            self.walk.items[i].variant = variants[i]

    def variants(self):
        """The variant of each cohort of the step."""
        return [self.walk.cohorts[k].variant for k in range(self.cohort_count)]

    def taken(self):
        """The gradients of this step as (position, array) pairs; parameters without one are left out."""
        cdef Py_ssize_t i
        return [(i, self.given[i]) for i in range(self.walk.count) if self.walk.gradients[i].width != 0]

    def finish(self, then=None):
        """Counts a step that was made elsewhere, and `then`: (dict, values) pairs, of which the dicts are updated, and
        (plan, None), of which all step counts begin anew."""
        self.count(then)

    cdef int count(self, then) except -1:
        cdef Py_ssize_t i
        cdef Cohort *cohort
        for i in range(self.walk.count):
            self.walk.items[i].step += self.walk.gradients[i].width != 0
        if self.shared:
            for i in range(self.walk.count):
                if self.walk.gradients[i].width != 0:
                    cohort = &self.walk.cohorts[self.walk.items[i].cohort]
                    memcpy(self.walk.items[i].scalar, cohort.after, sizeof(cohort.after))
        self.steps += 1
        if self.noted is not None:
            count_also(self.noted)
        if then is not None:
            count_also(then)
        return 0

    def note(self, dict target, dict values):
        """Lets this step, if it is made, update a dict as it counts."""
        if self.noted is None:
            self.noted = []
        self.noted.append((target, values))

    cdef restart(self):
        cdef Py_ssize_t i
        for i in range(self.walk.count):
            self.walk.items[i].step = 0

cdef count_also(list changes):
    for target, values in changes:
        if values is None:
            (<Plan>target).restart()
        else:
            PyDict_Update(target, values)
