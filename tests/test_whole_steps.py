"""A step is whole or not begun: signals, threads, re-entrance, forks, and what is copied beside it."""

import copy
import os
import pickle
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from signals import interrupted

import fastopt
from fastopt import table

METHODS = [getattr(fastopt, method.name) for method in table.METHODS if method.name not in ("LBFGS", "SparseAdam")]
EVERY = (fastopt.SGD, fastopt.AdamW, fastopt.Adafactor)  # of these every bytecode, of the others some


def made(method, shape=(2, 3)):
    params = [np.ones(shape), np.full(shape, 2.0)]
    return params, method(params)


def everything(optimizer, params, averages=()):
    """All that a step changes, as text."""
    averaged = [(average.n_averaged, [own.tolist() for own in average.averages]) for average in averages]
    return repr(([param.tolist() for param in params], optimizer.state_dict(), optimizer.step_count,
                 optimizer.last_step, averaged, optimizer._engine.pipeline and optimizer._engine.pipeline.sums.weight))


def first_step(optimizer, grads):
    optimizer.step(grads)
    return lambda: optimizer.step(grads)


def bound(optimizer, grads):
    optimizer.bind_grads(grads)
    optimizer.step()
    return optimizer.step


def accumulated(optimizer, grads):
    optimizer.step(grads)
    optimizer.accumulate(grads)
    optimizer.accumulate(grads)
    return optimizer.step


def with_closure(optimizer, grads):
    optimizer.step(grads)
    return lambda: optimizer.step(closure=lambda: (1.0, grads))


FORMS = {"plain": first_step, "bound": bound, "accumulated": accumulated, "closure": with_closure}
STAGES = {"none": {}, "clip, average": {"clip": 1.0, "average": "ema", "statistics": True, "bounds": (-9.0, 9.0)},
          "skipped": {"on_nonfinite": "skip"}}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stages", STAGES)
def test_a_signal_at_any_bytecode_leaves_a_step_whole_or_not_begun(method, form, stages):
    if form != "plain" and method not in (fastopt.SGD, fastopt.AdamW, fastopt.Adafactor, fastopt.Muon):
        pytest.skip("the forms are the same for all")
    handler, at, there, seen = signal.getsignal(signal.SIGINT), 1, True, set()
    while there:
        params, optimizer = made(method)
        averages = ()
        options = dict(STAGES[stages])
        if options.get("average"):
            averages = (fastopt.averages.EMA(optimizer, 0.5),)
            options["average"] = averages[0]
        if options:
            optimizer.set_stages(**options)
        grads = [np.full((2, 3), 0.5), np.linspace(-1, 1, 6).reshape(2, 3)]
        step = FORMS[form](optimizer, grads)
        if stages == "skipped":
            grads[0][0, 0] = np.nan
        before = everything(optimizer, params, averages)
        there = interrupted(step, at)
        now = everything(optimizer, params, averages)
        assert signal.getsignal(signal.SIGINT) is handler
        if now == before:
            step()
            after = everything(optimizer, params, averages)
            assert after != before
        else:
            after = now
        seen.add(after)
        assert len(seen) == 1, at
        optimizer.step([None, None])  # nobody has it any more
        at += 1 if method in EVERY and stages == "none" else 11
    assert at > 20


@pytest.mark.parametrize("call", ["update", "exchange", "accumulate", "state_dict", "load", "reset", "rebind"])
def test_a_signal_in_other_calls_leaves_them_whole_or_not_begun(call):
    at, there, seen = 1, True, set()
    while there:
        params, optimizer = made(fastopt.Adam)
        optimizer.set_stages(accumulation="mean")
        average = fastopt.averages.EMA(optimizer, 0.5)
        grads = [np.ones((2, 3)), np.ones((2, 3))]
        optimizer.step(grads)
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.step(grads)
        moved = [param.copy() for param in params]
        with_parameters = []

        def exchange(average=average, params=params, found=with_parameters):
            with average.average_parameters():
                found.append(params[0].tolist())

        act = {"update": average.update, "exchange": exchange,
               "accumulate": lambda o=optimizer, g=grads: o.accumulate(g),
               "state_dict": optimizer.state_dict, "load": lambda o=optimizer, s=saved: o.load_state_dict(s),
               "reset": optimizer.reset_state, "rebind": lambda o=optimizer, m=moved: o.rebind(m)}[call]
        before = everything(optimizer, params, [average])
        there = interrupted(act, at)
        assert optimizer.param_groups[0]["params"][0] is optimizer._plan.params[0]
        now = everything(optimizer, params, [average])
        seen.add(now)
        assert len(seen - {before}) <= 1, at
        average.update()
        optimizer.accumulate(grads)
        optimizer.step()
        at += 3
    assert at > 10


