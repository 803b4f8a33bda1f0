"""Clears the gradients behind a step."""

from ..checks import flag
from .stage import Stage


class Zero(Stage):
    options = {"zero_grad": flag}
    marks = ("zero",)

    def skip(self, course):
        for _, gradient in course.plan.taken():
            gradient[...] = 0
