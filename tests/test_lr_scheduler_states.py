"""States of schedulers that lack something, have something else or are of another scheduler: refused, by name."""

import copy
import math
import re

import numpy as np
import pytest
from test_lr_scheduler import (
    COMPOSED,
    DIRECT,
    METRICS,
    METRICS_SEEN,
    NESTED,
    RECURSIVE,
    Inverse,
    advance,
    every,
    of_torch,
    optimizer_of,
    rates,
    sequential,
    single,
)

from fastopt import lr_scheduler

EVERY = RECURSIVE | DIRECT | COMPOSED | NESTED | METRICS


def made(make, of=lr_scheduler, steps=3, **options):
    optimizer = optimizer_of(**options)
    scheduler = make(of, optimizer)
    for count in range(steps):
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau | lr_scheduler.GreedyLR):
            scheduler.step(METRICS_SEEN[count])
        else:
            advance(optimizer, scheduler)
    return scheduler


def everything(scheduler):
    return repr((scheduler.state_dict(), [dict(group) for group in scheduler.optimizer.param_groups],
                 {name: value for name, value in vars(scheduler).items() if name not in ("optimizer", "_schedulers")}))


def refuses(scheduler, state, *names):
    before = everything(scheduler)
    with pytest.raises((TypeError, ValueError), match="|".join(map(re.escape, names)) or None):
        scheduler.load_state_dict(state)
    assert everything(scheduler) == before


