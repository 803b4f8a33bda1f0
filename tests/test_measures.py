"""What a plan sums ahead of a step, and the factors that parameters can have in one."""

import numpy as np
import pytest
from common import both_dtypes, copies, every_case, use_level

from fastopt import Adam, AdamW
from fastopt.kernels import simd, threads

SHAPES = [(3, 700), (2049,), (5,), (0,)]
FACTORS = np.array([0.5, 2.0, 1.0, 3.0])


class Run:
    """Some steps of an optimizer; then one that is begun, and not made."""

    def __init__(self, kind, options, dtype, steps=3):
        self.rng = np.random.default_rng(0)
        self.params = [self.rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
        self.optimizer = kind(self.params, **options)
        self.engine, self.plan = self.optimizer._engine, self.optimizer._plan
        for _ in range(steps):
            self.optimizer.step(self.gradients())

    def gradients(self):
        return [self.rng.standard_normal(param.shape).astype(param.dtype) for param in self.params]

    def answers(self, grads):
        method, found = self.engine.method, []
        for group, step, scalars in self.engine.begin(grads):
            if scalars:
                found.append((group.prepare, *self.engine.with_scalars(group.settings, step, scalars)))
            else:
                found.append((group.prepare, method.coefficients(group.settings, step), ()))
        if self.plan.unready:
            self.engine.give_states(self.plan.missing())
        return found

    def measure(self, grads, what, **more):
        return self.plan.during(lambda _: self.plan.measure(self.answers(grads), what, **more), None)

    def run(self, grads, factors=None):
        self.plan.during(lambda _: self.plan.run(self.answers(grads), factors=factors), None)

    def states(self):
        slots = self.engine.method.state_slots
        return [[arrays.get(slot) for slot in slots] for arrays in self.engine.arrays]


def summed(a, b):
    return [float(np.sum(x.astype("float64") * y.astype("float64"))) for x, y in zip(a, b, strict=True)]


def tolerance(dtype):
    return dict(rtol=1e-3, atol=1e-3) if dtype == "float32" else dict(rtol=1e-6, atol=1e-9)


@every_case
@both_dtypes
def test_a_rehearsal_says_what_a_step_does_and_changes_nothing(method, options, dtype):
    run = Run(method.optimizer, options, dtype)
    grads, before = run.gradients(), copies(run.params)
    states = [[None if array is None else array.copy() for array in arrays] for arrays in run.states()]
    slots = [k for k, array in enumerate(run.states()[0]) if array is not None]
    made = run.measure(grads, [("dot", "move", "move"), ("dot", "param", "param"), ("dot", "move", "param"),
                               ("absolute", "prepared")])
    after = [run.measure(grads, [("distance", f"before{k}", f"after{k}"), ("dot", f"after{k}", f"after{k}")])
             for k in slots]
    assert all(now.tobytes() == then.tobytes() for now, then in zip(run.params, before, strict=True))
    for own, saved in zip(run.states(), states, strict=True):
        assert all(array is None or array.tobytes() == then.tobytes() for array, then in zip(own, saved, strict=True))
    run.run(grads)
    moves = [then - now for then, now in zip(before, run.params, strict=True)]
    np.testing.assert_allclose(made[:, 0], summed(moves, moves), **tolerance(dtype))
    np.testing.assert_allclose(made[:, 1], summed(before, before), rtol=1e-12)
    np.testing.assert_allclose(made[:, 2], summed(moves, before), **tolerance(dtype))
    for k, sums in zip(slots, after, strict=True):
        now, then = [arrays[k] for arrays in run.states()], [arrays[k] for arrays in states]
        changes = [a.astype("float64") - b.astype("float64") for a, b in zip(now, then, strict=True)]
        np.testing.assert_allclose(sums[:, 0], summed(changes, changes), rtol=1e-12)
        np.testing.assert_allclose(sums[:, 1], summed(now, now), rtol=1e-12)


@both_dtypes
def test_operands(dtype):
    run = Run(AdamW, {"weight_decay": 0.5, "lr": 0.1, "maximize": True}, dtype)
    grads = run.gradients()
    update, move, gradient, agreement = run.measure(grads, [
        ("dot", "update", "param"), ("dot", "move", "param"), ("dot", "gradient", "param"),
        ("agreement", "gradient", "param")]).T
    squares = np.array(summed(run.params, run.params))
    np.testing.assert_allclose(move - update, 0.05 * squares, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, -np.array(summed(grads, run.params)), rtol=1e-12)
    assert agreement.tolist() == [np.sum(-g * p > 0) for g, p in zip(grads, run.params, strict=True)]
    run = Run(Adam, {"weight_decay": 0.5, "maximize": True}, dtype)
    gradient, prepared = run.measure(grads, [("dot", "gradient", "gradient"), ("dot", "prepared", "prepared")]).T
    np.testing.assert_allclose(gradient, summed(grads, grads), rtol=1e-12)
    with_decay = [0.5 * p - g for g, p in zip(grads, run.params, strict=True)]
    np.testing.assert_allclose(prepared, summed(with_decay, with_decay), rtol=1e-5)
    ratio = run.measure(grads, [("ratio", "gradient", "after1")], constants=[(2.0, 0.0)])
    v = [0.999 * array[1] + 0.001 * h * h for array, h in zip(run.states(), with_decay, strict=True)]
    np.testing.assert_allclose(ratio[:, 0], [np.sum(g * g / (2 * x)) for g, x in zip(grads, v, strict=True)], rtol=1e-4)


def test_a_parameter_without_a_gradient_has_no_sums():
    run = Run(AdamW, {}, "float64")
    grads = [None, *run.gradients()[1:]]
    assert run.measure(grads, [("dot", "param", "param")])[0, 0] == 0


@every_case
@both_dtypes
def test_factors(method, options, dtype):
    grads = Run(method.optimizer, options, dtype).gradients()
    plain, ones, rated, scaled, given = (Run(method.optimizer, options, dtype) for _ in range(5))
    before = copies(plain.params)
    plain.run(grads)
    ones.run(grads, {"rate": np.ones(4), "gradient": np.ones(4), "decay": np.ones(4), "mask": np.ones(4)})
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ones.params, plain.params, strict=True))
    rated.run(grads, {"rate": FACTORS})
    for factor, start, now, then in zip(FACTORS, before, rated.params, plain.params, strict=True):
        np.testing.assert_allclose(start - now, factor * (start - then), **tolerance(dtype))
    scaled.run(grads, {"gradient": FACTORS})
    given.run([factor * grad for factor, grad in zip(FACTORS.astype(dtype), grads, strict=True)])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(scaled.params, given.params, strict=True))
    plain.run(grads)
    rated.run(grads)  # factors are of one step
    for a, b in zip(plain.states(), rated.states(), strict=True):
        assert method.name == "ASGD" or all(x is None or x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True)
                                            if not plain.engine.method.prepared(plain.engine.groups[0].settings)[1])


