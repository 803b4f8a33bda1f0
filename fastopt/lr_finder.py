"""The learning-rate range test: trains while the rate rises, to find the rates that a model can be trained with.

>>> import numpy as np, fastopt
>>> w = np.array([1.0, 1.0])
>>> opt = fastopt.SGD([w])
>>> curvature = np.array([1.0, 0.1])
>>> def step():
...     loss = (curvature * w**2).sum() / 2
...     opt.step([curvature * w])
...     return loss
>>> found = fastopt.lr_finder.lr_range_test(opt, step, start_lr=1e-4, end_lr=100)
>>> found.stopped
'diverged'
>>> 0.01 < found.valley <= found.steepest < 2.0  # of this loss, gradient descent bears rates up to 2
True
>>> w, opt.step_count
(array([1., 1.]), 0)
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .checks import fraction, number, one_of, positive, real, whole_from
from .interrupts import Interrupts
from .optimizers.base import Optimizer
from .schedules import exponential_decay, linear_schedule

__all__ = ["RangeTest", "lr_range_test"]

WARM_UP = 10  # the first of 10 parts of the rates has no part in the suggestions: its averages are of few losses
END, DIVERGED, NOT_FINITE = "end", "diverged", "not finite"


def lr_range_test(optimizer: Optimizer, step: Callable[[], Any], start_lr: float = 1e-7, end_lr: float = 10.0,
                  num_iter: int = 100, *, mode: str = "exponential", smoothing: float = 0.9,
                  stop_div: float | None = 4.0) -> "RangeTest":
    """Makes training steps with a rising learning rate, records the losses, and undoes the steps.

    The rate of step i, from 0 to n - 1 with n = `num_iter`, and the smoothed loss s of the losses l are::

        exponential:   start_lr (end_lr / start_lr)^(i / (n-1))
        linear:        start_lr + (end_lr - start_lr) i / (n-1)
        s = m / (1 - β^(i+1))  with  m = β m + (1 - β) l  from zero

    Args:
        optimizer: any fastopt optimizer except Rprop, whose rate only sets the first step sizes. Every group gets the
            same rate, even where theirs differ.
        step: a function without arguments that makes one training step with `optimizer` and returns the loss, best on
            fresh data each time. The step may be skipped, by `on_nonfinite` or a `GradScaler`. It must not step a
            scheduler.
        start_lr: the first rate, above 0; small enough that the model learns nothing.
        end_lr: the last rate, above `start_lr`; so large that training diverges.
        num_iter: steps, at least 2.
        mode: `"exponential"` or `"linear"`: how the rate rises.
        smoothing: β, at least 0 and less than 1. 0 does not smooth; the more, the later a change of the loss shows.
        stop_div: ends the test where the smoothed loss exceeds `stop_div` times the lowest one (where that is
            negative: by `stop_div - 1` times its size); above 1. None goes on to the end.

    Returns:
        The rates and losses, suggestions, and a picture: see `RangeTest`.

    Raises:
        TypeError, ValueError: an argument is not as described; `step` did not return a number, did not step the
            optimizer, or changed the learning rate.

    A loss that is not finite ends the test. Afterwards, also when `step` raised or Ctrl-C was pressed, the parameters,
    the state, step counts and hyperparameters of the optimizer, its stages with their averages and counters,
    `last_step` and the gradients given to `accumulate` before are what they were, bit for bit, so that training and
    schedulers go on as if there had been no test; the test holds copies meanwhile. Not undone is what `step` changes
    elsewhere: random generators, the position in a data set, the scale of a `GradScaler`, averages that it updates.

    Source: Smith 2017, arXiv 1506.01186, section 3.3. Arguments as those of fastai's and Lightning's lr_find, which
    smooth with β = 0.98.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a fastopt optimizer, got {type(optimizer).__name__}")
    if optimizer.rate_free:
        raise ValueError(f"a range test of {type(optimizer).__name__} has no meaning: its lr is only where its step "
                         "sizes begin")
    if not callable(step):
        raise TypeError(f"step must be a function that makes a training step and returns the loss, got {step!r}")
    start, end = positive("start_lr", start_lr), positive("end_lr", end_lr)
    if start >= end:
        raise ValueError(f"start_lr must be less than end_lr, got {start_lr!r} and {end_lr!r}")
    count, beta = whole_from(2)("num_iter", num_iter), fraction("smoothing", smoothing)
    most = None if stop_div is None else number("stop_div", stop_div)
    if most is not None and most <= 1:
        raise ValueError(f"stop_div must be above 1 or None, got {stop_div!r}")
    if one_of("exponential", "linear")("mode", mode) == "exponential":
        rate = exponential_decay(start, count - 1, end / start)
    else:
        rate = linear_schedule(start, end, count - 1)

    rates, losses, smoothed, stopped = [], [], [], END
    mean, lowest = 0.0, math.inf
    interrupts = Interrupts()
    with interrupts, Undone(optimizer):
        for i in range(count):
            loss = train(optimizer, lambda: interrupts.call(step), rate(i))
            if not math.isfinite(loss):
                stopped = NOT_FINITE
                break
            mean = beta * mean + (1.0 - beta) * loss
            smooth = mean / (1.0 - beta ** (i + 1))
            rates.append(rate(i))
            losses.append(loss)
            smoothed.append(smooth)
            lowest = min(lowest, smooth)
            if most is not None and smooth - lowest > (most - 1.0) * abs(lowest):
                stopped = DIVERGED
                break
    return RangeTest(np.array(rates), np.array(losses), np.array(smoothed), stopped, mode)


