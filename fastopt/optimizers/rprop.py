"""Rprop."""

from ..checks import flag, nonnegative, ordered, shrink_and_grow
from ..kernels import rules
from .base import Optimizer, Params, Rate, Rates


class Rprop(Optimizer):
    r"""Resilient backpropagation: a step size for each element, that grows while the sign of its gradient stays.

    With gradient g (after `maximize`), the one before it g', and step sizes z, which start from `lr`::

        z = clamp(z f, least, most),   f = η₊ where g g' > 0, η₋ where g g' < 0, else 1
        g = 0 where g g' < 0
        θ = θ - sign(g) z

    For whole batches: with noise in the gradient its signs say little.

    Args:
        params: see `Optimizer`.
        lr: the first step size, at least 0.
        etas: (η₋, η₊), with 0 < η₋ < 1 < η₊.
        step_sizes: (least, most), the bounds of the step sizes.
        maximize: ascends instead of descending.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = fastopt.Rprop([w], lr=0.1)
    >>> opt.step([np.array([1.0, -3.0])])
    >>> w.round(6)
    array([0.9, 2.1])

    Source: Riedmiller and Braun 1993; the variant without backtracking, iRprop-: Igel and Hüsken 2000.
    """

    rule = "rprop"
    decays = False
    rate_free = True
    settles = True
    state_slots = ("prev", "step_size")
    hyperparameters = {
        "lr": nonnegative,
        "etas": shrink_and_grow,
        "step_sizes": ordered,
        "maximize": flag,
    }

    def __init__(self, params: Params, lr: Rate = 1e-2, etas: Rates = (0.5, 1.2), step_sizes: Rates = (1e-6, 50), *,
                 maximize: bool = False) -> None:
        super().__init__(params, dict(lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize))

    @staticmethod
    def slots(settings):
        return {"prev": 0.0, "step_size": settings["lr"]}

    @staticmethod
    def coefficients(settings, step):
        minus, plus = settings["etas"]
        least, most = settings["step_sizes"]
        return rules.rprop(minus=minus, plus=plus, least=least, most=most, zero=0.0, one=1.0)
