"""Schedules are values, pure functions of the step, and have the values of optax, torch, Hugging Face and papers."""

import copy
import math
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import cli, plot_schedule, schedules
from fastopt import schedules as s
from fastopt.schedules import table

STEPS = 120
EXAMPLES = {f"{row.name}-{number}": row.make(**arguments)
            for row in table.ROWS for number, arguments in enumerate(row.examples(STEPS))}
COSINE = s.cosine_decay_schedule(0.8, 90, 0.1)
EXAMPLES |= {
    "operators": 2 * COSINE + 1 - COSINE / 4 - (-COSINE) * (0.5 - COSINE) / (1 / (COSINE + 1)),
    "methods": COSINE.shift(7).clamp(0.2, 0.7).map(math.sqrt).map(s.linear_schedule(0, 1, 2)),
    "nested": s.warmup(s.join_schedules([COSINE, s.warmup(0.3, 20), COSINE * 2], [30, 60]), 10, 0.01, "exponential"),
    "numpy": np.float64(2.0) * COSINE,
    "growing to an end": s.exponential_decay(1.0, 1, 3.0, end_value=50.0),
    "no warm-up": s.warmup(COSINE, 0),
    "no piece": s.warmup_stable_decay_schedule(0.0, 1.0, 0, 0, 0, 0.5),
    "no boundary": s.piecewise_constant_schedule(1.0),
}
every_example = pytest.mark.parametrize("schedule", EXAMPLES.values(), ids=EXAMPLES)


# ---- values

@every_example
def test_a_schedule_is_a_value(schedule):
    for again in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert repr(again) == repr(schedule)
        assert [again(step) for step in range(40)] == [schedule(step) for step in range(40)]
    assert schedule != s.constant_schedule(12.0)
    assert schedule != 12.0


@every_example
def test_a_schedule_prints_as_the_call_that_makes_it(schedule):
    if "<" in repr(schedule):
        pytest.skip("holds a function of Python, which has no such text")
    assert eval(repr(schedule), vars(schedules)) == schedule


@every_example
def test_a_preview_has_the_values_of_the_calls(schedule):
    called = [schedule(step) for step in range(3 * STEPS)]
    assert {type(value) for value in called} == {float}
    preview = schedule.preview(3 * STEPS)
    assert preview.dtype == np.float64
    assert np.isfinite(preview).all()
    np.testing.assert_allclose(preview, called, rtol=1e-13, atol=1e-16)
    parts = np.linspace(0, 2 * STEPS, 333).reshape(3, 111)
    called = [[schedule(step) for step in row] for row in parts.tolist()]
    np.testing.assert_allclose(schedule.preview(parts), called, rtol=1e-12, atol=1e-15)
    assert schedule.preview([]).shape == schedule.preview(0).shape == (0,)
    for wrong in (-1, 2.5):
        with pytest.raises(ValueError, match=f"steps must be a whole number of at least 0, got {wrong}"):
            schedule.preview(wrong)
    with pytest.raises(ValueError, match="steps must be numbers of at least 0"):
        schedule.preview([0, -0.5])
    for wrong in (-1, -0.5, math.nan):
        with pytest.raises(ValueError, match="step must be a number of at least 0"):
            schedule(wrong)


@pytest.mark.parametrize("step", [10**6, 10**9, 10**15])
@every_example
def test_schedules_go_on_for_ever(schedule, step):
    assert math.isfinite(schedule(step))
    np.testing.assert_allclose(schedule.preview([step]), schedule(step), rtol=1e-6, atol=1e-12)


def test_arguments_have_one_form():
    first = s.linear_schedule(1, 0, 10.0, np.int64(3))
    second = s.linear_schedule(np.float32(1.0), -0.0, np.array(10), 3.0)
    assert first == second
    assert hash(first) == hash(second)
    assert repr(first) == "linear_schedule(init_value=1.0, end_value=0.0, transition_steps=10, transition_begin=3)"
    boundaries = {8: 0.1, 3: 0.5}
    schedule = s.piecewise_constant_schedule(1.0, boundaries)
    assert schedule == s.piecewise_constant_schedule(1.0, {3: 0.5, 8: 0.1})
    assert hash(schedule) == hash(s.piecewise_constant_schedule(1.0, {3: 0.5, 8: 0.1}))
    boundaries[9] = 0.0
    assert [schedule(step) for step in (2, 5, 10)] == [1.0, 0.5, 0.05]


def test_all_schedules_are_in_the_table():
    makers = {name for name in schedules.__all__ if hasattr(getattr(schedules, name), "formula")}
    assert {row.name for row in table.ROWS} == makers
    assert set(schedules.__all__) - makers == {"Schedule", "as_schedule", "schedule"}


@pytest.mark.filterwarnings("ignore")  # of jax's own imports
def test_the_table_says_what_optax_has():
    optax = pytest.importorskip("optax")
    assert {row.name for row in table.ROWS if "optax;" in f"{row.elsewhere};"} == {
        row.name for row in table.ROWS if hasattr(optax, row.name)}


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.name)
def test_every_argument_is_documented(row):
    for name in row.make.__signature__.parameters:
        assert re.search(rf"\b{name}\b", row.make.__doc__), name


