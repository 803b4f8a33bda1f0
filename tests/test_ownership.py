"""Whose memory a step reads and writes: nothing that nobody owns any more, and nothing that it also writes."""

import array
import copy
import gc
import inspect
import pickle
import weakref
from collections import OrderedDict, UserDict

import numpy as np
import pytest

import fastopt
from fastopt import table

METHODS = [getattr(fastopt, method.name) for method in table.METHODS if method.name not in ("LBFGS", "SparseAdam")]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def ones():
    return np.ones((2, 3))


# ---- what holds the parameters was changed

CONTAINERS = {"dict": lambda w, b: {"w": w, "b": b}, "ordered": lambda w, b: OrderedDict(w=w, b=b),
              "user dict": lambda w, b: UserDict({"w": w, "b": b}), "nested": lambda w, b: {"layer": {"w": w, "b": b}}}


def inner(params):
    return params.get("layer", params)


@every_method
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("change", ["replace", "add", "remove"])
def test_a_mapping_that_was_changed_is_an_error_until_it_is_right_again(method, container, change):
    w, b = ones(), ones()
    params = CONTAINERS[container](w, b)
    optimizer = method(params)
    grads = [ones(), ones()]
    optimizer.step(grads)
    before = w.copy(), b.copy()
    if change == "replace":
        inner(params)["w"] = ones()
    elif change == "add":
        inner(params)["c"] = ones()
    else:
        del inner(params)["b"]
    with pytest.raises(ValueError, match=r"rebind\(params\)|add_param_group\(\)|remove_param\(\)"):
        optimizer.step(grads)
    np.testing.assert_array_equal((w, b), before)
    if change == "replace":
        optimizer.rebind(params)
        optimizer.step(grads)
        assert (inner(params)["w"] != 1).any() and (w == before[0]).all()
        inner(params)["w"] = ones()
        with pytest.raises(ValueError, match="was replaced by another array"):
            optimizer.step(grads)
    elif change == "remove":
        inner(params)["b"] = b
        optimizer.step(grads)


def test_a_list_that_was_given_is_watched_too():
    w, b = ones(), ones()
    for change in (lambda given: given.__setitem__(0, ones()), lambda given: given.append(ones()), list.pop):
        given = [w, b]
        optimizer = fastopt.SGD(given)
        change(given)
        with pytest.raises(ValueError, match="given"):
            optimizer.step([ones(), ones()])


def test_the_same_memory_is_the_same_parameter():
    params = {"w": ones()}
    optimizer = fastopt.SGD(params, lr=1.0)
    params["w"] = params["w"][:]
    optimizer.step([ones()])
    assert (params["w"] == 0).all()


def test_a_parameter_that_was_added_to_mapping_and_optimizer_is_stepped():
    params = {"w": ones()}
    optimizer = fastopt.SGD(params, lr=1.0)
    params["b"] = ones()
    optimizer.add_param_group({"params": {"b": params["b"]}})
    optimizer.step({"w": ones(), "b": ones()})
    assert (params["b"] == 0).all()


GROUPS = {
    "replace": lambda groups: groups[0]["params"].__setitem__(0, ones()),
    "append": lambda groups: groups[0]["params"].append(ones()),
    "pop": lambda groups: groups[0]["params"].pop(),
    "clear": lambda groups: groups[0]["params"].clear(),
    "other list": lambda groups: groups[0].__setitem__("params", [ones(), ones()]),
    "no list": lambda groups: groups[0].pop("params"),
    "groups append": lambda groups: groups.append(dict(groups[0])),
    "groups pop": lambda groups: groups.pop(),
    "groups replace": lambda groups: groups.__setitem__(0, dict(groups[0])),
    "no rate": lambda groups: groups[0].pop("lr"),
}


