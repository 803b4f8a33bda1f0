"""Stage: one thing that a step does beside its rule."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar


def has_complex(engine):
    return any(param.dtype.kind == "c" for param in engine.plan.params)


def refuse_complex(engine, option):
    """Raises ValueError if the engine has a complex parameter."""
    if has_complex(engine):
        raise ValueError(f"{option} has no meaning for complex parameters")


class Stage:
    """One thing that a step does beside the rule, with what it keeps between steps.

    The pipeline of an engine has an object of each stage that is set, and asks them all, in one order; it knows none
    by its name. What a stage does not say or do here it leaves to others.

    Attributes:
        options: the fields of `Stages` that ask for it, with their checks.
        elementwise: it is for methods that step each element on its own.
        norm: the order of the norm of the gradients that it needs; None: it needs none.
        by_parameter: it needs that norm of each parameter, if any is taken.
        rows, centers, adapts: it changes gradients row by row; for that it needs means of the gradients, or 2-norms of
            gradients and parameters.
        needs: sums that its factors are made of: see `Plan.measure`.
        marks: the options of `Plan.stage` that it sets.
    """

    options: ClassVar[dict[str, Callable]] = {}
    elementwise: ClassVar[bool] = False
    norm: float | None = None
    by_parameter = by_unit = rows = centers = adapts = False  # a class or an object says otherwise
    needs: Sequence[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options):
        """`options`: the `Stages` that ask for it."""

    @classmethod
    def asked(cls, options) -> bool:
        """Whether these options ask for it."""
        values = [getattr(options, name) for name in cls.options]
        return any(not (value is None or value is False or (type(value) is tuple and not value)) for value in values)

    def check(self, engine) -> None:
        """Raises TypeError or ValueError if the method, or the parameters, of this engine cannot have it."""

    # ---- what it keeps

    def take_over(self, before: "Stage") -> None:
        """Goes on from the stage of its kind that was set before; raises ValueError if that cannot be."""

    def grow(self, engine) -> None:
        """Begins what it keeps of parameters that were added."""

    def replaced(self, position: int, param) -> None:
        """Follows another array in the place of a parameter."""

    def removed(self, position: int) -> None:
        """Goes on without a parameter."""

    def reset(self, engine) -> None:
        """Begins anew, as if no step had been made."""

    def written(self) -> Sequence[tuple[int, Any]]:
        """(parameter, array) of what it writes beside parameters and state."""
        return ()

    def arrays(self, engine) -> list:
        """The arrays that steps change, for a snapshot."""
        return []

    def numbers(self) -> list[tuple[Any, tuple[str, ...]]]:
        """(object, names of its attributes) of the numbers that steps change, for a snapshot."""
        return []

    # ---- the step

    def kinds(self, plan) -> list:
        """What it tells parameters of one group apart by, in the settings that it adapts; one for each parameter."""
        return [None] * len(plan)

    adapt: Callable[[dict, Any], None] | None = None  # changes the settings of a step, for parameters of a kind

    def followers(self) -> list[tuple[str, list | None, bool]]:
        """What runs after the rule on each piece: see `Plan.stage`."""
        return []

    def begin(self, course) -> None:
        """Called before anything of a step is looked at; may raise."""

    def judge(self, course) -> None:
        """Called when the norms that it needs are taken: may raise, or have the step skipped."""

    def before(self, course) -> None:
        """Sets the scale and the limit of all gradients."""

    def each_unit(self, course, units) -> None:
        """Sets scales and offsets of single units; called if it is `by_unit`."""

    def constants(self, settings, step) -> tuple[float, float] | None:
        """What `Plan.measure` needs of a cohort for a "ratio"; None: it needs none."""
        return None

    def factors(self, sums, sizes) -> dict[str, Any]:
        """Factors of each parameter by name, as in `Plan.run`, from the sums that it needs and the sizes."""
        return {}

    def after(self, course, place: int) -> None:
        """Sets what its first follower, which is at this place, needs in this step."""

    def also(self, course) -> list[tuple[Any, dict | None]]:
        """What the step counts here if it is made: see `Plan.finish`."""
        return []

    def skip(self, course) -> None:
        """Called where the step is skipped."""
