"""`python -m fastopt.bench.muon`: a Muon step against the bare matrix products of its Newton–Schulz iteration.

The products are those of the textbook iteration, X Xᵀ, A A and B X, five times: by `numpy.matmul` into arrays that
are there already, in the same dtype, on the same threads of the same BLAS. A step of fastopt also has all the rest to
do, and makes it up by products of its own choice (see `fastopt.optimizers.muon.Workspace`). torch.optim's Muon, which
multiplies in bfloat16, stands beside it. All take turns in one process.
"""

import argparse
import os
import sys
from statistics import median

import numpy as np

from ..cli import Parser, Stop, execute, need_memory, positive, whole
from ..kernels import threads
from ..optimizers import Muon
from .machine import machine
from .rivals import Rival, torch
from .runner import interleave, torch_threads

SHAPES = ((1024, 1024), (768, 3072), (3072, 768), (256, 256), (64, 256))
FASTOPT, PRODUCTS, TORCH = "fastopt", "bare products", "torch, bfloat16"
STEPS = 5  # of Newton–Schulz


def rivals(rows, columns, dtype="float32"):
    """The steps to compare, over arrays of their own."""
    rng = np.random.default_rng(0)
    param, grad = (rng.standard_normal((rows, columns)).astype(dtype) for _ in range(2))
    found = [Rival(FASTOPT, Muon(param.copy(), ns_steps=STEPS).step, ([grad],)),
             Rival(PRODUCTS, products(param))]
    if torch() is not None and hasattr(torch().optim, "Muon"):
        tensor = torch().nn.Parameter(torch().from_numpy(param.copy()))
        tensor.grad = torch().from_numpy(grad.copy())
        optimizer = torch().optim.Muon([tensor], ns_steps=STEPS)
        found.append(Rival(TORCH, lambda _: optimizer.step()))
    return found


def products(matrix):
    """The products of one step, as a function of anything."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x, out = matrix / np.linalg.norm(matrix), np.empty_like(matrix)
    x, out = (x, out) if wide else (x.T, out.T)
    gram, square = (np.empty((len(x), len(x)), matrix.dtype) for _ in range(2))

    def step(_):
        for _ in range(STEPS):
            np.matmul(x, x.T, out=gram)
            np.matmul(gram, gram, out=square)
            np.matmul(square, x, out=out)

    return step


def blas_threads():
    """What torch is given too: OpenBLAS's own default is every CPU."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if given := os.environ.get(variable):
            try:
                return whole(1)(given)
            except argparse.ArgumentTypeError as error:
                raise Stop(f"{variable} {error}") from None
    return threads.cpus()


def measure(shape, dtype="float32", rounds=30, seconds=10.0):
    """{rival: its seconds per step, one number for each round}."""
    with torch_threads(blas_threads()):
        entries = rivals(*shape, dtype)
        return dict(zip((one.name for one in entries), interleave(entries, rounds, seconds), strict=True))


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.muon", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=whole(1), default=30, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=10.0, help="of each shape (default: %(default)s)")
    parser.add_argument("--shape", type=whole(1, 1_000_000), nargs=2, action="append",
                        help="rows and columns (repeatable)")
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints what the options ask for."""
    for shape in args.shape or ():
        need_memory(8 * 4 * shape[0] * shape[1])
    print(*(f"{name}: {value}" for name, value in machine().items()), f"BLAS threads: {blas_threads()}", sep="\n")
    print("\n| shape | rival | best ms | median ms | fastopt takes (best) | fastopt takes (median) |")
    print("|---|---|---|---|---|---|")
    for shape in args.shape or SHAPES:
        samples = measure(shape, args.dtype, args.rounds, args.seconds)
        ours = samples[FASTOPT]
        for name, theirs in samples.items():
            ratios = median(mine / other for mine, other in zip(ours, theirs, strict=True))
            print(f"| {shape[0]}x{shape[1]} | {name} | {min(theirs) * 1e3:.3f} | {median(theirs) * 1e3:.3f} "
                  f"| {min(ours) / min(theirs):.2f} x | {ratios:.2f} x |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
