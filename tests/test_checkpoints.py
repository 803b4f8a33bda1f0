"""Checkpoints that lack something, or are of something else: refused by name, with nothing changed; and groups that
are given again."""

import copy
import re

import numpy as np
import pytest
from common import CASES, inputs, name_of

import fastopt
from fastopt.kernels.sparse import SparseRows
from fastopt.table import METHODS

EVERY = CASES + [(method, options) for method in METHODS if not method.elementwise for options in method.variants]
every_case = pytest.mark.parametrize(("method", "options"), EVERY, ids=name_of)
STATEFUL = [case for case in EVERY if case[0].name != "LBFGS"]
every_array = pytest.mark.parametrize(("method", "options"), STATEFUL, ids=name_of)


def shapes(method):
    return ((5, 3), (2, 4)) if method.matrices_only else ((5, 3), (7,))


def gradients_for(method, row):
    if method.optimizer.sparse != "only":
        return row
    return [SparseRows(np.arange(len(grad)), grad, grad.shape) for grad in row]


def trained(method, options, steps=3, names=False, seed=0):
    """An optimizer in the middle of a run, its parameters and more gradients."""
    params, rows = inputs(steps + 3, shapes=shapes(method), skip=False, seed=seed)
    given = dict(zip("ab", params, strict=True)) if names else params
    optimizer = method.optimizer(given, **options)
    for row in rows[:steps]:
        step(method, optimizer, row)
    return optimizer, params, rows[steps:]


def step(method, optimizer, row):
    if method.closure:
        optimizer.step(lambda: (sum(float((grad * param).sum()) + float((param * param).sum())
                                    for grad, param in zip(row, optimizer._plan.params, strict=True)),
                                [grad + 2 * param for grad, param in zip(row, optimizer._plan.params, strict=True)]))
    else:
        optimizer.step(gradients_for(method, row))


def everything(optimizer, params):
    """All that a load may change, as something to compare."""
    return repr([[param.tobytes() for param in params], plain(optimizer.state_dict()),
                 plain([{name: value for name, value in group.items() if name != "params"}
                        for group in optimizer.param_groups])])


def plain(node):
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return (node.dtype.str, node.shape, node.tobytes()) if isinstance(node, np.ndarray) else node


def refused(optimizer, params, saved, message=None):
    before = everything(optimizer, params)
    with pytest.raises((TypeError, ValueError), match=message and re.escape(message)):
        optimizer.load_state_dict(saved)
    assert everything(optimizer, params) == before


@every_array
def test_every_entry_of_a_state_is_asked_for_by_name(method, options):
    optimizer, params, _ = trained(method, options)
    saved = copy.deepcopy(optimizer.state_dict())
    for position, entries in saved["state"].items():
        for name in entries:
            without = copy.deepcopy(saved)
            del without["state"][position][name]
            if not method.optimizer.counts_steps and len(entries) == 1:
                continue  # as torch has it before the first gradient
            refused(optimizer, params, without, f"state of parameter {position} lacks {name!r}")


@every_array
@pytest.mark.parametrize("wrong", [
    np.ma.masked_array(np.ones((5, 3)), np.eye(5, 3)), np.ones(1), np.ones((5, 3), complex), np.ones((5, 3), int), "x",
    {"a": 1}, object(), [[1.0], [1.0, 2.0]]], ids=lambda value: type(value).__name__)
def test_every_entry_of_a_state_is_judged(method, options, wrong):
    optimizer, params, _ = trained(method, options)
    saved = optimizer.state_dict()
    for name in saved["state"].get(0, ()):
        if name in method.optimizer.state_slots:
            changed = {**saved, "state": {**saved["state"], 0: {**saved["state"][0], name: wrong}}}
            refused(optimizer, params, changed, f"state {name!r} of parameter 0")


@pytest.mark.parametrize("wrong", [
    2**62, 2**63, 2**200, -1, 1.5, np.inf, np.nan, 1e30, 1j, "3", True, None, [1], np.ma.masked,
    np.ones(2), {}], ids=repr)
@every_array
def test_every_step_count_is_judged(method, options, wrong):
    optimizer, params, _ = trained(method, options)
    saved = optimizer.state_dict()
    refused(optimizer, params, {**saved, "step_count": wrong}, "step")
    if "step" in saved["state"].get(0, ()):
        refused(optimizer, params, {**saved, "state": {**saved["state"], 0: {**saved["state"][0], "step": wrong}}},
                "state of parameter 0")


