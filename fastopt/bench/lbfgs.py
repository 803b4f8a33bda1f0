"""What LBFGS costs beside its closure, against torch.optim.LBFGS: the time of an iteration.

Both minimise the same quadratic ½ Σ aᵢ xᵢ² in float32, whose curvatures aᵢ are so spread that nothing converges. Both
have their full history before the first round. What their closure takes does not count.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..optimizers import LBFGS
from .cases import Case, parse
from .race import FASTOPT, TORCH, Contender, Race, Row, Step, torch

HISTORY = 100
ITERATIONS = 5  # of a call
OPTIONS = {"lr": 0.5, "tolerance_grad": -1.0, "tolerance_change": -1.0}  # nothing ends a step early
ROWS = (Row("LBFGS"), Row("LBFGS strong_wolfe", {"line_search_fn": "strong_wolfe"}))


@dataclass(frozen=True)
class Problem(Case):
    """One parameter, whose history is most of the memory."""

    @property
    def threads(self):
        return (1,)

    @property
    def memory(self):
        return 4 * self.total * 4 * HISTORY


def problem(name):
    case = parse(name)
    if case.arrays > 1:
        raise ValueError(f"LBFGS is measured with one array, such as 1x1M, got {name!r}")
    return Problem(1, case.elements)


class Work:
    """The curvatures, and where the search starts."""

    def __init__(self, row, case, dtype="float32", threads=1):
        random = np.random.default_rng(0)
        self.options = OPTIONS | row.options | {"history_size": HISTORY}
        self.curvatures = np.exp(random.uniform(np.log(1e-2), np.log(1e2), case.total)).astype(np.float32)
        self.start = random.standard_normal(case.total, dtype=np.float32)
        self.bytes = 0


class Quadratic:
    """The closure of one contender: computes the loss, and writes the gradient; its time is added to a clock."""

    def __init__(self, work):
        self.x, self.curvatures, self.seconds = work.start.copy(), work.curvatures, 0.0
        self.grad = np.empty_like(self.x)

    def __call__(self):
        start = perf_counter()
        np.multiply(self.x, self.curvatures, out=self.grad)
        loss = 0.5 * float(self.x @ self.grad)
        self.seconds += perf_counter() - start
        return loss

    def taken(self):
        """The clock, which is set back."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def minimised(optimizer, closure):
    group = optimizer.param_groups[0]

    def iterate(iterations=ITERATIONS):
        group.update(max_iter=iterations, max_eval=2 * iterations)
        optimizer.step(closure)

    iterate(HISTORY + 2)
    return Step(iterate, aside=closure.taken, steps=ITERATIONS)


def with_fastopt(work):
    closure = Quadratic(work)
    optimizer = LBFGS([closure.x], **work.options)
    optimizer.bind_grads([closure.grad])
    return minimised(optimizer, closure)


def with_torch(work):
    closure = Quadratic(work)
    tensor = torch().from_numpy(closure.x).requires_grad_()
    tensor.grad = torch().from_numpy(closure.grad)
    return minimised(torch().optim.LBFGS([tensor], **work.options), closure)


RACE = Race(
    "lbfgs", "Iterations of LBFGS without their closures.", ROWS, ("1x1M",), problem, Work,
    (Contender(FASTOPT, with_fastopt), Contender(TORCH, with_torch, needs="torch")),
    base=FASTOPT, dtypes=("float32",), rounds=9, seconds=30.0,
)
