"""AdEMAMix."""

from collections.abc import Callable
from math import exp, expm1, log, sqrt

from ..checks import at_least_one, flag, nonnegative, optional, three_fractions
from ..kernels import rules
from .base import Optimizer, Params, Rate


class AdEMAMix(Optimizer):
    r"""AdEMAMix: AdamW with a second, slow running mean of the gradient beside the fast one.

    With gradient g (after `maximize`) at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        s = β₃ s + (1-β₃) g
        v = β₂ v + (1-β₂) g²
        θ = θ - η ((m / (1-β₁ᵗ) + α s) / (√(v / (1-β₂ᵗ)) + ε) + λ θ)

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂, β₃), each at least 0 and less than 1.
        alpha: α, the weight of the slow mean, at least 0.
        beta3_warmup: T steps, at least 1, in which β₃ rises from β₁ to its value, so that its half-life grows evenly:
            1 / log β₃(t) = (1-t/T) / log β₁ + t/T / log β₃. None: it does not rise.
        alpha_warmup: T steps, at least 1, in which α rises from 0 to its value along a line. None: it does not rise.
        eps: ε, at least 0.
        weight_decay: λ, at least 0, decoupled: each step takes η λ θ away, whatever the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as said above; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.AdEMAMix([w], lr=0.1, alpha_warmup=100)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(4)
    array([0.9, 2.1])

    Source: Pagliardini, Ablin, Grangier 2024, arXiv 2409.03137, algorithm 1. The arguments are those of the authors'
    code but for α, which is 2 there and 5 in most others. torch.optim has no such optimizer.
    """

    rule = "ademamix"
    in_torch = False
    decouples = turns = True
    second_moment = "exp_avg_sq"
    state_slots = ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")
    hyperparameters = {
        "lr": nonnegative,
        "betas": three_fractions,
        "alpha": nonnegative,
        "beta3_warmup": optional(at_least_one),
        "alpha_warmup": optional(at_least_one),
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-3,
                 betas: tuple[Rate, Rate, Rate] | Callable[[int], tuple[float, float, float]] = (0.9, 0.999, 0.9999),
                 alpha: Rate = 5.0, beta3_warmup: int | None = None, alpha_warmup: int | None = None,
                 eps: Rate = 1e-8, weight_decay: Rate = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, alpha=alpha, beta3_warmup=beta3_warmup,
                                      alpha_warmup=alpha_warmup, eps=eps, weight_decay=weight_decay,
                                      maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg_fast": 0.0, "exp_avg_slow": 0.0, "exp_avg_sq": 0.0}

    @staticmethod
    def coefficients(settings, step):
        lr, alpha, (b1, b2, b3) = settings["lr"], settings["alpha"], settings["betas"]
        u3 = 1.0 - b3
        if settings["alpha_warmup"] is not None:
            alpha *= min(step / settings["alpha_warmup"], 1.0)
        if settings["beta3_warmup"] is not None and step < settings["beta3_warmup"]:
            share = step / settings["beta3_warmup"]
            inverse = (1.0 - share) * inverse_log(b1) + share * inverse_log(b3)
            b3, u3 = (exp(1.0 / inverse), -expm1(1.0 / inverse)) if inverse else (0.0, 1.0)
        return rules.ademamix(b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, b3=b3, u3=u3, a=lr / (1.0 - b1**step),
                              k=lr * alpha, r=1.0 / sqrt(1.0 - b2**step), eps=settings["eps"])


def inverse_log(beta):
    return 1.0 / log(beta) if beta else 0.0