NO_GROUPS = {
    "no list": (lambda group: 3, "must be a dict"),
    "no params": (lambda group: {**group, "params": None}, "params of group 0"),
    "id twice": (lambda group: {**group, "params": [1, 1]}, "has the parameter 1 twice"),
    "id of no kind": (lambda group: {**group, "params": [0, {}]}, "params of group 0"),
    "names of no kind": (lambda group: {**group, "param_names": [1, 2]}, "param_names of group 0"),
    "name twice": (lambda group: {**group, "param_names": ["a", "a"]}, "2 parameters in the state_dict, and 1 names"),
    "names of too few": (lambda group: {**group, "param_names": ["a"]}, "and 1 names"),
    "unknown": (lambda group: {**group, "rhoo": 0.5}, "has 'rhoo', which"),
    "no rate": (lambda group: {name: value for name, value in group.items() if name != "lr"}, "lacks 'lr'"),
    "a schedule": (lambda group: {**group, "lr": lambda step: 0.1}, "lr must be a number"),
    "rate of no kind": (lambda group: {**group, "lr": np.ma.masked_array([1.0], [True])}, "lr of group 0"),
    "infinite rate": (lambda group: {**group, "lr": 10**400}, "lr of group 0"),
    "kept": (lambda group: {**group, "initial_lr": "x"}, "initial_lr"),
    "kept name": (lambda group: {**group, "name": [1]}, "name must be a string"),
}


@pytest.mark.parametrize(("change", "message"), NO_GROUPS.values(), ids=NO_GROUPS)
@every_case
def test_every_group_is_judged(method, options, change, message):
    optimizer, params, _ = trained(method, options)
    saved = optimizer.state_dict()
    refused(optimizer, params, {**saved, "param_groups": [change(saved["param_groups"][0])]}, message)


@pytest.mark.parametrize("state", [None, [], {0: None}, {0: [1]}, {5: {}}, {"a": {}}], ids=repr)
@every_case
def test_a_state_that_is_none_is_refused(method, options, state):
    optimizer, params, _ = trained(method, options)
    refused(optimizer, params, {**optimizer.state_dict(), "state": state}, "state")


def test_checkpoints_of_other_methods_are_refused_where_keys_differ():
    loads = set()
    for method in METHODS:
        saved = trained(method, {})[0].state_dict()
        for other in METHODS:
            if other is method or other.matrices_only != method.matrices_only:
                continue
            optimizer, params, _ = trained(other, {})
            try:
                refused(optimizer, params, saved)
            except pytest.fail.Exception:
                loads.add((method.name, other.name))
    assert loads == {("AdamW", "Adam"), ("RAdam", "Adam"), ("LAMB", "Adam"), ("LAMB", "AdamW"), ("LAMB", "RAdam"),
                     ("SparseAdam", "Adam"), ("SparseAdam", "RAdam"), ("SparseAdam", "LAMB")}


@every_case
def test_a_checkpoint_goes_on_after_an_option_was_switched(method, options):
    """Options that need state are those of the checkpoint's group, whatever the optimizer had before."""
    optimizer, params, rows = trained(method, options)
    for other in method.variants:
        into, twins, _ = trained(method, other, seed=1)
        saved = copy.deepcopy(optimizer.state_dict())
        here = [param.copy() for param in params]
        for twin, param in zip(twins, params, strict=True):
            twin[...] = param
        group = into.param_groups[0]
        into.load_state_dict(saved)
        assert group["lr"] == optimizer.param_groups[0]["lr"]
        step(method, into, rows[0])
        stepped, again, _ = trained(method, options)
        step(method, stepped, rows[0])
        for twin, param, before in zip(twins, again, here, strict=True):
            assert twin.tobytes() == param.tobytes() != before.tobytes() or "eps_mode" in {*options, *other} or (
                "momentum_mode" in {*options, *other})


def test_options_switched_on_before_saving_have_their_arrays():
    for method, switch in (("Adam", {"amsgrad": True}), ("RMSprop", {"momentum": 0.9, "centered": True})):
        param, twin = np.ones(3), np.ones(3)
        optimizer, other = getattr(fastopt, method)([param]), getattr(fastopt, method)([twin])
        optimizer.step([np.ones(3)])
        optimizer.param_groups[0].update(switch)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        twin[...] = param
        for optimizer_ in (optimizer, other):
            for k in range(3):
                optimizer_.step([np.full(3, 1.0 - k)])
        assert twin.tobytes() == param.tobytes()


