"""Updates of an exponential moving average of weights: `python -m fastopt.bench.averages`.

fastopt against torch's get_ema_multi_avg_fn (a foreach lerp), NumPy in place, and the same-traffic limit: 12 bytes for
each float32 element, which reads the parameter and reads and writes the average. All take turns in one process, on one
thread unless asked otherwise, over arrays that begin on a cache line, as torch's do; fastopt, NumPy and the limit work
on the same ones.
"""

import sys
from statistics import median

import numpy as np

from ..averages import EMA
from ..cli import Parser, execute, positive, whole
from ..kernels import rules
from ..kernels.arrays import owned
from ..kernels.plan import AS_IT_IS, Plan
from .cases import case_named, parse
from .machine import machine
from .rivals import IN_PLACE, LIMIT, Rival, tensor, torch
from .runner import interleave, spacer, torch_threads

CASES = ("1000x16", "1x100k", "1x10M")
DECAY = 0.999
FASTOPT, FOREACH = "fastopt", "torch foreach lerp"


def rivals(case, dtype="float32", threads=1):
    """The updates to compare, and for each rival its averages, which are 1 at first."""
    random = np.random.default_rng(7)
    params = [owned(random.standard_normal(case.elements, dtype), dtype) for _ in range(case.arrays)]
    ema = EMA(params, decay=DECAY)
    ema.num_threads = threads
    ema.update()
    averages = ema.averages
    for average in averages:
        average.fill(1.0)
    found = [Rival(FASTOPT, lambda _: ema.update()), Rival(IN_PLACE, in_place(averages, params)),
             Rival(LIMIT, limit(averages, params, threads))]
    held = [averages] * len(found)
    if torch() is not None:
        tensors = [tensor(torch().from_numpy(average)) for average in averages]
        found.append(Rival(FOREACH, foreach(tensors, [tensor(torch().from_numpy(param)) for param in params])))
        held.append([average.numpy() for average in tensors])
    return found, held


def in_place(averages, params):
    work = np.empty_like(params[0])

    def update(_):
        for average, param in zip(averages, params, strict=True):
            np.subtract(param, average, out=work)
            np.multiply(work, 1 - DECAY, out=work)
            np.add(average, work, out=average)

    return update


def limit(averages, params, threads):
    """See `rivals.limit`; the factor 1 keeps every number normal."""
    plan = Plan("traffic")
    plan.extend(averages, [None] * len(averages), 0)
    plan.bind(params)

    def update(_):
        plan.begin(None)
        plan.run([(AS_IT_IS, rules.traffic(x=1.0), ())], threads)

    return update


def foreach(averages, params):
    function = torch().optim.swa_utils.get_ema_multi_avg_fn(DECAY)
    return lambda _: function(averages, params, None)


def measure(case, dtype="float32", threads=1, rounds=60, seconds=4.0):
    """{rival: its seconds per update, one number for each round}."""
    with torch_threads(threads):
        entries, _ = rivals(case, dtype, threads)
        samples = interleave(entries, rounds, seconds, spacer(2 * case.total * np.dtype(dtype).itemsize))
        return dict(zip((one.name for one in entries), samples, strict=True))


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.averages", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--rounds", type=whole(1), default=60, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=4.0, help="of each case (default: %(default)s)")
    parser.add_argument("--case", action="append", type=case_named, help="such as 100x64 or 1x1M (repeatable)")
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints what the options ask for."""
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print("\n| case | rival | best µs | GB/s | of fastopt's time (best) | of fastopt's time (median) |")
    print("|---|---|---|---|---|---|")
    for case in args.case or map(parse, CASES):
        samples = measure(case, args.dtype, args.threads, args.rounds, args.seconds)
        ours, traffic = samples[FASTOPT], 3 * np.dtype(args.dtype).itemsize * case.total
        for name, theirs in samples.items():
            ratio = median(other / mine for mine, other in zip(ours, theirs, strict=True))
            print(f"| {case.name} | {name} | {min(theirs) * 1e6:.2f} | {traffic / min(theirs) / 1e9:.1f} "
                  f"| {min(theirs) / min(ours):.2f} x | {ratio:.2f} x |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
