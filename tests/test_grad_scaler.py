"""Loss scaling: torch's scales and steps, skipped steps touch nothing, calls out of turn, checkpoints."""

import copy
import itertools
import math
import pickle
from collections import namedtuple

import numpy as np
import pytest
from common import copies, snapshot

import fastopt
from fastopt import GradScaler

SETTINGS = {
    "defaults": {},
    "fast": {"init_scale": 1024.0, "growth_interval": 2},
    "no powers of two": {"init_scale": 1000.0, "growth_factor": 1.3, "backoff_factor": 0.7, "growth_interval": 3},
    "every step": {"init_scale": 3.0, "growth_interval": 1, "growth_factor": 1.1},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
SHAPES = ((3, 2), (5,), ())
BAD = (np.inf, -np.inf, np.nan)


def sequence(steps=40, dtype="float32", seed=0, shapes=SHAPES):
    """Gradients of each step before scaling; every fourth or so has one that is not finite."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        grads = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
        if rng.random() < 0.25:
            grads[step % len(shapes)].flat[0] = BAD[step % 3]
        yield grads


def scaled(grads, scaler):
    return [np.asarray(grad) for grad in scaler.scale(grads)]


# ---- against torch

def torch_scaler(torch, settings):
    scaler = torch.amp.GradScaler(device="cpu", **settings)
    scaler.scale(torch.ones(()))  # makes the scale
    return scaler


def torch_step(torch, scaler, optimizer, parameters, grads):
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = torch.tensor(grad)
    scaler.step(optimizer)


@every_setting
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scales_and_steps_are_those_of_torch(settings, dtype):
    torch = pytest.importorskip("torch")
    params = [np.ones(shape, dtype) for shape in SHAPES]
    twins = [torch.nn.Parameter(torch.tensor(param)) for param in params]
    opt, twin = fastopt.Adam(params, lr=0.1), torch.optim.Adam(twins, lr=0.1)
    scaler, other = GradScaler(**settings), torch_scaler(torch, settings)
    skipped = 0
    for grads in sequence(dtype=dtype):
        grads = scaled(grads, scaler)
        torch_step(torch, other, twin, twins, grads)
        scaler.step(opt, grads)
        skipped += opt.last_step.skipped
        scaler.update()
        other.update()
        assert scaler.state_dict() == other.state_dict()
        for param, parameter in zip(params, twins, strict=True):
            np.testing.assert_allclose(param, parameter.detach().numpy(), rtol=1e-5)
    assert 5 < skipped < 15
    assert opt.step_count == 40 - skipped


@every_setting
def test_clipping_between_is_that_of_torch(settings):
    torch = pytest.importorskip("torch")
    params = {str(i): np.ones(shape) for i, shape in enumerate(SHAPES)}
    twins = [torch.nn.Parameter(torch.tensor(param)) for param in params.values()]
    opt, twin = fastopt.SGD(params, lr=0.1, momentum=0.9), torch.optim.SGD(twins, lr=0.1, momentum=0.9)
    scaler, other = GradScaler(**settings), torch_scaler(torch, settings)
    for grads in sequence(dtype="float64"):
        grads = scaled(grads, scaler)
        for parameter, grad in zip(twins, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        other.unscale_(twin)
        torch.nn.utils.clip_grad_norm_(twins, 0.5)
        other.step(twin)
        other.update()
        grads = dict(zip(params, grads, strict=True))
        scaler.unscale_(opt, grads)
        fastopt.clip_grad_norm_(grads, 0.5)
        scaler.step(opt, grads)
        scaler.update()
        assert scaler.state_dict() == other.state_dict()
        for param, parameter in zip(params.values(), twins, strict=True):
            np.testing.assert_allclose(param, parameter.detach().numpy(), rtol=1e-6)


def test_one_skipped_step_of_several_optimizers_lowers_the_scale_as_in_torch():
    torch = pytest.importorskip("torch")
    settings = {"growth_interval": 2}
    params = [np.ones(2), np.ones(3)]
    opts = [fastopt.SGD(param) for param in params]
    twins = [torch.nn.Parameter(torch.tensor(param)) for param in params]
    others = [torch.optim.SGD([parameter]) for parameter in twins]
    scaler, other = GradScaler(**settings), torch_scaler(torch, settings)
    for bad in [(), (0,), (1,), (0, 1), (), (), (1,), (), ()]:
        for i, (opt, param) in enumerate(zip(opts, params, strict=True)):
            grad = np.full_like(param, np.inf if i in bad else 1.0)
            scaler.step(opt, grad)
            torch_step(torch, other, others[i], [twins[i]], [grad])
        scaler.update()
        other.update()
        assert scaler.state_dict() == other.state_dict()
    assert [opt.step_count for opt in opts] == [7, 6]


def test_updating_by_hand_is_that_of_torch():
    torch = pytest.importorskip("torch")
    scaler, other = GradScaler(growth_interval=3), torch_scaler(torch, {"growth_interval": 3})
    param, opt = np.ones(2), None
    parameter = torch.nn.Parameter(torch.tensor(param))
    opt, twin = fastopt.SGD(param), torch.optim.SGD([parameter])
    for new_scale in (None, None, 8.0, None, 0.1, None, None, None):
        scaler.step(opt, np.ones(2))
        torch_step(torch, other, twin, [parameter], [np.ones(2)])
        scaler.update(new_scale)
        other.update(new_scale)
        assert scaler.state_dict() == other.state_dict()
    scaler.update(4)  # needs no step
    assert scaler.get_scale() == 4.0


# ---- what a step does

@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("policy", ["propagate", "raise", "skip"])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_skipped_step_touches_nothing_whatever_the_optimizer_does_else(bad, policy, unscaled):
    params = [np.ones(3), np.ones((2, 2), "float32"), np.ones(2, complex)]
    opt = fastopt.AdamW(params)
    opt.set_stages(on_nonfinite=policy)
    scaler = GradScaler(init_scale=4.0)
    for step in range(3):
        grads = [np.ones_like(param) for param in params]
        if step != 1:
            grads[step].flat[-1] = complex(0, bad) if step == 2 else bad
        before = snapshot(opt, params)
        if unscaled:
            scaler.unscale_(opt, grads)
        assert scaler.step(opt, grads) is None
        assert (snapshot(opt, params) == before) == (step != 1)
        scaler.update()
    assert scaler.get_scale() == 1.0
    assert opt.step_count == 1


def test_gradients_are_divided_inside_the_step_and_not_written():
    param, grads = np.ones(4), np.full(4, 6.0)
    grads.flags.writeable = False
    scaler, opt = GradScaler(init_scale=3.0), fastopt.SGD(param, lr=0.25)
    scaler.step(opt, grads)
    np.testing.assert_array_equal(param, 0.5)
    np.testing.assert_array_equal(grads, 6.0)


def test_clipping_in_the_step_is_of_unscaled_gradients():
    param = np.zeros(2)
    opt, scaler = fastopt.SGD(param, lr=1.0), GradScaler(init_scale=1024.0)
    opt.bind_grads(1024 * np.array([3.0, 4.0]))
    scaler.step(opt, clip=fastopt.stages.GlobalNorm(1.0, eps=0.0))
    np.testing.assert_allclose(param, [-0.6, -0.8])
    assert opt.last_step.grad_norm == 5.0


def test_unscaling_is_in_place_for_every_structure():
    a, b, c = np.full(2, 8.0), np.full((), 4.0, "float32"), np.full(1, 2j, "complex64")
    opt = fastopt.SGD({"a": np.zeros(2), "b": {"c": np.zeros((), "float32"), "d": np.zeros(1), "e": np.zeros(1, "F")}})
    scaler = GradScaler(init_scale=4.0)
    scaler.unscale_(opt, {"a": a, "b": {"c": b, "d": None, "e": c}})
    assert (a.tolist(), b.tolist(), c.tolist()) == ([2.0, 2.0], 1.0, [0.5j])
    scaler.update()
    opt.bind_grads([a, b, None, c])
    scaler.unscale_(opt)
    assert (a.tolist(), b.tolist(), c.tolist()) == ([0.5, 0.5], 0.25, [0.125j])


def test_large_numbers_are_not_taken_for_infinities():
    grads = [np.full(2, 1.7e308), np.full(2, complex(1.7e308, 1.7e308)), np.full(2, 3e38, "float32")]
    opt, scaler = fastopt.SGD(copies(grads), lr=2.0**-1000), GradScaler(init_scale=2.0, growth_interval=1)
    for unscale in (False, True):
        if unscale:
            scaler.unscale_(opt, grads)
        scaler.step(opt, grads)
        scaler.update()
    assert scaler.get_scale() == 8.0
    assert opt.step_count == 2


WITHOUT_RULES = {
    "Muon": (lambda: fastopt.Muon(np.ones((3, 3))), lambda: np.eye(3)),
    "MuonAdamW": (lambda: fastopt.MuonAdamW({"a": np.ones((3, 3)), "b": np.ones(3)}),
                  lambda: {"a": np.eye(3), "b": np.ones(3)}),
    "Adafactor": (lambda: fastopt.Adafactor([np.ones((3, 3))]), lambda: [np.eye(3)]),
    "SparseAdam": (lambda: fastopt.SparseAdam(np.ones((3, 2))),
                   lambda: [fastopt.SparseRows([2, 0, 2], np.ones((3, 2)), (3, 2))]),
}


@pytest.mark.parametrize(("make", "gradients"), WITHOUT_RULES.values(), ids=WITHOUT_RULES)
def test_methods_that_are_not_elementwise(make, gradients):
    opt, twin = make(), make()
    scaler = GradScaler(init_scale=8.0)
    for step in range(4):
        grads = gradients()
        for array in arrays_of(grads):
            array *= scaler.get_scale()
            if step == 1:
                array.flat[0] = np.nan
        if type(opt) is fastopt.SparseAdam:
            scaler.unscale_(opt, grads)
        scaler.step(opt, grads)
        if step != 1:
            twin.step(gradients())
        scaler.update()
        for group, other in zip(opt.param_groups, twin.param_groups, strict=True):
            assert [param.tobytes() for param in group["params"]] == [param.tobytes() for param in other["params"]]
        assert opt.step_count == twin.step_count
    assert scaler.get_scale() == 4.0


def arrays_of(grads):
    grads = grads.values() if isinstance(grads, dict) else grads if isinstance(grads, list) else [grads]
    return [getattr(grad, "stored", grad) for grad in grads]


def test_sparse_gradients_are_unscaled_in_place():
    sparse = pytest.importorskip("scipy.sparse")
    for grad in (fastopt.SparseRows([2, 0, 2], np.full((3, 2), 4.0), (3, 2)),
                 sparse.csr_array(np.array([[4.0, 4.0], [0.0, 0.0], [8.0, 8.0]]))):
        param = np.zeros((3, 2))
        opt, scaler = fastopt.SGD(param, lr=1.0), GradScaler(init_scale=4.0)
        with pytest.raises(TypeError, match="sparse"):
            scaler.step(fastopt.SGD(param), [grad])
        scaler.unscale_(opt, [grad])
        scaler.step(opt, [grad])
        np.testing.assert_array_equal(param, [[-1, -1], [0, 0], [-2, -2]])


def test_not_enabled_it_is_not_there():
    param, twin = np.ones(2), np.ones(2)
    opt, scaler = fastopt.SGD(param), GradScaler(enabled=False)
    grads = [np.array([1.0, np.inf])]
    assert scaler.scale(grads) is grads
    scaler.unscale_(opt, grads)
    assert scaler.step(opt, closure=lambda: (7.0, grads)) == 7.0
    fastopt.SGD(twin).step(grads)
    np.testing.assert_array_equal(param, twin)
    scaler.update()
    scaler.update(3.0)
    scaler.load_state_dict({})
    assert (scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (1.0, {}, False)
    assert repr(scaler) == "GradScaler(enabled=False)"
    assert pickle.loads(pickle.dumps(scaler)).is_enabled() is False


# ---- scale()

Pair = namedtuple("Pair", "loss, other")


def test_scaling_returns_the_kind_that_it_is_given():
    scaler = GradScaler(init_scale=4.0)
    assert scaler.scale(2.5) == 10.0
    assert scaler.scale(2) == 8.0
    single = scaler.scale(np.float32(2.5))
    assert (type(single), single) == (np.float32, 10.0)
    array = scaler.scale(np.ones(2, "float32"))
    assert (array.dtype, array.tolist()) == (np.float32, [4.0, 4.0])
    assert scaler.scale([1.0, (2.0, [3.0])]) == [4.0, (8.0, [12.0])]
    assert scaler.scale({"a": 1.0, "b": [2.0]}) == {"a": 4.0, "b": [8.0]}
    assert scaler.scale(Pair(1.0, 2.0)) == Pair(4.0, 8.0)
    assert type(scaler.scale(Pair(1.0, 2.0))) is Pair
    assert list(scaler.scale(x for x in (1.0, 2.0))) == [4.0, 8.0]
    assert list(itertools.islice(scaler.scale(itertools.count()), 3)) == [0.0, 4.0, 8.0]
    with np.errstate(all="raise"):
        assert scaler.scale(np.float32(3e38)) == math.inf


def test_tensors_of_other_frameworks_are_scaled():
    torch = pytest.importorskip("torch")
    x = torch.ones(2, requires_grad=True)
    GradScaler(init_scale=4.0).scale((x * x).sum()).backward()
    assert x.grad.tolist() == [8.0, 8.0]


@pytest.mark.parametrize("outputs", ["abc", b"abc", None, {1.0}, object(), [1.0, None], memoryview(np.ones(2))])
def test_what_cannot_be_scaled(outputs):
    with pytest.raises(TypeError, match="outputs must be numbers or arrays, or lists, .* got"):
        GradScaler().scale(outputs)


# ---- out of turn

def ready():
    opt, other = fastopt.SGD(np.ones(2)), fastopt.SGD(np.ones(2))
    return GradScaler(), opt, other, np.ones(2)


def unscale_twice(scaler, opt, grad):
    scaler.unscale_(opt, grad)
    scaler.unscale_(opt, grad)


def unscale_after_step(scaler, opt, grad):
    scaler.step(opt, grad)
    scaler.unscale_(opt, grad)


def step_twice(scaler, opt, grad):
    scaler.step(opt, grad)
    scaler.step(opt, grad)


def step_twice_after_unscaling(scaler, opt, grad):
    scaler.unscale_(opt, grad)
    step_twice(scaler, opt, grad)


def pickled_between(scaler, opt, grad):
    scaler.unscale_(opt, grad)
    pickle.dumps(scaler)


OUT_OF_TURN = [
    (unscale_twice, r"unscale_\(\) was already called for this optimizer since the last update\(\)"),
    (unscale_after_step, r"unscale_\(\) came after a step\(\) of this optimizer"),
    (step_twice, r"step\(\) came after a step\(\) of this optimizer"),
    (step_twice_after_unscaling, r"step\(\) came after a step\(\) of this optimizer"),
    (lambda scaler, opt, grad: scaler.update(), r"update\(\) needs a step\(\) or unscale_\(\) since"),
    (pickled_between, "copied and pickled only between iterations"),
    (lambda scaler, opt, grad: scaler.step(opt, closure=lambda: 1.0), "a closure cannot be used"),
    (lambda scaler, opt, grad: scaler.step(opt, lambda: 1.0), "a closure cannot be used"),
    (lambda scaler, opt, grad: scaler.step(opt, grad, lambda: 1.0), "a closure cannot be used"),
]


@pytest.mark.parametrize(("calls", "message"), OUT_OF_TURN)
def test_calls_out_of_turn(calls, message):
    scaler, opt, other, grad = ready()
    with pytest.raises(RuntimeError, match=message):
        calls(scaler, opt, grad)
    scaler.step(other, grad)  # other optimizers have turns of their own
    scaler.update()
    scaler.unscale_(opt, grad)
    scaler.step(opt, grad)
    scaler.update()


def test_a_step_that_raised_can_be_made_again():
    param = np.ones(2)
    opt, scaler = fastopt.SGD(param, lr=1.0), GradScaler(init_scale=2.0)
    for wrong in (np.ones(3), [np.ones(2), np.ones(2)], None):
        with pytest.raises(ValueError):
            scaler.step(opt, wrong)
    with pytest.raises(ValueError, match="gradient 0 is read-only"):
        fixed = np.ones(2)
        fixed.flags.writeable = False
        scaler.unscale_(opt, fixed)
    with pytest.raises(ValueError, match=r"unscale_\(\) needs grads"):
        scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match="needs a step"):
        scaler.update()
    np.testing.assert_array_equal(param, 1.0)
    scaler.step(opt, np.ones(2))
    np.testing.assert_array_equal(param, 0.5)


def test_bad_gradients_are_not_unscaled():
    first = np.ones(2)
    scaler, opt, *_ = ready()
    for bad in (np.ones(2, "float16"), np.ones((2, 2)).T[:1], "abc"):
        with pytest.raises((TypeError, ValueError), match="gradient 'b'"):
            scaler.unscale_(opt, {"a": first, "b": bad})
    np.testing.assert_array_equal(first, 1.0)
    scaler.unscale_(opt, first)


# ---- settings and the range of the scale

def test_settings():
    scaler = GradScaler()
    assert scaler.is_enabled()
    assert (scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(),
            scaler.get_growth_interval()) == (65536.0, 2.0, 0.5, 2000)
    scaler.set_growth_factor(3)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(7)
    assert scaler.state_dict() == {"scale": 65536.0, "growth_factor": 3.0, "backoff_factor": 0.25,
                                   "growth_interval": 7, "_growth_tracker": 0}
    assert repr(scaler) == ("GradScaler(scale=65536.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=7, "
                            "growth_tracker=0)")


def iterate(scaler, grad=1.0, count=1):
    opt = fastopt.SGD(np.ones(1))
    for _ in range(count):
        scaler.step(opt, np.full(1, grad))
        scaler.update()


def test_the_scale_stays_within_what_float32_can_invert():
    scaler = GradScaler(init_scale=2.0**120, growth_interval=1)
    iterate(scaler, count=20)
    assert scaler.get_scale() == 2.0**126
    scaler = GradScaler(init_scale=2.0**-120)
    iterate(scaler, np.nan, count=20)
    assert scaler.get_scale() == 2.0**-126


def test_a_shorter_interval_takes_effect():
    scaler = GradScaler(init_scale=1.0, growth_interval=100)
    iterate(scaler, count=10)
    scaler.set_growth_interval(5)
    iterate(scaler)
    assert scaler.get_scale() == 2.0


NAN = math.nan
BAD_SETTINGS = [
    ("init_scale", "1", TypeError, "must be a number"),
    ("init_scale", 0.0, ValueError, r"must be from 2\^-126 to 2\^126, got 0.0"),
    ("init_scale", -1.0, ValueError, "must be from"),
    ("init_scale", 1e300, ValueError, "must be from"),
    ("init_scale", math.inf, ValueError, "must be finite"),
    ("growth_factor", 1.0, ValueError, "must be above 1, got 1.0"),
    ("growth_factor", NAN, ValueError, "must be finite"),
    ("growth_factor", None, TypeError, "must be a number"),
    ("backoff_factor", 1.0, ValueError, "must be above 0 and below 1, got 1.0"),
    ("backoff_factor", 0, ValueError, "must be above 0 and below 1, got 0"),
    ("growth_interval", 0, ValueError, "must be a whole number of at least 1, got 0"),
    ("growth_interval", 2.5, ValueError, "must be a whole number"),
    ("enabled", 1, TypeError, "must be True or False, got 1"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_SETTINGS)
def test_bad_settings(name, value, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        GradScaler(**{name: value})
    scaler = GradScaler()
    before = scaler.state_dict()
    if hasattr(scaler, f"set_{name}"):
        with pytest.raises(error, match=message):
            getattr(scaler, f"set_{name}")(value)
    if name == "init_scale":
        with pytest.raises(error, match=f"new_scale {message}"):
            scaler.update(value)
    key = "scale" if name == "init_scale" else name
    if key in before:
        with pytest.raises(error, match=f"{key} {message}"):
            scaler.load_state_dict({**before, "_growth_tracker": 5, key: value})
    assert scaler.state_dict() == before


# ---- checkpoints and copies

BAD_STATES = [
    ({}, ValueError, "state_dict must have the keys scale, .*; got none"),
    (None, TypeError, "state_dict must be a dict, got NoneType"),
    ({"scale": 2.0}, ValueError, "must have the keys scale, growth_factor, .*; got scale"),
    ({**GradScaler().state_dict(), "more": 1}, ValueError, "got .*, more"),
    ({**GradScaler().state_dict(), "_growth_tracker": -1}, ValueError, "_growth_tracker must be a whole number"),
]


@pytest.mark.parametrize(("state", "error", "message"), BAD_STATES)
def test_a_state_that_does_not_fit_changes_nothing(state, error, message):
    scaler = GradScaler(init_scale=8.0)
    before = scaler.state_dict()
    with pytest.raises(error, match=message):
        scaler.load_state_dict(state)
    assert scaler.state_dict() == before


WAYS = {
    "state_dict": lambda scaler: load(GradScaler(), scaler.state_dict()),
    "pickle": lambda scaler: pickle.loads(pickle.dumps(scaler)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def load(scaler, state):
    scaler.load_state_dict(state)
    return scaler


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@every_setting
def test_a_copy_goes_on_alone(way, settings):
    scaler = GradScaler(**settings)
    iterate(scaler, count=4)
    other = way(scaler)
    assert other.state_dict() == scaler.state_dict()
    before = other.state_dict()
    iterate(scaler, np.inf)
    assert other.state_dict() == before
    iterate(other, np.inf)
    assert other.state_dict() == scaler.state_dict()
    scaler.step(fastopt.SGD(np.ones(1)), np.ones(1))
    with pytest.raises(RuntimeError, match="needs a step"):
        way(other).update()
    with pytest.raises(RuntimeError, match="needs a step"):
        other.update()


@every_setting
def test_checkpoints_go_to_torch_and_back(settings):
    torch = pytest.importorskip("torch")
    scaler = GradScaler(**settings)
    iterate(scaler, count=4)
    other = torch_scaler(torch, {})
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    assert load(GradScaler(), other.state_dict()).state_dict() == scaler.state_dict()


# ---- short floats, arrays as numbers, skipped steps

def test_a_loss_of_16_bits_does_not_overflow():
    scaler = GradScaler()
    loss = scaler.scale(np.float16(1.5))
    assert (loss, loss.dtype) == (98304.0, np.float32)
    for given in (np.full(2, 1.5, "f2"), np.array(1.5, "f2"), [np.float16(1.5)], {"a": np.float16(1.5)},
                  (np.float16(1.5),), iter([np.float16(1.5)])):
        found = scaler.scale(given)
        found = list(found.values()) if isinstance(found, dict) else list(found) if np.ndim(found) == 0 and not \
            isinstance(found, (np.generic, np.ndarray)) else found
        assert np.asarray(found).dtype == np.float32 and (np.asarray(found) == 98304.0).all()
    assert scaler.scale(np.ones(2)).dtype == np.float64
    assert scaler.scale(np.ones(2, "F")).dtype == np.complex64
    assert scaler.scale(np.full(2, 100, "i1")).tolist() == [6553600.0] * 2
    with pytest.raises(TypeError, match="outputs must be numbers or arrays"):
        scaler.scale(np.zeros(2, "V2"))


def test_a_tensor_of_16_bits_does_not_overflow():
    torch = pytest.importorskip("torch")
    other = torch_scaler(torch, {})
    for dtype in (torch.float16, torch.bfloat16):
        mine, theirs = (scaler.scale(torch.tensor(1.5, dtype=dtype)) for scaler in (GradScaler(), other))
        assert (mine.item(), mine.dtype) == (theirs.item(), theirs.dtype) == (98304.0, torch.float32)
        x = torch.ones(2, dtype=dtype, requires_grad=True)
        GradScaler(init_scale=4.0).scale(x * x).sum().backward()
        assert x.grad.tolist() == [8.0, 8.0]


@pytest.mark.parametrize("key", list(GradScaler().state_dict()))
def test_every_entry_of_a_state_is_needed_and_judged(key):
    scaler = GradScaler(init_scale=8.0)
    before, state = scaler.state_dict(), {**GradScaler().state_dict(), "_growth_tracker": 5}
    refused = [{name: value for name, value in state.items() if name != key}]
    for wrong in (NAN, math.inf, -math.inf, -1, 10**400, "1", None, [], True, np.ones(2), 1j, b"1",
                  *(() if key == "_growth_tracker" else (0,)), *((2.5,) if "_" in key and "factor" not in key else ())):
        refused.append({**state, key: wrong})
    for bad in refused:
        with pytest.raises((TypeError, ValueError), match=key):
            scaler.load_state_dict(bad)
        assert scaler.state_dict() == before
    scaler.load_state_dict({**state, key: np.array([state[key]])})
    assert scaler.state_dict() == state


def test_a_step_left_out_after_unscaling_was_tried():
    opt, scaler = fastopt.SGD(np.ones(2)), GradScaler()
    tried = opt._tried()
    scaler.unscale_(opt, np.full(2, np.inf))
    scaler.step(opt, np.full(2, np.inf))
    assert opt._tried() == tried + 1 and opt.step_count == 0