def test_a_signal_that_raises_during_the_walk_is_raised_after_the_step_is_counted():
    params = [np.ones(20_000_000, "float32")]
    optimizer = fastopt.SGD(params, lr=1.0)
    grads = [np.ones_like(params[0])]
    optimizer.step(grads)

    def stop(*_):
        raise TimeoutError

    before, made = signal.signal(signal.SIGALRM, stop), 1
    try:
        for _ in range(10):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.004)
                optimizer.step(grads)
                made += 1
                time.sleep(1)
            except TimeoutError:
                pass
            made = optimizer.step_count
            assert params[0][0] == params[0][-1] == 1.0 - made
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- threads and functions that are called by a step


class Lying:
    """A gradient of which reading runs a function."""

    def __init__(self, array, function):
        self.array, self.function = array, function

    @property
    def __array_interface__(self):
        self.function()
        return self.array.__array_interface__


ENTRIES = {
    "step": lambda o, g, s: o.step(g),
    "accumulate": lambda o, g, s: o.accumulate(g),
    "state_dict": lambda o, g, s: o.state_dict(),
    "load": lambda o, g, s: o.load_state_dict(s),
    "reset": lambda o, g, s: o.reset_state(),
    "group": lambda o, g, s: o.add_param_group({"params": [np.ones(2)]}),
    "rebind": lambda o, g, s: o.rebind([np.ones((2, 3)), np.ones((2, 3))]),
    "bind": lambda o, g, s: o.bind_grads(g),
    "zero": lambda o, g, s: o.zero_grad(),
    "stages": lambda o, g, s: o.set_stages(clip=1.0),
    "count": lambda o, g, s: setattr(o, "step_count", 7),
    "pickle": lambda o, g, s: pickle.dumps(o),
    "deepcopy": lambda o, g, s: copy.deepcopy(o),
    "replace": lambda o, g, s: o.replace_param(0, np.ones((2, 3))),
    "remove": lambda o, g, s: o.remove_param(0),
    "state": lambda o, g, s: o.state[0].__setitem__(next(iter(o.state[0])), 1),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("where", ["gradient", "schedule", "hyperparameter of a sparse step"])
def test_what_a_step_calls_cannot_enter_the_optimizer(entry, where):
    grads = [np.ones((2, 3)), np.ones((2, 3))]
    params, optimizer = made(fastopt.SGD if "sparse" in where else fastopt.Adam)
    optimizer.step(grads)
    if entry == "state" and not optimizer.state[0]:
        pytest.skip("there is no state")
    saved = copy.deepcopy(optimizer.state_dict())
    before = everything(optimizer, params)
    errors = []

    def enter(*_):
        try:
            ENTRIES[entry](optimizer, grads, saved)
        except RuntimeError as error:
            errors.append(str(error))
        return 0.0

    given = list(grads)
    if where == "gradient":
        given[1] = Lying(grads[1], enter)
    elif where == "schedule":
        optimizer.param_groups[0]["lr"] = enter
    else:
        optimizer.param_groups[0]["weight_decay"] = enter
        given = [fastopt.SparseRows([0], np.ones((1, 3)), (2, 3)), None]
    optimizer.step(given)
    assert errors and all("in use" in error for error in errors)
    optimizer.param_groups[0].update(lr=1e-3, weight_decay=0)
    assert everything(optimizer, params) != before
    assert optimizer.step_count == 2 and len(optimizer.param_groups) == 1
    optimizer.step(grads)


def test_code_that_runs_in_a_step_may_drop_its_gradients():
    grads = [np.ones(3), np.ones(3)]
    params = [np.zeros(3), np.zeros(3)]

    def rate(_):
        grads[:] = [None, None]
        np.full(3, 7.0)
        return 1.0

    fastopt.SGD(params, lr=rate).step(grads)
    np.testing.assert_array_equal(params, -np.ones((2, 3)))


def test_two_threads_with_gradients_that_are_converted_step_one_after_the_other_or_not_at_all():
    size, count, rounds = 4, 50, 60
    params = [np.zeros(size) for _ in range(count)]
    optimizer = fastopt.SGD(params, lr=1.0)
    grads = [memoryview(np.ones(size)) for _ in range(count)]
    made, failed = [], []

    def run():
        for _ in range(rounds):
            try:
                optimizer.step(grads)
                made.append(1)
            except RuntimeError as error:
                failed.append(str(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert made and all("in use" in error for error in failed)
    assert optimizer.step_count == len(made)
    np.testing.assert_array_equal(params, np.full((count, size), -float(len(made))))


BESIDE = {"load": lambda o, s: o.load_state_dict(s), "reset": lambda o, s: o.reset_state(),
          "accumulate": lambda o, s: o.accumulate([np.ones_like(o._plan.params[0])]),
          "count": lambda o, s: setattr(o, "step_count", 3), "deepcopy": lambda o, s: copy.deepcopy(o),
          "pickle": lambda o, s: pickle.dumps(o), "state_dict": lambda o, s: copy.deepcopy(o.state_dict())}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_is_done_beside_a_running_step_is_refused_or_whole(beside):
    """Every number of a parameter is the same after each step: a torn copy has two."""
    params = [np.zeros(2_000_000, "float32")]
    optimizer, grads = fastopt.SGD(params, lr=1.0, momentum=0.5), [np.ones(2_000_000, "float32")]
    optimizer.step(grads)
    saved, stop = copy.deepcopy(optimizer.state_dict()), threading.Event()

    def run():
        while not stop.is_set():
            try:
                optimizer.step(None if optimizer._engine.pipeline and optimizer._engine.pipeline.sums.weight else grads)
            except (RuntimeError, ValueError) as error:
                assert "in use" in str(error) or "accumulate" in str(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(30):
            try:
                found = BESIDE[beside](optimizer, saved)
            except (RuntimeError, ValueError) as error:
                assert "in use" in str(error) or "accumulated" in str(error)
                continue
            if beside == "deepcopy":
                assert len(np.unique(found._plan.params[0])) == 1
                assert len(np.unique(found.state[0]["momentum_buffer"])) == 1
            if beside == "pickle":
                loaded = pickle.loads(found)
                assert len(np.unique(loaded._plan.params[0])) == 1
    finally:
        stop.set()
        thread.join()
    assert len(np.unique(params[0])) == 1
    optimizer.reset_state()
    optimizer.step(grads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_steps_can_step():
    params = [np.zeros(3_000_000, "float32")]
    optimizer, grads, stop = fastopt.SGD(params, lr=1.0), [np.ones(3_000_000, "float32")], threading.Event()

    def run():
        while not stop.is_set():
            optimizer.step(grads)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(10):
            while not optimizer._plan.held:
                time.sleep(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this process has threads
                pid = os.fork()
            if pid == 0:
                try:
                    optimizer.step(grads)
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


# ---- a step that raised has changed nothing


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("fault", ["second gradient", "second group", "average", "bounds of a copy"])
def test_a_step_of_several_parts_is_refused_before_the_first(method, fault):
    params = [np.ones((2, 3)), np.full((2, 3), 2.0)]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = method(groups)
    grads = [np.ones((2, 3)), np.ones((2, 3))]
    optimizer.step(grads)
    ema = fastopt.averages.EMA(optimizer, lambda t: 0.5 if t < 2 else 7.0)
    if fault == "average":
        optimizer.set_stages(average=ema)
        for _ in range(2):
            optimizer.step(grads)
    if fault == "second gradient":
        grads[1] = np.ones((3, 2))
    if fault == "second group":
        if "amsgrad" in optimizer.param_groups[0]:
            optimizer.param_groups[0]["amsgrad"] = True
        if "momentum" in optimizer.param_groups[0] and method is fastopt.SGD:
            optimizer.param_groups[0]["momentum"] = 0.9
        optimizer.param_groups[1]["lr"] = -1.0
    if fault == "bounds of a copy":
        params[1].flags.writeable = False
    before = everything(optimizer, params, [ema])
    with pytest.raises((TypeError, ValueError)):
        optimizer.step(grads)
    assert everything(optimizer, params, [ema]) == before


def test_a_refused_sparse_step_does_not_change_later_ones():
    def run(refused):
        tables = [np.zeros((6, 1)), np.zeros((2, 1))]
        optimizer = fastopt.SGD(tables, lr=1.0, momentum=0.5)
        rows = fastopt.SparseRows([3, 4, 5], np.ones((3, 1)), (6, 1))
        optimizer.step([fastopt.SparseRows([0], np.ones((1, 1)), (6, 1)), None])
        if refused:
            with pytest.raises(ValueError):
                optimizer.step([rows, np.ones((9, 9))])
        optimizer.step([rows.to_dense(), None])
        optimizer.step([fastopt.SparseRows([1], np.ones((1, 1)), (6, 1)), None])
        return tables[0].tolist()

    assert run(True) == run(False)


@pytest.mark.parametrize("write", ["assign", "in place", "held view"])
def test_momentum_that_was_written_to_is_seen_by_the_next_sparse_step(write):
    table = np.zeros((4, 1))
    optimizer = fastopt.SGD(table, lr=1.0, momentum=0.9)
    rows = fastopt.SparseRows([0], np.ones((1, 1)), (4, 1))
    optimizer.step([rows])
    view = optimizer.state[0]["momentum_buffer"][2:]
    optimizer.step([rows])
    if write == "assign":
        optimizer.state[0]["momentum_buffer"] = np.full((4, 1), 2.0)
    elif write == "in place":
        optimizer.state[0]["momentum_buffer"][2:] = 2.0
    else:
        view[...] = 2.0
    optimizer.step([rows])
    assert table[3, 0] == -1.8
