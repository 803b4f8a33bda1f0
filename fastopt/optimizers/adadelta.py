"""Adadelta."""

from ..checks import closed_fraction, flag, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate


class Adadelta(Optimizer):
    r"""Adadelta: steps as large as the steps so far, in proportion to the gradient.

    With gradient g (after `maximize` and `weight_decay`), decay ρ and learning rate η::

        v = ρ v + (1-ρ) g²
        d = g √(a + ε) / √(v + ε)
        a = ρ a + (1-ρ) d²
        θ = θ - η d

    Args:
        params: see `Optimizer`.
        lr: η, at least 0; the method was designed to need none, so 1.
        rho: ρ, from 0 to 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; adds λ θ to the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Adadelta([w])
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(4)
    array([0.9968, 2.0032])

    Source: Zeiler 2012, arXiv 1212.5701. Departs from torch only in rounding (IEEE square root).
    """

    rule = "adadelta"
    settles = True
    state_slots = ("square_avg", "acc_delta")
    hyperparameters = {
        "lr": nonnegative,
        "rho": closed_fraction,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1.0, rho: Rate = 0.9, eps: Rate = 1e-6,
                 weight_decay: Rate = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"square_avg": 0.0, "acc_delta": 0.0}

    @staticmethod
    def coefficients(settings, step):
        rho = settings["rho"]
        return rules.adadelta(rho=rho, one_rho=1.0 - rho, eps=settings["eps"], eta=settings["lr"])
