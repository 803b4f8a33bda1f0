"""More than 2**31 elements in one parameter: 9 GB are written, so these are made only where FASTOPT_LARGE_TESTS is set.

Gradients come from numpy.zeros, whose pages take no memory until they are written.
"""

import math
import os

import numpy as np
import pytest

import fastopt
from fastopt.cli import free_memory

SIZE = 2**31 + 5_000
NEEDED = 12e9  # bytes
PLACES = [0, 2_047, 2**30, 2**31 - 1, 2**31, 2**31 + 2_049, SIZE - 1]

pytestmark = [
    pytest.mark.skipif(not os.environ.get("FASTOPT_LARGE_TESTS"), reason="FASTOPT_LARGE_TESTS is not set"),
    pytest.mark.skipif(free_memory() < NEEDED, reason=f"needs {NEEDED / 1e9:.0f} GB"),
]


@pytest.fixture(scope="module")
def grad():
    made = np.zeros(SIZE, "float32")
    made[PLACES] = np.arange(1, len(PLACES) + 1)
    return made


def test_norms(grad):
    norm = math.sqrt(sum(k * k for k in range(1, len(PLACES) + 1)))
    assert fastopt.get_total_norm([grad]) == pytest.approx(norm, rel=1e-6)


def test_dense_steps(grad):
    param = np.zeros(SIZE, "float32")
    for threads, stages, rate in ((1, None, 1.0), (2, None, 1.0), (2, {"clip": 1e9, "statistics": True}, 1.0)):
        optimizer = fastopt.SGD(param, lr=rate)
        optimizer.num_threads = threads
        if stages:
            optimizer.set_stages(**stages)
        optimizer.step(grad)
    assert param[PLACES].tolist() == [-3.0 * k for k in range(1, len(PLACES) + 1)]
    assert np.count_nonzero(param) == len(PLACES)


def test_sparse_steps():
    table = np.zeros((SIZE // 64, 64), "float32")
    rows = np.array([len(table) - 1, 0, 2**31 // 64, 2**31 // 64 - 1])
    fastopt.SGD(table, lr=1.0).step([fastopt.SparseRows(rows, np.full((4, 64), np.arange(1, 5)[:, None], "float32"),
                                                        table.shape)])
    assert table[rows].tolist() == [[-float(k)] * 64 for k in range(1, 5)]
    assert not table[[1, len(table) - 2, 2**31 // 64 + 1]].any()
