"""What rounding and the range of a dtype must not do to a step."""

import numpy as np
import pytest
from common import both_dtypes, every_case, use_level

import fastopt
from fastopt import reference
from fastopt.bench import errors
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


# ---- norms over all decades --------------------------------------------------------------------

DECADES = {"float64": [-300, -200, -160, -80, 0, 80, 150, 160, 200, 300],
           "float32": [-44, -40, -25, -12, 0, 15, 25, 37]}
ORDERS = [0.5, 1.0, 2.0, 3.0, 64.0, np.inf]
SHAPES = [(3, 5), (4,), ()]


def scaled_to(decade, dtype, seed=0):
    """Gradients of this size, the last one far smaller."""
    rng = np.random.default_rng(seed)
    with np.errstate(under="ignore"):
        return [np.asarray(np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape), dtype)
                           * np.dtype(dtype).type(10.0) ** np.dtype(dtype).type(decade), dtype) for shape in SHAPES]


def every_decade(function):
    return pytest.mark.parametrize(("dtype", "decade"), [
        (dtype, decade) for dtype, decades in DECADES.items() for decade in decades])(function)


def stepped(grads, **options):
    """What a step of SGD with lr 1 takes from parameters that are 0, and its record."""
    params = [np.zeros(grad.shape, grad.dtype) for grad in grads]
    optimizer = fastopt.SGD(params, lr=1.0)
    optimizer.set_stages(statistics=True)
    optimizer.step(grads, **options)
    return [-param for param in params], optimizer.last_step


def close(got, expected, dtype):
    """To rounding; what is below the normal numbers may be 0."""
    least = float(np.finfo(dtype).tiny)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6 if dtype == "float32" else 1e-12, atol=2 * least)


@every_decade
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("share", [0.5, 1e-6, 2.0, "1"])
@pytest.mark.parametrize("policy", ["propagate", "raise"])
def test_the_stage_clips_as_the_function(dtype, decade, order, share, policy):
    grads = scaled_to(decade, dtype)
    expected = [grad.copy() for grad in grads]
    norm = fastopt.get_total_norm(grads, order)
    most = 1.0 if share == "1" else share * norm
    assert 0 < most < np.inf
    assert fastopt.clip_grad_norm_(expected, most, order, eps=0.0) == norm
    got, record = stepped(grads, clip=fastopt.stages.GlobalNorm(most, order, eps=0.0), on_nonfinite=policy)
    close(got, expected, dtype)
    assert record.grad_norm == norm
    each = [grad.copy() for grad in grads]
    for grad in each:
        fastopt.clip_grad_norm_(grad, most, order, eps=0.0)
    got, _ = stepped(grads, clip=fastopt.stages.ParameterNorm(most, order, eps=0.0), on_nonfinite=policy)
    close(got, each, dtype)


def exact_norm(x):
    most = float(np.max(np.abs(x), initial=0.0))
    return most * float(np.sqrt(np.sum((np.asarray(x, "float64") / most) ** 2))) if most else 0.0


@every_decade
@pytest.mark.parametrize("weight", [0.0, 1.0, "as the gradient"])
def test_adaptive_clipping_over_all_decades(dtype, decade, weight):
    grads = scaled_to(decade, dtype)
    params = scaled_to(decade, dtype, seed=1) if weight == "as the gradient" else [
        np.full(grad.shape, weight, dtype) for grad in grads]
    clip = fastopt.stages.Adaptive(0.25, eps=1e-3)
    expected = []
    for grad, param in zip(grads, params, strict=True):
        out = np.array(grad, "float64").reshape(len(grad) if grad.ndim > 1 else 1, -1)
        for row, own in zip(out, param.reshape(len(out), -1), strict=True):
            most = 0.25 * max(exact_norm(own), 1e-3)
            if exact_norm(row) > most:
                row *= most / max(exact_norm(row), 1e-6)
        expected.append(out.reshape(grad.shape))
    optimizer = fastopt.SGD(params, lr=1.0, momentum=1.0)  # whose buffer is the gradient as it was clipped
    optimizer.step(grads, clip=clip)
    close([optimizer.state[i]["momentum_buffer"] for i in range(len(grads))], expected, dtype)


