"""The schedulers give torch's values, state and behaviour, and resume to the last bit."""

import copy
import pickle
import types
import warnings
from functools import partial

import numpy as np
import pytest

import fastopt
from fastopt import lr_scheduler, schedules, table

LONG = 10_000


class Inverse:
    """A lambda that is an object, with state of its own."""

    def __init__(self, power):
        self.power = power

    def __call__(self, step):
        return (1 + step) ** -self.power


class Slowly:
    def __call__(self, step):
        return 1 - 1 / (step + 30)


def halved(cycle):
    return 0.5 ** (cycle % 7)


def faded(step):
    return 0.999**step


def single(name, *arguments, **options):
    return lambda of, optimizer: getattr(of, name)(optimizer, *arguments, **options)


def sequential(milestones, *parts):
    return lambda of, optimizer: of.SequentialLR(optimizer, [part(of, optimizer) for part in parts], milestones)


def chained(*parts):
    return lambda of, optimizer: of.ChainedScheduler([part(of, optimizer) for part in parts])


linear, cosine = single("LinearLR", 0.25, total_iters=6), single("CosineAnnealingLR", 50, eta_min=0.001)
part_way = single("LinearLR", 0.25, 0.85, 6)
one_cycle = single("OneCycleLR", [0.1, 0.3], LONG + 1)

# torch multiplies the current rate by these: it drifts, and loses half of the digits where a cosine is near zero
RECURSIVE = {
    "StepLR": single("StepLR", 7, 0.99),
    "StepLR up": single("StepLR", 1000, gamma=1.5),
    "MultiStepLR": single("MultiStepLR", [3, 30, 30, 500], gamma=0.3),
    "MultiStepLR at 0": single("MultiStepLR", [0, 4]),
    "ConstantLR": single("ConstantLR"),
    "ConstantLR long": single("ConstantLR", factor=0.7, total_iters=900),
    "LinearLR": single("LinearLR"),
    "LinearLR down": single("LinearLR", 1.0, 0.1, 300),
    "LinearLR long": single("LinearLR", total_iters=9999),
    "ExponentialLR": single("ExponentialLR", 0.9995),
    "PolynomialLR": single("PolynomialLR"),
    "PolynomialLR squared": single("PolynomialLR", 700, power=2.0),
    "PolynomialLR root": single("PolynomialLR", total_iters=LONG + 1, power=0.5),
    "CosineAnnealingLR": cosine,
    "CosineAnnealingLR long": single("CosineAnnealingLR", 20_000),
    "CosineAnnealingLR whole": single("CosineAnnealingLR", T_max=LONG, eta_min=1e-4),
}
DIRECT = {
    "LambdaLR": single("LambdaLR", Inverse(0.5)),
    "LambdaLR each": single("LambdaLR", [Inverse(0.5), Inverse(1.0)]),
    "MultiplicativeLR": single("MultiplicativeLR", Slowly()),
    "MultiplicativeLR each": single("MultiplicativeLR", [Slowly(), faded]),
    "CosineAnnealingWarmRestarts": single("CosineAnnealingWarmRestarts", 11, eta_min=0.001),
    "CosineAnnealingWarmRestarts longer": single("CosineAnnealingWarmRestarts", 5, 3),
    "CyclicLR": single("CyclicLR", 0.01, 0.1, 200),
    "CyclicLR each": single("CyclicLR", [0.01, 0.02], [0.1, 0.3], 20, 60, "triangular2"),
    "CyclicLR exp_range": single("CyclicLR", 0.01, 0.1, 30, mode="exp_range", gamma=0.9999),
    "CyclicLR scale of the cycle": single("CyclicLR", 0.01, 0.1, 30, scale_fn=halved, scale_mode="cycle",
                                          base_momentum=[0.7, 0.8], max_momentum=[0.9, 0.95]),
    "CyclicLR scale of the step": single("CyclicLR", 0.01, 0.1, 30, scale_fn=faded, scale_mode="iterations"),
    "CyclicLR rates alone": single("CyclicLR", 0.01, 0.1, 30, cycle_momentum=False),
    "OneCycleLR": one_cycle,
    "OneCycleLR in epochs": single("OneCycleLR", 0.1, epochs=101, steps_per_epoch=100, pct_start=0.37),
    "OneCycleLR three phases": single("OneCycleLR", 0.1, LONG + 1, three_phase=True, div_factor=10.0),
    "OneCycleLR lines": single("OneCycleLR", 0.1, LONG + 1, anneal_strategy="linear", final_div_factor=10.0,
                               base_momentum=0.5, max_momentum=[0.6, 0.7]),
    "OneCycleLR three lines": single("OneCycleLR", 0.1, LONG + 1, anneal_strategy="linear", three_phase=True,
                                     cycle_momentum=False),
    "SWALR": single("SWALR", 0.05),
    "SWALR lines": single("SWALR", [0.05, 0.3], 1000, "linear"),
    "SWALR at once": single("SWALR", 0.05, anneal_epochs=0),
}
COMPOSED = {
    "SequentialLR": sequential([6], linear, cosine),
    "SequentialLR of 3": sequential([10, 30], single("ConstantLR"), single("ExponentialLR", 0.99), cosine),
    "SequentialLR from 0": sequential([0, 8], linear, single("StepLR", 3), single("PolynomialLR", 40)),
    "SequentialLR of momenta": sequential([20], single("CyclicLR", 0.01, 0.1, 5),
                                          single("CosineAnnealingWarmRestarts", 9, 2)),
    "SequentialLR of products": sequential([9, 15], single("MultiplicativeLR", Slowly()), linear,
                                           single("MultiplicativeLR", Slowly())),
    "SequentialLR to SWALR": sequential([14], single("ExponentialLR", 0.98), single("SWALR", 0.05)),
    "ChainedScheduler": chained(single("ConstantLR"), single("ExponentialLR", 0.9995)),
    "ChainedScheduler of 3": chained(linear, single("StepLR", 9, 0.9), single("ExponentialLR", 0.999)),
    "ChainedScheduler of a SequentialLR": chained(sequential([6], linear, single("ExponentialLR", 0.999)),
                                                  single("StepLR", 9, 0.9)),
}
AS_TORCH = RECURSIVE | DIRECT | COMPOSED
# torch raises, or is a step ahead
NESTED = {
    "SequentialLR of a ChainedScheduler": sequential([7], part_way, chained(single("StepLR", 4), cosine)),
    "SequentialLR from a ChainedScheduler": sequential([7], chained(single("ConstantLR", 0.5, 3),
                                                                    single("ExponentialLR", 0.9)), cosine),
    "SequentialLR of a SequentialLR": sequential([5], part_way, sequential([8], single("ExponentialLR", 0.9), cosine)),
    "SequentialLR from a SequentialLR": sequential([9], sequential([3], part_way, cosine), single("StepLR", 4)),
    "SequentialLR from OneCycleLR": sequential([5], linear, single("OneCycleLR", 0.1, 60, anneal_strategy="linear")),
}
RESUMED = AS_TORCH | NESTED | {
    "OneCycleLR short": single("OneCycleLR", 0.1, 40),
    "stacked": lambda of, optimizer: [linear(of, optimizer), single("StepLR", 5)(of, optimizer),
                                      cosine(of, optimizer)],
    "stacked on momenta": lambda of, optimizer: [single("CyclicLR", 0.01, 0.1, 4)(of, optimizer),
                                                 single("ExponentialLR", 0.9)(of, optimizer)],
    "linear of get_scheduler": lambda of, optimizer: of.get_scheduler("linear", optimizer, 5, 40),
}
METRICS = {
    "ReduceLROnPlateau": single("ReduceLROnPlateau", patience=3, factor=0.5),
    "ReduceLROnPlateau rel min": single("ReduceLROnPlateau", patience=1, threshold=0.05, cooldown=2),
    "ReduceLROnPlateau max": single("ReduceLROnPlateau", "max", 0.3, 2, 0.05, "abs", 4, [0.01, 0.001]),
    "ReduceLROnPlateau rel max": single("ReduceLROnPlateau", "max", patience=0, threshold=0.1, cooldown=1, min_lr=1e-3),
    "ReduceLROnPlateau eps": single("ReduceLROnPlateau", patience=1, threshold_mode="abs", eps=0.005),
    "GreedyLR": single("GreedyLR", patience=2, factor=0.8),
    "GreedyLR max": single("GreedyLR", "max", 0.7, 1, 0.01, "rel", 2, 3, [0.01, 0.02], [0.2, 0.3]),
    "GreedyLR smooth": single("GreedyLR", patience=1, smooth=True, window_size=5),
    "GreedyLR anew": single("GreedyLR", patience=0, factor=0.3, min_lr=0.01, reset_start=3, threshold=0.5),
}
METRICS_SEEN = [*np.random.default_rng(1).standard_normal(60).cumsum().tolist(), float("nan"),
                *np.random.default_rng(2).standard_normal(60).tolist()]


