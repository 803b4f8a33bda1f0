"""Leaves out the elements of an update that have another sign than the gradient.

Liang et al. 2024, arXiv 2411.16085.
"""

import numpy as np

from .stage import Stage


def true_false_unscaled(name, value):
    if not isinstance(value, (bool, str)) or value not in (True, False, "unscaled"):
        raise TypeError(f"{name} must be True, False or 'unscaled', got {value!r}")
    return value


class Cautious(Stage):
    """The other elements are divided by their share, unless "unscaled"."""

    options = {"cautious": true_false_unscaled}
    elementwise = True
    marks = ("cautious",)

    def __init__(self, options):
        self.scales = options.cautious is True

    def check(self, engine):
        method = engine.method
        if not method.turns:
            raise ValueError(f"cautious has no meaning for {method.__name__}: its update always has the sign of the "
                             "gradient")
        direction = f"after{method.state_slots.index(method.direction)}" if method.direction else "update"
        self.needs = [("agreement", direction, "prepared")] if self.scales else []

    def factors(self, sums, sizes):
        return {"mask": 1.0 / np.maximum(sums[:, 0] / sizes, 1e-3)}