@pytest.mark.parametrize(("schedule", "step", "value"), [
    (s.linear_schedule(0.1, 0.3, 7, 2), 0, 0.1),
    (s.linear_schedule(0.1, 0.3, 7, 2), 9, 0.3),
    (s.polynomial_schedule(0.1, 0.3, 3, 7), 0, 0.1),
    (s.polynomial_schedule(0.1, 0.3, 3, 7), 7, 0.3),
    (s.cosine_decay_schedule(2.0, 10, alpha=0.25), 0, 2.0),
    (s.cosine_decay_schedule(2.0, 10, alpha=0.25), 10, 0.5),
    (s.cosine_annealing_schedule(0.1, 10, 0.01), 20, 0.1),
    (s.cosine_annealing_schedule(0.1, 10, 0.01), 30, 0.01),
    (s.cosine_annealing_schedule(0.1, 10, 0.01), 20 * 10**12, 0.1),
    (s.rex_schedule(0.1, 7, 0.01), 7, 0.01),
    (s.warmup(0.3, 7, 0.1), 0, 0.1),
    (s.warmup(0.3, 7, 0.1), 7, 0.3),
    (s.warmup_stable_decay_schedule(0.1, 0.3, 7, 3, 9, 0.2), 0, 0.1),
    (s.warmup_stable_decay_schedule(0.1, 0.3, 7, 3, 9, 0.2), 10, 0.3),
    (s.warmup_stable_decay_schedule(0.1, 0.3, 7, 3, 9, 0.2), 19, 0.2),
    (s.onecycle_schedule(0.3, 10, div_factor=3), 0, 0.3 / 3),
    (s.onecycle_schedule(0.3, 10, div_factor=3), 2, 0.3),
    (s.onecycle_schedule(0.3, 10, div_factor=3), 9, 0.3 / 3 / 1e4),
    (s.onecycle_schedule(0.3, 10, div_factor=3, anneal_strategy="linear"), 10, 0.3 / 3 / 1e4),
])
def test_ends_are_exact(schedule, step, value):
    assert schedule(step) == schedule.preview([step])[0] == value


# ---- independent values. A case: a schedule, and what gives its values at an array of whole steps.

def optax_values(name, **arguments):
    def values(steps):
        optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
        with jax.enable_x64(True):
            return np.array([getattr(optax, name)(**arguments)(step) for step in steps.astype(float)], float)

    return values


def both(name, **arguments):
    """A schedule of optax's names and arguments, and optax's values."""
    return getattr(s, name)(**arguments), optax_values(name, **arguments)


def restarting(lengths):
    return [dict(init_value=0.1, peak_value=1.0 / (i + 1), warmup_steps=i, decay_steps=length, end_value=0.01)
            for i, length in enumerate(lengths, 2)]


CYCLE = dict(transition_steps=140, peak_value=0.3, pct_start=0.21, div_factor=12.0, final_div_factor=300.0)
EXPONENTIAL = dict(init_value=0.3, transition_steps=7, decay_rate=0.8, transition_begin=5)
BOUNDARIES = {3: 0.5, 20: 3.0, 21: 0.1}
OPTAX = {
    "constant": both("constant_schedule", value=0.3),
    "linear": both("linear_schedule", init_value=0.3, end_value=0.7, transition_steps=31),
    "linear later": both("linear_schedule", init_value=0.3, end_value=-0.7, transition_steps=31, transition_begin=9),
    "polynomial": both("polynomial_schedule", init_value=0.3, end_value=0.7, power=3, transition_steps=31),
    "polynomial later": both("polynomial_schedule", init_value=3.0, end_value=0.7, power=0.5, transition_steps=31,
                             transition_begin=9),
    "exponential": both("exponential_decay", **EXPONENTIAL),
    "exponential stairs": both("exponential_decay", **EXPONENTIAL, staircase=True),
    "exponential end": both("exponential_decay", **EXPONENTIAL, end_value=0.05),
    "exponential growth": both("exponential_decay", **EXPONENTIAL | {"decay_rate": 1.3}, end_value=0.9),
    "cosine": both("cosine_decay_schedule", init_value=0.3, decay_steps=60),
    "cosine power": both("cosine_decay_schedule", init_value=0.3, decay_steps=60, alpha=0.2, exponent=2.5),
    "constant pieces": both("piecewise_constant_schedule", init_value=0.3, boundaries_and_scales=BOUNDARIES),
    "line pieces": both("piecewise_interpolate_schedule", interpolate_type="linear", init_value=0.3,
                        boundaries_and_scales=BOUNDARIES),
    "cosine pieces": both("piecewise_interpolate_schedule", interpolate_type="cosine", init_value=0.3,
                          boundaries_and_scales=BOUNDARIES),
    "pieces at 0": both("piecewise_interpolate_schedule", interpolate_type="cosine", init_value=0.3,
                        boundaries_and_scales={0: 2.0, 9: 0.3}),
    "cosine cycle": both("cosine_onecycle_schedule", **CYCLE),
    "linear cycle": both("linear_onecycle_schedule", **CYCLE, pct_final=0.77),
    "warm-up constant": both("warmup_constant_schedule", init_value=0.1, peak_value=0.9, warmup_steps=11),
    "warm-up cosine": both("warmup_cosine_decay_schedule", init_value=0.1, peak_value=0.9, warmup_steps=11,
                           decay_steps=50, end_value=0.2, exponent=1.5),
    "warm-up exponential": both("warmup_exponential_decay_schedule", init_value=0.1, peak_value=0.9, warmup_steps=11,
                                transition_steps=7, decay_rate=0.6, transition_begin=4, staircase=True,
                                end_value=0.2),
    "sgdr": both("sgdr_schedule", cosine_kwargs=restarting([20, 31, 60])),
}


