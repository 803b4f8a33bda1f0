"""Methods that step by norms of whole parameters: LAMB, LARS and NovoGrad."""

import numpy as np
import pytest
from common import both_dtypes, inputs, name_of

import fastopt
from fastopt.stages import GlobalNorm, Value
from fastopt.table import METHODS

LAYERWISE = [method for method in METHODS if method.layerwise]
every_layerwise = pytest.mark.parametrize("method", LAYERWISE, ids=lambda method: method.name)


def norm(array):
    return np.sqrt(np.sum(np.square(array, dtype="float64")))


@both_dtypes
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("size", [1, 511, 5000])
def test_a_step_of_lamb_is_as_long_as_its_parameter(dtype, weight_decay, size):
    (param,), rows = inputs(5, dtype, shapes=((size,),), skip=False)
    optimizer = fastopt.LAMB(param, lr=0.01, weight_decay=weight_decay)
    for row in rows:
        before = param.copy()
        optimizer.step(row)
        np.testing.assert_allclose(norm(param.astype("float64") - before), 0.01 * norm(before),
                                   rtol=1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_lars_and_novograd_do_not_see_the_size_of_gradients(scale):
    (param,), rows = inputs(6, "float32", shapes=((700,),), skip=False)
    for method in (fastopt.LARS, fastopt.NovoGrad):
        one, two = param.copy(), param.copy()
        plain, scaled = method(one, eps=0.0), method(two, eps=0.0)
        for row in rows:
            plain.step([row[0]])
            scaled.step([(row[0].astype("float64") * scale).astype("float32")])
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@every_layerwise
@both_dtypes
def test_norms_of_zero(method, dtype):
    for param in (np.zeros(5, dtype), np.zeros(0, dtype), np.ones(3, dtype)):
        before = param.copy()
        optimizer = method.optimizer(param)
        optimizer.step(np.zeros_like(param))
        np.testing.assert_array_equal(param, before)
        optimizer.step(np.ones_like(param))
        assert np.isfinite(param).all() and (param != before).all()


@every_layerwise
def test_parameters_do_not_see_each_other(method):
    """Not in one step, of one cohort, nor where they are at different steps."""
    params, rows = inputs(8)
    twins = [param.copy() for param in params]
    together, apart = method.optimizer(params), [method.optimizer(twin) for twin in twins]
    for row in rows:
        together.step(row)
        for optimizer, grad in zip(apart, row, strict=True):
            if grad is not None:
                optimizer.step(grad)
    assert [param.tobytes() for param in params] == [twin.tobytes() for twin in twins]


def test_numbers_of_parameters_make_no_cohorts():
    """Each would be looked for among all others."""
    params = [np.full(2, k + 1.0) for k in range(100)]
    optimizer = fastopt.NovoGrad(params)
    optimizer.step([param.copy() for param in params])
    assert len({state["exp_avg_sq"] for state in optimizer.state.values()}) == 100
    plan = optimizer._engine.plan
    cohorts = plan.during(lambda grads: plan.begin(grads), [param.copy() for param in params])
    assert cohorts == [(0, 2, ())]


def test_a_number_of_a_parameter_is_state():
    param = np.array([3.0, 4.0])
    optimizer = fastopt.NovoGrad(param, betas=(0.9, 0.5))
    optimizer.step(np.array([0.6, 0.8]))
    assert optimizer.state[0]["exp_avg_sq"] == pytest.approx(1.0)
    optimizer.step(np.array([0.0, 3.0]))
    assert optimizer.state[0]["exp_avg_sq"] == pytest.approx(5.0)
    optimizer.state[0]["exp_avg_sq"] = 7.0
    saved = optimizer.state_dict()["state"][0]
    assert saved["exp_avg_sq"].dtype == "float64" and saved["exp_avg_sq"] == 7.0
    optimizer.reset_state()
    assert not optimizer.state


def test_a_step_that_raises_leaves_the_numbers():
    params = [np.ones(2), np.ones(3)]
    optimizer = fastopt.NovoGrad(params)
    optimizer.step([np.ones(2), np.ones(3)])
    before = [state["exp_avg_sq"] for state in optimizer.state.values()]
    with pytest.raises(ValueError, match="must have shape"):
        optimizer.step([np.full(2, 9.0), np.ones(4)])
    optimizer.step([None, np.ones(3)])
    assert optimizer.state[0]["exp_avg_sq"] == before[0]


@pytest.mark.parametrize("clip", [0.1, GlobalNorm(0.1), Value(0.01)], ids=str)
def test_what_clips_comes_before_the_norms(clip):
    (param,), rows = inputs(4, shapes=((900,),), skip=False)
    twin = param.copy()
    optimizer, by_hand = fastopt.NovoGrad(param, eps=1.0), fastopt.NovoGrad(twin, eps=1.0)
    optimizer.set_stages(clip=clip)
    for (grad,) in rows:
        optimizer.step(grad)
        if isinstance(clip, Value):
            by_hand.step(np.clip(grad, -0.01, 0.01))
        else:
            by_hand.step(grad * (0.1 / (norm(grad) + 1e-6)))
    np.testing.assert_allclose(param, twin, rtol=1e-12)


def test_a_parameter_without_decay_has_none_in_its_norm():
    params, rows = inputs(4, shapes=((40, 3), (40,)), skip=False)
    twins = [param.copy() for param in params]
    optimizer = fastopt.LARS(params, weight_decay=0.5)
    optimizer.set_stages(no_decay=1)
    matrix, vector = fastopt.LARS(twins[0], weight_decay=0.5), fastopt.LARS(twins[1], weight_decay=0.0)
    for row in rows:
        optimizer.step(row)
        matrix.step(row[0])
        vector.step(row[1])
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param, twin)


def test_cautious_masks_the_update_that_the_norm_is_of():
    (param,), rows = inputs(5, shapes=((300,),), skip=False)
    optimizer = fastopt.LAMB(param, lr=0.1, weight_decay=0.1)
    optimizer.set_stages(cautious="unscaled")
    m = v = np.zeros(300)
    for t, (grad,) in enumerate(rows, 1):
        q = param.copy()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        rate = 0.1 * norm(q) / norm(u + 0.1 * q)
        optimizer.step(grad)
        np.testing.assert_allclose(param, q - rate * (u * (u * grad > 0) + 0.1 * q), rtol=1e-11)


@pytest.mark.parametrize("method", [method for method in METHODS if method.optimizer.scalar_slots], ids=name_of)
def test_a_state_after_a_gradient_that_was_not_finite_loads(method):
    optimizer, other = method.optimizer([np.ones(2)]), method.optimizer([np.ones(2)])
    optimizer.step([np.array([np.nan, 1.0])])
    other.load_state_dict(optimizer.state_dict())
    assert repr(other.state) == repr(optimizer.state)
