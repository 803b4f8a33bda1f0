"""Muon and MuonAdamW: parity, checkpoints, errors, copies, memory, and training."""

import copy
import pickle
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from common import copies, name_of, reference_steps, snapshot

import fastopt
from fastopt import Muon, MuonAdamW, demo, lr_scheduler, reference
from fastopt.table import METHODS

METHOD = next(method for method in METHODS if method.optimizer is Muon)
SHAPES = ((8, 8), (6, 9), (9, 6), (5, 40), (40, 5), (1, 7), (7, 1), (1, 1))
every_variant = pytest.mark.parametrize("options", METHOD.variants, ids=name_of)


def matrices(steps, dtype="float64", shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    params = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return params, [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(steps)]


def model(dtype="float64", seed=0):
    """Parameters of every kind, and a function that makes gradients."""
    rng = np.random.default_rng(seed)
    shapes = {"embedding": (9, 4), "layer.weight": (4, 6), "layer.bias": (6,), "scale": (), "kernel": (2, 3, 2),
              "head.weight": (6, 3)}
    return ({name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()},
            lambda: {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()})


# ---- parity

@every_variant
def test_agrees_with_the_reference_in_float64(options):
    params, grads = matrices(50)
    for step, row in enumerate(grads):
        row[step % len(row)] = None
    ours = copies(params)
    optimizer = Muon(ours, lr=0.02, **options)
    for row in grads:
        optimizer.step(row)
    reference_steps(METHOD, params, grads, lr=0.02, **options)
    for param, expected in zip(ours, params, strict=True):
        np.testing.assert_allclose(param, expected, rtol=1e-12, atol=1e-12)


@every_variant
def test_float32_is_the_float64_result_rounded(options):
    params, grads = matrices(20, "float32")
    ours = copies(params)
    optimizer = Muon(ours, lr=0.02, **options)
    for row in grads:
        optimizer.step(row)
    doubles = [param.astype(float) for param in params]
    reference_steps(METHOD, doubles, grads, lr=0.02, **options)
    for param, expected in zip(ours, doubles, strict=True):
        np.testing.assert_allclose(param, expected, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 2e-3)])
@pytest.mark.parametrize("spread", [1, 30])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_the_iteration_among_squares_is_as_accurate(dtype, tolerance, spread, steps):
    """Wide matrices, singular values from 1 down to far below the precision, and more steps than one run holds."""
    rng = np.random.default_rng(1)
    left, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    right, _ = np.linalg.qr(rng.standard_normal((200, 40)))
    grad = (left * 10.0 ** -np.linspace(0, spread, 40)) @ right.T
    param, expected = np.zeros((40, 200), dtype), np.zeros((40, 200))
    options = dict(lr=1.0, momentum=0.0, ns_steps=steps)
    Muon(param, **options).step(grad)
    reference.muon(expected, grad, {}, 1, **options)
    np.testing.assert_allclose(param, expected, atol=tolerance)
    assert np.linalg.norm(param - expected, 2) < 20 * tolerance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(30, 30), (20, 100), (100, 20)])
@pytest.mark.parametrize("rank", [1, 20])
def test_many_steps_stay_bounded(dtype, shape, rank):
    rng = np.random.default_rng(2)
    param = np.zeros(shape, dtype)
    grad = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    Muon(param, lr=1.0, ns_steps=99, weight_decay=0.0).step(grad)
    r = max(1, shape[0] / shape[1]) ** 0.5
    values = np.linalg.svd(param / r, compute_uv=False)
    assert values.max() < 1.3 and (values[:rank] > 0.6).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_matrices(shape):
    optimizer = MuonAdamW([np.ones(shape), np.ones((2, 2))])
    optimizer.step([np.ones(shape), np.ones((2, 2))])
    assert len(optimizer.state) == 2


def newton_schulz_in_torch(torch, update, coefficients, eps, steps):
    a, b, c = coefficients
    x = update / update.norm().clamp(min=eps)
    x = x.T if update.shape[0] > update.shape[1] else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 7}],
                         ids=name_of)
