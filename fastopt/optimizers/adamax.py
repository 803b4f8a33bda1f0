"""Adamax."""

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class Adamax(Optimizer):
    r"""Adamax: Adam with the decayed maximum of the gradient instead of its root mean square.

    With gradient g (after `maximize` and `weight_decay`) at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        u = max(β₂ u, |g| + ε)
        θ = θ - η / (1-β₁ᵗ) · m / u

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; adds λ θ to the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Adamax([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.1])

    Source: Kingma and Ba 2015, arXiv 1412.6980, section 7.1. Departs from torch in rounding.
    """

    rule = "adamax"
    turns = True
    direction = "exp_avg"
    state_slots = ("exp_avg", "exp_inf")
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 2e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    @staticmethod
    def coefficients(settings, step):
        b1, b2 = settings["betas"]
        return rules.adamax(b1=b1, u1=1.0 - b1, b2=b2, a=settings["lr"] / (1.0 - b1**step), eps=settings["eps"])
