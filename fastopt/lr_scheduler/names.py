"""get_scheduler: schedulers by the names that Hugging Face's transformers gives them."""

import warnings
from collections.abc import Mapping
from functools import partial
from operator import mul
from typing import Any

from .. import schedules
from ..checks import closed_fraction, nonnegative, number, one_of, positive
from ..optimizers.base import Optimizer
from .base import LRScheduler, whole
from .lambdas import LambdaLR
from .metrics import GreedyLR, ReduceLROnPlateau


def get_scheduler(name: str, optimizer: Optimizer, num_warmup_steps: int | None = None,
                  num_training_steps: int | None = None,
                  scheduler_specific_kwargs: Mapping[str, Any] | None = None) -> LRScheduler:
    """Makes a scheduler from its name, as `transformers.get_scheduler` does, with the same values.

    Args:
        name: see below.
        optimizer: a fastopt optimizer.
        num_warmup_steps: how many steps the rate rises from 0, where the schedule has a warm-up.
        num_training_steps: the number of steps of the optimizer, where the schedule has an end.
        scheduler_specific_kwargs: what else the schedule takes; `last_epoch` too.

    - "constant": the initial rate.
    - "constant_with_warmup".
    - "linear": warm-up, then a line to 0.
    - "cosine": warm-up, then `num_cycles` (0.5) waves of a cosine.
    - "cosine_with_restarts": warm-up, then `num_cycles` (1) half cosines to 0.
    - "polynomial": warm-up, then to `lr_end` (1e-7) by a `power` (1).
    - "inverse_sqrt": warm-up, then 1 / sqrt(t) over `timescale` (the warm-up, or 10,000 without one).
    - "cosine_with_min_lr": warm-up, then a cosine to `min_lr`, or to `min_lr_rate` times the initial rate.
    - "cosine_warmup_with_min_lr": the same one step ahead: the first rate is not 0, but `warmup_lr_rate` times the
      initial one, or a warm-up step's.
    - "warmup_stable_decay": `warmup_type` ("linear", "cosine", "1-sqrt"), a plateau of `num_stable_steps` (what is
      left), and a decay of `num_decay_steps`, `decay_type` ("cosine", "linear", "1-sqrt"), between `min_lr_ratio` (0)
      times the initial rate and it.
    - "reduce_lr_on_plateau", "greedy": `ReduceLROnPlateau` and `GreedyLR` with `scheduler_specific_kwargs`.

    Returns:
        A `LambdaLR` over one of `fastopt.schedules`, or a scheduler that a metric drives.

    Raises:
        TypeError, ValueError: an argument is missing, unknown or wrong; the optimizer is unchanged.

    >>> import numpy as np, fastopt
    >>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
    >>> scheduler = fastopt.lr_scheduler.get_scheduler("linear", opt, num_warmup_steps=2, num_training_steps=4)
    >>> for _ in range(4):
    ...     print(scheduler.get_last_lr())
    ...     opt.step([np.ones(3)])
    ...     scheduler.step()
    [0.0]
    [0.5]
    [1.0]
    [0.5]

    Source: Hugging Face transformers.
    """
    if name not in MAKERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, MAKERS))}, got {name!r}")
    make, needs = MAKERS[name]
    given = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    for argument, value in given.items():
        if value is not None:
            given[argument] = whole(argument, value, 0)
        elif argument in needs:
            raise ValueError(f"{name!r} needs {argument}")
    num_warmup_steps, num_training_steps = given.values()
    if None not in given.values() and num_warmup_steps > num_training_steps:  # type: ignore[operator]
        raise ValueError(f"num_warmup_steps must be at most num_training_steps ({num_training_steps!r}), "
                         f"got {num_warmup_steps!r}")
    options = dict(scheduler_specific_kwargs or {})
    if isinstance(make, type):
        return make(optimizer, **options)
    last_epoch = options.pop("last_epoch", -1)
    known = list(inspect_arguments(make))
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name!r} has no argument {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return LambdaLR(optimizer, make(optimizer, num_warmup_steps, num_training_steps, **options), last_epoch)


def inspect_arguments(make):
    """The names of the arguments of a maker beside the first three."""
    return make.__code__.co_varnames[3 : make.__code__.co_argcount]


def length(warmup, total):
    """What is left after the warm-up; transformers too takes one step where nothing is."""
    return max(total - warmup, 1)


def initial_rate(optimizer, reason):
    """The default rate of an optimizer, to which transformers compares a rate."""
    rate = optimizer.defaults.get("lr") if isinstance(optimizer, Optimizer) else 1.0
    if rate is None or callable(rate):
        raise ValueError(f"{reason} needs an optimizer with a number for its default lr")
    return positive("lr", rate)


def least(optimizer, min_lr, min_lr_rate):
    """The smallest factor: one of the two says it."""
    if (min_lr is None) == (min_lr_rate is None):
        raise ValueError(f"one of min_lr and min_lr_rate must be given, got {min_lr!r} and {min_lr_rate!r}")
    if min_lr is None:
        return closed_fraction("min_lr_rate", min_lr_rate)
    return nonnegative("min_lr", min_lr) / initial_rate(optimizer, "min_lr")


def waves(steps, num_cycles, end=0.0):
    return schedules.cosine_annealing_schedule(1.0, steps / (2.0 * positive("num_cycles", num_cycles)), end)


def constant(optimizer, warmup, total):
    return schedules.constant_schedule(1.0)


def constant_with_warmup(optimizer, warmup, total):
    return schedules.warmup(1.0, warmup)


def linear(optimizer, warmup, total):
    return schedules.warmup(schedules.linear_schedule(1.0, 0.0, length(warmup, total)), warmup)


def cosine(optimizer, warmup, total, num_cycles=0.5):
    return schedules.warmup(waves(length(warmup, total), num_cycles), warmup)


def cosine_with_restarts(optimizer, warmup, total, num_cycles=1):
    steps = length(warmup, total)
    # the step times the cycles is a whole number, so that no restart is missed by rounding
    cycles = partial(mul, whole("num_cycles", num_cycles))
    restarts = schedules.compose(schedules.cosine_restarts_schedule(1.0, steps), cycles)
    return schedules.warmup(schedules.join_schedules([restarts, 0.0], [steps]), warmup)


def polynomial(optimizer, warmup, total, lr_end=1e-7, power=1.0):
    rate = initial_rate(optimizer, "polynomial")
    if not 0.0 <= number("lr_end", lr_end) < rate:
        raise ValueError(f"lr_end must be at least 0 and less than lr ({rate!r}), got {lr_end!r}")
    decay = schedules.polynomial_schedule(1.0, lr_end / rate, positive("power", power), length(warmup, total))
    return schedules.warmup(decay, warmup)


def inverse_sqrt(optimizer, warmup, total, timescale=None):
    scale = whole("timescale", timescale or warmup or 10_000)
    return schedules.warmup(schedules.inverse_sqrt_schedule(1.0, scale, shift=scale), warmup)


def cosine_with_min_lr(optimizer, warmup, total, num_cycles=0.5, min_lr=None, min_lr_rate=None):
    decay = waves(length(warmup, total), num_cycles, least(optimizer, min_lr, min_lr_rate))
    return schedules.warmup(decay, warmup)


def cosine_warmup_with_min_lr(optimizer, warmup, total, num_cycles=0.5, min_lr=None, min_lr_rate=None,
                              warmup_lr_rate=None):
    decay = waves(length(warmup, total), num_cycles, least(optimizer, min_lr, min_lr_rate)).shift(-1)
    if warmup == 0:
        return decay
    first = 1.0 / warmup if warmup_lr_rate is None else nonnegative("warmup_lr_rate", warmup_lr_rate)
    rise = schedules.linear_schedule(first, 1.0, warmup - 1) if warmup > 1 else first
    return schedules.join_schedules([rise, decay], [warmup])


def warmup_stable_decay(optimizer, warmup, total, num_decay_steps, num_stable_steps=None, warmup_type="linear",
                        decay_type="cosine", min_lr_ratio=0.0, num_cycles=0.5):
    shape, steps = one_of("linear", "cosine", "1-sqrt"), whole("num_decay_steps", num_decay_steps, 0)
    if num_stable_steps is None:
        if total is None:
            raise ValueError("'warmup_stable_decay' needs num_training_steps or num_stable_steps")
        num_stable_steps = total - warmup - steps
        if num_stable_steps < 0:
            raise ValueError(f"num_training_steps must be at least num_warmup_steps + num_decay_steps "
                             f"({warmup + steps}), got {total!r}")
    elif total is not None:
        warnings.warn("num_stable_steps is given: num_training_steps has no effect", UserWarning, stacklevel=3)
    stable, low = whole("num_stable_steps", num_stable_steps, 0), closed_fraction("min_lr_ratio", min_lr_ratio)
    warmup_shape, decay_shape = shape("warmup_type", warmup_type), shape("decay_type", decay_type)
    if decay_type != "cosine" or num_cycles == 0.5 or steps == 0:
        return schedules.warmup_stable_decay_schedule(low, 1.0, warmup, stable, steps, low, warmup_shape, decay_shape)
    rise = schedules.warmup(1.0, warmup, low, warmup_shape)
    ends = [warmup + stable, warmup + stable + steps]
    return schedules.join_schedules([rise, waves(steps, num_cycles, low), low], ends)


BOTH = "num_warmup_steps", "num_training_steps"
MAKERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "linear": (linear, BOTH),
    "cosine": (cosine, BOTH),
    "cosine_with_restarts": (cosine_with_restarts, BOTH),
    "polynomial": (polynomial, BOTH),
    "constant": (constant, ()),
    "constant_with_warmup": (constant_with_warmup, BOTH[:1]),
    "inverse_sqrt": (inverse_sqrt, BOTH[:1]),
    "reduce_lr_on_plateau": (ReduceLROnPlateau, ()),
    "cosine_with_min_lr": (cosine_with_min_lr, BOTH),
    "cosine_warmup_with_min_lr": (cosine_warmup_with_min_lr, BOTH),
    "warmup_stable_decay": (warmup_stable_decay, BOTH[:1]),
    "greedy": (GreedyLR, ()),
}
