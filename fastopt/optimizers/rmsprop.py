"""RMSprop."""

from ..checks import closed_fraction, flag, nonnegative, one_of
from ..kernels import rules
from .base import Optimizer, Params, Rate


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over a running root mean square of itself.

    With gradient g (after `maximize` and `weight_decay`), smoothing α, momentum μ and learning rate η::

        v = α v + (1-α) g²
        a = α a + (1-α) g                  (centered)
        d = √v + ε                         (centered: √max(v - a², 0) + ε)
        θ = θ - η g / d                    (momentum: b = μ b + g / d,  θ = θ - η b)

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        alpha: α, from 0 to 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; adds λ θ to the gradient.
        momentum: μ, at least 0; above 0 it costs a state array.
        centered: divides by an estimate of the standard deviation; costs a state array.
        maximize: ascends instead of descending.
        eps_mode: `"outside"` as above; `"inside"` takes √(v + ε), as TensorFlow, Keras and optax do.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.RMSprop([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0., 3.])

    Source: Tieleman and Hinton 2012, lecture 6.5; centered: Graves 2013, arXiv 1308.0850. Departs from torch
    in rounding (IEEE square root), and where rounding takes the variance v - a² of a steady gradient below 0, which
    torch turns into NaN.
    """

    rule = "rmsprop"
    turns = True
    settles = True
    state_slots = ("square_avg", "momentum_buffer", "grad_avg")
    hyperparameters = {
        "lr": nonnegative,
        "alpha": closed_fraction,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "momentum": nonnegative,
        "centered": flag,
        "maximize": flag,
        "eps_mode": one_of("outside", "inside"),
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, alpha: Rate = 0.99, eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, momentum: Rate = 0.0, centered: bool = False, *, maximize: bool = False,
                 eps_mode: str = "outside") -> None:
        super().__init__(params, dict(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
                                      centered=centered, maximize=maximize, eps_mode=eps_mode))

    @staticmethod
    def slots(settings):
        slots = {"square_avg": 0.0}
        if settings["momentum"]:
            slots["momentum_buffer"] = 0.0
        if settings["centered"]:
            slots["grad_avg"] = 0.0
        return slots

    @staticmethod
    def coefficients(settings, step):
        alpha, eps, mu = settings["alpha"], settings["eps"], settings["momentum"]
        outside, inside = (eps, 0.0) if settings["eps_mode"] == "outside" else (0.0, eps)
        return rules.rmsprop(momentum=mu, centered=settings["centered"], alpha=alpha, beta=1.0 - alpha,
                             eta=settings["lr"], eps=outside, eps_in=inside, mu=mu)