@every_array
def test_a_state_at_step_0_is_used(method, options):
    if not method.optimizer.counts_steps:
        pytest.skip("it has no count")
    optimizer, params, rows = trained(method, options)
    optimizer.step_count = 0
    saved = copy.deepcopy(optimizer.state_dict())
    assert set(saved["state"]) == {0, 1}
    other, twins, _ = trained(method, options, seed=1)
    other.load_state_dict(saved)
    assert plain(other.state_dict()) == plain(saved)
    for twin, param in zip(twins, params, strict=True):
        twin[...] = param
    for one in (optimizer, other):
        step(method, one, rows[0])
    assert [twin.tobytes() for twin in twins] == [param.tobytes() for param in params]


def test_numbers_at_step_0_that_the_method_would_not_use_are_refused():
    optimizer, params, _ = trained(next(method for method in METHODS if method.name == "NAdam"), {})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = 0
    refused(optimizer, params, saved, "with step 0, mu_product must be (1.0,)")


def test_numbers_too_large_for_float32_are_refused():
    param = np.ones(2, "float32")
    optimizer = fastopt.Adam([param])
    optimizer.step([np.ones(2, "float32")])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = np.array([1e300, np.inf])
    refused(optimizer, [param], saved, "state 'exp_avg' of parameter 0 has numbers that are too large for float32")
    saved["state"][0]["exp_avg"] = np.array([1e-300, np.inf])
    optimizer.load_state_dict(saved)
    assert optimizer.state[0]["exp_avg"].tolist() == [0.0, np.inf]


@pytest.mark.parametrize("make", [
    lambda torch: torch.ones(3, device="meta"), lambda torch: torch.ones(3).to_sparse(),
    lambda torch: torch.ones(3, dtype=torch.bfloat16)])
def test_tensors_that_are_no_arrays(make):
    torch = pytest.importorskip("torch")
    tensor = make(torch)
    param = np.ones(3)
    optimizer = fastopt.Adam([param])
    optimizer.step([np.ones(3)])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = tensor
    if tensor.is_sparse:
        optimizer.load_state_dict(saved)
        assert optimizer.state[0]["exp_avg"].tolist() == [1.0] * 3
    else:
        refused(optimizer, [param], saved, "state 'exp_avg' of parameter 0")
    saved["param_groups"][0]["lr"] = torch.ones((), device="meta")
    refused(optimizer, [param], saved, "lr of group 0")


def hybrid(seed=0):
    params, rows = inputs(4, shapes=((5, 3), (7,), (2, 2)), skip=False, seed=seed)
    optimizer = fastopt.MuonAdamW(params)
    for row in rows[:2]:
        optimizer.step(row)
    return optimizer, params, rows[2:]


@pytest.mark.parametrize("part", ["muon", "adamw"])
def test_the_hybrid_loads_both_parts_or_none(part):
    saved = copy.deepcopy(hybrid()[0].state_dict())
    optimizer, params, _ = hybrid(seed=1)
    for change in (lambda its: its["param_groups"][0].update(lr=-1.0), lambda its: its["state"].update({9: {}}),
                   lambda its: its.pop("state")):
        broken = copy.deepcopy(saved)
        change(broken[part])
        refused(optimizer, params, broken)
    refused(optimizer, params, {**saved, part: None})
    refused(optimizer, params, {**saved, "stages": {"slow": []}}, "stages of the state_dict must have")


STAGES = {
    "of no kind": (lambda stages: 3, "stages of the state_dict must be a dict"),
    "unknown": (lambda stages: {**stages, "x": 1}, "stages of the state_dict must have"),
    "missing": (lambda stages: {**stages, "steps": None}, "steps must be a number"),
    "without steps": (lambda stages: {"slow": stages["slow"]}, "stages of the state_dict must have"),
    "half": (lambda stages: {**stages, "skipped": 0.5}, "skipped must be a whole number"),
    "slow of no kind": (lambda stages: {**stages, "slow": 3}, "slow weights of Lookahead of the state_dict must be"),
    "too few": (lambda stages: {**stages, "slow": stages["slow"][:1]}, "slow weights of Lookahead for 1 parameters"),
    "shape": (lambda stages: {**stages, "slow": stages["slow"][::-1]}, "state 'slow' of parameter 0 must have shape"),
    "weight alone": (lambda stages: {**stages, "weight": 1.0}, "stages of the state_dict must have"),
    "weight": (lambda stages: {**stages, "accumulated": [None, None], "weight": 0}, "weight must be above 0"),
}