def test_agrees_with_torch_s_formula_in_float64(options):
    torch = pytest.importorskip("torch")
    params, grads = matrices(50)
    hyper = METHOD.options | options | {"lr": 0.02}
    ours, theirs = copies(params), [torch.tensor(param) for param in params]
    buffers = [torch.zeros_like(tensor) for tensor in theirs]
    optimizer = Muon(ours, **hyper)
    for row in grads:
        optimizer.step(row)
        for tensor, buffer, array in zip(theirs, buffers, row, strict=True):
            grad = torch.tensor(array)
            buffer.lerp_(grad, 1 - hyper["momentum"])
            update = grad.lerp(buffer, hyper["momentum"]) if hyper["nesterov"] else buffer
            update = newton_schulz_in_torch(torch, update, hyper["ns_coefficients"], hyper["eps"], hyper["ns_steps"])
            rows, columns = tensor.shape
            ratio = 0.2 * max(rows, columns) ** 0.5 if hyper["adjust_lr_fn"] else max(1, rows / columns) ** 0.5
            tensor.mul_(1 - hyper["lr"] * hyper["weight_decay"]).sub_(update, alpha=hyper["lr"] * ratio)
    for param, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(param, tensor.numpy(), rtol=1e-11, atol=1e-11)


def torch_and_ours(torch, params, **options):
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    return tensors, torch.optim.Muon(tensors, **options), Muon(params, **options)


def both_step(torch, tensors, their, mine, row):
    for tensor, grad in zip(tensors, row, strict=True):
        tensor.grad = torch.tensor(grad)
    their.step()
    mine.step(row)


def torch_with_muon():
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    return torch


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"},
                                     {"weight_decay": 0.5, "momentum": 0.5, "ns_steps": 4}], ids=name_of)
def test_is_torch_s_up_to_bfloat16(options):
    torch = torch_with_muon()
    params, grads = matrices(1, "float32", shapes=((16, 16), (12, 30), (30, 12)))
    before = copies(params)
    tensors, their, mine = torch_and_ours(torch, params, lr=0.1, **options)
    both_step(torch, tensors, their, mine, grads[0])
    for param, tensor, start in zip(params, tensors, before, strict=True):
        moved = np.linalg.norm(param - start)
        assert np.linalg.norm(param - tensor.detach().numpy()) < 0.03 * moved


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_checkpoints_go_both_ways(dtype):
    torch = torch_with_muon()
    shapes = ((6, 4), (3, 5))
    params, grads = matrices(9, dtype, shapes)
    tensors, their, mine = torch_and_ours(torch, params, lr=0.03, momentum=0.9)
    for row in grads[:6]:
        both_step(torch, tensors, their, mine, row)
    for position in (0, 1):
        np.testing.assert_allclose(mine.state[position]["momentum_buffer"],
                                   their.state[tensors[position]]["momentum_buffer"].numpy(), rtol=1e-5, atol=1e-7)
    theirs, ours = copy.deepcopy(their.state_dict()), copy.deepcopy(mine.state_dict())
    assert set(ours["state"][0]) == set(theirs["state"][0]) == {"momentum_buffer"}
    assert set(theirs["param_groups"][0]) <= set(ours["param_groups"][0])
    # each goes on from the checkpoint of the other
    tensors, their, mine = torch_and_ours(torch, copies(params))
    mine.load_state_dict(theirs)
    ours["state"] = {position: {name: torch.tensor(array) for name, array in entries.items()}
                     for position, entries in ours["state"].items()}
    their.load_state_dict(ours)
    assert mine.param_groups[0]["lr"] == their.param_groups[0]["lr"] == 0.03
    for row in grads[6:]:
        both_step(torch, tensors, their, mine, row)
    for position in (0, 1):
        np.testing.assert_allclose(mine.state[position]["momentum_buffer"],
                                   their.state[tensors[position]]["momentum_buffer"].numpy(), rtol=1e-5, atol=1e-6)


# ---- properties

@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_the_other_dtype_are_converted_and_never_written(dtype):
    other = {"float32": "float64", "float64": "float32"}[dtype]
    params, grads = matrices(4, other)
    params = [param.astype(dtype) for param in params]
    twins, kept = copies(params), [copies(row) for row in grads]
    first, second = Muon(params), Muon(twins)
    for row in grads:
        for grad in row:
            grad.flags.writeable = False
        first.step(row)
        second.step([grad.astype(dtype) for grad in row])
    for param, twin in zip(params, twins, strict=True):
        assert param.tobytes() == twin.tobytes()
    assert all(np.array_equal(a, b) for row, before in zip(grads, kept, strict=True)
               for a, b in zip(row, before, strict=True))