def of_torch():
    torch = pytest.importorskip("torch")
    return types.SimpleNamespace(**vars(torch.optim.lr_scheduler), SWALR=torch.optim.swa_utils.SWALR)


def every(cases):
    return pytest.mark.parametrize("make", cases.values(), ids=cases)


def optimizer_of(module=fastopt, name="SGD", rates=(0.1, 0.02), **options):
    options = options or ({"momentum": 0.9} if name == "SGD" else {})
    if module is fastopt:
        return getattr(fastopt, name)([{"params": np.ones(2), "lr": rate} for rate in rates], **options)
    return getattr(module.optim, name)(
        [{"params": module.ones(2, requires_grad=True), "lr": rate} for rate in rates], **options)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def values(optimizer):
    """The rates and momenta of the groups."""
    return [number for group in optimizer.param_groups
            for number in (group["lr"], group["betas"][0] if "betas" in group else group["momentum"])]


def step(optimizer, gradient=0.0):
    if isinstance(optimizer, fastopt.optimizers.base.Optimizer):
        optimizer.step([np.full(2, gradient)] * len(optimizer.param_groups))
    else:
        optimizer.step()


def advance(optimizer, *schedulers):
    step(optimizer)
    for scheduler in schedulers:
        scheduler.step()


def both(make, name="SGD"):
    import torch

    ours, theirs = optimizer_of(fastopt, name), optimizer_of(torch, name)
    return (ours, make(lr_scheduler, ours)), (theirs, make(of_torch(), theirs))


def run(optimizer, scheduler, steps, read):
    seen = [read()]
    for _ in range(steps):
        advance(optimizer, scheduler)
        seen.append(read())
    return seen


# ---- values

@every(AS_TORCH)
def test_values_are_torchs(make):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    seen = run(ours, mine, LONG, lambda: values(ours))
    # 1e-8 is what torch's recursion loses as its cosine passes zero; the test below has its closed form
    loose = 1e-8 if isinstance(mine, lr_scheduler.CosineAnnealingLR) else 1e-11
    np.testing.assert_allclose(seen, run(theirs, their, LONG, lambda: values(theirs)), rtol=loose, atol=1e-14)
    assert getattr(mine, "last_epoch", None) == getattr(their, "last_epoch", None)
    assert getattr(mine, "base_lrs", None) == getattr(their, "base_lrs", None)
    assert mine.get_last_lr() == rates(ours)


@every(RECURSIVE)
def test_values_are_those_of_torchs_closed_form(make):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    closed = [run(ours, mine, LONG, lambda: rates(ours))]
    closed.append(run(theirs, their, LONG, lambda: their._get_closed_form_lr()))
    np.testing.assert_allclose(*closed, rtol=1e-12, atol=1e-16)


@every(DIRECT)
def test_values_are_torchs_with_betas(make):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make, "Adam")
    np.testing.assert_allclose(run(ours, mine, 300, lambda: values(ours)),
                               run(theirs, their, 300, lambda: values(theirs)), rtol=1e-12, atol=1e-15)


CHANGING = [*RECURSIVE, *DIRECT]


@pytest.mark.parametrize("names", [*zip(CHANGING, CHANGING[3:], strict=False),
                                   ("LinearLR", "StepLR", "CosineAnnealingLR")], ids=" ".join)
def test_stacked_schedulers_are_torchs(names):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(lambda of, optimizer: [AS_TORCH[name](of, optimizer) for name in names])
    for _ in range(1000):
        advance(ours, *mine)
        advance(theirs, *their)
        np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-10, atol=1e-14)


def test_a_scheduler_that_begins_at_1_leaves_the_rate():
    for rate in np.random.default_rng(0).uniform(size=200).tolist():
        for make in (single("CosineAnnealingLR", 50, eta_min=0.001), single("SWALR", 0.3), single("StepLR", 2)):
            optimizer = optimizer_of(rates=(1.0,))
            lr_scheduler.StepLR(optimizer, 2)
            optimizer.param_groups[0]["lr"] = rate
            make(lr_scheduler, optimizer)
            assert rates(optimizer) == [rate]


def test_stacked_schedulers_do_not_drift():
    optimizer = optimizer_of()
    stacked = [single("ExponentialLR", 0.9995)(lr_scheduler, optimizer),
               single("LinearLR", 0.1, total_iters=9000)(lr_scheduler, optimizer),
               single("StepLR", 3000, 0.5)(lr_scheduler, optimizer)]
    for t in range(1, LONG + 1):
        advance(optimizer, *stacked)
        factor = 0.9995**t * (0.1 + 0.9 * min(t, 9000) / 9000) * 0.5 ** (t // 3000)
        np.testing.assert_allclose(rates(optimizer), [0.1 * factor, 0.02 * factor], rtol=1e-12)


@every(AS_TORCH)
def test_a_rate_that_the_user_changes_acts_as_in_torch(make):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    for count in range(80):
        advance(ours, mine)
        advance(theirs, their)
        if count in (9, 55):
            ours.param_groups[0]["lr"] *= 2
            theirs.param_groups[0]["lr"] *= 2
        np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-12, atol=1e-16)


@every({name: make for name, make in AS_TORCH.items() if "Cosine" not in name and "each" not in name})
def test_a_group_added_later_is_scheduled_too(make):
    torch = pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    for count in range(20):
        if count == 10:
            ours.add_param_group({"params": np.ones(2), "lr": 0.5})
            theirs.add_param_group({"params": torch.ones(2, requires_grad=True), "lr": 0.5})
        try:
            advance(theirs, their)
        except (ValueError, KeyError):  # torch cannot
            return
        advance(ours, mine)
        np.testing.assert_allclose(values(ours), values(theirs), rtol=1e-12, atol=1e-16)


