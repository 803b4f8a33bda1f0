"""What `.ci/mutate` found that no test noticed."""

import copy
import pickle

import numpy as np
import pytest

import fastopt

HOOKS = ["state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"]


def ones(*sizes):
    return [np.ones(size) for size in sizes]


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run_in_the_order_of_registering_unless_one_comes_first(kind):
    optimizer, seen = fastopt.SGD(ones(3)), []
    register = getattr(optimizer, f"register_{kind}_hook")
    register(lambda *_: seen.append("one"))
    register(lambda *_: seen.append("two"))
    register(lambda *_: seen.append("first"), prepend=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["first", "one", "two"]


def test_the_state_of_a_parameter_shows_what_it_holds():
    optimizer = fastopt.NAdam(ones(2))
    optimizer.step(ones(2))
    state = optimizer.state[0]
    text = repr(state)
    for key in ("step", "mu_product", "exp_avg", "exp_avg_sq"):
        assert f"{key!r}: " in text
    assert text == repr({key: state[key] for key in state})
    assert state["mu_product"] == pytest.approx(0.9 * (1 - 0.5 * 0.96**0.004))


@pytest.mark.parametrize("names", [["a", 1], [1, "a"], "ab", 5])
def test_names_of_parameters_are_all_texts(names):
    with pytest.raises(TypeError, match="param_names must be a list of names"):
        fastopt.SGD([{"params": ones(1, 2), "param_names": names}])


def test_gradients_of_groups_and_arrays_are_told_apart():
    """Two gradients, one of which is a list of numbers, are no gradients of two groups."""
    first, second = params = ones(2, 3)
    optimizer = fastopt.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
    optimizer.step([[np.ones(2)], [np.ones(3)]])
    optimizer.step([np.ones(2), np.ones(3)])
    assert [param.tolist() for param in params] == [[-1, -1], [-1, -1, -1]]
    with pytest.raises((TypeError, ValueError)):
        optimizer.step([np.ones(2), [np.ones(3), np.ones(3)]])
    assert first.tolist() == [-1, -1]


def test_a_pattern_is_right_if_it_names_one_of_several():
    params = {"body.weight": np.ones(2), "body.bias": np.ones(2), "head": np.ones(2)}
    optimizer = fastopt.AdamW(params, lr=0.1, weight_decay=0.5)
    optimizer.set_stages(clip=1.0)
    for pattern, right in (("*.bias", True), ("head", True), ("*", True), ("tail*", False)):
        if right:
            fastopt.checks.check_matches("no_decay", [pattern], list(params))
        else:
            with pytest.raises(ValueError, match=r"no_decay has 'tail\*', which matches no parameter of body.weight"):
                fastopt.checks.check_matches("no_decay", [pattern], list(params))
    with pytest.raises(ValueError, match="no_decay has patterns of names, but the parameters have no names; name them"):
        fastopt.checks.check_matches("no_decay", ["head"], ["head", None], "; name them")


def test_sparse_gradients_refuse_weight_decay_by_group():
    tables = [np.ones((4, 2)), np.ones((4, 2))]
    optimizer = fastopt.SGD([{"params": [tables[0]]}, {"params": [tables[1]], "weight_decay": 0.1}], lr=1.0)
    sparse = fastopt.SparseRows([1], np.ones((1, 2)), (4, 2))
    with pytest.raises(ValueError, match="group 1 has weight_decay, which is not possible with sparse gradients"):
        optimizer.step([sparse, sparse])
    assert (tables[0] == 1).all() and (tables[1] == 1).all()


@pytest.mark.parametrize("again", [lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy])
def test_a_copy_goes_on_where_the_original_is(again):
    """With everything that is no state: defaults, steps, stages, and what a later group gets."""
    optimizer = fastopt.NAdam([np.ones(3)], lr=0.25, weight_decay=0.5)
    optimizer.set_stages(lookahead=(2, 0.5), statistics=True)
    for _ in range(3):
        optimizer.step([np.ones(3)])
    twin = again(optimizer)
    assert twin.defaults == optimizer.defaults
    assert twin.step_count == optimizer.step_count == 3 and twin.state[0]["step"] == 3
    for each in (optimizer, twin):
        each.add_param_group({"params": [np.ones(2)]})
        each.step([np.ones(3), np.ones(2)])
    assert twin.param_groups[1]["lr"] == 0.25
    ours, theirs = (each.param_groups for each in (optimizer, twin))
    for one, other in zip(ours, theirs, strict=True):
        for mine, copied in zip(one["params"], other["params"], strict=True):
            assert mine.tobytes() == copied.tobytes()


def test_a_parameter_has_a_state_after_its_first_step():
    optimizer = fastopt.SGD(ones(2, 3))
    assert not optimizer.state
    optimizer.step([np.ones(2), None])
    assert list(optimizer.state) == [0]


def test_setting_the_count_of_steps_moves_schedules_and_states():
    asked = []
    optimizer = fastopt.Adam(ones(2, 3), lr=lambda step: asked.append(step) or 0.1)
    optimizer.step([np.ones(2), None])
    optimizer.step_count = 7
    assert optimizer.step_count == 7 and optimizer.state[0]["step"] == 7 and list(optimizer.state) == [0]
    optimizer.step(ones(2, 3))
    assert asked[-1] == 7 and optimizer.step_count == 8
    assert [optimizer.state[position]["step"] for position in (0, 1)] == [8, 1]


def test_defaults_are_checked_where_every_group_has_its_own_too():
    with pytest.raises(ValueError, match="lr must be"):
        fastopt.Adam([{"params": ones(2), "lr": 0.1}], lr=-1.0)