@every_decade
def test_statistics_over_all_decades(dtype, decade):
    grads = scaled_to(decade, dtype)
    params = scaled_to(decade, dtype, seed=1)
    expected = [exact_norm(np.concatenate([x.ravel() for x in arrays])) for arrays in (
        grads, [p - g for p, g in zip(params, grads, strict=True)])]
    optimizer = fastopt.SGD(params, lr=1.0)
    optimizer.set_stages(statistics=True)
    optimizer.step(grads)
    record = optimizer.last_step
    least = 20 * float(np.finfo(dtype).tiny)
    assert record.grad_norm == pytest.approx(expected[0], rel=2e-5, abs=least)
    assert record.update_norm == pytest.approx(expected[0], rel=2e-5, abs=least)
    assert record.param_norm == pytest.approx(expected[1], rel=2e-5, abs=least)
    assert record.grad_norms == pytest.approx([record.grad_norm], abs=0)


@pytest.mark.parametrize("kind", ["update", "param"])
@pytest.mark.parametrize(("large", "small"), [(1e200, 1.0), (1.0, 1e-200), (1e160, 1e-160), (1e154, 1e154)])
def test_statistics_of_large_and_small_blocks(kind, large, small):
    """Blocks whose squares are in range and blocks whose are not, joined."""
    values = np.concatenate([np.full(3000, large), np.full(9000, small), np.zeros(5000), np.full(3000, large)])
    params, grads = ([np.zeros(20000)], [values]) if kind == "update" else ([values], [np.zeros(20000)])
    optimizer = fastopt.SGD(params, lr=1.0)
    optimizer.set_stages(statistics=True)
    for threads in (1, 3):
        optimizer.num_threads = threads
        optimizer.step(grads)
        found = getattr(optimizer.last_step, f"{kind}_norm")
        assert found == pytest.approx(exact_norm(values), rel=1e-12)


WHOLE = {
    "Muon": lambda params: fastopt.Muon(params, lr=0.1, weight_decay=0.0),
    "Adafactor": lambda params: fastopt.Adafactor(params, lr=0.1),
    "MuonAdamW": lambda params: fastopt.MuonAdamW(params, muon={"weight_decay": 0.0}, adamw={"weight_decay": 0.0}),
}


@every_decade
@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("clip", [
    fastopt.stages.GlobalNorm(0.5), fastopt.stages.GlobalNorm(0.5, 64.0), fastopt.stages.ParameterNorm(0.5, 3.0),
    fastopt.stages.Adaptive(0.25), fastopt.stages.Value(0.5)], ids=str)
def test_whole_methods_clip_as_elementwise_ones_over_all_decades(dtype, decade, kind, clip):
    """SGD shows what the stage makes of the gradients: a step with those is the step with the stage."""
    grads = scaled_to(decade, dtype)[: 1 if kind == "Muon" else 3]
    ones = [np.ones(grad.shape, dtype) for grad in grads]
    shown = [one.copy() for one in ones]
    sgd = fastopt.SGD(shown, lr=1.0, momentum=1.0)
    sgd.step(grads, clip=clip)
    clipped = [sgd.state[i]["momentum_buffer"].copy() for i in range(len(grads))]
    got, expected = [one.copy() for one in ones], [one.copy() for one in ones]
    WHOLE[kind](expected).step(clipped)
    optimizer = WHOLE[kind](got)
    optimizer.set_stages(statistics=True)
    optimizer.step(grads, clip=clip)
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=3e-5 if dtype == "float32" else 1e-8)
    norm = exact_norm(np.concatenate([grad.ravel() for grad in grads]))
    assert exact_norm(np.array(optimizer.last_step.grad_norms)) == pytest.approx(norm, rel=1e-6, abs=0)


@pytest.mark.parametrize(("param", "grad", "size", "scale", "most"), [
    ("float32", "float32", 5e37, None, 1.0), ("float32", "float32", 5e37, 1e-30, 1.0),
    ("float32", "float32", 1e-30, 1e-38, None), ("float32", "float32", 1e30, 1e40, None),
    ("float32", "float32", 1e37, 1e39, 0.25), ("float32", "float64", 1e200, None, 1.0),
    ("float32", "float64", 1e200, 1e200, None), ("float32", "float64", 1e-200, 1e-200, 1e30),
    ("float64", "float64", 1e200, 1e-200, 1.0), ("float64", "float32", 5e37, 1e-300, 1.0),
    ("float32", "float64", 1e50, 1e-100, 100.0), ("float32", "float64", 1e42, None, 1e3)])
