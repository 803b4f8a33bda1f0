"""Adam and AdamW."""

from math import sqrt

from ..checks import flag, fractions, nonnegative, one_of
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class Adam(Optimizer):
    r"""Adam: the running mean of the gradient over the root of the running mean of its square.

    With gradient g (after `maximize` and coupled `weight_decay`) at step t, and learning rate η::

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²               (amsgrad: w = max(w, v) takes the place of v below)
        θ = θ - η · m / (1-β₁ᵗ) / (√v / √(1-β₂ᵗ) + ε)

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; adds λ θ to the gradient, or with `decoupled_weight_decay` subtracts
            η λ θ from the parameter.
        amsgrad: divides by the largest v so far; costs a state array.
        maximize: ascends instead of descending.
        decoupled_weight_decay: makes this AdamW.
        eps_mode: `"outside"` as above; `"hat"` adds ε to the uncorrected root √v, as Keras, scikit-learn and
            Thinc do; `"inside"` takes √(v / (1-β₂ᵗ) + ε).

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Adam([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.1])

    Source: Kingma and Ba 2015, arXiv 1412.6980; amsgrad: Reddi et al. 2018. Departs from torch in rounding, and
    where torch is wrong: the step count is an integer (torch's float32 stops at 2²⁴), and the decoupled decay is
    added to the update before the one rounding of θ, so that it does not vanish in float32 when η λ is tiny.
    """

    rule = "adam"
    decouples = "decoupled_weight_decay"
    turns = True
    direction = "exp_avg"
    second_moment = "exp_avg_sq"
    state_slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    hyperparameters = {
        "lr": nonnegative,
        "betas": fractions,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "amsgrad": flag,
        "maximize": flag,
        "decoupled_weight_decay": flag,
        "eps_mode": one_of("outside", "hat", "inside"),
    }

    def __init__(self, params: Params, lr: Rate = 1e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 weight_decay: Rate = 0.0, amsgrad: bool = False, *, maximize: bool = False,
                 decoupled_weight_decay: bool = False, eps_mode: str = "outside") -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad,
                                      maximize=maximize, decoupled_weight_decay=decoupled_weight_decay,
                                      eps_mode=eps_mode))

    @staticmethod
    def slots(settings):
        slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        if settings["amsgrad"]:
            slots["max_exp_avg_sq"] = 0.0
        return slots

    @staticmethod
    def coefficients(settings, step):
        eps, (b1, b2) = settings["eps"], settings["betas"]
        a, root2 = settings["lr"] / (1.0 - b1**step), sqrt(1.0 - b2**step)
        if settings["eps_mode"] == "outside":
            return rules.adam(amsgrad=settings["amsgrad"], b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=a, r=1.0 / root2,
                              eps=eps, eps_in=0.0)
        if settings["eps_mode"] == "hat":
            return rules.adam(amsgrad=settings["amsgrad"], b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=a * root2, r=1.0,
                              eps=eps, eps_in=0.0)
        return rules.adam(amsgrad=settings["amsgrad"], b1=b1, u1=1.0 - b1, b2=b2, u2=1.0 - b2, a=a, r=1.0 / root2,
                          eps=0.0, eps_in=eps * root2 * root2)


class AdamW(Adam):
    r"""AdamW: Adam with decoupled weight decay, θ = θ - η λ θ - (the update of Adam).

    Args:
        params: see `Optimizer`.
        lr: learning rate η, at least 0.
        betas: (β₁, β₂), each at least 0 and less than 1.
        eps: ε, at least 0.
        weight_decay: λ, at least 0; each step subtracts η λ θ, whatever the gradient.
        amsgrad: divides by the largest v so far; costs a state array.
        maximize: ascends instead of descending.
        eps_mode: see `Adam`.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.AdamW([w], lr=0.1, weight_decay=0.5)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.85, 2.  ])

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101. Departs from torch as `Adam` does.
    """

    fixed = {"decoupled_weight_decay": True}

    def __init__(self, params: Params, lr: Rate = 1e-3, betas: Rates = (0.9, 0.999), eps: Rate = 1e-8,
                 weight_decay: Rate = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
                 eps_mode: str = "outside") -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, eps_mode=eps_mode,
                         **self.fixed)
