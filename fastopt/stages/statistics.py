"""Norms of gradients, updates and parameters, for logs."""

import math

import numpy as np

from ..checks import flag
from ..norms import LEAST, norm_of
from .stage import Stage


class Statistics(Stage):
    options = {"statistics": flag}
    by_parameter = True
    marks = ("keeps",)

    def check(self, engine):
        self.group_of = np.array([engine.group_of(i) for i in range(len(engine.plan))])

    @np.errstate(all="ignore")
    def take(self, course, norms):
        """Writes down the norms of each group, from those of the gradient, of each parameter and of its update."""
        record, group_of = course.record, self.group_of
        squares = np.stack([np.bincount(group_of, column) for column in (norms**2).T], axis=1)
        by_group = np.sqrt(squares)
        for group, k in zip(*np.nonzero((squares < LEAST) | np.isinf(squares)), strict=True):
            by_group[group, k] = norm_of([norms[group_of == group, k]], 2.0)
        norms = by_group * (course.unscale, 1.0, 1.0)
        record.grad_norms, record.param_norms, record.update_norms = (column.tolist() for column in norms.T)
        if record.grad_norm is None:
            record.grad_norm = math.hypot(*record.grad_norms)
