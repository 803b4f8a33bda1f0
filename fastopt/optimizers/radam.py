"""RAdam."""

from math import sqrt

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class RAdam(Optimizer):
    r"""RAdam: Adam whose adaptive rate is rectified while its variance is large, and off while it is intractable.

    With gradient g (after `maximize` and coupled `weight_decay`) at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²
        ρ∞ = 2 / (1-β₂) - 1,   ρ = ρ∞ - 2 t β₂ᵗ / (1-β₂ᵗ)
        θ = θ - η · m / (1-β₁ᵗ) · r √(1-β₂ᵗ) / (√v + ε)        where ρ > 5, else θ - η · m / (1-β₁ᵗ)
        r = √((ρ-4)(ρ-2) ρ∞ / ((ρ∞-4)(ρ∞-2) ρ))

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0; added to the uncorrected root, as in torch.
        weight_decay: λ, at least 0; adds λ θ to the gradient, or with `decoupled_weight_decay` subtracts
            η λ θ from the parameter.
        decoupled_weight_decay: decay beside the update (RAdamW) instead of in the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.RAdam([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.3])

    Source: Liu et al. 2020, arXiv 1908.03265. Departs from torch as `Adam` does.
    """

    rule = "radam"
    decouples = "decoupled_weight_decay"
    turns = True
    direction = "exp_avg"
    second_moment = "exp_avg_sq"
    state_slots = ("exp_avg", "exp_avg_sq")
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "decoupled_weight_decay": flag,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, decoupled_weight_decay: bool = False, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                                      decoupled_weight_decay=decoupled_weight_decay, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    @staticmethod
    def coefficients(settings, step):
        lr, (b1, b2) = settings["lr"], settings["betas"]
        a, correct2 = lr / (1.0 - b1**step), 1.0 - b2**step
        longest = 2.0 / (1.0 - b2) - 1.0
        length = longest - 2.0 * step * b2**step / correct2
        adaptive = length > 5.0
        if adaptive:
            rectified = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
            a *= sqrt(rectified) * sqrt(correct2)
        return rules.radam(adaptive=adaptive, b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=a, eps=settings["eps"])
