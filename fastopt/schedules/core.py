"""What a schedule is: arguments and their checks, one formula for single steps and for arrays, arithmetic."""

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial, wraps
from typing import Annotated, Any, Concatenate, ParamSpec

import numpy as np

from ..checks import integer, number, real, whole

Arguments = ParamSpec("Arguments")


class Scalar:
    """What a formula calls for one step: Python's own arithmetic, the fastest there is for one number."""

    ceil, cos, floor, log, sqrt, tanh = math.ceil, math.cos, math.floor, math.log, math.sqrt, math.tanh
    minimum, maximum = min, max
    bisect = bisect_right
    table = tuple

    @staticmethod
    def of(schedule):
        """The formula of another schedule."""
        return schedule._value

    @staticmethod
    def each(function):
        """A callable of one number."""
        return function

    @staticmethod
    def switch(index, formulas, step):
        """The formula of the index at the step."""
        return formulas[index](step)


class Array:
    """What a formula calls for an array of steps: the same names over NumPy."""

    ceil, cos, floor, log, sqrt, tanh = np.ceil, np.cos, np.floor, np.log, np.sqrt, np.tanh
    minimum, maximum = np.minimum, np.maximum
    table = staticmethod(np.asarray)

    @staticmethod
    def bisect(bounds, steps):
        return np.searchsorted(bounds, steps, side="right")

    @staticmethod
    def of(schedule):
        formula = schedule._make.formula(Array, **schedule._arguments)
        return lambda steps: np.broadcast_to(formula(steps), steps.shape)

    @staticmethod
    def each(function):
        if isinstance(function, Schedule):
            return function.preview
        return lambda steps: np.fromiter((real("a value", function(plain(step))) for step in steps.tolist()),
                                         np.float64, steps.size)

    @staticmethod
    def switch(index, formulas, steps):
        values = np.empty(steps.shape)
        for i, formula in enumerate(formulas):
            here = index == i
            if here.any():
                values[here] = formula(steps[here])
        return values


def number_of(step):
    """A step of any type as an int, where it is whole in its type, or a float."""
    whole = integer(step)
    return real("step", step) if whole is None else whole


def plain(step):
    """A whole step as an integer, as an optimizer counts: a function may look it up in a list."""
    return int(step) if step.is_integer() else step