def torch_values(name, momentum=False, base=0.1, **arguments):
    def values(steps):
        torch = pytest.importorskip("torch")
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the order of the steps: only the scheduler is stepped
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base, momentum=0.9)
            scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
            for step in steps:
                if step:
                    scheduler.step()
                closed = getattr(scheduler, "_get_closed_form_lr", lambda: [optimizer.param_groups[0]["lr"]])
                found.append(optimizer.param_groups[0]["momentum"] if momentum else closed()[0])
        return np.array(found)

    return values


def torch_restarts_at_fractions(steps):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2, 0.01)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in steps:
            scheduler.step(step * 0.3)
            found.append(optimizer.param_groups[0]["lr"])
    return np.array(found)


LONG = 10_001  # steps, for torch's closed forms
TRIANGLE = dict(base_lr=0.01, max_lr=0.1, step_size_up=13, step_size_down=29)
TORCH = {
    "StepLR": (s.exponential_decay(0.1, 700, 0.7, staircase=True), torch_values("StepLR", step_size=700, gamma=0.7)),
    "MultiStepLR": (s.multistep_schedule(0.1, [30, 900, 30], 0.3),
                    torch_values("MultiStepLR", milestones=[30, 30, 900], gamma=0.3)),
    "ConstantLR": (s.piecewise_constant_schedule(0.03, {70: 1 / 0.3}),
                   torch_values("ConstantLR", factor=0.3, total_iters=70)),
    "ExponentialLR": (s.exponential_decay(0.1, 1, 0.9995), torch_values("ExponentialLR", gamma=0.9995)),
    "LinearLR": (s.linear_schedule(0.02, 0.1, 8000), torch_values("LinearLR", start_factor=0.2, total_iters=8000)),
    "PolynomialLR": (s.polynomial_schedule(0.1, 0.0, 2.5, 9000),
                     torch_values("PolynomialLR", total_iters=9000, power=2.5)),
    "CosineAnnealingLR": (s.cosine_annealing_schedule(0.1, 70, 0.001),
                          torch_values("CosineAnnealingLR", T_max=70, eta_min=0.001)),
    "Restarts alike": (s.cosine_restarts_schedule(0.1, 49, end_value=0.001),
                       torch_values("CosineAnnealingWarmRestarts", T_0=49, eta_min=0.001)),
    "Restarts doubled": (s.cosine_restarts_schedule(0.1, 49, t_mul=2, end_value=0.001),
                         torch_values("CosineAnnealingWarmRestarts", T_0=49, T_mult=2, eta_min=0.001)),
    "Restarts tripled": (s.cosine_restarts_schedule(0.1, 1, t_mul=3),
                         torch_values("CosineAnnealingWarmRestarts", T_0=1, T_mult=3)),
    "Restarts at fractions": (
        s.compose(s.cosine_restarts_schedule(0.1, 10, t_mul=2, end_value=0.01), 0.3 * s.as_schedule(float)),
        torch_restarts_at_fractions),
    **{f"CyclicLR {mode}": (s.cyclic_schedule(0.01, 0.1, 13, 29, mode, 0.9995),
                            torch_values("CyclicLR", **TRIANGLE, mode=mode, gamma=0.9995))
       for mode in ("triangular", "triangular2", "exp_range")},
    "CyclicLR even": (s.cyclic_schedule(0.01, 0.1, 13), torch_values("CyclicLR", base_lr=0.01, max_lr=0.1,
                                                                     step_size_up=13)),
    "CyclicLR momentum": (s.cyclic_schedule(0.9, 0.8, 13, 29, "triangular2"),
                          torch_values("CyclicLR", momentum=True, **TRIANGLE, mode="triangular2")),
    **{f"OneCycleLR {strategy}, {3 if three else 2} phases, pct_start={start}": (
        s.onecycle_schedule(0.1, LONG, start, strategy, 10.0, 100.0, three),
        torch_values("OneCycleLR", max_lr=0.1, total_steps=LONG, pct_start=start, anneal_strategy=strategy,
                     div_factor=10.0, final_div_factor=100.0, three_phase=three))
       for strategy in ("cos", "linear") for three in (False, True) for start in (0.0, 0.3, 0.5)},
    "OneCycleLR momentum": (s.onecycle_schedule(0.85, LONG, div_factor=0.85 / 0.95, final_div_factor=1.0),
                            torch_values("OneCycleLR", momentum=True, max_lr=0.1, total_steps=LONG)),
}


def hugging_face_values(name, warm, total=200, **arguments):
    def values(steps):
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = transformers.get_scheduler(name, optimizer, warm, total, arguments)
        return 0.1 * np.array([scheduler.lr_lambdas[0](step) for step in steps.tolist()])

    return values