def train(optimizer, step, rate):
    """Makes one step at a rate and returns its loss as a float; raises if it was no step, or at another rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    tried = optimizer._tried()
    loss = real("step must return the loss: it", step())
    if optimizer._tried() == tried:
        raise ValueError("step must make a step of the optimizer; its step count stayed the same")
    for index, group in enumerate(optimizer.param_groups):
        if group["lr"] != rate:
            raise ValueError(f"step changed the learning rate of group {index} from {rate!r} to {group['lr']!r}: "
                             f"leave schedulers out of it")
    return loss


class Undone:
    """A context in which steps of an optimizer are made that are undone at its end; nothing must interrupt its ends."""

    def __init__(self, optimizer):
        self.optimizer, self.engine = optimizer, optimizer._engine
        self.pipeline, self.stages = self.engine.pipeline, None
        self.params, self.groups, self.states, self.left_out = [], [], [], optimizer._left_out

    def __enter__(self):
        self.engine.plan.check_idle()
        self.params = [(param, param.copy()) for param in self.engine.plan.params]
        self.groups = [(group, dict(group)) for group in self.optimizer.param_groups]
        states = [part.get_states() for part in self.engine.parts]
        # the steps change copies of the state, so that the originals need not be written to
        copies = [[(step, scalars, {name: part.method.copied(array) for name, array in arrays.items()})
                   for step, scalars, arrays in states]
                  for part, (states, _) in zip(self.engine.parts, states, strict=True)]
        if self.pipeline is not None:
            self.stages = self.pipeline.snapshot()
            self.pipeline.sums.set_aside()
        self.states = states
        for part, made, (_, count) in zip(self.engine.parts, copies, states, strict=True):
            part.set_states(made, count)
            part.rate_now = True

    def __exit__(self, *_):
        optimizer, engine = self.optimizer, self.engine
        for param, values in self.params:
            param[...] = values
        for group, values in self.groups:
            group.clear()
            group.update(values)
        for part, (states, count) in zip(engine.parts, self.states, strict=True):
            part.rate_now = False
            part.set_states(states, count)
        optimizer._left_out = self.left_out
        if engine.pipeline is not self.pipeline:  # made for an option of step()
            engine.pipeline = self.pipeline
            engine.plan.stage([])
        if self.stages is not None:
            self.pipeline.restore(self.stages)


class RangeTest:
    """What a learning-rate range test found.

    Attributes:
        rates: the learning rate of each step.
        losses: what `step` returned; all are finite.
        smoothed: the smoothed losses.
        stopped: why there were no more steps: `"end"` of the rates, `"diverged"`, or `"not finite"`.
        mode: how the rates rise.

    The suggestions are of the smoothed losses, without the first tenth of the rates, where the average is of too few.
    Each is None where the losses do not fall. They are a place to start, not a final choice: plot the curve.
    """

    def __init__(self, rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, stopped: str, mode: str) -> None:
        self.rates, self.losses, self.smoothed, self.stopped, self.mode = rates, losses, smoothed, stopped, mode

    @property
    def steepest(self) -> float | None:
        """The rate where the smoothed loss falls fastest, over the logarithm of the rate: close to divergence."""
        rates, losses = self._settled()
        if len(losses) < 2:
            return None
        slopes = np.gradient(losses, np.log(rates))
        at = int(slopes.argmin())
        return float(rates[at]) if slopes[at] < 0 else None

    @property
    def minimum(self) -> float | None:
        """A tenth of the rate where the smoothed loss is lowest, at which training is about to diverge."""
        rates, losses = self._settled()
        at = int(losses.argmin()) if len(losses) else 0
        return float(rates[at]) / 10 if at > 0 else None

    @property
    def valley(self) -> float | None:
        """The rate in the middle of the longest sequence of ever lower smoothed losses: a cautious choice.

        Others may lie between those of the sequence; of several that are as long, the first to end counts. fastai's
        default suggestion is this one, up to the rounding of the middle.
        """
        rates, losses = self._settled()
        sequence = longest_fall(losses)
        return float(rates[sequence[len(sequence) // 2]]) if len(sequence) > 1 else None

    @property
    def suggestions(self) -> dict[str, float | None]:
        """All of them by name."""
        return {"valley": self.valley, "steepest": self.steepest, "minimum": self.minimum}

    def _settled(self):
        first = len(self.rates) // WARM_UP
        return self.rates[first:], self.smoothed[first:]

    def plot(self, path: Any) -> None:
        """Draws losses and suggestions over the rates into a file, whose ending says the format (PNG).

        Raises:
            ImportError: matplotlib is missing.
            ValueError: there is nothing to draw: the first loss was not finite.
        """
        if not len(self.losses):
            raise ValueError("there is nothing to draw: the first loss was not finite")
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
        axes = figure.add_subplot(xlabel="learning rate", ylabel="loss")
        axes.plot(self.rates, self.losses, color="0.75", linewidth=1, label="loss")
        axes.plot(self.rates, self.smoothed, color="C0", linewidth=2, label="smoothed")
        for color, (name, rate) in enumerate(self.suggestions.items(), 1):
            if rate is not None:
                axes.plot(rate, np.interp(rate, self.rates, self.smoothed), "o", color=f"C{color}",
                          markersize=15 - 3 * color, label=f"{name}: {rate:.2g}")
        if self.mode == "exponential":
            axes.set_xscale("log")
        # the losses of a diverging end would flatten all others
        low, high = min(self.losses.min(), self.smoothed.min()), self.smoothed[: self.smoothed.argmin() + 1].max()
        if high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path)

    def __repr__(self):
        found = ", ".join(f"{name}={rate if rate is None else format(rate, '.3g')}"
                          for name, rate in self.suggestions.items())
        return f"RangeTest({len(self.rates)} steps, stopped={self.stopped!r}, {found})"


def longest_fall(values):
    """The positions of the longest subsequence in which every value is lower than the one before."""
    lengths, before = np.ones(len(values), int), np.full(len(values), -1)
    for i in range(1, len(values)):
        higher = np.flatnonzero(values[:i] > values[i])
        if len(higher):
            before[i] = higher[lengths[higher].argmax()]
            lengths[i] = lengths[before[i]] + 1
    at = int(lengths.argmax()) if len(values) else -1
    sequence = []
    while at >= 0:
        sequence.append(at)
        at = int(before[at])
    return sequence[::-1]
