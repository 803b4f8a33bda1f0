"""Stochastic gradient descent."""

from ..checks import flag, nonnegative, number, one_of
from ..kernels import rules
from .base import Optimizer, Params, Rate
from .settings import at


class SGD(Optimizer):
    r"""Stochastic gradient descent with momentum.

    With gradient g (after `maximize` and `weight_decay`), momentum μ, dampening τ and learning rate η::

        b = μ b + (1-τ) g        (b = g at the first step)
        θ = θ - η b              (nesterov: θ - η (g + μ b))

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        momentum: μ, at least 0; with 0 there is no state.
        dampening: τ; the share of the gradient that momentum leaves out.
        weight_decay: λ, at least 0; adds λ θ to the gradient.
        nesterov: looks ahead along the momentum; needs momentum > 0 and dampening 0.
        maximize: ascends instead of descending.
        momentum_mode: `"torch"` as above; `"classic"` has the learning rate inside the buffer,
            b = μ b - η (1-τ) g, θ = θ + b, as in scikit-learn and Keras: the two differ once η changes.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.SGD([w], lr=0.1, momentum=0.9)
    >>> opt.step([np.array([1.0, 1.0])])
    >>> w
    array([0.9, 1.9])

    Source: Robbins and Monro 1951; Sutskever et al. 2013. Departs from torch only in that products are not
    fused with sums.
    """

    rule = "sgd"
    turns = True
    settles = True
    state_slots = ("momentum_buffer",)
    counts_steps = False
    sparse = "too"
    hyperparameters = {
        "lr": nonnegative,
        "momentum": nonnegative,
        "dampening": number,
        "weight_decay": nonnegative,
        "nesterov": flag,
        "maximize": flag,
        "momentum_mode": one_of("torch", "classic"),
    }

    def __init__(self, params: Params, lr: Rate = 1e-3, momentum: Rate = 0.0, dampening: Rate = 0.0,
                 weight_decay: Rate = 0.0, nesterov: bool = False, *, maximize: bool = False,
                 momentum_mode: str = "torch") -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay,
                                      nesterov=nesterov, maximize=maximize, momentum_mode=momentum_mode))

    @staticmethod
    def carried(options, count):
        """With momentum a row moves on after it was touched."""
        return "momentum_buffer" if at(options["momentum"], count) else None

    @staticmethod
    def check_settings(settings):
        if settings["nesterov"] and (settings["momentum"] == 0 or settings["dampening"] != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")

    @staticmethod
    def slots(settings):
        return {"momentum_buffer": 0.0} if settings["momentum"] else {}

    @staticmethod
    def coefficients(settings, step):
        lr, mu = settings["lr"], settings["momentum"]
        tau = 1.0 if step == 1 else 1.0 - settings["dampening"]
        if not mu:
            return rules.sgd(mu=0.0, tau=0.0, x=0.0, y=lr)
        if settings["momentum_mode"] == "classic":  # the buffer is of steps, not of gradients
            if settings["nesterov"]:
                return rules.sgd(momentum=True, nesterov=True, mu=mu, tau=-lr * tau, x=-mu, y=lr)
            return rules.sgd(momentum=True, mu=mu, tau=-lr * tau, x=-1.0, y=0.0)
        if settings["nesterov"]:
            return rules.sgd(momentum=True, nesterov=True, mu=mu, tau=tau, x=lr * mu, y=lr)
        return rules.sgd(momentum=True, mu=mu, tau=tau, x=lr, y=0.0)
