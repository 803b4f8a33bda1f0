"""The benchmark: its rivals do the same work, its commands print what they promise. Nothing is timed."""

import argparse
import json

import numpy as np
import pytest
from common import ELEMENTWISE

import fastopt
from fastopt.bench import cases, cli, numpy_in_place, rivals, runner, schedulers, stages, targets, threads_in_loop
from fastopt.schedules.table import ROWS as ROWS_OF_SCHEDULES

ROWS = {row.name: row for row in rivals.rows()}
TORCH = {rivals.LOOP, rivals.FOREACH, rivals.FUSED}
ONE_ARRAY = {rivals.FUNCTIONAL, rivals.BLOCKS}
SIZES = (cases.Case(3, 37), cases.Case(1, 2 * numpy_in_place.BLOCK + 5))
STEPS = 4  # of a rival, after its first


def named(value):
    return getattr(value, "name", value)


def call(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(arguments))


def table(text):
    """The cells of the Markdown tables in a text, without their heads."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()
            if line.startswith("| ") and not line.startswith(("| case", "| target", "| network", "| method"))]


def expected(work):
    """The parameters after the steps of a rival, from the reference in double precision."""
    params, grads = ([array.astype(float) for array in arrays] for arrays in work.draw())
    for param, grad in zip(params, grads, strict=True):
        state = {}
        for number in range(1, STEPS + 2):
            work.row.method.reference(param, grad, state, number, **work.row.options)
    return params


@pytest.fixture
def torch_params(monkeypatch):
    """The parameters of the torch optimizer that is made next."""
    pytest.importorskip("torch")
    made, maker = [], rivals.torch_optimizer

    def remember(work, **ways):
        optimizer = maker(work, **ways)
        if optimizer is not None:
            made.extend(param.numpy() for group in optimizer.param_groups for param in group["params"])
        return optimizer

    monkeypatch.setattr(rivals, "torch_optimizer", remember)
    with runner.torch_threads(1):
        yield made


def check(name, row, case, dtype, params=None):
    work = rivals.Workspace(row, case, dtype)
    rival = rivals.MAKERS[name](work)
    if rival is None:
        assert name == rivals.BLOCKS
        assert numpy_in_place.find(row) is None
        return
    for number in range(STEPS):
        assert rival.step(rival.arguments[number % len(rival.arguments)]) is None
    rtol = 2e-5 if dtype == "float32" else 1e-6  # the square root of torch's loop is not IEEE's
    for mine, reference in zip(params or work.params, expected(work), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", ROWS.values(), ids=named)
@pytest.mark.parametrize(("name", "case"), [
    (name, case) for name in rivals.MAKERS if name not in TORCH | {rivals.LIMIT}
    for case in (SIZES if name not in ONE_ARRAY else SIZES[1:])
], ids=named)
def test_numpy_rivals_make_the_step(name, row, case, dtype):
    check(name, row, case, dtype)


@pytest.mark.parametrize("name", sorted(ONE_ARRAY))
def test_rivals_that_have_no_use_for_small_arrays(name):
    assert rivals.MAKERS[name](rivals.Workspace(ROWS["Adam"], SIZES[0])) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "row"), [
    (name, row) for name in sorted(TORCH) for row in ROWS.values()
    if name != rivals.FUSED or row.method.torch_fused
], ids=named)
def test_torch_rivals_make_the_step(name, row, dtype, torch_params):
    check(name, row, SIZES[0], dtype, torch_params)


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_reference_stands_in_for_a_method_without_numpy_twin(row, monkeypatch):
    monkeypatch.setattr(numpy_in_place, "METHODS", {})
    assert rivals.MAKERS[rivals.IN_PLACE](rivals.Workspace(row, SIZES[0])).name == rivals.EXPRESSIONS
    assert rivals.MAKERS[rivals.BLOCKS](rivals.Workspace(row, SIZES[1])) is None
    check(rivals.IN_PLACE, row, SIZES[0], "float32")


def test_numpy_twin_is_not_used_with_options_it_does_not_know():
    adam = ROWS["Adam"].method
    assert numpy_in_place.find(rivals.Row(adam, {"betas": (0.5, 0.9)}))
    assert numpy_in_place.find(rivals.Row(adam, {"amsgrad": True})) is None


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_limit_leaves_states_and_keeps_numbers_normal(row):
    work = rivals.Workspace(row, SIZES[0])
    before = [[state.copy() for state in states] for states in work.states]
    rival = rivals.limit(work)
    for _ in range(50):
        rival.step(None)
    for states, originals in zip(work.states, before, strict=True):
        for state, original in zip(states, originals, strict=True):
            np.testing.assert_array_equal(state, original)
    for param in work.params:
        assert np.isfinite(param).all() and (np.abs(param) > np.finfo(param.dtype).tiny).all()


def test_every_method_has_its_rows():
    assert [row.name for row in ROWS.values() if not row.options] == [method.name for method in ELEMENTWISE]
    assert {name: row.traffic(4) for name, row in ROWS.items() if row.method.name == "SGD"} == {
        "SGD": 12, "SGD momentum=0.9": 20,
    }


def test_rivals_without_torch(monkeypatch):
    monkeypatch.setattr(rivals, "torch", lambda: None)
    names = {rival.name for rival in rivals.rivals(rivals.Workspace(ROWS["Adam"], SIZES[0]))}
    assert rivals.FASTOPT in names and not names & TORCH


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


def test_interleave_counts_rounds_and_keeps_the_order_of_rivals(monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 0.0)
    calls = []
    entries = [
        rivals.Rival(name, lambda argument, name=name: calls.append((name, argument)), (1, 2))
        for name in "ab"
    ]
    samples = runner.interleave(entries, rounds=3, seconds=0.0)
    assert [len(times) for times in samples] == [3, 3]
    assert len(runner.interleave(entries, rounds=100, seconds=0.0)[0]) == runner.FEWEST
    assert set(calls) == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}


def test_what_comes_before_a_step_is_not_counted(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runner, "perf_counter", lambda: clock[0])

    def advance(seconds):
        clock[0] += seconds

    rival = rivals.Rival("a", advance, (1.0, 3.0), before=lambda: advance(100.0))
    assert runner.timed(rival, 3) == 1.0 + 3.0 + 1.0
    assert clock[0] == 305.0


def test_ratios():
    comparison = runner.Comparison("1x100", 1, "Adam", {
        name: runner.Measurement("1x100", 1, "Adam", name, 100, 2800, seconds)
        for name, seconds in ((rivals.FASTOPT, (1e-6, 2e-6, 4e-6)), (rivals.FUSED, (3e-6, 6e-6, 2e-6)),
                              (rivals.LIMIT, (5e-7, 2e-6, 2e-6)))
    })
    assert comparison.ratios(rivals.FUSED) == pytest.approx((2.0, 3.0))
    assert comparison.share_of_limit(rivals.FASTOPT) == pytest.approx(0.5)
    one = comparison.measurements[rivals.FASTOPT]
    assert (one.best, one.median) == (1e-6, 2e-6)
    assert one.gigabytes_per_second == pytest.approx(2.8)
    assert one.nanoseconds_per_element == pytest.approx(10.0)


def test_table_and_json(capsys, tmp_path):
    path = tmp_path / "out.json"
    assert call("--case", "2x8", "--method", "sgd", "Adam", "--rounds", "2", "--json", str(path)) == 0
    text = capsys.readouterr().out
    for word in ("CPU", "SIMD level", "compiler", "NumPy", "torch", "threads"):
        assert f"- {word}: " in text
    lines = table(text)
    assert {line[2] for line in lines} == {"SGD", "SGD momentum=0.9", "Adam"}
    assert {rivals.FASTOPT, rivals.BOUND, rivals.IN_PLACE, rivals.LIMIT} <= {line[3] for line in lines}
    assert {len(line) for line in lines} == {11}
    saved = json.loads(path.read_text())
    assert saved["machine"]["CPU"]
    assert [(one["case"], one["method"], one["rival"]) for one in saved["results"]] == [
        (line[0], line[2], line[3]) for line in lines
    ]
    assert all(one["best"] == min(one["seconds"]) and len(one["seconds"]) == 2 for one in saved["results"])


def test_case_that_cannot_have_its_threads_is_left_out(capsys):
    assert call("--case", "2x8", "--method", "Adam", "--rounds", "1", "--threads", "1000000") == 0
    text = capsys.readouterr().out
    assert table(text) == []
    assert "left out, 1000000 threads: at most" in text


@pytest.mark.parametrize("arguments", [
    ("--method", "Adamant"), ("--case", "64"), ("--rounds", "0"), ("--threads", "two"), ("--dtype", "int8"),
    ("--targets", "--import-time"),
])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_targets_are_the_ones_promised():
    promised = {
        (one.method, one.case, one.threads, one.rival, one.least, one.most) for one in targets.TARGETS
    }
    adamw = {
        ("1000x16", 1, rivals.FUSED, 100.0, 0.0),
        ("100x64", 1, rivals.FUSED, 50.0, 0.0),
        ("1x64", 1, rivals.FUSED, 10.0, 0.0),
        ("1x64", 1, None, 0.0, 2e-6),
        ("1x100000", 1, rivals.FUSED, 2.5, 0.0),
        ("1x1000000", 1, rivals.FUSED, 1.1, 0.0),
        ("1x1000000", 1, rivals.LIMIT, 0.95, 0.0),
        *(("1x30000000", threads, *rest) for threads in (1, 2)
          for rest in ((rivals.LIMIT, 0.95, 0.0), (rivals.FUSED, 1.0, 0.0))),
    }
    adamw |= {(case, threads, rivals.IN_PLACE, 4.0, 0.0) for case, threads, *_ in adamw}
    others = {
        (method, case, 1, rivals.LIMIT, 0.95, 0.0)
        for method in ("Adagrad", "RMSprop", "SGD", "SGD momentum=0.9")
        for case in ("1x1000000", "1x30000000")
    }
    assert promised == {("AdamW", *one) for one in adamw} | others
    assert len(targets.TARGETS) == len(promised)
    assert len({one.text for one in targets.TARGETS}) == len(promised)


def test_targets_are_measured_and_judged(monkeypatch, capsys, tmp_path):
    kept = [one for one in targets.TARGETS if one.case == "1x64" and one.rival != rivals.FUSED]  # torch or not
    kept += [targets.Target("SGD", "1x64", threads, rivals.LIMIT, 1e9) for threads in (1, 10**6)]
    monkeypatch.setattr(targets, "TARGETS", kept)
    monkeypatch.setattr(targets, "import_seconds", lambda: [0.01, 0.02])
    path = tmp_path / "out.json"
    assert call("--targets", "--rounds", "2", "--json", str(path)) == 1
    lines = table(capsys.readouterr().out)
    assert [line[0] for line in lines[:2]] == [one.text for one in kept[:2]]
    assert lines[2][-1] == "missed"
    assert lines[3][-1] == "not measured"
    assert lines[-1][1:] == ["", "10 ms", "15 ms", "met"]
    assert len(json.loads(path.read_text())["results"]) == len(lines) == 6


def test_verdict_says_where_best_and_median_disagree():
    assert targets.Verdict("", 2.0, 1.0, "x", True, False).word == "met (by the median missed)"
    assert targets.Verdict("", 1.0, 2.0, "x", False, True).word == "missed (by the median met)"
    assert targets.Verdict("", 1.0, 2.0, "x", True, True).word == "met"


@pytest.mark.parametrize("row", ROWS.values(), ids=named)
def test_a_step_allocates_no_array(row):
    assert targets.allocated(rivals.Workspace(row, cases.parse("1x100k"))) < targets.ALLOCATED


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


def test_speed_has_a_line_for_each_method(capsys, monkeypatch):
    monkeypatch.setattr(cli, "SPEED_CASES", ("1x64", "2x32"))
    assert call("--speed", "--rounds", "2", "--method", "SGD", "RMSprop") == 0
    out = capsys.readouterr().out
    if rivals.torch() is None:
        assert cli.NO_TORCH in out
        return
    lines = table(out)
    assert [line[0] for line in lines] == ["SGD", "SGD momentum=0.9", "RMSprop"]
    assert all(" x (" in cell for line in lines for cell in line[1:3])
    assert all(line[3].endswith("%") for line in lines)


# ---- schedulers and schedules ------------------------------------------------------------------

def test_tables_of_schedulers(capsys, monkeypatch):
    monkeypatch.setattr(schedulers, "ROUNDS", 1)
    monkeypatch.setattr(schedulers, "STEPS", 1)
    assert schedulers.main([]) == 0
    names = [line[0] for line in table(capsys.readouterr().out)]
    assert names == ["scheduler", *schedulers.CASES, "schedule", *(row.name for row in ROWS_OF_SCHEDULES)]


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
    work = stages.Work(cases.Case(3, 50))
    expected = whole_step(work, 1 + STEPS)
    optimizer = work.optimizer(stages.WHOLE)
    optimizer.bind_grads(work.grads)
    for _ in range(STEPS):
        work.refill()
        optimizer.step(None if bound else work.grads)
        assert optimizer.last_step.clipped == 1.0 and not work.gradient.any()
    moments = [moments["exp_avg"] for moments in work.moments]
    np.testing.assert_allclose([work.params, moments, optimizer._engine.pipeline.stages.average[0].averages], expected,
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", [0, 1])
def test_torch_makes_the_whole_step(choice, monkeypatch):
    """With each of its ways as the fastest. An optimizer has made a step before it is handed over: it is set back."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(stages.TorchStep, "fastest", lambda self, work, ways: list(ways.items())[choice])
    work = stages.Work(cases.Case(3, 50))
    expected = whole_step(work, STEPS)
    with runner.torch_threads(1):
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
        rival = made.rival()
        for _ in range(STEPS):
            rival.before()
            assert made.gradient.any()
            rival.step(None)
            assert not made.gradient.any()
    found = made.params, [slots["exp_avg"] for slots in states], made.averages
    np.testing.assert_allclose([np.stack(part) for part in found], expected, rtol=2e-5, atol=1e-6)


