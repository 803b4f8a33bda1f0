"""LARS."""

import numpy as np

from ..checks import flag, nonnegative
from ..kernels import rules
from .base import Optimizer, Params, Rate


class LARS(Optimizer):
    r"""LARS: momentum, with a learning rate for each parameter that is in proportion to its norm over its gradient's.

    With gradient g (after `maximize`), momentum μ and learning rate η::

        q = τ ‖θ‖ / (‖g‖ + λ ‖θ‖ + ε), or 1 where ‖θ‖ or the divisor is 0
        b = μ b - η q (g + λ θ)
        θ = θ + b                       (nesterov: θ + μ b - η q (g + λ θ))

    Args:
        params: see `Optimizer`. Norms are of one array: what is one parameter must not be cut into several.
        lr: learning rate η, at least 0.
        momentum: μ, at least 0; 0 keeps no state.
        weight_decay: λ, at least 0.
        trust_coefficient: τ, at least 0.
        eps: ε, at least 0.
        nesterov: looks ahead along the momentum; needs momentum > 0.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as said above; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([3.0, 4.0])
    >>> opt = fastopt.LARS([w], lr=1.0, trust_coefficient=0.1)
    >>> opt.step([np.array([0.0, 2.0])])
    >>> w.round(6)
    array([3. , 3.5])

    Source: You, Gitman, Ginsburg 2017, arXiv 1708.03888. The norm of the weight decay is added to that of the gradient,
    as there; `optax.lars` takes the norm of the sum, and has the learning rate outside of the momentum.
    """

    rule = "sgd"
    turns = True
    in_torch = False
    counts_steps = False
    settles = True
    needs = ("square", "param"), ("square", "gradient")
    state_slots = ("momentum_buffer",)
    hyperparameters = {
        "lr": nonnegative,
        "momentum": nonnegative,
        "weight_decay": nonnegative,
        "trust_coefficient": nonnegative,
        "eps": nonnegative,
        "nesterov": flag,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1.0, momentum: Rate = 0.9, weight_decay: Rate = 0.0,
                 trust_coefficient: Rate = 1e-3, eps: Rate = 1e-8, nesterov: bool = False, *,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay,
                                      trust_coefficient=trust_coefficient, eps=eps, nesterov=nesterov,
                                      maximize=maximize))

    @staticmethod
    def check_settings(settings):
        if settings["nesterov"] and settings["momentum"] == 0:
            raise ValueError("nesterov needs momentum > 0")

    @staticmethod
    def slots(settings):
        return {"momentum_buffer": 0.0} if settings["momentum"] else {}

    @staticmethod
    def coefficients(settings, step):
        lr, mu = settings["lr"], settings["momentum"]
        if not mu:
            return rules.sgd(mu=0.0, tau=0.0, x=0.0, y=lr)
        if settings["nesterov"]:
            return rules.sgd(momentum=True, nesterov=True, mu=mu, tau=-lr, x=-mu, y=lr)
        return rules.sgd(momentum=True, mu=mu, tau=-lr, x=-1.0, y=0.0)

    @staticmethod
    def factors(settings, step, sums, scalars):
        norms, gradients = map(np.sqrt, sums)
        divisors = gradients + settings["weight_decay"] * norms + settings["eps"]
        factor = settings["trust_coefficient"] * norms / divisors
        factor[(norms == 0) | (divisors == 0)] = 1.0
        return {"gradient": factor, "decay": factor}
