"""Averages of the parameters, taken in the same pass: see fastopt.averages."""

from .stage import Stage


def every(name, value):
    """A tuple of averages, from one, or a list of them."""
    averages = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(average for average in averages if average is not None)


class Averages(Stage):
    options = {"average": every}

    def __init__(self, options):
        self.averages = options.average

    def check(self, engine):
        for i, average in enumerate(self.averages):
            if isinstance(average, type) or not hasattr(average, "coefficients"):
                raise TypeError(f"average must be an average of fastopt.averages or a list of them, got {average!r}")
            if any(average is other for other in self.averages[:i]):
                raise ValueError(f"average has {average!r} twice")
            averages, params = average.averages, engine.plan.params
            if len(averages) != len(params):
                raise ValueError(f"average has {len(averages)} parameters, the optimizer {len(params)}")
            for position, (own, param) in enumerate(zip(averages, params, strict=True)):
                if own.shape != param.shape or own.dtype != param.dtype:
                    raise ValueError(f"average of {engine.plan.label(position)} must have shape {param.shape} and "
                                     f"dtype {param.dtype}, got {own.shape} and {own.dtype}")

    def written(self):
        return [pair for average in self.averages for pair in enumerate(average._plan.params)]

    def arrays(self, engine):
        return [array for average in self.averages for array in average.averages]

    def numbers(self):
        return [(average, ("n_averaged",)) for average in self.averages]

    def followers(self):
        return [("average", average.averages, True) for average in self.averages]

    def begin(self, course):
        for average in self.averages:
            average._check_free("step()")

    def after(self, course, place):
        for k, average in enumerate(self.averages, place):
            course.plan.follow(k, average._rule(average.n_averaged + 1))

    def also(self, course):
        return [(vars(average), {"_n_averaged": average.n_averaged + 1}) for average in self.averages]
