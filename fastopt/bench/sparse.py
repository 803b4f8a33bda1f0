"""Row-sparse steps against torch's.

A table of 1,000,000 rows, of which each step touches a few: other rows at every step, and the gradient is made anew
each time, as from an embedding layer. The limit is a step over the same rows and states whose arithmetic is one
multiplication: what the misses of the touched rows cost alone, the gradient made beforehand.
"""

import re
from dataclasses import dataclass

import numpy as np

import fastopt

from .limit import same_traffic_rows
from .race import FASTOPT, LIMIT, TORCH, Contender, Race, Row, Step, torch

TABLE = 1_000_000  # rows
ROWS = (Row("SparseAdam"), Row("Adagrad"), Row("SGD"), Row("SGD momentum=0.9", {"momentum": 0.9}))
STATES = {"SparseAdam": 2, "Adagrad": 1, "SGD": 0}  # arrays; with momentum every row moves


@dataclass(frozen=True)
class Touched:
    """Rows that a step touches, and the columns of the table."""

    rows: int
    columns: int

    @property
    def name(self):
        return f"{self.rows} rows of {self.columns}"

    @property
    def threads(self):
        return (1,)

    @property
    def memory(self):
        return 4 * TABLE * self.columns * 8


def parse(name):
    match = re.fullmatch(r"(\d+)(?:x| rows of )(\d+)", name)
    sizes = [int(digits) for digits in match.groups()] if match else [0]
    if min(sizes) < 1 or sizes[0] > TABLE // 8:
        raise ValueError(f"a case is named <touched rows>x<columns>, such as 4096x64, got {name!r}")
    return Touched(*sizes)


class Work:
    """The rows and values of eight gradients."""

    bytes = 0

    def __init__(self, row, case, dtype="float32", threads=1):
        self.row, self.shape, self.threads = row, (TABLE, case.columns), threads
        rng = np.random.default_rng(0)
        # with momentum the touched rows of all steps move on: let them be the same ones
        pool = rng.choice(TABLE, 8 * case.rows, replace=False)
        self.drawn = tuple((rng.choice(pool, case.rows), rng.standard_normal((case.rows, case.columns), np.float32))
                           for _ in range(8))
        self.method = row.name.split()[0]


def with_fastopt(work):
    table = np.ones(work.shape, "float32")
    optimizer = getattr(fastopt, work.method)(table, lr=1e-3, **work.row.options)
    optimizer.num_threads = work.threads
    return Step(lambda drawn: optimizer.step([fastopt.SparseRows(*drawn, table.shape)]), work.drawn)


def with_torch(work):
    torch().sparse.check_sparse_tensor_invariants.disable()
    table = torch().ones(work.shape, requires_grad=True)
    optimizer = getattr(torch().optim, work.method)([table], lr=1e-3, **work.row.options)

    def step(drawn):
        rows, values = drawn
        table.grad = torch().sparse_coo_tensor(torch().from_numpy(rows[None]), torch().from_numpy(values), table.shape)
        optimizer.step()

    return Step(step, work.drawn)


def limit(work):
    if work.row.options:
        return None
    table = np.ones(work.shape, "float32")
    states = [np.ones_like(table) for _ in range(STATES[work.method])]
    return Step(same_traffic_rows(table, states), tuple(fastopt.SparseRows(*drawn, table.shape)
                                                        for drawn in work.drawn))


RACE = Race(
    "sparse", "Steps of an embedding table.", ROWS, ("4096x64",), parse, Work,
    (Contender(FASTOPT, with_fastopt), Contender(TORCH, with_torch, needs="torch"), Contender(LIMIT, limit)),
    base=FASTOPT, dtypes=("float32",),
)
