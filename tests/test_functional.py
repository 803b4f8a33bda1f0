"""Calls of the functional interface with arrays that it knows: what is kept is never stale, and no array is."""

import sys
import threading
import weakref

import numpy as np
import pytest

from fastopt import SparseRows, functional

COUNT = 3


def arguments(seed=0, count=COUNT, size=5):
    """Parameters, gradients and both moments of Adam: lists, or with a count of None one array each."""
    rng = np.random.default_rng(seed)
    made = [[rng.standard_normal(size).astype("float32") for _ in range(count or 1)] for _ in range(2)]
    made += [[np.abs(array) for array in made[k]] for k in range(2)]
    return made if count else [column[0] for column in made]


def bits(columns):
    return [array.tobytes() for column in columns for array in (column if isinstance(column, list) else [column])]


def reshaped(columns):
    columns[0][1] = columns[0][1].reshape(5, 1)


def in_place(columns):
    columns[2][1].shape = (5, 1)


def shrunk(columns):
    columns[2][1].resize(3, refcheck=False)


def read_only(columns):
    columns[0][1].flags.writeable = False


def read_only_state(columns):
    columns[3][2].flags.writeable = False


def doubled(columns):
    columns[3][0] = columns[3][0].astype("float64")


def one_twice(columns):
    columns[0][1] = columns[0][0]


def state_twice(columns):
    columns[3][1] = columns[2][1]


def gradient_is_state(columns):
    columns[1][1] = columns[2][0]


def gradient_is_missing(columns):
    columns[1][1] = None


def gradient_is_short(columns):
    columns[1] = columns[1][:2]


def fewer(columns):
    for column in columns:
        del column[-1]


def swapped(columns):
    columns[2], columns[3] = columns[3], columns[2]


def others(columns):
    columns[:] = arguments(7)


def subclass(columns):
    columns[0][0] = np.ma.MaskedArray(columns[0][0])


def same_place(columns):
    """New objects over the same memory."""
    columns[2] = [array[:] for array in columns[2]]


def as_tuples(columns):
    columns[:] = map(tuple, columns)


CHANGES = [reshaped, in_place, shrunk, read_only, read_only_state, doubled, one_twice, state_twice, gradient_is_state,
           gradient_is_missing, gradient_is_short, fewer, swapped, others, subclass, same_place, as_tuples]
OPTIONS = [{}, {"lr": 0.5}, {"lr": 1}, {"lr": -1.0}, {"lr": np.array(0.1)}, {"lr": [0.1]}, {"maximize": True},
           {"maximize": 1}, {"amsgrad": True}, {"betas": (0.5, 0.5)}, {"eps": 0.1, "lr": 0.2}, {"lr": 0.1, "eps": 0.2},
           {"betas": [0.5, 0.5]}, {"num_threads": 2}, {"num_threads": 0}, {"num_threads": True}, {"step": 7},
           {"step": 0}, {"step": True}, {"step": np.int64(7)}, {"step": 2.0}, {"weight": 1.0}, {"weight_decay": 0.5},
           {"exp_avgs": None}, {"lr": len}]


def called(columns, options):
    """What a call does: the arrays after it, or its error."""
    try:
        functional.adamw(*columns, **{"step": 2} | options)
    except (TypeError, ValueError) as error:
        return type(error), str(error), bits(column for column in columns[2:])
    return bits([[array for array in column if array is not None] for column in columns])


def after(first, change, options, known):
    """What a second call does, after a change; with what was known after the first, or without."""
    columns = arguments()
    functional.adamw(*columns, step=1, **first)
    change(columns)
    if not known:
        functional.CALLS["adamw"].known.clear()
    return called(columns, options)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_arrays_that_changed_between_calls_are_found(change):
    assert after({}, change, {}, True) == after({}, change, {}, False)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("first", [{}, {"lr": 0.5}, {"eps": 0.1, "lr": 0.2}], ids=str)
def test_options_that_changed_between_calls_are_found(first, options):
    assert after(first, list, options, True) == after(first, list, options, False)


def test_state_that_is_named_is_known_too():
    twins = [arguments(), arguments()]
    for step in range(1, 4):
        params, grads, means, squares = twins[0]
        functional.adamw(params, grads, exp_avg_sqs=squares, exp_avgs=means, step=step, lr=0.1 / step)
        functional.CALLS["adamw"].known.clear()
        functional.adamw(*twins[1], step=step, lr=0.1 / step)
    assert bits(twins[0]) == bits(twins[1])


def test_a_list_that_changes_in_place_is_read_at_every_call():
    columns, twins, betas = arguments(), arguments(), [0.5, 0.5]
    for step, first in enumerate((0.5, 0.9), 1):
        betas[0] = first
        functional.adamw(*columns, step=step, betas=betas)
        functional.adamw(*twins, step=step, betas=tuple(betas))
    assert bits(columns) == bits(twins)


