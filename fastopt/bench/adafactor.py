"""Adafactor against torch.optim: the same parameter on one thread, whose bytes are those of two sweeps."""

import numpy as np

from ..optimizers import Adafactor
from .cases import parse_shape
from .race import FASTOPT, Contender, Race, Row, Step, torch
from .steps import FOREACH, LOOP

BYTES = 20  # of a float32 element: G and P read, then G read and P read and written
ROWS = (Row("Adafactor"), Row("Adafactor, small gradients", {"scale": 1e-8}))  # under eps[0]: a sweep more


class Work:
    def __init__(self, row, case, dtype="float32", threads=1):
        rng = np.random.default_rng(7)
        self.threads, self.elements, self.traffic, self.bytes = threads, case.total, BYTES * case.total, 0
        self.param = 0.02 * rng.standard_normal(case.sizes, np.float32)
        self.grad = (1e-3 * row.options.get("scale", 1.0) * rng.standard_normal(case.sizes)).astype(np.float32)


def with_fastopt(work):
    optimizer = Adafactor([work.param.copy()])
    optimizer.num_threads = work.threads
    return Step(optimizer.step, ([work.grad],))


def with_torch(work, foreach):
    tensor = torch().tensor(work.param, requires_grad=True)
    tensor.grad = torch().from_numpy(work.grad)
    return Step(torch().optim.Adafactor([tensor], foreach=foreach).step)


RACE = Race(
    "adafactor", "Steps of Adafactor.", ROWS,
    ("4096x4096", "1024x1024", "256x256", "100000x64", "16x65536", "256x256x3x3", "1000000"), parse_shape, Work,
    (
        Contender(FASTOPT, with_fastopt),
        Contender(LOOP, lambda work: with_torch(work, False), needs="torch"),
        Contender(FOREACH, lambda work: with_torch(work, True), needs="torch"),
    ),
    base=FASTOPT, dtypes=("float32",),
)
