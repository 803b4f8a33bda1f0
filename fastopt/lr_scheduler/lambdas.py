"""Schedulers of functions: LambdaLR and MultiplicativeLR."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..optimizers.base import Optimizer
from ..optimizers.checks import number
from .base import Scheduled, extended, group_count

Function = Callable[[int], float]


class Functions(Scheduled):
    """Base of these: one function of the step for each group.

    `state_dict` holds the attributes of functions that are objects; functions are code and are not saved.
    """

    lr_lambdas: list[Function]

    def __init__(self, optimizer: Optimizer, lr_lambda: Function | Sequence[Function], last_epoch: int = -1) -> None:
        groups = group_count(optimizer)
        if not callable(lr_lambda) and not (isinstance(lr_lambda, (list, tuple)) and all(map(callable, lr_lambda))):
            raise TypeError(f"lr_lambda must be a function of the step or a list of them, got {lr_lambda!r}")
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"lr_lambda must have {groups} functions, got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `LRScheduler`; `lr_lambdas` has the attributes of each function, or None."""
        return {**super().state_dict(), "lr_lambdas": [attributes(function) for function in self.lr_lambdas]}

    def _fitted(self, state):
        saved = state.get("lr_lambdas")
        if saved is None:
            raise ValueError(f"state_dict of {type(self).__name__} lacks lr_lambdas")
        if len(state.get("_groups", saved)) != len(self.lr_lambdas) or len(saved) > len(self.lr_lambdas):
            raise ValueError(f"state_dict has {len(saved)} lr_lambdas, this scheduler {len(self.lr_lambdas)}")
        return *super()._fitted({**state, "lr_lambdas": self.lr_lambdas}), saved

    def _adopt(self, fitted):
        *fitted, saved = fitted
        super()._adopt(fitted)
        for function, values in zip(self.lr_lambdas, saved, strict=False):  # it may lack new groups
            set_attributes(function, values)


class LambdaLR(Functions):
    """The initial rate times a function of the step: `lr f(t)`.

    Args:
        optimizer: a fastopt optimizer.
        lr_lambda: `f(step) -> factor`, or a list of them, one for each group. Any of `fastopt.schedules` serves.
        last_epoch: see `LRScheduler`.

    `state_dict` holds the attributes of functions that are objects; functions are code and are not saved.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=2.0)
    >>> scheduler = fastopt.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step))
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [1.0]

    Source: torch.optim.
    """

    def _rates(self, t):
        groups, bases, functions = self.optimizer.param_groups, self.base_lrs, self.lr_lambdas
        if len(bases) != len(groups):
            bases, functions = self._bases(groups), extended("lr_lambda", functions, len(groups))
        rates, index = [], 0
        for base in bases:
            rates.append(base * functions[index](t))
            index += 1
        return rates


class MultiplicativeLR(Functions):
    """The current rate times a function of the step: `lr = lr f(t)` at step t, from t = 1.

    Args:
        optimizer: a fastopt optimizer.
        lr_lambda: `f(step) -> factor`, or a list of them, one for each group.
        last_epoch: see `LRScheduler`.

    `state_dict` holds the attributes of functions that are objects; functions are code and are not saved.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.MultiplicativeLR(opt, lambda step: 0.5)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.5]

    Source: torch.optim.
    """

    def _rates(self, t):
        groups, functions = self.optimizer.param_groups, self.lr_lambdas
        if len(self.base_lrs) != len(groups):
            self._bases(groups)
            functions = extended("lr_lambda", functions, len(groups))
        rates, index = [], 0
        for group in groups:
            rates.append(group["lr"] * functions[index](t))
            index += 1
        return rates

    def _begin(self, t=0):
        self._set(t, self._rates_on_resume(t))

    def _rates_on_resume(self, t):
        return [number("lr", group["lr"]) for group in self.optimizer.param_groups]


# ---- functions in a state

def attributes(function: Any) -> dict[str, Any] | None:
    """What a state holds of a callable: the attributes of an object, None of a function."""
    return None if hasattr(function, "__code__") or not hasattr(function, "__dict__") else dict(vars(function))


def set_attributes(function: Any, saved: Mapping[str, Any] | None) -> None:
    """The reverse."""
    if saved:
        vars(function).update(saved)
