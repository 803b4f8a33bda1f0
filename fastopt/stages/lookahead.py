"""Lookahead: every few steps the parameters go back towards slow weights, which follow them.

Zhang et al. 2019, arXiv 1907.08610.
"""

from ..checks import at_least_one, optional, pair
from ..kernels.arrays import owned
from .stage import Stage


def steps_and_share(name, value):
    steps, share = pair(name, value)
    if not 0 < share <= 1:
        raise ValueError(f"{name}[1] must be above 0 and at most 1, got {value[1]!r}")
    return at_least_one(f"{name}[0]", steps), share


class Lookahead(Stage):
    options = {"lookahead": optional(steps_and_share)}

    def __init__(self, options):
        self.steps, self.share = options.lookahead
        self.slow = []  # the slow weights of each parameter

    def take_over(self, before):
        self.slow = before.slow

    def grow(self, engine):
        self.slow += [owned(param) for param in engine.plan.params[len(self.slow):]]

    def replaced(self, position, param):
        self.slow[position] = owned(param)

    def removed(self, position):
        del self.slow[position]

    def reset(self, engine):
        for own, param in zip(self.slow, engine.plan.params, strict=False):
            own[...] = param

    def written(self):
        return list(enumerate(self.slow))

    def arrays(self, engine):
        return list(self.slow)

    def followers(self):
        return [("lookahead", self.slow, True)]

    def after(self, course, place):
        course.plan.follow(place, (self.share,), self.due(course))

    def due(self, course):
        """Whether this step looks ahead."""
        return (course.engine.steps + 1) % self.steps == 0
