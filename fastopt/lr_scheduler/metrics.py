"""Schedulers that a metric drives: ReduceLROnPlateau, down, and GreedyLR, up and down."""

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import flag, nonnegative, number, one_of, real
from ..optimizers.base import Optimizer
from .base import DEPRECATED, Scheduled, all_or_nothing, extend, for_each_group, listed, whole


class Metric(Scheduled):
    """Tracks the best value of a metric, and the number of steps since."""

    mode: str
    threshold: float
    threshold_mode: str
    best: float

    _counts = {"last_epoch": 0, "cooldown_counter": 0, "num_bad_epochs": 0}
    _lists = {"_last_lr": number, "min_lrs": nonnegative, "max_lrs": nonnegative, "_init_lrs": nonnegative}

    def _start(self, optimizer):
        with all_or_nothing(optimizer) as groups:
            self._last_lr = [number("lr", group["lr"]) for group in groups]
            self.optimizer = optimizer
            self.last_epoch = 0
            self._bind()

    def _bind(self):
        one_of("min", "max")("mode", self.mode)
        one_of("rel", "abs")("threshold_mode", self.threshold_mode)
        self.threshold = nonnegative("threshold", self.threshold)
        self.factor = number("factor", self.factor)
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"factor must be more than 0 and less than 1, got {self.factor!r}")
        self.patience, self.cooldown = whole("patience", self.patience, 0), whole("cooldown", self.cooldown, 0)
        self.eps = nonnegative("eps", self.eps)
        self.best = real("best", self.best)
        if math.isnan(self.best):  # a metric that is NaN is never the best
            raise ValueError("best must be a number, got nan")

    def _worst(self):
        return math.inf if self.mode == "min" else -math.inf

    def _is_better(self, metric):
        """Whether a metric is beyond the best by the threshold: by more than nothing, whatever the sign of the best."""
        sign, best = -1.0 if self.mode == "min" else 1.0, self.best
        if math.isinf(best):  # there was none yet
            bound = best
        elif self.threshold_mode == "rel":
            bound = best * (1.0 + (sign if best > 0.0 else -sign) * self.threshold)
        else:
            bound = best + sign * self.threshold
        return sign * metric > sign * bound

    def _count(self, metrics, epoch):
        """Checks the metric and counts the step."""
        metric = real("metrics", metrics)
        if epoch is None:
            epoch = self.last_epoch + 1
        else:
            warnings.warn(DEPRECATED, UserWarning, stacklevel=3)
        self.last_epoch = whole("epoch", epoch, 0)
        return metric

    def _note(self):
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class ReduceLROnPlateau(Metric):
    """Multiplies the rate by `factor` when a metric has not become better for more than `patience` steps.

    Args:
        optimizer: a fastopt optimizer.
        mode: "min": less is better; "max": more.
        factor: above 0 and below 1.
        patience: how many steps without a better metric are allowed.
        threshold: by how much a metric must be better than the best to count; the first always does.
        threshold_mode: "rel": by that part of the best's size, which is above 0 for a best below 0 too (where torch
            counts what is worse as better); "abs": by that much.
        cooldown: how many steps after a reduction do not count.
        min_lr: the lowest rate, or a list with one for each group.
        eps: a reduction by no more than this is not made.

    Attributes:
        best, num_bad_epochs, cooldown_counter: the best metric, the steps since, the steps still not counted.

    A metric that is not a number is not better, as in torch.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     scheduler.step(loss)
    >>> scheduler.get_last_lr()
    [0.5]

    Source: torch.optim.
    """

    def __init__(self, optimizer: Optimizer, mode: str = "min", factor: float = 0.1, patience: int = 10,
                 threshold: float = 1e-4, threshold_mode: str = "rel", cooldown: int = 0,
                 min_lr: float | Sequence[float] = 0.0, eps: float = 1e-8) -> None:
        self.mode, self.factor, self.patience, self.cooldown, self.eps = mode, factor, patience, cooldown, eps
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.min_lrs = for_each_group("min_lr", min_lr, optimizer, nonnegative)
        self.default_min_lr = None if isinstance(min_lr, (list, tuple)) else nonnegative("min_lr", min_lr)
        self.cooldown_counter = self.num_bad_epochs = 0
        self.best = self.mode_worse = self._worst()
        self._start(optimizer)

    def _bind(self):
        super()._bind()
        if self.default_min_lr is not None:
            self.default_min_lr = nonnegative("default_min_lr", self.default_min_lr)
        if real("mode_worse", self.mode_worse) != self._worst():
            raise ValueError(f"mode_worse must be {self._worst()!r} for mode {self.mode!r}, got {self.mode_worse!r}")

    def step(self, metrics: float, epoch: int | None = None) -> None:  # type: ignore[override]
        """Takes a metric into account. Call it after `optimizer.step()`, as often as there is one.

        Args:
            metrics: a number.
            epoch: the number of this step (deprecated in torch).
        """
        least = self.min_lrs
        extend(len(self.optimizer.param_groups), min_lr=least)
        metric = self._count(metrics, epoch)
        if self._is_better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, low in zip(self.optimizer.param_groups, least, strict=True):
                rate = max(group["lr"] * self.factor, low)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._note()

    @property
    def in_cooldown(self) -> bool:
        """Whether steps do not count now."""
        return self.cooldown_counter > 0


