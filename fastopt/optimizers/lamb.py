"""LAMB."""

from math import sqrt

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from ..kernels.norms import trust_ratios
from .base import Optimizer, Params, Rate, Rates


class LAMB(Optimizer):
    r"""LAMB: the step of AdamW, scaled for each parameter so that it moves in proportion to its norm.

    With gradient g (after `maximize`) at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²
        u = m / (1-β₁ᵗ) / (√v / √(1-β₂ᵗ) + ε) + λ θ
        θ = θ - η r u,   r = ‖θ‖ / ‖u‖, or 1 where one of them is 0

    Args:
        params: see `Optimizer`. Norms are of one array: what is one parameter must not be cut into several.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as said above; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([3.0, 4.0])
    >>> opt = fastopt.LAMB([w], lr=0.1)
    >>> opt.step([np.array([1.0, 1.0])])
    >>> w.round(4)
    array([2.6464, 3.6464])

    Source: You et al. 2020, arXiv 1904.00962, with the corrected moments of its Algorithm 2 and φ the identity.
    torch.optim has no such optimizer; its formula is that of `optax.lamb`.
    """

    rule = "adam"
    decouples = True
    turns = True
    in_torch = False
    second_moment = "exp_avg_sq"
    needs = ("square", "param"), ("square", "move")
    state_slots = ("exp_avg", "exp_avg_sq")
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-6,
                 weight_decay: Rate = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    @staticmethod
    def coefficients(settings, step):
        b1, b2 = settings["betas"]
        return rules.adam(b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=settings["lr"] / (1.0 - b1**step),
                          r=1.0 / sqrt(1.0 - b2**step), eps=settings["eps"], eps_in=0.0)

    @staticmethod
    def factors(settings, step, sums, scalars):
        squares, moves = sums  # a move is η u
        return {"rate": trust_ratios(squares, moves, settings["lr"])}
