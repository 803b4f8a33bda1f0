"""Methods that need a whole parameter at once: matrix products, row and column means."""

import numpy as np

from ..interrupts import uninterrupted
from ..kernels.arrays import full_like
from ..kernels.watched import unchanged
from .base import Optimizer


class WholeOptimizer(Optimizer):
    """An optimizer without a compiled rule: `update` steps one parameter in NumPy.

    Structures, checks, groups, schedules, hooks and checkpoints are those of every optimizer.
    """

    rule = None

    def prepare(self, param: np.ndarray) -> None:
        """Allocates what `update` needs for this parameter beside its state, so that it cannot run out of memory."""

    def new_state(self, param: np.ndarray, settings) -> dict[str, np.ndarray]:
        """The state arrays of a parameter before its first step."""
        return {name: full_like(param, value) for name, value in self.slots(settings).items()}

    def update(self, param: np.ndarray, grad: np.ndarray, state: dict[str, np.ndarray], settings, step: int) -> None:
        """Steps one parameter in place. `grad` must not be written to; its dtype may differ from the parameter's."""
        raise NotImplementedError

    def check_parameter(self, param, label):
        if param.dtype.kind == "c":
            raise TypeError(f"{label} must be float32 or float64 for {type(self).__name__}, got {param.dtype}")

    @staticmethod
    def slots(settings):
        return {}

    def _make_step(self, grads, then=None, first=None, after=None):
        """The step, with the plan taken: see `Optimizer._advance`. `first` is called when all is checked and nothing
        changed; it may still raise. `after` is called when the parameters are stepped, before the step is counted.
        """
        plan = self._plan
        plan.begin(grads)
        taken = plan.taken()
        settings = [(settled if unchanged(group, known) else self._settings(index))[0]
                    for index, (group, (known, settled)) in enumerate(
                        zip(self._groups, self._settled, strict=True))]
        new = {position: self.new_state(plan.params[position], settings[plan.group(position)])
               for position, _ in taken if not self._arrays[position]}
        for position, _ in taken:
            self.prepare(plan.params[position])
        # a warning that is an error, or np.seterr, must not end a step half way
        with uninterrupted(), np.errstate(all="ignore"):
            if first is not None:
                first()
            if new:
                for position, state in new.items():
                    self._arrays[position] = state
                self._guard()
            for position, grad in taken:
                self.update(plan.params[position], grad, self._arrays[position],
                            settings[plan.group(position)], plan.get_step(position) + 1)
            if after is not None:
                after()
            plan.finish(then)

    def _guard(self):
        """Shows the plan the state, which it does not hold itself."""
        stages = self._pipeline.written() if self._pipeline is not None else []
        self._plan.guard(stages + [(position, array) for position, arrays in enumerate(self._arrays)
                                   for array in arrays.values()])

    def _set_states(self, states, count):
        super()._set_states(states, count)
        self._guard()

    def _states_changed(self):
        self._guard()