@pytest.mark.parametrize(("change", "message"), STAGES.values(), ids=STAGES)
def test_every_entry_of_the_stages_is_judged(change, message):
    optimizer, params, _ = trained(METHODS[3], {})
    optimizer.set_stages(lookahead=(2, 0.5), clip=1.0)
    saved = optimizer.state_dict()
    refused(optimizer, params, {**saved, "stages": change(saved["stages"])}, message)


def test_slow_weights_need_lookahead():
    optimizer, _, _ = trained(METHODS[3], {})
    optimizer.set_stages(lookahead=(2, 0.5))
    saved = optimizer.state_dict()
    other, twins, _ = trained(METHODS[3], {})
    refused(other, twins, saved, "slow weights of Lookahead for 2 parameters, this optimizer has 0")
    other.set_stages()
    refused(other, twins, saved, "slow weights of Lookahead for 2 parameters, this optimizer has 0")


def test_counters_of_the_stages_load_into_an_optimizer_without():
    optimizer, _, rows = trained(METHODS[3], {})
    optimizer.step(rows[0], clip=1e-3)
    other, _, _ = trained(METHODS[3], {})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.step(rows[1], clip=1e-3)
    assert (other.last_step.steps, other.last_step.clipped_steps) == (2, 2.0)


@pytest.mark.parametrize("name", ["Adam", "Adafactor", "MuonAdamW"])
def test_accumulated_gradients_are_saved(name):
    method = getattr(fastopt, name)
    params, rows = inputs(4, shapes=((5, 3), (7,)), skip=False)
    rows[1][1] = rows[2][1] = None
    optimizer = method(params)
    optimizer.step(rows[0])
    optimizer.accumulate(rows[1], weight=2.0)
    saved = copy.deepcopy(optimizer.state_dict())
    twins = [param.copy() for param in params]
    other = method(twins)
    other.accumulate(rows[3])  # is forgotten
    other.load_state_dict(saved)
    for one in (optimizer, other):
        one.accumulate(rows[2])
        one.step()
    assert [twin.tobytes() for twin in twins] == [param.tobytes() for param in params]
    assert "accumulated" not in optimizer.state_dict()["stages"]


def test_gradients_accumulated_in_bound_arrays_are_not_lost_in_silence():
    optimizer = fastopt.SGD([np.ones(2)])
    optimizer.bind_grads([np.ones(2)])
    optimizer.accumulate()
    with pytest.raises(ValueError, match="accumulated in the bound arrays"):
        optimizer.state_dict()


# ---- groups that are given again


@every_case
@pytest.mark.parametrize("names", [False, True])
def test_groups_of_an_optimizer_make_another(method, options, names):
    optimizer, params, _ = trained(method, options, names=names)
    if "lr" in method.optimizer.hyperparameters:
        fastopt.lr_scheduler.ExponentialLR(optimizer, 0.9)
    twin = method.optimizer(optimizer.param_groups)
    assert [{**group, "params": None} for group in twin.param_groups] == [
        {**group, "params": None} for group in optimizer.param_groups]
    assert twin.param_groups[0] is not optimizer.param_groups[0]
    if method.closure:
        return
    for again in ({**optimizer.param_groups[0], "params": [np.ones(param.shape) for param in params],
                   **({"param_names": ["c", "d"]} if names else {})},):
        optimizer.add_param_group(again)
    assert optimizer.param_groups[1].get("param_names") == (["c", "d"] if names else None)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize(("names", "error", "message"), [
    (["a"], ValueError, "must have 2 names"), ("ab", TypeError, "must be a list of names"),
    ([1, 2], TypeError, "must be a list of names"), (["a", "a"], ValueError, "'a' is used more than once"),
    (["c", "d"], None, "")])
def test_param_names_of_a_group_are_judged(names, error, message):
    group = {"params": [np.ones(2), np.ones(2)], "param_names": names}
    if error is None:
        assert fastopt.SGD([group]).param_groups[0]["param_names"] == names
        return
    with pytest.raises(error, match=message):
        fastopt.SGD([group])


def test_names_in_params_and_beside_them_must_agree():
    with pytest.raises(ValueError, match="but the names in params are"):
        fastopt.SGD([{"params": {"a": np.ones(2)}, "param_names": ["b"]}])


def test_a_fixed_option_is_taken_only_as_it_is():
    with pytest.raises(ValueError, match="has no hyperparameter 'decoupled_weight_decay'"):
        fastopt.AdamW([{"params": np.ones(2), "decoupled_weight_decay": False}])
    optimizer, params, _ = trained(METHODS[4], {})
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["decoupled_weight_decay"] = False
    refused(optimizer, params, saved, "with AdamW it is always True")
