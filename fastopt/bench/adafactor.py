"""Adafactor against torch.optim: `python -m fastopt.bench.adafactor`.

Both step the same matrices on one thread, in turns. Each line has the best and the median time of a step, what it
moves in bytes per second if two sweeps do it (20 bytes for each float32 element), and what it allocates at its peak
as seen by `tracemalloc`, which does not see torch.
"""

import sys
import tracemalloc
from statistics import median
from time import perf_counter

import numpy as np

from ..cli import Parser, execute, whole
from ..optimizers import Adafactor
from .cases import shape_named
from .rivals import FASTOPT, FOREACH, LOOP, torch
from .runner import no_garbage_collection

SHAPES = ("4096x4096", "1024x1024", "256x256", "100000x64", "16x65536", "256x256x3x3", "1000000")
BYTES = 20  # of a float32 element: G and P read, then G read and P read and written
ROUNDS = 15


def steps(shape, small):
    """The ways to make a step of a parameter, by name: functions without an argument, after their first step."""
    rng = np.random.default_rng(7)
    param = 0.02 * rng.standard_normal(shape, np.float32)
    grad = 1e-3 * rng.standard_normal(shape, np.float32)
    if small:
        grad *= np.float32(1e-8)  # under eps[0], where the sum of squares of the update costs a sweep more
    ours = Adafactor([param.copy()])
    ours.num_threads = 1
    ours.bind_grads([grad])
    ways = {FASTOPT: lambda _bound=grad: ours.step()}
    if torch() is not None:
        torch().set_num_threads(1)
        for name, foreach in ((LOOP, False), (FOREACH, True)):
            tensor = torch().tensor(param, requires_grad=True)
            tensor.grad = torch().from_numpy(grad)
            ways[name] = torch().optim.Adafactor([tensor], foreach=foreach).step
    for step in ways.values():
        step()
    return ways


def measure(ways, rounds):
    """Seconds of a step: the ways take turns, and a turn of a fast one is several steps."""
    seconds = {name: [] for name in ways}
    turns = {}
    for name, step in ways.items():
        start = perf_counter()
        step()
        turns[name] = max(1, round(0.01 / (perf_counter() - start)))
    with no_garbage_collection():
        for _ in range(rounds):
            for name, step in ways.items():
                start = perf_counter()
                for _ in range(turns[name]):
                    step()
                seconds[name].append((perf_counter() - start) / turns[name])
    return seconds


def allocated(step):
    """Bytes that a step allocates at its peak."""
    tracemalloc.start()
    try:
        step()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.adafactor", description=__doc__)
    parser.add_argument("shapes", nargs="*", type=shape_named, metavar="SHAPE", help="such as 4096x4096")
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, metavar="N", help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="gradients under eps[0]")
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints what the options ask for."""
    print("| shape | step | best, ms | median, ms | GB/s | takes, best | takes, median | allocates, bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in args.shapes or map(shape_named, SHAPES):
        text = "x".join(map(str, shape))
        ways = steps(shape, args.small)
        seconds = measure(ways, args.rounds)
        best, middle = min(seconds[FASTOPT]), median(seconds[FASTOPT])
        for name, own in seconds.items():
            rate = f"{BYTES * np.prod(shape) / min(own) / 1e9:.1f}" if name == FASTOPT else ""
            size = f"{allocated(ways[name]):,}" if name == FASTOPT else ""
            print(f"| {text} | {name} | {min(own) * 1e3:.3f} | {median(own) * 1e3:.3f} | {rate} "
                  f"| {min(own) / best:.2f} x | {median(own) / middle:.2f} x | {size} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