@pytest.mark.parametrize("shape", [(300, 300), (100, 900), (900, 100)])
@pytest.mark.parametrize("options", [{}, {"ns_coefficients": (2.0, -1.5, -0.25)}], ids=name_of)
def test_a_step_after_the_first_allocates_nothing(shape, options):
    params, grads = matrices(2, "float32", (shape, (20, 30)))
    optimizer = Muon(params, **options)
    optimizer.step(grads[0])
    tracemalloc.start()
    try:
        optimizer.step(grads[1])
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        optimizer.step(grads[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 10_000


def test_parameters_share_the_working_memory():
    params, grads = matrices(1, "float64", ((50, 50), (40, 90), (10, 10), (90, 40)))
    optimizer = Muon(params)
    optimizer.step(grads[0])
    largest = max(part.size(shape, params[0].dtype) for shape, part in
                  ((param.shape, type(optimizer._engine.works[Muon].of(param))) for param in params))
    assert len(optimizer._engine.works[Muon].memory) == largest
    assert len(pickle.dumps(optimizer)) < 2.1 * sum(param.nbytes for param in params) + 5_000


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_zero_gradient_moves_nothing_and_nan_spreads_without_a_warning(bad):
    param = np.ones((3, 4))
    optimizer = Muon(param, weight_decay=0.0, eps=0.0)
    optimizer.step(np.zeros((3, 4)))
    np.testing.assert_array_equal(param, 1)
    other = np.ones((2, 2))
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        Muon([param, other]).step([np.full((3, 4), bad), np.ones((2, 2))])
    assert np.isnan(param).all() and np.isfinite(other).all()


def test_tiny_decay_does_not_vanish_in_float32():
    """It is a tenth of the distance of two float32: one element in ten must be rounded to the next."""
    rng = np.random.default_rng(0)
    param, grad = rng.uniform(1, 2, (100, 100)).astype("float32"), rng.standard_normal((100, 100))
    mean, twin = param.mean(dtype=float), param.copy()
    Muon(param, lr=0.01, weight_decay=1e-6).step(grad)
    Muon(twin, lr=0.01, weight_decay=0.0).step(grad)
    assert (twin - param.astype(float)).mean() == pytest.approx(1e-8 * mean, rel=0.15)


def test_groups_and_schedules():
    params, grads = matrices(6, shapes=((4, 4), (3, 6)))
    twins = copies(params)
    optimizer = Muon([{"params": [params[0]], "lr": lambda step: 0.1 / (1 + step)},
                      {"params": [params[1]], "momentum": 0.5}], lr=0.2)
    scheduler = lr_scheduler.ExponentialLR(Muon([np.ones((2, 2))], lr=1.0), gamma=0.5)
    assert scheduler.get_last_lr() == [1.0]
    states = [{}, {}]
    for step, row in enumerate(grads):
        optimizer.step(row)
        reference.muon(twins[0], row[0], states[0], step + 1, lr=0.1 / (1 + step))
        reference.muon(twins[1], row[1], states[1], step + 1, lr=0.2, momentum=0.5)
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(param, twin, rtol=1e-12)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_go_on_alike(clone):
    params, grads = matrices(5)
    optimizer = Muon(params)
    for row in grads[:3]:
        optimizer.step(row)
    other = clone(optimizer)
    for row in grads[3:]:
        optimizer.step(row)
        other.step(row)
    for param, twin in zip(params, other.param_groups[0]["params"], strict=True):
        assert param is not twin and param.tobytes() == twin.tobytes()


def test_minimises_a_quadratic():
    rng = np.random.default_rng(0)
    target, param = rng.standard_normal((6, 8)), np.zeros((6, 8))
    optimizer = Muon(param, lr=fastopt.schedules.linear_schedule(0.1, 0.0, 300), weight_decay=0.0)
    for _ in range(300):
        optimizer.step(param - target)
    assert np.abs(param - target).max() < 1e-2


# ---- errors

@pytest.mark.parametrize("options, error, message", [
    ({"lr": -1}, ValueError, "lr must be at least 0"),
    ({"weight_decay": float("nan")}, ValueError, "weight_decay must be finite"),
    ({"momentum": -0.1}, ValueError, "momentum must be at least 0"),
    ({"nesterov": 1}, TypeError, "nesterov must be True or False"),
    ({"ns_coefficients": (1.0, 2.0)}, TypeError, "ns_coefficients must be 3 numbers"),
    ({"ns_coefficients": 3.0}, TypeError, "ns_coefficients must be 3 numbers, got 3.0"),
    ({"ns_coefficients": "abc"}, TypeError, "ns_coefficients must be 3 numbers"),
    ({"ns_coefficients": (1.0, 2.0, float("inf"))}, ValueError, r"ns_coefficients\[2\] must be finite"),
    ({"eps": -1e-7}, ValueError, "eps must be at least 0"),
    ({"ns_steps": 0}, ValueError, "ns_steps must be an integer from 1 to 99, got 0"),
    ({"ns_steps": 100}, ValueError, "ns_steps must be an integer from 1 to 99, got 100"),
    ({"ns_steps": 5.0}, TypeError, "ns_steps must be an integer, got 5.0"),
    ({"ns_steps": True}, TypeError, "ns_steps must be an integer"),
    ({"adjust_lr_fn": "adam"}, ValueError, "adjust_lr_fn must be one of None, 'original', 'match_rms_adamw'"),
    ({"maximize": True}, TypeError, "maximize"),
])
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        Muon([np.ones((2, 2))], **options)
    with pytest.raises(error, match=message):
        MuonAdamW([np.ones(2)], muon=options)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"parameter 'w' must be a matrix, got shape .*MuonAdamW"):
        Muon({"m": np.ones((2, 2)), "w": np.ones(shape)})


BAD_STEPS = {
    "too few": (lambda grads: list(grads.values())[:-1], ValueError, "one entry for each of the 6 parameters"),
    "shape of a matrix": (lambda grads: grads | {"layer.weight": np.ones((6, 4))}, ValueError, "'layer.weight'"),
    "shape of a vector": (lambda grads: grads | {"layer.bias": np.ones(7)}, ValueError, "'layer.bias'"),
    "dtype of a vector": (lambda grads: grads | {"layer.bias": np.ones(6, int)}, TypeError, "'layer.bias'"),
    "unknown name": (lambda grads: grads | {"layer": np.ones(7)}, ValueError, "'layer', which is no parameter"),
    "none": (lambda grads: None, ValueError, "step.. needs grads"),
}


@pytest.mark.parametrize("change, error, message", BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_hybrid_step_that_raises_changes_nothing(change, error, message):
    params, grads = model()
    optimizer = MuonAdamW(params)
    optimizer.step(grads())
    before = snapshot(optimizer, params.values())
    with pytest.raises(error, match=message):
        optimizer.step(change(grads()))
    assert snapshot(optimizer, params.values()) == before
    optimizer.step(grads())
    assert optimizer.step_count == 2


@pytest.mark.parametrize("part, name, value", [
    ("muon", "lr", -1), ("adamw", "lr", -1), ("adamw", "betas", (0.9, 1.0)), ("muon", "ns_steps", 100),
    ("adamw", "lr", lambda step: -1), ("muon", "momentum", lambda step: float("nan")),
])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_value_in_one_part_stops_both(part, name, value, first):
    params, grads = model()
    optimizer = MuonAdamW(params)
    if not first:
        optimizer.step(grads())
    before, good = snapshot(optimizer, params.values()), getattr(optimizer, part).param_groups[0][name]
    getattr(optimizer, part).param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        optimizer.step(grads())
    assert snapshot(optimizer, params.values()) == before
    getattr(optimizer, part).param_groups[0][name] = good
    optimizer.step(grads())
    assert optimizer.step_count == 1 + (not first)


def test_a_hybrid_of_a_moved_or_read_only_parameter_changes_nothing():
    params, grads = model()
    optimizer = MuonAdamW(params)
    before = snapshot(optimizer, params.values())
    for name in ("layer.weight", "layer.bias"):
        params[name].flags.writeable = False
        with pytest.raises(ValueError, match=f"'{name}' is read-only"):
            optimizer.step(grads())
        params[name].flags.writeable = True
        assert snapshot(optimizer, params.values()) == before


@pytest.mark.parametrize("params, options, error, message", [
    ([], {}, ValueError, "params is empty"),
    ([{"params": np.ones(2)}], {}, ValueError, "not group dicts"),
    ({"params": np.ones(2)}, {}, ValueError, "not group dicts"),
    ([np.ones(2, int)], {}, TypeError, "parameter 0 must be float32"),
    ([np.ones((2, 2))] * 2, {}, ValueError, "parameter 0 and parameter 1 share memory"),
    ([np.ones((2, 2)), ("w", np.ones(2))], {}, ValueError, "either all parameters have names or none"),
    ([np.ones((2, 2))], {"exclude": "w*"}, ValueError, "the parameters have no names"),
    ({"w": np.ones((2, 2))}, {"exclude": ["w", "v*"]}, ValueError, "'v[*]', which matches no parameter of w"),
    ({"w": np.ones((2, 2))}, {"exclude": [3]}, TypeError, "patterns of names or a function, got 3"),
    ([np.ones((2, 2))], {"muon": 0.1}, TypeError, "muon must be a mapping of arguments, got float"),
    ([np.ones((2, 2))], {"adamw": {"lr": -1}}, ValueError, "lr must be at least 0"),
    ([np.ones((2, 2))], {"adamw": {"rate": 1}}, TypeError, "rate"),
])
def test_bad_hybrids(params, options, error, message):
    with pytest.raises(error, match=message):
        MuonAdamW(params, **options)


# ---- the hybrid

def test_each_parameter_goes_where_it_belongs():
    params, _ = model()
    assert MuonAdamW(params).muon.param_groups[0]["param_names"] == ["embedding", "layer.weight", "head.weight"]
    for exclude in ("head*", ["head.weight"], ("h*", "layer.bias"), lambda name, array: array.shape == (6, 3)):
        optimizer = MuonAdamW(params, exclude=exclude)
        assert optimizer.muon.param_groups[0]["param_names"] == ["embedding", "layer.weight"]
        assert optimizer.adamw.param_groups[0]["param_names"] == ["layer.bias", "scale", "kernel", "head.weight"]


@pytest.mark.parametrize("form", ["mapping", "list", "nested", "pairs", "bound"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_hybrid_is_muon_and_adamw(form, dtype):
    params, make = model(dtype)
    twins = {name: param.copy() for name, param in params.items()}
    shaped = {"mapping": dict, "bound": dict, "list": lambda tree: list(tree.values()),
              "pairs": lambda tree: list(tree.items()),
              "nested": lambda tree: [list(tree.values())[:3], list(tree.values())[3:]]}[form]
    muon_options, adamw_options = {"lr": 0.05, "momentum": 0.8}, {"lr": lambda step: 0.01 / (1 + step)}
    optimizer = MuonAdamW(shaped(params), muon=muon_options, adamw=adamw_options,
                          exclude=lambda name, array: len(array.shape) and len(array) == 9)
    names = ["layer.weight", "head.weight"], ["embedding", "layer.bias", "scale", "kernel"]
    parts = (Muon([twins[name] for name in names[0]], **muon_options),
             fastopt.AdamW([twins[name] for name in names[1]], **adamw_options))
    memory = make()
    if form == "bound":
        optimizer.bind_grads(memory)
    for step in range(5):
        grads = make()
        if step == 2 and form != "bound":
            grads["layer.weight"] = grads["scale"] = None
        if form == "bound":
            for name, grad in grads.items():
                memory[name][...] = grad
            optimizer.step()
        else:
            optimizer.step(shaped(grads))
        for part, own in zip(parts, names, strict=True):
            part.step([grads[name] for name in own])
    for name, param in params.items():
        assert param.tobytes() == twins[name].tobytes(), name
    assert optimizer.step_count == 5
    assert list(optimizer.state) == list(range(6))


@pytest.mark.parametrize("params", [[np.ones((2, 3))], [np.ones(3)]], ids=["matrices", "vectors"])
def test_one_part_may_be_empty(params):
    optimizer = MuonAdamW(params, muon={"lr": 0.1}, adamw={"lr": 0.1})
    assert (optimizer.muon is None) == (params[0].ndim == 1) and (optimizer.adamw is None) == (params[0].ndim == 2)
    optimizer.step([np.ones_like(params[0])])
    other = MuonAdamW([np.ones_like(params[0])])
    other.load_state_dict(optimizer.state_dict())
    assert other.step_count == 1 and other.param_groups[0]["lr"] == 0.1
    pickle.loads(pickle.dumps(other)).step([np.ones_like(params[0])])


def test_schedulers_drive_both_parts_or_one():
    params, grads = model()
    optimizer = MuonAdamW(params, muon={"lr": 0.4}, adamw={"lr": 0.1})
    both = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(grads())
    both.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]
    one = lr_scheduler.StepLR(optimizer.muon, 1, gamma=0.1)
    optimizer.step(grads())
    one.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.02), 0.05]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_of_a_hybrid_go_on_alike(clone):
    params, grads = model()
    optimizer = MuonAdamW(params, exclude=lambda name, array: name == "embedding")
    optimizer.bind_grads(grads())
    optimizer.step()
    other = clone(optimizer)
    for row in (None, grads(), grads()):
        optimizer.step(row)
        other.step(row)
    assert snapshot(other, other._plan.params) == snapshot(optimizer, params.values())


def test_a_checkpoint_of_a_hybrid_goes_on_alike():
    params, grads = model()
    optimizer = MuonAdamW(params, muon={"lr": 0.3}, exclude="embedding")
    optimizer.step(grads())
    twins = {name: param.copy() for name, param in params.items()}
    other = MuonAdamW(dict(reversed(twins.items())), exclude="embedding")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.muon.param_groups[0]["lr"] == 0.3
    row = grads()
    optimizer.step(row)
    other.step(row)
    for name, param in params.items():
        assert param.tobytes() == twins[name].tobytes(), name


@pytest.mark.parametrize("spoil, message", [
    (lambda saved: saved.pop("adamw"), "must have the keys 'muon', 'adamw'"),
    (lambda saved: saved["adamw"]["param_groups"][0].update(lr=-1), "lr must be at least 0"),
    (lambda saved: saved["adamw"]["state"][1].update(exp_avg=np.ones(2)), "exp_avg"),
    (lambda saved: saved["muon"]["state"][0].update(momentum_buffer=np.ones(2)), "momentum_buffer"),
])
def test_a_bad_checkpoint_of_a_hybrid_changes_nothing(spoil, message):
    params, grads = model()
    optimizer = MuonAdamW(params, exclude="embedding")
    optimizer.step(grads())
    saved = copy.deepcopy(optimizer.state_dict())
    spoil(saved)
    optimizer.step(grads())
    before, text = snapshot(optimizer, params.values()), repr(optimizer)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer, params.values()) == before and repr(optimizer) == text


