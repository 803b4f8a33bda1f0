"""The rules without an Optimizer: arrays in, arrays updated in place, no object and no hidden state.

There is one function for each method, under its lower-case name: `sgd`, `adagrad`, `rmsprop`, `adam`, `adamw`.
All are called alike, with one array or a list of arrays for each of params, grads and the state::

    adamw(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs=None, *, step, lr=1e-3, ..., num_threads=None)

>>> import numpy as np
>>> from fastopt import functional
>>> w, m, v = np.array([1.0, 2.0]), np.zeros(2), np.zeros(2)
>>> functional.adam(w, np.array([1.0, -3.0]), m, v, step=1, lr=0.1)
>>> w.round(6)
array([0.9, 2.1])

What was checked of arrays is kept, so that a call with the same ones costs about what the step of an optimizer does;
the arrays themselves are not.
"""

import inspect
from collections.abc import Callable
from itertools import chain

import numpy as np

from . import optimizers
from .interrupts import uninterrupted
from .kernels.arrays import as_array
from .kernels.checks import check_overlap
from .kernels.watched import same
from .optimizers.base import Optimizer
from .optimizers.engine import Engine
from .optimizers.settings import lasts

DOCUMENTATION = """Makes step number `step` of {name}: updates `params` and the state in place.

    Args:
        params: one array or a list: writable C-contiguous float32 or float64.
        grads: likewise, of the same shapes, only read; None in a list skips that parameter.
        {slots}: the state, of the shapes and dtypes of `params`{numbers};
            before the first step {initial}. None for what the options do not need.
        step: the number of this step, from 1.
        num_threads: at most this many threads; None is `fastopt.get_num_threads()`.
        {hyperparameters}: see `fastopt.{name}`, which has the update in math.

    Raises:
        TypeError, ValueError: an argument is not as said above; nothing was changed.
    """

MOST = 16_384  # parameters of which one function keeps what it found: some 8 MB. A call counts
CALL = 16  # as so many more


class Call(Engine):
    """The engine of a call: it knows where and what its arrays were, but does not hold them between calls."""

    options: dict | None = None  # the hyperparameters that were given; None: to be read at every call