@every_method
@pytest.mark.parametrize("change", GROUPS)
def test_groups_that_were_changed_are_an_error(method, change):
    params = [ones(), ones()]
    optimizer = method(params)
    GROUPS[change](optimizer.param_groups)
    with pytest.raises(ValueError, match="param_groups"):
        optimizer.step([ones(), ones()])
    np.testing.assert_array_equal(params, [ones(), ones()])


def test_groups_cannot_be_exchanged_for_others():
    with pytest.raises(AttributeError, match="add_param_group"):
        fastopt.SGD([ones()]).param_groups = []


def test_an_average_of_a_mapping_notices_that_a_parameter_was_replaced():
    params = {"w": ones()}
    average = fastopt.averages.EMA(params, 0.5)
    params["w"] = ones()
    with pytest.raises(ValueError, match="was replaced"):
        average.update()


def test_copies_watch_what_was_copied_with_them():
    params = {"w": ones()}
    again, optimizer = copy.deepcopy((params, fastopt.SGD(params, lr=1.0)))
    optimizer.step([ones()])
    assert (again["w"] == 0).all() and (params["w"] == 1).all()
    again["w"] = ones()
    with pytest.raises(ValueError, match="was replaced"):
        optimizer.step([ones()])


# ---- parameters changed in place

RESHAPES = {"shape": lambda w: setattr(w, "shape", (3, 2)), "dtype": lambda w: setattr(w, "dtype", np.int64),
            "narrow": lambda w: setattr(w, "dtype", np.float32), "strides": lambda w: w.resize((4, 3), refcheck=False)}


