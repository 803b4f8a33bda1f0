"""NAdam."""

from math import sqrt

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates, float32


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov momentum whose weight warms up.

    With gradient g (after `maximize` and coupled `weight_decay`) at step t, learning rate η and momentum decay ψ::

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²
        μₜ = β₁ (1 - ½ 0.96^(t ψ)),   Pₜ = μ₁ μ₂ … μₜ
        θ = θ - η ((1-μₜ) g / (1-Pₜ) + μₜ₊₁ m / (1-Pₜ₊₁)) / (√(v / (1-β₂ᵗ)) + ε)

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; adds λ θ to the gradient, or with `decoupled_weight_decay` subtracts
            η λ θ from the parameter.
        momentum_decay: ψ, at least 0.
        decoupled_weight_decay: decay beside the update (NAdamW) instead of in the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.NAdam([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(4)
    array([0.8944, 2.1056])

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam". Departs from torch as `Adam` does. The product
    P is a float32 number, as in torch, so that checkpoints and trajectories agree.
    """

    rule = "nadam"
    decouples = "decoupled_weight_decay"
    turns = True
    second_moment = "exp_avg_sq"
    state_slots = ("exp_avg", "exp_avg_sq")
    scalar_slots = ("mu_product",)
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "momentum_decay": nonnegative,
        "decoupled_weight_decay": flag,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 2e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, momentum_decay: Rate = 4e-3, decoupled_weight_decay: bool = False, *,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                                      momentum_decay=momentum_decay, decoupled_weight_decay=decoupled_weight_decay,
                                      maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    @staticmethod
    def scalars(settings):
        return (1.0,)

    @staticmethod
    def momentum(settings, step):
        return settings["betas"][0] * (1.0 - 0.5 * 0.96 ** (step * settings["momentum_decay"]))

    @classmethod
    def advance(cls, settings, step, scalars):
        product = float32(scalars[0] * float32(cls.momentum(settings, step)))
        return (min(product, 1.0 - 2.0**-24),)  # below 1, as in exact arithmetic: the step divides by the difference

    @classmethod
    def coefficients(cls, settings, step, scalars):
        lr, (b1, b2) = settings["lr"], settings["betas"]
        mu, after = cls.momentum(settings, step), cls.momentum(settings, step + 1)
        product, = cls.advance(settings, step, scalars)
        x, y = lr * (1.0 - mu) / (1.0 - product), lr * after / (1.0 - product * after)
        return rules.nadam(b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, x=x, y=y, r=1.0 / sqrt(1.0 - b2**step),
                           eps=settings["eps"])
