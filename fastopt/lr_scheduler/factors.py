"""Schedulers that multiply the current rate: each is a schedule that starts from 1."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .. import schedules
from ..checks import closed_fraction, nonnegative, number, one_of, positive
from ..optimizers.base import Optimizer
from .base import Scheduled, all_or_nothing, for_each_group, whole

UNKNOWN: tuple[int | None, float, list[float], list[float]] = None, 1.0, [], []


class Factor(Scheduled):
    """Base of these: a factor f(t) and a floor, between which and the initial rate f goes.

    The rate of a group after t steps is `base f(t) + floor (1 - f(t))`, in closed form, so nothing drifts. Where
    someone else changed the rate in between (another scheduler, or you), what is above the floor is multiplied by
    `f(t) / f(t - 1)`, as in torch.
    """

    _bound = frozenset({"_factor", "_known"})
    _keeps_rate_on_resume = False  # torch: constructing with last_epoch leaves the rate as it is

    def _schedule(self):
        """f, made from the attributes after checking them."""
        raise NotImplementedError

    def _bind(self):
        self._factor = self._schedule()._value
        self._known = UNKNOWN

    def _floor(self, group):
        return 0.0

    def step(self, epoch: int | None = None) -> None:
        """See `LRScheduler`."""
        t, (step, _, floors, scheduled) = self.last_epoch + 1, self._known
        groups = self.optimizer.param_groups
        if (epoch is None and step == t - 1 and len(groups) == 1 == len(floors) and self._step_count > 1
                and groups[0]["lr"] == scheduled[0]):
            # one group on schedule, the usual case: what follows does the same for 0.2 µs more
            now = self._factor(t)
            rates = [self.base_lrs[0] * now + floors[0] * (1.0 - now)]
            self._known = t, now, floors, rates
            groups[0]["lr"], self._last_lr, self.last_epoch = rates[0], rates, t
            self._step_count += 1
        else:
            super().step(epoch)

    def _rates(self, t):
        groups, bases, now = self.optimizer.param_groups, self.base_lrs, self._factor(t)
        step, before, floors, scheduled = self._known
        if step != t - 1 or len(floors) != len(groups):
            _, before, floors, scheduled = self._recall(t - 1)
        rates, off, left, index = [], False, 1.0 - now, 0
        for group in groups:
            rates.append(bases[index] * now + floors[index] * left)
            if group["lr"] != scheduled[index]:
                off = True
            index += 1
        self._known = t, now, floors, rates
        if not off:
            return rates
        followed, index = [], 0
        for group in groups:
            rate = rates[index]
            if group["lr"] != scheduled[index]:
                rate = self._follow(number("lr", group["lr"]), bases[index], floors[index], before, now)
            followed.append(rate)
            index += 1
        return followed

    def _recall(self, t, before=None):
        """What the step from t on needs: t, f there, the floors, and the rates that are on the schedule."""
        groups = self.optimizer.param_groups
        bases, floors = self._bases(groups), [self._floor(group) for group in groups]
        if before is None:
            before = self._factor(t) if t >= 0 else 1.0
        rates = [base * before + floor * (1.0 - before) for base, floor in zip(bases, floors, strict=True)]
        return t, before, floors, rates

    def _follow(self, current, base, floor, before, now):
        """Goes on from a rate that is not on the schedule."""
        if now == before:
            return current
        if before == 0.0:  # the current rate says nothing of the base: the rise from zero is added to it
            return current + (base - floor) * now
        return floor + (current - floor) * (now / before)

    def _rates_from_initial(self, t):
        return self._recall(t)[-1]

    def _begin(self, t=0):
        self._known = self._recall(t - 1, 1.0)
        self._set(t, self._rates(t))

    def _rates_on_resume(self, t):
        if self._keeps_rate_on_resume:
            return [number("lr", group["lr"]) for group in self.optimizer.param_groups]
        return self._rates(t)


class StepLR(Factor):
    """Multiplies the rate by `gamma` every `step_size` steps: `lr gamma**floor(t / step_size)`.

    Args:
        optimizer: a fastopt optimizer.
        step_size: how many steps each rate lasts.
        gamma: the factor, at least 0.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.5]

    Source: torch.optim; He et al. 2016, arXiv 1512.03385, train so.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        self.step_size, self.gamma = whole("step_size", self.step_size), nonnegative("gamma", self.gamma)
        return schedules.exponential_decay(1.0, self.step_size, self.gamma, staircase=True)