def test_torch_loads_the_parts_of_a_hybrid_and_the_reverse():
    torch = torch_with_muon()
    params, make = model("float32")
    tensors = {name: torch.tensor(param, requires_grad=True) for name, param in params.items()}
    mine = MuonAdamW(list(params.values()))
    theirs = {"muon": torch.optim.Muon([tensor for tensor in tensors.values() if tensor.ndim == 2], lr=0.01),
              "adamw": torch.optim.AdamW([tensor for tensor in tensors.values() if tensor.ndim != 2], lr=0.02)}
    for name, grad in make().items():
        tensors[name].grad = torch.tensor(grad)
    for part in theirs.values():
        part.step()
    mine.load_state_dict({name: part.state_dict() for name, part in theirs.items()})
    assert [group["lr"] for group in mine.param_groups] == [0.01, 0.02]
    np.testing.assert_array_equal(mine.state[2]["exp_avg"], theirs["adamw"].state[tensors["layer.bias"]]["exp_avg"])
    saved = mine.state_dict()
    for name, part in theirs.items():
        tensor_state = {position: {key: torch.as_tensor(value) for key, value in entries.items()}
                        for position, entries in saved[name]["state"].items()}
        part.load_state_dict({"state": tensor_state, "param_groups": saved[name]["param_groups"]})


