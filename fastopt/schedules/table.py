"""Every schedule with examples and its names elsewhere: drives the tests, the gallery and the documentation.

`python -m fastopt.schedules.table` prints the table of docs/schedules.md.
"""

import inspect
import math
import sys
from typing import Any, NamedTuple

from ..cli import Parser, execute
from . import core, cycles, decays, pieces
from .core import linear_schedule
from .decays import cosine_decay_schedule, exponential_decay


class Row(NamedTuple):
    """A schedule: arguments fitted to a number of steps, one set for each curve, and its names elsewhere."""

    make: Any
    examples: Any
    elsewhere: str = ""

    @property
    def name(self):
        return self.make.__name__


def variants(common, name, values):
    """The same arguments with one that varies."""
    return [{**common, name: value} for value in values]


def cycle(T, peak):
    return dict(init_value=0.0, peak_value=peak, warmup_steps=T // 30, decay_steps=T // 3)


ROWS = [
    Row(core.constant_schedule, lambda T: [dict(value=0.5)], "optax; Hugging Face `constant`"),
    Row(core.linear_schedule, lambda T: variants(
        dict(init_value=1.0, end_value=0.1, transition_steps=3 * T // 4), "transition_begin", [0, T // 5]),
        "optax; torch `LinearLR`; Hugging Face `linear`, behind `warmup`"),
    Row(decays.polynomial_schedule, lambda T: variants(
        dict(init_value=1.0, end_value=0.1, power=2.0, transition_steps=T / 4), "cycle", [False, True]),
        "optax; torch `PolynomialLR`; Keras `PolynomialDecay`; Hugging Face `polynomial`, behind `warmup`"),
    Row(decays.exponential_decay, lambda T: variants(
        dict(init_value=1.0, transition_steps=T / 5, decay_rate=0.5), "staircase", [False, True]),
        "optax; torch `ExponentialLR`, with `staircase` `StepLR`; Keras `ExponentialDecay`"),
    Row(decays.inverse_time_decay, lambda T: variants(
        dict(init_value=1.0, transition_steps=T / 5, decay_rate=1.0), "staircase", [False, True]),
        "Keras `InverseTimeDecay`"),
    Row(decays.inverse_sqrt_schedule, lambda T: variants(
        dict(init_value=1.0, timescale=T / 10), "shift", [None, T / 5]),
        "Hugging Face `inverse_sqrt`, behind `warmup`"),
    Row(decays.noam_schedule, lambda T: [dict(model_size=512, warmup_steps=T // 10)], "Noam"),
    Row(decays.cosine_decay_schedule, lambda T: variants(
        dict(init_value=1.0, decay_steps=T, alpha=0.1), "exponent", [1.0, 2.0]),
        "optax; Keras `CosineDecay`; Hugging Face `cosine` and `cosine_with_min_lr`, behind `warmup`"),
    Row(decays.cosine_annealing_schedule, lambda T: [
        dict(init_value=1.0, decay_steps=T / 4, end_value=0.1)], "torch `CosineAnnealingLR`"),
    Row(decays.cosine_k_decay_schedule, lambda T: variants(
        dict(init_value=1.0, decay_steps=T, end_value=0.1), "k", [0.5, 2.0]), "timm `cosine` with `k_decay`"),
    Row(decays.tanh_decay_schedule, lambda T: variants(
        dict(init_value=1.0, decay_steps=T, end_value=0.1), "lower", [-6.0, -3.0]), "timm `tanh`"),
    Row(decays.rex_schedule, lambda T: [dict(init_value=1.0, decay_steps=T, end_value=0.1)], "REX"),
    Row(pieces.piecewise_constant_schedule, lambda T: [
        dict(init_value=1.0, boundaries_and_scales={T // 4: 0.5, T // 2: 0.5, 3 * T // 4: 2.0}),
    ], "optax; torch `MultiStepLR`, `ConstantLR`"),
    Row(pieces.multistep_schedule, lambda T: [
        dict(init_value=1.0, milestones=[T // 4, T // 2, T // 2], gamma=0.6)], "torch `MultiStepLR`"),
    Row(pieces.piecewise_interpolate_schedule, lambda T: variants(
        dict(init_value=1.0, boundaries_and_scales={T // 4: 0.5, T // 2: 0.5, T: 2.0}),
        "interpolate_type", ["linear", "cosine"]), "optax"),
    Row(pieces.join_schedules, lambda T: [
        dict(schedules=[0.5, cosine_decay_schedule(1.0, 3 * T // 10), exponential_decay(0.8, T / 10, 0.5)],
             boundaries=[T // 5, T // 2]),
    ], "optax; torch `SequentialLR`"),
    Row(cycles.cyclic_schedule, lambda T: variants(
        dict(init_value=0.1, peak_value=1.0, up_steps=T / 10, down_steps=T / 5, gamma=0.2 ** (1 / T)),
        "mode", ["triangular", "triangular2", "exp_range"]), "torch `CyclicLR`"),
    Row(cycles.cosine_restarts_schedule, lambda T: variants(
        dict(init_value=1.0, decay_steps=T / 7, m_mul=0.8, end_value=0.1), "t_mul", [1.0, 2.0]),
        "torch `CosineAnnealingWarmRestarts`; Keras `CosineDecayRestarts`; Hugging Face `cosine_with_restarts`"),
    Row(pieces.sgdr_schedule, lambda T: [
        dict(cosine_kwargs=[cycle(T, 1.0), cycle(T, 0.7), cycle(T, 0.5)])], "optax"),
    Row(cycles.onecycle_schedule, lambda T: [
        *variants(dict(peak_value=1.0, total_steps=T, div_factor=5.0, three_phase=True), "anneal_strategy",
                  ["cos", "linear"]),
        *variants(dict(peak_value=1.0, total_steps=T, div_factor=5.0), "anneal_strategy", ["cos", "linear"]),
    ], "torch `OneCycleLR`"),
    Row(cycles.cosine_onecycle_schedule, lambda T: [
        dict(transition_steps=T, peak_value=1.0, div_factor=5.0)], "optax"),
    Row(cycles.linear_onecycle_schedule, lambda T: [
        dict(transition_steps=T, peak_value=1.0, div_factor=5.0)], "optax"),
    Row(pieces.warmup, lambda T: variants(
        dict(schedule=cosine_decay_schedule(1.0, 2 * T // 5), warmup_steps=3 * T // 5, init_value=0.01),
        "shape", pieces.SHAPES),
        "Hugging Face: every schedule with warm-up; timm `warmup_t` with `warmup_prefix`"),
    Row(pieces.warmup_stable_decay_schedule, lambda T: variants(
        dict(init_value=0.01, peak_value=1.0, warmup_steps=T // 5, stable_steps=T // 5, decay_steps=3 * T // 5,
             end_value=0.01), "decay_shape", pieces.SHAPES),
        "Hugging Face `warmup_stable_decay`; WSD"),
    Row(pieces.warmup_constant_schedule, lambda T: [
        dict(init_value=0.0, peak_value=1.0, warmup_steps=T // 5)], "optax; Hugging Face `constant_with_warmup`"),
    Row(pieces.warmup_cosine_decay_schedule, lambda T: variants(
        dict(init_value=0.0, peak_value=1.0, warmup_steps=T // 5, decay_steps=T, end_value=0.1),
        "exponent", [1.0, 2.0]), "optax; Hugging Face `cosine`; Keras `CosineDecay` with `warmup_target`"),
    Row(pieces.warmup_exponential_decay_schedule, lambda T: variants(
        dict(init_value=0.0, peak_value=1.0, warmup_steps=T // 5, transition_steps=T / 5, decay_rate=0.5),
        "staircase", [False, True]), "optax"),
    Row(core.add, lambda T: [
        dict(first=linear_schedule(0.8, 0.2, T), second=decays.cosine_annealing_schedule(0.1, T / 20, -0.1))]),
    Row(core.subtract, lambda T: [dict(first=1.0, second=cosine_decay_schedule(0.8, T))]),
    Row(core.multiply, lambda T: [
        dict(first=cosine_decay_schedule(1.0, T), second=cycles.cyclic_schedule(0.7, 1.0, T / 20))],
        "torch `ChainedScheduler`"),
    Row(core.divide, lambda T: [dict(first=1.0, second=linear_schedule(1.0, 8.0, T))]),
    Row(core.maximum, lambda T: [
        dict(first=cosine_decay_schedule(1.0, T), second=linear_schedule(0.5, 0.3, T))]),
    Row(core.minimum, lambda T: [
        dict(first=cosine_decay_schedule(1.0, T), second=linear_schedule(0.8, 0.3, T))]),
    Row(core.clamp, lambda T: [
        dict(schedule=cosine_decay_schedule(1.0, T), low=0.2, high=0.8)]),
    Row(core.shift, lambda T: variants(
        dict(schedule=cosine_decay_schedule(1.0, T // 2)), "steps", [T // 4, -(T // 4)])),
    Row(core.compose, lambda T: [
        dict(outer=cosine_decay_schedule(1.0, T), inner=linear_schedule(0.0, 2.0 * T, T))]),
    Row(core.function_schedule, lambda T: [dict(function=math.log1p)], "torch `LambdaLR`; any optax schedule"),
]


def markdown():
    """The table of docs/schedules.md."""
    lines = ["| schedule | what it is | elsewhere |", "|---|---|---|"]
    for row in ROWS:
        arguments = ", ".join(
            name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"
            for name, parameter in inspect.signature(row.make).parameters.items())
        summary = " ".join((inspect.getdoc(row.make) or "").split("\n\n")[0].split())
        lines.append(f"| `{row.name}({arguments})` | {summary} | {row.elsewhere} |")
    return "\n".join(lines) + "\n"


def main(arguments=None):
    description = "Prints the table of docs/schedules.md."
    parser = Parser(prog="python -m fastopt.schedules.table", description=description)
    return execute(parser, lambda args: print(markdown(), end=""), arguments)


if __name__ == "__main__":
    sys.exit(main())
