"""Shortens the step of a parameter whose gradient is large beside its second moment.

Shazeer, Stern 2018, arXiv 1804.04235; StableAdamW: Wortsman et al. 2023, arXiv 2304.13013.
"""

import numpy as np

from ..checks import optional, positive
from .stage import Stage


class ClipUpdate(Stage):
    """With h² / max(v̂, ε²), v̂ the corrected second moment after the step; its mean is to be at most the square of d."""

    options = {"clip_update": optional(positive)}
    elementwise = True

    def __init__(self, options):
        self.most = options.clip_update

    def check(self, engine):
        method = engine.method
        if method.second_moment is None:
            raise ValueError(f"clip_update needs a second moment, exp_avg_sq, which {method.__name__} has not")
        self.needs = [("ratio", "prepared", f"after{method.state_slots.index(method.second_moment)}")]

    def constants(self, settings, step):
        return 1.0 / (1.0 - settings["betas"][1] ** step), settings["eps"] ** 2

    def factors(self, sums, sizes):
        return {"rate": 1.0 / np.maximum(np.sqrt(sums[:, 0] / sizes) / self.most, 1.0)}
