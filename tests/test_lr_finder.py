"""The learning-rate range test finds rates that train, and leaves everything as it was."""

import math
import signal

import numpy as np
import pytest
from common import name_of
from test_lbfgs import interrupted

import fastopt
from fastopt import lr_finder, schedules
from fastopt.lr_finder import lr_range_test
from fastopt.table import METHODS


class Problem:
    """Logistic regression on minibatches; with `matrix` the weights are a matrix, two equal columns of them."""

    def __init__(self, make, matrix=False, dtype="float64"):
        rng = np.random.default_rng(0)
        self.x, true = rng.standard_normal((2000, 20)), rng.standard_normal(20)
        self.y = (self.x @ true + rng.logistic(size=2000) > 0).astype(float)
        self.params = {"w": np.zeros((20, 2) if matrix else 20, dtype), "b": np.zeros((), dtype)}
        if matrix:
            self.params.pop("b")
        self.optimizer = make(self.params)
        self.rng = np.random.default_rng(1)

    def loss_and_grads(self):
        rows = self.rng.integers(0, 2000, 64)
        w = self.params["w"].reshape(20, -1).mean(axis=1)
        z = self.x[rows] @ w + self.params.get("b", 0.0)
        loss = np.mean(np.logaddexp(0, z) - self.y[rows] * z)
        error = (1 / (1 + np.exp(-np.clip(z, -500, 500))) - self.y[rows]) / 64
        grad = self.x[rows].T @ error
        grads = {"w": grad if self.params["w"].ndim == 1 else np.ascontiguousarray(np.stack([grad, grad], 1) / 2)}
        if "b" in self.params:
            grads["b"] = np.asarray(error.sum())
        return loss, {name: grad.astype(self.params[name].dtype) for name, grad in grads.items()}

    def step(self):
        if isinstance(self.optimizer, fastopt.LBFGS):
            state = self.rng.bit_generator.state

            def closure():  # the same rows for each evaluation
                self.rng.bit_generator.state = state
                return self.loss_and_grads()

            return self.optimizer.step(closure)
        loss, grads = self.loss_and_grads()
        if self.optimizer.sparse == "only":
            grads = {name: fastopt.SparseRows(np.arange(20), grad, grad.shape) for name, grad in grads.items()}
        self.optimizer.step(grads)
        return loss

    def snapshot(self):
        optimizer = self.optimizer
        state = {position: {key: value if isinstance(value, list) else np.asarray(value).tobytes()
                            for key, value in entries.items()}
                 for position, entries in optimizer.state.items()}
        return ([param.tobytes() for param in self.params.values()], repr(state), optimizer.step_count,
                [{name: value for name, value in group.items() if name != "params"}
                 for group in optimizer.param_groups])


def quadratic(lr=1.0, curvature=1.0):
    """Gradient descent on a parabola, which converges at rates below 2 / curvature."""
    w = np.array([1.0])
    optimizer = fastopt.SGD(w, lr=lr)

    def step():
        loss = curvature * w[0] ** 2 / 2
        optimizer.step(curvature * w)
        return loss

    return optimizer, step


def scripted(losses):
    """A step that returns these losses."""
    optimizer, values = fastopt.SGD(np.zeros(1)), iter(losses)

    def step():
        optimizer.step(np.zeros(1))
        return next(values)

    return optimizer, step


# ---- what is found

@pytest.mark.parametrize("curvature", [0.01, 1.0, 100.0])
def test_suggestions_for_a_parabola(curvature):
    optimizer, step = quadratic(curvature=curvature)
    found = lr_range_test(optimizer, step, 1e-4 / curvature, 100 / curvature)
    assert found.stopped == "diverged"
    for name in ("valley", "steepest"):
        assert 0.01 < found.suggestions[name] * curvature < 2, name
    assert found.suggestions == {"valley": found.valley, "steepest": found.steepest, "minimum": found.minimum}


