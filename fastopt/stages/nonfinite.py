"""What a step does about gradients that are not finite."""

import math

import numpy as np

from ..checks import at_least_one, one_of, optional
from .stage import Stage

policies = one_of("propagate", "skip", "raise")


class NonFiniteGradient(ArithmeticError):
    """A gradient has NaN or infinite elements: raised with `on_nonfinite="raise"`, before anything is changed."""


class NonFinite(Stage):
    """Skips a step or raises."""

    options = {"on_nonfinite": policies, "max_skips": optional(at_least_one)}

    def __init__(self, options):
        self.policy, self.max_skips = options.on_nonfinite, options.max_skips

    @classmethod
    def asked(cls, options):
        return options.on_nonfinite != "propagate" or options.max_skips is not None

    @property
    def norm(self):
        return None if self.policy == "propagate" else 2.0

    def judge(self, course):
        if self.policy == "propagate" or math.isfinite(course.record.grad_norm):
            return
        found = first_nonfinite(course.plan)
        if found is not None and self.policy == "raise":
            raise NonFiniteGradient(found)
        course.record.skipped = found is not None

    def check_skips(self, in_a_row):
        if self.max_skips is not None and in_a_row > self.max_skips:
            raise NonFiniteGradient(f"{in_a_row} steps in a row were skipped for gradients that are not finite; "
                                    f"max_skips is {self.max_skips}")


def first_nonfinite(plan):
    """Says where the first element is that is not finite; None: all are."""
    for i, gradient in plan.taken():
        bad = np.flatnonzero(~np.isfinite(gradient))
        if len(bad):
            index = tuple(int(k) for k in np.unravel_index(bad[0], gradient.shape))
            return f"gradient of {plan.label(i)} is {gradient[index]} at index {index}"
    return None
