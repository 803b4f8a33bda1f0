"""The benchmark: its contenders do the same work, its commands print what they promise. Nothing is timed."""

import argparse
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from common import ELEMENTWISE

import fastopt
from fastopt.bench import (
    averages,
    cases,
    cli,
    lbfgs,
    limit,
    machine,
    muon,
    numpy_in_place,
    race,
    runner,
    schedulers,
    sparse,
    stages,
    steps,
    targets,
    threads_in_loop,
)

ROWS = {row.name: row for row in steps.ROWS}
CONTENDERS = {one.name: one for one in steps.RACE.contenders}
TORCH = [name for name, one in CONTENDERS.items() if one.needs == "torch"]
LIMITS = {steps.LIMIT, steps.DIVIDER}
SIZES = (cases.Case(3, 37), cases.Case(1, 2 * numpy_in_place.BLOCK + 5))
HEADS = {"case", "target", "network", "method", "contender"}
STEPS = 4  # of a contender, after its first


def named(value):
    return getattr(value, "name", value)


def call(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(arguments))


def table(text):
    """The cells of the Markdown tables in a text, without their heads."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()
            if line.startswith("| ") and line.split()[1] not in HEADS]


def expected(work):
    """The parameters after the steps of a contender, from the reference in double precision."""
    params, grads = ([array.astype(float) for array in arrays] for arrays in work.draw())
    for param, grad in zip(params, grads, strict=True):
        state = {}
        for number in range(1, STEPS + 2):
            work.row.method.reference(param, grad, state, number, **work.row.options)
    return params


def made(contender, work):
    """The step of a contender of this name."""
    if contender.needs:
        pytest.importorskip(contender.needs)
    return contender.make(work)


def advance(step, calls=STEPS):
    for number in range(calls):
        arguments = step.before(1) if step.before else step.arguments
        step.step(*(() if arguments is None else [arguments[number % len(arguments)]]))


@pytest.fixture
def torch_params(monkeypatch):
    """The parameters of the torch optimizer that is made next."""
    pytest.importorskip("torch")
    made, maker = [], steps.torch_optimizer

    def remember(work, **ways):
        optimizer = maker(work, **ways)
        if optimizer is not None:
            made.extend(param.numpy() for group in optimizer.param_groups for param in group["params"])
        return optimizer

    monkeypatch.setattr(steps, "torch_optimizer", remember)
    with runner.threads_of_all(1, ["torch"]):
        yield made


def check(name, row, case, dtype, params=None, threads=1):
    work = steps.Work(row, case, dtype, threads)
    step = made(CONTENDERS[name], work)
    if step is None and name == steps.NUMBA:
        from fastopt.bench import numba_loops

        assert row.name not in numba_loops.LOOPS
        return
    if step is None:
        assert name == steps.BLOCKS
        assert numpy_in_place.find(row) is None
        return
    advance(step)
    rtol = 2e-5 if dtype == "float32" else 1e-6  # the square root of torch's loop is not IEEE's
    for mine, reference in zip(params or work.params, expected(work), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", ROWS.values(), ids=named)
@pytest.mark.parametrize(("name", "case"), [
    (name, case) for name in CONTENDERS if name not in {*TORCH, *LIMITS}
    for case in (SIZES if name != steps.BLOCKS else SIZES[1:])
], ids=named)
def test_contenders_without_torch_make_the_step(name, row, case, dtype):
    check(name, row, case, dtype)


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_numba_makes_the_step_on_two_threads(row):
    numba = pytest.importorskip("numba")
    if numba.config.NUMBA_NUM_THREADS < 2 or threads_in_loop.threading.most() < 2:
        pytest.skip("one thread only")
    with runner.threads_of_all(2, ["numba"]):
        check(steps.NUMBA, row, SIZES[1], "float32", threads=2)


def test_a_method_without_a_loop_or_a_twin_has_the_other_contenders(monkeypatch):
    """So that a new method needs no edit of the benchmark."""
    monkeypatch.setattr(numpy_in_place, "METHODS", {})
    if race.installed("numba"):
        from fastopt.bench import numba_loops

        monkeypatch.setattr(numba_loops, "LOOPS", {})
        monkeypatch.setattr(numba_loops, "ROOTS", {})
    if race.torch():
        monkeypatch.delattr(race.torch().optim, "Adam")
    entered = steps.RACE.enter(steps.Work(ROWS["Adam"], SIZES[0]))
    assert set(entered) == {name for name, one in CONTENDERS.items() if not one.needs} - {steps.BLOCKS}


def test_blocks_are_of_no_use_for_small_arrays():
    assert CONTENDERS[steps.BLOCKS].make(steps.Work(ROWS["Adam"], SIZES[0])) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "row"), [
    (name, row) for name in TORCH if not CONTENDERS[name].asked for row in ROWS.values()
    if row.method.in_torch and (name != steps.FUSED or row.method.torch_fused)
], ids=named)
def test_torch_contenders_make_the_step(name, row, dtype, torch_params):
    check(name, row, SIZES[0], dtype, torch_params)


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_reference_stands_in_for_a_method_without_numpy_twin(row, monkeypatch):
    monkeypatch.setattr(numpy_in_place, "METHODS", {})
    assert CONTENDERS[steps.IN_PLACE].make(steps.Work(row, SIZES[0])).label == steps.EXPRESSIONS
    assert CONTENDERS[steps.BLOCKS].make(steps.Work(row, SIZES[1])) is None
    check(steps.IN_PLACE, row, SIZES[0], "float32")


def test_numpy_twin_is_not_used_with_options_it_does_not_know():
    adam = ROWS["Adam"].method
    assert numpy_in_place.find(steps.Row(adam, {"betas": (0.5, 0.9)}))
    assert numpy_in_place.find(steps.Row(adam, {"amsgrad": True})) is None


def test_new_gradients_are_other_objects_at_each_step():
    work = steps.Work(ROWS["Adam"], SIZES[0])
    step = steps.new_gradients(work)
    rows = step.before(3)
    again = step.before(2)
    objects = [grad for row in [*rows, *again] for grad in row]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert len({id(grad) for grad in objects}) == len({grad.ctypes.data for grad in objects}) == 15
    for row in rows:
        np.testing.assert_array_equal(row, work.grads)
    assert step.batch == steps.NEW_BYTES // (3 * (37 * 4 + steps.OBJECT_BYTES))


def test_large_new_gradients_are_views_of_the_same_memory(monkeypatch):
    monkeypatch.setattr(steps, "LARGE", 111)
    work = steps.Work(ROWS["Adam"], SIZES[0])
    (row,) = steps.new_gradients(work).before(1)
    for grad, other in zip(row, work.grads, strict=True):
        assert grad is not other and grad.ctypes.data == other.ctypes.data


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_limit_leaves_states_and_numbers_stay_normal(row):
    work = steps.Work(row, SIZES[0])
    before = [[state.copy() for state in states] for states in work.states]
    advance(steps.limit(work), 50)
    for states, originals in zip(work.states, before, strict=True):
        for state, original in zip(states, originals, strict=True):
            np.testing.assert_array_equal(state, original)
    for param in work.params:
        assert np.isfinite(param).all() and (np.abs(param) > np.finfo(param.dtype).tiny).all()


def test_the_divide_unit_makes_as_many_as_a_step():
    pytest.importorskip("numba")
    from fastopt.bench import numba_loops

    for row in ROWS.values():
        step = CONTENDERS[steps.DIVIDER].make(steps.Work(row, SIZES[0]))
        assert (step is not None) == (row.name in numba_loops.ROOTS)
        if step is not None:
            advance(step, 1)
            assert step.steps * SIZES[0].total >= numba_loops.LONG
    out, x, y = np.zeros(4), np.full(4, 4.0), np.full(4, 16.0)
    numba_loops.compiled(numba_loops.roots_over)(out, x, y, 8)
    assert out.tolist() == [0.125] * 4
    numba_loops.compiled(numba_loops.roots_over_roots)(out, x, y, 8)
    assert out.tolist() == [0.5] * 4


def test_every_method_has_its_rows():
    assert [row.name for row in ROWS.values() if not row.options] == [method.name for method in ELEMENTWISE]
    assert {name: row.traffic(4) for name, row in ROWS.items() if row.method.name == "SGD"} == {
        "SGD": 12, "SGD momentum=0.9": 20,
    }


def test_contenders_that_need_a_package_are_left_out_without_it(monkeypatch):
    monkeypatch.setattr(race, "installed", lambda package: None)
    entered = steps.RACE.enter(steps.Work(ROWS["Adam"], SIZES[0]))
    assert steps.NEW in entered and not set(entered) & {*TORCH, steps.NUMBA, steps.DIVIDER}


def test_contenders_that_take_minutes_want_to_be_asked_for():
    contenders = [race.Contender("a", lambda work: work), race.Contender("b", lambda work: work, asked=True),
                  race.Contender("c", lambda work: None)]
    one = dataclasses.replace(steps.RACE, contenders=contenders, base="a")
    assert one.enter(7) == {"a": 7}
    assert one.enter(7, {"b"}) == {"a": 7, "b": 7}
    assert [name for name, one in CONTENDERS.items() if one.asked] == [steps.COMPILED]


@pytest.mark.parametrize(("name", "arrays", "elements"), [
    ("100x64", 100, 64), ("1x100,000", 1, 100_000), ("1x1_000", 1, 1000), ("2x30M", 2, 30_000_000),
    ("1x5k", 1, 5000),
])
def test_names_of_cases(name, arrays, elements):
    assert cases.parse(name) == cases.Case(arrays, elements)
    assert cases.parse(cases.parse(name).name) == cases.parse(name)


@pytest.mark.parametrize("name", ["", "64", "0x64", "1x0", "1x", "x1", "1x1G", "-1x2", ",x1"])
def test_wrong_names_of_cases(name):
    with pytest.raises(ValueError, match="such as 100x64"):
        cases.parse(name)


@pytest.mark.parametrize("name", ["8x", "x", "", "0x4", "-1", "8xy", "x".join("1" * 33)])
def test_wrong_names_of_shapes(name):
    with pytest.raises(ValueError, match="dimensions, got 33 in|such as 1024x1024, got"):
        cases.parse_shape(name)


@pytest.mark.parametrize("one", cli.RACES.values(), ids=named)
def test_every_race_parses_its_cases_and_has_its_base(one):
    for name in one.cases:
        case = one.parse(name)
        assert one.parse(case.name) == case and case.threads and case.memory >= 0
    assert one.base in {contender.name for contender in one.contenders}
    with pytest.raises(ValueError, match="case"):
        one.parse("nothing")


def test_interleave_counts_rounds_and_returns_them_in_the_order_of_steps(monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 0.0)
    calls = []
    entries = [race.Step(lambda argument, name=name: calls.append((name, argument)), (1, 2)) for name in "ab"]
    samples = runner.interleave(entries, rounds=3, seconds=0.0)
    assert [len(times) for times in samples] == [3, 3]
    assert len(runner.interleave(entries, rounds=100, seconds=0.0)[0]) == runner.FEWEST
    assert set(calls) == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}


@pytest.fixture
def advance_clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runner, "perf_counter", lambda: clock[0])

    def advance(seconds=0.5):
        clock[0] += seconds
        return seconds

    return advance


def test_what_comes_before_a_step_is_not_counted(advance_clock):
    def before(calls):
        advance_clock(100.0)
        return [1.0, 3.0][:calls]

    assert runner.timed(race.Step(advance_clock, before=before, batch=2), 3) == 1.0 + 3.0 + 1.0


def test_what_passes_aside_is_not_counted(advance_clock):
    aside = []

    def step(seconds):
        aside.append(advance_clock(10.0))
        advance_clock(seconds)

    def taken():
        seconds = sum(aside)
        aside.clear()
        return seconds

    aside.append(7.0)  # of before
    assert runner.timed(race.Step(step, (1.0, 3.0), aside=taken), 3) == 5.0


def test_steps_without_arguments_and_calls_of_several_steps(advance_clock):
    samples = runner.interleave([race.Step(advance_clock), race.Step(advance_clock, steps=5)], rounds=2, seconds=0.0)
    assert samples == [[0.5, 0.5], [0.1, 0.1]]


def test_ratios():
    comparison = runner.Comparison("steps", "1x100", 1, "Adam", "float32", steps.NEW, {
        name: runner.Measurement(name, 100, 2800, seconds)
        for name, seconds in ((steps.NEW, (1e-6, 2e-6, 4e-6)), (steps.FUSED, (3e-6, 6e-6, 2e-6)),
                              (steps.LIMIT, (5e-7, 2e-6, 2e-6)))
    })
    assert comparison.ratios(steps.FUSED) == pytest.approx((2.0, 3.0))
    assert comparison.share_of_limit(steps.NEW) == pytest.approx(0.5)
    one = comparison.measurements[steps.NEW]
    assert (one.best, one.median) == (1e-6, 2e-6)
    assert one.gigabytes_per_second == pytest.approx(2.8)
    assert one.nanoseconds_per_element == pytest.approx(10.0)


def test_measurements_without_elements_have_no_rates():
    one = runner.Measurement("fastopt", None, None, (1.0,))
    assert one.gigabytes_per_second is None and one.nanoseconds_per_element is None
    comparison = runner.Comparison("muon", "8x8", 1, "Muon", "float32", "fastopt", {"fastopt": one})
    assert [column(comparison, "fastopt") for column in runner.RATES.values()] == ["", "", ""]


def test_threads_of_all_are_put_back():
    for package, get in (("torch", "get_num_threads"), ("numba", "get_num_threads")):
        module = race.installed(package)
        if module is None:
            continue
        before = getattr(module, get)()
        with runner.threads_of_all(1, [package]):
            assert getattr(module, get)() == 1
        assert getattr(module, get)() == before


def test_the_start_of_numbas_threads_leaves_torch_its_number():
    pytest.importorskip("torch"), pytest.importorskip("numba")
    code = """
