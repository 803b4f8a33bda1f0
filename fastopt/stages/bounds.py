"""Keeps every element of the parameters within bounds."""

import math

from ..checks import optional, real
from .stage import Stage, refuse_complex


def interval(name, value):
    if isinstance(value, str) and value == "nonnegative":
        return 0.0, math.inf
    try:
        low, high = () if isinstance(value, str) else value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be (low, high) or 'nonnegative', got {value!r}") from None
    low, high = real(f"{name}[0]", low), real(f"{name}[1]", high)
    if not low <= high:
        raise ValueError(f"{name} must be two numbers, the lower first, got {value!r}")
    return low, high


class Bounds(Stage):
    """It comes after Lookahead, which may round across the bounds."""

    options = {"bounds": optional(interval)}

    def __init__(self, options):
        self.bounds = options.bounds

    def check(self, engine):
        refuse_complex(engine, "bounds")

    def followers(self):
        return [("project", None, True)]

    def after(self, course, place):
        course.plan.follow(place, self.bounds)