class GreedyLR(Metric):
    """Divides the rate by `factor` while a metric becomes better, and multiplies it while it does not.

    After more than `patience` better steps in a row the rate is `min(lr / factor, max_lr)`; after as many that are
    not better, `max(lr factor, min_lr)`. When that was called for `reset_start` times with all rates at `min_lr`,
    all begins anew from the initial rates.

    Args:
        optimizer: a fastopt optimizer.
        mode: "min": less is better; "max": more.
        factor: above 0 and below 1.
        patience: how many steps in a row do not change the rate yet.
        threshold: by how much a metric must be better than the best to count; the first always does.
        threshold_mode: "rel": by that part of the best's size, which is above 0 for a best below 0 too (where torch
            counts what is worse as better); "abs": by that much.
        cooldown: how many steps after a decrease do not count.
        warmup: how many steps after an increase do not count.
        min_lr: the lowest rate, or a list with one for each group.
        max_lr: the highest rate, a number or a list as well.
        eps: a change by no more than this is not made.
        verbose: prints each change.
        smooth: takes the mean of the last `window_size` metrics for the metric.
        window_size: for `smooth`.
        reset_start: how many decreases at `min_lr` begin anew.

    As "greedy" in Hugging Face's transformers, whose state it reads and writes.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=0.1)
    >>> scheduler = fastopt.lr_scheduler.GreedyLR(opt, factor=0.5, patience=1)
    >>> for loss in [3.0, 2.0]:
    ...     scheduler.step(loss)
    >>> scheduler.get_last_lr()
    [0.2]

    Source: arXiv 2512.14527.
    """

    _not_saved = Metric._not_saved | {"_window"}
    _only_torchs = Metric._only_torchs | {"_streaming_avg"}
    _counts = {**Metric._counts, "num_good_epochs": 0, "warmup_counter": 0, "reset_start": 0}

    def __init__(self, optimizer: Optimizer, mode: str = "min", factor: float = 0.95, patience: int = 10,
                 threshold: float = 1e-6, threshold_mode: str = "abs", cooldown: int = 0, warmup: int = 0,
                 min_lr: float | Sequence[float] = 1e-3, max_lr: float | Sequence[float] = 1.0, eps: float = 1e-8,
                 verbose: bool = False, smooth: bool = False, window_size: int = 50, reset_start: int = 500) -> None:
        self.mode, self.factor, self.patience, self.cooldown, self.eps = mode, factor, patience, cooldown, eps
        self.threshold, self.threshold_mode, self.warmup, self.verbose = threshold, threshold_mode, warmup, verbose
        self.smooth, self.window_size, self.reset_start_original = smooth, window_size, reset_start
        self.min_lrs = for_each_group("min_lr", min_lr, optimizer, nonnegative)
        self.max_lrs = for_each_group("max_lr", max_lr, optimizer, nonnegative)
        self._window: deque[float] = deque()
        self._forget()
        self._start(optimizer)
        self._init_lrs = list(self._last_lr)

    def _bind(self):
        super()._bind()
        flag("smooth", self.smooth), flag("verbose", self.verbose)
        self.warmup, self.window_size = whole("warmup", self.warmup, 0), whole("window_size", self.window_size)
        self.reset_start_original = whole("reset_start", self.reset_start_original, 0)

    def _forget(self):
        self.best = self._worst()
        self.num_bad_epochs = self.num_good_epochs = self.cooldown_counter = self.warmup_counter = 0
        self.reset_start = self.reset_start_original
        self._window.clear()

    def step(self, metrics: float, epoch: int | None = None) -> None:  # type: ignore[override]
        """Takes a metric into account. Call it after `optimizer.step()`, as often as there is one.

        Args:
            metrics: a number.
            epoch: the number of this step (deprecated in torch).
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(self._init_lrs):
            extend(len(groups), min_lr=self.min_lrs, max_lr=self.max_lrs)
            self._init_lrs += [number("lr", group["lr"]) for group in groups[len(self._init_lrs):]]
        metric = self._count(metrics, epoch)
        if self.smooth:
            self._window.append(metric)
            if len(self._window) > self.window_size:
                self._window.popleft()
            metric = mean(self._window)
        if self.cooldown_counter > 0 or self.warmup_counter > 0:
            if self.cooldown_counter > 0:
                self.cooldown_counter -= 1
            else:
                self.warmup_counter -= 1
            self.num_bad_epochs = self.num_good_epochs = 0
        elif self._is_better(metric):
            self.best, self.num_bad_epochs, self.num_good_epochs = metric, 0, self.num_good_epochs + 1
        else:
            self.num_bad_epochs, self.num_good_epochs = self.num_bad_epochs + 1, 0
        if self.num_good_epochs > self.patience:
            self._move(1.0, [min(group["lr"] / self.factor, high)
                             for group, high in zip(groups, self.max_lrs, strict=True)])
            self.warmup_counter, self.num_good_epochs, self.reset_start = self.warmup, 0, self.reset_start_original
        elif self.num_bad_epochs > self.patience:
            self._move(-1.0, [max(group["lr"] * self.factor, low)
                              for group, low in zip(groups, self.min_lrs, strict=True)])
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            if all(group["lr"] <= low for group, low in zip(groups, self.min_lrs, strict=True)):
                self._wait_at_the_bottom(groups)
        self._note()

    def _move(self, sign, rates):
        for index, (group, rate) in enumerate(zip(self.optimizer.param_groups, rates, strict=True)):
            if sign * (rate - group["lr"]) > self.eps:
                group["lr"] = rate
                if self.verbose:
                    print(f"step {self.last_epoch}: the learning rate of group {index} is {rate:.4e}")

    def _wait_at_the_bottom(self, groups):
        self.reset_start -= 1
        if self.reset_start > 0:
            return
        for group, rate in zip(groups, self._init_lrs, strict=True):
            group["lr"] = rate
        self._forget()
        if self.verbose:
            print(f"step {self.last_epoch}: all begins anew")

    def state_dict(self) -> dict[str, Any]:
        """See `LRScheduler`; with `smooth` also the last metrics."""
        state = super().state_dict()
        if self.smooth:
            values = list(self._window)
            state["_streaming_avg"] = {"window_size": self.window_size, "values": values, "sum": total(values)}
        return state

    def _fitted(self, state):
        fitted = super()._fitted(state)
        if not fitted[0]["smooth"]:
            if "_streaming_avg" in state:
                raise ValueError("state_dict of GreedyLR has _streaming_avg, but smooth is False")
            return *fitted, deque()
        saved = state.get("_streaming_avg")
        if not isinstance(saved, Mapping) or set(saved) != {"window_size", "values", "sum"}:
            raise ValueError(f"_streaming_avg must be a dict of window_size, values and sum where smooth is True, "
                             f"got {saved!r}")
        real("_streaming_avg: sum", saved["sum"])
        values = [real(f"_streaming_avg: values[{index}]", value)
                  for index, value in enumerate(listed("_streaming_avg: values", saved["values"]))]
        size = whole("_streaming_avg: window_size", saved["window_size"])
        if size != fitted[0]["window_size"] or len(values) > size:
            raise ValueError(f"_streaming_avg has a window_size of {size} and {len(values)} values, window_size is "
                             f"{fitted[0]['window_size']}")
        return *fitted, deque(values)

    def _adopt(self, fitted):
        *fitted, window = fitted
        super()._adopt(fitted)
        self._window = window


def total(values):
    """The sum, rounded once; where it is beyond a float or has infinities in it, as they are added."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def mean(values):
    result = total(values) / len(values)
    return result if math.isfinite(result) else sum(value / len(values) for value in values)
