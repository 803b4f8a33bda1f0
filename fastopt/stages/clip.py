"""Clips gradients: by the norm of all, of each parameter or of each unit, or element by element."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..checks import nonnegative, positive
from ..norms import each_shrunk, norms_of, shrunk
from .stage import Stage, has_complex


class Clipping(Stage):
    """Clips in one of the ways below: see there for what each does in a step."""

    options: ClassVar = {"clip": lambda name, value: as_clip(value)}

    def __init__(self, options):
        self.use(options.clip)

    def use(self, clip):
        self.clip = clip
        self.norm = getattr(clip, "norm_type", None)
        self.by_parameter = self.by_unit = isinstance(clip, ParameterNorm)
        if isinstance(clip, Adaptive):
            self.by_unit = self.rows = self.adapts = True
        return self

    def check(self, engine):
        if (isinstance(self.clip, Value) or (self.norm or 2.0) != 2.0) and has_complex(engine):
            raise ValueError(f"{self.clip} has no meaning for complex parameters: they have the 2-norm only")

    def before(self, course):
        self.clip.before(course)

    def each_unit(self, course, units):
        self.clip.each_unit(course, units)


def order(name, value):
    """The p of a norm: above 0, infinity included."""
    if value == math.inf or value == "inf":
        return math.inf
    return positive(name, value)


class Clip:
    """Base of the ways to clip; see `Optimizer.set_stages`."""

    def before(self, course):
        """Sets the scale and the limit of all gradients of a step."""

    def each_unit(self, course, units):
        """Sets the scales of its units, for those that have some."""


@dataclass(frozen=True)
class Norm(Clip):
    """Base of those by a norm; the arguments are `GlobalNorm`'s."""

    max_norm: float
    norm_type: float = 2.0
    eps: float = 1e-6

    def __post_init__(self):
        checked(self, max_norm=positive, norm_type=order, eps=nonnegative)


class GlobalNorm(Norm):
    """Scales all gradients by min(1, max_norm / (‖g‖ + eps)), ‖g‖ their norm as one vector.

    Args:
        max_norm: above 0.
        norm_type: p, above 0; infinity takes the largest absolute value. Only 2 serves complex numbers.
        eps: torch's 1e-6; 0 makes the result have exactly the norm, to rounding.

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063; torch's `clip_grad_norm_`.
    """

    def before(self, course):
        course.scale = shrunk(course.norm, self.max_norm, self.eps, course.unscale)
        course.record.clipped = float(course.scale != course.unscale)


class ParameterNorm(Norm):
    """Scales each gradient by min(1, max_norm / (‖g‖ + eps)) with its own norm. The arguments are `GlobalNorm`'s.

    Source: Keras's `clipnorm`.
    """

    def each_unit(self, course, units):
        units.scales[:] = np.repeat(each_shrunk(course.norms, self.max_norm, self.eps, course.scale), units.lengths)
        units.count_clipped(course)


@dataclass(frozen=True)
class Value(Clip):
    """Limits each element to [-clip_value, clip_value]; not for complex numbers.

    Source: torch's `clip_grad_value_`.
    """

    clip_value: float

    def __post_init__(self):
        checked(self, clip_value=positive)

    def before(self, course):
        course.limit = self.clip_value


@dataclass(frozen=True)
class Adaptive(Clip):
    """Adaptive gradient clipping: bounds the norm of each unit's gradient by a fraction of its weights' norm.

    A unit is a row of the first dimension, or all of a vector or scalar: g is scaled by
    clip_factor max(‖w‖, eps) / max(‖g‖, 1e-6) where ‖g‖ is above clip_factor max(‖w‖, eps).

    Args:
        clip_factor: λ, above 0.
        eps: above 0; the least norm of weights that counts, so that units whose weights are near 0 can leave it.

    Source: Brock et al. 2021, arXiv 2102.06171.
    """

    clip_factor: float = 0.01
    eps: float = 1e-3

    def __post_init__(self):
        checked(self, clip_factor=positive, eps=positive)

    def each_unit(self, course, units):
        most = self.clip_factor * np.maximum(units.param_norms(course.plan), self.eps)
        units.scales[:] = each_shrunk(units.norms(course.plan), most, 0.0, course.scale, 1e-6)
        units.count_clipped(course)


@dataclass
class Units:
    """The units of the gradients of a step: rows, or whole gradients.

    Attributes:
        first, lengths: where those of each parameter begin, and how many it has.
        scales, offsets: what they are multiplied with, after the offset is taken off.
        limit: that of an element before scaling.
        means, squares, param_squares: of each: the mean, within the limit, and the sums of squares of the gradient and
            of the parameter; where they were asked for.
    """

    first: list
    lengths: np.ndarray
    table: np.ndarray
    limit: float = math.inf
    means: np.ndarray | None = None
    squares: np.ndarray | None = None
    param_squares: np.ndarray | None = None

    @property
    def scales(self):
        return self.table[:, 0]

    @property
    def offsets(self):
        return self.table[:, 1]

    def norms(self, plan):
        return norms_of(self.squares, 2.0, lambda: [
            (self.first[i], self.lengths[i], grad) for i, grad in plan.taken()])

    def param_norms(self, plan):
        return norms_of(self.param_squares, 2.0, lambda: [
            (self.first[i], self.lengths[i], plan.params[i]) for i, _ in plan.taken()])

    def count_clipped(self, course):
        if len(self.table):
            course.record.clipped = float(np.mean(self.scales != course.scale))


def checked(clip, **checks):
    for name, check in checks.items():
        object.__setattr__(clip, name, check(name, getattr(clip, name)))


def as_clip(value):
    """A way to clip; a number is a global norm."""
    if value is None or isinstance(value, Clip):
        return value
    try:
        return GlobalNorm(positive("clip", value))
    except TypeError:
        raise TypeError("clip must be a number, the largest global norm, or one of fastopt.stages.GlobalNorm, "
                        f"ParameterNorm, Value and Adaptive; got {value!r}") from None
