"""A Muon step against the bare matrix products of its Newton–Schulz iteration.

The products are those of the textbook iteration, X Xᵀ, A A and B X, five times: by `numpy.matmul` into arrays that
are there already, in the same dtype, on the same threads of the same BLAS. A step of fastopt also has all the rest to
do, and makes it up by products of its own choice (see `fastopt.optimizers.muon.Workspace`). torch.optim's Muon
multiplies in bfloat16.
"""

import argparse
import os

import numpy as np

from ..cli import Stop, whole
from ..kernels import threads
from ..optimizers import Muon
from .cases import Shape, parse_shape
from .race import FASTOPT, Contender, Race, Row, Step, torch

PRODUCTS, TORCH = "bare products", "torch, bfloat16"
STEPS = 5  # of Newton–Schulz


class Matrix(Shape):
    """On as many threads as the BLAS has."""

    @property
    def threads(self):
        return (blas_threads(),)


def blas_threads():
    """What everybody is given: OpenBLAS's own default is every CPU."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if given := os.environ.get(variable):
            try:
                return min(whole(1)(given), threads.most())
            except argparse.ArgumentTypeError as error:
                raise Stop(f"{variable} {error}") from None
    return threads.most()


class Work:
    def __init__(self, row, case, dtype="float32", threads=1):
        rng = np.random.default_rng(0)
        self.threads, self.bytes = threads, 0
        self.param, self.grad = (rng.standard_normal(case.sizes).astype(dtype) for _ in range(2))


def with_fastopt(work):
    optimizer = Muon(work.param.copy(), ns_steps=STEPS)
    optimizer.num_threads = work.threads
    return Step(optimizer.step, ([work.grad],))


def with_torch(work):
    if not hasattr(torch().optim, "Muon"):
        return None
    tensor = torch().nn.Parameter(torch().from_numpy(work.param.copy()))
    tensor.grad = torch().from_numpy(work.grad.copy())
    return Step(torch().optim.Muon([tensor], ns_steps=STEPS).step)


def products(work):
    """The products of one step."""
    matrix = work.param
    wide = matrix.shape[0] <= matrix.shape[1]
    x, out = matrix / np.linalg.norm(matrix), np.empty_like(matrix)
    x, out = (x, out) if wide else (x.T, out.T)
    gram, square = (np.empty((len(x), len(x)), matrix.dtype) for _ in range(2))

    def step():
        for _ in range(STEPS):
            np.matmul(x, x.T, out=gram)
            np.matmul(gram, gram, out=square)
            np.matmul(square, x, out=out)

    return Step(step)


RACE = Race(
    "muon", "Steps of Muon.", (Row("Muon"),), ("1024x1024", "768x3072", "3072x768", "256x256", "64x256"),
    lambda name: parse_shape(name, (2,), Matrix), Work,
    (
        Contender(FASTOPT, with_fastopt),
        Contender(PRODUCTS, products),
        Contender(TORCH, with_torch, needs="torch"),
    ),
    base=FASTOPT, seconds=10.0,
)