def test_rebind_reset_zero_grad_and_the_rest_of_the_interface():
    params, grads = model()
    optimizer = MuonAdamW(params)
    bound = grads()
    optimizer.bind_grads(bound)
    optimizer.step()
    optimizer.zero_grad()
    assert not any(grad.any() for grad in bound.values())
    moved = {name: param.copy() for name, param in params.items()}
    optimizer.rebind(moved)
    before = copies(params.values())
    optimizer.step(grads())
    assert all(np.array_equal(param, old) for param, old in zip(params.values(), before, strict=True))
    assert not any(np.array_equal(moved[name], params[name]) for name in params)
    optimizer.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="needs grads"):
        optimizer.step()
    optimizer.step_count = 7
    assert optimizer.muon.step_count == optimizer.adamw.step_count == optimizer.step_count == 7
    optimizer.num_threads = 2
    optimizer.step(grads())
    assert optimizer.adamw.num_threads == 2
    optimizer.reset_state()
    assert optimizer.step_count == 0 and not optimizer.state
    with pytest.raises(ValueError, match="all parameters when it is made"):
        optimizer.add_param_group({"params": np.ones(3)})
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    assert optimizer.step(closure=lambda: (3.5, grads())) == 3.5 and calls == [1]


@pytest.mark.parametrize("name", ["step", "accumulate", "add_param_group", "bind_grads", "load_state_dict", "rebind",
                                  "remove_param", "replace_param", "reset_state", "set_stages", "zero_grad"])