HUGGING_FACE = {
    "constant": (s.warmup(0.1, 20), hugging_face_values("constant_with_warmup", 20)),
    "linear": (s.warmup(s.linear_schedule(0.1, 0.0, 180), 20), hugging_face_values("linear", 20)),
    "linear without": (s.warmup(s.linear_schedule(0.1, 0.0, 200), 0), hugging_face_values("linear", 0)),
    "cosine": (s.warmup_cosine_decay_schedule(0.0, 0.1, 20, 200), hugging_face_values("cosine", 20)),
    "cosine waves": (s.warmup(s.cosine_annealing_schedule(0.1, 60), 20),
                     hugging_face_values("cosine", 20, num_cycles=1.5)),
    "cosine minimum": (s.warmup(s.cosine_decay_schedule(0.1, 180, alpha=0.1), 20),
                       hugging_face_values("cosine_with_min_lr", 20, min_lr_rate=0.1)),
    "restarts": (s.join_schedules([s.warmup(s.cosine_restarts_schedule(0.1, 60), 20), 0.0], [200]),
                 hugging_face_values("cosine_with_restarts", 20, num_cycles=3)),
    "polynomial": (s.warmup(s.polynomial_schedule(0.1, 0.001, 2.0, 180), 20),
                   hugging_face_values("polynomial", 20, lr_end=0.001, power=2.0)),
    "inverse_sqrt": (s.warmup(s.inverse_sqrt_schedule(0.1, 20), 20), hugging_face_values("inverse_sqrt", 20)),
    "inverse_sqrt slow": (s.warmup(s.inverse_sqrt_schedule(0.1, 50), 20),
                          hugging_face_values("inverse_sqrt", 20, timescale=50)),
    **{f"wsd {warm} {decay}": (
        s.warmup_stable_decay_schedule(0.02, 0.1, 20, 80, 50, 0.02, warm, decay),
        hugging_face_values("warmup_stable_decay", 20, num_stable_steps=80, num_decay_steps=50, min_lr_ratio=0.2,
                            warmup_type=warm, decay_type=decay))
       for warm in ("linear", "cosine", "1-sqrt") for decay in ("linear", "cosine", "1-sqrt")},
}


def along(steps, length):
    """The part of `length` that is gone."""
    return np.clip(steps / length, 0.0, 1.0)


def restarts(steps, first, t_mul, m_mul):
    """Keras's CosineDecayRestarts, cycle after cycle."""
    values, peak, length, begin = np.empty(len(steps)), 1.0, first, 0.0
    for i, step in enumerate(steps):
        while step >= begin + length:
            begin, length, peak = begin + length, length * t_mul, peak * m_mul
        values[i] = peak * (1 + math.cos(math.pi * (step - begin) / length)) / 2
    return values


def warmed(rise, target, init, steps, length=30):
    """A rise from init to target in `length` steps, then the target."""
    values = np.full(len(steps), target)
    before = steps < length
    values[before] = init + (target - init) * rise(steps[before] / length)
    return values


RISES = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - np.cos(np.pi * p)) / 2,
    "1-sqrt": lambda p: 1 - np.sqrt(1 - p),
    "power": lambda p: p**3,
    "exponential": lambda p: (np.geomspace(0.1, 0.4, 31)[np.rint(p * 30).astype(int)] - 0.1) / 0.3,
}
FALLS = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: (1 + np.cos(np.pi * r)) / 2,
    "1-sqrt": lambda r: 1 - np.sqrt(r),
    "power": lambda r: (1 - r) ** 3,
    "exponential": lambda r: (0.4 * (0.1 / 0.4) ** r - 0.1) / 0.3,
}


def stable_then(fall, steps):
    decay = 0.1 + 0.3 * fall(along(steps - 50, 40))
    return np.where(steps < 30, warmed(RISES["cosine"], 0.4, 0.1, steps), np.where(steps < 50, 0.4, decay))


