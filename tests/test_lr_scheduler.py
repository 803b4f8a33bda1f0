"""The schedulers give torch's values, state and behaviour."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import fastopt
from fastopt import lr_scheduler


class Inverse:
    """A lambda that is an object, with state of its own."""

    def __init__(self, power):
        self.power = power

    def __call__(self, step):
        return (1 + step) ** -self.power


SCHEDULERS = {
    "StepLR": ("StepLR", dict(step_size=7, gamma=0.7)),
    "StepLR up": ("StepLR", dict(step_size=1000, gamma=1.5)),
    "MultiStepLR": ("MultiStepLR", dict(milestones=[3, 30, 30, 500], gamma=0.3)),
    "MultiStepLR at 0": ("MultiStepLR", dict(milestones=[0, 4])),
    "ExponentialLR": ("ExponentialLR", dict(gamma=0.9995)),
    "CosineAnnealingLR": ("CosineAnnealingLR", dict(T_max=50, eta_min=0.001)),
    "CosineAnnealingLR long": ("CosineAnnealingLR", dict(T_max=20_000)),
    "LinearLR": ("LinearLR", dict()),
    "LinearLR down": ("LinearLR", dict(start_factor=1.0, end_factor=0.1, total_iters=300)),
    "LambdaLR": ("LambdaLR", dict(lr_lambda=Inverse(0.5))),
    "LambdaLR each": ("LambdaLR", dict(lr_lambda=[Inverse(0.5), Inverse(1.0)])),
}
every_scheduler = pytest.mark.parametrize(("name", "arguments"), SCHEDULERS.values(), ids=SCHEDULERS)


def optimizer_of(module, rates=(0.1, 0.02)):
    if module is fastopt:
        return fastopt.SGD([{"params": np.zeros(2), "lr": rate} for rate in rates])
    import torch

    return torch.optim.SGD([{"params": torch.zeros(2, requires_grad=True), "lr": rate} for rate in rates])


def make(module, name, arguments, optimizer):
    source = lr_scheduler if module is fastopt else module.optim.lr_scheduler
    return getattr(source, name)(optimizer, **arguments)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def advance(optimizer, *schedulers):
    optimizer.step([np.zeros(2)] * len(optimizer.param_groups)) if hasattr(optimizer, "_plan") else optimizer.step()
    for scheduler in schedulers:
        scheduler.step()


@every_scheduler
def test_values_are_torchs(name, arguments):
    torch = pytest.importorskip("torch")
    ours, theirs = optimizer_of(fastopt), optimizer_of(torch)
    mine, their = make(fastopt, name, arguments, ours), make(torch, name, arguments, theirs)
    np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-15)
    for _ in range(3000):
        advance(ours, mine)
        advance(theirs, their)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-11)  # torch's recursion drifts
        if hasattr(their, "_get_closed_form_lr"):
            np.testing.assert_allclose(rates(ours), their._get_closed_form_lr(), rtol=1e-12)
    assert mine.last_epoch == their.last_epoch
    assert mine.base_lrs == their.base_lrs
    assert mine.get_last_lr() == rates(ours)


@pytest.mark.parametrize("names", [("StepLR", "LinearLR"), ("LinearLR", "ExponentialLR"),
                                   ("CosineAnnealingLR", "MultiStepLR"), ("ExponentialLR", "CosineAnnealingLR")])
def test_stacked_schedulers_multiply_as_in_torch(names):
    torch = pytest.importorskip("torch")
    ours, theirs = optimizer_of(fastopt), optimizer_of(torch)
    mine = [make(fastopt, *SCHEDULERS[name], ours) for name in names]
    their = [make(torch, *SCHEDULERS[name], theirs) for name in names]
    for _ in range(1000):
        advance(ours, *mine)
        advance(theirs, *their)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-11, atol=1e-14)


@every_scheduler
def test_a_rate_that_the_user_changes_is_followed_as_in_torch(name, arguments):
    torch = pytest.importorskip("torch")
    ours, theirs = optimizer_of(fastopt), optimizer_of(torch)
    mine, their = make(fastopt, name, arguments, ours), make(torch, name, arguments, theirs)
    for step in range(40):
        advance(ours, mine)
        advance(theirs, their)
        if step == 9:
            ours.param_groups[0]["lr"] *= 2
            theirs.param_groups[0]["lr"] *= 2
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)


@every_scheduler
def test_state_goes_both_ways_and_resumes(name, arguments):
    torch = pytest.importorskip("torch")
    ours, theirs = optimizer_of(fastopt), optimizer_of(torch)
    mine, their = make(fastopt, name, arguments, ours), make(torch, name, arguments, theirs)
    for _ in range(20):
        advance(ours, mine)
        advance(theirs, their)
    state_mine, state_theirs = copy.deepcopy(mine.state_dict()), copy.deepcopy(their.state_dict())
    for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr"):
        np.testing.assert_allclose(state_mine[key], state_theirs[key], rtol=1e-12)
    saved_ours, saved_their = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())

    ours, theirs = optimizer_of(fastopt), optimizer_of(torch)
    mine, their = make(fastopt, name, arguments, ours), make(torch, name, arguments, theirs)
    mine.load_state_dict(state_theirs)
    ours.load_state_dict(saved_their)
    their.load_state_dict(state_mine)
    theirs.load_state_dict(saved_ours)
    for _ in range(60):
        advance(ours, mine)
        advance(theirs, their)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)


@every_scheduler
@pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])
def test_resuming_gives_the_same_bits_in_any_order(name, arguments, order):
    straight = optimizer_of(fastopt)
    scheduler = make(fastopt, name, arguments, straight)
    for _ in range(23):
        advance(straight, scheduler)
    saved = pickle.loads(pickle.dumps((straight.state_dict(), scheduler.state_dict())))
    resumed = optimizer_of(fastopt)
    if order == "optimizer first":
        resumed.load_state_dict(saved[0])
    other = make(fastopt, name, arguments, resumed)
    other.load_state_dict(saved[1])
    if order != "optimizer first":
        resumed.load_state_dict(saved[0])
    assert rates(resumed) == rates(straight)
    for _ in range(40):
        advance(straight, scheduler)
        advance(resumed, other)
        assert rates(resumed) == rates(straight)


@every_scheduler
def test_going_on_from_last_epoch(name, arguments):
    torch = pytest.importorskip("torch")
    results = []
    for module in (fastopt, torch):
        optimizer = optimizer_of(module)
        scheduler = make(module, name, arguments, optimizer)
        for _ in range(5):
            advance(optimizer, scheduler)
        again = make(module, name, {**arguments, "last_epoch": 5}, optimizer)
        for _ in range(5):
            advance(optimizer, again)
        results.append(rates(optimizer))
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_a_group_added_later_is_scheduled_too():
    optimizer = fastopt.SGD(np.zeros(2), lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    advance(optimizer, scheduler)
    optimizer.add_param_group({"params": np.zeros(2), "lr": 8.0})
    advance(optimizer, scheduler)
    assert rates(optimizer) == [0.25, 4.0]


def test_stepping_the_scheduler_first_warns_once():
    optimizer = optimizer_of(fastopt)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="before optimizer.step"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        advance(optimizer, scheduler)


def test_an_epoch_sets_the_closed_form():
    optimizer = optimizer_of(fastopt)
    scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    optimizer.step([np.zeros(2)] * 2)
    with pytest.warns(UserWarning, match="deprecated"):
        scheduler.step(5)
    assert scheduler.get_last_lr() == [0.025, 0.005]
    assert scheduler.last_epoch == 5


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = optimizer_of(fastopt)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    before = scheduler.state_dict()
    other = lr_scheduler.StepLR(fastopt.SGD(np.zeros(2)), 2).state_dict()
    with pytest.raises(ValueError, match="is of 1 groups, the optimizer has 2"):
        scheduler.load_state_dict(other)
    with pytest.raises(ValueError, match="state_dict of StepLR lacks step_size"):
        scheduler.load_state_dict(lr_scheduler.ExponentialLR(optimizer_of(fastopt), 0.5).state_dict())
    assert scheduler.state_dict() == before


def test_lambdas_that_are_objects_are_saved():
    optimizer = optimizer_of(fastopt)
    scheduler = lr_scheduler.LambdaLR(optimizer, Inverse(0.5))
    saved = copy.deepcopy(scheduler.state_dict())
    assert saved["lr_lambdas"] == [{"power": 0.5}] * 2
    other = lr_scheduler.LambdaLR(optimizer_of(fastopt), Inverse(2.0))
    other.load_state_dict(saved)
    assert other.lr_lambdas[0].power == 0.5
    assert lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict()["lr_lambdas"] == [None, None]