@every_method
@pytest.mark.parametrize("change", RESHAPES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_parameter_whose_header_was_changed_is_an_error(method, change):
    w = np.ones((2, 3))
    optimizer = method([w])
    optimizer.step([ones()])
    RESHAPES[change](w)
    with pytest.raises((TypeError, ValueError), match="parameter 0|gradient of parameter 0"):
        optimizer.step([np.ones(w.shape)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sparse_step_of_a_table_that_was_reshaped_is_an_error():
    w = np.ones((2, 50))
    optimizer = fastopt.SGD([w])
    w.shape = (50, 2)
    with pytest.raises(ValueError, match="another shape"):
        optimizer.step([fastopt.SparseRows([49], np.ones((1, 2)), (50, 2))])


# ---- bound gradients

@every_method
def test_bound_gradients_are_asked_for_again_once_their_owner_has_dropped_them(method):
    params, grads = [ones(), ones()], {"a": ones(), "b": ones()}
    optimizer = method({"a": params[0], "b": params[1]})
    optimizer.bind_grads(grads)
    for _ in range(2):
        optimizer.step()
    grads["b"] = ones()
    before = copy.deepcopy(params)
    with pytest.raises(ValueError, match=r"bound gradient of parameter 'b'.*bind_grads"):
        optimizer.step()
    np.testing.assert_array_equal(params, before)
    optimizer.bind_grads(grads)
    optimizer.step()


def test_bound_gradients_are_asked_for_again_after_a_group_was_added():
    optimizer = fastopt.SGD([ones()])
    grads = [ones()]
    optimizer.bind_grads(grads)
    optimizer.step()
    optimizer.add_param_group({"params": [ones()]})
    with pytest.raises(ValueError, match="bind_grads"):
        optimizer.step()


@pytest.mark.parametrize("change", [lambda g: g.resize(100, refcheck=False), lambda g: setattr(g, "shape", (3, 2)),
                                    lambda g: setattr(g, "dtype", np.int64)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bound_gradient_that_was_changed_in_place_is_an_error(change):
    optimizer, grad = fastopt.SGD([ones()]), np.ones((2, 3))
    optimizer.bind_grads([grad])
    change(grad)
    with pytest.raises((TypeError, ValueError), match="gradient of parameter 0"):
        optimizer.step()


# ---- gradients in memory that the step writes

def of_other(optimizer, params):
    return [params[1], params[0]]


def of_part(optimizer, params):
    return [ones(), params[0]]


def of_state(optimizer, params):
    state = optimizer.state.get(0, {})
    arrays = [value for value in dict(state).values() if isinstance(value, np.ndarray) and value.shape == (2, 3)]
    return [arrays[0], ones()] if arrays else None


def of_average(optimizer, params):
    return [ones(), optimizer._engine.pipeline.options.average[0].averages[0]]


def of_slow(optimizer, params):
    return [optimizer._engine.pipeline.slow[1], ones()]


SOURCES = {"other parameter": of_other, "one other": of_part, "state": of_state, "average": of_average, "slow": of_slow}


@every_method
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", ["step", "bound", "again", "exporter", "moved", "float32 view"])
def test_a_gradient_in_memory_that_the_step_writes_is_refused(method, source, way):
    params = [ones(), ones()]
    optimizer = method(params)
    if source == "average":
        optimizer.set_stages(average=fastopt.averages.EMA(optimizer, 0.5))
    elif source == "slow":
        optimizer.set_stages(lookahead=(2, 0.5))
    else:
        optimizer.set_stages()
    good = [ones(), ones()]
    optimizer.step(good)
    if way == "moved":
        params = [ones(), ones()]
        optimizer.rebind(params)
    grads = SOURCES[source](optimizer, params)
    if grads is None:
        pytest.skip("it has no state of this shape")
    if way == "exporter":
        grads = [memoryview(grad) for grad in grads]
    if way == "float32 view":
        grads = [grad.view(np.float32)[:1].reshape(2, 3) for grad in grads]
    before = copy.deepcopy((params, repr(optimizer.state_dict())))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"gradient of parameter . (shares memory with its|and .* share memory)"):
            if way == "bound":
                optimizer.bind_grads(grads)
            elif way == "again":
                optimizer.step(grads, grad_scale=2.0)
            else:
                optimizer.step(grads)
    assert repr((params, repr(optimizer.state_dict()))) == repr(before)
    optimizer.step(good)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_gradients_in_each_other_s_memory_are_refused(dtype):
    x, y = np.ones(3, dtype), np.ones(3, dtype)
    with pytest.raises(ValueError, match="gradient of parameter 0 and parameter 1 share memory"):
        fastopt.SGD([x, y]).step([y, x])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_gradients_in_each_other_s_memory_are_refused(threads):
    x, y = np.ones(200_000), np.ones(200_000)
    optimizer = fastopt.SGD([x, y])
    optimizer.num_threads = threads
    with pytest.raises(ValueError, match="gradient of parameter 0 and parameter 1 share memory"):
        optimizer.step([y, x])
    assert (x == 1).all() and (y == 1).all()


def test_values_of_a_sparse_gradient_in_another_parameter_are_refused():
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    with pytest.raises(ValueError, match="gradient of parameter 0 and parameter 1 share memory"):
        fastopt.SGD(tables).step([fastopt.SparseRows([0], tables[1][:1], (4, 2)), None])


def test_functional_steps_look_at_all_their_memory():
    x, y, m = np.ones(3), np.ones(3), np.ones(3)
    with pytest.raises(ValueError, match="share memory"):
        fastopt.functional.sgd([x, y], [y, x], step=1)
    with pytest.raises(ValueError, match="share memory"):
        fastopt.functional.sgd([x], [m], [m], step=1, momentum=0.9)


def test_parameters_cannot_be_moved_into_the_state_or_an_average():
    optimizer = fastopt.SGD([ones()], momentum=0.9)
    average = fastopt.averages.EMA(optimizer, 0.5)
    optimizer.set_stages(average=average)
    optimizer.step([ones()])
    for other in (optimizer.state[0]["momentum_buffer"], average.averages[0]):
        with pytest.raises(ValueError, match="share memory"):
            optimizer.rebind([other])
    optimizer.step([ones()])


def test_many_gradients_at_changing_addresses_are_all_read():
    rng = np.random.default_rng(0)
    pool = [np.zeros(8) for _ in range(400)]
    params = pool[:100]
    optimizer = fastopt.SGD(params, lr=0.0)
    for _ in range(50):
        grads = [pool[100 + i] for i in rng.integers(0, 300, 100)]
        optimizer.step(grads)
        wrong, other = rng.integers(0, 100, 2)
        grads[wrong] = params[other]
        with pytest.raises(ValueError, match=f"gradient of parameter {wrong} .*share"):
            optimizer.step(grads)


# ---- parameters passed at each step, and replaced with their state

@every_method
def test_parameters_that_are_passed_to_a_step_are_the_ones_stepped(method):
    params = [ones(), ones()]
    optimizer = method(params)
    optimizer.step([ones(), ones()], params=params)
    other = [param.copy() for param in params]
    before = copy.deepcopy(params)
    optimizer.step([ones(), ones()], params=other)
    np.testing.assert_array_equal(params, before)
    assert (other[0] != params[0]).any() and optimizer.step_count == 2
    with pytest.raises(ValueError):
        optimizer.step([ones(), np.ones(3)], params=params)
    optimizer.step([ones(), ones()])
    np.testing.assert_array_equal(params, before)
    with pytest.raises(ValueError, match="must have"):
        optimizer.step([ones(), ones()], params=[ones()])


@every_method
def test_a_replaced_parameter_goes_on_with_its_rows_of_the_state(method):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((4, 3))
    cut = not method.needs and method not in (fastopt.Muon, fastopt.Adafactor)
    rows = [0, 2] if cut else [0, 1, 2, 3]
    grads = rng.standard_normal((5, 4, 3))
    whole, pruned = w.copy(), w.copy()
    params = {"w": pruned, "b": np.ones((2, 2))}
    first, second = method([whole]), method(params)
    for grad in grads[:3]:
        first.step([grad])
        second.step({"w": grad, "b": None})
    kept = pruned[rows].copy()
    second.replace_param("w", kept, lambda name, array: array[rows] if array.shape[0] == 4 else array)
    assert params["w"] is kept
    for grad in grads[3:]:
        first.step([grad])
        second.step({"w": grad[rows], "b": None})
    np.testing.assert_allclose(kept, whole[rows], rtol=1e-12)
    with pytest.raises(ValueError, match="to keep its state"):
        second.replace_param("w", np.ones((9, 3)))
    if second.state and len(second.state[0]) > second.counts_steps:
        with pytest.raises((TypeError, ValueError), match="state"):
            second.replace_param("w", np.ones((9, 3)), lambda name, array: np.ones(77))
    second.step({"w": grads[0][rows], "b": np.ones((2, 2))})
    second.replace_param(0, kept.copy(), "new")


@every_method
def test_a_parameter_that_was_taken_out_is_left_alone_and_the_others_go_on(method):
    params = {"a": ones(), "b": ones(), "c": ones()}
    optimizer = method(params)
    optimizer.set_stages(lookahead=(2, 0.5))
    optimizer.step([ones()] * 3)
    twin = method({"a": ones()})
    twin.set_stages(lookahead=(2, 0.5))
    twin.step([ones()])
    optimizer.remove_param("b")
    before = params["b"].copy()
    optimizer.step({"a": ones(), "c": ones()})
    twin.step([ones()])
    np.testing.assert_array_equal(params["b"], before)
    np.testing.assert_array_equal(params["a"], twin._plan.params[0])
    np.testing.assert_array_equal(params["c"], twin._plan.params[0])
    assert optimizer.param_groups[0]["param_names"] == ["a", "c"]
    optimizer.remove_param(params["c"])
    with pytest.raises(ValueError, match="only parameter"):
        optimizer.remove_param(0)
    with pytest.raises(ValueError, match="key must be"):
        optimizer.remove_param("nobody")


def test_averages_of_the_stages_have_to_be_taken_out_first():
    optimizer = fastopt.SGD([ones(), ones()])
    optimizer.set_stages(average=fastopt.averages.EMA(optimizer, 0.5))
    for act in (lambda: optimizer.replace_param(0, ones()), lambda: optimizer.remove_param(0)):
        with pytest.raises(ValueError, match="averages"):
            act()


# ---- values that change in place

LISTS = {"betas": ([0.9, 0.99], [0.0, 0.99]), "eps": (np.array(1e-8), np.array(1.0)),
         "lr": (np.array([0.1]), np.array([0.5])), "weight_decay": (np.array(0.1), np.array(0.9)),
         "etas": ([0.5, 1.2], [0.1, 1.2]), "step_sizes": ([1e-6, 50.0], [1e-6, 1e-3]),
         "ns_coefficients": ([3.4445, -4.775, 2.0315], [2.0, -1.5, 0.5]), "momentum": (np.array(0.9), np.array(0.1))}


@every_method
@pytest.mark.parametrize("name", LISTS)
def test_a_hyperparameter_that_is_changed_in_place_acts_at_the_next_step(method, name):
    if name not in method.hyperparameters or (method is fastopt.Adafactor and name == "eps") or name in method.fixed:
        pytest.skip("it has no such hyperparameter")
    value, new = LISTS[name]
    default = inspect.signature(method).parameters[name].default
    if isinstance(default, tuple):  # of three, too
        value, new = ([*pair, *default[len(pair):]] for pair in (value, new))
    grads = np.random.default_rng(0).standard_normal((4, 2, 3))
    results = []
    for in_place in (True, False):
        w = ones()
        given = copy.deepcopy(value)
        optimizer = method([{"params": [w], name: given}])
        for k, grad in enumerate(grads):
            if k == 2 and in_place:
                given[() if isinstance(given, np.ndarray) else slice(None)] = new
            elif k == 2:
                optimizer.param_groups[0][name] = copy.deepcopy(new)
            optimizer.step([grad])
        results.append(w.tolist())
    assert results[0] == results[1]


def test_a_list_that_two_groups_share_acts_on_both():
    betas = [0.9, 0.99]
    params = [ones(), ones()]
    optimizer = fastopt.Adam([{"params": params[:1], "betas": betas}, {"params": params[1:], "betas": betas}])
    optimizer.step([ones(), ones()])
    betas[0] = 0.0
    optimizer.step([-ones(), -ones()])
    np.testing.assert_array_equal(params[0], params[1])


# ---- the rest

def test_stages_make_no_reference_cycle():
    gc.collect()
    gc.disable()
    try:
        optimizer = fastopt.SGD([ones()])
        average = fastopt.averages.EMA([ones()], 0.5)
        optimizer.set_stages(clip=1.0)
        optimizer.step([ones()])
        with average.average_parameters():
            pass
        gone = [weakref.ref(optimizer), weakref.ref(average)]
        del optimizer, average
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_read_only_averages_of_the_stages_are_refused():
    optimizer = fastopt.SGD([ones()])
    average = fastopt.averages.EMA(optimizer, 0.5)
    optimizer.set_stages(average=average)
    average.averages[0].flags.writeable = False
    before = copy.deepcopy(optimizer._plan.params)
    with pytest.raises(ValueError, match="an average of parameter 0"):
        optimizer.step([ones()])
    np.testing.assert_array_equal(optimizer._plan.params, before)


def test_indices_of_sparse_rows_cannot_be_written():
    rows = fastopt.SparseRows([1, 0], np.ones((2, 2)), (3, 2))
    with pytest.raises(ValueError, match="read-only"):
        rows.indices[0] = 100_000


def test_sparse_vectors_of_scipy_serve():
    sparse = pytest.importorskip("scipy.sparse")
    w = np.zeros(5)
    fastopt.SGD([w], lr=1.0).step([sparse.coo_array(np.array([0.0, 2.0, 0.0, 3.0, 0.0]))])
    np.testing.assert_array_equal(w, [0, -2, 0, -3, 0])


@pytest.mark.parametrize("order", [">f8", ">f4", "<f8"])
def test_values_of_sparse_rows_may_have_any_byte_order_and_alignment(order):
    values = np.frombuffer(b"x" + np.array([[2.0, 3.0]], order).tobytes(), order, offset=1).reshape(1, 2)
    w = np.zeros((2, 2))
    fastopt.SGD([w], lr=1.0).step([fastopt.SparseRows(np.array([1], ">i4"), values, (2, 2))])
    np.testing.assert_array_equal(w, [[0, 0], [-2, -3]])


def test_exporters_may_be_of_any_kind():
    w = array.array("d", [1.0, 1.0])
    fastopt.SGD([w], lr=1.0).step([array.array("d", [1.0, 2.0])])
    assert w.tolist() == [0.0, -1.0]


def test_making_groups_and_first_steps_takes_linear_time():
    """In the number of calls of Python functions, which no other load changes."""
    import cProfile
    import pstats

    def calls(count):
        profile = cProfile.Profile()
        profile.enable()
        optimizer = fastopt.Adam([{"params": [np.ones(2)]} for _ in range(count)])
        optimizer.step([[np.ones(2)]] * count)
        profile.disable()
        return pstats.Stats(profile).total_calls

    assert calls(400) < 4.2 * calls(100)


PLACES = {"list": lambda w, b: [w, b], "tuple": lambda w, b: (w, b), "iterator": lambda w, b: iter([w, b]),
          "values": lambda w, b: {"w": w, "b": b}.values(), "pairs": lambda w, b: [("w", w), ("b", b)],
          "groups": lambda w, b: [{"params": [w]}, {"params": [b]}], "mapping": lambda w, b: {"w": w, "b": b}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("act", ["replace", "remove", "rebind"])
def test_every_structure_bears_other_parameters(place, act):
    w, b = np.ones(2), np.ones(3)
    optimizer = fastopt.SGD(PLACES[place](w, b), lr=1.0)
    new = np.ones(4 if act == "replace" else 2)
    if act == "replace":
        optimizer.replace_param(0, new, "new")
        optimizer.step([np.ones(4), np.ones(3)] if place != "groups" else [[np.ones(4)], [np.ones(3)]])
        assert (new == 0).all() and (w == 1).all()
    elif act == "remove" and place != "groups":
        optimizer.remove_param(0)
        optimizer.step([np.ones(3)])
        assert (w == 1).all()
    elif act == "rebind":
        optimizer.rebind(PLACES[place](new, b) if place != "groups" else [new, b])
        optimizer.step([np.ones(2), np.ones(3)] if place != "groups" else [[np.ones(2)], [np.ones(3)]])
        assert (new == 0).all() and (w == 1).all()
    assert act == "remove" or (b == 0).all()


def test_lists_without_names_may_grow_and_shrink_with_their_optimizer():
    given = [np.ones(2), np.ones(3), np.ones(4)]
    optimizer = fastopt.SGD(given, lr=1.0)
    optimizer.remove_param(0)
    del given[0]
    optimizer.step([np.ones(3), np.ones(4)])
    given.insert(0, np.ones(5))
    optimizer.add_param_group({"params": given[:1]})
    optimizer.step([np.ones(3), np.ones(4), np.ones(5)])
    assert [array.tolist() for array in given] == [[0.0] * 5, [-1.0] * 3, [-1.0] * 4]


def test_a_hybrid_replaces_parameters_of_both_parts():
    params = {"w": np.ones((2, 2)), "b": np.ones(2)}
    optimizer = fastopt.MuonAdamW(params)
    grads = {name: np.ones_like(param) for name, param in params.items()}
    optimizer.step(grads)
    for name in params:
        old = params[name]
        optimizer.replace_param(name, old.copy())
        assert params[name] is not old and (params[name] == old).all()
        optimizer.step(grads)
        assert (params[name] != old).all()
    with pytest.raises(ValueError, match="to keep its state"):
        optimizer.replace_param("b", np.ones(3))
    with pytest.raises(ValueError, match="share memory"):
        optimizer.replace_param("b", params["w"][0])
    optimizer.step(grads)


def test_averages_of_whole_methods_average_the_parameters_that_are_stepped():
    for method in (fastopt.Adafactor, fastopt.AdamW):
        w = np.ones((2, 2))
        average = fastopt.averages.EMA([w], 0.0)
        optimizer = method([w])
        optimizer.set_stages(average=average)
        moved = np.full((2, 2), 7.0)
        optimizer.rebind([moved])
        for _ in range(2):
            optimizer.step([ones()[:, :2].copy()])
        np.testing.assert_array_equal(average.averages[0], moved)


def test_a_bound_view_is_not_taken_for_dropped():
    flat, params = np.ones(5), [np.ones(2), np.ones(3)]
    optimizer = fastopt.SGD(params, lr=1.0)
    views = [flat[:2], flat[2:]]
    optimizer.bind_grads(views)
    optimizer.step()
    del views
    flat[:] = 2
    optimizer.step()
    np.testing.assert_array_equal(params[0], [-2, -2])


def test_a_parameter_cannot_be_replaced_by_memory_that_the_step_writes():
    optimizer = fastopt.Adam([np.ones(2), np.ones(2)])
    optimizer.step([np.ones(2), np.ones(2)])
    for other in (optimizer.state[0]["exp_avg"], optimizer.state[1]["exp_avg"], optimizer._plan.params[1]):
        with pytest.raises(ValueError, match="share memory"):
            optimizer.replace_param(0, other)


def test_the_cure_of_a_replaced_list_is_rebind():
    optimizer = fastopt.SGD([np.ones(2)], lr=1.0)
    new = [np.ones(2)]
    optimizer.param_groups[0]["params"] = new
    with pytest.raises(ValueError, match="rebind"):
        optimizer.step([np.ones(2)])
    optimizer.rebind(new)
    optimizer.step([np.ones(2)])
    assert (new[0] == 0).all()


def test_parameters_may_come_from_an_iterator_at_each_step():
    params = [np.ones(2), np.ones(3)]
    optimizer = fastopt.SGD(iter(params), lr=1.0)
    optimizer.step([np.ones(2), np.ones(3)], params=(param for param in [np.ones(2), np.ones(3)]))
    assert (params[0] == 1).all()


@pytest.mark.parametrize("method", [fastopt.Muon, fastopt.Adafactor])
def test_state_stays_guarded_after_a_parameter_was_taken_out(method):
    optimizer = method([np.ones((2, 2)), np.ones((2, 1))])
    optimizer.step([np.ones((2, 2)), np.ones((2, 1))])
    optimizer.remove_param(0)
    (state,) = [array for array in optimizer._engine.arrays[0].values() if array.shape == (2, 1)]
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step([state])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("how", ["load", "pickle", "deepcopy"])
def test_a_gradient_in_a_state_that_came_from_elsewhere_is_refused_at_the_first_step(method, how):
    optimizer = method([ones()])
    optimizer.step([ones()])
    if how == "load":
        other = method([ones()])
        other.load_state_dict(optimizer.state_dict())
    else:
        other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    arrays = [array for array in other.state.get(0, {}).values()
              if isinstance(array, np.ndarray) and array.shape == (2, 3)]
    if not arrays:
        pytest.skip("it has no state of this shape")
    with pytest.raises(ValueError, match="share memory"):
        other.step([arrays[0]])
    other.step([ones()])


@pytest.mark.parametrize("method", [fastopt.AdamW, fastopt.Muon, fastopt.Adafactor, fastopt.MuonAdamW])
def test_an_average_is_written_while_it_is_a_stage(method):
    optimizer = method([ones()])
    optimizer.step([ones()])
    average = fastopt.averages.EMA(optimizer, 0.5)
    optimizer.set_stages(average=average)
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step([average.averages[0]])
    optimizer.set_stages()
    optimizer.step([average.averages[0]])
