"""Row-sparse steps against torch's: `python -m fastopt.bench.sparse`.

A table of 1,000,000 rows of 64 float32, of which each step touches 4,096: other rows at every step, and the
gradient is made anew each time, as from an embedding layer. One thread. torch is left out where it is missing.
"Of the limit" is the time of a step over the same rows and states whose arithmetic is one multiplication: what the
misses of the touched rows cost alone, the gradient made beforehand.
"""

import gc
import sys
import time
from statistics import median

import numpy as np

import fastopt
from fastopt.kernels.plan import AS_IT_IS, Plan

from ..cli import Parser, execute
from .rivals import same_traffic

ROWS, COLUMNS, TOUCHED, ROUNDS = 1_000_000, 64, 4_096, 30
# name: options, state arrays
METHODS = {"SparseAdam": ({}, 2), "Adagrad": ({}, 1), "SGD": ({}, 0), "SGD momentum=0.9": ({"momentum": 0.9}, 1)}


def gradients():
    rng = np.random.default_rng(0)
    # with momentum the touched rows of all steps move on: let them be the same ones
    pool = rng.choice(ROWS, 8 * TOUCHED, replace=False)
    return [(rng.choice(pool, TOUCHED), rng.standard_normal((TOUCHED, COLUMNS)).astype("float32")) for _ in range(8)]


def of_fastopt(name, options):
    table = np.ones((ROWS, COLUMNS), "float32")
    optimizer = getattr(fastopt, name)(table, lr=1e-3, **options)
    return lambda rows, values: optimizer.step([fastopt.SparseRows(rows, values, table.shape)])


def of_torch(name, options):
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()
    table = torch.ones((ROWS, COLUMNS), requires_grad=True)
    optimizer = getattr(torch.optim, name)([table], lr=1e-3, **options)

    def step(rows, values):
        table.grad = torch.sparse_coo_tensor(torch.from_numpy(rows[None]), torch.from_numpy(values), table.shape)
        optimizer.step()

    return step


def of_limit(states):
    table, plan = np.ones((ROWS, COLUMNS), "float32"), Plan("traffic")
    plan.extend([table], [None], 0)
    plan.set_state(0, [np.ones_like(table) for _ in range(states)])
    plan.accept("only")
    known = {}

    def step(rows, values):
        if id(rows) not in known:
            known[id(rows)] = fastopt.SparseRows(rows, values, table.shape)
        plan.begin([known[id(rows)]])
        plan.run([(AS_IT_IS, same_traffic(states), ())])

    return step


def race(steps):
    """Seconds of each round for each contender, interleaved; the first steps are not counted."""
    drawn, seconds = gradients(), {name: [] for name in steps}
    for step in steps.values():
        for rows, values in drawn:
            step(rows, values)
    gc.disable()
    try:
        for number in range(ROUNDS):
            rows, values = drawn[number % len(drawn)]
            for name, step in steps.items():
                start = time.perf_counter()
                step(rows, values)
                seconds[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.sparse", description=__doc__.split("\n\n")[0])
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints the table."""
    print(f"{TOUCHED} touched rows of {COLUMNS} float32 in a table of {ROWS} rows, one thread\n")
    print("| method | fastopt, best µs | torch, best µs | best | median | of the limit |")
    print("|---|---|---|---|---|---|")
    for title, (options, states) in METHODS.items():
        name = title.split()[0]
        contenders = {"torch": of_torch(name, options), "fastopt": of_fastopt(name, options),
                      "limit": of_limit(states) if "momentum" not in options else None}
        seconds = race({who: step for who, step in contenders.items() if step})
        mine = seconds["fastopt"]
        cells = [title, f"{min(mine) * 1e6:.0f}", "", "", "", ""]
        if "torch" in seconds:
            theirs = seconds["torch"]
            ratio = median(their / my for my, their in zip(mine, theirs, strict=True))
            cells[2:5] = f"{min(theirs) * 1e6:.0f}", f"{min(theirs) / min(mine):.1f} x", f"{ratio:.1f} x"
        if "limit" in seconds:
            cells[5] = f"{min(seconds['limit']) / min(mine):.0%}"
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