class Calls:
    """The calls of one function: their checks, and the engines of the last ones.

    Whoever steps with an engine takes it out of `known`, so that other threads, and functions that a step calls, do not
    find it.
    """

    def __init__(self, method):
        own = inspect.signature(method.__init__).parameters
        self.method, self.name = method, method.__name__.lower()
        self.defaults = {name: own[name].default for name in method.hyperparameters if name in own} | method.fixed
        self.plurals = [plural(slot, self.defaults) for slot in method.state_slots]
        self.numbers = [plural(slot, self.defaults) for slot in method.scalar_slots]
        self.plain = {name: check(name, self.defaults[name]) for name, check in method.hyperparameters.items()}
        self.known: dict[int, Call] = {}  # id of the first parameter -> engine, the last used at the end
        self.count = 0  # at least as much as is in it

    def begin(self, params, states, step, num_threads, given):
        """An engine for this call, after all checks but those of the gradients."""
        method, plurals = self.method, self.plurals
        columns = self.columns(states, given)
        given = self.options(given)
        settings = self.settings(given)
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 1:
            raise ValueError(f"step must be an integer of at least 1, got {step!r}")
        engine = Call(method)
        engine.num_threads = num_threads
        needed = method.slots(settings)
        params = listed(params, "params")
        if not params:
            raise ValueError("params is empty")
        rows = []
        for slot, plural in zip(method.state_slots, plurals, strict=True):
            column = columns.get(plural)
            if slot not in needed:
                rows.append([None] * len(params))
            elif column is None:
                raise TypeError(f"{self.name}() needs {plural} with these options")
            else:
                rows.append(arrays(self.column(column, plural, len(params)), plural))
        params = arrays(params, "params")
        plan = engine.plan
        engine.add_given(params, [None] * len(params))
        held = {"params": params}
        held |= {plural: row for plural, row in zip(plurals, rows, strict=True) if row[0] is not None}
        check_overlap(list(chain(*held.values())), lambda i: f"{list(held)[i // len(params)]}[{i % len(params)}]")
        for i, row in enumerate(zip(*rows, strict=True)):
            plan.set_state(i, row)
            plan.set_step(i, step - 1)
        engine.groups[0].slots = tuple(needed)
        self.settle(engine, settings, given)
        return engine

    def columns(self, states, given):
        """The arguments that are state, by name."""
        names = self.plurals + self.numbers
        named = {name: given[name] for name in names if name in given}
        unknown = [name for name in given if name not in named
                   and (name not in self.defaults or name in self.method.fixed)]
        if unknown:
            raise TypeError(f"{self.name}() has no argument {unknown[0]!r}; it has {self.signature}")
        if len(states) > len(names) or any(name in named for name in names[: len(states)]):
            raise TypeError(f"{self.name}() takes its state as {', '.join(names)}, each once")
        return dict(zip(names, states, strict=False)) | named

    def column(self, column, name, count):
        """A list with an array for each parameter."""
        column = listed(column, name)
        if len(column) != count:
            raise ValueError(f"{name} must have {count} arrays, as params, got {len(column)}")
        return column

    def settings(self, given):
        """Checked hyperparameters."""
        checks = self.method.hyperparameters
        settings = self.plain | {name: checks[name](name, value) for name, value in given.items()}
        self.method.check_settings(settings)
        return settings

    def options(self, given):
        """The arguments that are hyperparameters."""
        return {name: value for name, value in given.items() if name in self.defaults}

    def settle(self, engine, settings, given):
        """Gives an engine its settings."""
        group = engine.groups[0]
        group.settings = settings
        group.prepare = self.method.prepared(settings)
        moves_on = group.slots and settings.get("momentum")
        engine.plan.accept("no" if moves_on or settings.get("weight_decay") else self.method.sparse)
        engine.options = given if all(map(lasts, given.values())) else None

    def resume(self, engine, params, states, step, num_threads, given):
        """Lets an engine go on with these arguments; False: it was made for others, or something is wrong."""
        columns = self.columns(states, given)
        given = self.options(given)
        if not same(given, engine.options):
            settings = self.settings(given)
            if tuple(self.method.slots(settings)) != engine.groups[0].slots:
                return False
            self.settle(engine, settings, given)
        if type(step) is not int:
            return False
        engine.num_threads = num_threads
        return engine.plan.take_up(params, tuple(map(columns.get, self.plurals)), step - 1)

    def take_numbers(self, engine, states, given):
        """The numbers of the state, by slot, which the engine goes on from."""
        columns, plan = self.columns(states, given), engine.plan
        found = [[check_number(array, f"{name}[{i}]")
                  for i, array in enumerate(self.column(columns.get(name), name, len(plan)))] for name in self.numbers]
        if not self.method.scalars_shared:  # else one number may be that of all
            every = [*chain(*found), *plan.params]
            count = len(every) - len(plan)
            check_overlap(every, lambda i: f"number {i} of the state" if i < count else plan.label(i - count), count)
        for i in range(len(plan)):
            plan.set_scalars(i, tuple(float(column[i]) for column in found))
        return found

    def keep(self, first, engine):
        """Keeps an engine for the next call with the first parameter of this id."""
        known = self.known
        known[first] = engine
        self.count += len(engine.plan) + CALL
        if self.count > MOST:
            left = known.copy()
            self.count = sum(len(other.plan) + CALL for other in left.values())
            for key, other in left.items():
                if self.count <= MOST // 2 or other is engine:
                    break
                known.pop(key, None)
                self.count -= len(other.plan) + CALL


