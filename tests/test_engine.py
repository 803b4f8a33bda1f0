"""The engine: groups of several methods in one step."""

import pytest
from common import ELEMENTWISE, copies, inputs

from fastopt import Adam, Muon
from fastopt.kernels import threads
from fastopt.optimizers.engine import Engine

METHODS = [method for method in ELEMENTWISE if not method.optimizer.scalar_slots]


def mixed(params, methods):
    """An engine that steps parameter i by method i modulo their number; and one optimizer for each method."""
    class Several(methods[0].optimizer):
        rule = None

    engine, groups, twins = Engine(Several), [], []
    for k, method in enumerate(methods):
        positions = range(k, len(params), len(methods))
        own = [params[i].copy() for i in positions]
        twins.append(method.optimizer(own, lr=method.lr))
        groups.append((method.optimizer, dict(twins[-1].param_groups[0], params=None), positions))
    engine.add_groups(params, [None] * len(params), groups)
    return engine, twins


@pytest.mark.parametrize("num_threads", [1, 2])
def test_one_plan_steps_parameters_of_different_methods(num_threads, monkeypatch):
    monkeypatch.setattr(threads, "PER_THREAD", 100)
    params, rows = inputs(5, shapes=[(k, 31) for k in range(2 * len(METHODS) + 3)])
    engine, twins = mixed(params, METHODS)
    engine.num_threads = num_threads
    for row in rows:
        engine.plan.during(engine.make, row)
        for k, twin in enumerate(twins):
            twin.step(row[k :: len(METHODS)])
    for k, (group, twin) in enumerate(zip(engine.groups, twins, strict=True)):
        for i, position in enumerate(group.positions):
            assert params[position].tobytes() == twin._plan.params[i].tobytes(), METHODS[k].name
            assert all(array.tobytes() == twin._engine.arrays[i][name].tobytes()
                       for name, array in engine.arrays[position].items())
    assert engine.steps == 5


def test_a_step_that_fails_in_one_method_changes_none():
    params, rows = inputs(1, shapes=[(3, 4)] * 4, skip=False)
    engine, _ = mixed(params, [next(m for m in METHODS if m.optimizer is Adam), METHODS[0]])
    before = copies(params)
    engine.groups[1].options["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be at least 0"):
        engine.plan.during(engine.make, rows[0])
    assert all(param.tobytes() == old.tobytes() for param, old in zip(params, before, strict=True))
    assert engine.steps == 0 and not any(engine.arrays)
    assert Muon.whole and not Adam.whole
