"""Row-sparse steps against torch's: `python -m fastopt.bench.sparse`.

A table of 1,000,000 rows of 64 float32, of which each step touches 4,096: other rows at every step, and the
gradient is made anew each time, as from an embedding layer. One thread. torch is left out where it is missing.
"""

import gc
import time
from statistics import median

import numpy as np

import fastopt

ROWS, COLUMNS, TOUCHED, ROUNDS = 1_000_000, 64, 4_096, 30
METHODS = {"SparseAdam": {}, "Adagrad": {}, "SGD": {}, "SGD momentum=0.9": {"momentum": 0.9}}


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


def main():
    print(f"{TOUCHED} touched rows of {COLUMNS} float32 in a table of {ROWS} rows, one thread\n")
    print("| method | fastopt, best µs | torch, best µs | best | median |")
    print("|---|---|---|---|---|")
    for title, options in METHODS.items():
        name = title.split()[0]
        steps = {"fastopt": of_fastopt(name, options), "torch": of_torch(name, options)}
        seconds = race({who: step for who, step in steps.items() if step})
        mine, theirs = seconds["fastopt"], seconds.get("torch")
        row = f"| {title} | {min(mine) * 1e6:.0f} |"
        if theirs:
            ratio = median(their / my for my, their in zip(mine, theirs, strict=True))
            row += f" {min(theirs) * 1e6:.0f} | {min(theirs) / min(mine):.1f} x | {ratio:.1f} x |"
        print(row)


if __name__ == "__main__":
    main()
