"""Methods that need a whole parameter at once: matrix products, row and column means."""

from typing import Any

import numpy as np

from ..interrupts import uninterrupted
from ..kernels.arrays import full_like
from .base import Optimizer
from .engine import Engine


class WholeEngine(Engine):
    """Steps parameters by a method without a compiled rule, one after the other."""

    def __init__(self, method):
        super().__init__(method)
        self.work = method.new_work(self.plan.level)

    def make(self, grads, then=None, first=None, after=None):
        """Makes a step without stages; the plan is taken.

        `first` is called when all is checked and nothing changed; it may still raise. `after` is called when the
        parameters are stepped, before the step is counted.
        """
        plan, method, work = self.plan, self.method, self.work
        plan.begin(grads)
        taken = plan.taken()
        groups = [self.read(group) for group in self.groups]
        settings = {position: groups[plan.group(position)].settings for position, _ in taken}
        new = {position: method.new_state(plan.params[position], settings[position])
               for position, _ in taken if not self.arrays[position]}
        for position, _ in taken:
            method.prepare(work, plan.params[position])
        # a warning that is an error, or np.seterr, must not end a step half way
        with uninterrupted(), np.errstate(all="ignore"):
            if first is not None:
                first()
            if new:
                for position, state in new.items():
                    self.arrays[position] = state
                self.states_changed()
            for position, grad in taken:
                method.update(work, plan.params[position], grad, self.arrays[position], settings[position],
                              plan.get_step(position) + 1)
            if after is not None:
                after()
            plan.finish(then)

    def begin(self, grads):
        return self.plan.begin(grads)

    def states_changed(self):
        """Shows the plan the state, which it does not hold itself."""
        stages = self.pipeline.written() if self.pipeline is not None else []
        self.plan.guard(stages + [(position, array) for position, arrays in enumerate(self.arrays)
                                  for array in arrays.values()])


class WholeOptimizer(Optimizer):
    """An optimizer without a compiled rule: `update` steps one parameter in NumPy.

    Structures, checks, groups, schedules, hooks and checkpoints are those of every optimizer.
    """

    rule = None
    _Engine = WholeEngine

    @classmethod
    def new_work(cls, level: str) -> Any:
        """What `update` works in beside the state, for all parameters, at a level of SIMD."""
        return None

    @classmethod
    def prepare(cls, work: Any, param: np.ndarray) -> None:
        """Allocates what `update` needs for this parameter beside its state, so that it cannot run out of memory."""

    @classmethod
    def new_state(cls, param: np.ndarray, settings) -> dict[str, np.ndarray]:
        """The state arrays of a parameter before its first step."""
        return {name: full_like(param, value) for name, value in cls.slots(settings).items()}

    @classmethod
    def update(cls, work: Any, param: np.ndarray, grad: np.ndarray, state: dict[str, np.ndarray], settings,
               step: int) -> None:
        """Steps one parameter in place. `grad` must not be written to; its dtype may differ from the parameter's."""
        raise NotImplementedError

    @classmethod
    def check_parameter(cls, param, label):
        if param.dtype.kind == "c":
            raise TypeError(f"{label} must be float32 or float64 for {cls.__name__}, got {param.dtype}")

    @staticmethod
    def slots(settings):
        return {}