def leaves(node, path=()):
    """The paths of all entries of a state, those of lists and dicts in it too."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in entries:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(state, path, change):
    """A copy of the state in which `change(container, key)` was made at the path."""
    state = copy.deepcopy(state)
    node = state
    for key in path[:-1]:
        if isinstance(node[key], tuple):
            node[key] = list(node[key])
        node = node[key]
    if isinstance(node, tuple):
        return None
    change(node, path[-1])
    return state


def named(path):
    """How a message may name the entry: arguments by the name that the constructor has for them."""
    name = [key for key in path if isinstance(key, str)][-1]
    return [name, {"reset_start_original": "reset_start", "_anneal_func_type": "anneal_strategy"}.get(
        name, name.lstrip("_"))]


@every(EVERY)
def test_nothing_may_be_missing(make):
    state = made(make).state_dict()
    for path in leaves(state):
        if "lr_lambdas" in path[:-1] or "milestones" in path[:-1] or isinstance(path[-1], int):
            continue  # what the user's objects hold; lists of another length are below
        refuses(made(make), changed(state, path, lambda node, key: node.pop(key)), *named(path))


@every(EVERY)
def test_nothing_may_be_there_that_is_not_known(make):
    state = made(make).state_dict()
    refuses(made(make), {**state, "colour": 1}, "colour")
    refuses(made(make), {**state, 3: 1}, "has 3")
    refuses(made(make), {**state, "_groups": [{**group, "colour": 1} for group in state["_groups"]]}, "colour")


@every(EVERY)
def test_lists_have_one_length(make):
    state = made(make).state_dict()
    for path in leaves(state):
        node = state
        for key in path:
            node = node[key]
        if isinstance(node, (list, tuple)) and path[-1] not in ("_milestones", "values"):
            refuses(made(make), changed(state, path, lambda node, key: node.update({key: []})), *named(path), "has 0")
            longer = [*node, *node, *node]
            refuses(made(make), changed(state, path, lambda node, key, more=longer: node.update({key: more})),
                    *named(path), "groups", "schedulers")
            for wrong in (3, None, "ab", {0: 1}):
                refuses(made(make), changed(state, path, lambda node, key, wrong=wrong: node.update({key: wrong})),
                        *named(path))


MAYBE = {"best", "sum", "_last_lr", "_class"}  # an infinity, and a rate of torch's below 0, may be; see below
WRONG = [math.nan, -3.5, "x", None, [], {}, [0.1], 10**400, b"1", object(), np.ones(3), 1j, True]


@every(EVERY)
def test_numbers_must_be_possible(make):
    state = made(make).state_dict()
    for path in leaves(state):
        node = state
        for key in path:
            node = node[key]
        number = isinstance(node, (int, float)) and not isinstance(node, bool)
        if not number or "lr_lambdas" in path or "_scale_fn_custom" in path or MAYBE & set(path) or "values" in path:
            continue
        for wrong in WRONG:
            if wrong is None and path[-1] == "default_min_lr":
                continue
            state_of = changed(state, path, lambda node, key, wrong=wrong: node.__setitem__(key, wrong))
            refuses(made(make), state_of, *named(path))


@pytest.mark.parametrize(("make", "path", "wrong"), [
    (single("StepLR", 2), ["last_epoch"], 2.5),
    (single("StepLR", 2), ["last_epoch"], -2),
    (single("StepLR", 2), ["_step_count"], -1),
    (single("StepLR", 2), ["_last_lr", 0], "x"),
    (single("StepLR", 2), ["_last_lr", 0], math.nan),
    (single("StepLR", 2), ["_class"], "ExponentialLR"),
    (single("StepLR", 2), ["_class"], None),
    (single("MultiStepLR", [2, 3]), ["milestones"], [2, 3]),
    (single("MultiStepLR", [2, 3]), ["milestones"], {"2": 1}),
    (single("MultiStepLR", [2, 3]), ["milestones"], {2: 0}),
    (single("LambdaLR", Inverse(1)), ["lr_lambdas", 0], None),
    (single("LambdaLR", Inverse(1)), ["lr_lambdas", 0], 3),
    (single("LambdaLR", abs), ["lr_lambdas", 0], {"power": 3}),
    (single("CyclicLR", 0.1, 0.2, 4), ["_scale_fn_custom"], {"power": 3}),
    (single("CyclicLR", 0.1, 0.2, 4), ["step_ratio"], 0.3),
    (single("CyclicLR", 0.1, 0.2, 4), ["total_size"], math.inf),
    (single("CyclicLR", 0.1, 0.2, 4), ["mode"], "square"),
    (single("CyclicLR", 0.1, 0.2, 4), ["cycle_momentum"], False),
    (single("CyclicLR", 0.1, 0.2, 4), ["base_momentums", 0], 1.5),
    (single("CyclicLR", 0.1, 0.2, 4), ["_groups", 0, "momentum"], 1.0),
    (single("CyclicLR", 0.1, 0.2, 4), ["_groups", 0, "betas"], (0.5, 0.9)),
    (single("CosineAnnealingWarmRestarts", 5, 2), ["T_cur"], 11),
    (single("CosineAnnealingWarmRestarts", 5, 2), ["T_i"], 7),
    (single("CosineAnnealingWarmRestarts", 5), ["T_i"], 10),
    (single("OneCycleLR", 0.1, 20), ["last_epoch"], 21),
    (single("OneCycleLR", 0.1, 20), ["_anneal_func_type"], "exp"),
    (single("ReduceLROnPlateau"), ["best"], math.nan),
    (single("ReduceLROnPlateau"), ["mode_worse"], -math.inf),
    (single("ReduceLROnPlateau"), ["mode"], ["min"]),
    (single("ReduceLROnPlateau"), ["mode"], np.array(["min", "max"])),
    (single("ReduceLROnPlateau"), ["num_bad_epochs"], 1.5),
    (METRICS["GreedyLR smooth"], ["_streaming_avg"], None),
    (METRICS["GreedyLR smooth"], ["_streaming_avg"], {"values": []}),
    (METRICS["GreedyLR smooth"], ["_streaming_avg", "values"], [1.0] * 6),
    (METRICS["GreedyLR smooth"], ["_streaming_avg", "values", 0], "x"),
    (METRICS["GreedyLR smooth"], ["_streaming_avg", "window_size"], 6),
    (METRICS["GreedyLR smooth"], ["smooth"], False),
    (METRICS["GreedyLR"], ["smooth"], True),
    (COMPOSED["SequentialLR"], ["_milestones"], [6, 8]),
    (COMPOSED["SequentialLR of 3"], ["_milestones"], [30, 10]),
    (COMPOSED["SequentialLR"], ["_schedulers", 1], []),
    (COMPOSED["SequentialLR"], ["_schedulers", 1, "T_max"], 0),
])
def test_an_entry_that_cannot_be_changes_nothing(make, path, wrong):
    state = changed(made(make).state_dict(), path, lambda node, key: node.__setitem__(key, wrong))
    refuses(made(make), state, *named(path), "base_momentums")


@every(EVERY)
def test_the_state_of_another_scheduler_is_refused(make):
    for name, other in EVERY.items():
        mine, theirs = made(make), made(other)
        if type(mine) is not type(theirs):
            refuses(mine, theirs.state_dict())
            pair = [sequential([4], make, single("StepLR", 2)), sequential([4], other, single("StepLR", 2))]
            if not {make, other} & set(METRICS.values()):
                refuses(made(pair[0]), made(pair[1]).state_dict(), "_schedulers[0]"), name


@every({name: make for name, make in (RECURSIVE | DIRECT).items() if "LR" in name})
def test_the_state_of_another_scheduler_of_torch_is_refused(make):
    pytest.importorskip("torch")
    import torch

    mine = made(make)
    for other in (RECURSIVE | DIRECT).values():
        theirs = other(of_torch(), optimizer_of(torch))
        alike = {type(mine).__name__, type(theirs).__name__} <= {"LambdaLR", "MultiplicativeLR"}  # nothing tells them
        if type(mine).__name__ != type(theirs).__name__ and not alike:
            refuses(mine, theirs.state_dict())


@every({**RECURSIVE, **{name: make for name, make in DIRECT.items() if "SWALR" not in name}, **COMPOSED})
def test_a_state_that_went_through_torch_has_the_rates_of_torch(make):
    torch = pytest.importorskip("torch")
    mine, optimizer = made(make), optimizer_of(torch)
    try:
        theirs = make(of_torch(), optimizer)
        theirs.load_state_dict(mine.state_dict())
        for _ in range(4):
            advance(optimizer, theirs)
    except ValueError:
        pytest.skip("torch cannot")
    again = made(make, steps=0)
    if isinstance(mine, lr_scheduler.ChainedScheduler) or any(
            isinstance(part, lr_scheduler.ChainedScheduler) for part in getattr(mine, "_schedulers", ())):
        pytest.skip("nothing tells that torch made it")
    again.load_state_dict(theirs.state_dict())
    assert rates(again.optimizer) == theirs.get_last_lr()


def test_a_class_of_ones_own_may_be_renamed():
    class Stairs(lr_scheduler.StepLR):
        pass

    class Steps(lr_scheduler.StepLR):
        pass

    state = made(lambda of, optimizer: Stairs(optimizer, 2)).state_dict()
    assert state["_class"] == "StepLR"
    other = made(lambda of, optimizer: Steps(optimizer, 3))
    other.load_state_dict(state)
    assert other.step_size == 2


def test_a_loaded_state_is_not_shared():
    for name in ("LambdaLR", "MultiStepLR", "CyclicLR each", "SequentialLR of 3"):
        state = made(EVERY[name]).state_dict()
        other = made(EVERY[name], steps=0)
        other.load_state_dict(state)
        before = everything(other)
        for path in list(leaves(state))[::-1]:
            node = state
            for key in path[:-1]:
                node = node[key]
            if isinstance(node, (list, dict)):
                node[path[-1]] = None
        assert everything(other) == before


# ---- arguments that the caller changes afterwards

def scaled(_):
    return 0.5


SHARED = {
    "MultiStepLR": ("milestones", [2, 4], lambda given: lambda of, opt: of.MultiStepLR(opt, given)),
    "LambdaLR": ("lr_lambda", [Inverse(1), Inverse(2)], lambda given: lambda of, opt: of.LambdaLR(opt, given)),
    "MultiplicativeLR": ("lr_lambda", [scaled, scaled], lambda given: lambda of, opt: of.MultiplicativeLR(opt, given)),
    "CyclicLR base_lr": ("base_lr", [0.1, 0.2], lambda given: lambda of, opt: of.CyclicLR(opt, given, 0.5, 4)),
    "CyclicLR max_lr": ("max_lr", [0.1, 0.2], lambda given: lambda of, opt: of.CyclicLR(opt, 0.01, given, 4)),
    "CyclicLR momentum": ("base_momentum", [0.1, 0.2], lambda given: lambda of, opt: of.CyclicLR(
        opt, 0.01, 0.1, 4, base_momentum=given)),
    "OneCycleLR": ("max_lr", [0.1, 0.2], lambda given: lambda of, opt: of.OneCycleLR(opt, given, 20)),
    "SWALR": ("swa_lr", [0.1, 0.2], lambda given: lambda of, opt: of.SWALR(opt, given)),
    "ReduceLROnPlateau": ("min_lr", [0.01, 0.02], lambda given: lambda of, opt: of.ReduceLROnPlateau(
        opt, min_lr=given, patience=0)),
    "GreedyLR": ("max_lr", [0.1, 0.2], lambda given: lambda of, opt: of.GreedyLR(opt, max_lr=given, patience=0)),
    "SequentialLR milestones": ("milestones", [2], lambda given: lambda of, opt: of.SequentialLR(
        opt, [of.ConstantLR(opt, 0.5, 3), of.ExponentialLR(opt, 0.9)], given)),
}


@pytest.mark.parametrize("way", ["changed", "shared"])
@pytest.mark.parametrize(("argument", "given", "maker"), SHARED.values(), ids=SHARED)
def test_a_list_that_was_given_is_copied(argument, given, maker, way):
    """Neither the caller who changes it nor another scheduler that has it makes a difference."""
    expected = made(maker(list(given)), steps=0)
    given = list(given)
    scheduler = made(maker(given), steps=0)
    if way == "changed":
        given[:] = [None] * 5
    else:
        other = made(maker(given), steps=0)
        other.optimizer.add_param_group({"params": np.ones(2), "lr": 0.1})  # which lengthens its own lists
        for _ in range(3):
            try:
                other.step(1.0) if isinstance(other, lr_scheduler.ReduceLROnPlateau | lr_scheduler.GreedyLR) \
                    else advance(other.optimizer, other)
            except (TypeError, ValueError):
                pass
        assert len(given) == len(SHARED["MultiStepLR"][1]) or argument == "milestones"
    for count in range(6):
        for each in (scheduler, expected):
            if isinstance(each, lr_scheduler.ReduceLROnPlateau | lr_scheduler.GreedyLR):
                each.step(METRICS_SEEN[count])
            else:
                advance(each.optimizer, each)
        assert rates(scheduler.optimizer) == rates(expected.optimizer)


def test_a_list_of_schedulers_is_copied():
    optimizer = optimizer_of()
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    for scheduler in (lr_scheduler.SequentialLR(optimizer, parts, [1]), lr_scheduler.ChainedScheduler(parts)):
        kept = list(parts)
        parts.clear()
        advance(optimizer, scheduler)
        advance(optimizer, scheduler)
        parts += kept
