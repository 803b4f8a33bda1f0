"""Adagrad."""

from ..checks import flag, nonnegative, one_of
from ..kernels import rules
from .base import Optimizer, Params, Rate


class Adagrad(Optimizer):
    r"""Adagrad: the rate of each element falls with the sum of its squared gradients.

    With gradient g (after `maximize` and `weight_decay`) at step t, and learning rate η::

        s = s + g²
        θ = θ - η / (1 + (t-1) lr_decay) · g / (√s + ε)

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        lr_decay: at least 0; lowers the rate with the number of steps.
        weight_decay: λ, at least 0; adds λ θ to the gradient.
        initial_accumulator_value: what s starts from, at least 0.
        eps: ε, at least 0.
        maximize: ascends instead of descending.
        eps_mode: `"outside"` as above; `"inside"` takes √(s + ε), as optax, Keras and PyMC do.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Adagrad([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.1])

    Source: Duchi, Hazan and Singer 2011, "Adaptive subgradient methods for online learning and stochastic
    optimization". Departs from torch in rounding (IEEE square root), and in that `initial_accumulator_value`
    may be set for each group.
    """

    rule = "adagrad"
    state_slots = ("sum",)
    eager_state = True
    sparse = "too"
    hyperparameters = {
        "lr": nonnegative,
        "lr_decay": nonnegative,
        "weight_decay": nonnegative,
        "initial_accumulator_value": nonnegative,
        "eps": nonnegative,
        "maximize": flag,
        "eps_mode": one_of("outside", "inside"),
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, lr_decay: Rate = 0.0, weight_decay: Rate = 0.0,
                 initial_accumulator_value: float = 0.0, eps: Rate = 1e-10, *, maximize: bool = False,
                 eps_mode: str = "outside") -> None:
        super().__init__(params, dict(lr=lr, lr_decay=lr_decay, weight_decay=weight_decay,
                                      initial_accumulator_value=initial_accumulator_value, eps=eps,
                                      maximize=maximize, eps_mode=eps_mode))

    @staticmethod
    def slots(settings):
        return {"sum": settings["initial_accumulator_value"]}

    @staticmethod
    def coefficients(settings, step):
        rate = settings["lr"] / (1.0 + (step - 1) * settings["lr_decay"])
        outside, inside = (settings["eps"], 0.0) if settings["eps_mode"] == "outside" else (0.0, settings["eps"])
        return rules.adagrad(eta=rate, eps=outside, eps_in=inside)