@pytest.mark.parametrize("make", [fastopt.SGD, lambda params: fastopt.SGD(params, momentum=0.9), fastopt.AdamW],
                         ids=["SGD", "momentum", "AdamW"])
def test_suggested_rates_train(make):
    problem = Problem(make)
    found = lr_range_test(problem.optimizer, problem.step, 1e-5, 1e3)
    assert found.stopped == "diverged"

    def trained(lr):
        other = Problem(make)
        other.optimizer.param_groups[0]["lr"] = lr
        return np.mean([other.step() for _ in range(200)][-40:])

    for name in ("steepest", "minimum"):
        assert trained(found.suggestions[name]) < 0.5, name
    assert trained(found.valley) < 0.6 < trained(found.rates[5])
    assert trained(found.rates[-1]) > 2


@pytest.mark.parametrize(("mode", "wanted"), [
    ("exponential", np.geomspace(1e-3, 10, 50)), ("linear", np.linspace(1e-3, 10, 50))])
def test_rates_losses_and_smoothing(mode, wanted):
    losses = 3 + np.sin(np.arange(50) / 5)
    optimizer, step = scripted(losses)
    seen = []

    def spy():
        seen.append(optimizer.param_groups[0]["lr"])
        return step()

    found = lr_range_test(optimizer, spy, 1e-3, 10, 50, mode=mode, smoothing=0.8)
    assert seen == list(found.rates)
    np.testing.assert_allclose(found.rates, wanted, rtol=1e-12)
    np.testing.assert_array_equal(found.losses, losses)
    shares = [0.8 ** np.arange(i, -1, -1) for i in range(50)]
    np.testing.assert_allclose(found.smoothed, [share @ losses[: len(share)] / share.sum() for share in shares])
    assert (found.stopped, found.mode) == ("end", mode)


def test_without_smoothing_the_losses_stay():
    found = lr_range_test(*scripted([3.0, 2.0, 1.0]), num_iter=3, smoothing=0)
    np.testing.assert_array_equal(found.smoothed, found.losses)


@pytest.mark.parametrize(("losses", "stop_div", "steps", "stopped"), [
    ([4.0, 1.0, 4.0, 4.1, 0.5], 4.0, 4, "diverged"),
    ([4.0, 1.0, 4.0, 4.1, 0.5], None, 5, "end"),
    ([4.0, 1.0, 1.2, 4.1, 0.5], 1.1, 3, "diverged"),
    ([-1.0, -2.0, -1.0, 3.9, 4.1], 4.0, 5, "diverged"),  # risen by more than 3 times 2
    ([1.0, 2.0, math.nan, 1.0, 1.0], 4.0, 2, "not finite"),
    ([1.0, 2.0, math.inf, 1.0, 1.0], None, 2, "not finite"),
    ([math.nan, 1.0, 1.0, 1.0, 1.0], 4.0, 0, "not finite"),
    ([1.0, 1.0, 1.0, 1.0, 1.0], 4.0, 5, "end"),
])
def test_where_it_stops(losses, stop_div, steps, stopped):
    found = lr_range_test(*scripted(losses), num_iter=5, smoothing=0, stop_div=stop_div)
    assert (len(found.rates), len(found.losses), len(found.smoothed), found.stopped) == (*[steps] * 3, stopped)
    np.testing.assert_array_equal(found.losses, losses[:steps])


def result(losses, mode="exponential"):
    rates = np.geomspace(1e-6, 1, len(losses))
    return lr_finder.RangeTest(rates, np.array(losses), np.array(losses), "end", mode)