class Schedule:
    """A schedule with its arguments: call it with a step; `+ - * /` with numbers and schedules make new ones.

    Schedules are values: they compare by their arguments, print as the call that makes them, and can be pickled.
    """

    __slots__ = ("_arguments", "_make", "_value")
    __array_ufunc__ = None  # NumPy leaves arithmetic with a schedule to the schedule

    def __init__(self, make: Any, arguments: dict[str, Any]) -> None:
        self._make, self._arguments = make, arguments
        self._value = make.formula(Scalar, **arguments)

    def __call__(self, step: float) -> float:
        if type(step) is not int and type(step) is not float:
            step = number_of(step)  # NumPy's short and unsigned ones would wrap around
        if step >= 0:
            return self._value(step)
        raise ValueError(f"step must be a number of at least 0, got {step!r}")

    def preview(self, steps: Any) -> np.ndarray:
        """The values at many steps at once, as a float64 array.

        Args:
            steps: how many, for those at 0, 1, ... `steps - 1`; or an array of steps, whose shape the result has.

        Raises:
            ValueError: a step is below 0.
            FloatingPointError: a division by zero or an overflow, for which a call raises an ArithmeticError too.

        >>> linear_schedule(0.0, 1.0, 4).preview(6)
        array([0.  , 0.25, 0.5 , 0.75, 1.  , 1.  ])
        >>> linear_schedule(0.0, 1.0, 4).preview([0.5, 2])
        array([0.125, 0.5  ])
        """
        at = np.asarray(np.arange(whole("steps", steps)) if np.ndim(steps) == 0 else steps, np.float64)
        if not (at >= 0).all():
            raise ValueError(f"steps must be numbers of at least 0, got {steps!r}")
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            values = Array.of(self)(at.reshape(-1))
        return np.array(values.reshape(at.shape), np.float64)

    def shift(self, steps: float) -> "Schedule":
        """The same, `steps` later, with the first value before; a negative number skips its first steps."""
        return shift(self, steps)

    def clamp(self, low: float, high: float) -> "Schedule":
        """The same, but at least `low` and at most `high`."""
        return clamp(self, low, high)

    def map(self, function: Callable[[float], float]) -> "Schedule":
        """A function, or another schedule, of the values of this one."""
        return compose(function, self)

    def __add__(self, other: Any) -> "Schedule":
        return add(self, other)

    def __radd__(self, other: Any) -> "Schedule":
        return add(other, self)

    def __sub__(self, other: Any) -> "Schedule":
        return subtract(self, other)

    def __rsub__(self, other: Any) -> "Schedule":
        return subtract(other, self)

    def __mul__(self, other: Any) -> "Schedule":
        return multiply(self, other)

    def __rmul__(self, other: Any) -> "Schedule":
        return multiply(other, self)

    def __truediv__(self, other: Any) -> "Schedule":
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> "Schedule":
        return divide(other, self)

    def __neg__(self) -> "Schedule":
        return multiply(-1.0, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and (self._make, self._arguments) == (other._make, other._arguments)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"{self._make.__name__}({arguments})"

    def __reduce__(self):
        return partial(self._make, **self._arguments), ()


def schedule(formula: Callable[Concatenate[Any, Arguments], Callable[[Any], Any]]) -> Callable[Arguments, Schedule]:
    """Turns `formula(m, arguments...)`, which returns a function of the step, into a function that makes Schedules.

    The formula is written once and runs twice: with `Scalar` for `m` to be called with one step, with `Array` for
    previews. What does not depend on the step is computed before the function of the step is returned. An argument
    is checked and brought to its one form by the check that its annotation holds, `Annotated[type, check]`:
    `check(name, value)` returns the value or raises.

    Raises:
        TypeError: an argument has no check.

    >>> from fastopt.schedules.core import Value
    >>> @schedule
    ... def square_root_decay(m, init_value: Value):
    ...     return lambda step: init_value / m.sqrt(1.0 + step)
    >>> square_root_decay(1.0).preview([0, 3, 8]).round(3)
    array([1.   , 0.5  , 0.333])
    """
    signature = inspect.signature(formula)
    own = signature.replace(parameters=list(signature.parameters.values())[1:], return_annotation=Schedule)
    checks = {}
    for name, parameter in own.parameters.items():
        if not hasattr(parameter.annotation, "__metadata__"):
            raise TypeError(f"argument {name} of {formula.__name__} must be annotated with its check, such as "
                            f"Annotated[float, check] or fastopt.schedules.core.Value, got {parameter.annotation!r}")
        checks[name] = parameter.annotation.__metadata__[0]

    @wraps(formula)
    def make(*args, **kwargs):
        bound = own.bind(*args, **kwargs)
        bound.apply_defaults()
        return Schedule(make, {name: checks[name](f"{formula.__name__}: {name}", given)
                               for name, given in bound.arguments.items()})

    make.__signature__ = own  # type: ignore[attr-defined]
    make.formula = formula  # type: ignore[attr-defined]
    return make  # type: ignore[return-value]


# ---- checks of arguments: each takes a name and a value and returns the value in its one form, or raises

def value(name, given):
    return number(name, given) + 0.0  # no -0.0: equal schedules print alike


def steps_of(least):
    def check(name, given):
        x = number(name, given)
        if x < least:
            raise ValueError(f"{name} must be a number of at least {least}, got {given!r}")
        exact = integer(given)
        return exact if exact is not None else int(x) if x == int(x) else x

    return check


def optional(check):
    """A check of what may be None."""
    return lambda name, given: None if given is None else check(name, given)


def each(check, kind):
    """A check of a sequence, each part by `check`."""
    def checked(name, given):
        if isinstance(given, (str, dict)) or not hasattr(given, "__iter__"):
            raise TypeError(f"{name} must be a sequence of {kind}, got {given!r}")
        return [check(f"{name}[{i}]", part) for i, part in enumerate(given)]

    return checked


def as_schedule(given: Any) -> Schedule:
    """A schedule as it is, a number as a constant one, any other callable `step -> value` as `function_schedule`.

    >>> as_schedule(0.1) == constant_schedule(0.1)
    True
    >>> as_schedule(lambda step: 1 / (1 + step)).preview(3)
    array([1.        , 0.5       , 0.33333333])
    """
    return scheduled("as_schedule: given", given)


def scheduled(name, given):
    if isinstance(given, Schedule):
        return given
    if callable(given):
        return function_schedule(given)
    try:
        return constant_schedule(number(name, given))
    except TypeError:
        raise TypeError(f"{name} must be a schedule, a number or a function of the step, got {given!r}") from None


def function(name, given):
    if not callable(given):
        raise TypeError(f"{name} must be a schedule or a function of one number, got {given!r}")
    return given


Value = Annotated[float, value]
Steps = Annotated[float, steps_of(1)]
Delay = Annotated[float, steps_of(0)]
Function = Annotated[Callable[[float], float], function]
AnySchedule = Annotated[Schedule | float | Callable[[float], float], scheduled]


# ---- the simplest schedules

@schedule
def constant_schedule(m: Any, value: Value):
    """The same value at every step.

    Args:
        value: the value.

    >>> constant_schedule(0.1)(1000)
    0.1
    """
    return lambda step: value


@schedule
def linear_schedule(m: Any, init_value: Value, end_value: Value, transition_steps: Steps,
                    transition_begin: Delay = 0):
    """From one value in a straight line to another, then constant: `init + (end - init) clip((t - b) / T, 0, 1)`.

    Args:
        init_value: the value up to `transition_begin`.
        end_value: the value from `transition_begin + transition_steps` on. Both ends are exact.
        transition_steps: T, the length of the line.
        transition_begin: b, the step at which it begins.

    >>> linear_schedule(0.0, 1.0, 10)(5)
    0.5
    """
    minimum, maximum = m.minimum, m.maximum

    def formula(step):
        gone = minimum(maximum(step - transition_begin, 0), transition_steps) / transition_steps
        return init_value * (1.0 - gone) + end_value * gone

    return formula


@schedule
def function_schedule(m: Any, function: Function):
    """Any callable `step -> value` as a schedule, for previews and arithmetic.

    A preview calls it once for each step. It can be pickled if the callable can.

    Args:
        function: called with the step.

    >>> (2 * function_schedule(abs)).preview(3)
    array([0., 2., 4.])
    """
    return m.each(function)


# ---- arithmetic

@schedule
def add(m: Any, first: AnySchedule, second: AnySchedule):
    """The sum of two schedules: `first + second`. Numbers and functions of the step are taken for schedules.

    >>> (linear_schedule(0.0, 1.0, 4) + 1).preview(3)
    array([1.  , 1.25, 1.5 ])
    """
    f, g = m.of(first), m.of(second)
    return lambda step: f(step) + g(step)


@schedule
def subtract(m: Any, first: AnySchedule, second: AnySchedule):
    """The difference of two schedules: `first - second`.

    >>> (1 - linear_schedule(0.0, 1.0, 4)).preview(3)
    array([1.  , 0.75, 0.5 ])
    """
    f, g = m.of(first), m.of(second)
    return lambda step: f(step) - g(step)


@schedule
def multiply(m: Any, first: AnySchedule, second: AnySchedule):
    """The product of two schedules: `first * second`; with a number, the schedule scaled.

    >>> (0.5 * linear_schedule(0.0, 1.0, 4)).preview(3)
    array([0.   , 0.125, 0.25 ])
    """
    f, g = m.of(first), m.of(second)
    return lambda step: f(step) * g(step)


@schedule
def divide(m: Any, first: AnySchedule, second: AnySchedule):
    """The quotient of two schedules: `first / second`.

    >>> (1 / linear_schedule(1.0, 5.0, 4)).preview(2)
    array([1. , 0.5])
    """
    f, g = m.of(first), m.of(second)
    return lambda step: f(step) / g(step)


@schedule
def maximum(m: Any, first: AnySchedule, second: AnySchedule):
    """The greater of two schedules at each step: `max(first, second)`.

    >>> maximum(linear_schedule(1.0, 0.0, 4), 0.6).preview(4)
    array([1.  , 0.75, 0.6 , 0.6 ])
    """
    f, g, greater = m.of(first), m.of(second), m.maximum
    return lambda step: greater(f(step), g(step))


@schedule
def minimum(m: Any, first: AnySchedule, second: AnySchedule):
    """The smaller of two schedules at each step: `min(first, second)`.

    >>> minimum(linear_schedule(1.0, 0.0, 4), 0.8).preview(3)
    array([0.8 , 0.75, 0.5 ])
    """
    f, g, smaller = m.of(first), m.of(second), m.minimum
    return lambda step: smaller(f(step), g(step))


@schedule
def clamp(m: Any, schedule: AnySchedule, low: Value, high: Value):
    """A schedule, but at least `low` and at most `high`: `schedule.clamp(low, high)`.

    >>> linear_schedule(0.0, 1.0, 4).clamp(0.2, 0.6).preview(4)
    array([0.2 , 0.25, 0.5 , 0.6 ])
    """
    if low > high:
        raise ValueError(f"clamp: low must be at most high ({high!r}), got {low!r}")
    of, smaller, greater = m.of(schedule), m.minimum, m.maximum
    return lambda step: smaller(greater(of(step), low), high)


@schedule
def shift(m: Any, schedule: AnySchedule, steps: Annotated[float, steps_of(-math.inf)]):
    """A schedule `steps` later, `schedule(max(t - steps, 0))`: `schedule.shift(steps)`.

    Args:
        schedule: its first value holds until it begins.
        steps: how much later; a negative number skips the first steps.

    >>> linear_schedule(0.0, 1.0, 4).shift(2).preview(5)
    array([0.  , 0.  , 0.  , 0.25, 0.5 ])
    >>> linear_schedule(0.0, 1.0, 4).shift(-1)(0)
    0.25
    """
    of, greater = m.of(schedule), m.maximum
    return lambda step: of(greater(step - steps, 0))


@schedule
def compose(m: Any, outer: Function, inner: AnySchedule):
    """The values of one schedule fed to another, or to a function: `outer(inner(t))`, `inner.map(outer)`.

    Args:
        outer: a schedule, whose step is then what `inner` says (never below 0), or a function of one number; a
            preview calls a function once for each step.
        inner: a schedule.

    >>> compose(linear_schedule(0.0, 1.0, 4), linear_schedule(0.0, 8.0, 4)).preview(4)
    array([0. , 0.5, 1. , 1. ])
    """
    f, g = m.each(outer), m.of(inner)
    return lambda step: f(g(step))