@pytest.mark.parametrize("stages", [{}, {"centralize": True}, {"cautious": "unscaled"}])
@pytest.mark.parametrize("coupled", [0.0, 0.125])
@pytest.mark.parametrize("kind", ["global", "parameter"])
def test_scale_and_clip_together(param, grad, size, scale, most, stages, coupled, kind):
    """Neither the scale, the ratio of the clip nor what is between them has to be in the range of the dtype."""
    grads = [np.array([[3.0, -4.0], [0.0, 0.0]], "float64") * size]
    grads = [g.astype(grad) for g in grads]
    params = [np.zeros((2, 2), param)]
    optimizer = fastopt.SGD(params, lr=1.0, momentum=1.0, weight_decay=coupled)
    optimizer.set_stages(**stages)
    clip = most if most is None or kind == "global" else fastopt.stages.ParameterNorm(most)
    optimizer.step(grads, clip=clip, grad_scale=scale)
    norm = 5 * size if scale is None else 5 * size / scale
    expected = np.array([[0.6, -0.8], [0.0, 0.0]]) * (norm if most is None else min(most, norm))
    if "centralize" in stages:
        expected[0] -= expected[0].mean()
    np.testing.assert_allclose(-params[0], expected, rtol=3e-6)


@both_dtypes
@pytest.mark.parametrize("given", ["float32", "float64"])
@pytest.mark.parametrize("clip", [None, 0.3, fastopt.stages.Value(0.3), fastopt.stages.ParameterNorm(0.2),
                                  fastopt.stages.Adaptive(0.01)], ids=str)
@pytest.mark.parametrize("scale", [None, 3.0, 1e38])
@pytest.mark.parametrize("method", ["Rprop", "Adafactor"])
def test_centralize_leaves_0_of_equal_elements(dtype, given, clip, scale, method):
    rng = np.random.default_rng(3)
    params = [np.ones((40, columns), dtype) for columns in (1, 3, 7, 33, 100)]
    grads = [np.repeat(rng.standard_normal((40, 1)), param.shape[1], axis=1).astype(given) for param in params]
    if scale == 1e38:
        grads = [grad * np.dtype(given).type(scale / 3) for grad in grads]
    optimizer = getattr(fastopt, method)(params)
    optimizer.set_stages(centralize=True)
    for _ in range(2):
        optimizer.step(grads, clip=clip, grad_scale=scale)
    for param in params:
        assert (param == 1).all()


@every_decade
@pytest.mark.parametrize("shape", [(4, 4), (3, 50), (60, 5)], ids=str)
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_first_step_of_muon_does_not_know_the_size_of_the_gradient(dtype, decade, shape, nesterov):
    limits = np.finfo(dtype)
    directions = np.random.default_rng(2).uniform(-1.0, 1.0, shape).astype(dtype)
    steps = []
    for size in (1.0, 10.0**decade):
        param = np.zeros(shape, dtype)
        fastopt.Muon([param], lr=1.0, eps=0.0, nesterov=nesterov, weight_decay=0.0).step(
            [directions * np.dtype(dtype).type(size)])
        steps.append(param)
    if 10.0**decade < limits.tiny / limits.eps:  # the momentum has lost digits, if there is one
        assert np.isfinite(steps[1]).all()
    else:
        np.testing.assert_allclose(steps[1], steps[0], atol=100 * limits.eps)


def test_muon_divides_by_eps_where_the_norm_is_less():
    steps = []
    for size in (1e-30, 1e-35):
        param = np.zeros((3, 3), "float32")
        fastopt.Muon([param], lr=1.0, weight_decay=0.0).step([np.eye(3, dtype="float32") * np.float32(size)])
        steps.append(param)
    np.testing.assert_allclose(steps[1], steps[0] * np.float32(1e-5), rtol=1e-4)


# ---- long runs ---------------------------------------------------------------------------------

COUNTS = [2**24, 2**31, 2**53, 2**62]