from fastopt.bench import race, runner
with runner.threads_of_all(1):
    print(race.torch().get_num_threads(), race.installed("numba").get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_table_and_json(capsys, tmp_path):
    path = tmp_path / "out.json"
    assert call("--case", "2x8", "--method", "sgd", "Adam", "--rounds", "2", "--json", str(path)) == 0
    text = capsys.readouterr().out
    for word in ("CPU", "SIMD level", "compiler", "NumPy", "Numba", "torch", "threads"):
        assert f"- {word}: " in text
    lines = table(text)
    assert {line[2] for line in lines} == {"SGD", "SGD momentum=0.9", "Adam"}
    assert {steps.NEW, steps.SAME, steps.BOUND, steps.IN_PLACE, steps.LIMIT} <= {line[3] for line in lines}
    assert {len(line) for line in lines} == {11}
    saved = json.loads(path.read_text())
    assert saved["machine"]["CPU"] == machine.machine()["CPU"]
    assert [(one["case"], one["method"], one["contender"]) for one in saved["results"]] == [
        (line[0], line[2], line[3]) for line in lines
    ]
    assert all(one["best"] == min(one["seconds"]) and len(one["seconds"]) == 2 for one in saved["results"])


def test_selected_contenders_and_several_races(capsys):
    races = "averages", "steps"
    assert call(*races, "--case", "2x8", "--contender", "LIMIT", "--rounds", "1", "--dtype", "float64") == 0
    lines = table(capsys.readouterr().out)
    assert [line[3] for line in lines[:2]] == [race.FASTOPT, race.LIMIT]
    assert {line[3] for line in lines[2:]} <= {steps.NEW, *LIMITS}
    assert len({line[2] for line in lines[2:]}) == len(ROWS)


def test_case_that_cannot_have_its_threads_is_left_out(capsys):
    assert call("--case", "2x8", "--method", "Adam", "--rounds", "1", "--threads", "1000000") == 0
    text = capsys.readouterr().out
    assert table(text) == []
    assert "left out, 1000000 threads: at most" in text


@pytest.mark.parametrize("arguments", [
    ("--method", "Adamant"), ("--case", "64"), ("--rounds", "0"), ("--threads", "two"), ("--dtype", "int8"),
    ("nothing",), ("--contender", "nobody"), ("muon", "--case", "8"), ("adafactor", "--dtype", "float64"),
    ("schedules", "--case", "2x8"), ("sparse", "--case", "0x64"), ("lbfgs", "--case", "2x8"),
])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_targets_can_be_measured():
    assert len({one.text for one in targets.TARGETS}) == len(targets.TARGETS)
    keys = [key for key, _ in targets.groupby(targets.TARGETS, lambda one: one.key)]
    assert len(set(keys)) == len(keys)  # each is measured once
    for one in targets.TARGETS:
        assert one.method in {row.name for row in one.race.rows}
        assert {one.over, one.of} - {None} <= {contender.name for contender in one.race.contenders}
        assert one.dtype in one.race.dtypes and one.race.parse(one.case).name == one.case
        assert (one.over is None) == (one.least == 0.0) == (one.most > 0.0)


@pytest.mark.parametrize("promised", [
    targets.Target("AdamW", "1000x16", 1, steps.FUSED, 150.0),
    targets.Target("AdamW", "1x64", most=1e-6),
    targets.Target("AdamW", "100x64", of=steps.FUNCTIONAL_SAME, over=steps.SAME, least=1 / 1.2),
    *(targets.Target("AdamW", case, threads, steps.NUMBA, 1.05)
      for case in ("1x100000", "1x1000000") for threads in (1, 2)),
    *(targets.Target("AdamW", "1x30000000", threads, over, least)
      for threads in (1, 2) for over, least in ((steps.LIMIT, 0.95), (steps.FUSED, 1.0))),
    *(targets.Target(method, "1x100000", 1, steps.DIVIDER, 1 / 1.1) for method in targets.DIVIDING),
    *(targets.Target(row.name, "1x1000000", 1, steps.NUMBA, 1.0, dtype="float64")
      for row in steps.ROWS if row.name in (*targets.DIVIDING, "Adam", "AdamW", "Rprop")),
    targets.Target("AdamW", "1x30000000", 2, race.TORCH, 1.45, race=stages.WHOLE_STEP),
], ids=lambda one: one.text)
def test_targets_that_are_promised(promised):
    assert promised in targets.TARGETS


def test_targets_are_measured_and_judged(monkeypatch, capsys, tmp_path):
    kept = [one for one in targets.TARGETS if one.case == "1x64" and one.over != steps.FUSED]  # torch or not
    kept += [targets.Target("SGD", "1x64", threads, steps.LIMIT, 1e9) for threads in (1, 10**6)]
    monkeypatch.setattr(targets, "TARGETS", kept)
    monkeypatch.setattr(targets, "import_seconds", lambda: [0.01, 0.02])
    path = tmp_path / "out.json"
    assert call("--targets", "--rounds", "2", "--json", str(path)) == 1
    lines = table(capsys.readouterr().out)
    assert [line[0] for line in lines[:3]] == [one.text for one in kept[:3]]
    assert lines[3][-1] == "missed"
    assert lines[4][-1] == "not measured"
    assert lines[-1][1:] == ["", "10 ms", "15 ms", "met"]
    assert len(json.loads(path.read_text())["results"]) == len(lines) == 7


def test_a_target_whose_contender_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr(race, "installed", lambda package: None)
    monkeypatch.setattr(runner, "installed", lambda package: None)
    monkeypatch.setattr(targets, "TARGETS", [targets.Target("SGD", "1x64", 1, steps.NUMBA, 1.0)])
    (verdict,) = next(targets.measured(1, 0.1))
    assert verdict.word == "not measured" and verdict.text.endswith("(numba is not installed)")


def test_verdict_says_where_best_and_median_disagree():
    assert targets.Verdict("", 2.0, 1.0, "x", True, False).word == "met (by the median missed)"
    assert targets.Verdict("", 1.0, 2.0, "x", False, True).word == "missed (by the median met)"
    assert targets.Verdict("", 1.0, 2.0, "x", True, True).word == "met"


@pytest.mark.parametrize("row", [row for row in ROWS.values() if not row.method.layerwise], ids=named)
def test_a_step_allocates_no_array(row):
    assert targets.allocated(steps.Work(row, cases.parse("1x100k"))) < targets.ALLOCATED


def test_import_time(capsys, monkeypatch):
    assert [seconds > 0 for seconds in targets.import_seconds(1)] == [True]
    monkeypatch.setattr(targets, "import_seconds", lambda: [0.5])
    assert call("--import-time") == 1
    assert table(capsys.readouterr().out)[0][2:] == ["500 ms", "500 ms", "missed"]


def test_threads_in_loop(monkeypatch, capsys):
    monkeypatch.setattr(threads_in_loop, "NETWORKS", (((8, 4), 2),))
    monkeypatch.setattr(threads_in_loop, "TURN", 1e-4)
    monkeypatch.setattr(threads_in_loop, "REST", 0.0)
    if threads_in_loop.threading.most() < 2:
        pytest.skip("one thread only")
    assert call("--threads-in-loop", "--rounds", "1") == 0
    lines = table(capsys.readouterr().out)
    assert [line[1] for line in lines] == ["0"] * 3 + ["1"] * 3
    assert [line[2] for line in lines[:3]] == ["training step", "optimizer in the loop", "optimizer alone"]


def test_gradients_of_the_network_in_the_loop():
    """Against differences of the loss, so that the loop is a training loop."""
    network = threads_in_loop.Network((5, 4), 3)

    def loss():
        x = network.x
        for weight, bias in zip(network.weights[:-1], network.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        x = (x @ network.weights[-1] + network.biases[-1]).astype(float)
        return np.mean(np.log(np.exp(x).sum(1)) - x[np.arange(len(x)), network.y])

    gradients = network.gradients()
    network.x = network.x.astype(float)
    for i in (0, 1, 2):
        for kind, offset in ((network.weights, 0), (network.biases, 3)):
            kind[i] = kind[i].astype(float)
            place = np.unravel_index(np.abs(gradients[i + offset]).argmax(), kind[i].shape)
            before = kind[i][place]
            kind[i][place] = before + 1e-5
            high = loss()
            kind[i][place] = before - 1e-5
            low = loss()
            kind[i][place] = before
            assert gradients[i + offset][place] == pytest.approx((high - low) / 2e-5, rel=1e-3)


def test_speed_has_a_line_for_each_method(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli.speed, "CASES", ("1x64", "2x32"))
    monkeypatch.setattr(cli.speed, "OTHERS", ((muon.RACE, "Muon", ("4x4",)),))
    path = tmp_path / "speeds.json"
    assert call("--speed", "--rounds", "2", "--method", "SGD", "RMSprop", "Muon", "--json", str(path)) == 0
    out = capsys.readouterr().out
    if race.torch() is None:
        assert "torch is not installed" in out
        return
    lines = table(out)
    assert [line[0] for line in lines] == ["SGD", "SGD momentum=0.9", "RMSprop", "Muon"]
    assert all(" x (" in cell for line in lines for cell in line[1:3] if cell != "4x4")
    assert all(line[3].endswith("%") for line in lines[:3])
    results = json.loads(path.read_text())["results"]
    assert [one["method"] for one in results] == ["SGD"] * 2 + ["SGD momentum=0.9"] * 2 + ["RMSprop"] * 2 + ["Muon"]
    method = next(method for method in fastopt.table.METHODS if method.name == "Muon")
    assert fastopt.table.speed(method, results) == f"{cli.speed.figures(results[-1]['best'])} x at 4x4"


# ---- the other races ---------------------------------------------------------------------------

SMALL = {"averages": "3x37", "adafactor": "8x8", "muon": "6x9", "lbfgs": "1x300", "whole-step": "2x8", "stages": "2x8",
         "schedulers": "1 group", "schedules": "1 step", "sparse": "4x2"}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's
@pytest.mark.parametrize("name", SMALL)
def test_a_race_prints_its_rows_and_contenders(name, capsys, monkeypatch):
    monkeypatch.setattr(sparse, "TABLE", 100)
    monkeypatch.setattr(schedulers, "PREVIEWED", 300)
    monkeypatch.setattr(lbfgs, "HISTORY", 4)
    monkeypatch.setattr(runner, "LEAST", 0.0)
    monkeypatch.setattr(stages.TorchStep, "fastest", lambda self, work, ways: next(iter(ways.items())))
    one = cli.RACES[name]
    assert call(name, "--case", SMALL[name], "--rounds", "1", "--threads", "1") == 0
    lines = table(capsys.readouterr().out)
    assert list(dict.fromkeys(line[2] for line in lines)) == [row.name for row in one.rows]
    present = [contender.name for contender in one.contenders if not contender.needs]
    assert set(present) <= {line[3] for line in lines}
    assert {line[0] for line in lines} == {one.parse(SMALL[name]).name}
    assert {len(line) for line in lines} == {4 + len(one.columns or runner.TIMES | runner.RATES)}


def test_tables_of_schedulers_have_them_all():
    from fastopt import lr_scheduler

    races = cli.RACES["schedulers"], cli.RACES["schedules"]
    names = {row.name.split(",")[0].split(" ")[0] for row in races[0].rows}
    assert set(lr_scheduler.__all__) - {"LRScheduler", "get_scheduler"} <= names
    assert [row.name for row in races[1].rows] == [row.name for row in fastopt.schedules.table.ROWS]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_contenders_of_averages_make_the_update(dtype):
    for contender in averages.RACE.contenders:
        if contender.name == race.LIMIT or (contender.needs and not race.installed(contender.needs)):
            continue
        work = averages.Work(None, cases.Case(3, 37), dtype)
        work.fill(1.0)
        advance(contender.make(work), 3)
        expected = work.params[0] + averages.DECAY**3 * (1.0 - work.params[0])
        means = [mean.numpy() for mean in work.tensors] if contender.needs else work.averages
        np.testing.assert_allclose(means[0], expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe"}])
def test_contenders_of_lbfgs_do_the_same(options, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(lbfgs, "HISTORY", 4)
    closures, maker = [], lbfgs.Quadratic
    monkeypatch.setattr(lbfgs, "Quadratic", lambda work: closures.append(maker(work)) or closures[-1])
    work = lbfgs.Work(race.Row("LBFGS", options), lbfgs.problem("1x300"))
    for contender in lbfgs.RACE.contenders:
        step = contender.make(work)
        assert closures[-1].seconds > 0 and step.aside() > 0 and closures[-1].seconds == 0
        step.step()
    mine, theirs = (closure.x for closure in closures)
    assert (mine != work.start).all()
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_bare_products_are_those_of_the_iteration(shape, monkeypatch):
    monkeypatch.setattr(muon, "STEPS", 1)
    work = muon.Work(None, cases.Shape(shape), "float64")
    made, matmul = [], np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: made.append((a.shape, b.shape)) or matmul(a, b, out=out))
    advance(muon.products(work), 1)
    assert made == [((6, 9), (9, 6)), ((6, 6), (6, 6)), ((6, 6), (6, 9))]


def test_the_limit_of_rows_leaves_states():
    table, states = np.ones((9, 2)), [np.ones((9, 2))]
    step = limit.same_traffic_rows(table, states)
    step(fastopt.SparseRows(np.array([1, 4]), np.ones((2, 2)), table.shape))
    assert (states[0] == 1).all() and table[[0, 2]].tolist() == [[1, 1], [1, 1]]


# ---- the race of stages ------------------------------------------------------------------------

def whole_step(work, steps):
    """Parameters, first moments and averages after clipping, AdamW, EMA: from formulas, in double precision."""
    params = [param.astype(float) for param in work.params]
    grads = [grad.astype(float) for grad in work.values]
    norm = np.sqrt(sum((grad**2).sum() for grad in grads))
    averages = [param.copy() for param in params]
    m, v = [0.0] * len(params), [0.0] * len(params)
    for number in range(1, steps + 1):
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            h = grad / (norm + 1e-6)
            m[i], v[i] = 0.9 * m[i] + 0.1 * h, 0.999 * v[i] + 0.001 * h**2
            root = np.sqrt(v[i] / (1 - 0.999**number)) + 1e-8
            param -= 1e-5 * param + 1e-3 * m[i] / (1 - 0.9**number) / root
            averages[i] += (param - averages[i]) * (1.0 if number == 1 else 0.001)
    return params, m, averages


@pytest.mark.parametrize("bound", [False, True])
def test_fastopt_makes_the_whole_step(bound):
    work = stages.Work(None, cases.Case(3, 50))
    expected = whole_step(work, 1 + STEPS)
    optimizer = work.optimizer(stages.WHOLE)
    optimizer.bind_grads(work.grads)
    for _ in range(STEPS):
        work.refill()
        optimizer.step(None if bound else work.grads)
        assert optimizer.last_step.clipped == 1.0 and not work.gradient.any()
    moments = [moments["exp_avg"] for moments in work.moments]
    np.testing.assert_allclose([work.params, moments, optimizer._engine.pipeline.options.average[0].averages], expected,
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", [0, 1])
def test_torch_makes_the_whole_step(choice, monkeypatch):
    """With each of its ways as the fastest. An optimizer has made a step before it is handed over: it is set back."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(stages.TorchStep, "fastest", lambda self, work, ways: list(ways.items())[choice])
    work = stages.Work(None, cases.Case(3, 50))
    expected = whole_step(work, STEPS)
    with runner.threads_of_all(1, ["torch"]):
        made = stages.TorchStep(work)
        for tensor, param in zip(made.params, work.params, strict=True):
            tensor.copy_(torch.from_numpy(param))
        for tensor, average in zip(made.averages, whole_step(work, 1)[2], strict=True):
            tensor.copy_(torch.from_numpy(average))
        advance = dict(made.parts)[("AdamW fused", "AdamW foreach")[choice]]
        states = advance.__self__.state.values()
        for slots in states:
            for slot in slots.values():
                slot.zero_()
        step = made.step()
        for _ in range(STEPS):
            (argument,) = step.before(1)
            assert made.gradient.any()
            step.step(argument)
            assert not made.gradient.any()
    found = made.params, [slots["exp_avg"] for slots in states], made.averages
    np.testing.assert_allclose([np.stack(part) for part in found], expected, rtol=2e-5, atol=1e-6)


def test_limit_of_the_whole_step_leaves_states_and_clears_gradients():
    work = stages.Work(None, cases.Case(3, 50))
    work.optimizer()
    before = [{name: array.copy() for name, array in moments.items()} for moments in work.moments]
    step = stages.limit(work)
    for _ in range(50):
        (argument,) = step.before(1)
        assert work.gradient.any()
        step.step(argument)
        assert not work.gradient.any()
    for moments, originals in zip(work.moments, before, strict=True):
        for name, original in originals.items():
            np.testing.assert_array_equal(moments[name], original)


def test_what_the_bytes_of_a_stage_allow():
    """Those of the pass over the 28 of the plain step, and a read of each array that must be read as a whole."""
    moved = {stages.PLAIN: 28, "clip, adaptive": 28, "zero_grad": 32, stages.MICRO_BATCHES: 48, stages.READ: 4}
    comparison = runner.Comparison("stages", "1x10", 1, "AdamW", "float32", stages.PLAIN, {
        name: runner.Measurement(name, 10, 10 * size, (0.25,) if name == stages.READ else (1.0,))
        for name, size in moved.items()})
    assert [stages.its_bytes(comparison, name) for name in moved] == ["1.00 x", "1.50 x", "1.14 x", "1.71 x", ""]


def test_every_stage_has_its_row():
    free = {"max_skips", "accumulation", "corrected_weight_decay", "no_decay", "lr_scale"}  # of elements cost nothing
    rows = [options for options, *_ in stages.STAGES.values() if options]
    assert {name for options in rows for name in options} | free == set(vars(fastopt.stages.Stages()))


def test_the_race_of_checkpoints(tmp_path, capsys):
    assert call("checkpoint", "--gigabytes", "0.001", "--rounds", "1", "--folder", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert all(f"| {contender} |" in printed for contender in ("fastopt", "the disk itself", "numpy.savez"))
    assert not list(tmp_path.iterdir())
