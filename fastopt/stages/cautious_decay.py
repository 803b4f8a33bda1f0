"""Decays only where the update goes towards 0 too.   Chen et al. 2025, arXiv 2510.12402."""

from ..checks import flag
from .decay import need_decoupled
from .stage import Stage


class CautiousDecay(Stage):
    options = {"cautious_weight_decay": flag}
    elementwise = True
    marks = ("careful",)

    def check(self, engine):
        need_decoupled(engine, "cautious_weight_decay")