def test_limit_of_the_whole_step_leaves_states_and_clears_gradients():
    work = stages.Work(cases.Case(3, 50))
    work.optimizer()
    before = [{name: array.copy() for name, array in moments.items()} for moments in work.moments]
    step = stages.limit(work)
    for _ in range(50):
        work.refill()
        step(None)
        assert not work.gradient.any()
    for moments, originals in zip(work.moments, before, strict=True):
        for name, original in originals.items():
            np.testing.assert_array_equal(moments[name], original)


def test_every_stage_has_its_row():
    free = {"max_skips", "accumulation", "corrected_weight_decay", "no_decay", "lr_scale"}  # of elements cost nothing
    rows = [options for options, *_ in stages.STAGES.values() if options]
    assert {name for options in rows for name in options} | free == set(vars(fastopt.stages.Stages()))


def test_tables_of_stages(capsys):
    stages.main(["--case", "2x8", "--rounds", "1", "--threads", "1", "--threads", "1000000"])
    lines = table(capsys.readouterr().out)
    first = [line for line in lines if len(line) == 7]
    assert [line[1] for line in first] == [stages.BEFORE, *stages.STAGES, stages.MICRO_BATCHES, stages.READ]
    second = [line for line in lines if len(line) == 9]
    assert [line[2] for line in second if not line[2].startswith(stages.TORCH)] == [
        rivals.FASTOPT, rivals.BOUND, rivals.LIMIT, second[-1][2],
    ]
    assert second[-1][2].startswith("left out: at most")
    assert len(first) + len(second) == len(lines)


def test_targets_of_the_whole_step():
    assert {case for case, _ in stages.TARGETS} <= set(stages.CASES)
    target = stages.TARGETS[stages.LARGEST, 2]
    assert stages.verdict("torch: x", 1.45, target) == "at least 1.45 x: met"
    assert stages.verdict(rivals.LIMIT, 0.949, target) == "at least 0.95 x: missed"
    assert stages.verdict(rivals.FASTOPT, 1.0, target) == ""
    assert stages.verdict(rivals.LIMIT, 0.5, stages.TARGETS["1000x16", 1]) == ""
    assert stages.verdict("torch: x", 9.0, None) == ""


def test_the_race_of_checkpoints(tmp_path, capsys):
    from fastopt.bench import checkpoint

    assert checkpoint.main(["--gigabytes", "0.001", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {way} |" in printed for way in ("fastopt", "the disk itself", "numpy.savez"))
    assert not list(tmp_path.iterdir())
