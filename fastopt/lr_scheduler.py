"""torch.optim.lr_scheduler's classes: each binds a schedule to the learning rates of an optimizer.

>>> import numpy as np, fastopt
>>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
>>> scheduler = fastopt.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
>>> for _ in range(4):
...     opt.step([np.ones(3)])
...     scheduler.step()
...     print(scheduler.get_last_lr())
[1.0]
[0.5]
[0.5]
[0.25]
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import schedules
from .optimizers.base import Optimizer
from .optimizers.checks import number

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "StepLR",
]


class LRScheduler:
    """Base of the schedulers: sets `group["lr"]` at construction and at every `step()`.

    A scheduler is a factor f(t), a schedule that starts from 1, and a floor: the rate of a group after t steps
    is `floor + (base - floor) f(t)`, in closed form, so nothing drifts. Where someone else changed the rate in
    between (another scheduler, or you), it goes on from there, as torch's recursive formulas do.

    Args:
        optimizer: a fastopt optimizer.
        last_epoch: how many steps were made before, -1 for none. To go on, every group must have `initial_lr`.

    Attributes:
        base_lrs: the initial rate of each group.
        last_epoch: steps made, 0 after construction.
    """

    _floor = 0.0
    _keeps_rate_on_resume = False  # torch: constructing with last_epoch leaves the rate as it is

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a fastopt optimizer, got {type(optimizer).__name__}")
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int) or last_epoch < -1:
            raise ValueError(f"last_epoch must be an integer of at least -1, got {last_epoch!r}")
        for index, group in enumerate(optimizer.param_groups):
            if callable(group["lr"]):
                raise ValueError(f"lr of group {index} is a schedule already: it cannot have a scheduler too")
            if last_epoch == -1:
                group.setdefault("initial_lr", number("lr", group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(f"initial_lr is missing in group {index}: it is needed to go on from last_epoch")
        self.optimizer = optimizer
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr = [None for _ in self.base_lrs]
        self._anchors = list(self.base_lrs)
        self._step_count = 0
        self._made_at = optimizer.step_count
        self._factor = self._schedule()
        self._advance(last_epoch + 1)

    def _schedule(self):
        """f, made from the attributes."""
        raise NotImplementedError

    def _rate(self, index, t):
        return self._floor + (self._anchors[index] - self._floor) * self._factor(t)

    def _follow(self, index, current, t):
        """Goes on from `current`, the rate after t steps, that this scheduler did not set.

        After a zero of f the current rate says nothing of the base: torch adds the rise from zero to it.
        """
        floor, base = self._floor, self.base_lrs[index]
        factor = 1.0 if t < 0 else self._factor(t)
        if factor != 0:
            self._anchors[index] = floor + (current - floor) / factor
        else:
            rise = self._factor(t + 1)
            self._anchors[index] = base + (current - floor) / rise if rise else base

    def _advance(self, t):
        resumed = self._keeps_rate_on_resume and self._step_count == 0 and t > 0
        for index, group in enumerate(self.optimizer.param_groups):
            current = number("lr", group["lr"])
            if index == len(self.base_lrs):  # a group added since
                self.base_lrs.append(group.setdefault("initial_lr", current))
                self._anchors.append(current)
                self._last_lr.append(None)
            if resumed:
                self._follow(index, current, t)
                self._last_lr[index] = current
                continue
            if current != self._last_lr[index] or self._vanished(t - 1):
                self._follow(index, current, t - 1)
            group["lr"] = self._last_lr[index] = self._rate(index, t)
        self.last_epoch = t
        self._step_count += 1

    def _vanished(self, t):
        return t >= 0 and self._factor(t) == 0

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates for the next step of the optimizer. Call it after `optimizer.step()`.

        Args:
            epoch: sets the rates of this many steps instead of one more (deprecated in torch).
        """
        if self._step_count == 1 and self.optimizer.step_count == self._made_at:
            warnings.warn(
                "lr_scheduler.step() was called before optimizer.step(): the first value of the schedule is "
                "skipped. Call optimizer.step() first.",
                UserWarning, stacklevel=2,
            )
        if epoch is None:
            self._advance(self.last_epoch + 1)
            return
        warnings.warn("the epoch argument of step() is deprecated in torch; call step() without it",
                      UserWarning, stacklevel=2)
        self._anchors = list(self.base_lrs)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self._advance(epoch)

    def get_last_lr(self) -> list[float]:
        """The rates that this scheduler set last, one for each group."""
        return list(self._last_lr)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer, under torch's names; plain numbers and lists."""
        return {name: list(value) if isinstance(value, list) else value
                for name, value in vars(self).items() if name not in ("optimizer", "_made_at", "_factor")}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` of the same scheduler made, here or in torch, and sets the rates it had.

        Raises:
            ValueError: the state is of other groups, or of another scheduler; nothing was changed.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state_dict and name != "_anchors"]
        if missing:
            raise ValueError(f"state_dict of {type(self).__name__} lacks {', '.join(missing)}")
        groups = len(self.optimizer.param_groups)
        rates = [number("_last_lr", rate) for rate in state_dict["_last_lr"]]
        if len(state_dict["base_lrs"]) != groups or len(rates) != groups:
            raise ValueError(f"state_dict is of {len(state_dict['base_lrs'])} groups, the optimizer has {groups}")
        for name in own:
            if name in state_dict:
                value = state_dict[name]
                setattr(self, name, list(value) if isinstance(value, list) else value)
        self._last_lr = rates
        self._factor = self._schedule()
        if "_anchors" not in state_dict:
            self._anchors = list(self.base_lrs)
            for index, rate in enumerate(rates):
                if abs(rate - self._rate(index, self.last_epoch)) > 1e-9 * abs(rate):
                    self._follow(index, rate, self.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class LambdaLR(LRScheduler):
    """The initial rate times a function of the step.

    Args:
        optimizer: a fastopt optimizer.
        lr_lambda: `f(step) -> factor`, or a list of them, one for each group. A schedule serves.
        last_epoch: see `LRScheduler`.

    `state_dict` holds the attributes of lambdas that are objects; functions are code and are not saved.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=2.0)
    >>> fastopt.lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)).get_last_lr()
    [2.0]
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
                 last_epoch: int = -1) -> None:
        groups = len(optimizer.param_groups) if isinstance(optimizer, Optimizer) else 0
        if not callable(lr_lambda) and not (isinstance(lr_lambda, (list, tuple)) and all(map(callable, lr_lambda))):
            raise TypeError(f"lr_lambda must be a function of the step or a list of them, got {lr_lambda!r}")
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"lr_lambda must have {groups} functions, got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        return None

    def _follow(self, index, current, t):
        """The rate is always of the initial one, as in torch."""

    def _vanished(self, t):
        return False

    def _rate(self, index, t):
        return self.base_lrs[index] * self.lr_lambdas[min(index, len(self.lr_lambdas) - 1)](t)

    def state_dict(self) -> dict[str, Any]:
        objects = [dict(vars(f)) if hasattr(f, "__dict__") and not hasattr(f, "__code__") else None
                   for f in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": objects}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        functions, attributes = self.lr_lambdas, state_dict.get("lr_lambdas", ())
        if len(attributes) != len(functions):
            raise ValueError(f"state_dict has {len(attributes)} lr_lambdas, this scheduler {len(functions)}")
        super().load_state_dict({**state_dict, "lr_lambdas": functions})
        for function, saved in zip(functions, attributes, strict=True):
            if saved is not None:
                vars(function).update(saved)


class StepLR(LRScheduler):
    """Multiplies the rate by `gamma` every `step_size` steps.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.StepLR(opt, step_size=30).get_last_lr()
    [1.0]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size, self.gamma = whole("step_size", step_size), number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        return schedules.exponential_decay(1.0, self.step_size, self.gamma, staircase=True)


class MultiStepLR(LRScheduler):
    """Multiplies the rate by `gamma` at each of `milestones`; one that is named twice counts twice.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.MultiStepLR(opt, milestones=[30, 80]).get_last_lr()
    [1.0]
    """

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1,
                 last_epoch: int = -1) -> None:
        self.milestones = Counter(whole("milestones", milestone, 0) for milestone in milestones)
        self.gamma = number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        return schedules.piecewise_constant_schedule(
            1.0, {milestone: self.gamma**count for milestone, count in self.milestones.items()})


class ExponentialLR(LRScheduler):
    """Multiplies the rate by `gamma` every step.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.ExponentialLR(opt, gamma=0.9).get_last_lr()
    [1.0]
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        return schedules.exponential_decay(1.0, 1, self.gamma)


class CosineAnnealingLR(LRScheduler):
    """A cosine from the initial rate down to `eta_min` at step `T_max`, and up again after it.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.CosineAnnealingLR(opt, T_max=100).get_last_lr()
    [1.0]
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max, self.eta_min = whole("T_max", T_max), number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    @property
    def _floor(self):
        return self.eta_min

    def _schedule(self):
        return schedules.cosine_annealing_schedule(1.0, self.T_max)


class LinearLR(LRScheduler):
    """The rate times a factor that goes in a straight line from `start_factor` to `end_factor` in `total_iters`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.LinearLR(opt, start_factor=0.5).get_last_lr()
    [0.5]
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
                 total_iters: int = 5, last_epoch: int = -1) -> None:
        self.start_factor, self.end_factor = number("start_factor", start_factor), number("end_factor", end_factor)
        self.total_iters = whole("total_iters", total_iters)
        if not 0 < self.start_factor <= 1:
            raise ValueError(f"start_factor must be more than 0 and at most 1, got {start_factor!r}")
        if not 0 <= self.end_factor <= 1:
            raise ValueError(f"end_factor must be at least 0 and at most 1, got {end_factor!r}")
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        return schedules.linear_schedule(self.start_factor, self.end_factor, self.total_iters)


def whole(name, value, least=1):
    if isinstance(value, bool) or not hasattr(type(value), "__index__") or value.__index__() < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value.__index__()
