"""Adam for row-sparse gradients."""

from math import sqrt

from ..checks import flag, fractions, positive
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class SparseAdam(Optimizer):
    r"""Adam that steps only the rows which the gradient touches, for embeddings.

    With gradient g of a touched row at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²
        θ = θ - η √(1-β₂ᵗ) / (1-β₁ᵗ) · m / (√v + ε)

    Parameters and moments of rows that are not touched stay as they are: they do not decay. t counts all steps.

    Args:
        params: see `Optimizer`.
        lr: learning rate η, above 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, above 0; added to the uncorrected root, unlike in `Adam`, as in torch.
        maximize: ascends instead of descending.

    Gradients must be `SparseRows` or `scipy.sparse` matrices; dense ones are for `Adam`.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> table = np.zeros((1000, 2))
    >>> opt = fastopt.SparseAdam([table], lr=0.1)
    >>> opt.step([fastopt.SparseRows([7], np.ones((1, 2)), table.shape)])
    >>> table[7].round(6)
    array([-0.1, -0.1])

    Source: Kingma and Ba 2015, arXiv 1412.6980, applied to touched rows.
    """

    rule = "adam"
    decays = False
    sparse = "only"
    integer_step = True
    state_slots = ("exp_avg", "exp_avg_sq")
    hyperparameters = {"lr": positive, "betas": fractions, "eps": positive, "maximize": flag}

    def __init__(self, params: Params, lr: Rate = 1e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    @staticmethod
    def coefficients(settings, step):
        b1, b2 = settings["betas"]
        a = settings["lr"] * sqrt(1.0 - b2**step) / (1.0 - b1**step)
        return rules.adam(b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=a, r=1.0, eps=settings["eps"], eps_in=0.0)
