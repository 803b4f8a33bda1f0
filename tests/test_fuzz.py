"""A few of the random cases of `fuzz_steps`, always the same ones, and every case in which a fault was found."""

import math

import pytest
from fuzz_steps import TABLE, Case, Falling, cases, check
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastopt.stages import Adaptive, GlobalNorm, ParameterNorm

short = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
                 phases=[Phase.generate])  # the command makes failures smaller, in less time

one, matrix, many = [([(3,)], ["d"], {})], [([(3, 5)], ["d"], {})], [([(33, 20)], ["f"], {})]
step = ("step", ["plain"], {})

FAULTS = (
    # gradients that lie in memory which the same step writes
    Case("SGD", {}, [([(3,), (3,)], ["d", "d"], {})], operations=[("wrong_step", "other parameter", 0), step]),
    Case("NAdam", {}, [([(1,)], ["d"], {})], operations=[step, ("wrong_step", "state", 0), step]),
    Case("Adam", {}, one, stages={"average": [("EMA", {})]}, operations=[("wrong_step", "average", 0), step]),
    # masked arrays, and exporters that fail with errors of other kinds
    *(Case(name, {}, matrix, operations=[("wrong_step", kind, 0), step])
      for name in ("SGD", "Muon", "Adafactor")
      for kind in ("masked", "KeyError", "ZeroDivisionError", "AttributeError")),
    # entries of the lists that the optimizer shows
    *(Case(name, {}, [([(3, 5), (2, 1)], ["d", "f"], {})], operations=[*first, ("replaced", how), step])
      for name in ("Adadelta", "Muon", "Adafactor") for how in ("replace", "append", "pop") for first in ([], [step])),
    # bound gradients of a group that has no such thing
    Case("Adamax", {}, one, operations=[("bind", ["plain"]), ("add_group", [(), (17,)], ["d", "d"], {}), step]),
    # a list of hyperparameters that is changed in place
    Case("AdamW", {}, [([(33, 20)], ["f"], {"betas": [0.5, 0.9]})],
         operations=[step, ("hyper_in_place", 0, "betas", 1, 0.0), step]),
    # numbers that no float can hold, and bytes for numbers
    *(Case(name, {}, one, operations=[("wrong_hyper", 0, key, value), step]) for value in (10**400, b"1", b"")
      for name, key in (("Adadelta", "lr"), ("SparseAdam", "eps"), ("ASGD", "lambd"), ("Adagrad", "lr_decay"),
                        ("Adafactor", "weight_decay"))),
    Case("SGD", {}, one, operations=[("wrong_option", "grad_scale", 10**400), step]),
    *(Case("Adam", {}, one, operations=[step, ("wrong_count", count), step])
      for count in (2**63, 10**400, math.inf, math.nan)),
    # norms of gradients that are very large or very small
    Case("NAdam", {}, [([(1, 4)], ["f"], {})], operations=[("step", ["huge"], {"clip": GlobalNorm(1.0, 64.0)})]),
    Case("Adamax", {}, matrix, operations=[("step", ["huge"], {"clip": GlobalNorm(1.0, 64.0)})]),
    Case("ASGD", {}, matrix, operations=[("step", ["huge"], {"clip": ParameterNorm(0.7)})]),
    Case("Adam", {}, matrix, operations=[("step", ["huge"], {"clip": ParameterNorm(0.5, 20.0)})]),
    Case("Adafactor", {}, one, operations=[("step", ["huge"], {"clip": ParameterNorm(0.7)})]),
    Case("Adagrad", {}, many, operations=[("step", ["huge"], {"clip": GlobalNorm(0.5, 3.0)})]),
    Case("Adagrad", {}, matrix, operations=[("step", ["huge"], {"clip": Adaptive()})]),
    # float32 gradients of float64 parameters, which are scaled before a whole-matrix step
    Case("Adafactor", {}, matrix, operations=[("step", ["other"], {"grad_scale": 3.0})]),
    Case("Adafactor", {}, matrix, stages={"centralize": True}, operations=[("step", ["other"], {})]),
    Case("Muon", {}, matrix, operations=[("step", ["other"], {"grad_scale": 3.0})]),
    Case("Muon", {}, matrix, stages={"clip": 0.5}, operations=[("step", ["other"], {})]),
    # a checkpoint from before the first step of a method that has a state then
    Case("Adagrad", {"lr_decay": 0.1}, one, operations=[("reload",), ("set_count", 100), step]),
    # stages after all was forgotten
    *(Case(name, {}, matrix, operations=[step, (forgets,), ("step", ["plain"], {"grad_scale": 0.5})])
      for name in ("Adam", "Muon", "Adafactor") for forgets in ("reset", "reload")),
    # the memory that a step writes is another once other stages were set
    Case("Adamax", {}, [([(1,), (17,)], ["f", "f"], {})], "pairs", {"average": [("EMA", {}), ("SWA", {})]},
         [("bind", ["small"]), ("set_stages", {"average": [("EMA", {}), ("SWA", {})]}), step], 1),
    Case("Adam", {}, one, operations=[step, ("set_stages", {"average": [("EMA", {})]}), ("wrong_step", "average", 0)]),
    # a table without rows
    Case("SGD", {"momentum": 0.9}, [([(0, 3)], ["d"], {})], operations=[("sparse_step", ["plain"]), step]),
    # what is pending when a checkpoint is made
    Case("AdamW", {}, one, operations=[("accumulate", ["plain"], 2.0), ("reload",), step]),
    Case("SGD", {"lr": Falling(0.1)}, one, operations=[step, ("reload",), step]),
)


@settings(short, max_examples=150)
@given(cases())
def test_every_operation_is_the_oracles_or_changes_nothing(case):
    check(case)


@pytest.mark.parametrize("name", TABLE)
@settings(short, max_examples=8)
@given(data=st.data())
def test_every_method_takes_part(name, data):
    check(data.draw(cases((name,))))


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: f"{case.method} {case.operations}"[:70])
def test_what_was_wrong_once(case):
    check(case)
