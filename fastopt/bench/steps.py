"""The race of the elementwise methods: fastopt's interfaces, NumPy, Numba, torch.optim, and what the machine allows.

All contenders of a row do the same work: the same sizes, dtype, hyperparameters and number of threads, dense
gradients that are there before the step, and arrays in memory of the same kind. Each has made its first step,
with the making of its state, before it is handed over.
"""

import inspect
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from .. import table
from ..functional import plural
from ..kernels.arrays import full_like
from . import numpy_in_place
from .cases import CASES, LARGE, parse
from .limit import STATES, same_traffic
from .race import LIMIT, Contender, Race, Step, torch

NEW, SAME, BOUND = "fastopt, new gradients", "fastopt, same gradients", "fastopt, bound gradients"
FUNCTIONAL, FUNCTIONAL_SAME = "functional, new gradients", "functional, same gradients"
IN_PLACE, BLOCKS, EXPRESSIONS = "NumPy in place", "NumPy in place, in blocks", "NumPy expressions"
NUMBA = "Numba"
LOOP, FOREACH, FUSED, COMPILED = "torch loop", "torch foreach", "torch fused", "torch compiled"
DIVIDER = "divide unit's limit"

# Options beside the defaults that are measured as rows of their own.
VARIANTS = {"SGD": ({"momentum": 0.9},)}
NEW_BYTES = 256_000  # of new gradients that are made at once: they stay in an L2
OBJECT_BYTES = 200  # of an array object, about


