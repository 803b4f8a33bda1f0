"""The stages of a step of a method without a compiled rule: in NumPy, before and after the step."""

import math

import numpy as np

from .base import Optimizer
from .clipping import Adaptive, GlobalNorm, ParameterNorm, Value, shrink
from .stages import Pipeline

MEANINGLESS = ("cautious", "cautious_weight_decay", "corrected_weight_decay", "no_decay", "lr_scale", "clip_update")


class WholePipeline(Pipeline):
    """The stages of Adafactor, Muon and MuonAdamW: those that need not look into the rule.

    Scaled gradients are copies; the other stages read and write as much as in the walk, each in a sweep of its own.
    """

    def check(self):
        name, stages = type(self.optimizer).__name__, self.stages
        if type(self.optimizer).step is not Optimizer.step:
            raise ValueError(f"{name} has no stages: it takes several gradients in a step, from its closure")
        for option in MEANINGLESS:
            if getattr(stages, option):
                raise ValueError(f"{option} has no meaning for {name}: it is for methods that step each element on "
                                 "its own")
        super().check()

    def install(self):
        self.check()
        self.grow()
        self.optimizer._plan.stage([], on=True, zero=self.stages.zero_grad)

    def settled(self, cohorts):
        return cohorts

    @np.errstate(all="ignore")
    def walk(self, cohorts, clip, unscale, powers, order, record):
        optimizer, stages, plan = self.optimizer, self.stages, self.optimizer._plan
        given = plan.taken()
        grads = [None] * len(plan)
        for i, grad in self.scaled(given, clip, unscale, powers, order, record):
            grads[i] = np.asarray(grad)  # NumPy makes numbers of 0-d arrays
        plan.release()
        before = [param.copy() for param in plan.params] if stages.statistics else []
        optimizer._advance(grads)
        if stages.lookahead and optimizer.step_count % stages.lookahead[0] == 0:
            for slow, param in zip(self.slow, plan.params, strict=True):
                slow += stages.lookahead[1] * (param - slow)
                param[...] = slow
        if stages.bounds:
            for param in plan.params:
                np.clip(param, *stages.bounds, out=param)
        for average in stages.average:
            average.update()
        if stages.statistics:
            sums = np.zeros((len(plan), 3))
            for i, grad in given:
                sums[i, 0] = squares(grad)
            for i, (old, param) in enumerate(zip(before, plan.params, strict=True)):
                sums[i, 1:] = squares(param), squares(param - old)
            self.take_statistics(sums, unscale, record)
        if stages.zero_grad:
            for _, grad in given:
                grad[...] = 0

    def scaled(self, given, clip, unscale, powers, order, record):
        """The gradients as the rule is to have them."""
        scale = unscale
        if isinstance(clip, GlobalNorm):
            ratio = shrink(record.grad_norm, clip.max_norm, clip.eps)
            record.clipped, scale = float(ratio != 1.0), scale * ratio
        ratios = []
        for i, grad in given:
            rows = tuple(range(1, grad.ndim)) or None
            if scale != 1.0:
                grad = grad * grad.dtype.type(scale)
            if isinstance(clip, ParameterNorm):
                norm = scale * (powers[i] if order == math.inf else powers[i] ** (1.0 / order))
                ratios.append(shrink(norm, clip.max_norm, clip.eps))
                grad = grad * grad.dtype.type(ratios[-1])
            elif isinstance(clip, Adaptive):
                norms = [np.sqrt(np.sum(np.square(np.abs(x), dtype=np.float64), axis=rows, keepdims=True))
                         for x in (self.optimizer._plan.params[i], grad)]
                most = clip.clip_factor * np.maximum(norms[0], clip.eps)
                ratio = np.where(norms[1] <= most, 1.0, most / np.maximum(norms[1], 1e-6))
                ratios += ratio.ravel().tolist()
                grad = (grad * ratio).astype(grad.dtype)
            elif isinstance(clip, Value):
                grad = np.clip(grad, -clip.clip_value, clip.clip_value)
            if self.stages.centralize and grad.ndim > 1:
                grad = grad - grad.mean(axis=rows, keepdims=True, dtype=np.float64).astype(grad.dtype)
            yield i, grad
        if ratios:
            record.clipped = float(np.mean(np.array(ratios) != 1.0))

    def groups(self):
        groups = self.optimizer.param_groups
        position = {id(param): index for index, group in enumerate(groups) for param in group["params"]}
        return [position[id(param)] for param in self.optimizer._plan.params]


def squares(array):
    return float(np.sum(np.square(np.abs(array), dtype=np.float64)))
