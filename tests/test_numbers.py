"""What rounding and the range of a dtype must not do to a step."""

import numpy as np
import pytest
from common import both_dtypes, use_level

import fastopt
from fastopt import reference
from fastopt.kernels import simd


@both_dtypes
@pytest.mark.parametrize("level", simd.LEVELS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"eps_mode": "inside"}], ids=str)
@pytest.mark.parametrize("stages", [{}, {"cautious": True}], ids=str)
def test_centered_rmsprop_bears_a_steady_gradient(dtype, level, options, stages, monkeypatch):
    """v - a^2 rounds below 0: 38 to 350 of these 1,000 weights became NaN."""
    use_level(monkeypatch, level)
    grad = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    param = np.zeros(1000, dtype)
    optimizer = fastopt.RMSprop([param], lr=1e-6, alpha=0.9, centered=True, **options)
    if stages and options.get("momentum"):
        optimizer.set_stages(**stages)
    for _ in range(600):
        optimizer.step([grad])
    assert np.isfinite(param).all()
    assert (np.sign(param) == -np.sign(grad)).all()


@both_dtypes
def test_centered_rmsprop_makes_no_step_of_squares_out_of_range(dtype):
    """As torch, which does not round a^2; gradients that are not finite still become NaN."""
    huge = np.sqrt(np.finfo(dtype).max) * 100
    grads = [np.array([huge, -huge, np.inf, np.nan, 1.0], dtype)] * 3
    param, like, state = np.ones(5, dtype), np.ones(5, dtype), {}
    optimizer = fastopt.RMSprop([param], lr=0.01, centered=True)
    with np.errstate(all="ignore"):
        for step, grad in enumerate(grads, 1):
            optimizer.step([grad])
            reference.rmsprop(like, grad, state, step, lr=0.01, centered=True)
    assert param[:2].tolist() == [1.0, 1.0]
    assert np.isnan(param[2:4]).all()
    np.testing.assert_allclose(param, like, rtol=1e-6)


def test_the_decay_of_asgd_does_not_vanish_in_float32():
    """1 - lambd lr is 1 in float32."""
    rng, shape = np.random.default_rng(1), 4000
    params = [np.ones(shape, "float32"), np.ones(shape, "float64")]
    without = np.ones(shape, "float64")
    optimizers = [fastopt.ASGD([param], lr=1e-4, lambd=1e-4) for param in params]
    plain = fastopt.ASGD([without], lr=1e-4, lambd=0.0)
    for _ in range(3000):
        grad = rng.standard_normal(shape).astype("float32")
        for optimizer, param in zip(optimizers, params, strict=True):
            optimizer.step([grad.astype(param.dtype)])
        plain.step([grad.astype("float64")])
    moved, exact = (np.mean(param - without, dtype="float64") for param in params)
    assert exact == pytest.approx(-3e-5, rel=0.05)
    assert moved == pytest.approx(exact, rel=0.05)


def test_asgd_refuses_a_rate_that_grows():
    with pytest.raises(ValueError, match=r"alpha must be .*at least 0.*-0\.5"):
        fastopt.ASGD([np.ones(2)], alpha=-0.5)
