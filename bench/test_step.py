"""pytest-benchmark over the rows and contenders of the race of steps: `pytest bench`, grouped by method and case.

pytest-benchmark measures one contender after the other: for ratios on a busy machine use `fastopt bench`, which
interleaves them.
"""

import pytest

pytest.importorskip("pytest_benchmark")

from fastopt.bench import cases, race, runner, steps

CASES = [case for case in map(cases.parse, cases.CASES) if case.total <= cases.LARGE]
CONTENDERS = [one for one in steps.RACE.contenders if not one.asked]


@pytest.fixture(autouse=True)
def one_thread():
    with runner.threads_of_all(1):
        yield


@pytest.mark.benchmark(max_time=0.05, min_rounds=3, disable_gc=True, warmup=False)
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: one.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("row", steps.ROWS, ids=lambda row: row.name)
def test_step(benchmark, row, case, contender):
    if contender.needs and not race.installed(contender.needs):
        pytest.skip(f"{contender.needs} is not installed")
    work = steps.Work(row, case)
    step = contender.make(work)
    if step is None:
        pytest.skip("no such contender for this method and case")
    benchmark.group = f"{row.name}, {case.name}"
    benchmark.extra_info["elements"] = case.total
    benchmark.extra_info["bytes"] = work.traffic
    arguments = step.before(1) if step.before else step.arguments
    runner.timed(step, 1)
    benchmark(step.step, *(() if arguments is None else arguments[:1]))
