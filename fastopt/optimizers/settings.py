"""Values of hyperparameters: numbers, and schedules in their place."""

from collections.abc import Callable

import numpy as np

Rate = float | Callable[[int], float]  # a number, or a schedule
Rates = tuple[Rate, Rate] | Callable[[int], tuple[float, float]]

# Keys that schedulers put into a group, and options of torch that have no meaning here.
KEPT = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "name"})
TORCH_ONLY = frozenset({"foreach", "fused", "capturable", "differentiable"})
# Options that torch lacks: a checkpoint may lack them, and what was set here stays.
NOT_TORCHS = frozenset({"eps_mode", "momentum_mode"})


def is_schedule(value):
    return callable(value) or (isinstance(value, (tuple, list)) and any(map(callable, value)))


def at(value, count):
    """The value of a hyperparameter after `count` steps: schedules are called, all else is as it is."""
    if callable(value):
        return value(count)
    if isinstance(value, (tuple, list)):
        return tuple(at(part, count) for part in value)
    return value


def lasts(value):
    """Whether a hyperparameter is what it is for as long as it is the same object: no list, array or schedule."""
    if isinstance(value, tuple):
        return all(map(lasts, value))
    return value is None or isinstance(value, (int, float, str, np.generic))


def plain(value):
    """A hyperparameter from a checkpoint: a one-element tensor or array becomes a number, a list a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if hasattr(value, "mask"):
        raise TypeError("a masked array cannot be a hyperparameter")
    return value.item() if hasattr(value, "item") else value
