"""Adafactor."""

from math import sqrt

import numpy as np

from ..checks import flag, nonnegative, number
from ..kernels import factored
from ..kernels.arrays import aligned
from .base import Params, Rate
from .whole import WholeOptimizer


def nonpositive(name, value):
    x = number(name, value)
    if x > 0:
        raise ValueError(f"{name} must be at most 0, got {value!r}")
    return x


def one_or_more(name, value):
    x = number(name, value)
    if x < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return x


def two_eps(name, value):
    """A pair of numbers of at least 0; the first may be None."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of a number or None and a number, got {value!r}") from None
    return None if first is None else nonnegative(f"{name}[0]", first), nonnegative(f"{name}[1]", second)


class Adafactor(WholeOptimizer):
    r"""Adafactor: like RMSprop, with row and column means instead of the second moment of a matrix.

    Its state takes rows + columns numbers for a matrix instead of rows · columns. With gradient G at step t,
    learning rate η, w = t^beta2_decay and RMS(X) = √mean(X²)::

        R = (1-w) R + w · row means of G²
        C = (1-w) C + w · column means of G²
        U = G / √max(R C / max(mean(R), ε₁), ε₁²)
        ρ = min(η, 1/√t),  α = ρ max(ε₂, RMS(θ))
        θ = θ - η λ θ - α / max(1, RMS(U) / d) · U

    A parameter of more than two dimensions is a stack of matrices over its last two; RMS is over all of it. One
    of fewer dimensions has the mean of G² itself: V = (1-w) V + w G², U = G / √max(V, ε₁²).

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0: the step relative to the size of the parameter, at most 1/√t.
        beta2_decay: how fast the weight of the newest gradient falls with the steps, at most 0; 0 forgets all
            gradients but the newest.
        eps: (ε₁, ε₂), each at least 0. ε₁ bounds the root of the second moment from below; None is the machine
            epsilon of the parameter's dtype. ε₂ is the least size of a parameter that counts.
        d: an update whose RMS is greater is scaled down to it; at least 1.
        weight_decay: λ, at least 0; each step subtracts η λ θ, whatever the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> opt = fastopt.Adafactor([w], lr=0.1)
    >>> opt.step([np.array([[1.0, -1.0], [2.0, -2.0]])])
    >>> w.round(6)
    array([[0.726139, 2.273861],
           [2.726139, 4.273861]])
    >>> opt.state[0]["row_var"].tolist(), opt.state[0]["col_var"].tolist()
    ([[1.0], [4.0]], [[2.5, 2.5]])

    Source: Shazeer and Stern 2018, arXiv 1804.04235. As torch, departs from the paper in ε₁, which the paper adds
    to G², and in the learning rate, for which the paper has 0.01 or 1e-6 t. Departs from torch in rounding, in an
    empty parameter, at which torch raises ZeroDivisionError, in ε₁ = None, which torch sets once by the first
    parameter of a group, and where torch is wrong: the step count is an integer, the product R C does not
    overflow or vanish in float32, and the weight decay is added to the update before the one rounding of θ.
    """

    state_slots = ("row_var", "col_var", "variance")
    hyperparameters = {
        "lr": nonnegative,
        "beta2_decay": nonpositive,
        "eps": two_eps,
        "d": one_or_more,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, beta2_decay: Rate = -0.8,
                 eps: tuple[float | None, float] = (None, 1e-3), d: Rate = 1.0, weight_decay: Rate = 0.0, *,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay,
                                      maximize=maximize))

    @classmethod
    def state_shape(cls, slot, shape):
        if len(shape) > 1 and slot == "row_var":
            return (*shape[:-1], 1)
        if len(shape) > 1 and slot == "col_var":
            return (*shape[:-2], 1, shape[-1])
        return shape

    @classmethod
    def known_slots(cls, param):
        return ("row_var", "col_var") if param.ndim > 1 else ("variance",)

    @classmethod
    def needed_slots(cls, param, settings):
        return cls.known_slots(param)

    @classmethod
    def new_state(cls, param, settings):
        return {slot: aligned(cls.state_shape(slot, param.shape), param.dtype) for slot in cls.known_slots(param)}

    @classmethod
    def new_work(cls, level):
        return level

    @classmethod
    def update(cls, level, param, grad, state, settings, step):
        lr, (eps1, eps2) = settings["lr"], settings["eps"]
        if eps1 is None:
            eps1 = float(np.finfo(param.dtype).eps)
        row, col = (state["row_var"], state["col_var"]) if param.ndim > 1 else (state["variance"], None)
        factored.step(level, param, grad, row, col,
                      (step ** settings["beta2_decay"], eps1, eps2, settings["d"], min(lr, 1.0 / sqrt(step)),
                       lr * settings["weight_decay"], -1.0 if settings["maximize"] else 1.0))
