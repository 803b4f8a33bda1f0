"""The stages of a step of a method without a compiled rule: in NumPy, before and after the step."""

import numpy as np

from ..norms import norm_of, times
from ..stages.average import Averages
from ..stages.bounds import Bounds
from ..stages.lookahead import Lookahead
from ..stages.pipeline import Pipeline
from ..stages.statistics import Statistics


class WholePipeline(Pipeline):
    """The stages of Adafactor, Muon and MuonAdamW: those that need not look into the rule.

    Scaled gradients are copies; the other stages read and write as much as in the walk, each in a sweep of its own.
    """

    def check(self):
        name = self.engine.method.__name__
        if self.engine.method.closure:
            raise ValueError(f"{name} has no stages: it takes several gradients in a step, from its closure")
        for stage in self.stages:
            if stage.elementwise:
                raise ValueError(f"{next(iter(stage.options))} has no meaning for {name}: it is for methods that step "
                                 "each element on its own")
        super().check()

    def install(self):
        self.check()
        self.grow()
        plan = self.engine.plan
        plan.stage([], on=True, zero=any("zero" in stage.marks for stage in self.stages))
        self.engine.states_changed()

    def setup(self, engine, options):
        super().setup(engine, options)
        self.rooms = {}  # arrays to work in, so that a step allocates none

    def room(self, use, i):
        """An array like parameter `i`, of any content, which stays for this use."""
        param, room = self.engine.plan.params[i], self.rooms.get((use, i))
        if room is None or room.shape != param.shape or room.dtype != param.dtype:
            room = self.rooms[use, i] = np.empty_like(param)
        return room

    @np.errstate(all="ignore")
    def make(self, course):
        engine, plan = self.engine, self.engine.plan
        statistics, lookahead, bounds, averages = map(self.find, (Statistics, Lookahead, Bounds, Averages))
        given = plan.taken()
        grads = [None] * len(plan)
        for i, grad in self.scaled(course, given):
            grads[i] = grad
        before = []
        if statistics is not None:
            for i, param in enumerate(plan.params):
                before.append(self.room("before", i))
                before[i][...] = param
        moves = [] if averages is None else [(average, average._rule(average.n_averaged + 1))
                                             for average in averages.averages]
        for average, _ in moves:
            average._plan.during(average._plan.begin, plan.params)  # whatever it would refuse, it refuses now
        looks = lookahead is not None and lookahead.due(course)
        differences = [self.room("difference", i) for i in range(len(plan))] if looks else []

        def after():
            if looks:
                for slow, param, moved in zip(lookahead.slow, plan.params, differences, strict=True):
                    np.subtract(param, slow, out=moved)
                    moved *= lookahead.share
                    slow += moved
                    param[...] = slow
            if bounds is not None:
                for param in plan.params:
                    np.clip(param, *bounds.bounds, out=param)
            for average, rule in moves:
                average._plan.during(average._take_from, plan.params, rule)
            if statistics is not None:
                norms = np.zeros((len(plan), 3))
                for i, grad in given:
                    norms[i, 0] = norm_of([grad], 2.0)
                for i, (old, param) in enumerate(zip(before, plan.params, strict=True)):
                    norms[i, 1:] = norm_of([param], 2.0), norm_of([np.subtract(param, old, out=old)], 2.0)
                statistics.take(course, norms)
            if any("zero" in stage.marks for stage in self.stages):
                for _, grad in given:
                    grad[...] = 0

        engine.make(grads, self.counted(course), after=after)

    def scaled(self, course, given):
        """The gradients as the rule is to have them, in the dtype of their parameters."""
        course.scale = course.unscale
        for stage in course.stages:
            stage.before(course)
        cutting = [stage for stage in course.stages if stage.by_unit]
        limit = course.limit
        if course.scale == 1.0 and not (limit or cutting):
            return given
        units = self.units(course, cutting)
        by_row = any(stage.rows for stage in cutting)
        centers = any(stage.centers for stage in cutting)
        scaled, first = [], 0
        for i, grad in given:
            rows = len(grad) if grad.ndim > 1 and by_row else 1
            out = self.room("gradient", i)
            if out.size:
                scales, means = (units.table[first : first + rows, k : k + 1] for k in range(2))
                first += rows
                flat = out.reshape(rows, -1)
                times(grad.reshape(rows, -1), scales, flat)
                if limit:
                    np.clip(flat, -limit, limit, out=flat)
                if centers:  # rounded and limited as an element is: equal ones leave exactly 0
                    offsets = np.empty((rows, 1), out.dtype)
                    times(means.astype(np.result_type(grad, out)), scales, offsets)
                    flat -= np.clip(offsets, -limit, limit, out=offsets) if limit else offsets
            scaled.append((i, out))
        return scaled
