"""LRScheduler: when rates are set, what is saved, how it is loaded. A scheduler adds the rates at a step."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..optimizers.base import Optimizer
from ..optimizers.checks import number
from ..optimizers.settings import is_schedule

DEPRECATED = "the epoch argument of step() is deprecated in torch; call step() without it"


class LRScheduler:
    """Base of the schedulers: sets `group["lr"]` at construction and at every `step()`.

    As in torch, a class of your own defines `get_lr()`, which returns the rate of each group at `last_epoch`.

    Args:
        optimizer: a fastopt optimizer.
        last_epoch: how many steps were made before, less one; -1 for none. To go on, every group must have
            `initial_lr`.

    Attributes:
        base_lrs: the initial rate of each group.
        last_epoch: steps made, 0 after construction.

    Raises:
        TypeError, ValueError, KeyError: an argument is not as said; the optimizer is unchanged.

    `state_dict()` also says which rates the groups had, and `load_state_dict` sets them: in whatever order an
    optimizer and its schedulers are made and loaded, they go on as if they had never stopped. (torch's leaves the
    rate of the last constructor. A state made by torch has only the rate that this one scheduler set last: where
    others changed it too, load the optimizer after the schedulers.)

    >>> import numpy as np, fastopt
    >>> class Halving(fastopt.lr_scheduler.LRScheduler):
    ...     def get_lr(self):
    ...         return [base / 2**self.last_epoch for base in self.base_lrs]
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = Halving(opt)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.5]
    """

    optimizer: Optimizer
    base_lrs: list[float]
    last_epoch: int

    _bound: frozenset[str] = frozenset()  # attributes that _bind makes
    _not_saved: frozenset[str] = frozenset({"optimizer", "_made_at"})  # what else state_dict leaves out
    _not_torchs: frozenset[str] = frozenset()  # what a state of torch does not have

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int) or last_epoch < -1:
            raise ValueError(f"last_epoch must be an integer of at least -1, got {last_epoch!r}")
        with all_or_nothing(optimizer) as groups:
            for index, group in enumerate(groups):
                if last_epoch != -1 and "initial_lr" not in group:
                    raise KeyError(f"initial_lr is missing in group {index}: it is needed to go on from last_epoch")
            self.optimizer = optimizer
            initial = [number("initial_lr", group.setdefault("initial_lr", number("lr", group["lr"])))
                       for group in groups]
            self.base_lrs = vars(self).get("base_lrs", initial)  # some bring their own
            self.last_epoch = last_epoch
            self._made_at, self._step_count = optimizer.step_count, 1
            self._bind()
            if last_epoch == -1:
                self._begin()
            else:
                self._set(last_epoch + 1, self._rates_on_resume(last_epoch + 1))

    # ---- what a scheduler adds

    def get_lr(self) -> list[float]:
        """The rate of each group at `last_epoch`, for `step()` to set; `get_last_lr()` is for everyone else."""
        raise NotImplementedError(f"{type(self).__name__} must define get_lr()")

    def _rates(self, t):
        """The rates after t steps, from the current ones where the scheduler is of that kind."""
        before, self.last_epoch = self.last_epoch, t
        try:
            rates, groups = list(self.get_lr()), len(self.optimizer.param_groups)
            if len(rates) != groups:
                raise ValueError(f"get_lr() must return {groups} rates, one for each group, got {rates!r}")
        except BaseException:
            self.last_epoch = before
            raise
        return rates

    def _rates_from_initial(self, t):
        """The same from the initial rates alone, as torch's closed forms."""
        return self._rates(t)

    def _rates_on_resume(self, t):
        """The rates that the constructor sets where it is given `last_epoch`."""
        return self._rates_from_initial(t)

    def _bind(self):
        """Makes what follows from the attributes, and checks them: called by the constructor and on a new state."""

    def _driven(self, group):
        """The values of a group that this scheduler sets; a group that was just added has no `initial_lr`."""
        return {name: group[name] for name in ("lr", "initial_lr") if name in group}

    def _drive(self, groups):
        """Sets in the groups what was set last; for a state that does not have it."""
        for group, rate in zip(groups, self._last_lr, strict=True):
            group["lr"] = rate

    # ---- steps

    def step(self, epoch: int | None = None) -> None:
        """Sets the rates for the next step of the optimizer. Call it after `optimizer.step()`.

        Args:
            epoch: sets the rates of this many steps instead of one more (deprecated in torch).
        """
        if self._step_count == 1:
            self._check_order()
        if epoch is None:
            t = self.last_epoch + 1
            self._set(t, self._rates(t))
        else:
            warnings.warn(DEPRECATED, UserWarning, stacklevel=2)
            t = whole("epoch", epoch, 0)
            self._set(t, self._rates_from_initial(t))
        self._step_count += 1

    def _check_order(self):
        if self.optimizer.step_count == self._made_at:
            warnings.warn(
                "lr_scheduler.step() was called before optimizer.step(): the first value of the schedule is "
                "skipped. Call optimizer.step() first.",
                UserWarning, stacklevel=3,
            )

    def _set(self, t, rates):
        index = 0  # zip(strict=True) takes 0.3 µs
        for group in self.optimizer.param_groups:
            group["lr"] = rates[index]
            index += 1
        self._last_lr = rates
        self.last_epoch = t

    def _begin(self, t=0):
        """Sets the first rates, t steps on: on what the groups have, as a new scheduler does."""
        self._set(t, self._rates_from_initial(t))

    def _restart(self, t=0):
        """Begins anew, t steps on, from the initial rates, as torch's SequentialLR does at a milestone."""
        self._set(t, self._rates_from_initial(t))

    def _bases(self, groups):
        """The initial rates, also of groups that were added since."""
        for group in groups[len(self.base_lrs):]:
            self.base_lrs.append(group.setdefault("initial_lr", number("lr", group["lr"])))
        return self.base_lrs

    def get_last_lr(self) -> list[float]:
        """The rates that this scheduler set last, one for each group."""
        return list(self._last_lr)

    # ---- states and copies

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in self._bound}

    def __setstate__(self, attributes):
        vars(self).update(attributes)
        self._bind()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer, under torch's names, and the rates that the groups have now."""
        state = {name: copy.copy(vars(self)[name]) for name in self._saved()}
        return {**state, "_groups": [self._driven(group) for group in self.optimizer.param_groups]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` of the same scheduler made, here or in torch, and sets the rates that it has.

        Raises:
            TypeError, ValueError: the state is of other groups, or of another scheduler; nothing was changed.
        """
        self._adopt(self._fitted(state_dict))

    def _saved(self):
        return [name for name in vars(self) if name not in self._bound and name not in self._not_saved]

    def _fitted(self, state):
        """A state as attributes, and the values of the groups if it has them; raises if it does not fit."""
        own = self._saved()
        missing = [name for name in own if name not in state and name not in self._not_torchs]
        if missing:
            raise ValueError(f"state_dict of {type(self).__name__} lacks {', '.join(missing)}")
        groups = len(self.optimizer.param_groups)
        fitted = {name: copy.copy(state[name]) for name in own if name in state}
        for name in ("base_lrs", "_last_lr"):
            if name in fitted:
                fitted[name] = [number(name, rate) for rate in fitted[name]]
                theirs = len(state.get("_groups", fitted[name]))
                if theirs != groups:
                    raise ValueError(f"state_dict is of {theirs} groups, the optimizer has {groups}")
        trial = object.__new__(type(self))
        vars(trial).update(vars(self))
        vars(trial).update(fitted)
        trial._bind()
        return vars(trial), state.get("_groups")

    def _adopt(self, fitted):
        attributes, values = fitted
        vars(self).update(attributes)
        groups = self.optimizer.param_groups
        if values is None:
            self._drive(groups)
            return
        for group, saved in zip(groups, values, strict=True):
            group.pop("initial_lr", None)
            group.update({name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})


class Scheduled(LRScheduler):
    """Base of the schedulers here, whose rates are functions of the step."""

    def get_lr(self) -> list[float]:
        """Warns, as torch does, and returns the rates that were set last: use `get_last_lr()`."""
        warnings.warn("to get the last learning rate of the scheduler, use get_last_lr()", UserWarning, stacklevel=2)
        return self.get_last_lr()


@contextmanager
def all_or_nothing(optimizer: Any) -> Iterator[list[dict[str, Any]]]:
    """Gives the groups of an optimizer that can have a scheduler; they are as before if the block raises."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a fastopt optimizer, got {type(optimizer).__name__}")
    groups = optimizer.param_groups
    for index, group in enumerate(groups):
        if is_schedule(group["lr"]):
            raise ValueError(f"lr of group {index} is a schedule already: it cannot have a scheduler too")
    before = [dict(group) for group in groups]
    try:
        yield groups
    except BaseException:
        for group, values in zip(groups, before, strict=True):
            group.clear()
            group.update(values)
        raise


# ---- arguments

def whole(name, value, least=1):
    if isinstance(value, bool) or not hasattr(type(value), "__index__") or value.__index__() < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value.__index__()


def group_count(optimizer):
    return len(optimizer.param_groups) if isinstance(optimizer, Optimizer) else 0  # the constructor refuses it later


def for_each_group(name, value, optimizer, check=number):
    """One value for all groups, or a list with one for each."""
    groups = group_count(optimizer)
    if not isinstance(value, (list, tuple)):
        return [check(name, value)] * groups
    if isinstance(optimizer, Optimizer) and len(value) != groups:
        raise ValueError(f"{name} must be one number or a list of {groups}, one for each group, got {value!r}")
    return [check(f"{name}[{index}]", part) for index, part in enumerate(value)]


def extended(name, values, groups):
    """The values with those of groups added since, which get what all groups have."""
    if len(values) < groups:
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} was given for {len(values)} groups, the optimizer has {groups} now: "
                             f"make another scheduler")
        values += values[:1] * (groups - len(values))
    return values
