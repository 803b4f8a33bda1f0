"""The state of one parameter, live, and the checks of state that comes from outside."""

import itertools
from collections.abc import MutableMapping
from contextlib import contextmanager

import numpy as np

from ..kernels.arrays import aligned

MOST_STEPS = 2**62  # far below where the counter of a plan ends


class Whole:
    """The last part of a copy or pickle: raises if the optimizer was stepped or changed since it was begun."""

    def __init__(self, plan=None):
        self.plan, self.turns = plan, plan and plan.turns

    def __reduce__(self):
        if self.plan is not None and (self.plan.held or self.plan.turns != self.turns):
            raise RuntimeError("this optimizer is in use: it was stepped or changed by another thread while it was "
                               "copied; copy it between its steps")
        return Whole, ()


class ParameterState(MutableMapping):
    """The state of one parameter: its step count and its state arrays, live.

    Assigning copies into the state. Keys are those of torch.optim.
    """

    __slots__ = ("_arrays", "_engine", "_method", "_position")

    def __init__(self, engine, position):
        self._engine, self._position = engine, position
        self._arrays, self._method = engine.arrays[position], engine.method_of(position)

    def _has_step(self):
        return self._method.counts_steps and self._engine.plan.get_step(self._position) > 0

    def _scalars(self):
        values = self._engine.plan.get_scalars(self._position)
        return dict(zip(self._method.scalar_slots, values, strict=True))

    def __getitem__(self, key):
        if key == "step" and self._has_step():
            return self._engine.plan.get_step(self._position)
        if key in self._method.scalar_slots:
            return self._scalars()[key]
        self._engine.touched.pop(self._position, None)  # who has the array may write to it
        return self._arrays[key]

    def __setitem__(self, key, value):
        self._engine.plan.during(self._set, key, value)

    def _set(self, key, value=None):
        if key == "step" and self._method.counts_steps:
            self._engine.plan.set_step(self._position, step_count(value))
        elif key in self._method.scalar_slots:
            scalars = self._scalars() | {key: float(value)}
            self._engine.plan.set_scalars(self._position, tuple(scalars.values()))
        elif key in self._arrays:
            self._engine.touched.pop(self._position, None)
            label = self._engine.plan.label(self._position)
            self._arrays[key][...] = same_shape(value, self._arrays[key], key, label)
        else:
            raise KeyError(f"{key!r}; this state has {list(self)}")

    def __delitem__(self, key):
        raise TypeError("a single entry of a state cannot be deleted; see Optimizer.reset_state()")

    def __iter__(self):
        return itertools.chain(("step",) if self._has_step() else (), self._method.scalar_slots, self._arrays)

    def __len__(self):
        return self._has_step() + len(self._method.scalar_slots) + len(self._arrays)

    def __repr__(self):
        return repr(dict(self))


class Given(np.ndarray):
    """An array that nobody else has, in memory as state has it: whoever gets it may keep it."""


@contextmanager
def judging(what):
    """Turns whatever foreign objects raise while they are read into a TypeError that says what was read."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{what}: {error}") from error
    except Exception as error:
        raise TypeError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def step_count(value):
    """A count of steps: a whole number, also as a float, array or tensor of one element."""
    wanted = "step must be a whole number of at least 0 and less than 2^62"
    if isinstance(value, (bool, str, bytes)) or hasattr(value, "mask"):
        raise TypeError(f"{wanted}, got {value!r}")
    try:
        value = value.item() if hasattr(value, "item") else value
        count = int(value)
    except TypeError:
        raise TypeError(f"{wanted}, got {value!r}") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{wanted}, got {value!r}") from None
    if count != value or not 0 <= count < MOST_STEPS:
        raise ValueError(f"{wanted}, got {value!r}")
    return count


def same_shape(value, like, name, label):
    """State given from outside, as an array that fits `like`."""
    what = f"state {name!r} of {label}"
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{what} must not be a masked array: its mask would be lost")
    with judging(what):
        if getattr(value, "is_sparse", False):
            value = value.to_dense()
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    if array.shape != like.shape:
        raise ValueError(f"{what} must have shape {like.shape}, got {array.shape}")
    if array.dtype.kind != like.dtype.kind:
        kind = "complex" if like.dtype.kind == "c" else "floating point"
        raise TypeError(f"{what} must be {kind}, got {array.dtype}")
    return array


def fitted(value, like, name, label):
    """The same in memory of its own, in the dtype of `like`."""
    array = same_shape(value, like, name, label)
    if type(value) is Given and array.dtype == like.dtype:
        return array
    copy = aligned(like.shape, like.dtype)
    try:
        with np.errstate(all="ignore", over="raise"):
            copy[...] = array
    except FloatingPointError:
        raise ValueError(f"state {name!r} of {label} has numbers that are too large for {like.dtype}") from None
    return copy