def test_a_group_added_to_cosines_and_lambdas():
    for make, factor in ((single("CosineAnnealingLR", 4), [0.5 + 0.5 * np.cos(np.pi * t / 4) for t in range(4)]),
                         (single("LambdaLR", Inverse(1)), [1 / (1 + t) for t in range(4)])):
        optimizer = optimizer_of()
        scheduler = make(lr_scheduler, optimizer)
        advance(optimizer, scheduler)
        optimizer.add_param_group({"params": np.ones(2), "lr": 0.5})
        advance(optimizer, scheduler)
        np.testing.assert_allclose(rates(optimizer)[:2], np.array([0.1, 0.02]) * factor[2], rtol=1e-12)
        lambdas = isinstance(scheduler, lr_scheduler.LambdaLR)
        np.testing.assert_allclose(rates(optimizer)[2], 0.5 * factor[2] / (1 if lambdas else factor[1]), rtol=1e-12)


@pytest.mark.parametrize("make", [single("CyclicLR", 0.01, 0.1, 4), single("OneCycleLR", 0.1, 30),
                                  single("CosineAnnealingWarmRestarts", 4, 2)])
def test_a_group_added_to_cycles_is_as_the_others(make):
    optimizer = optimizer_of(rates=(0.5, 0.5))
    scheduler = make(lr_scheduler, optimizer)
    advance(optimizer, scheduler)
    optimizer.add_param_group({"params": np.ones(2), "lr": 0.5})
    for _ in range(9):
        advance(optimizer, scheduler)
        assert values(optimizer)[:2] == values(optimizer)[4:]
    saved = scheduler.state_dict()
    other = optimizer_of(rates=(0.5, 0.5, 0.5))
    make(lr_scheduler, other).load_state_dict(saved)
    assert values(other) == values(optimizer)


def test_a_group_added_where_the_others_differ():
    optimizer = optimizer_of()
    scheduler = lr_scheduler.LambdaLR(optimizer, [Inverse(1), Inverse(2)])
    advance(optimizer, scheduler)
    optimizer.add_param_group({"params": np.ones(2), "lr": 0.5})
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="lr_lambda was given for 2 groups, the optimizer has 3 now"):
        scheduler.step()
    assert scheduler.state_dict()["last_epoch"] == before["last_epoch"]
    assert rates(optimizer)[2] == 0.5


@pytest.mark.parametrize("cycles", [dict(T_0=10), dict(T_0=3, T_mult=2, eta_min=0.01)])
def test_restarts_at_fractions_of_an_epoch(cycles):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(single("CosineAnnealingWarmRestarts", **cycles))
    for count in range(120):
        epoch = None if count % 9 == 4 else count / 4
        for optimizer, scheduler in ((ours, mine), (theirs, their)):
            step(optimizer)
            scheduler.step() if epoch is None else scheduler.step(epoch)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)
        assert (mine.last_epoch, mine.T_i) == (their.last_epoch, their.T_i)
        assert mine.T_cur == pytest.approx(their.T_cur)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        mine.step(-0.5)


def test_restarts_are_exact_where_torchs_logarithm_is_rounded():
    optimizer = optimizer_of(rates=(1.0,))
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 1, 3)
    for cycle in range(1, 12):
        scheduler.step((3**cycle - 1) // 2)
        assert (scheduler.get_last_lr(), scheduler.T_cur, scheduler.T_i) == ([1.0], 0, 3**cycle)


def test_the_step_that_is_one_too_many():
    optimizer = optimizer_of()
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 5, anneal_strategy="linear")
    for _ in range(5):
        advance(optimizer, scheduler)
    np.testing.assert_allclose(rates(optimizer), 0.1 / 25 / 1e4)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="called 6 times, more than total_steps, which is 5"):
        scheduler.step()
    assert scheduler.state_dict() == before


# ---- schedulers of schedulers

def trace(make, steps=30):
    optimizer = optimizer_of(rates=(1.0,))
    scheduler = make(lr_scheduler, optimizer)
    return np.array(run(optimizer, scheduler, steps, lambda: rates(optimizer)[0]))


def waves(length, low=0.001, steps=31):
    return low + (1 - low) * (0.5 + 0.5 * np.cos(np.pi * np.arange(steps) / length))


def test_nested_schedulers_begin_with_their_own_first_rates():
    at = np.arange(31)
    rise, fall, stairs = 0.25 + 0.6 * np.minimum(at, 6) / 6, 0.9**at, 0.1 ** (at // 4)
    expected = {
        "SequentialLR of a ChainedScheduler": (7, rise, 0.001 + 0 * at),
        "SequentialLR from a ChainedScheduler": (7, fall * np.where(at < 3, 0.5, 1.0), waves(50)),
        "SequentialLR of a SequentialLR": (5, rise, np.concatenate([fall[:8], waves(50)])),
        "SequentialLR from a SequentialLR": (9, np.concatenate([rise[:3], waves(50)]), stairs),
    }
    for name, (milestone, first, then) in expected.items():
        seen = trace(NESTED[name])
        np.testing.assert_allclose(seen[:milestone], first[:milestone], rtol=1e-12)
        if name != "SequentialLR of a ChainedScheduler":  # two factors over a floor: see the next lines
            np.testing.assert_allclose(seen[milestone:], then[: 31 - milestone], rtol=1e-12)
    seen, wave = trace(NESTED["SequentialLR of a ChainedScheduler"])[7:], waves(50)
    rate = 1.0
    for t in range(24):
        assert seen[t] == pytest.approx(rate, rel=1e-12)
        rate *= stairs[t + 1] / stairs[t]
        rate = 0.001 + (rate - 0.001) * (wave[t + 1] - 0.001) / (wave[t] - 0.001)


@every({**COMPOSED, **NESTED})
def test_sequences_go_on_from_last_epoch(make):
    optimizer = optimizer_of()
    scheduler = make(lr_scheduler, optimizer)
    if not isinstance(scheduler, lr_scheduler.SequentialLR):
        pytest.skip("no last_epoch")
    parts = scheduler._schedulers
    if any(isinstance(part, (lr_scheduler.MultiplicativeLR, lr_scheduler.SWALR)) for part in parts):
        pytest.skip("these have no closed form")
    if any(isinstance(part, lr_scheduler.OneCycleLR) for part in parts):
        pytest.skip("it replaces initial_lr, from which the first begins, in torch too")
    seen = run(optimizer, scheduler, 40, lambda: rates(optimizer))
    for done in (2, 6, 11, 25):
        other = optimizer_of()
        parts = make(lr_scheduler, other)._schedulers
        again = lr_scheduler.SequentialLR(other, parts, scheduler._milestones, last_epoch=done - 1)
        assert again.last_epoch == done
        if not any(isinstance(part, lr_scheduler.ChainedScheduler) for part in parts):
            went = run(other, again, 40 - done, lambda other=other: rates(other))
            np.testing.assert_allclose(went, seen[done:], rtol=1e-12)


# ---- going on: states

def gradient(count):
    return np.sin(count + 1.0)


def straight(name, make, metrics=None, steps=32):
    """A run with a snapshot, the rates and the parameters after every step; at step 12 the user changes a rate."""
    optimizer = optimizer_of(name=name)
    made = make(lr_scheduler, optimizer)
    made = made if isinstance(made, list) else [made]
    snapshots, seen = [], []
    for count in range(steps):
        saved = optimizer.state_dict(), [scheduler.state_dict() for scheduler in made]
        snapshots.append(pickle.dumps(saved))
        seen.append((values(optimizer), [param.tolist() for group in optimizer.param_groups
                                         for param in group["params"]], [each.get_last_lr() for each in made]))
        forward(optimizer, made, count, metrics)
    return snapshots, seen


def forward(optimizer, made, count, metrics):
    step(optimizer, gradient(count))
    for scheduler in made:
        scheduler.step() if metrics is None else scheduler.step(metrics[count])
    if count == 12:
        optimizer.param_groups[0]["lr"] *= 1.7


def optimizer_then_scheduler(optimizer, make, saved):
    optimizer.load_state_dict(saved[0])
    made = make()
    for scheduler, state in zip(made, saved[1], strict=True):
        scheduler.load_state_dict(state)
    return made


def made_then_optimizer_then_scheduler(optimizer, make, saved):
    made = make()
    optimizer.load_state_dict(saved[0])
    for scheduler, state in zip(reversed(made), reversed(saved[1]), strict=True):
        scheduler.load_state_dict(state)
    return made


def scheduler_then_optimizer(optimizer, make, saved):
    made = make()
    for scheduler, state in zip(made, saved[1], strict=True):
        scheduler.load_state_dict(state)
    optimizer.load_state_dict(saved[0])
    return made


ORDERS = [optimizer_then_scheduler, made_then_optimizer_then_scheduler, scheduler_then_optimizer]


@pytest.mark.parametrize("load", ORDERS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@every(RESUMED | METRICS)
def test_resuming_after_any_step_gives_the_same_bits(make, name, load):
    metrics = METRICS_SEEN if make in METRICS.values() else None
    snapshots, seen = straight(name, make, metrics)
    for at, snapshot in enumerate(snapshots):
        saved = pickle.loads(snapshot)
        optimizer = optimizer_of(name=name, rates=(0.3, 0.4))
        for group, params in zip(optimizer.param_groups, seen[at][1], strict=True):
            group["params"][0][...] = params

        def made(optimizer=optimizer):
            made = make(lr_scheduler, optimizer)
            return made if isinstance(made, list) else [made]

        made = load(optimizer, made, saved)
        for count in range(at, min(at + 9, len(seen))):
            params = [param.tolist() for group in optimizer.param_groups for param in group["params"]]
            assert (values(optimizer), params, [each.get_last_lr() for each in made]) == seen[count], (at, count)
            forward(optimizer, made, count, metrics)


@pytest.mark.parametrize("load", ORDERS)
@every({name: RESUMED[name] for name in (
    "StepLR", "CosineAnnealingLR", "LambdaLR", "MultiplicativeLR", "CyclicLR", "CosineAnnealingWarmRestarts",
    "OneCycleLR three phases", "SequentialLR of 3", "ChainedScheduler of 3", "SequentialLR of a ChainedScheduler")})
def test_resuming_with_a_group_that_was_just_added(make, load):
    optimizer = optimizer_of()
    scheduler = make(lr_scheduler, optimizer)
    for _ in range(5):
        advance(optimizer, scheduler)
    optimizer.add_param_group({"params": np.ones(2), "lr": 0.5})
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), [scheduler.state_dict()])))
    again = optimizer_of(rates=(0.3, 0.4, 0.6))
    other, = load(again, lambda: [make(lr_scheduler, again)], saved)
    for _ in range(12):
        assert values(again) == values(optimizer)
        advance(optimizer, scheduler)
        advance(again, other)


