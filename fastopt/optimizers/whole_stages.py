"""The stages of a step of a method without a compiled rule: in NumPy, before and after the step."""

import numpy as np

from .clipping import Adaptive, GlobalNorm, ParameterNorm, Value
from .norms import norm_of, shrunk, times
from .stages import Pipeline

MEANINGLESS = ("cautious", "cautious_weight_decay", "corrected_weight_decay", "no_decay", "lr_scale", "clip_update")


class WholePipeline(Pipeline):
    """The stages of Adafactor, Muon and MuonAdamW: those that need not look into the rule.

    Scaled gradients are copies; the other stages read and write as much as in the walk, each in a sweep of its own.
    """

    def check(self):
        name, stages = self.engine.method.__name__, self.stages
        if self.engine.method.closure:
            raise ValueError(f"{name} has no stages: it takes several gradients in a step, from its closure")
        for option in MEANINGLESS:
            if getattr(stages, option):
                raise ValueError(f"{option} has no meaning for {name}: it is for methods that step each element on "
                                 "its own")
        super().check()

    def install(self):
        self.check()
        self.grow()
        plan = self.engine.plan
        plan.stage([], on=True, zero=self.stages.zero_grad)
        self.engine.states_changed()
        self.has_rows = np.array([param.ndim > 1 for param in plan.params])

    def setup(self, engine, stages):
        super().setup(engine, stages)
        self.rooms = {}  # arrays to work in, so that a step allocates none

    def room(self, use, i):
        """An array like parameter `i`, of any content, which stays for this use."""
        param, room = self.engine.plan.params[i], self.rooms.get((use, i))
        if room is None or room.shape != param.shape or room.dtype != param.dtype:
            room = self.rooms[use, i] = np.empty_like(param)
        return room

    @np.errstate(all="ignore")
    def walk(self, cohorts, clip, unscale, measured, record):
        engine, stages, plan = self.engine, self.stages, self.engine.plan
        given = plan.taken()
        grads = [None] * len(plan)
        for i, grad in self.scaled(given, clip, unscale, measured, record):
            grads[i] = grad
        before = []
        if stages.statistics:
            for i, param in enumerate(plan.params):
                before.append(self.room("before", i))
                before[i][...] = param
        moves = [(average, average._rule(average.n_averaged + 1)) for average in stages.average]
        for average, _ in moves:
            average._plan.during(average._plan.begin, plan.params)  # whatever it would refuse, it refuses now
        looks = bool(stages.lookahead) and (engine.steps + 1) % stages.lookahead[0] == 0
        differences = [self.room("difference", i) for i in range(len(plan))] if looks else []

        def after():
            if looks:
                for slow, param, moved in zip(self.slow, plan.params, differences, strict=True):
                    np.subtract(param, slow, out=moved)
                    moved *= stages.lookahead[1]
                    slow += moved
                    param[...] = slow
            if stages.bounds:
                for param in plan.params:
                    np.clip(param, *stages.bounds, out=param)
            for average, rule in moves:
                average._plan.during(average._take_from, plan.params, rule)
            if stages.statistics:
                norms = np.zeros((len(plan), 3))
                for i, grad in given:
                    norms[i, 0] = norm_of([grad], 2.0)
                for i, (old, param) in enumerate(zip(before, plan.params, strict=True)):
                    norms[i, 1:] = norm_of([param], 2.0), norm_of([np.subtract(param, old, out=old)], 2.0)
                self.take_statistics(norms, unscale, record)
            if stages.zero_grad:
                for _, grad in given:
                    grad[...] = 0

        engine.make(grads, self.counted(record), after=after)

    def scaled(self, given, clip, unscale, measured, record):
        """The gradients as the rule is to have them, in the dtype of their parameters."""
        centers = self.stages.centralize
        norm, norms, _ = measured
        scale = unscale
        if isinstance(clip, GlobalNorm):
            scale = shrunk(norm, clip.max_norm, clip.eps, unscale)
            record.clipped = float(scale != unscale)
        limit = clip.clip_value if isinstance(clip, Value) else 0.0
        if scale == 1.0 and not (limit or centers or isinstance(clip, (ParameterNorm, Adaptive))):
            return given
        units = self.units(clip, scale, limit, norms, record)
        scaled, first = [], 0
        for i, grad in given:
            rows = len(grad) if grad.ndim > 1 and (centers or isinstance(clip, Adaptive)) else 1
            out = self.room("gradient", i)
            if out.size:
                scales, means = units[first : first + rows, :1], units[first : first + rows, 1:]
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