LINE = s.linear_schedule(0.2, 1.2, 50)
PAPERS = {
    "inverse time": (s.inverse_time_decay(0.3, 20, 0.5, 7),
                     lambda t: 0.3 / (1 + 0.5 * np.maximum(t - 7, 0) / 20)),
    "inverse time stairs": (s.inverse_time_decay(0.3, 20, 0.5, staircase=True),
                            lambda t: 0.3 / (1 + 0.5 * np.floor(t / 20))),
    "polynomial cycle": (s.polynomial_schedule(0.3, 0.1, 2.0, 20, cycle=True),
                         lambda t: 0.1 + 0.2 * (1 - t / (20 * np.maximum(np.ceil(t / 20), 1))) ** 2),
    "inverse root": (s.inverse_sqrt_schedule(0.3, 20, 5), lambda t: 0.3 / np.sqrt((t + 5) / 20)),
    "Noam": (s.noam_schedule(512, 40, 2.0).shift(-1),
             lambda t: 2 * 512**-0.5 * np.minimum((t + 1) ** -0.5, (t + 1) * 40**-1.5)),
    "k-decay": (s.cosine_k_decay_schedule(0.3, 90, 1.7, 0.1),
                lambda t: 0.1 + 0.1 * (1 + np.cos(np.pi * along(t, 90) ** 1.7))),
    "tanh": (s.tanh_decay_schedule(0.3, 90, 0.1, -7.0, 2.0),
             lambda t: 0.1 + 0.1 * (1 - np.tanh(-7 * (1 - along(t, 90)) + 2 * along(t, 90)))),
    "REX": (s.rex_schedule(0.3, 90, 0.1),
            lambda t: 0.1 + 0.2 * (1 - along(t, 90)) / (0.5 + 0.5 * (1 - along(t, 90)))),
    "restarts": (s.cosine_restarts_schedule(0.3, 7, m_mul=0.9, end_value=0.1),
                 lambda t: 0.1 + 0.2 * restarts(t, 7, 1, 0.9)),
    "growing restarts": (s.cosine_restarts_schedule(0.3, 4, t_mul=1.5, m_mul=0.9, end_value=0.1),
                         lambda t: 0.1 + 0.2 * restarts(t, 4, 1.5, 0.9)),
    "restarts that hardly grow": (s.cosine_restarts_schedule(0.3, 16, t_mul=1 + 2**-10),
                                  lambda t: 0.3 * restarts(t, 16, 1 + 2**-10, 1.0)),
    **{f"warm-up {shape}": (s.warmup(0.4, 30, 0.1, shape, 3.0), lambda t, rise=rise: warmed(rise, 0.4, 0.1, t))
       for shape, rise in RISES.items()},
    **{f"stable {shape}": (s.warmup_stable_decay_schedule(0.1, 0.4, 30, 20, 40, 0.1, "cosine", shape, 3.0),
                           lambda t, fall=fall: stable_then(fall, t)) for shape, fall in FALLS.items()},
    "warm-up of a function": (s.warmup(lambda step: 1 / (1 + step), 5),
                              lambda t: np.where(t < 5, t / 5, 1 / np.maximum(t - 4, 1))),
    "join": (s.join_schedules([LINE, 5, LINE], [10, 20]),
             lambda t: np.where(t < 10, 0.2 + t / 50, np.where(t < 20, 5, 0.2 + along(t - 20, 50)))),
    "sum": (LINE + COSINE, lambda t: LINE.preview(t) + COSINE.preview(t)),
    "sum with a number": (1 + LINE, lambda t: 1.2 + along(t, 50)),
    "difference": (LINE - 0.1, lambda t: 0.1 + along(t, 50)),
    "difference from a number": (1 - LINE, lambda t: 0.8 - along(t, 50)),
    "product": (LINE * COSINE, lambda t: LINE.preview(t) * COSINE.preview(t)),
    "scaled": (2 * LINE * 2, lambda t: 0.8 + 4 * along(t, 50)),
    "quotient": (LINE / 2, lambda t: 0.1 + along(t, 50) / 2),
    "reciprocal": (1 / LINE, lambda t: 1 / (0.2 + along(t, 50))),
    "opposite": (-LINE, lambda t: -0.2 - along(t, 50)),
    "product with a function": (LINE * (lambda step: step), lambda t: (0.2 + along(t, 50)) * t),
    "maximum": (s.maximum(LINE, 0.7), lambda t: np.maximum(0.2 + along(t, 50), 0.7)),
    "minimum": (s.minimum(LINE, 0.7), lambda t: np.minimum(0.2 + along(t, 50), 0.7)),
    "clamp": (LINE.clamp(0.3, 0.7), lambda t: np.clip(0.2 + along(t, 50), 0.3, 0.7)),
    "shift": (LINE.shift(9), lambda t: 0.2 + along(t - 9, 50)),
    "shift of what never rests": (s.cosine_annealing_schedule(1.0, 10).shift(9),
                                  lambda t: (1 + np.cos(np.pi * np.maximum(t - 9, 0) / 10)) / 2),
    "shift back": (LINE.shift(-9), lambda t: 0.2 + along(t + 9, 50)),
    "map": (LINE.map(math.exp), lambda t: np.exp(0.2 + along(t, 50))),
    "map to a schedule": (LINE.map(LINE), lambda t: 0.2 + along(0.2 + along(t, 50), 50)),
    "function of a constant": (s.as_schedule(0.25).map(math.sqrt), lambda t: np.full(len(t), 0.5)),
}
ORACLES = {**{f"optax {name}": (*case, 150) for name, case in OPTAX.items()},
           **{f"torch {name}": (*case, LONG) for name, case in TORCH.items()},
           **{f"Hugging Face {name}": (*case, 201) for name, case in HUGGING_FACE.items()},
           **{f"paper {name}": (*case, 10_000 if "restarts" in name else 200) for name, case in PAPERS.items()}}