@every({name: make for name, make in AS_TORCH.items() if "of a" not in name})
def test_states_go_both_ways(make):
    pytest.importorskip("torch")
    for done in (0, 1, 20):
        (ours, mine), (theirs, their) = both(make)
        run(ours, mine, done, lambda: None)
        run(theirs, their, done, lambda: None)
        state_mine, state_their = copy.deepcopy(mine.state_dict()), copy.deepcopy(their.state_dict())
        for key in ("base_lrs", "last_epoch", "_last_lr"):
            if key in state_their:
                np.testing.assert_allclose(state_mine[key], state_their[key], rtol=1e-12)
        assert set(state_their) - {"_is_initial", "_get_lr_called_within_step", "_schedule_phases"} <= set(state_mine)
        saved_ours, saved_their = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
        (ours, mine), (theirs, their) = both(make)
        mine.load_state_dict(state_their)
        np.testing.assert_allclose(values(ours), [number for group in saved_their["param_groups"]
                                                  for number in (group["lr"], group["momentum"])], rtol=1e-12)
        ours.load_state_dict(saved_their)
        their.load_state_dict(state_mine)
        theirs.load_state_dict({**saved_ours, "state": {}})  # its arrays would have to become tensors
        np.testing.assert_allclose(run(ours, mine, 60, lambda ours=ours: values(ours)),
                                   run(theirs, their, 60, lambda theirs=theirs: values(theirs)), rtol=1e-12, atol=1e-15)


@every(RESUMED | METRICS)
def test_copies_go_on_alike(make):
    metric = [METRICS_SEEN[0]] if make in METRICS.values() else []
    optimizer = optimizer_of()
    made = make(lr_scheduler, optimizer)
    made = made if isinstance(made, list) else [made]

    def forward(optimizer, made):
        for _ in range(9):
            step(optimizer)
            for scheduler in made:
                scheduler.step(*metric)

    forward(optimizer, made)
    copies = [copy.deepcopy((optimizer, made)), pickle.loads(pickle.dumps((optimizer, made)))]
    forward(optimizer, made)
    for other, its in copies:
        assert its[0].optimizer is other
        forward(other, its)
        assert values(other) == values(optimizer)
        assert [each.get_last_lr() for each in its] == [each.get_last_lr() for each in made]


@every({name: make for name, make in (RECURSIVE | DIRECT).items() if "SWALR" not in name})  # torch's begins anew
def test_going_on_from_last_epoch(make):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    run(ours, mine, 5, lambda: None), run(theirs, their, 5, lambda: None)
    again = resumed(make, lr_scheduler, ours), resumed(make, of_torch(), theirs)
    np.testing.assert_allclose(run(ours, again[0], 5, lambda: values(ours)),
                               run(theirs, again[1], 5, lambda: values(theirs)), rtol=1e-12, atol=1e-16)


def resumed(make, of, optimizer):
    """The scheduler with last_epoch=5 beside its arguments."""
    return make(types.SimpleNamespace(**{name: partial(getattr(of, name), last_epoch=5)
                                         for name in lr_scheduler.__all__ if hasattr(of, name)}), optimizer)


def test_swalr_goes_on_from_last_epoch():
    optimizer = optimizer_of()
    run(optimizer, lr_scheduler.SWALR(optimizer, 0.05), 5, lambda: None)
    expected = copy.deepcopy(optimizer)
    steady = lr_scheduler.SWALR(expected, 0.05)
    steady.last_epoch = 5
    again = lr_scheduler.SWALR(optimizer, 0.05, last_epoch=4)
    run(optimizer, again, 10, lambda: None), run(expected, steady, 10, lambda: None)
    assert rates(optimizer) == rates(expected) == [0.05, 0.05]


def test_lambdas_that_are_objects_are_saved():
    optimizer = optimizer_of()
    scheduler = lr_scheduler.LambdaLR(optimizer, Inverse(0.5))
    saved = copy.deepcopy(scheduler.state_dict())
    assert saved["lr_lambdas"] == [{"power": 0.5}] * 2
    other = lr_scheduler.LambdaLR(optimizer_of(), Inverse(2.0))
    other.load_state_dict(saved)
    assert other.lr_lambdas[0].power == 0.5
    assert lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict()["lr_lambdas"] == [None, None]
    cyclic = lr_scheduler.CyclicLR(optimizer, 0.1, 0.2, scale_fn=Inverse(0.5))
    assert cyclic.state_dict()["_scale_fn_custom"] == {"power": 0.5}
    other = lr_scheduler.CyclicLR(optimizer_of(), 0.1, 0.2, scale_fn=Inverse(2.0))
    other.load_state_dict(cyclic.state_dict())
    assert other._scale_fn_custom.power == 0.5


