"""The ways to make the step of a method: fastopt's own doors, NumPy, torch.optim, and the memory's own limit.

All rivals of a row do the same work: the same sizes, dtype, hyperparameters and number of threads, dense
gradients that are there before the step, and arrays in memory of the same kind. Each has made its first step,
with the making of its state, before it is handed over.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import count

import numpy as np

from .. import table
from ..functional import plural
from ..kernels import rules
from ..kernels.arrays import full_like
from ..kernels.plan import AS_IT_IS, Plan
from . import numpy_in_place

FASTOPT, BOUND, FUNCTIONAL = "fastopt step(grads)", "fastopt step(), bound gradients", "fastopt.functional"
IN_PLACE, BLOCKS, EXPRESSIONS = "NumPy in place", "NumPy in place, in blocks", "NumPy expressions"
LOOP, FOREACH, FUSED = "torch loop", "torch foreach", "torch fused"
LIMIT = "same-traffic limit"

# Options beside the defaults that are measured as rows of their own.
VARIANTS = {"SGD": ({"momentum": 0.9},)}
LIMIT_STATES = 3  # state arrays that the traffic rule can have


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


def rows():
    """The rows of the benchmark: each method of the table with its defaults, then its `VARIANTS`."""
    return [
        Row(method, options) for method in table.METHODS if method.elementwise
        for options in ({}, *VARIANTS.get(method.name, ()))
    ]


@dataclass(frozen=True)
class Rival:
    """One way to make the step: `step(argument)`, with each of `arguments` in turn.

    `before` is called before every step, whose time alone is then counted.
    """

    name: str
    step: Callable
    arguments: tuple = (None,)
    before: Callable | None = None


@cache
def torch():
    """The torch module, None where it is missing.

    It must be imported before fastopt's threads start: then both use one OpenMP runtime, whereas two would
    spin against each other.
    """
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


class Workspace:
    """The arrays of a row and case, after the first step.

    The rivals over NumPy memory share the arrays: where its pages lie cannot favour one of them.
    """

    def __init__(self, row, case, dtype="float32", threads=1):
        self.row, self.case, self.dtype, self.threads = row, case, np.dtype(dtype), threads
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


# ---- fastopt -----------------------------------------------------------------------------------

def fastopt_step(work):
    # other objects over the same memory at every call, as from a loop that computes its gradients anew
    return Rival(FASTOPT, work.optimizer.step, (list(work.grads), [grad[:] for grad in work.grads]))


def fastopt_bound(work):
    return Rival(BOUND, work.optimizer.step)


def fastopt_functional(work):
    if work.case.arrays > 1:
        return None
    function, param, numbers = work.row.method.functional, work.params[0], count(2)
    options = work.row.method.options
    keywords = {plural(slot, options): array for slot, array in zip(work.slots, work.states[0], strict=True)}
    keywords |= {plural(slot, options): np.array(value) for slot, value in work.numbers(0).items()}
    keywords |= work.row.options | {"num_threads": work.threads}

    def step(grad):
        function(param, grad, step=next(numbers), **keywords)

    return Rival(FUNCTIONAL, step, (work.grads[0], work.grads[0][:]))


def same_traffic(states):
    """The rule that moves the bytes of one with so many state arrays.

    A factor of 1 keeps every state as it is: no number ever leaves the normal range.
    """
    return rules.traffic(one=states > 0, two=states > 1, three=states > 2, x=1.0)


def limit(work):
    """The memory's own limit: the bytes of the method, with one multiplication for each element."""
    if len(work.slots) > LIMIT_STATES:
        return None
    plan, threads = Plan("traffic"), work.threads
    plan.extend(work.params, [None] * work.case.arrays, 0)
    for i, states in enumerate(work.states):
        plan.set_state(i, states)
    plan.bind(work.grads)
    answers = [(AS_IT_IS, same_traffic(len(work.slots)), ())]

    def step(_):
        plan.begin(None)
        plan.run(answers, threads)

    return Rival(LIMIT, step)


# ---- NumPy -------------------------------------------------------------------------------------

def in_place(work):
    maker = numpy_in_place.find(work.row)
    if maker is None:
        return expressions(work)
    return Rival(IN_PLACE, maker(numpy_in_place.cut(work.params, work.grads, work.states)))


def in_place_blocks(work):
    maker, block = numpy_in_place.find(work.row), numpy_in_place.BLOCK
    if maker is None or work.case.elements <= block:
        return None
    return Rival(BLOCKS, maker(numpy_in_place.cut(work.params, work.grads, work.states, block)))


def expressions(work):
    function, options, numbers = work.row.method.reference, work.row.options, count(2)
    states = [dict(zip(work.slots, arrays, strict=True)) | work.numbers(i) for i, arrays in enumerate(work.states)]

    def step(_):
        number = next(numbers)
        for param, grad, state in zip(work.params, work.grads, states, strict=True):
            function(param, grad, state, number, **options)

    return Rival(EXPRESSIONS, step)


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
    return optimizer and Rival(LOOP, optimizer.step)


def torch_foreach(work):
    optimizer = torch_optimizer(work, foreach=True)
    return optimizer and Rival(FOREACH, optimizer.step)


def torch_fused(work):
    optimizer = torch_optimizer(work, fused=True) if work.row.method.torch_fused else None
    return optimizer and Rival(FUSED, optimizer.step)


MAKERS = {
    FASTOPT: fastopt_step,
    BOUND: fastopt_bound,
    FUNCTIONAL: fastopt_functional,
    IN_PLACE: in_place,
    BLOCKS: in_place_blocks,
    LOOP: torch_loop,
    FOREACH: torch_foreach,
    FUSED: torch_fused,
    LIMIT: limit,
}


def rivals(work, names=None):
    """The rivals of a workspace: all, or those whose makers have the `names`."""
    made = [MAKERS[name](work) for name in MAKERS if names is None or name in names]
    return [rival for rival in made if rival is not None]
