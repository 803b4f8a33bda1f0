"""What several test files share: the table's cases, inputs, and comparisons."""

import inspect

import numpy as np
import pytest

from fastopt.kernels import simd
from fastopt.optimizers.settings import NOT_TORCHS
from fastopt.table import METHODS

ELEMENTWISE = [method for method in METHODS if method.elementwise]
CASES = [(method, options) for method in ELEMENTWISE for options in method.variants]


def name_of(value):
    if isinstance(value, dict):
        return ",".join(f"{key}={part}" for key, part in value.items()) or "defaults"
    return getattr(value, "name", None) or str(value)


every_case = pytest.mark.parametrize(("method", "options"), CASES, ids=name_of)
every_method = pytest.mark.parametrize("method", ELEMENTWISE, ids=name_of)
every_method_of_torch = pytest.mark.parametrize("method", [method for method in ELEMENTWISE if method.in_torch],
                                                ids=name_of)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

# around the width of every register, and around the blocks of a step
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 2047, 2048, 2049, 6151)
SHAPES = ((5, 3), (), (0,), (17,), (2, 3, 4))


def torch_knows(method, options):
    """Whether torch.optim has this method and these options."""
    return method.in_torch and not NOT_TORCHS & set(options)


def inputs(steps, dtype="float64", shapes=SHAPES, seed=0, skip=True):
    """Parameters, and the gradients of each step; with `skip`, some are missing in some steps."""
    rng = np.random.default_rng(seed)
    params = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    grads = [[np.asarray(rng.standard_normal(shape), dtype) for shape in shapes] for _ in range(steps)]
    if skip:
        for step, row in enumerate(grads):
            row[step % len(shapes)] = None if step % 3 == 1 else row[step % len(shapes)]
    return params, grads


def copies(arrays):
    return [None if array is None else array.copy() for array in arrays]


def snapshot(optimizer, params):
    """Everything that a step may change, as bytes."""
    state = {position: {key: np.asarray(value).tobytes() for key, value in entries.items()}
             for position, entries in optimizer.state.items()}
    return [param.tobytes() for param in params], state, optimizer.step_count


def reference_steps(method, params, grads, **options):
    """Steps the reference twin over the same gradients, each parameter with its own step count."""
    states = [{} for _ in params]
    counts = [0] * len(params)
    for row in grads:
        for i, (param, grad) in enumerate(zip(params, row, strict=True)):
            if grad is not None:
                counts[i] += 1
                method.reference(param, grad, states[i], counts[i], **options)
    return states


def use_level(monkeypatch, level):
    """Makes plans created from now on run the rules of `level`."""
    monkeypatch.setattr(simd, "level", lambda: level)


def parameters_of(function):
    return inspect.signature(function).parameters


def special(rng, size, dtype):
    """Numbers over many decades, with zeros, NaN, infinities and subnormals among them."""
    x = rng.standard_normal(size) * 10.0 ** rng.integers(-9, 4, size)
    x = x.astype(dtype)
    where = rng.random(size)
    for k, value in enumerate((0.0, -0.0, np.nan, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal * 5,
                               -np.finfo(dtype).tiny / 4, np.finfo(dtype).max)):
        x[where < 0.08 - 0.01 * k] = value
    return x


def placed(array, offset):
    """A copy of `array` that starts `offset` elements after a 64-byte boundary."""
    raw = np.zeros(array.size + 128, array.dtype)
    start = (-raw.ctypes.data % 64) // array.itemsize + offset
    raw[start : start + array.size] = array
    return raw[start : start + array.size]