@pytest.mark.parametrize(("make", "other", "message"), [
    (single("StepLR", 2), lambda of, _: single("StepLR", 2)(of, optimizer_of(rates=(1.0,))),
     "is of 1 groups, the optimizer has 2"),
    (single("StepLR", 2), single("ExponentialLR", 0.5), "state_dict of StepLR lacks step_size"),
    (single("LambdaLR", Inverse(1)), single("StepLR", 2), "state_dict of LambdaLR lacks lr_lambdas"),
    (single("LambdaLR", Inverse(1)), lambda of, _: single("LambdaLR", Inverse(1))(of, optimizer_of(rates=(1.0,))),
     "state_dict has 1 lr_lambdas, this scheduler 2"),
    (single("GreedyLR"), single("ReduceLROnPlateau"), "state_dict of GreedyLR lacks warmup"),
    (COMPOSED["SequentialLR"], COMPOSED["SequentialLR of 3"], "has 3 schedulers, this SequentialLR has 2"),
    (COMPOSED["SequentialLR"], sequential([6], cosine, linear), "state_dict of LinearLR lacks start_factor"),
    (COMPOSED["ChainedScheduler"], sequential([6], single("ConstantLR"), linear), "ExponentialLR lacks gamma"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_state_that_does_not_fit_changes_nothing(make, other, message):
    optimizer = optimizer_of()
    scheduler = make(lr_scheduler, optimizer)
    before = copy.deepcopy((scheduler.state_dict(), [dict(group) for group in optimizer.param_groups]))
    state = other(lr_scheduler, optimizer_of()).state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state)
    after = scheduler.state_dict(), [dict(group) for group in optimizer.param_groups]
    assert str(before) == str(after)  # == would compare arrays


def test_a_state_with_a_wrong_argument_changes_nothing():
    scheduler = lr_scheduler.StepLR(optimizer_of(), 2)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match="step_size must be an integer"):
        scheduler.load_state_dict({**before, "step_size": 0, "last_epoch": 7})
    assert scheduler.state_dict() == before


# ---- metrics

@pytest.mark.parametrize("order", [1, -1])
@every({name: make for name, make in METRICS.items() if "Reduce" in name})
def test_plateaus_are_torchs(make, order):
    pytest.importorskip("torch")
    (ours, mine), (theirs, their) = both(make)
    for metric in np.exp(METRICS_SEEN[::order]) if mine.threshold_mode == "rel" else METRICS_SEEN[::order]:
        mine.step(metric), their.step(metric)
        assert rates(ours) == rates(theirs)
        state, expected = mine.state_dict(), their.state_dict()
        assert {name: state[name] for name in expected if name != "_is_initial"} == expected
    other = make(lr_scheduler, optimizer_of())
    other.load_state_dict(their.state_dict())
    assert rates(other.optimizer) == rates(theirs)
    their.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("order", [1, -1])
@every({name: make for name, make in METRICS.items() if "Greedy" in name})
def test_greedy_is_that_of_transformers(make, order):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours, theirs = optimizer_of(), optimizer_of(torch)
    mine, their = make(lr_scheduler, ours), make(transformers.optimization, theirs)
    for count, metric in enumerate(np.exp(METRICS_SEEN[::order]) if mine.threshold_mode == "rel"
                                   else METRICS_SEEN[::order]):
        if metric != metric and mine.smooth:
            break  # its running sum never forgets a NaN
        mine.step(metric), their.step(metric)
        assert rates(ours) == rates(theirs), count
        state, expected = mine.state_dict(), their.state_dict()
        for name in expected:
            if name == "best":  # its running mean is rounded otherwise
                assert state[name] == pytest.approx(expected[name], rel=1e-12)
            elif name != "_streaming_avg":
                assert state[name] == expected[name], name
    other = make(lr_scheduler, optimizer_of())
    other.load_state_dict(their.state_dict())
    again = make(transformers.optimization, optimizer_of(torch))
    again.load_state_dict(mine.state_dict())
    for metric in METRICS_SEEN[:50]:
        mine.step(metric), other.step(metric), again.step(metric)
        assert mine.get_last_lr() == other.get_last_lr() == again.get_last_lr()


def test_greedy_says_what_it_does(capsys):
    optimizer = optimizer_of()
    scheduler = lr_scheduler.GreedyLR(optimizer, factor=0.5, patience=0, min_lr=0.05, reset_start=1, verbose=True)
    for metric in (1.0, 2.0, 2.0, 2.0):
        scheduler.step(metric)
    assert capsys.readouterr().out.splitlines() == [
        "step 1: the learning rate of group 0 is 2.0000e-01", "step 1: the learning rate of group 1 is 4.0000e-02",
        "step 2: the learning rate of group 0 is 1.0000e-01", "step 3: the learning rate of group 0 is 5.0000e-02",
        "step 3: all begins anew", "step 4: the learning rate of group 0 is 2.0000e-01",
        "step 4: the learning rate of group 1 is 4.0000e-02"]


def test_metrics_that_are_no_numbers():
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer_of())
    with pytest.raises(TypeError, match="metrics must be a number, got 'low'"):
        scheduler.step("low")
    assert scheduler.last_epoch == 0


# ---- Hugging Face's names

NAMES = {
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "cosine waves": ("cosine", dict(num_cycles=2.5)),
    "cosine_with_restarts": ("cosine_with_restarts", dict(num_cycles=3)),
    "polynomial": ("polynomial", {}),
    "polynomial squared": ("polynomial", dict(lr_end=0.001, power=2.0)),
    "constant": ("constant", {}),
    "constant_with_warmup": ("constant_with_warmup", {}),
    "inverse_sqrt": ("inverse_sqrt", {}),
    "inverse_sqrt timescale": ("inverse_sqrt", dict(timescale=50)),
    "cosine_with_min_lr": ("cosine_with_min_lr", dict(min_lr=0.01)),
    "cosine_with_min_lr rate": ("cosine_with_min_lr", dict(min_lr_rate=0.2, num_cycles=1.5)),
    "cosine_warmup_with_min_lr": ("cosine_warmup_with_min_lr", dict(min_lr=0.01)),
    "cosine_warmup_with_min_lr rate": ("cosine_warmup_with_min_lr", dict(min_lr_rate=0.2, warmup_lr_rate=0.3)),
    "wsd": ("warmup_stable_decay", dict(num_decay_steps=40)),
    "wsd lines": ("warmup_stable_decay", dict(num_decay_steps=40, warmup_type="cosine", decay_type="linear",
                                              min_lr_ratio=0.1)),
    "wsd roots": ("warmup_stable_decay", dict(num_decay_steps=30, warmup_type="1-sqrt", decay_type="1-sqrt",
                                              min_lr_ratio=0.2)),
    "wsd waves": ("warmup_stable_decay", dict(num_decay_steps=40, num_cycles=1.5, warmup_type="1-sqrt")),
}