def test_a_factor_of_the_coupled_decay():
    grads = Run(Adam, {}, "float64").gradients()
    half, given = Run(Adam, {"weight_decay": 0.2}, "float64", 0), Run(Adam, {"weight_decay": 0.1}, "float64", 0)
    half.params[0][...] = given.params[0]
    half.run(grads, {"decay": np.full(4, 0.5)})
    given.run(grads)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(half.params, given.params, strict=True))


@both_dtypes
@pytest.mark.parametrize("level", simd.available())
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_and_factors_have_the_same_bits_everywhere(level, dtype, count, monkeypatch):
    grads = Run(AdamW, {}, dtype).gradients()
    what = [("dot", "move", "move"), ("distance", "before0", "after0"), ("absolute", "update"),
            ("ratio", "prepared", "after1")]

    def made():
        run = Run(AdamW, {}, dtype)
        sums = run.measure(grads, what, constants=[(1.0, 1e-8)])
        run.run(grads, {"rate": 1.0 / (1.0 + sums[:, 0]), "gradient": FACTORS})
        return sums.tobytes(), [param.tobytes() for param in run.params]

    use_level(monkeypatch, simd.available()[0])
    expected = made()
    use_level(monkeypatch, level)
    monkeypatch.setattr(threads, "resolve", lambda *_: count)
    monkeypatch.setattr(threads, "num_threads", count)
    assert made() == expected


@pytest.mark.parametrize(("what", "message"), [
    ([], "there must be 1 to 4 sums at a time, got 0"),
    ([("dot", "param", "param")] * 5, "there must be 1 to 4 sums at a time, got 5"),
    ([("sum", "param")], "a sum must be one of dot, distance, square, absolute, agreement, ratio, got 'sum'"),
    ([("dot", "param")], "dot needs 2 of the operands param, gradient, .*, got 'param'"),
    ([("dot", "param", "state")], "dot needs 2 of the operands param, gradient, .*, got 'param', 'state'"),
    ([("dot", "before2", "param")], "parameter 0 has no state array 2"),
    ([("dot", "param", "after3")], "parameter 0 has no state array 3"),
])
def test_sums_that_cannot_be_taken(what, message):
    run = Run(AdamW, {}, "float64")
    with pytest.raises(ValueError, match=message):
        run.measure(run.gradients(), what)
    run.optimizer.step(run.gradients())


@pytest.mark.parametrize(("factors", "message"), [
    ({"lr": np.ones(4)}, "factors may be gradient, decay, rate, mask, got 'lr'"),
    ({"rate": np.ones(3)}, r"factor 'rate' must have shape \(4,\), got \(3,\)"),
    ({"rate": 2.0}, r"factor 'rate' must have shape \(4,\), got \(\)"),
])
def test_factors_that_are_wrong(factors, message):
    run = Run(AdamW, {}, "float64")
    before = copies(run.params)
    with pytest.raises(ValueError, match=message):
        run.run(run.gradients(), factors)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(run.params, before, strict=True))
    run.optimizer.step(run.gradients())