@pytest.mark.parametrize(("schedule", "values", "count"), ORACLES.values(), ids=ORACLES)
@pytest.mark.filterwarnings("ignore")  # of jax's and transformers' own imports
def test_values_are_those_of_the_oracle(schedule, values, count):
    expected = values(np.arange(count))
    called = [schedule(step) for step in range(count)]
    np.testing.assert_allclose(called, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


# ---- what is wrong

def call(name, **wrong):
    """A call of a schedule with its first example's arguments, some of them wrong."""
    row = plot_schedule.EXAMPLES[name]
    return row.make(**row.examples(STEPS)[0] | wrong)


WRONG = {
    "no length": (lambda: call("linear_schedule", transition_steps=0),
                  ValueError, "linear_schedule: transition_steps must be a number of at least 1, got 0"),
    "negative begin": (lambda: call("linear_schedule", transition_begin=-1),
                       ValueError, "transition_begin must be a number of at least 0, got -1"),
    "NaN": (lambda: call("linear_schedule", end_value=math.nan), ValueError, "end_value must be finite, got nan"),
    "infinity": (lambda: call("cosine_decay_schedule", decay_steps=math.inf), ValueError, "decay_steps must be finite"),
    "no number": (lambda: call("cosine_decay_schedule", init_value="x"),
                  TypeError, "cosine_decay_schedule: init_value must be a number, got 'x'"),
    "a flag for a number": (lambda: s.constant_schedule(True), TypeError, "value must be a number, got True"),
    "a number for a flag": (lambda: call("exponential_decay", staircase=2),
                            TypeError, "staircase must be True or False, got 2"),
    "missing": (lambda: s.linear_schedule(1), TypeError, "missing a required argument: 'end_value'"),
    "unknown": (lambda: call("linear_schedule", power=2), TypeError, "unexpected keyword argument 'power'"),
    "rate": (lambda: call("exponential_decay", decay_rate=-0.5), ValueError, "decay_rate must be at least 0, got -0.5"),
    "power": (lambda: call("polynomial_schedule", power=0), ValueError, "power must be above 0, got 0"),
    "bounds of tanh": (lambda: call("tanh_decay_schedule", lower=3.0),
                       ValueError, r"lower must be less than upper \(3.0\), got 3.0"),
    "negative boundary": (lambda: s.piecewise_constant_schedule(1, {-1: 0.5}), ValueError,
                          "boundaries_and_scales: a step must be a number of at least 0, got -1"),
    "negative scale": (lambda: s.piecewise_constant_schedule(1, {1: -0.5}), ValueError,
                       r"boundaries_and_scales\[1\] must be at least 0, got -0.5"),
    "no mapping": (lambda: s.piecewise_constant_schedule(1, [3]), TypeError,
                   r"boundaries_and_scales must be a mapping of steps to scales, got \[3\]"),
    "milestones": (lambda: s.multistep_schedule(1, 3), TypeError, "milestones must be a sequence of steps, got 3"),
    "interpolation": (lambda: call("piecewise_interpolate_schedule", interpolate_type="cubic"), ValueError,
                      "interpolate_type must be one of 'linear', 'cosine', got 'cubic'"),
    "mode": (lambda: call("cyclic_schedule", mode="round"), ValueError,
             "mode must be one of 'triangular', 'triangular2', 'exp_range', got 'round'"),
    "shape": (lambda: s.warmup(1.0, 10, shape="round"), ValueError,
              "shape must be one of 'linear', 'cosine', '1-sqrt', 'power', 'exponential', got 'round'"),
    "exponential from 0": (lambda: s.warmup(1.0, 10, shape="exponential"), ValueError,
                           "warmup: init_value must be above 0, as the other end, for the exponential shape, got 0.0"),
    "exponential to 0": (lambda: s.warmup_stable_decay_schedule(0, 1, 5, 5, 5, decay_shape="exponential"), ValueError,
                         "warmup_stable_decay_schedule: end_value must be above 0"),
    "strategy": (lambda: call("onecycle_schedule", anneal_strategy="cosine"), ValueError,
                 "anneal_strategy must be one of 'cos', 'linear', got 'cosine'"),
    "part": (lambda: call("onecycle_schedule", pct_start=1.1),
             ValueError, "pct_start must be at least 0 and at most 1, got 1.1"),
    "three phases": (lambda: call("onecycle_schedule", pct_start=0.6, three_phase=True), ValueError,
                     "pct_start must be at most 0.5 in three phases, got 0.6"),
    "phases": (lambda: call("linear_onecycle_schedule", pct_start=0.9), ValueError,
               r"pct_final must be more than pct_start \(0.9\), got 0.85"),
    "shorter cycles": (lambda: call("cosine_restarts_schedule", t_mul=0.5), ValueError,
                       "t_mul must be at least 1, got 0.5"),
    "warm-up too long": (lambda: s.warmup_cosine_decay_schedule(0, 1, 50, 50), ValueError,
                         r"decay_steps, the length of the whole, must be more than warmup_steps \(50\), got 50"),
    "peak of 0": (lambda: s.warmup_cosine_decay_schedule(0, 0, 5, 50, 1), ValueError, "peak_value must not be 0"),
    "boundaries": (lambda: s.join_schedules([1, 2, 3], [5, 5]), ValueError, r"boundaries must increase, got \[5, 5\]"),
    "few boundaries": (lambda: s.join_schedules([1, 2, 3], [5]), ValueError,
                       "boundaries must be one fewer than the 3 schedules, got 1"),
    "no schedules": (lambda: s.join_schedules(COSINE, [5]), TypeError, "schedules must be a sequence of schedules"),
    "no schedule": (lambda: s.join_schedules([COSINE, "x"], [5]), TypeError,
                    r"schedules\[1\] must be a schedule, a number or a function of the step, got 'x'"),
    "NaN in arithmetic": (lambda: COSINE + math.nan, ValueError, "add: second must be finite, got nan"),
    "text in arithmetic": (lambda: "x" * COSINE, TypeError, "multiply: first must be a schedule, a number or a"),
    "an array in arithmetic": (lambda: np.ones(2) * COSINE, TypeError, "multiply: first must be a schedule, a number"),
    "nothing as schedule": (lambda: s.as_schedule(None), TypeError, "as_schedule: given must be a schedule, a number"),
    "clamp": (lambda: COSINE.clamp(2, 1), ValueError, "clamp: low must be at most high"),
    "map": (lambda: COSINE.map(3), TypeError, "compose: outer must be a schedule or a function of one number, got 3"),
    "cycles": (lambda: s.sgdr_schedule([3]), TypeError, r"cosine_kwargs\[0\] must be a mapping of arguments, got 3"),
    "a schedule before its beginning": (lambda: (COSINE - 2).map(COSINE)(0), ValueError,
                                        "step must be a number of at least 0, got -1.2"),
    "division by 0": (lambda: (1 / s.linear_schedule(0, 1, 5))(0), ArithmeticError, "division by zero"),
    "division by 0 in a preview": (lambda: (1 / s.linear_schedule(0, 1, 5)).preview(3), ArithmeticError, "divide by"),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- own schedules

@s.schedule
def halving(m, init_value: s.core.Value, length: s.core.Steps):
    """Halves every `length` steps."""
    return lambda step: init_value * 0.5 ** m.floor(step / length)


def test_a_schedule_of_ones_own_has_everything():
    schedule = halving(1, 4)
    assert schedule.preview(9).tolist() == [1.0] * 4 + [0.5] * 4 + [0.25]
    assert pickle.loads(pickle.dumps(schedule)) == schedule == eval(repr(schedule))
    assert (schedule + 1)(8) == 1.25
    with pytest.raises(ValueError, match="halving: length must be a number of at least 1, got 0"):
        halving(1, 0)
    with pytest.raises(TypeError, match="argument length of unchecked must be annotated with its check"):
        @s.schedule
        def unchecked(m, init_value: s.core.Value, length: float):
            return lambda step: init_value


def test_functions_get_whole_steps_as_integers():
    rates = [3.0, 2.0, 1.0]
    for schedule in (s.as_schedule(rates.__getitem__), s.join_schedules([1.0, rates.__getitem__], [0]),
                     s.as_schedule([4.0, *rates].__getitem__).shift(-1.0)):
        assert schedule.preview(3).tolist() == [schedule(step) for step in range(3)] == rates
    assert s.as_schedule(lambda step: step / 2).preview([0.5]) == 0.25


def test_pickles_name_the_public_module():
    assert s.linear_schedule.__module__ == type(COSINE).__module__ == "fastopt.schedules"
    assert b"core" not in pickle.dumps(COSINE)


def test_a_schedule_is_a_hyperparameter():
    param = np.zeros(2)
    optimizer = fastopt.SGD(param, lr=s.warmup(1.0, 2) * 0.5)
    for _ in range(3):
        optimizer.step(np.ones(2))
    np.testing.assert_allclose(param, -(0.0 + 0.25 + 0.5))


# ---- pictures and documentation

PNG = b"\x89PNG\r\n\x1a\n"


def plot(capsys, *words):
    code = cli.main(["plot-schedule", *map(str, words)])
    return code, capsys.readouterr()


@pytest.mark.parametrize("words", [
    ["linear_schedule"],
    ["cosine_decay_schedule", "alpha=0.1", "exponential_decay", "decay_rate=0.3", "end_value=None"],
    ["cyclic_schedule", "mode=triangular2", "multistep_schedule", "milestones=[20, 40]"],
    ["warmup", "schedule=linear_schedule(0.5, 0, 50)", "shape=1-sqrt", "2 * warmup(0.2, 10).shift(5) - 0.1"],
    ["--gallery"],
], ids=" ".join)
def test_pictures(words, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    assert plot(capsys, *words, "--steps", 100, "--output", picture) == (0, (f"wrote {picture}\n", ""))
    assert picture.read_bytes().startswith(PNG)


def test_words_of_the_command_line():
    found = plot_schedule.curves(["linear_schedule", "end_value=0.1", "warmup", "schedule=linear_schedule(0.5, 0, 50)",
                                  "shape=cosine", "warmup(0.2, 10) * 2", "sgdr_schedule"], 100)
    assert found == {
        "linear_schedule end_value=0.1": s.linear_schedule(1.0, 0.1, 75),
        "warmup schedule=linear_schedule(0.5, 0, 50) shape=cosine":
            s.warmup(s.linear_schedule(0.5, 0, 50), 60, 0.01, "cosine"),
        "warmup(0.2, 10) * 2": s.warmup(0.2, 10) * 2,
        "sgdr_schedule": s.sgdr_schedule(**plot_schedule.EXAMPLES["sgdr_schedule"].examples(100)[0]),
    }


@pytest.mark.parametrize(("words", "message"), [
    ([], "give the names of schedules, or --gallery alone; there are constant_schedule, linear_schedule, "),
    (["warmup", "--gallery"], "give the names of schedules, or --gallery alone"),
    (["cosine"], "there is no schedule 'cosine'; there are constant_schedule, linear_schedule, "),
    (["alpha=1"], "alpha=1 must follow the name of a schedule"),
    (["linear_schedule", "alpha=1"], "linear_schedule alpha=1: got an unexpected keyword argument 'alpha'"),
    (["linear_schedule", "transition_steps=0"], "transition_steps must be a number of at least 1, got 0"),
    (["linear_schedule", "end_value=low"], "end_value must be a number, got 'low'"),
    (["warmup(1, 2)", "shape=cosine"], "options follow a name, not an expression: warmup(1, 2) shape=cosine"),
    (["warmup(1, "], "was never closed"),
    (["cosine(1, 2)"], "name 'cosine' is not defined"),
    (["__import__('os').getcwd()"], "name '__import__' is not defined"),
    (["warmup.__globals__"], "'warmup.__globals__' is not a number, a schedule or arithmetic with them"),
    (["[x for x in ()]"], "is not a number, a schedule or arithmetic with them"),
    (["1 / linear_schedule(0, 1, 10)"], "divide by zero"),
])
def test_wrong_words(words, message, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    code, (out, err) = plot(capsys, *words, "--output", picture)
    assert (code, out) == (1, "")
    assert err.startswith("fastopt plot-schedule: ")
    assert message in err
    assert not picture.exists()


def test_matplotlib_that_is_missing_is_told(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, (_, err) = plot(capsys, "linear_schedule", "--output", tmp_path / "picture.png")
    assert code == 1
    assert "it needs matplotlib" in err
    assert "pip install matplotlib" in err


DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="not a checkout")
def test_the_documentation_has_the_table_of_the_code():
    page = (DOCS / "schedules.md").read_text()
    assert table.markdown() in page
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(example, "schedules.md", "exec"), {"__name__": "example"})
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (DOCS / picture).read_bytes().startswith(PNG)


# ---- steps and arguments of NumPy

SHORT = [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64, np.float16, np.float32, np.array,
         lambda step: np.array([step]), lambda step: np.array(step, np.uint8)]


@pytest.mark.parametrize("kind", SHORT)
@every_example
def test_steps_of_short_types_have_the_values_of_their_numbers(schedule, kind):
    for step in (0, 1, 3, 60, 100, 120, 127):
        value = schedule(kind(step))
        assert value == schedule(step) and type(value) is float
    steps = np.array([0, 1, 60, 127], getattr(kind(1), "dtype", None))
    np.testing.assert_array_equal(schedule.preview(steps), schedule.preview([0, 1, 60, 127]))
    count = kind(100)
    if not (isinstance(count, np.ndarray) and count.ndim):
        np.testing.assert_array_equal(schedule.preview(count), schedule.preview(100))


@every_example
def test_the_largest_steps_of_each_type(schedule):
    for kind in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int64):
        most = kind(np.iinfo(kind).max)
        assert schedule(most) == schedule(int(most))
        np.testing.assert_array_equal(schedule.preview(np.array([most])), schedule.preview([int(most)]))
        if kind(0).dtype.kind == "i":
            with pytest.raises(ValueError, match="step must be a number of at least 0"):
                schedule(kind(-1))


@pytest.mark.parametrize("wrong", ["3", None, 1j, np.ones(2), [1]], ids=repr)
def test_steps_that_are_no_numbers(wrong):
    with pytest.raises(TypeError, match="step must be a number"):
        COSINE(wrong)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.array, lambda x: np.array([x])])