@pytest.mark.parametrize("warmup", [0, 1, 20])
@pytest.mark.parametrize(("name", "options"), NAMES.values(), ids=NAMES)
def test_names_are_those_of_transformers(name, options, warmup):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours, theirs = optimizer_of(lr=0.1, rates=(0.1, 0.02)), optimizer_of(torch, lr=0.1)
    mine = lr_scheduler.get_scheduler(name, ours, warmup, 120, options)
    their = transformers.get_scheduler(name, theirs, warmup, 120, options)
    steps = 121 if name == "cosine_warmup_with_min_lr" else 150
    np.testing.assert_allclose(run(ours, mine, steps, lambda: rates(ours)),
                               run(theirs, their, steps, lambda: rates(theirs)), rtol=1e-12, atol=1e-15)
    again = lr_scheduler.get_scheduler(name, optimizer_of(lr=0.1), warmup, 120, options)
    again.load_state_dict(pickle.loads(pickle.dumps(their.state_dict())))
    assert again.get_last_lr() == their.get_last_lr()


def test_the_first_rate_of_a_warm_up_counts():
    optimizer = optimizer_of(rates=(1.0,))
    scheduler = lr_scheduler.get_scheduler("cosine", optimizer, 4, 8)
    assert rates(optimizer) == scheduler.get_last_lr() == [0.0]
    params = optimizer.param_groups[0]["params"][0]
    step(optimizer, 1.0)
    assert params.tolist() == [1.0, 1.0]


def test_names_of_the_metric_driven():
    optimizer = optimizer_of()
    assert lr_scheduler.get_scheduler("reduce_lr_on_plateau", optimizer,
                                      scheduler_specific_kwargs={"patience": 3}).patience == 3
    greedy = lr_scheduler.get_scheduler("greedy", optimizer, scheduler_specific_kwargs={"patience": 4})
    assert isinstance(greedy, lr_scheduler.GreedyLR) and greedy.patience == 4
    scheduler = lr_scheduler.get_scheduler("warmup_stable_decay", optimizer, 3,
                                           scheduler_specific_kwargs=dict(num_decay_steps=2, num_stable_steps=4))
    seen = run(optimizer, scheduler, 9, lambda: rates(optimizer)[0] / 0.1)
    np.testing.assert_allclose(seen, [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.5, 0])


# ---- the other optimizers

@pytest.mark.parametrize("method", table.METHODS, ids=lambda method: method.name)
def test_every_method_takes_a_scheduler(method):
    gradient = np.ones((2, 2))
    if method.optimizer.sparse == "only":
        gradient = fastopt.SparseRows(np.arange(2), gradient, gradient.shape)
    grads = [gradient] if method.name != "LBFGS" else lambda: (1.0, [gradient])
    optimizer = method.optimizer(np.ones((2, 2)), lr=0.5)
    scheduler = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(grads)
    scheduler.step()
    assert rates(optimizer) == [0.25]
    optimizer.step(grads)


def test_a_hybrid_takes_schedulers():
    hybrid = fastopt.MuonAdamW({"w": np.ones((2, 2)), "b": np.ones(2)}, muon={"lr": 0.02}, adamw={"lr": 0.001})
    scheduler = lr_scheduler.OneCycleLR(hybrid, [0.2, 0.01], 10)
    hybrid.step({"w": np.ones((2, 2)), "b": np.ones(2)})
    scheduler.step()
    muon, adamw = hybrid.param_groups
    assert muon["momentum"] == adamw["betas"][0] < 0.95
    assert muon["lr"] == pytest.approx(20 * adamw["lr"])
    with pytest.raises(ValueError, match="'polynomial|polynomial needs an optimizer with a number"):
        lr_scheduler.get_scheduler("polynomial", hybrid, 1, 5)


@pytest.mark.parametrize("method", [fastopt.Adam, fastopt.SGD, fastopt.RMSprop, fastopt.Muon])
def test_a_changed_rate_is_checked_and_acts_alone(method):
    optimizer, twin = method(np.ones((2, 2)), lr=0.1), method(np.ones((2, 2)), lr=0.1)
    gradient = np.array([[1.0, -2.0], [0.5, 3.0]])
    for rate, decay in ((0.1, 0.0), (0.2, 0.0), (0.3, 0.1), (0.05, 0.1), (1, 0.1), (np.float32(0.5), 0.1)):
        for each in (optimizer, twin):
            each.param_groups[0].update(lr=rate, weight_decay=decay)
        twin._engine.forget()
        for each in (optimizer, twin):
            each.step([gradient])
        assert optimizer.param_groups[0]["params"][0].tolist() == twin.param_groups[0]["params"][0].tolist()
    before = optimizer.param_groups[0]["params"][0].tolist()
    for wrong, error in ((-1.0, ValueError), (float("nan"), ValueError), ("x", TypeError), (None, TypeError)):
        optimizer.param_groups[0]["lr"] = wrong
        with pytest.raises(error, match="lr must be"):
            optimizer.step([gradient])
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step([gradient])
    assert optimizer.param_groups[0]["params"][0].tolist() == before


def test_a_class_of_ones_own():
    class Halving(lr_scheduler.LRScheduler):
        def get_lr(self):
            if self.last_epoch == 4:
                raise RuntimeError("no further")
            return [base / 2**self.last_epoch for base in self.base_lrs]

    optimizer = optimizer_of()
    scheduler = Halving(optimizer)
    seen = run(optimizer, scheduler, 3, lambda: rates(optimizer)[0])
    assert seen == [0.1, 0.05, 0.025, 0.0125]
    with pytest.raises(RuntimeError):
        scheduler.step()
    assert (scheduler.last_epoch, rates(optimizer)[0]) == (3, 0.0125)
    with pytest.raises(NotImplementedError, match="LRScheduler must define get_lr"):
        lr_scheduler.LRScheduler(optimizer)


# ---- warnings

def test_stepping_the_scheduler_first_warns_once():
    optimizer = optimizer_of()
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="before optimizer.step"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        advance(optimizer, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in AS_TORCH.values():
            optimizer = optimizer_of()
            run(optimizer, make(lr_scheduler, optimizer), 20, lambda: None)


def test_an_epoch_sets_the_closed_form():
    pytest.importorskip("torch")
    for make in RECURSIVE.values():
        (ours, mine), (theirs, their) = both(make)
        for optimizer, scheduler in ((ours, mine), (theirs, their)):
            step(optimizer)
            with pytest.warns(UserWarning, match="deprecated"):
                scheduler.step(5)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)
        assert mine.last_epoch == their.last_epoch == 5
        advance(ours, mine), advance(theirs, their)
        np.testing.assert_allclose(rates(ours), rates(theirs), rtol=1e-12)


def test_get_lr_warns():
    scheduler = lr_scheduler.StepLR(optimizer_of(), 2)
    with pytest.warns(UserWarning, match="use get_last_lr"):
        assert scheduler.get_lr() == [0.1, 0.02]


# ---- wrong arguments

def fails(step):
    raise OverflowError("of the user")