@pytest.mark.parametrize(("losses", "valley", "steepest", "minimum"), [
    ([5.0, 4.0, 3.0, 0.5, 0.2, 0.1, 9.0], 3, 2, 5),
    ([5.0, 4.0, 6.0, 3.0, 7.0, 2.0], 3, 5, 5),  # the sequence 5 4 3 2
    ([1.0, 2.0, 3.0], None, None, None),
    ([1.0], None, None, None),
    ([], None, None, None),
    ([2.0, 2.0, 2.0], None, None, None),
])
def test_suggestions_by_hand(losses, valley, steepest, minimum):
    found = result(losses)
    for name, position, share in (("valley", valley, 1), ("steepest", steepest, 1), ("minimum", minimum, 10)):
        assert found.suggestions[name] == (None if position is None else found.rates[position] / share), name


def test_the_first_tenth_has_no_part():
    found = result([9.0, 0.0, *np.linspace(8, 7, 18)])
    assert found.minimum == pytest.approx(found.rates[-1] / 10)
    assert found.valley == found.rates[2 + 9]


def test_the_valley_is_that_of_fastai():
    """Its algorithm, written anew: back from the end of the sequence by its length, then on by a third and a sixth."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = np.cumsum(rng.standard_normal(90)) - 0.3 * np.arange(90)
        length = [1] * 90
        for i in range(90):
            length[i] = 1 + max((length[j] for j in range(i) if losses[j] > losses[i]), default=0)
        sequence = lr_finder.longest_fall(losses)
        assert len(sequence) == max(length)
        assert np.all(np.diff(losses[sequence]) < 0) and np.all(np.diff(sequence) > 0)
        assert sequence[-1] == length.index(max(length))
    losses = np.concatenate([np.linspace(5, 1, 60), np.linspace(2, 9, 30)])  # one unbroken fall
    end, most = 59, 60
    assert abs(lr_finder.longest_fall(losses)[most // 2] - (end - most + most // 3 + most // 6)) <= 1


# ---- what is left behind

MAKERS = {
    **{f"{method.name} {name_of(options)}": (lambda params, method=method, options=options:
                                             method.optimizer(params, **{"lr": method.lr} | options),
                                             method.matrices_only or method.optimizer.sparse == "only")
       for method in METHODS if not method.optimizer.rate_free
       for options in (method.variants[0], method.variants[-1])},
    "MuonAdamW": (lambda params: fastopt.MuonAdamW(params), True),
    "scheduled": (lambda params: fastopt.AdamW(params, lr=schedules.cosine_decay_schedule(0.1, 50),
                                               weight_decay=schedules.linear_schedule(0.1, 0.0, 50)), False),
    "groups": (lambda params: fastopt.Adam([{"params": [("w", params["w"])], "lr": 0.5, "betas": (0.5, 0.9)},
                                            {"params": [("b", params["b"])]}], amsgrad=True), False),
    "array": (lambda params: fastopt.SGD(params, lr=np.array(0.1), momentum=0.9), False),
}


@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("make", "matrix"), MAKERS.values(), ids=MAKERS)
def test_training_goes_on_as_if_there_had_been_no_test(make, matrix, dtype, before):
    problem, twin = Problem(make, matrix, dtype), Problem(make, matrix, dtype)
    for _ in range(before):
        problem.step()
        twin.step()
    rng = problem.rng.bit_generator.state
    groups = [dict(group) for group in problem.optimizer.param_groups]
    lr_range_test(problem.optimizer, problem.step, 1e-6, 0.1, 12)
    problem.rng.bit_generator.state = rng
    assert problem.snapshot() == twin.snapshot() or callable(groups[0]["lr"])
    for group, values in zip(problem.optimizer.param_groups, groups, strict=True):
        assert all(group[name] is value for name, value in values.items()) and list(group) == list(values)
    for _ in range(7):
        assert problem.step() == twin.step()
    assert [x.tobytes() for x in problem.params.values()] == [x.tobytes() for x in twin.params.values()]


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
def test_after_an_exception_all_is_as_before(error):
    problem = Problem(lambda params: fastopt.Adam(params, lr=0.05))
    for _ in range(3):
        problem.step()
    before, calls, held = problem.snapshot(), [], problem.optimizer.state[0]["exp_avg"]

    def step():
        calls.append(problem.step())
        if len(calls) == 5:
            raise error
        return calls[-1]

    with pytest.raises(error):
        lr_range_test(problem.optimizer, step)
    assert len(calls) == 5
    assert problem.snapshot() == before
    assert problem.optimizer.state[0]["exp_avg"] is held
    problem.step()


def test_schedulers_and_hooks_go_on():
    problem, twin = (Problem(lambda params: fastopt.SGD(params, lr=0.1)) for _ in range(2))
    schedulers = [fastopt.lr_scheduler.ExponentialLR(one.optimizer, 0.9) for one in (problem, twin)]
    called = []
    problem.optimizer.register_step_post_hook(lambda *_: called.append("step"))
    problem.optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    problem.optimizer.register_state_dict_pre_hook(lambda *_: called.append("save"))

    def train(steps):
        for one, scheduler in zip((problem, twin), schedulers, strict=True):
            for _ in range(steps):
                one.step()
                scheduler.step()

    train(3)
    called.clear()
    state = problem.rng.bit_generator.state
    lr_range_test(problem.optimizer, problem.step, num_iter=10)
    problem.rng.bit_generator.state = state
    assert called == ["step"] * 10  # a checkpoint is not being made
    train(3)
    assert len(called) == 13
    assert schedulers[0].state_dict() == schedulers[1].state_dict()
    assert problem.snapshot() == twin.snapshot()


# ---- printing and drawing

def test_prints_what_it_found():
    assert repr(result([5.0, 4.0, 1.0, 0.5])) == "RangeTest(4 steps, stopped='end', valley=0.01, steepest=0.0001, " \
                                                 "minimum=0.1)"
    assert repr(result([])) == "RangeTest(0 steps, stopped='end', valley=None, steepest=None, minimum=None)"


@pytest.mark.parametrize("mode", ["exponential", "linear"])
@pytest.mark.parametrize("losses", [[5.0, 4.0, 3.0, 2.0, 100.0], [1.0, 1.0], [1.0, 2.0], [3.0]])
def test_draws(mode, losses, tmp_path):
    pytest.importorskip("matplotlib")
    result(losses, mode).plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_cannot_draw_nothing_or_without_matplotlib(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nothing to draw: the first loss was not finite"):
        result([]).plot(tmp_path / "found.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install matplotlib"):
        result([1.0]).plot(tmp_path / "found.png")


# ---- errors

BAD_ARGUMENTS = [
    ({"start_lr": 1.0, "end_lr": 1.0}, ValueError, "start_lr must be less than end_lr, got 1.0 and 1.0"),
    ({"start_lr": 2.0, "end_lr": 1.0}, ValueError, "start_lr must be less than end_lr"),
    ({"start_lr": 0.0}, ValueError, "start_lr must be above 0"),
    ({"end_lr": math.inf}, ValueError, "end_lr must be finite"),
    ({"start_lr": "x"}, TypeError, "start_lr must be a number"),
    ({"num_iter": 1}, ValueError, "num_iter must be a whole number of at least 2, got 1"),
    ({"num_iter": 2.5}, ValueError, "num_iter must be a whole number"),
    ({"mode": "cosine"}, ValueError, "mode must be one of 'exponential', 'linear', got 'cosine'"),
    ({"smoothing": 1.0}, ValueError, "smoothing must be at least 0 and less than 1"),
    ({"stop_div": 1.0}, ValueError, "stop_div must be above 1 or None, got 1.0"),
    ({"stop_div": math.nan}, ValueError, "stop_div must be finite"),
    ({"step": 3}, TypeError, "step must be a function that makes a training step and returns the loss, got 3"),
    ({"optimizer": "SGD"}, TypeError, "optimizer must be a fastopt optimizer, got str"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, error, message):
    optimizer, step = quadratic(lr=0.3)
    with pytest.raises(error, match=message):
        lr_range_test(**{"optimizer": optimizer, "step": step} | arguments)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.step_count == 0


@pytest.mark.parametrize(("returned", "error", "message"), [
    (None, TypeError, "step must return the loss: it must be a number, got None"),
    ("1.0", TypeError, "step must return the loss: it must be a number, got '1.0'"),
    (np.zeros(3), TypeError, "step must return the loss: it must be a number, got array"),
])
def test_a_step_that_returns_no_loss(returned, error, message):
    optimizer, step = quadratic(lr=0.3)
    with pytest.raises(error, match=message):
        lr_range_test(optimizer, lambda: (step(), returned)[1])
    assert (optimizer.param_groups[0]["lr"], optimizer.step_count) == (0.3, 0)
    assert optimizer.param_groups[0]["params"][0] == 1.0


def test_a_step_that_makes_none_or_changes_the_rate():
    optimizer, step = quadratic(lr=0.3)
    with pytest.raises(ValueError, match="step must make a step of the optimizer"):
        lr_range_test(optimizer, lambda: 1.0)
    scheduler = fastopt.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="step changed the learning rate of group 0 from .*: leave schedulers out"):
        lr_range_test(optimizer, lambda: (step(), scheduler.step())[0])
    assert (optimizer.param_groups[0]["lr"], optimizer.step_count) == (0.3, 0)


def test_losses_of_other_types_serve():
    for kind in (np.float32, np.array, float):
        optimizer, step = quadratic()
        assert len(lr_range_test(optimizer, lambda step=step, kind=kind: kind(step()), num_iter=5).losses) == 5


# ---- skipped steps, what is pending, signals

def stepping(optimizer, w, bad=(), way=None, scaler=None):
    """A step on a parabola, whose gradient is not finite at some calls."""
    calls = []

    def step():
        calls.append(0)
        loss, grad = float((w * w).sum()), 2 * w
        if len(calls) in bad:
            grad[0] = np.inf
        if scaler is None:
            optimizer.step([grad], **({"on_nonfinite": "skip"} if way == "step" else {}))
        else:
            grad *= scaler.get_scale()
            if way == "unscale":
                scaler.unscale_(optimizer, [grad])
            scaler.step(optimizer, [grad])
            scaler.update()
        return loss

    return step


@pytest.mark.parametrize("way", ["policy", "step", "scaler", "unscale"])
@pytest.mark.parametrize("bad", [(1,), (5,), (1, 2, 3), range(1, 21)], ids=str)
def test_skipped_steps_are_steps(way, bad):
    w = np.ones(2)
    optimizer = fastopt.SGD(w, lr=0.1)
    if way == "policy":
        optimizer.set_stages(on_nonfinite="skip")
    step = stepping(optimizer, w, bad, way, fastopt.GradScaler() if way in ("scaler", "unscale") else None)
    found = lr_range_test(optimizer, step, 1e-6, 1e-2, 20)
    assert len(found.losses) == 20
    assert (w.tolist(), optimizer.step_count, optimizer.last_step) == ([1.0, 1.0], 0, fastopt.stages.Step())
    twin = np.ones(2)
    fastopt.SGD(twin, lr=0.1).step([np.ones(2)])
    optimizer.step([np.ones(2)])
    assert w.tolist() == twin.tolist()


@pytest.mark.parametrize("bound", [False, True])
def test_a_pending_micro_batch_is_kept(bound):
    w, grad = np.ones(2), np.array([1.0, 2.0])
    optimizer = fastopt.SGD(w, lr=0.5)
    if bound:
        optimizer.bind_grads([grad])
        optimizer.accumulate()
    else:
        optimizer.accumulate([grad])

    def step():
        loss = float((w * w).sum())
        if bound:
            grad[:] = 2 * w
            optimizer.accumulate()
            optimizer.step()
        else:
            optimizer.accumulate([4 * w])
            optimizer.accumulate([np.zeros(2)])
            optimizer.step()
        return loss

    found = lr_range_test(optimizer, step, 1e-3, 1e-1, 5)
    np.testing.assert_allclose(found.losses[1], 2 * (1 - 2e-3) ** 2)
    optimizer.step()
    assert w.tolist() == [0.5, 0.0]


def test_stages_averages_and_last_step_are_put_back():
    problem, twin = (Problem(lambda params: fastopt.AdamW(params, lr=0.05)) for _ in range(2))
    averages = [fastopt.averages.EMA(one.params, 0.9) for one in (problem, twin)]
    for one, average in zip((problem, twin), averages, strict=True):
        one.optimizer.set_stages(average=average, clip=0.1, statistics=True, lookahead=(3, 0.5), on_nonfinite="skip")
        for _ in range(4):
            one.step()
    state = problem.rng.bit_generator.state
    lr_range_test(problem.optimizer, problem.step, num_iter=10)
    problem.rng.bit_generator.state = state
    for _ in range(4):
        assert problem.optimizer.last_step == twin.optimizer.last_step
        assert averages[0].n_averaged == averages[1].n_averaged
        assert [x.tobytes() for x in averages[0].averages] == [x.tobytes() for x in averages[1].averages]
        assert repr(problem.optimizer.state_dict()) == repr(twin.optimizer.state_dict())
        assert problem.snapshot() == twin.snapshot()
        assert problem.step() == twin.step()


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("staged", [False, True])
def test_each_step_of_asgd_has_its_rate(before, staged):
    w = np.zeros(1)
    optimizer = fastopt.ASGD(w, lr=0.1, lambd=0.0)
    if staged:
        optimizer.set_stages(clip=100.0)
    for _ in range(before):
        optimizer.step([np.ones(1)])
    moved = []

    def step():
        at = w[0]
        optimizer.step([np.ones(1)])
        moved.append(at - w[0])
        return 1.0

    found = lr_range_test(optimizer, step, 1e-4, 1.0, 10)
    np.testing.assert_allclose(moved, found.rates, rtol=1e-6)
    at = w[0]
    optimizer.step([np.ones(1)])
    np.testing.assert_allclose(at - w[0], 0.1, rtol=1e-6)


def test_rprop_is_refused():
    optimizer = fastopt.Rprop(np.ones(2))
    with pytest.raises(ValueError, match="a range test of Rprop has no meaning"):
        lr_range_test(optimizer, lambda: optimizer.step([np.ones(2)]) or 1.0)
    assert optimizer.step_count == 0


def test_a_signal_at_any_bytecode_puts_all_back():
    handler, at, there = signal.getsignal(signal.SIGINT), 1, True
    while there:
        w, grad = np.ones(2), np.ones(2)
        optimizer = fastopt.Adam(w, lr=0.1)
        average = fastopt.averages.EMA([w], 0.5)
        optimizer.set_stages(average=average)
        optimizer.step([grad])
        optimizer.accumulate([grad])
        state, before = optimizer.state[0]["exp_avg"], everything(optimizer, w, average)

        def step(optimizer=optimizer, grad=grad):
            optimizer.step([grad])
            return 1.0

        there = interrupted(lambda o=optimizer, step=step: lr_range_test(o, step, num_iter=2), at,
                            "lr_finder|interrupts")
        assert everything(optimizer, w, average) == before, at
        assert optimizer.state[0]["exp_avg"] is state
        assert signal.getsignal(signal.SIGINT) is handler
        optimizer.step()
        at += 3
    assert at > 300


def everything(optimizer, w, average):
    pipeline = optimizer._engine.pipeline
    return (w.tolist(), repr(optimizer.state_dict()), optimizer.last_step, average.averages[0].tolist(),
            average.n_averaged, pipeline.sums.weight, pipeline.sums.taken(optimizer._engine)[0].tolist())
