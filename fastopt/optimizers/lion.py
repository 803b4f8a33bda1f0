"""Lion."""

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class Lion(Optimizer):
    r"""Lion: the sign of a running mean of the gradient, so that every element moves by the learning rate.

    With gradient g (after `maximize`), and learning rate η::

        θ = θ - η (sign(β₁ m + (1-β₁) g) + λ θ)
        m = β₂ m + (1-β₂) g

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0; the paper advises 3 to 10 times less than AdamW's, and as many times its λ.
        betas: (β₁, β₂), each at least 0 and less than 1.
        weight_decay: λ, at least 0, decoupled: each step takes η λ θ away, whatever the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as said above; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Lion([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.1])

    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2. torch.optim has no such optimizer.
    """

    rule = "lion"
    in_torch = False
    counts_steps = False
    decouples = turns = settles = True
    state_slots = ("exp_avg",)
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-4, betas: Rates = (0.9, 0.99), weight_decay: Rate = 0.0, *,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0}

    @staticmethod
    def coefficients(settings, step):
        b1, b2 = settings["betas"]
        return rules.lion(b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, eta=settings["lr"])