OTHER = optimizer_of()
WRONG = [
    (single("StepLR", 0), ValueError, "step_size must be an integer of at least 1, got 0"),
    (single("StepLR", 2.5), ValueError, "step_size must be an integer"),
    (single("StepLR", 2, float("nan")), ValueError, "gamma must be finite"),
    (single("StepLR", 2, -0.5), ValueError, "gamma must be at least 0"),
    (single("StepLR", 2, last_epoch=True), ValueError, "last_epoch must be an integer"),
    (single("StepLR", 2, last_epoch=3), KeyError, "initial_lr is missing in group 0"),
    (single("MultiStepLR", 5), TypeError, "milestones must be a sequence of steps, got 5"),
    (single("MultiStepLR", [-1]), ValueError, "milestones must be an integer of at least 0"),
    (single("ConstantLR", 1.5), ValueError, "factor must be at least 0 and at most 1"),
    (single("ConstantLR", total_iters=0), ValueError, "total_iters must be an integer of at least 1"),
    (single("LinearLR", 0.0), ValueError, "start_factor must be more than 0"),
    (single("LinearLR", total_iters=-1), ValueError, "total_iters must be an integer"),
    (single("ExponentialLR", float("inf")), ValueError, "gamma must be finite"),
    (single("PolynomialLR", 0), ValueError, "total_iters must be an integer"),
    (single("PolynomialLR", power=-1.0), ValueError, "power must be above 0"),
    (single("CosineAnnealingLR", -5), ValueError, "T_max must be an integer"),
    (single("CosineAnnealingLR", 5, -1.0), ValueError, "eta_min must be at least 0"),
    (single("LambdaLR", [faded]), ValueError, "lr_lambda must have 2 functions, got 1"),
    (single("LambdaLR", [faded, 3]), TypeError, "lr_lambda must be a function of the step or a list"),
    (single("LambdaLR", fails), OverflowError, "of the user"),
    (single("MultiplicativeLR", None), TypeError, "lr_lambda must be a function"),
    (single("CosineAnnealingWarmRestarts", 0), ValueError, "T_0 must be an integer of at least 1"),
    (single("CosineAnnealingWarmRestarts", 5, 1.5), ValueError, "T_mult must be an integer"),
    (single("CyclicLR", 0.1, [0.2]), ValueError, "max_lr must be one number or a list of 2"),
    (single("CyclicLR", [0.1, "x"], 0.2), TypeError, r"base_lr\[1\] must be a number"),
    (single("CyclicLR", 0.1, 0.2, 0), ValueError, "step_size_up must be an integer"),
    (single("CyclicLR", 0.1, 0.2, mode="square"), ValueError, "mode must be one of 'triangular'"),
    (single("CyclicLR", 0.1, 0.2, scale_fn=3), TypeError, "scale_fn must be a function"),
    (single("CyclicLR", 0.1, 0.2, scale_fn=fails), OverflowError, "of the user"),
    (single("CyclicLR", 0.1, 0.2, scale_fn=faded, scale_mode="steps"), ValueError, "scale_mode must be one of"),
    (single("CyclicLR", 0.1, 0.2, max_momentum=1.0), ValueError, "max_momentum must be at least 0 and less than 1"),
    (single("OneCycleLR", 0.1), ValueError, "total_steps must be given, or epochs and steps_per_epoch"),
    (single("OneCycleLR", 0.1, 0), ValueError, "total_steps must be an integer"),
    (single("OneCycleLR", 0.1, epochs=3, steps_per_epoch=0), ValueError, "steps_per_epoch must be an integer"),
    (single("OneCycleLR", 0.1, 9, pct_start=1.5), ValueError, "pct_start must be at least 0 and at most 1"),
    (single("OneCycleLR", 0.1, 9, pct_start=0.7, three_phase=True), ValueError, "pct_start must be at most 0.5"),
    (single("OneCycleLR", 0.1, 9, anneal_strategy="exp"), ValueError, "anneal_strategy must be one of 'cos', 'linear'"),
    (single("OneCycleLR", 0.1, 9, div_factor=0), ValueError, "div_factor must be above 0"),
    (single("OneCycleLR", [0.1], 9), ValueError, "max_lr must be one number or a list of 2"),
    (single("SWALR", [0.1]), ValueError, "swa_lr must be one number or a list of 2"),
    (single("SWALR", 0.1, -1), ValueError, "anneal_epochs must be an integer of at least 0"),
    (single("SWALR", 0.1, 1, "step"), ValueError, "anneal_strategy must be one of"),
    (single("ReduceLROnPlateau", "least"), ValueError, "mode must be one of 'min', 'max'"),
    (single("ReduceLROnPlateau", factor=1.0), ValueError, "factor must be more than 0 and less than 1"),
    (single("ReduceLROnPlateau", min_lr=[0.1]), ValueError, "min_lr must be one number or a list of 2"),
    (single("ReduceLROnPlateau", threshold_mode="x"), ValueError, "threshold_mode must be one of"),
    (single("GreedyLR", patience=-1), ValueError, "patience must be an integer of at least 0"),
    (single("GreedyLR", window_size=0), ValueError, "window_size must be an integer"),
    (sequential([], linear, cosine), ValueError, "milestones must be one fewer than the 2 schedulers, got 0"),
    (sequential([9, 3], linear, cosine, linear), ValueError, "milestones must be in order"),
    (sequential([-1], linear, cosine), ValueError, "milestones must be an integer of at least 0"),
    (sequential(3, linear, cosine), TypeError, "milestones must be a list"),
    (sequential([]), ValueError, "schedulers must be a list of at least one"),
    (sequential([3], linear, single("ReduceLROnPlateau")), ValueError, r"schedulers\[1\] is a ReduceLROnPlateau"),
    (sequential([3], linear, lambda of, _: linear(of, OTHER)), ValueError, r"schedulers\[1\] is of another optimizer"),
    (chained(linear, lambda of, _: 3), TypeError, r"schedulers\[1\] must be a scheduler, got int"),
    (chained(), ValueError, "schedulers must be a list of at least one"),
]
WRONG_NAMES = [
    (("square", 1, 5, None), ValueError, "name must be one of 'linear', 'cosine'"),
    (("linear", None, 5, None), ValueError, "'linear' needs num_warmup_steps"),
    (("linear", 2, None, None), ValueError, "'linear' needs num_training_steps"),
    (("linear", 6, 5, None), ValueError, r"num_warmup_steps must be at most num_training_steps \(5\), got 6"),
    (("linear", -1, 5, None), ValueError, "num_warmup_steps must be an integer of at least 0"),
    (("cosine", 1, 5, {"cycles": 3}), TypeError, "'cosine' has no argument 'cycles'; it has num_cycles"),
    (("constant", 1, 5, {"cycles": 3}), TypeError, "'constant' has no argument 'cycles'; it has none"),
    (("cosine", 1, 5, {"num_cycles": 0}), ValueError, "num_cycles must be above 0"),
    (("polynomial", 1, 5, {"lr_end": 0.5}), ValueError, "lr_end must be at least 0 and less than lr"),
    (("cosine_with_min_lr", 1, 5, None), ValueError, "one of min_lr and min_lr_rate must be given"),
    (("cosine_with_min_lr", 1, 5, {"min_lr": 0, "min_lr_rate": 0}), ValueError, "one of min_lr and min_lr_rate"),
    (("warmup_stable_decay", 1, None, {"num_decay_steps": 3}), ValueError, "needs num_training_steps or"),
    (("warmup_stable_decay", 3, 5, {"num_decay_steps": 3}), ValueError, "num_training_steps must be at least"),
    (("warmup_stable_decay", 1, 5, {"num_decay_steps": 3, "decay_type": "x"}), ValueError, "decay_type must be one"),
    (("inverse_sqrt", 1, 5, {"timescale": -3}), ValueError, "timescale must be an integer"),
    (("greedy", 1, 5, {"factor": 2}), ValueError, "factor must be more than 0"),
]
WRONG += [(lambda of, optimizer, arguments=arguments: of.get_scheduler(
    arguments[0], optimizer, *arguments[1:]), error, message) for arguments, error, message in WRONG_NAMES]