def test_a_part_is_changed_with_its_whole(name):
    part = MuonAdamW(model()[0]).adamw
    with pytest.raises(ValueError, match="adamw is a part of a MuonAdamW"):
        getattr(part, name)()


def test_a_part_shows_what_is_its():
    params, grads = model()
    optimizer = MuonAdamW(params)
    optimizer.step(grads())
    assert optimizer.muon.param_groups[0] is optimizer.param_groups[0]
    assert optimizer.adamw.state[0] == optimizer.state[2] and len(optimizer.adamw.state) == 3
    assert optimizer.adamw.state_dict()["param_groups"] == optimizer.state_dict()["adamw"]["param_groups"]
    part = pickle.loads(pickle.dumps(optimizer.adamw))
    assert part.step_count == 1 and list(part.state) == [0, 1, 2]


def test_a_pickle_of_two_optimizers_is_one_hybrid():
    """As they were kept before one plan stepped both."""
    params, grads = model()
    twins = {name: param.copy() for name, param in params.items()}
    optimizer = MuonAdamW(params)
    names = {"muon": ["embedding", "layer.weight", "head.weight"], "adamw": ["layer.bias", "scale", "kernel"]}
    parts = {"muon": Muon, "adamw": fastopt.AdamW}
    parts = {name: parts[name]({each: twins[each] for each in names[name]}) for name in parts}
    rows = [grads(), grads()]
    optimizer.step(rows[0])
    for name, part in parts.items():
        part.step({each: rows[0][each] for each in names[name]})
    order = list(twins)
    other = MuonAdamW.__new__(MuonAdamW)
    other.__setstate__({
        "params": list(twins.values()), "names": order, "parts": parts, "plain": True, "num_threads": None,
        "positions": {name: [order.index(each) for each in own] for name, own in names.items()},
        "defaults": {name: part.defaults for name, part in parts.items()}, "bound": None, "pipeline": None,
        "given": [], "whole": None})
    optimizer.step(rows[1])
    other.step(rows[1])
    assert snapshot(other, twins.values()) == snapshot(optimizer, params.values())


def test_trains_the_digits():
    data = demo.digits(0, "float32")
    history = demo.train(METHOD, data, demo.Settings(epochs=5, hidden=(64, 32)))
    assert history.accuracies[-1] >= 0.96


def test_scipy_is_not_needed():
    assert "scipy" not in vars(sys.modules["fastopt.optimizers.muon"])


def test_a_model_without_a_matrix_has_its_stages():
    param, grad = np.array([3.0, -2.0]), np.ones(2)
    optimizer = fastopt.MuonAdamW({"b": param}, adamw={"lr": 0.1})
    average = fastopt.averages.EMA(optimizer, 0.5)
    optimizer.set_stages(bounds=(-1, 1), statistics=True, zero_grad=True, average=average)
    optimizer.step({"b": grad})
    np.testing.assert_array_equal(param, [1.0, -1.0])
    np.testing.assert_array_equal(average.averages[0], param)
    assert optimizer.last_step.update_norms
    assert not grad.any()