class MultiStepLR(Factor):
    """Multiplies the rate by `gamma` at each of `milestones`: `lr gamma**#{milestones <= t}`.

    Args:
        optimizer: a fastopt optimizer.
        milestones: steps, in any order; one that is named twice counts twice.
        gamma: the factor, at least 0.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.MultiStepLR(opt, milestones=[1, 80], gamma=0.5)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.5]

    Source: torch.optim; He et al. 2016, arXiv 1512.03385, train so.
    """

    milestones: Counter[int]

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1,
                 last_epoch: int = -1) -> None:
        if not hasattr(milestones, "__iter__"):
            raise TypeError(f"milestones must be a sequence of steps, got {milestones!r}")
        if not isinstance(milestones, Mapping):
            milestones = [whole("milestones", at, 0) for at in milestones]
        self.milestones, self.gamma = Counter(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        if not isinstance(self.milestones, Mapping):
            raise TypeError(f"milestones must be a Counter of steps, got {self.milestones!r}")
        counts = {whole("milestones", at, 0): whole(f"milestones[{at!r}]", count)
                  for at, count in self.milestones.items()}
        self.milestones, self.gamma = Counter(counts), nonnegative("gamma", self.gamma)
        return schedules.multistep_schedule(1.0, list(self.milestones.elements()), self.gamma)


class ConstantLR(Factor):
    """The rate times `factor` for the first `total_iters` steps, then the rate itself.

    Args:
        optimizer: a fastopt optimizer.
        factor: from 0 to 1. With 0 the rate returns, where torch divides by zero.
        total_iters: how many steps have the factor.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.ConstantLR(opt, factor=0.5, total_iters=1)
    >>> scheduler.get_last_lr()
    [0.5]
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [1.0]

    Source: torch.optim; Goyal et al. 2017, arXiv 1706.02677: constant warm-up.
    """

    def __init__(self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5,
                 last_epoch: int = -1) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        self.factor = closed_fraction("factor", self.factor)
        self.total_iters = whole("total_iters", self.total_iters)
        return schedules.join_schedules([self.factor, 1.0], [self.total_iters])


class LinearLR(Factor):
    """The rate times a factor that goes in a straight line from `start_factor` to `end_factor` in `total_iters`.

    Args:
        optimizer: a fastopt optimizer.
        start_factor: above 0 and at most 1.
        end_factor: from 0 to 1.
        total_iters: how many steps the line has.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> fastopt.lr_scheduler.LinearLR(opt, start_factor=0.5).get_last_lr()
    [0.5]

    Source: torch.optim; Goyal et al. 2017, arXiv 1706.02677: gradual warm-up.
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
                 total_iters: int = 5, last_epoch: int = -1) -> None:
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        self.start_factor = number("start_factor", self.start_factor)
        if not 0 < self.start_factor <= 1:
            raise ValueError(f"start_factor must be more than 0 and at most 1, got {self.start_factor!r}")
        self.end_factor = closed_fraction("end_factor", self.end_factor)
        self.total_iters = whole("total_iters", self.total_iters)
        return schedules.linear_schedule(self.start_factor, self.end_factor, self.total_iters)


class ExponentialLR(Factor):
    """Multiplies the rate by `gamma` every step: `lr gamma**t`.

    Args:
        optimizer: a fastopt optimizer.
        gamma: the factor, at least 0.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.ExponentialLR(opt, gamma=0.9)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.9]

    Source: torch.optim.
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        self.gamma = nonnegative("gamma", self.gamma)
        return schedules.exponential_decay(1.0, 1, self.gamma)