@pytest.mark.parametrize(("make", "error", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_arguments_change_nothing(make, error, message):
    optimizer = optimizer_of()
    if make.__code__.co_name == "<lambda>" and "parts" in make.__code__.co_freevars:
        linear(lr_scheduler, optimizer)  # the parts of a composition may set rates
        before = None
    else:
        before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(error, match=message):
        make(lr_scheduler, optimizer)
    if before is not None:
        assert [list(group.items()) for group in optimizer.param_groups] == [list(each.items()) for each in before]


def test_a_composition_that_fails_leaves_the_rates():
    optimizer = optimizer_of()
    parts = [linear(lr_scheduler, optimizer), cosine(lr_scheduler, optimizer)]
    before = [dict(group) for group in optimizer.param_groups], [part.state_dict() for part in parts]
    for arguments in (([3, 4],), ([3], "x")):
        with pytest.raises(ValueError):
            lr_scheduler.SequentialLR(optimizer, parts, *arguments)
    assert ([dict(group) for group in optimizer.param_groups], [part.state_dict() for part in parts]) == before


@pytest.mark.parametrize("make", [single("CyclicLR", 0.1, 0.2), single("OneCycleLR", 0.1, 9)])
def test_momentum_that_cannot_be_driven(make):
    for optimizer, message in ((fastopt.Adagrad(np.ones(2)), "group 0 of this Adagrad has neither"),
                               (fastopt.Adam(np.ones(2), betas=(schedules.constant_schedule(0.5), 0.9)),
                                "betas of group 0 is a schedule already"),
                               (fastopt.SGD(np.ones(2), lr=schedules.constant_schedule(0.5), momentum=0.9),
                                "lr of group 0 is a schedule already")):
        before = dict(optimizer.param_groups[0])
        with pytest.raises(ValueError, match=message):
            make(lr_scheduler, optimizer)
        assert list(optimizer.param_groups[0].items()) == list(before.items())
    with pytest.raises(TypeError, match="optimizer must be a fastopt optimizer, got NoneType"):
        make(lr_scheduler, None)


# ---- progress is progress

@pytest.mark.parametrize("kind", ["ReduceLROnPlateau", "GreedyLR"])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("first", [-1.0, 0.0, 1.0, 1e5, -1e5, 5e-324])
def test_a_metric_is_better_by_more_than_the_threshold(kind, mode, threshold, threshold_mode, first):
    optimizer = optimizer_of()
    scheduler = getattr(lr_scheduler, kind)(optimizer, mode=mode, threshold=threshold, threshold_mode=threshold_mode,
                                            patience=50)
    scheduler.step(first)
    assert (scheduler.best, scheduler.num_bad_epochs) == (first, 0)  # the first is always better
    scheduler.step(first)
    assert scheduler.num_bad_epochs == 1  # the same is not
    way = -1.0 if mode == "min" else 1.0
    by = threshold * (abs(first) if threshold_mode == "rel" else 1.0)
    for share, bad in ((-0.5, 2), (0.5, 3), (2.0, 0)):
        beyond = first + way * share * (by or max(abs(first), 1e-300))
        scheduler.step(beyond)
        assert scheduler.num_bad_epochs == (0 if not by and share > 0 else bad), (share, beyond)
        if scheduler.best != first:
            break


@pytest.mark.parametrize("metric", [np.array([0.5]), np.array(0.5), np.float32(0.5), [0.5], 10**400, None])
def test_metrics_of_one_element_are_numbers(metric):
    for kind in ("ReduceLROnPlateau", "GreedyLR"):
        scheduler = getattr(lr_scheduler, kind)(optimizer_of())
        if hasattr(metric, "item"):
            scheduler.step(metric)
            assert scheduler.best == 0.5 and type(scheduler.best) is float
        else:
            with pytest.raises((TypeError, ValueError), match="metrics must be a number"):
                scheduler.step(metric)
            assert scheduler.last_epoch == 0


def test_a_mean_of_metrics_bears_infinities():
    scheduler = lr_scheduler.GreedyLR(optimizer_of(), smooth=True, window_size=3)
    for metric in (1e308, 1e308, float("inf"), float("-inf"), 1.0, 2.0, 3.0):
        scheduler.step(metric)
    assert scheduler.best == 2.0 or scheduler.last_epoch == 7
    assert scheduler.state_dict()["_streaming_avg"]["values"] == [1.0, 2.0, 3.0]


# ---- steps that were skipped

def skipped_by_policy(optimizer):
    optimizer.set_stages(on_nonfinite="skip")
    optimizer.step([np.full(2, np.nan)] * 2)


def skipped_for_one_step(optimizer):
    optimizer.step([np.full(2, np.inf)] * 2, on_nonfinite="skip")


def skipped_by_a_scaler(optimizer):
    fastopt.GradScaler().step(optimizer, [np.full(2, np.inf)] * 2)


def skipped_after_unscaling(optimizer):
    scaler, grads = fastopt.GradScaler(), [np.full(2, np.inf), np.ones(2)]
    scaler.unscale_(optimizer, grads)
    scaler.step(optimizer, grads)


@pytest.mark.parametrize("skip", [skipped_by_policy, skipped_for_one_step, skipped_by_a_scaler,
                                  skipped_after_unscaling])
def test_a_first_step_that_was_skipped_is_a_step(skip):
    optimizer = optimizer_of()
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    skip(optimizer)
    assert optimizer.step_count == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


# ---- steps and lengths of short types

@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint64, np.array, lambda x: np.array([x])])
def test_lengths_and_epochs_of_numpy(kind):
    cases = [
        (lambda of, opt, n: of.StepLR(opt, n(100), 0.5)), (lambda of, opt, n: of.MultiStepLR(opt, [n(100), n(120)])),
        (lambda of, opt, n: of.CosineAnnealingWarmRestarts(opt, n(100), n(2))),
        (lambda of, opt, n: of.CyclicLR(opt, 0.01, 0.1, n(100), n(100))),
        (lambda of, opt, n: of.OneCycleLR(opt, 0.1, epochs=n(100), steps_per_epoch=n(100))),
        (lambda of, opt, n: of.SequentialLR(opt, [of.ConstantLR(opt, 0.5), of.StepLR(opt, 7)], [n(100)])),
        (lambda of, opt, n: of.get_scheduler("linear", opt, n(100), n(120))),
        (lambda of, opt, n: of.get_scheduler("warmup_stable_decay", opt, n(10), n(120),
                                             {"num_decay_steps": n(100)})),
    ]
    for make in cases:
        (one, mine), (two, plain) = ((opt := optimizer_of(), make(lr_scheduler, opt, n)) for n in (kind, int))
        for _ in range(400):
            advance(one, mine), advance(two, plain)
        assert values(one) == values(two)
        assert "int" not in repr(mine.state_dict()) and "array" not in repr(mine.state_dict())
        if not isinstance(mine, lr_scheduler.SequentialLR | lr_scheduler.OneCycleLR):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mine.step(kind(120)), plain.step(120)
            assert (values(one), mine.last_epoch) == (values(two), plain.last_epoch)
            assert type(mine.last_epoch) is int


@pytest.mark.parametrize("epoch", [-1, 2.5, np.nan, "3", 10**400, np.array([1, 2])])
def test_epochs_that_are_none(epoch):
    optimizer = optimizer_of()
    for scheduler, arguments in ((lr_scheduler.StepLR(optimizer, 2), ()),
                                 (lr_scheduler.ReduceLROnPlateau(optimizer), (1.0,))):
        step(optimizer)
        with pytest.warns(UserWarning, match="deprecated"), pytest.raises((TypeError, ValueError), match="epoch must"):
            scheduler.step(*arguments, epoch)
        assert scheduler.last_epoch == 0