def function_of(method):
    """The function of one method."""
    calls = CALLS[method.__name__.lower()] = Calls(method)
    known, resume, numbers = calls.known, calls.resume, calls.numbers
    plurals, defaults, most = calls.plurals, calls.defaults, len(calls.plurals) + len(calls.numbers)

    def function(params, grads, *states, step, num_threads=None, **given):
        first = id(params[0] if isinstance(params, (list, tuple)) and params else params)
        engine, new = known.pop(first, None), False
        if not (engine is not None and same(given, engine.options) and num_threads is engine._num_threads
                and len(states) <= most and type(step) is int and engine.plan.take_up(params, states, step - 1)):
            new = engine is None or not resume(engine, params, states, step, num_threads, given)
            if new:
                engine = calls.begin(params, states, step, num_threads, given)
        plan = engine.plan
        grads = grads if type(grads) is list else listed(grads, "grads")
        if numbers:
            columns = calls.take_numbers(engine, states, given)
            with uninterrupted():  # a step without its numbers would be half of one
                plan.step(grads, engine, num_threads)
                for i in range(len(plan)):
                    for column, value in zip(columns, plan.get_scalars(i), strict=True):
                        column[i].fill(value)
        else:
            plan.step(grads, engine, num_threads)
        plan.let_go()
        if new:
            calls.keep(first, engine)
        else:
            known[first] = engine

    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    always = method.slots({name: defaults[name] for name in method.hyperparameters})
    calls.signature = inspect.Signature(
        [inspect.Parameter("params", positional), inspect.Parameter("grads", positional)]
        + [inspect.Parameter(plural, positional, default=inspect.Parameter.empty if slot in always else None)
           for slot, plural in zip(method.state_slots, plurals, strict=True)]
        + [inspect.Parameter(name, positional) for name in numbers]
        + [inspect.Parameter("step", keyword)]
        + [inspect.Parameter(name, keyword, default=value)
           for name, value in defaults.items() if name not in method.fixed]
        + [inspect.Parameter("num_threads", keyword, default=None)]
    )
    function.__name__ = function.__qualname__ = calls.name
    function.__module__ = __name__
    function.__signature__ = calls.signature  # type: ignore[attr-defined]
    function.__doc__ = DOCUMENTATION.format(
        name=method.__name__,
        slots=", ".join(plurals + numbers),
        numbers=f" ({', '.join(numbers)}: 0-d float32 or float64 arrays)" if numbers else "",
        initial=", ".join(f"{name} {value:g}" for name, value in always.items()),
        hyperparameters=", ".join(name for name in defaults if name not in method.fixed),
    )
    return function


def plural(slot, options):
    """The argument that holds a state array or number of each parameter."""
    return f"{slot}_list" if f"{slot}s" in options else f"{slot}s"


def check_number(array, name):
    """A number of the state: it is updated in place, so it must be a writable 0-d array."""
    if not (isinstance(array, np.ndarray) and array.shape == () and array.dtype.char in "fd" and array.flags.writeable):
        raise TypeError(f"{name} must be a writable 0-d float32 or float64 array, got {array!r}")
    return array


def arrays(column, name):
    return [array if type(array) is np.ndarray else as_array(array, f"{name}[{i}]") for i, array in enumerate(column)]


def listed(given, name):
    if isinstance(given, np.ndarray):
        return [given]
    if isinstance(given, (list, tuple)):
        return list(given)
    return [as_array(given, name, scalar=name == "grads")]


def __getattr__(name: str) -> Callable[..., None]:
    raise AttributeError(f"fastopt.functional has no {name!r}; it has {', '.join(__all__)}")


CALLS: dict[str, Calls] = {}
FUNCTIONS = {
    name.lower(): function_of(method)
    for name, method in vars(optimizers).items()
    if isinstance(method, type) and issubclass(method, Optimizer) and getattr(method, "rule", None)
}
globals().update(FUNCTIONS)
__all__ = list(FUNCTIONS)
