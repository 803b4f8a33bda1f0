"""LRScheduler: when rates are set, what is saved, how it is loaded. A scheduler adds the rates at a step."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..checks import fraction, integer, nonnegative, number, shown
from ..interrupts import uninterrupted
from ..optimizers.base import Optimizer
from ..optimizers.settings import is_schedule

TORCHS = frozenset({"_is_initial", "_get_lr_called_within_step"})  # in every state of torch but those of compositions
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
    _only_torchs: frozenset[str] = TORCHS | {"verbose"}  # what it may have beside, without a meaning here
    _numbered = "base_lrs"  # has an entry for each group that has initial_lr
    _counts: Mapping[str, int] = {"last_epoch": -1, "_step_count": 0}  # whole numbers of a state, and the least of each
    _lists: Mapping[str, Any] = {"base_lrs": nonnegative, "_last_lr": number}  # with one for each group, and its check

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        last_epoch = whole("last_epoch", last_epoch, -1)
        with all_or_nothing(optimizer) as groups:
            for index, group in enumerate(groups):
                if last_epoch != -1 and "initial_lr" not in group:
                    raise KeyError(f"initial_lr is missing in group {index}: it is needed to go on from last_epoch")
            self.optimizer = optimizer
            initial = [number("initial_lr", group.setdefault("initial_lr", number("lr", group["lr"])))
                       for group in groups]
            self.base_lrs = vars(self).get("base_lrs", initial)  # some bring their own
            self.last_epoch = last_epoch
            self._made_at, self._step_count = optimizer._tried(), 1
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
        """Checks the attributes and derives others from them; called by the constructor and for a new state."""

    def _driven(self, group):
        """The values of a group that this scheduler sets; a group that was just added has no `initial_lr`."""
        return {name: group[name] for name in ("lr", "initial_lr") if name in group}

    def _last_values(self, groups):
        """The values of the groups that were set last; for a state that does not have them."""
        return [{"lr": rate} for rate in self._last_lr]

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
        if self.optimizer._tried() == self._made_at:  # a step that was skipped was called too
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
        """Everything but the optimizer, under torch's names, the rates that the groups have now, and the class."""
        state = {name: copy.copy(vars(self)[name]) for name in self._saved()}
        driven = [self._driven(group) for group in self.optimizer.param_groups]
        return {**state, "_groups": driven, "_class": self._class()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` of the same scheduler made, here or in torch, and sets the rates that it has.

        Raises:
            TypeError, ValueError: the state is of other groups or of another scheduler, has no entry of some name or
                one that is not known, or an entry cannot be; nothing was changed.
        """
        fitted = self._fitted(state_dict)
        with uninterrupted():
            self._adopt(fitted)

    def _saved(self):
        return [name for name in vars(self) if name not in self._bound and name not in self._not_saved]

    @classmethod
    def _class(cls):
        """The scheduler that a state is of; a class of the user's may be renamed."""
        return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("fastopt."))

    def _is_ours(self, state):
        """Whether a state was made here, and not by torch, whose states hold what the constructor was given."""
        return ("_groups" in state or "_class" in state) and not TORCHS & set(state)

    def _fitted(self, state):
        """A state as attributes, and the values of the groups; raises if it does not fit."""
        name, own = type(self).__name__, self._saved()
        if not isinstance(state, Mapping):
            raise TypeError(f"state_dict of {name} must be a dict, got {type(state).__name__}")
        ours, groups = self._is_ours(state), self.optimizer.param_groups
        wanted = [*own, "_groups", "_class"] if ours else [key for key in own if key not in self._not_torchs]
        missing = [key for key in wanted if key not in state]
        if missing:
            raise ValueError(f"state_dict of {name} lacks {', '.join(missing)}")
        unknown = [key for key in state if key not in {*own, *self._only_torchs, "_groups", "_class"}]
        if unknown:
            raise ValueError(f"state_dict of {name} has {', '.join(map(str, unknown))}, which it does not know")
        if ours and state["_class"] != self._class():
            raise ValueError(f"state_dict is of {state['_class']}, not of {self._class()}: see _class")
        fitted = {key: copy.copy(state[key]) for key in own if key in state}
        for key, least in self._counts.items():
            if key in fitted:
                fitted[key] = whole(key, fitted[key], least)
        theirs = len(listed("_groups", state["_groups"])) if ours else None
        if theirs not in (None, len(groups)):
            raise ValueError(f"state_dict is of {theirs} groups, the optimizer has {len(groups)}: see _groups")
        for key, check in self._lists.items():
            if key in fitted:
                fitted[key] = [check(f"{key}[{i}]", each) for i, each in enumerate(listed(key, fitted[key]))]
                count = len(fitted[key])
                if not ours and count != len(groups):
                    raise ValueError(f"state_dict is of {count} groups, the optimizer has {len(groups)}: see {key}")
                if not 0 < count <= len(groups):  # fewer than groups: some were added since
                    raise ValueError(f"{key} has {count} numbers for {len(groups)} groups")
        lengths = {key: len(fitted[key]) for key in self._lists if key in fitted}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"state_dict of {name} has lists of different lengths: {lengths}")
        trial = object.__new__(type(self))
        vars(trial).update(vars(self))
        vars(trial).update(fitted)
        trial._bind()
        values = self._fitted_groups(state["_groups"], fitted) if ours else trial._last_values(groups)
        return vars(trial), values, ours

    def _fitted_groups(self, saved, fitted):
        """The values of the groups that a state has, checked."""
        groups, known, result = self.optimizer.param_groups, len(fitted.get(self._numbered, ())), []
        for index, (group, values) in enumerate(zip(groups, saved, strict=True)):
            label, driven = f"_groups[{index}]", self._driven(group)
            if not isinstance(values, Mapping):
                raise TypeError(f"{label} must be a dict, got {type(values).__name__}")
            late = ("initial_lr", "swa_lr") if index >= known else ()  # a group that was just added has none yet
            missing = [name for name in driven if name not in values and name not in late]
            unknown = [name for name in values if name not in {*driven, "initial_lr"}]
            if missing:
                raise ValueError(f"{label} of state_dict lacks {missing[0]}")
            if unknown:
                raise ValueError(f"{label} of state_dict has {unknown[0]}, which {type(self).__name__} does not set")
            result.append({name: driven_value(f"{label}: {name}", value, group.get(name))
                           for name, value in values.items()})
        return result

    def _adopt(self, fitted):
        attributes, values, ours = fitted
        vars(self).update(attributes)
        for group, saved in zip(self.optimizer.param_groups, values, strict=True):
            if ours:
                group.pop("initial_lr", None)
            group.update(saved)


def driven_value(name, value, like):
    """A value of a group from a state: a rate, a momentum, or betas."""
    if not isinstance(like, (list, tuple)):
        return (fraction if name.endswith(" momentum") else nonnegative)(name, value)
    if len(listed(name, value)) != len(like):
        raise ValueError(f"{name} must be {len(like)} numbers, got {value!r}")
    return tuple(fraction(f"{name}[{index}]", part) for index, part in enumerate(value))


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

def listed(name, value):
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {shown(value)}")
    return value


def whole(name, value, least=1):
    given = integer(value)
    if given is None or given < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {shown(value)}")
    number(name, given)  # schedules compute in double
    return given


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


def extend(groups, **lists):
    """Gives groups added since what all groups have; raises before it does where they differ."""
    for name, values in lists.items():
        if len(values) < groups and any(value != values[0] for value in values):
            raise ValueError(f"{name} was given for {len(values)} groups, the optimizer has {groups} now: "
                             f"make another scheduler")
    for values in lists.values():
        values += values[:1] * (groups - len(values))
