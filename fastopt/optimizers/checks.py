"""Checks of hyperparameters: each takes a name and a value and returns the plain Python value, or raises."""

import math
from fnmatch import fnmatchcase


def real(name, value):
    """A real number, infinities and NaN included; a 0-d or one-element array counts."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def number(name, value):
    """A finite real number."""
    x = real(name, value)
    if not math.isfinite(x):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return x


def nonnegative(name, value):
    x = number(name, value)
    if x < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")
    return x


def positive(name, value):
    x = number(name, value)
    if x <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return x


def whole_from(least):
    """A check of a whole number without an upper bound; a float such as 3.0 counts."""
    def check(name, value):
        x = number(name, value)
        if x < least or x != int(x):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        return int(x)

    return check


whole, at_least_one = whole_from(0), whole_from(1)


def fraction(name, value):
    x = number(name, value)
    if not 0 <= x < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {value!r}")
    return x


def closed_fraction(name, value):
    x = number(name, value)
    if not 0 <= x <= 1:
        raise ValueError(f"{name} must be at least 0 and at most 1, got {value!r}")
    return x


def pair(name, value, check=number):
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers, got {value!r}") from None
    return check(f"{name}[0]", first), check(f"{name}[1]", second)


def fractions(name, value):
    """A pair of numbers in [0, 1): the betas."""
    return pair(name, value, fraction)


def flag(name, value):
    if value is True or value is False:
        return value
    if hasattr(value, "dtype") and value.dtype == bool:
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def one_of(*choices):
    def check(name, value):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value

    return check


def shrink_and_grow(name, value):
    """A pair of factors below and above 1."""
    shrink, grow = pair(name, value)
    if not 0 < shrink < 1 < grow:
        raise ValueError(f"{name} must be a number between 0 and 1 and one above 1, got {value!r}")
    return shrink, grow


def ordered(name, value):
    """A pair of bounds, the lower first."""
    least, most = pair(name, value)
    if not 0 <= least <= most:
        raise ValueError(f"{name} must be two numbers of at least 0, the smaller first, got {value!r}")
    return least, most


def whole_number(least, most):
    def check(name, value):
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if not least <= value.__index__() <= most:
            raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")
        return value.__index__()

    return check


def numbers(count):
    """A check of a sequence of so many numbers."""
    def check(name, value):
        try:
            parts = tuple(value)
        except TypeError:
            parts = ()
        if len(parts) != count or isinstance(value, str):
            raise TypeError(f"{name} must be {count} numbers, got {value!r}")
        return tuple(number(f"{name}[{i}]", part) for i, part in enumerate(parts))

    return check


def check_matches(option, patterns, names, remedy=""):
    """Raises unless every pattern, as in a shell, is the name of a parameter."""
    for pattern in patterns:
        if None in names:
            raise ValueError(f"{option} has patterns of names, but the parameters have no names{remedy}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{option} has {pattern!r}, which matches no parameter of {', '.join(names)}")
