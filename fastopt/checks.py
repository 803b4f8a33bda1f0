"""Checks of hyperparameters: each takes a name and a value and returns the plain Python value, or raises."""

import math
import operator
from fnmatch import fnmatchcase


def item(value):
    """What a NumPy scalar, or an array or tensor of one element, holds, as Python's number; all else as it is."""
    if getattr(value, "size", None) == 1 or hasattr(value, "numel"):
        if not hasattr(value, "mask") and hasattr(value, "item"):  # .item() of a masked element is 0
            try:
                return value.item()
            except (TypeError, ValueError, RuntimeError):  # several elements, or none in memory: a tensor of torch
                pass
    return value


def real(name, value):
    """A real number, infinities and NaN included; a 0-d or one-element array counts."""
    if type(value) is float:
        return value
    try:
        if isinstance(value := item(value), (bool, str, bytes, bytearray)) or hasattr(value, "mask"):
            raise TypeError
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can hold, got a larger one") from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None


def shown(value):
    """A value in a message; an integer of thousands of digits has no text."""
    try:
        return repr(value)
    except ValueError:
        return f"one of type {type(value).__name__} without a text"


def number(name, value):
    """A finite real number."""
    x = real(name, value)
    if not math.isfinite(x):
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return x


def nonnegative(name, value):
    x = number(name, value)
    if x < 0:
        raise ValueError(f"{name} must be at least 0, got {shown(value)}")
    return x


def positive(name, value):
    x = number(name, value)
    if x <= 0:
        raise ValueError(f"{name} must be above 0, got {shown(value)}")
    return x


def whole_from(least):
    """A check of a whole number without an upper bound; a float such as 3.0 counts."""
    def check(name, value):
        x = number(name, value)
        if x < least or x != int(x):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
        given = item(value)
        return int(given if isinstance(given, int) else x)  # a float has 53 bits

    return check


whole, at_least_one = whole_from(0), whole_from(1)


def fraction(name, value):
    x = number(name, value)
    if not 0 <= x < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {shown(value)}")
    return x


def closed_fraction(name, value):
    x = number(name, value)
    if not 0 <= x <= 1:
        raise ValueError(f"{name} must be at least 0 and at most 1, got {shown(value)}")
    return x


def pair(name, value, check=number):
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers, got {shown(value)}") from None
    return check(f"{name}[0]", first), check(f"{name}[1]", second)


def fractions(name, value):
    """A pair of numbers in [0, 1): the betas."""
    return pair(name, value, fraction)


def three_fractions(name, value):
    try:
        first, second, third = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be three numbers, got {shown(value)}") from None
    return fraction(f"{name}[0]", first), fraction(f"{name}[1]", second), fraction(f"{name}[2]", third)


def optional(check):
    """A check that lets None pass."""
    return lambda name, value: None if value is None else check(name, value)


def flag(name, value):
    given = item(value)
    if given is True or given is False:
        return given
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def one_of(*choices):
    def check(name, value):
        if type(value).__hash__ is None or value not in choices:  # == of arrays is an array
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")
        return value

    return check


def shrink_and_grow(name, value):
    """A pair of factors below and above 1."""
    shrink, grow = pair(name, value)
    if not 0 < shrink < 1 < grow:
        raise ValueError(f"{name} must be a number between 0 and 1 and one above 1, got {shown(value)}")
    return shrink, grow


def ordered(name, value):
    """A pair of bounds, the lower first."""
    least, most = pair(name, value)
    if not 0 <= least <= most:
        raise ValueError(f"{name} must be two numbers of at least 0, the smaller first, got {shown(value)}")
    return least, most


def integer(value):
    """The value as an int if it is one, of whatever type or in an array of one element; else None."""
    try:
        return None if isinstance(value := item(value), bool) else operator.index(value)
    except (TypeError, RuntimeError):
        return None


def whole_number(least, most):
    def check(name, value):
        given = integer(value)
        if given is None:
            raise TypeError(f"{name} must be an integer, got {shown(value)}")
        if not least <= given <= most:
            raise ValueError(f"{name} must be an integer from {least} to {most}, got {shown(value)}")
        return given

    return check


def numbers(count):
    """A check of a sequence of `count` numbers."""
    def check(name, value):
        try:
            parts = tuple(value)
        except TypeError:
            parts = ()
        if len(parts) != count or isinstance(value, str):
            raise TypeError(f"{name} must be {count} numbers, got {shown(value)}")
        return tuple(number(f"{name}[{i}]", part) for i, part in enumerate(parts))

    return check


def check_matches(option, patterns, names, remedy=""):
    """Raises unless every pattern, as in a shell, is the name of a parameter."""
    for pattern in patterns:
        if None in names:
            raise ValueError(f"{option} has patterns of names, but the parameters have no names{remedy}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{option} has {pattern!r}, which matches no parameter of {', '.join(names)}")
