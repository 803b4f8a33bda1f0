"""Averaged stochastic gradient descent."""

from ..checks import flag, nonnegative, number
from ..kernels import rules
from .base import Optimizer, Params, Rate, float32


class ASGD(Optimizer):
    r"""Averaged SGD: gradient descent with a falling rate, beside it the average of the parameters.

    With gradient g (after `maximize` and `weight_decay`) at step t, learning rate η and decay λ::

        θ = θ - (λ ηₜ θ + ηₜ g),           η₁ = η,  ηₜ₊₁ = η / (1 + λ η t)^α
        a = a + μₜ (θ - a),                μ₁ = 1,  μₜ₊₁ = 1 / max(1, t - t₀)

    The average a is the state `ax`; the parameters themselves are not replaced by it.

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        lambd: λ, at least 0.
        alpha: α, at least 0: the power with which the rate falls.
        t0: t₀, the step at which averaging starts.
        weight_decay: at least 0; adds its product with θ to the gradient.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.ASGD([w], lr=0.1, lambd=0.0)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.3])

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Bottou 2012. ηₜ and μₜ
    are float32 numbers, as in torch, so that checkpoints and trajectories agree. Departs from torch in the decay, which
    joins the update before the one rounding of θ, so that it does not vanish in float32 when λ η is tiny; and in
    refusing a negative alpha, with which the rate would grow.
    """

    rule = "asgd"
    state_slots = ("ax",)
    scalar_slots = ("eta", "mu")
    rate_ahead = True
    hyperparameters = {
        "lr": nonnegative,
        "lambd": nonnegative,
        "alpha": nonnegative,
        "t0": number,
        "weight_decay": nonnegative,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, lambd: Rate = 1e-4, alpha: Rate = 0.75, t0: Rate = 1e6,
                 weight_decay: Rate = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay,
                                      maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"ax": 0.0}

    @staticmethod
    def scalars(settings):
        return float32(settings["lr"]), 1.0

    @staticmethod
    def advance(settings, step, scalars):
        lr = settings["lr"]
        try:
            eta = lr / (1.0 + settings["lambd"] * lr * step) ** settings["alpha"]
        except OverflowError:
            eta = 0.0
        return float32(eta), float32(1.0 / max(1.0, step - settings["t0"]))

    @staticmethod
    def coefficients(settings, step, scalars):
        eta, mu = scalars
        return rules.asgd(averaging=mu != 1.0, loss=settings["lambd"] * eta, eta=eta, mu=mu)
