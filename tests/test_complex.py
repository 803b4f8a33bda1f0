"""Complex parameters are stepped as pairs of reals, as in torch."""

import copy
import pickle

import numpy as np
import pytest
from common import every_case, every_method, torch_knows

import fastopt

SHAPES = ((3, 2), (), (0,), (17,))


def problem(dtype, steps=10):
    rng = np.random.default_rng(3)

    def draw(shape):
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), dtype)

    return [draw(shape) for shape in SHAPES], [[draw(shape) for shape in SHAPES] for _ in range(steps)]


def reals(array):
    return np.ascontiguousarray(array).view(array.real.dtype).reshape(*array.shape, 2)


@every_case
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_the_bits_are_those_of_pairs_of_reals(method, options, dtype):
    params, grads = problem(dtype)
    twins = [reals(param).copy() for param in params]
    optimizer, twin = method.optimizer(params, **options), method.optimizer(twins, **options)
    for row in grads:
        optimizer.step(row)
        twin.step([reals(grad) for grad in row])
    for param, pair in zip(params, twins, strict=True):
        assert param.tobytes() == pair.tobytes()
    for position, state in optimizer.state.items():
        for slot in method.slots(**options):
            assert state[slot].dtype == dtype
            assert state[slot].tobytes() == twin.state[position][slot].tobytes()


@every_case
def test_agrees_with_torch(method, options):
    torch = pytest.importorskip("torch")
    if not torch_knows(method, options):
        pytest.skip("not an option of torch")
    params, grads = problem("complex128")
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    optimizer = method.optimizer(params, **options)
    theirs = getattr(torch.optim, method.name)(tensors, foreach=False, **options)
    for row in grads:
        optimizer.step(row)
        for tensor, grad in zip(tensors, row, strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.step()
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


@every_method
def test_copies_and_checkpoints_go_on(method):
    params, grads = problem("complex64")
    optimizer = method.optimizer(params)
    for row in grads[:5]:
        optimizer.step(row)
    second, other = pickle.loads(pickle.dumps((params, optimizer)))
    third = [param.copy() for param in params]
    loaded = method.optimizer(third)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for row in grads[5:]:
        optimizer.step(row)
        other.step(row)
        loaded.step(row)
    assert [x.tobytes() for x in params] == [x.tobytes() for x in second] == [x.tobytes() for x in third]


def test_a_real_gradient_of_a_complex_parameter_is_refused():
    param = np.ones(3, complex)
    optimizer = fastopt.Adam(param)
    with pytest.raises(TypeError, match="gradient of parameter 0 must be complex64 or complex128, got float64"):
        optimizer.step(np.ones(3))
    np.testing.assert_array_equal(param, 1)
    optimizer.step([np.ones(3, "complex64")])
    assert optimizer.state[0]["exp_avg"].dtype == complex


def test_complex_scalars_are_gradients_of_0d_parameters():
    param = np.array(1 + 1j)
    fastopt.SGD(param, lr=1.0).step([1j])
    assert param == 1
