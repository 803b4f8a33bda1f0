"""Updates of an exponential moving average of weights.

fastopt against torch's get_ema_multi_avg_fn (a foreach lerp), NumPy in place, and the same-traffic limit: 12 bytes for
each float32 element, which reads the parameter and reads and writes the average. All work on arrays that begin on a
cache line, as torch's do; fastopt, NumPy and the limit on the same ones.
"""

import numpy as np

from ..averages import EMA
from ..kernels.arrays import owned
from .cases import parse
from .limit import same_traffic
from .race import FASTOPT, LIMIT, Contender, Race, Row, Step, torch
from .steps import IN_PLACE, tensor

DECAY = 0.999
LERP = "torch foreach lerp"


class Work:
    """Parameters, and their averages, which are 1 at first."""

    def __init__(self, row, case, dtype="float32", threads=1):
        random = np.random.default_rng(7)
        self.threads, self.elements, self.traffic = threads, case.total, 3 * np.dtype(dtype).itemsize * case.total
        self.bytes = 2 * case.total * np.dtype(dtype).itemsize
        self.params = [owned(random.standard_normal(case.elements, dtype), dtype) for _ in range(case.arrays)]
        self.ema = EMA(self.params, decay=DECAY)
        self.ema.num_threads = threads
        self.ema.update()
        self.averages = self.ema.averages
        self.tensors = torch() and [tensor(torch().from_numpy(average)) for average in self.averages]
        self.fill(1.0)

    def fill(self, value):
        for average in [*self.averages, *(self.tensors or ())]:
            average[...] = value


def with_fastopt(work):
    return Step(work.ema.update)


def in_place(work):
    averages, params, scratch = work.averages, work.params, np.empty_like(work.params[0])

    def update():
        for average, param in zip(averages, params, strict=True):
            np.subtract(param, average, out=scratch)
            np.multiply(scratch, 1 - DECAY, out=scratch)
            np.add(average, scratch, out=average)

    return Step(update)


def limit(work):
    return Step(same_traffic(work.averages, [()] * len(work.averages), work.params, work.threads))


def foreach_lerp(work):
    function = torch().optim.swa_utils.get_ema_multi_avg_fn(DECAY)
    averages, params = work.tensors, [tensor(torch().from_numpy(param)) for param in work.params]
    return Step(lambda: function(averages, params, None))


RACE = Race(
    "averages", "Updates of an exponential moving average.", (Row("EMA"),), ("1000x16", "1x100k", "1x10M"), parse, Work,
    (
        Contender(FASTOPT, with_fastopt),
        Contender(IN_PLACE, in_place),
        Contender(LERP, foreach_lerp, needs="torch"),
        Contender(LIMIT, limit),
    ),
    base=FASTOPT, seconds=4.0,
)