class PolynomialLR(Factor):
    """The rate times `(1 - t / total_iters)**power`, then 0.

    Args:
        optimizer: a fastopt optimizer.
        total_iters: the number of steps to zero.
        power: above 0; 1 is a straight line.
        last_epoch: see `LRScheduler`.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.PolynomialLR(opt, total_iters=4, power=2.0)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.5625]

    Source: torch.optim; Liu et al. 2015, arXiv 1506.04579: the "poly" policy.
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def _schedule(self):
        self.total_iters, self.power = whole("total_iters", self.total_iters), positive("power", self.power)
        return schedules.polynomial_schedule(1.0, 0.0, self.power, self.total_iters)


class CosineAnnealingLR(Factor):
    """A cosine from the initial rate down to `eta_min` at step `T_max`, and up again after it.

    Args:
        optimizer: a fastopt optimizer.
        T_max: the number of steps down.
        eta_min: the lowest rate, at least 0.
        last_epoch: see `LRScheduler`.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.CosineAnnealingLR(opt, T_max=2, eta_min=0.5)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.75]
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def _floor(self, group):
        return self.eta_min

    def _schedule(self):
        self.T_max, self.eta_min = whole("T_max", self.T_max), nonnegative("eta_min", self.eta_min)
        return schedules.cosine_annealing_schedule(1.0, self.T_max)


class SWALR(Factor):
    """Goes from the rate of the moment to `swa_lr` in `anneal_epochs`, then stays: for weight averaging.

    torch has it in `torch.optim.swa_utils`. Other schedulers may drive the rate until the first `step()`; from
    there this one goes on. With `last_epoch` it goes on in the middle, where torch begins anew.

    Args:
        optimizer: a fastopt optimizer.
        swa_lr: the last rate, or a list with one for each group; the group has it as `swa_lr`.
        anneal_epochs: how many steps it takes; 0 sets `swa_lr` at once.
        anneal_strategy: "cos" or "linear".
        last_epoch: see `LRScheduler`.

    Source: Izmailov et al. 2018, arXiv 1803.05407.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.SWALR(opt, swa_lr=0.5, anneal_epochs=2)
    >>> opt.step([np.ones(3)])
    >>> scheduler.step()
    >>> scheduler.get_last_lr()
    [0.75]
    """

    _keeps_rate_on_resume = True

    def __init__(self, optimizer: Optimizer, swa_lr: float | Sequence[float], anneal_epochs: int = 10,
                 anneal_strategy: str = "cos", last_epoch: int = -1) -> None:
        rates = for_each_group("swa_lr", swa_lr, optimizer, nonnegative)
        self.anneal_epochs, self._anneal_strategy = anneal_epochs, anneal_strategy
        with all_or_nothing(optimizer) as groups:
            for group, rate in zip(groups, rates, strict=True):
                group["swa_lr"] = rate
            super().__init__(optimizer, last_epoch)

    def _floor(self, group):
        if "swa_lr" not in group:
            raise ValueError("a group was added without swa_lr: give it one, or make another SWALR")
        return group["swa_lr"]

    def _schedule(self):
        self.anneal_epochs = whole("anneal_epochs", self.anneal_epochs, 0)
        shape = one_of("cos", "linear")("anneal_strategy", self._anneal_strategy)
        if self.anneal_epochs == 0:
            return schedules.constant_schedule(0.0)
        if shape == "cos":
            return schedules.cosine_decay_schedule(1.0, self.anneal_epochs)
        return schedules.linear_schedule(1.0, 0.0, self.anneal_epochs)

    def step(self, epoch: int | None = None) -> None:
        """See `LRScheduler`."""
        if self._known[2] != [group.get("swa_lr") for group in self.optimizer.param_groups]:
            self._known = UNKNOWN
        super().step(epoch)

    def _follow(self, current, base, floor, before, now):
        return floor if now == 0.0 else super()._follow(current, base, floor, before, now)

    def _rates_from_initial(self, t):
        return self._rates(t)  # torch: it has no closed form, for it begins from the rate of the moment

    def _driven(self, group):
        return {**super()._driven(group), **{name: group[name] for name in ("swa_lr",) if name in group}}

    def _bases(self, groups):
        for group in groups:
            if "swa_lr" not in group:
                raise ValueError("a group was added without swa_lr: give it one, or make another SWALR")
        return super()._bases(groups)
