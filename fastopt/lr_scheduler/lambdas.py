"""Schedulers of functions: LambdaLR and MultiplicativeLR."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..checks import number
from ..optimizers.base import Optimizer
from .base import Scheduled, extend, group_count, listed

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
        if not isinstance(state, Mapping) or "lr_lambdas" not in state:
            raise ValueError(f"state_dict of {type(self).__name__} lacks lr_lambdas")
        saved = listed("lr_lambdas", state["lr_lambdas"])
        groups = state.get("_groups", saved)
        grown = isinstance(groups, list) and len(groups) == len(self.lr_lambdas) > len(saved) > 0
        if len(saved) != len(self.lr_lambdas) and not grown:
            raise ValueError(f"state_dict has {len(saved)} lr_lambdas, this scheduler {len(self.lr_lambdas)}")
        saved = [fitted_attributes(f"lr_lambdas[{index}]", values, function)  # it may lack new groups
                 for index, (values, function) in enumerate(zip(saved, self.lr_lambdas, strict=False))]
        return *super()._fitted({**state, "lr_lambdas": self.lr_lambdas}), saved

    def _adopt(self, fitted):
        *fitted, saved = fitted
        super()._adopt(fitted)
        for function, values in zip(self.lr_lambdas, saved, strict=False):
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
            extend(len(groups), lr_lambda=functions)
            bases = self._bases(groups)
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
            extend(len(groups), lr_lambda=functions)
            self._bases(groups)
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


def fitted_attributes(name: str, saved: Any, function: Any) -> dict[str, Any]:
    """Attributes from a state, copied; raises if the callable cannot take them, or has some that the state lacks."""
    if saved is not None and not isinstance(saved, Mapping):
        raise TypeError(f"{name} must be a dict of attributes or None, got {saved!r}")
    if saved and attributes(function) is None:
        raise ValueError(f"{name} has attributes, but here it is {function!r}, which has none in a state")
    if saved is None and attributes(function):
        raise ValueError(f"{name} must be a dict with the attributes of {function!r}, got None")
    return copy.deepcopy(dict(saved or {}))


def set_attributes(function: Any, saved: Mapping[str, Any]) -> None:
    """The reverse."""
    if saved:
        vars(function).update(saved)
