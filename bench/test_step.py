"""pytest-benchmark over the rows and rivals of `fastopt.bench`: `pytest bench`, grouped by method and case.

pytest-benchmark measures one rival after the other: for ratios on a busy machine use `fastopt bench`, which
interleaves them.
"""

import pytest

pytest.importorskip("pytest_benchmark")

from fastopt.bench import cases, rivals, runner

CASES = [case for case in cases.CASES if case.total <= cases.LARGE]
ROWS = rivals.rows()


@pytest.fixture(autouse=True)
def one_thread():
    with runner.torch_threads(1):
        yield


@pytest.mark.benchmark(max_time=0.05, min_rounds=3, disable_gc=True, warmup=False)
@pytest.mark.parametrize("name", rivals.MAKERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_step(benchmark, row, case, name):
    work = rivals.Workspace(row, case)
    rival = rivals.MAKERS[name](work)
    if rival is None:
        pytest.skip("no such rival for this method and case, or torch is not installed")
    benchmark.group = f"{row.name}, {case.name}"
    benchmark.extra_info["elements"] = case.total
    benchmark.extra_info["bytes"] = case.total * row.traffic(work.dtype.itemsize)
    rival.step(rival.arguments[-1])
    benchmark(rival.step, rival.arguments[0])
