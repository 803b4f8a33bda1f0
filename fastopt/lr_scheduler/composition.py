"""Schedulers of schedulers: one after another, or all at every step. They may be nested."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from ..optimizers.base import Optimizer
from .base import LRScheduler, Scheduled, all_or_nothing, listed, whole
from .metrics import Metric


class Composition(Scheduled):
    """Base of these: the schedulers, and their states."""

    _not_saved = Scheduled._not_saved | {"_schedulers"}
    _numbered = "_last_lr"
    _only_torchs = Scheduled._only_torchs | {"_schedulers"}

    def _take(self, schedulers, optimizer):
        """Checks that the schedulers can be driven together, and returns the optimizer."""
        name = type(self).__name__
        if not isinstance(schedulers, (list, tuple)) or not schedulers:
            raise ValueError(f"schedulers must be a list of at least one scheduler, got {schedulers!r}")
        for index, scheduler in enumerate(schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(f"schedulers[{index}] must be a scheduler, got {type(scheduler).__name__}")
            if isinstance(scheduler, Metric):
                raise ValueError(f"schedulers[{index}] is a {type(scheduler).__name__}, whose step() takes a metric: "
                                 f"{name} cannot drive it")
            optimizer = scheduler.optimizer if optimizer is None else optimizer
            if scheduler.optimizer is not optimizer:
                raise ValueError(f"schedulers[{index}] is of another optimizer: {name} needs all of one")
        self._schedulers, self.optimizer = list(schedulers), optimizer
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """See `LRScheduler`; `_schedulers` has the states of the schedulers."""
        return {**super().state_dict(), "_schedulers": [scheduler.state_dict() for scheduler in self._schedulers]}

    def _is_ours(self, state):
        return super()._is_ours(state) and all(scheduler._is_ours(its) for scheduler, its in zip(
            self._schedulers, state["_schedulers"], strict=True))

    def _fitted(self, state):
        if not isinstance(state, Mapping) or "_schedulers" not in state:
            raise ValueError(f"state_dict of {type(self).__name__} lacks _schedulers")
        saved = listed("_schedulers", state["_schedulers"])
        if len(saved) != len(self._schedulers):
            raise ValueError(f"state_dict has {len(saved)} schedulers, this {type(self).__name__} has "
                             f"{len(self._schedulers)}")
        fits = []
        for index, (scheduler, its) in enumerate(zip(self._schedulers, saved, strict=True)):
            try:
                fits.append(scheduler._fitted(its))
            except (TypeError, ValueError) as error:
                raise type(error)(f"_schedulers[{index}]: {error}") from None
        return *super()._fitted(state), fits

    def _adopt(self, fitted):
        *fitted, fits = fitted
        for scheduler, fit in zip(self._schedulers, fits, strict=True):
            scheduler._adopt(fit)
        super()._adopt(fitted)


class SequentialLR(Composition):
    """One scheduler after another: at each of `milestones` the next begins from the initial rates.

    Args:
        optimizer: the optimizer of all of them.
        schedulers: schedulers, but not those whose `step` takes a metric.
        milestones: the steps at which the second, the third, ... begins, in order: one fewer than the schedulers.
        last_epoch: -1 begins with the first. Another number goes on in the scheduler that is due then, where torch
            begins with the first scheduler; `load_state_dict` is the better way to go on.

    A SequentialLR or ChainedScheduler inside begins with its own first rates, where torch's is one step ahead or
    raises.

    >>> import numpy as np, fastopt
    >>> from fastopt.lr_scheduler import ExponentialLR, LinearLR, SequentialLR
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> parts = [LinearLR(opt, start_factor=0.5, total_iters=2), ExponentialLR(opt, gamma=0.5)]
    >>> scheduler = SequentialLR(opt, parts, milestones=[2])
    >>> for _ in range(4):
    ...     print(scheduler.get_last_lr())
    ...     opt.step([np.ones(3)])
    ...     scheduler.step()
    [0.5]
    [0.75]
    [1.0]
    [0.5]

    Source: torch.optim.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int],
                 last_epoch: int = -1) -> None:
        whole("last_epoch", last_epoch, -1)
        with all_or_nothing(optimizer) as groups:
            self._take(schedulers, optimizer)
            self._milestones = milestones
            self._bind()
            for group in groups:
                group["lr"] = group["initial_lr"]
            if last_epoch == -1:
                self._begin()
            else:
                self._restart(last_epoch + 1)

    def _bind(self):
        if not hasattr(self._milestones, "__iter__"):
            raise TypeError(f"milestones must be a list of steps, got {self._milestones!r}")
        self._milestones = [whole("milestones", milestone, 0) for milestone in self._milestones]
        if self._milestones != sorted(self._milestones):
            raise ValueError(f"milestones must be in order, got {self._milestones!r}")
        if len(self._milestones) != len(self._schedulers) - 1:
            raise ValueError(f"milestones must be one fewer than the {len(self._schedulers)} schedulers, "
                             f"got {len(self._milestones)}")

    def _due(self, t):
        """The scheduler of this step, and the step at which it begins."""
        index = bisect_right(self._milestones, t)
        return self._schedulers[index], self._milestones[index - 1] if index else 0

    def _done(self, scheduler, t):
        self._last_lr, self.last_epoch = scheduler._last_lr, t

    def _begin(self, t=0):
        scheduler, start = self._due(t)
        scheduler._begin(t - start)
        self._done(scheduler, t)

    def _restart(self, t=0):
        scheduler, start = self._due(t)
        scheduler._restart(t - start)
        self._done(scheduler, t)

    def step(self) -> None:  # type: ignore[override]
        """Sets the rates for the next step of the optimizer. Call it after `optimizer.step()`."""
        t = self.last_epoch + 1
        scheduler, start = self._due(t)
        if t == start:
            scheduler._restart()
        else:
            scheduler.step()
        self._done(scheduler, t)


class ChainedScheduler(Composition):
    """Several schedulers at every step, each on the rates that the one before it left: their factors multiply.

    Args:
        schedulers: schedulers of one optimizer, but not those whose `step` takes a metric.
        optimizer: their optimizer; None takes it from the first.

    >>> import numpy as np, fastopt
    >>> from fastopt.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = ChainedScheduler([ConstantLR(opt, factor=0.5, total_iters=2), ExponentialLR(opt, gamma=0.5)])
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.25]

    Source: torch.optim.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        self._take(schedulers, optimizer)
        self._done()

    def _done(self):
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _begin(self, t=0):
        for scheduler in self._schedulers:
            scheduler._begin(t)
        self._done()

    def _restart(self, t=0):
        first, *others = self._schedulers
        first._restart(t)
        for scheduler in others:
            scheduler._begin(t)
        self._done()

    def step(self) -> None:  # type: ignore[override]
        """Sets the rates for the next step of the optimizer. Call it after `optimizer.step()`."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._done()
