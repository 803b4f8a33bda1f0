"""Schedulers that set rates anew at every step, whatever they were: restarts, cycles, one cycle."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import schedules
from ..checks import closed_fraction, flag, fraction, nonnegative, one_of, positive
from ..optimizers.base import Optimizer
from ..optimizers.settings import is_schedule
from .base import Scheduled, all_or_nothing, extend, for_each_group, whole
from .lambdas import attributes, fitted_attributes, set_attributes


class CosineAnnealingWarmRestarts(Scheduled):
    """Cosines from the initial rate down to `eta_min`, the first in `T_0` steps, each `T_mult` times as long.

    Args:
        optimizer: a fastopt optimizer.
        T_0: the number of steps until the first restart.
        T_mult: a whole number of at least 1.
        eta_min: the lowest rate, at least 0.
        last_epoch: see `LRScheduler`.

    Attributes:
        T_cur, T_i: the steps since the last restart, and until the next one.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=2)
    >>> for batch in range(3):
    ...     opt.step([np.ones(3)])
    ...     scheduler.step(batch / 2)
    ...     print([round(rate, 6) for rate in scheduler.get_last_lr()])
    [1.0]
    [0.853553]
    [0.5]
    """

    _bound = frozenset({"_wave"})

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0,
                 last_epoch: int = -1) -> None:
        self.T_0, self.T_i, self.T_mult, self.eta_min, self.T_cur = T_0, T_0, T_mult, eta_min, 0
        super().__init__(optimizer, last_epoch)

    def _bind(self):
        self.T_0, self.T_mult = whole("T_0", self.T_0), whole("T_mult", self.T_mult)
        self.eta_min, self.T_i = nonnegative("eta_min", self.eta_min), whole("T_i", self.T_i)
        if nonnegative("T_cur", self.T_cur) > self.T_i:
            raise ValueError(f"T_cur must be at most T_i ({self.T_i}), got {self.T_cur!r}")
        length = self.T_0
        while self.T_mult > 1 and length < self.T_i:
            length *= self.T_mult
        if length != self.T_i:
            raise ValueError(f"T_i must be T_0 ({self.T_0}) times a power of T_mult ({self.T_mult}), got {self.T_i}")
        self._wave = schedules.cosine_annealing_schedule(1.0, self.T_i)._value

    def _place(self, passed, length):
        """Puts a number of steps of a cycle of this length into the cycle that they reach."""
        if passed >= length and self.T_mult == 1:
            passed %= length
        while passed >= length:
            passed, length = passed - length, length * self.T_mult
        if length != self.T_i:
            self._wave = schedules.cosine_annealing_schedule(1.0, length)._value
        self.T_cur, self.T_i = passed, length

    def _rates(self, t):
        groups, bases, f = self.optimizer.param_groups, self.base_lrs, self._wave(self.T_cur)
        if len(bases) != len(groups):
            bases = self._bases(groups)
        rates, low = [], self.eta_min * (1.0 - f)
        for base in bases:
            rates.append(base * f + low)
        return rates

    def _rates_from_initial(self, t):
        self._place(t, self.T_0)
        return self._rates(t)

    def step(self, epoch: float | None = None) -> None:
        """Sets the rates for the next step of the optimizer. Call it after `optimizer.step()`.

        Args:
            epoch: sets the rates of this many steps, a fraction too: `scheduler.step(epoch + batch / batches)`.

        Raises:
            ValueError: epoch is not a number of at least 0.
        """
        if epoch is None:
            t = self.last_epoch + 1
            self._place(self.T_cur + 1, self.T_i)
            self._set(t, self._rates(t))
        else:
            epoch = nonnegative("epoch", epoch)
            self._set(math.floor(epoch), self._rates_from_initial(epoch))


class Cycling(Scheduled):
    """Base of those that drive the momentum too: SGD's `momentum` or the first of Adam's `betas`.

    A momentum goes between `max_momentums`, where the rate is low, and `base_momentums`.
    """

    cycle_momentum: bool
    base_momentums: list[float]
    max_momentums: list[float]

    _bound = frozenset({"_rise", "_risen"})
    _lists = {**Scheduled._lists, "max_lrs": nonnegative, "base_momentums": fraction, "max_momentums": fraction}

    def _bind(self):
        if flag("cycle_momentum", self.cycle_momentum) != ("base_momentums" in vars(self)):
            raise ValueError(f"cycle_momentum is {self.cycle_momentum} in the state_dict and the other here")
        if self.cycle_momentum:
            flag("use_beta1", self.use_beta1)

    def _read_momenta(self, optimizer, cycle_momentum, base_momentum, max_momentum):
        self.cycle_momentum = flag("cycle_momentum", cycle_momentum)
        if not self.cycle_momentum or not isinstance(optimizer, Optimizer):
            return
        for index, group in enumerate(optimizer.param_groups):
            name = momentum_of(group)
            if name is None:
                raise ValueError(f"cycle_momentum needs an optimizer with momentum or betas, group {index} of this "
                                 f"{type(optimizer).__name__} has neither: give cycle_momentum=False")
            if is_schedule(group[name]):
                raise ValueError(f"{name} of group {index} is a schedule already: give cycle_momentum=False")
        self.use_beta1 = all("betas" in group for group in optimizer.param_groups)  # as torch's state has it
        self.base_momentums = for_each_group("base_momentum", base_momentum, optimizer, fraction)
        self.max_momentums = for_each_group("max_momentum", max_momentum, optimizer, fraction)

    def _mark_momenta(self, groups):
        if self.cycle_momentum:
            for group, base, most in zip(groups, self.base_momentums, self.max_momentums, strict=True):
                group["max_momentum"], group["base_momentum"] = most, base

    def _set(self, t, rates):
        """Also sets the momenta, a part `_risen` of the way down, which `_rates` found."""
        groups, cycled, index = self.optimizer.param_groups, self.cycle_momentum, 0
        if cycled:
            x, lowest, highest = self._risen, self.base_momentums, self.max_momentums
            if len(groups) != len(lowest):
                extend(len(groups), base_momentum=lowest, max_momentum=highest)
        for group in groups:  # all in one loop: super()._set() would take 0.1 µs more
            group["lr"] = rates[index]
            if cycled:
                momentum = highest[index] * (1.0 - x) + lowest[index] * x
                if "betas" in group:
                    group["betas"] = momentum, *group["betas"][1:]
                else:
                    group["momentum"] = momentum
            index += 1
        self._last_lr, self.last_epoch = rates, t

    def _driven(self, group):
        driven, name = super()._driven(group), momentum_of(group)
        return {**driven, name: group[name]} if self.cycle_momentum else driven

    def _last_values(self, groups):
        if self.last_epoch < 0:  # torch's are at -1 while their SequentialLR has not begun them
            return [{} for _ in groups]
        self._rates(self.last_epoch)
        values = super()._last_values(groups)
        if self.cycle_momentum:
            x = self._risen
            for its, group, low, high in zip(values, groups, self.base_momentums, self.max_momentums, strict=True):
                momentum = high * (1.0 - x) + low * x
                its |= {"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum}
        return values


def mark_initial(groups, rates):
    for group, rate in zip(groups, rates, strict=True):
        group.setdefault("initial_lr", rate)


def momentum_of(group):
    return "betas" if "betas" in group else "momentum" if "momentum" in group else None


class CyclicLR(Cycling):
    """Triangles between `base_lr` and `max_lr`; the momentum goes the opposite way.

    Args:
        optimizer: a fastopt optimizer.
        base_lr: the lowest rate, or a list with one for each group.
        max_lr: the highest, a number or a list as well.
        step_size_up: the number of steps from the lowest to the highest.
        step_size_down: the number of steps back; None is as many.
        mode: "triangular": all triangles are alike; "triangular2": each is half as high as the last; "exp_range":
            the height is scaled by `gamma**t`.
        gamma: for "exp_range".
        scale_fn: scales the height instead of `mode`: a function of the number of the cycle, from 1, or of the step.
        scale_mode: what `scale_fn` is called with, "cycle" or "iterations".
        cycle_momentum: drives `momentum`, or the first of `betas`, too.
        base_momentum: the lowest momentum, where the rate is highest; a number or a list.
        max_momentum: the highest.
        last_epoch: see `LRScheduler`.

    Raises:
        TypeError, ValueError: also if the optimizer has no momentum to cycle.

    Source: Smith 2017, arXiv 1506.01186.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], momentum=0.9)
    >>> scheduler = fastopt.lr_scheduler.CyclicLR(opt, base_lr=1.0, max_lr=3.0, step_size_up=2)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr(), round(opt.param_groups[0]["momentum"], 6)
    ([2.0], 0.85)
    """

    max_lrs: list[float]
    _scale_fn_custom: Callable[[float], float] | None

    def __init__(self, optimizer: Optimizer, base_lr: float | Sequence[float], max_lr: float | Sequence[float],
                 step_size_up: int = 2000, step_size_down: int | None = None, mode: str = "triangular",
                 gamma: float = 1.0, scale_fn: Callable[[float], float] | None = None, scale_mode: str = "cycle",
                 cycle_momentum: bool = True, base_momentum: float | Sequence[float] = 0.8,
                 max_momentum: float | Sequence[float] = 0.9, last_epoch: int = -1) -> None:
        self.base_lrs = for_each_group("base_lr", base_lr, optimizer, nonnegative)
        self.max_lrs = for_each_group("max_lr", max_lr, optimizer, nonnegative)
        up = whole("step_size_up", step_size_up)
        down = up if step_size_down is None else whole("step_size_down", step_size_down)
        self.total_size, self.step_ratio = float(up + down), up / (up + down)
        self.mode, self.gamma, self.scale_mode, self._scale_fn_custom = mode, gamma, scale_mode, scale_fn
        self._read_momenta(optimizer, cycle_momentum, base_momentum, max_momentum)
        with all_or_nothing(optimizer) as groups:
            if last_epoch == -1:
                for group, rate in zip(groups, self.base_lrs, strict=True):
                    group["lr"] = rate
                self._mark_momenta(groups)
            super().__init__(optimizer, last_epoch)

    def _bind(self):
        super()._bind()
        one_of("cycle", "iterations")("scale_mode", self.scale_mode)
        positive("gamma", self.gamma)
        size, ratio = positive("total_size", self.total_size), closed_fraction("step_ratio", self.step_ratio)
        up, custom = round(ratio * size), self._scale_fn_custom
        down = round(size) - up
        if not 0 < up < round(size) == size or abs(ratio * size - up) > 1e-9 * size:
            raise ValueError("total_size and step_ratio must give whole numbers of steps up and down, "
                             f"got {size!r} and {ratio!r}")
        if custom is None:
            one_of("triangular", "triangular2", "exp_range")("mode", self.mode)
            self.scale_mode = "iterations" if self.mode == "exp_range" else "cycle"
            self._rise = schedules.cyclic_schedule(0.0, 1.0, up, down, self.mode, self.gamma)._value
            return
        if not callable(custom):
            raise TypeError(f"scale_fn must be a function, got {custom!r}")
        triangle = schedules.cyclic_schedule(0.0, 1.0, up, down)
        self._rise = (triangle * Scale(custom, up + down if self.scale_mode == "cycle" else None))._value

    def _rates(self, t):
        groups, lowest, highest = self.optimizer.param_groups, self.base_lrs, self.max_lrs
        if len(groups) != len(lowest):
            extend(len(groups), base_lr=lowest, max_lr=highest)
            mark_initial(groups, lowest)
        x = self._risen = self._rise(t)
        rates, index = [], 0
        for low in lowest:
            rates.append(low * (1.0 - x) + highest[index] * x)
            index += 1
        return rates

    def state_dict(self) -> dict[str, Any]:
        """See `LRScheduler`; of a `scale_fn` the attributes, or None."""
        return {**super().state_dict(), "_scale_fn_custom": attributes(self._scale_fn_custom)}

    def _fitted(self, state):
        if not isinstance(state, Mapping) or "_scale_fn_custom" not in state:
            raise ValueError(f"state_dict of {type(self).__name__} lacks _scale_fn_custom")
        saved = fitted_attributes("_scale_fn_custom", state["_scale_fn_custom"], self._scale_fn_custom)
        return *super()._fitted({**state, "_scale_fn_custom": self._scale_fn_custom}), saved

    def _adopt(self, fitted):
        *fitted, saved = fitted
        super()._adopt(fitted)
        set_attributes(self._scale_fn_custom, saved)


class Scale:
    """A `scale_fn` as a function of the step."""

    def __init__(self, function, period):
        self.function, self.period = function, period

    def __call__(self, t):
        return self.function(t if self.period is None else 1 + t // self.period)


class OneCycleLR(Cycling):
    """Up to `max_lr` and far down in one cycle; the momentum goes the opposite way.

    In two phases the rate goes from `max_lr / div_factor` to `max_lr` at step `pct_start total_steps - 1`, and to
    `max_lr / div_factor / final_div_factor` at `total_steps - 1`. Three phases come back to the first rate at
    `2 pct_start total_steps - 2` before.

    Args:
        optimizer: a fastopt optimizer.
        max_lr: the highest rate, or a list with one for each group.
        total_steps: the number of steps of the optimizer.
        epochs, steps_per_epoch: their product serves in its place.
        pct_start: the part of the steps in which the rate rises; at most 0.5 in three phases.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: drives `momentum`, or the first of `betas`, too.
        base_momentum: the lowest momentum, where the rate is highest; a number or a list.
        max_momentum: the highest.
        div_factor: the highest rate over the first.
        final_div_factor: the first rate over the last.
        three_phase: back to the first rate in as many steps as it rose, before the last phase.
        last_epoch: see `LRScheduler`.

    Raises:
        TypeError, ValueError: also if the optimizer has no momentum to cycle. `step()` after `total_steps` raises
            ValueError and changes nothing. The step that is one too many leaves the last rate, where torch goes
            beyond it, below zero if linear.

    Source: Smith and Topin 2018, arXiv 1708.07120.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.Adam([np.zeros(3)])
    >>> scheduler = fastopt.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=20, pct_start=0.1)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr(), opt.param_groups[0]["betas"]
    ([0.1], (0.85, 0.999))
    """

    max_lrs: list[float]

    _bound = Cycling._bound | {"_wave"}
    _only_torchs = Cycling._only_torchs | {"_schedule_phases"}
    _not_torchs = frozenset({"max_lrs", "base_momentums", "max_momentums", "div_factor", "final_div_factor",
                             "pct_start", "three_phase"})

    def __init__(self, optimizer: Optimizer, max_lr: float | Sequence[float], total_steps: int | None = None,
                 epochs: int | None = None, steps_per_epoch: int | None = None, pct_start: float = 0.3,
                 anneal_strategy: str = "cos", cycle_momentum: bool = True,
                 base_momentum: float | Sequence[float] = 0.85, max_momentum: float | Sequence[float] = 0.95,
                 div_factor: float = 25.0, final_div_factor: float = 1e4, three_phase: bool = False,
                 last_epoch: int = -1) -> None:
        self.max_lrs = for_each_group("max_lr", max_lr, optimizer, nonnegative)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("total_steps must be given, or epochs and steps_per_epoch")
            total_steps = whole("epochs", epochs) * whole("steps_per_epoch", steps_per_epoch)
        self.total_steps, self.pct_start, self._anneal_func_type = total_steps, pct_start, anneal_strategy
        self.div_factor, self.final_div_factor, self.three_phase = div_factor, final_div_factor, three_phase
        self._read_momenta(optimizer, cycle_momentum, base_momentum, max_momentum)
        first, last = positive("div_factor", div_factor), positive("final_div_factor", final_div_factor)
        self.base_lrs = [rate / first for rate in self.max_lrs]
        with all_or_nothing(optimizer) as groups:
            if last_epoch == -1:
                for group, base, most in zip(groups, self.base_lrs, self.max_lrs, strict=True):
                    group["initial_lr"], group["max_lr"], group["min_lr"] = base, most, base / last
                self._mark_momenta(groups)
            super().__init__(optimizer, last_epoch)

    def _bind(self):
        super()._bind()
        one_of("cos", "linear")("anneal_strategy", self._anneal_func_type)
        self.total_steps = whole("total_steps", self.total_steps)
        if self.last_epoch > self.total_steps:
            raise ValueError(f"last_epoch must be at most total_steps, which is {self.total_steps}, "
                             f"got {self.last_epoch}")
        self.pct_start = closed_fraction("pct_start", self.pct_start)
        if flag("three_phase", self.three_phase) and self.pct_start > 0.5:
            raise ValueError(f"pct_start must be at most 0.5 in three phases, got {self.pct_start!r}")
        shape = self.total_steps, self.pct_start, self._anneal_func_type
        factors = positive("div_factor", self.div_factor), positive("final_div_factor", self.final_div_factor)
        self._wave = schedules.onecycle_schedule(1.0, *shape, *factors, self.three_phase)._value
        # from next to nothing up to 1 and back
        self._rise = schedules.onecycle_schedule(1.0, *shape, 1e300, 1.0, self.three_phase)._value

    def _rates(self, t):
        if t > self.total_steps:
            raise ValueError(f"step() was called {t} times, more than total_steps, which is {self.total_steps}")
        groups, highest, f = self.optimizer.param_groups, self.max_lrs, self._wave(t)
        if len(groups) != len(highest):
            extend(len(groups), max_lr=highest, base_lr=self.base_lrs)
            mark_initial(groups, self.base_lrs)
        if self.cycle_momentum:
            self._risen = self._rise(t)
        rates = []
        for high in highest:
            rates.append(high * f)
        return rates