@dataclass(frozen=True)
class Row:
    """A method with its options: one row of the benchmark."""

    method: table.Method
    options: dict = field(default_factory=dict)

    @property
    def name(self):
        return " ".join([self.method.name, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def settings(self):
        """Every hyperparameter with its value."""
        return self.method.options | self.options

    def traffic(self, itemsize):
        """Bytes that a step moves for each element."""
        return self.method.traffic(itemsize, **self.options)


# each method of the table with its defaults, then its `VARIANTS`
ROWS = tuple(Row(method, options) for method in table.METHODS if method.elementwise
             for options in ({}, *VARIANTS.get(method.name, ())))


class Work:
    """The arrays of a row and case, after the first step.

    The contenders over NumPy memory share the arrays: where its pages lie cannot favour one of them.
    """

    def __init__(self, row, case, dtype="float32", threads=1):
        self.row, self.case, self.dtype, self.threads = row, case, np.dtype(dtype), threads
        self.elements = case.total
        self.traffic = row.traffic(self.dtype.itemsize) * case.total
        self.params, self.grads = self.draw()
        self.optimizer = row.method.optimizer(self.params, **row.options)
        self.optimizer.num_threads = threads
        self.optimizer.step(self.grads)
        self.optimizer.bind_grads(self.grads)

    @property
    def bytes(self):
        """Of parameters, gradients and states."""
        return (2 + len(self.slots)) * self.case.total * self.dtype.itemsize

    def draw(self):
        """Parameters and gradients: the same values at every call."""
        random = np.random.default_rng(7)
        arrays = [random.standard_normal(self.case.elements, self.dtype) for _ in range(2 * self.case.arrays)]
        return arrays[: self.case.arrays], arrays[self.case.arrays :]

    @property
    def slots(self):
        """Names of the state arrays in use, in the order of the rule."""
        used = self.row.method.slots(**self.row.options)
        return [name for name in self.row.method.optimizer.state_slots if name in used]

    @property
    def states(self):
        """For each parameter its state arrays."""
        state = self.optimizer.state
        return [tuple(state[i][name] for name in self.slots) for i in range(self.case.arrays)]

    def numbers(self, i):
        """What parameter `i` has beside its state arrays."""
        return {name: self.optimizer.state[i][name] for name in self.row.method.optimizer.scalar_slots}

    def with_new_gradients(self, step):
        """A step that has other gradients at each call: array objects that were just made, as by autodiff.

        Small ones have memory of their own, and the last ones are alive while the next are made. Large ones are other
        views of the same memory, as from a pool: where it lies would favour one contender and not another.
        """
        alive = []

        def fresh(calls):
            nonlocal alive
            alive = [[grad.copy() if self.case.total < LARGE else grad[:] for grad in self.grads]
                     for _ in range(calls)]
            return alive

        size = self.case.total * self.dtype.itemsize if self.case.total < LARGE else 0
        return Step(step, before=fresh, batch=max(1, NEW_BYTES // (size + OBJECT_BYTES * self.case.arrays)))


# ---- fastopt -----------------------------------------------------------------------------------

def new_gradients(work):
    return work.with_new_gradients(work.optimizer.step)


def same_gradients(work):
    return Step(work.optimizer.step, (list(work.grads),))


def bound_gradients(work):
    return Step(work.optimizer.step)


def functional(work):
    """A function of gradients that makes the step without an optimizer."""
    function, numbers = work.row.method.functional, count(2)
    options = work.row.method.options
    keywords = {plural(slot, options): list(column)
                for slot, column in zip(work.slots, zip(*work.states, strict=True), strict=True)}
    for slot in work.row.method.optimizer.scalar_slots:
        keywords[plural(slot, options)] = [np.array(work.numbers(i)[slot]) for i in range(work.case.arrays)]
    keywords |= work.row.options | {"num_threads": work.threads}
    params = work.params
    return lambda grads: function(params, grads, step=next(numbers), **keywords)


def functional_new(work):
    return work.with_new_gradients(functional(work))


def functional_same(work):
    return Step(functional(work), (list(work.grads),))


def limit(work):
    if len(work.slots) > STATES:
        return None
    return Step(same_traffic(work.params, work.states, work.grads, work.threads))


# ---- NumPy and Numba ---------------------------------------------------------------------------

def in_place(work):
    maker = numpy_in_place.find(work.row)
    if maker is None:
        return expressions(work)
    return Step(maker(numpy_in_place.cut(work.params, work.grads, work.states)))


def in_place_blocks(work):
    maker, block = numpy_in_place.find(work.row), numpy_in_place.BLOCK
    if maker is None or work.case.elements <= block:
        return None
    return Step(maker(numpy_in_place.cut(work.params, work.grads, work.states, block)))


def expressions(work):
    function, options, numbers = work.row.method.reference, work.row.options, count(2)
    states = [dict(zip(work.slots, arrays, strict=True)) | work.numbers(i) for i, arrays in enumerate(work.states)]

    def step():
        number = next(numbers)
        for param, grad, state in zip(work.params, work.grads, states, strict=True):
            function(param, grad, state, number, **options)

    return Step(step, label=EXPRESSIONS)


def numba(work):
    from . import numba_loops

    if work.row.name not in numba_loops.LOOPS:
        return None
    if work.row.name not in numba_loops.LOOPS:
        return None
    return Step(numba_loops.step(work.row, work.params, work.grads, work.states, work.threads))


def divider(work):
    from . import numba_loops

    found = numba_loops.divider(work.row.name, work.case.total, work.dtype) if work.threads == 1 else None
    return found and Step(found[0], steps=found[1])


# ---- torch.optim -------------------------------------------------------------------------------

def torch_optimizer(work, **ways):
    """The torch.optim twin of a row, after one step; None where torch has none that works in these ways."""
    method = getattr(torch().optim, work.row.method.name, None) if torch() else None
    if method is None:
        return None
    known = inspect.signature(method).parameters
    if any(value and name not in known for name, value in ways.items()):
        return None
    options = {name: value for name, value in (work.row.settings | ways).items() if name in known}
    params, grads = ([tensor(torch().from_numpy(array)) for array in arrays] for arrays in work.draw())
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer = method(params, **options)
    optimizer.step()
    for param, state in optimizer.state.items():
        for name, value in state.items():
            if getattr(value, "shape", None) == param.shape:
                state[name] = tensor(value)
    return optimizer


def tensor(value):
    """A copy on a cache line of its own, as torch aligns it, but in NumPy's memory.

    NumPy asks for huge pages, torch's allocator does not: there the same kernel would lose about a tenth.
    """
    return torch().from_numpy(full_like(value.numpy(), 0.0)).copy_(value)


def torch_loop(work):
    optimizer = torch_optimizer(work, foreach=False, fused=False)
    return optimizer and Step(optimizer.step)


def torch_foreach(work):
    optimizer = torch_optimizer(work, foreach=True)
    return optimizer and Step(optimizer.step)


def torch_fused(work):
    optimizer = torch_optimizer(work, fused=True) if work.row.method.torch_fused else None
    return optimizer and Step(optimizer.step)


def torch_compiled(work):
    optimizer = torch_optimizer(work, foreach=True)
    return optimizer and Step(torch().compile(optimizer.step))


RACE = Race(
    "steps", "Steps of the elementwise methods.", ROWS, CASES, parse, Work,
    (
        Contender(NEW, new_gradients),
        Contender(SAME, same_gradients),
        Contender(BOUND, bound_gradients),
        Contender(FUNCTIONAL, functional_new),
        Contender(FUNCTIONAL_SAME, functional_same),
        Contender(IN_PLACE, in_place),
        Contender(BLOCKS, in_place_blocks),
        Contender(NUMBA, numba, needs="numba"),
        Contender(LOOP, torch_loop, needs="torch"),
        Contender(FOREACH, torch_foreach, needs="torch"),
        Contender(FUSED, torch_fused, needs="torch"),
        Contender(COMPILED, torch_compiled, needs="torch", asked=True),  # which compiles for minutes
        Contender(LIMIT, limit),
        Contender(DIVIDER, divider, needs="numba"),
    ),
    base=NEW,
)
