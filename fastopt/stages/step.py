"""What a step with stages did, and what its stages decide before it is made."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """What the last step did.

    Attributes:
        grad_norm: the norm of all gradients before clipping, after unscaling; None where none was taken.
        skipped: the step was not made, as a gradient was not finite.
        clipped: the share of norms that were clipped: 0 or 1 with a global norm; of the parameters or units else.
        grad_norms, update_norms, param_norms: with `statistics`, the 2-norms of each group; the update is what was
            added to the parameters, which are measured after it.
        update_norm, param_norm: the same over all groups.
        steps: steps with stages so far, the skipped ones included.
        skipped_steps, clipped_steps: how many of them were skipped; the sum of `clipped` over them. Divided by `steps`
            they are the shares for a log.
    """

    grad_norm: float | None = None
    skipped: bool = False
    clipped: float = 0.0
    steps: int = 0
    skipped_steps: int = 0
    clipped_steps: float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    update_norms: list[float] = field(default_factory=list)
    param_norms: list[float] = field(default_factory=list)

    @property
    def update_norm(self) -> float | None:
        return math.hypot(*self.update_norms) if self.update_norms else None

    @property
    def param_norm(self) -> float | None:
        return math.hypot(*self.param_norms) if self.param_norms else None


@dataclass
class Course:
    """A step in the making: what its stages have found out and decided.

    Attributes:
        engine: whose step it is.
        stages: those of this step, in their order.
        record: what the step will have done.
        unscale: what the gradients are multiplied with before anything is measured.
        scale, limit: what they are multiplied with, and the limit of an element then; 0: none.
        norm, norms, order: of all gradients, of each, before `scale`, and of what order; None where not needed.
        cohorts: (group, step, scalars) of those that step alike; see `Engine.begin`.
    """

    engine: Any
    stages: list
    record: Step
    unscale: float = 1.0
    scale: float = 1.0
    limit: float = 0.0
    norm: float | None = None
    norms: Any = None
    order: float = 2.0
    cohorts: list = field(default_factory=list)

    @property
    def plan(self):
        return self.engine.plan

    @property
    def threads(self):
        return self.engine.num_threads