@every_case
@pytest.mark.parametrize("count", COUNTS, ids=lambda count: f"2^{count.bit_length() - 1}")
def test_steps_after_very_many(method, options, count):
    """The two steps before and after a count that a float32, an int32 or a double cannot tell from its neighbours."""
    rng = np.random.default_rng(4)
    param = rng.standard_normal(9)
    grads = rng.standard_normal((4, 9))
    optimizer, like, state = method.optimizer([param], **options), param.copy(), {}
    for step, grad in enumerate(grads, 1):
        if step == 2:
            optimizer.step_count = count - 2
        number = step if step == 1 else count - 3 + step
        optimizer.step([grad])
        method.reference(like, grad, state, number, **options)
        np.testing.assert_allclose(param, like, rtol=1e-12, atol=1e-14)
    assert optimizer.step_count == optimizer.state[0].get("step", count + 1) == count + 1


def test_a_million_steps():
    """float32 goes as far as float64, but for roundings that are all to one side."""
    params = [np.zeros(1, "float32"), np.zeros(1)]
    optimizers = [fastopt.Adam([param], lr=1e-6) for param in params]
    for optimizer, param in zip(optimizers, params, strict=True):
        grad = [np.ones(1, param.dtype)]
        for _ in range(200_000):
            optimizer.step(grad)
        optimizer.step_count = 999_999
        optimizer.step(grad)
        assert optimizer.step_count == 1_000_000
    assert params[1][0] == pytest.approx(-0.200001, rel=1e-6)
    assert params[0][0] == pytest.approx(params[1][0], rel=0.02)


@both_dtypes
@every_case
def test_dead_units(method, options, dtype):
    """After one gradient none: the moments pass through the subnormals to 0, and nothing becomes NaN."""
    param, like, state = np.ones(33, dtype), np.ones(33), {}
    optimizer = method.optimizer([param], **options)
    with np.errstate(all="ignore"):
        for step in range(1, 3001):
            grad = np.full(33, 1e-3 if step == 1 else 0.0, dtype)
            optimizer.step([grad])
            method.reference(like, grad.astype("float64"), state, step, **options)
    assert np.isfinite(param).all()
    exact = dtype == "float64"
    if ("square", "move") in method.optimizer.needs and not exact:
        return  # its steps stay as long as they were until the moments are 0, which is later in float64
    np.testing.assert_allclose(param, like, rtol=1e-12 if exact else 1e-3, atol=1e-12 if exact else 1e-3)


@every_case
def test_a_tiny_decay_does_not_vanish(method, options):
    """lr times decay is less than half a unit in the last place of float32."""
    decay = "lambd" if "lambd" in method.options else "weight_decay"
    if decay == "weight_decay" and not method.optimizer.decoupled(method.options | method.optimizer.fixed | options):
        return
    if method.sign_only:  # steps of one size: nothing spreads the roundings
        return
    options = {**options, "lr": 1e-4, decay: 1e-4}
    rng, size = np.random.default_rng(1), 2000
    params = [np.full(size, 0.9, dtype) for dtype in ("float32", "float64", "float64")]
    optimizers = [method.optimizer([param], **{**options, decay: with_decay})
                  for param, with_decay in zip(params, (1e-4, 1e-4, 0.0), strict=True)]
    for _ in range(1500):
        grad = rng.standard_normal(size).astype("float32")
        for optimizer, param in zip(optimizers, params, strict=True):
            optimizer.step([grad.astype(param.dtype)])
    moved, exact = (np.mean(param - params[2], dtype="float64") for param in params[:2])
    assert moved == pytest.approx(exact, rel=0.15)


def test_float32_is_as_close_to_float64_as_torch():
    """The table of docs/numbers.md, its first rows; and without torch, its first column."""
    for method, _, _, own, *others in errors.measured(counts=(10,)):
        assert own < 2, method.name
        for other in others:
            assert other is None or own <= 1.05 * other, method.name


def test_rounding_of_a_scalar_ends_no_step():
    for optimizer in (fastopt.NAdam([np.ones(2)], betas=(1 - 1e-12, 0.999), momentum_decay=1e6),
                      fastopt.ASGD([np.ones(2)], lr=1e3, lambd=1e-3, alpha=400)):
        for _ in range(3):
            optimizer.step([np.ones(2)])
        assert np.isfinite(optimizer.param_groups[0]["params"][0]).all()