def test_arguments_of_short_types(kind):
    for row in table.ROWS:
        for arguments in row.examples(100):
            short = {name: kind(value) if type(value) is int and 0 <= value < 128 else
                     [kind(part) for part in value] if name in ("milestones", "boundaries") else value
                     for name, value in arguments.items()}
            assert row.make(**short) == row.make(**arguments), row.name
            assert repr(row.make(**short)) == repr(row.make(**arguments))


def test_what_was_given_may_change_afterwards():
    milestones, schedule_list, boundaries = [3, 9], [0.1, COSINE], [4]
    scales, cycles = {3: 0.5}, [dict(init_value=0.0, peak_value=1.0, warmup_steps=1, decay_steps=3)]
    made = [s.multistep_schedule(1.0, milestones), s.join_schedules(schedule_list, boundaries),
            s.piecewise_constant_schedule(1.0, scales), s.piecewise_interpolate_schedule("linear", 1.0, scales),
            s.sgdr_schedule(cycles)]
    before = [(repr(one), one.preview(20).tolist(), [one(step) for step in range(20)]) for one in made]
    milestones[0], boundaries[0], scales[3] = 0, 1, 7.0
    cycles[0]["peak_value"] = 9.0
    schedule_list.clear()
    assert [(repr(one), one.preview(20).tolist(), [one(step) for step in range(20)]) for one in made] == before


def test_a_function_may_give_an_array_of_one_element():
    schedule = s.function_schedule(lambda step: np.array([2.0 * step]))
    np.testing.assert_array_equal(schedule.preview(3), [0.0, 2.0, 4.0])
