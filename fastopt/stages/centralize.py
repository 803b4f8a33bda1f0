"""Gradient centralization: takes the mean off each row of a gradient.   Yong et al. 2020, arXiv 2004.01461."""

import numpy as np

from ..checks import flag
from .stage import Stage, refuse_complex


class Centralize(Stage):
    options = {"centralize": flag}
    by_unit = rows = centers = True

    def check(self, engine):
        refuse_complex(engine, "centralize")
        self.has_rows = np.array([param.ndim > 1 for param in engine.plan.params])

    def each_unit(self, course, units):
        # a mean at the limit is one of elements at the limit only, wherever that rounds
        means = np.where(np.abs(units.means) < units.limit, units.means, np.copysign(np.inf, units.means))
        units.offsets[:] = np.where(np.repeat(self.has_rows, units.lengths), means, 0.0)
