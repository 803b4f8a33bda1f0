"""NovoGrad."""

import numpy as np

from ..checks import flag, fractions, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class NovoGrad(Optimizer):
    r"""NovoGrad: momentum of gradients that are divided by the running norm of their parameter's.

    With gradient g (after `maximize`) and learning rate η::

        v = β₂ v + (1-β₂) ‖g‖²          (v = ‖g‖² at the first step): one number for each parameter
        m = β₁ m + g / (√v + ε) + λ θ   (grad_averaging: the last two times 1-β₁)
        θ = θ - η m

    Args:
        params: see `Optimizer`. Norms are of one array: what is one parameter must not be cut into several.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0.
        grad_averaging: m is a mean, not a sum.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as said above; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([3.0, 4.0])
    >>> opt = fastopt.NovoGrad([w], lr=0.1)
    >>> opt.step([np.array([0.0, 2.0])])
    >>> w.round(6)
    array([3. , 3.9])

    Source: Ginsburg et al. 2019, arXiv 1905.11286. torch.optim has no such optimizer.
    """

    rule = "sgd"
    turns = True
    in_torch = False
    settles = False
    needs = (("square", "gradient"),)
    state_slots = ("exp_avg",)
    scalar_slots = ("exp_avg_sq",)
    scalars_shared = False
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "grad_averaging": flag,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, betas: Rates = (0.95, 0.98), eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, grad_averaging: bool = False, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                                      grad_averaging=grad_averaging, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"exp_avg": 0.0}

    @staticmethod
    def scalars(settings):
        return (0.0,)

    @staticmethod
    def coefficients(settings, step):
        b1, _ = settings["betas"]
        return rules.sgd(momentum=True, mu=b1, tau=1.0 - b1 if settings["grad_averaging"] else 1.0, x=settings["lr"],
                         y=0.0)

    @staticmethod
    def factors(settings, step, sums, scalars):
        (squares,), (v,), (_, b2) = sums, scalars, settings["betas"]
        v[:] = squares if step == 1 else b2 * v + (1.0 - b2) * squares
        divisors = np.sqrt(v) + settings["eps"]
        divisors[divisors == 0] = 1.0  # of a gradient that always was 0
        return {"gradient": 1.0 / divisors}