@pytest.mark.parametrize("count", [None, COUNT], ids=str)
def test_arrays_are_not_kept(count):
    columns = arguments(count=count)
    every = [array for column in columns for array in (column if count else [column])]
    before = [sys.getrefcount(array) for array in every]
    for step in (1, 2):
        functional.adamw(*columns, step=step)
        assert [sys.getrefcount(array) for array in every] == before
    for array in every:
        array.resize(2, refcheck=False)
    watched = [weakref.ref(array) for array in every]
    del columns, every, array
    assert not any(watch() for watch in watched)


def test_a_new_array_at_the_address_of_an_old_one_is_stepped_as_itself():
    """Its object or its memory, or both, are often those of an array that is no more."""
    for size in (3, 4, 3, 2, 4, 3) * 20:
        w, g = np.ones(size), np.ones(size)
        functional.sgd(w, g, step=1, lr=0.5)
        np.testing.assert_array_equal(w, np.full(size, 0.5))
        del w, g


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(functional, "MOST", 100)
    calls = functional.CALLS["sgd"]
    alive = []
    for k in range(100):
        alive.append([np.ones(2) for _ in range(1 + k % 7)])
        functional.sgd(alive[-1], [np.ones(2)] * len(alive[-1]), step=1)
        assert sum(len(engine.plan) + functional.CALL for engine in calls.known.values()) <= 100
        assert id(alive[-1][0]) in calls.known  # the last is


def test_a_call_that_raises_leaves_nothing_begun():
    columns = arguments()
    functional.adamw(*columns, step=1)
    before = bits(columns)
    with pytest.raises(ValueError, match="gradient of parameter 1 must have shape"):
        functional.adamw(columns[0], [columns[1][0], np.ones(2, "float32"), None], *columns[2:], step=2)
    assert bits(columns) == before
    functional.adamw(*columns, step=2)
    twins = arguments()
    for step in (1, 2):
        functional.CALLS["adamw"].known.clear()
        functional.adamw(*twins, step=step)
    assert bits(columns) == bits(twins)


class Stepping:
    """A gradient that makes another call with the same arrays when it is asked for its memory."""

    def __init__(self, columns):
        self.columns, self.asked = columns, 0

    @property
    def __array_interface__(self):
        self.asked += 1
        if self.asked == 1:
            functional.adamw(*self.columns, step=5)
        return self.columns[1][0].__array_interface__


def test_a_call_within_a_call():
    columns, twins = arguments(), arguments()
    functional.adamw(*columns, step=1)
    functional.adamw(*twins, step=1)
    functional.adamw(columns[0], [Stepping(columns), *columns[1][1:]], *columns[2:], step=2)
    functional.adamw(*twins, step=5)
    functional.adamw(*twins, step=2)
    assert bits(columns) == bits(twins)


def test_threads_call_with_the_same_arrays():
    columns = [np.zeros(4)], [np.ones(4)]
    failed = []

    def run():
        try:
            for step in range(1, 500):
                functional.sgd(*columns, step=step, lr=1.0)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    np.testing.assert_array_equal(columns[0][0], np.full(4, -4 * 499.0))


def test_sparse_rows_are_taken_where_they_can_be():
    table = np.zeros((4, 2))
    rows = SparseRows([1], np.ones((1, 2)), table.shape)
    for _ in range(2):
        functional.sgd([table], [rows], step=1, lr=1.0)
    np.testing.assert_array_equal(table[1], [-2.0, -2.0])
    with pytest.raises(TypeError, match="this method takes dense gradients only"):
        functional.sgd([table], [rows], step=1, lr=1.0, weight_decay=0.1)
    functional.sgd([table], [rows], step=1, lr=1.0)
    np.testing.assert_array_equal(table[1], [-3.0, -3.0])


def test_surplus_states_are_refused_in_a_known_call_too():
    param, grad, mean, square = np.ones(3), np.ones(3), np.zeros(3), np.zeros(3)
    functional.adam(param, grad, mean, square, step=1)
    with pytest.raises(TypeError, match="takes its state as"):
        functional.adam(param, grad, mean, square, None, square, step=2)
    functional.adam(param, grad, mean, square, step=2)


def test_numbers_that_lie_in_one_another_or_in_a_parameter_are_refused():
    params, grads = [np.ones(3), np.ones(3)], [np.ones(3), np.ones(3)]
    means, number = [np.zeros(3), np.zeros(3)], np.zeros(())
    with pytest.raises(ValueError, match="share memory"):
        functional.novograd(params, grads, means, [number, number], step=1)
    with pytest.raises(ValueError, match="share memory"):
        functional.novograd(params[0], grads[0], means[0], params[0][1:2].reshape(()), step=1)
    with pytest.raises(TypeError, match="0-d float32 or float64"):
        functional.novograd(params[0], grads[0], means[0], np.zeros((), "float16"), step=1)
    np.testing.assert_array_equal(params, 1)
