"""Methods that need a whole parameter at once: matrix products, row and column means."""

from typing import Any

import numpy as np

from ..kernels.arrays import full_like
from .base import Optimizer


class WholeOptimizer(Optimizer):
    """An optimizer without a compiled rule: `update` steps one parameter in NumPy.

    Structures, checks, groups, schedules, hooks and checkpoints are those of every optimizer.
    """

    rule = None
    whole = True

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

    @staticmethod
    def coefficients(settings, step):
        """None: no rule steps it."""
