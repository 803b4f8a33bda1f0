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
"""

import inspect
from collections.abc import Callable
from itertools import chain

import numpy as np

from . import optimizers
from .kernels import threads
from .kernels.arrays import as_array
from .kernels.checks import check_overlap
from .kernels.plan import Plan
from .optimizers.base import Optimizer

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


def door(method):
    """The function of one method."""
    own = inspect.signature(method.__init__).parameters
    defaults = {name: own[name].default for name in method.hyperparameters if name in own} | method.fixed
    plurals = [plural(slot, defaults) for slot in method.state_slots]
    numbers = [plural(slot, defaults) for slot in method.scalar_slots]
    checks = method.hyperparameters
    plain = {name: check(name, defaults[name]) for name, check in checks.items()}

    def function(params, grads, *states, step, num_threads=None, **given):
        named = {name: given.pop(name) for name in plurals + numbers if name in given}
        unknown = [name for name in given if name not in defaults or name in method.fixed]
        if unknown:
            raise TypeError(f"{method.__name__.lower()}() has no argument {unknown[0]!r}; it has {signature}")
        if len(states) > len(plurals + numbers) or any(name in named for name in (plurals + numbers)[: len(states)]):
            raise TypeError(f"{method.__name__.lower()}() takes its state as {', '.join(plurals + numbers)}, each once")
        columns = dict(zip(plurals + numbers, states, strict=False)) | named
        settings = plain | {name: checks[name](name, value) for name, value in given.items()}
        method.check_settings(settings)
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 1:
            raise ValueError(f"step must be an integer of at least 1, got {step!r}")
        if num_threads is not None:
            num_threads = threads.check(num_threads, "num_threads")
        needed = method.slots(settings)
        params = listed(params, "params")
        grads = listed(grads, "grads")
        if not params:
            raise ValueError("params is empty")
        rows = []
        for slot, plural in zip(method.state_slots, plurals, strict=True):
            column = columns.get(plural)
            if slot not in needed:
                rows.append([None] * len(params))
            elif column is None:
                raise TypeError(f"{method.__name__.lower()}() needs {plural} with these options")
            else:
                column = listed(column, plural)
                if len(column) != len(params):
                    raise ValueError(f"{plural} must have {len(params)} arrays, as params, got {len(column)}")
                rows.append(arrays(column, plural))
        params = arrays(params, "params")
        scalars = []
        for name in numbers:
            column = listed(columns.get(name), name)
            if len(column) != len(params):
                raise ValueError(f"{name} must have {len(params)} arrays, as params, got {len(column)}")
            scalars.append([check_number(array, f"{name}[{i}]") for i, array in enumerate(column)])
        plan = Plan(method.rule, scalars=len(numbers))
        if not (needed and settings.get("momentum")) and not settings.get("weight_decay"):
            plan.accept(method.sparse)
        plan.extend(params, [None] * len(params), 0)
        held = {"params": params}
        held |= {plural: row for plural, row in zip(plurals, rows, strict=True) if row[0] is not None}
        check_overlap(list(chain(*held.values())), lambda i: f"{list(held)[i // len(params)]}[{i % len(params)}]")
        for i, row in enumerate(zip(*rows, strict=True)):
            plan.set_state(i, row)
            plan.set_step(i, step - 1)
            plan.set_scalars(i, tuple(float(column[i]) for column in scalars))
        prepare = -1.0 if settings["maximize"] else 1.0, method.coupled_decay(settings)
        answers = []
        for _, number, before in plan.begin(grads):
            if numbers:
                before = method.scalars(settings) if number == 1 else before
                answers.append((prepare, method.coefficients(settings, number, before),
                                method.advance(settings, number, before)))
            else:
                answers.append((prepare, method.coefficients(settings, number), before))
        plan.run(answers, num_threads)
        for i in range(len(params)):
            for column, value in zip(scalars, plan.get_scalars(i), strict=True):
                column[i][...] = value

    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    always = method.slots({name: defaults[name] for name in checks})
    signature = inspect.Signature(
        [inspect.Parameter("params", positional), inspect.Parameter("grads", positional)]
        + [inspect.Parameter(plural, positional, default=inspect.Parameter.empty if slot in always else None)
           for slot, plural in zip(method.state_slots, plurals, strict=True)]
        + [inspect.Parameter(name, positional) for name in numbers]
        + [inspect.Parameter("step", keyword)]
        + [inspect.Parameter(name, keyword, default=value)
           for name, value in defaults.items() if name not in method.fixed]
        + [inspect.Parameter("num_threads", keyword, default=None)]
    )
    function.__name__ = function.__qualname__ = method.__name__.lower()
    function.__module__ = __name__
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = DOCUMENTATION.format(
        name=method.__name__,
        slots=", ".join(plurals + numbers),
        numbers=f" ({', '.join(numbers)}: 0-d float arrays)" if numbers else "",
        initial=", ".join(f"{name} {value:g}" for name, value in always.items()),
        hyperparameters=", ".join(name for name in defaults if name not in method.fixed),
    )
    return function


def plural(slot, options):
    """The argument that holds a state array or number of each parameter."""
    return f"{slot}_list" if f"{slot}s" in options else f"{slot}s"


def check_number(array, name):
    """A number of the state: it is updated in place, so it must be a writable 0-d array."""
    if not isinstance(array, np.ndarray) or array.shape != () or array.dtype.kind != "f" or not array.flags.writeable:
        raise TypeError(f"{name} must be a writable 0-d float array, got {array!r}")
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


DOORS = {
    name.lower(): door(method)
    for name, method in vars(optimizers).items()
    if isinstance(method, type) and issubclass(method, Optimizer) and getattr(method, "rule", None)
}
globals().update(DOORS)
__all__ = list(DOORS)
