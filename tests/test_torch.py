"""Parity with torch.optim 2.13: trajectories, checkpoints both ways."""

import copy

import numpy as np
import pytest
import torch_cases
from common import copies, every_method_of_torch, inputs, name_of

import fastopt

# float32: a hundred steps, each within a few ulp, of numbers around 1; a centered variance cancels
TOLERANCE = {"float64": dict(rtol=1e-12, atol=1e-14), "float32": dict(rtol=2e-5, atol=2e-6)}

every_known_case = pytest.mark.parametrize(("method", "options"), torch_cases.KNOWN, ids=name_of)
dtypes = pytest.mark.parametrize("dtype", torch_cases.DTYPES)


@pytest.fixture(scope="module")
def recording():
    with np.load(torch_cases.RECORDING) as arrays:
        return dict(arrays)


@every_known_case
@dtypes
def test_agrees_with_the_recorded_torch(method, options, dtype, recording):
    for i, param in enumerate(torch_cases.with_fastopt(method, options, dtype)):
        expected = recording[torch_cases.key(method, options, dtype, i)]
        np.testing.assert_allclose(param, expected, **TOLERANCE[dtype])


def test_the_recording_is_complete(recording):
    wanted = {torch_cases.key(method, options, dtype, i)
              for method, options in torch_cases.KNOWN for dtype in torch_cases.DTYPES for i in range(5)}
    assert wanted == set(recording)


@every_known_case
@dtypes
@pytest.mark.parametrize("path", ["loop", "foreach", "fused"])
def test_agrees_with_torch(method, options, dtype, path):
    pytest.importorskip("torch")
    if path == "fused" and not method.torch_fused:
        pytest.skip("torch has no fused kernel")
    if path == "foreach" and method.name == "ASGD":
        pytest.skip("torch's foreach ASGD is 1e-6 off its loop")
    if path == "fused" and options.get("momentum"):
        pytest.skip("torch's fused SGD raises where a first gradient comes late")
    how = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[path]
    expected = torch_cases.with_torch(method, options, dtype, **how)
    for param, like in zip(torch_cases.with_fastopt(method, options, dtype), expected, strict=True):
        np.testing.assert_allclose(param, like, **TOLERANCE[dtype])


def as_tensors(node, torch):
    if isinstance(node, dict):
        return {key: as_tensors(value, torch) for key, value in node.items()}
    if isinstance(node, list):
        return [as_tensors(value, torch) for value in node]
    return torch.from_numpy(np.array(node)) if isinstance(node, np.ndarray) else node


@every_known_case
@pytest.mark.parametrize("path", ["loop", "foreach", "fused"])
def test_checkpoints_go_both_ways(method, options, path):
    torch = pytest.importorskip("torch")
    if path == "fused" and not method.torch_fused:
        pytest.skip("torch has no fused kernel")
    how = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[path]
    # torch casts numbers like mu_product to the dtype of the parameter when it loads, which changes its trajectory
    dtype = "float32" if method.optimizer.scalar_slots else "float64"
    params, grads = inputs(20, dtype, skip=False)
    ours, theirs = copies(params), [torch.tensor(param, requires_grad=True) for param in params]
    mine = method.optimizer(**torch_cases.arguments(ours, options))
    their = getattr(torch.optim, method.name)(**torch_cases.arguments(theirs, options), **how)

    def step(row):
        mine.step(row)
        for tensor, grad in zip(theirs, row, strict=True):
            tensor.grad = torch.tensor(grad)
        their.step()

    for row in grads[:7]:
        step(row)
    saved_mine, saved_theirs = copy.deepcopy(mine.state_dict()), copy.deepcopy(their.state_dict())
    # each goes on from the checkpoint of the other
    mine = method.optimizer([{"params": ours[:2]}, {"params": ours[2:]}])
    their = getattr(torch.optim, method.name)([{"params": theirs[:2]}, {"params": theirs[2:]}], **how)
    mine.load_state_dict(saved_theirs)
    their.load_state_dict(as_tensors(saved_mine, torch))
    assert mine.param_groups[0]["lr"] == 0.02
    for row in grads[7:]:
        step(row)
    for param, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), **TOLERANCE[dtype])


@every_method_of_torch
def test_state_dict_has_the_layout_of_torch(method):
    torch = pytest.importorskip("torch")
    options = next((o for m, o in torch_cases.KNOWN if m is method and "momentum" in o), {})
    param, grad = np.ones(3, "float32"), np.ones(3, "float32")
    tensor = torch.ones(3, requires_grad=True)
    tensor.grad = torch.ones(3)
    mine = method.optimizer([("w", param)], **options)
    theirs = getattr(torch.optim, method.name)([("w", tensor)], **options)
    mine.step({"w": grad})
    theirs.step()
    ours, their = mine.state_dict(), theirs.state_dict()
    assert set(ours["state"][0]) == set(their["state"][0])
    for key, value in their["state"][0].items():
        assert ours["state"][0][key].shape == tuple(value.shape)
        assert str(ours["state"][0][key].dtype) == str(value.dtype).removeprefix("torch.")
    left_out = {"foreach", "fused", "capturable", "differentiable"}
    assert set(their["param_groups"][0]) - left_out <= set(ours["param_groups"][0])
    assert ours["param_groups"][0]["params"] == their["param_groups"][0]["params"]
    assert ours["param_groups"][0]["param_names"] == their["param_groups"][0]["param_names"]


def test_older_layouts_load():
    """`step` as an int or a float, missing flags."""
    for step in (3, 3.0, np.array(3.0, "float32"), np.float64(3)):
        param = np.ones(2)
        optimizer = fastopt.Adam(param)
        optimizer.load_state_dict({
            "state": {0: {"step": step, "exp_avg": np.full(2, 0.1), "exp_avg_sq": np.full(2, 0.01)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0]}],
        })
        optimizer.step(np.ones(2))
        assert optimizer.state[0]["step"] == 4
        assert optimizer.step_count == 4


def test_states_load_by_name_when_both_sides_have_names():
    first = {"a": np.ones(2), "b": np.ones(2)}
    optimizer = fastopt.Adam(first)
    optimizer.step({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    other = fastopt.Adam({"b": np.ones(2), "a": np.ones(2)})
    other.load_state_dict(optimizer.state_dict())
    np.testing.assert_allclose(other.state[0]["exp_avg"], 0.2)
    np.testing.assert_allclose(other.state[1]["exp_avg"], 0.1)
