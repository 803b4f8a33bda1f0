"""Every schedule once, as a pure function of the step in closed form and double precision.

A schedule is called with the number of steps made so far, from 0, and returns a value. Any hyperparameter of
an optimizer may be one. Names and arguments are optax's where optax has the schedule. A schedule compares equal
to another with the same arguments, prints as the call that makes it, and can be pickled.

>>> from fastopt import schedules
>>> rate = schedules.linear_schedule(1.0, 0.0, transition_steps=4)
>>> [rate(step) for step in range(6)]
[1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
"""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

__all__ = [
    "Schedule",
    "constant_schedule",
    "cosine_annealing_schedule",
    "cosine_decay_schedule",
    "exponential_decay",
    "linear_schedule",
    "piecewise_constant_schedule",
]


Arguments = ParamSpec("Arguments")


class Schedule:
    """A schedule with its arguments: call it with a step."""

    __slots__ = ("_arguments", "_formula")

    def __init__(self, formula, arguments):
        self._formula, self._arguments = formula, arguments

    def __call__(self, step: float) -> float:
        return self._formula(step, **self._arguments)

    def __eq__(self, other):
        return isinstance(other, Schedule) and self.__reduce__() == other.__reduce__()

    def __hash__(self):
        return hash(repr(self))

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"{self._formula.__name__}({arguments})"

    def __reduce__(self):
        return _rebuild, (self._formula.__name__, self._arguments)


def _rebuild(name, arguments):
    return globals()[name](**arguments)


def schedule(formula: Callable[Concatenate[float, Arguments], float]) -> Callable[Arguments, Schedule]:
    """Turns `formula(step, arguments...)` into the function that takes the arguments and returns a Schedule."""
    signature = inspect.signature(formula)
    own = signature.replace(parameters=list(signature.parameters.values())[1:], return_annotation=Schedule)

    @wraps(formula)
    def make(*args, **kwargs):
        bound = own.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            check(formula.__name__, name, value)
        return Schedule(formula, dict(bound.arguments))

    make.__signature__ = own  # type: ignore[attr-defined]
    return make  # type: ignore[return-value]


def check(function, name, value):
    """Every argument is a finite number, a flag or a mapping of steps to numbers; lengths are at least 1."""
    if isinstance(value, dict):
        for step, scale in value.items():
            check(function, f"a step of {name}", step)
            check(function, f"{name}[{step}]", scale)
            if step < 0 or step != int(step):
                raise ValueError(f"{function}: steps of {name} must be whole numbers of at least 0, got {step!r}")
    elif name.endswith("_steps"):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < math.inf:
            raise ValueError(f"{function}: {name} must be a number of at least 1, got {value!r}")
    elif not isinstance(value, bool):
        try:
            finite = math.isfinite(value)
        except TypeError:
            raise TypeError(f"{function}: {name} must be a number, got {value!r}") from None
        if not finite:
            raise ValueError(f"{function}: {name} must be finite, got {value!r}")


@schedule
def constant_schedule(step: float, value: float) -> float:
    """The same value at every step.

    >>> constant_schedule(0.1)(1000)
    0.1
    """
    return value


@schedule
def linear_schedule(step: float, init_value: float, end_value: float, transition_steps: float) -> float:
    """From `init_value` in a straight line to `end_value` at `transition_steps`, then constant.

    >>> linear_schedule(0.0, 1.0, 10)(5)
    0.5
    """
    return init_value + (end_value - init_value) * (min(step, transition_steps) / transition_steps)


@schedule
def exponential_decay(step: float, init_value: float, transition_steps: float, decay_rate: float,
                      staircase: bool = False) -> float:
    """`init_value * decay_rate ** (step / transition_steps)`; `staircase` rounds the exponent down.

    >>> exponential_decay(1.0, 10, 0.5)(20)
    0.25
    >>> exponential_decay(1.0, 10, 0.5, staircase=True)(19)
    0.5
    """
    return init_value * decay_rate ** (step // transition_steps if staircase else step / transition_steps)


@schedule
def piecewise_constant_schedule(step: float, init_value: float, boundaries_and_scales: dict[int, float]) -> float:
    """`init_value` times every scale of `boundaries_and_scales` (step -> scale) whose step is reached.

    >>> [piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1})(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.05]
    """
    boundaries = sorted(boundaries_and_scales)
    return init_value * math.prod(boundaries_and_scales[at] for at in boundaries[: bisect_right(boundaries, step)])


@schedule
def cosine_decay_schedule(step: float, init_value: float, decay_steps: float, alpha: float = 0.0,
                          exponent: float = 1.0) -> float:
    """Half a cosine from `init_value` to `alpha * init_value` at `decay_steps`, then constant.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> round(cosine_decay_schedule(1.0, 10)(5), 12)
    0.5
    """
    half = 0.5 * (1.0 + math.cos(math.pi * (min(step, decay_steps) / decay_steps)))
    return init_value * ((1.0 - alpha) * half**exponent + alpha)


@schedule
def cosine_annealing_schedule(step: float, init_value: float, decay_steps: float, end_value: float = 0.0) -> float:
    """A cosine between `init_value` and `end_value` with half period `decay_steps`, for ever.

    As torch's CosineAnnealingLR, which rises again after `T_max`.

    >>> round(cosine_annealing_schedule(1.0, 10)(20), 12)
    1.0
    """
    return end_value + (init_value - end_value) * 0.5 * (1.0 + math.cos(math.pi * (step / decay_steps)))
