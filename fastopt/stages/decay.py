"""Which parameters have a weight decay, and how it goes with the learning rate."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..checks import check_matches, optional, positive
from .stage import Stage


def patterns_or_dimensions(name, value):
    rules = (value,) if isinstance(value, (str, int)) else value
    if not isinstance(rules, Sequence) or not all(isinstance(rule, str) or type(rule) is int for rule in rules):
        raise TypeError(f"{name} must be patterns of names or a number of dimensions, got {value!r}")
    return tuple(rules)


class NoDecay(Stage):
    """Leaves parameters out of the weight decay."""

    options = {"no_decay": patterns_or_dimensions}
    elementwise = True

    def __init__(self, options):
        self.rules = options.no_decay

    def check(self, engine):
        if not engine.method.decays:
            raise ValueError(f"no_decay has no meaning for {engine.method.__name__}: it has no weight_decay")

    def kinds(self, plan):
        check_matches("no_decay", [rule for rule in self.rules if isinstance(rule, str)], plan.names)
        return [self.leaves_out(name, param) for name, param in zip(plan.names, plan.params, strict=True)]

    def leaves_out(self, name, param):
        return any(param.ndim <= rule if isinstance(rule, int) else fnmatchcase(name, rule) for rule in self.rules)

    def adapt(self, settings, left_out):
        settings["weight_decay"] *= 0.0 if left_out else 1.0


class CorrectedDecay(Stage):
    """Weight decay that goes with the square of the learning rate.   Defazio 2025, arXiv 2506.02285."""

    options = {"corrected_weight_decay": optional(positive)}
    elementwise = True

    def __init__(self, options):
        self.most = options.corrected_weight_decay

    def check(self, engine):
        need_decoupled(engine, "corrected_weight_decay")

    def adapt(self, settings, kind):
        settings["weight_decay"] *= settings["lr"] / self.most


def need_decoupled(engine, option):
    """Raises ValueError unless the weight decay of every group is of the parameter."""
    method = engine.method
    if not all(method.decoupled(group.options) for group in engine.groups):
        raise ValueError(f"{option} needs decoupled weight decay, which {method.__name__} has not with these options")
