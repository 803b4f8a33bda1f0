"""Clipping on its own: torch's results, exact norms, the same bits everywhere, bad arguments change nothing."""

import itertools
import math
import pickle

import numpy as np
import pytest
from common import copies, placed, special, use_level

import fastopt
from fastopt.kernels import simd
from fastopt.kernels.norms import power_sum

DTYPES = ["float32", "float64", "complex64", "complex128"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_order = pytest.mark.parametrize("order", [0.5, 1, 2, 2.5, 3, 10.0, math.inf])
SHAPES = ((), (0,), (5,), (3, 7), (2, 3, 4), (1000, 7))


def numbers(rng, shape, dtype):
    x = rng.standard_normal(shape)
    return np.asarray(x + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else x, dtype)


def gradients(dtype, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [numbers(rng, shape, dtype) for shape in shapes]


def exact_norm(arrays, order):
    """The norm in extended precision."""
    x = np.concatenate([np.abs(np.ravel(array).astype(np.result_type(array, np.longdouble))) for array in arrays])
    if order == math.inf:
        return float(x.max(initial=0.0))
    return float(np.sum(x ** np.longdouble(order)) ** (1 / np.longdouble(order)))


# ---- against torch

def torch_parameters(torch, arrays):
    parameters = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.tensor(array).dtype)) for array in arrays]
    for parameter, array in zip(parameters, arrays, strict=True):
        parameter.grad = torch.tensor(array)
    return parameters


def near(dtype):
    """How near torch is to the exact result: it sums float32 in float32."""
    return 1e-13 if dtype in ("float64", "complex128") else 2e-5


def assert_close_to_torch(arrays, parameters):
    for array, parameter in zip(arrays, parameters, strict=True):
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=near(array.dtype), atol=0)


@every_dtype
@every_order
@pytest.mark.parametrize("max_norm", [0.0, 0.7, 40.0, 1e9, math.inf])
def test_clipping_by_norm_is_that_of_torch(dtype, order, max_norm):
    torch = pytest.importorskip("torch")
    arrays = gradients(dtype)
    nonempty = [array for array in arrays if array.size]  # torch has no largest element of an empty gradient
    parameters = torch_parameters(torch, nonempty)
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm, order)
    norm = fastopt.clip_grad_norm_(arrays, max_norm, order)
    assert type(norm) is float
    assert norm == pytest.approx(float(expected), rel=near(dtype))
    assert_close_to_torch(nonempty, parameters)


@every_dtype
@every_order
def test_the_parts_are_those_of_torch(dtype, order):
    torch = pytest.importorskip("torch")
    arrays = [array for array in gradients(dtype) if array.size]
    parameters = torch_parameters(torch, arrays)
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], order)
    norm = fastopt.get_total_norm(arrays, order)
    assert norm == pytest.approx(float(expected), rel=near(dtype))
    torch.nn.utils.clip_grads_with_norm_(parameters, 0.3, expected)
    assert fastopt.clip_grads_with_norm_(arrays, 0.3, norm) is None
    assert_close_to_torch(arrays, parameters)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("clip_value", [0.0, 0.1, 1, 1e38, math.inf])
def test_clipping_by_value_is_that_of_torch(dtype, clip_value):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    arrays = [*gradients(dtype), special(rng, 400, dtype)]
    parameters = torch_parameters(torch, arrays)
    torch.nn.utils.clip_grad_value_(parameters, clip_value)
    assert fastopt.clip_grad_value_(arrays, clip_value) is None
    for array, parameter in zip(arrays, parameters, strict=True):
        np.testing.assert_array_equal(array, parameter.grad.numpy())


NOT_FINITE = [[np.inf, 1.0], [-np.inf, np.inf], [np.nan, 1.0], [np.nan, np.inf], [1.0, 2.0, -np.inf]]


@every_order
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("values", NOT_FINITE)
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_what_is_not_finite_goes_through_as_in_torch(values, order, dtype, max_norm):
    torch = pytest.importorskip("torch")
    arrays = [np.array(values, dtype), np.ones(3, dtype)]
    parameters = torch_parameters(torch, arrays)
    expected = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm, order))
    norm = fastopt.clip_grad_norm_(arrays, max_norm, order)
    np.testing.assert_equal(norm, expected)
    assert_close_to_torch(arrays, parameters)


@every_order
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_one_nan_anywhere_makes_the_norm_nan(dtype, order):
    for at in range(35):
        array = np.ones(35, dtype)
        array[at] = np.nan
        assert math.isnan(fastopt.get_total_norm([array], order)), at


@pytest.mark.parametrize("values", NOT_FINITE)
def test_an_error_for_what_is_not_finite(values):
    grads = {"a": np.ones(2), "b": [np.array(values)]}
    before = pickle.dumps(grads)
    for function in (lambda: fastopt.clip_grad_norm_(grads, 1.0, error_if_nonfinite=True),
                     lambda: fastopt.get_total_norm(grads, math.inf, error_if_nonfinite=True)):
        with pytest.raises(RuntimeError, match=r"is (nan|inf): gradient 'b.0' has elements that are not finite"):
            function()
        assert pickle.dumps(grads) == before
    assert fastopt.get_total_norm(grads["a"], error_if_nonfinite=True) == math.sqrt(2)
    with pytest.raises(RuntimeError, match="order 2.0 is inf: it is too large for a float"):
        fastopt.get_total_norm(np.full(4, 1.7e308), error_if_nonfinite=True)


# ---- exact norms

@every_dtype
@every_order
def test_norms_are_exact(dtype, order):
    arrays = gradients(dtype, seed=1)
    assert fastopt.get_total_norm(arrays, order) == pytest.approx(exact_norm(arrays, order), rel=1e-14)


@pytest.mark.parametrize("order", [1, 2, math.inf])
def test_the_norm_of_many_float32_elements(order):
    x = np.random.default_rng(0).standard_normal(10_000_000, dtype="float32")
    wide = np.abs(x.astype("float64"))
    expected = wide.max() if order == math.inf else math.fsum(wide**order) ** (1 / order)
    assert fastopt.get_total_norm(x, order) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("size", [1e-315, 1e-310, 1e-200, 1e-158, 1e-20, 1e20, 1e160, 1e300])
@pytest.mark.parametrize("order", [0.25, 1, 2, 3, 100, 3000.0, math.inf])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_powers_may_overflow_and_underflow_but_not_the_norm(size, order, dtype):
    unit = np.array([3.0, 0.0, -1.0, 2.0] + [1e-3] * 3000, dtype)
    if dtype == "complex128":
        unit *= 0.6 + 0.8j
    grad = unit * size
    expected = exact_norm([grad / np.longdouble(size)], order) * size
    assert fastopt.get_total_norm([grad], order) == pytest.approx(expected, rel=1e-2 if size < 1e-307 else 1e-12, abs=0)


def test_a_norm_too_large_for_a_float_is_infinite():
    assert fastopt.get_total_norm(np.full(4, 1.7e308)) == math.inf
    assert fastopt.get_total_norm([np.full(1, 1.7e308)] * 2, 1) == math.inf
    assert fastopt.get_total_norm(np.ones(10_000), 0.01) == math.inf


def test_nothing_has_norm_0():
    for grads in ([], {}, [None], {"a": None, "b": []}, np.zeros(0), np.zeros((3, 4)), iter(())):
        assert fastopt.get_total_norm(grads) == fastopt.clip_grad_norm_(grads, 1.0) == 0.0
    for order in (0.5, 1, 3, math.inf):
        assert fastopt.get_total_norm([np.zeros(3), np.zeros(0)], order) == 0.0
    zero = np.zeros(3)
    assert fastopt.clip_grad_norm_(zero, 0.0, eps=0.0) == 0.0
    np.testing.assert_array_equal(zero, 0.0)


# ---- the same bits

@every_dtype
@every_order
def test_every_level_gives_the_same_bits(dtype, order, monkeypatch):
    arrays = gradients(dtype, seed=2, shapes=((3,), (15,), (16,), (17,), (2047,), (2048,), (6151,)))
    expected = power_sum(arrays, order, level=simd.available()[0])
    norms = set()
    for level in simd.available():
        assert power_sum(arrays, order, level=level) == expected
        for unit in (2.0, 3.7):
            assert power_sum(arrays, order, unit, level) == power_sum(arrays, order, unit, simd.available()[0])
        for offset in range(4):
            assert power_sum([placed(array, offset) for array in arrays], order, level=level) == expected
        use_level(monkeypatch, level)
        norms.add(fastopt.clip_grad_norm_(copies(arrays), 1.0, order))
    assert len(norms) == 1


@every_dtype
def test_special_numbers_have_the_same_sums_on_every_level(dtype):
    rng = np.random.default_rng(5)
    for size in (7, 100, 5000):
        x = special(rng, 2 * size, "float64" if dtype in ("float64", "complex128") else "float32").view(dtype)
        for order in (1, 2, 3, math.inf):
            sums = {np.float64(power_sum([x], order, level=level)).tobytes() for level in simd.available()}
            assert len(sums) == 1


# ---- structures

STRUCTURES = {
    "array": lambda a, b: a,
    "list": lambda a, b: [a, None, b],
    "mapping": lambda a, b: {"w": a, "b": b, "none": None},
    "nested": lambda a, b: {"layer": [{"w": a}, [b]], "none": [None]},
    "pairs": lambda a, b: [("w", a), ("b", b)],
    "iterator": lambda a, b: iter([a, b]),
    "memoryview": lambda a, b: [memoryview(a), memoryview(b)],
}


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES)
def test_structures(make):
    a, b = np.array([[3.0, -4.0]]), np.array(12.0)
    used = [a] if make(a, b) is a else [a, b]
    whole = 5.0 if len(used) == 1 else 13.0
    assert fastopt.get_total_norm(make(a, b)) == whole
    before = copies(used)
    assert fastopt.clip_grad_norm_(make(a, b), whole / 2, eps=0.0) == whole
    for now, old in zip(used, before, strict=True):
        np.testing.assert_array_equal(now, old / 2)
    fastopt.clip_grads_with_norm_(make(a, b), 1.0, total_norm=2.0, eps=0.0)
    for now, old in zip(used, before, strict=True):
        np.testing.assert_array_equal(now, old / 4)
    fastopt.clip_grad_value_(make(a, b), 0.5)
    for now, old in zip(used, before, strict=True):
        np.testing.assert_array_equal(now, np.clip(old / 4, -0.5, 0.5))


def test_memory_of_other_frameworks_is_clipped_in_place():
    torch = pytest.importorskip("torch")
    grads = {"w": torch.full((3,), 2.0), "z": torch.full((2,), 2j, dtype=torch.complex128)}
    assert fastopt.clip_grad_norm_(grads, math.sqrt(5), eps=0.0) == math.sqrt(20)
    assert grads["w"].tolist() == [1.0] * 3
    assert grads["z"].tolist() == [1j] * 2


def test_dtypes_may_differ_and_stay():
    grads = gradients("float32", shapes=((4,),)) + gradients("complex128", shapes=((), (3,)))
    expected = exact_norm(grads, 2)
    assert fastopt.clip_grad_norm_(grads, 0.1) == pytest.approx(expected, rel=1e-14)
    assert [grad.dtype.char for grad in grads] == ["f", "D", "D"]
    assert fastopt.get_total_norm(grads) == pytest.approx(0.1, rel=1e-4)


def test_gradients_below_the_norm_are_not_written(monkeypatch):
    grad = np.array([3.0, 4.0])
    written, multiply = [], fastopt.clip.multiply
    monkeypatch.setattr(fastopt.clip, "multiply", lambda *given: (written.append(given), multiply(*given)))
    for max_norm, eps in ((5.1, 1e-6), (5.0, 0.0), (math.inf, 1e-6)):
        assert fastopt.clip_grad_norm_(grad, max_norm, eps=eps) == 5.0
    assert written == []
    fastopt.clip_grad_norm_(grad, 5.0)
    assert len(written) == 1
    assert grad[0] < 3.0


def test_measuring_leaves_infinities_alone():
    grad = np.array([np.inf, 1.0])
    assert fastopt.clip_grad_norm_(grad, math.inf) == math.inf
    np.testing.assert_array_equal(grad, [np.inf, 1.0])


def test_reading_takes_what_cannot_be_written():
    fixed = np.array([3.0, 0.0])
    fixed.flags.writeable = False
    assert fastopt.get_total_norm([fixed, fixed[1:], 4.0, np.float32(0.0), 0j]) == 5.0


# ---- bad arguments

def read_only(x):
    x.flags.writeable = False
    return x


SHARED = np.ones(4)
BAD_GRADIENTS = {
    "read-only": (lambda: {"w": read_only(np.ones(2))}, ValueError, "gradient 'w' is read-only"),
    "integers": (lambda: [np.ones(2, int)], TypeError, "gradient 1 must be float32, float64, .* got int64"),
    "half": (lambda: [np.ones(2, "float16")], TypeError, "gradient 1 must be float32, .* got float16"),
    "objects": (lambda: [np.ones(2, object)], TypeError, "gradient 1 must be float32, .* got object"),
    "transposed": (lambda: [np.ones((3, 2)).T], ValueError, "gradient 1 must be C-contiguous, aligned"),
    "byte order": (lambda: [np.ones(2, ">f8")], ValueError, "gradient 1 must be .* native byte order"),
    "unaligned": (lambda: [np.zeros(17, "u1")[1:].view("f8")], ValueError, "gradient 1 must be .* aligned"),
    "overlap": (lambda: [SHARED[:3], SHARED[2:]], ValueError, "gradient 1 and gradient 2 share memory"),
    "twice": (lambda: {"a": SHARED, "b": SHARED}, ValueError, "gradient 'a' and gradient 'b' share memory"),
    "number": (lambda: [1.0], TypeError, "gradient 1 must be an array, .* got float"),
    "text": (lambda: ["abc"], TypeError, "gradient 1 must be an array, .* got str"),
    "sparse": (lambda: [fastopt.SparseRows([1], np.ones((1, 2)), (3, 2))], TypeError, "gradient 1 must be an array"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD_GRADIENTS.values(), ids=BAD_GRADIENTS)
def test_bad_gradients_change_nothing(make, error, message):
    first, bad = np.full(3, 9.0), make()
    grads = [first, *bad] if isinstance(bad, list) else {"first": first} | bad
    for function in (lambda: fastopt.clip_grad_norm_(grads, 1.0), lambda: fastopt.clip_grad_value_(grads, 1.0),
                     lambda: fastopt.clip_grads_with_norm_(grads, 1.0, 2.0)):
        with pytest.raises(error, match=message):
            function()
        np.testing.assert_array_equal(first, 9.0)
        np.testing.assert_array_equal(SHARED, 1.0)


@pytest.mark.parametrize("grads", [None, 3, "abc", object()])
def test_what_is_no_gradient_at_all(grads):
    with pytest.raises(TypeError, match="gradient 0 must be an array"):
        fastopt.clip_grad_norm_(grads, 1.0)


def test_complex_gradients_are_not_clipped_by_value():
    grads = {"a": np.full(2, 9.0), "b": np.ones(2, complex)}
    with pytest.raises(TypeError, match="gradient 'b' must be float32 or float64 to be clipped by value"):
        fastopt.clip_grad_value_(grads, 1.0)
    np.testing.assert_array_equal(grads["a"], 9.0)


NUMBER, NEGATIVE = "must be a number, got", "must be at least 0, got"
BAD_ARGUMENTS = [
    ("clip_grad_norm_", {"max_norm": "1"}, TypeError, f"max_norm {NUMBER} '1'"),
    ("clip_grad_norm_", {"max_norm": None}, TypeError, f"max_norm {NUMBER} None"),
    ("clip_grad_norm_", {"max_norm": True}, TypeError, f"max_norm {NUMBER} True"),
    ("clip_grad_norm_", {"max_norm": -1.0}, ValueError, f"max_norm {NEGATIVE} -1.0"),
    ("clip_grad_norm_", {"max_norm": math.nan}, ValueError, f"max_norm {NEGATIVE} nan"),
    ("clip_grad_norm_", {"norm_type": "two"}, TypeError, f"norm_type {NUMBER} 'two'"),
    ("clip_grad_norm_", {"norm_type": 0}, ValueError, "norm_type must be above 0, got 0"),
    ("clip_grad_norm_", {"norm_type": -math.inf}, ValueError, "norm_type must be above 0, got -inf"),
    ("clip_grad_norm_", {"norm_type": math.nan}, ValueError, "norm_type must be above 0, got nan"),
    ("clip_grad_norm_", {"error_if_nonfinite": 1}, TypeError, "error_if_nonfinite must be True or False, got 1"),
    ("clip_grad_norm_", {"eps": -1e-9}, ValueError, f"eps {NEGATIVE}"),
    ("clip_grad_norm_", {"eps": math.inf}, ValueError, "eps must be finite"),
    ("clip_grads_with_norm_", {"max_norm": -1.0}, ValueError, f"max_norm {NEGATIVE} -1.0"),
    ("clip_grads_with_norm_", {"total_norm": "1"}, TypeError, f"total_norm {NUMBER} '1'"),
    ("clip_grads_with_norm_", {"total_norm": -1}, ValueError, f"total_norm {NEGATIVE} -1"),
    ("clip_grads_with_norm_", {"eps": None}, TypeError, f"eps {NUMBER} None"),
    ("clip_grad_value_", {"clip_value": [1, 2]}, TypeError, f"clip_value {NUMBER}"),
    ("clip_grad_value_", {"clip_value": -0.5}, ValueError, f"clip_value {NEGATIVE} -0.5"),
    ("clip_grad_value_", {"clip_value": math.nan}, ValueError, f"clip_value {NEGATIVE} nan"),
]
GOOD = {"clip_grad_norm_": {"max_norm": 1.0}, "clip_grads_with_norm_": {"max_norm": 1.0, "total_norm": 2.0},
        "clip_grad_value_": {}}


@pytest.mark.parametrize(("name", "arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_change_nothing(name, arguments, error, message):
    grad = np.full(3, 9.0)
    with pytest.raises(error, match=message):
        getattr(fastopt, name)(grad, **GOOD[name] | arguments)
    np.testing.assert_array_equal(grad, 9.0)


def test_warnings_and_numpy_errors_do_not_end_a_clip_half_way():
    grads = [np.array([np.inf, 1.0]), np.array([1e-300, 5.0])]
    with np.errstate(all="raise"):
        fastopt.clip_grad_norm_(grads, 1e-20)
        fastopt.clip_grad_value_([*grads, np.ones(2, "float32")], 1e300)
        fastopt.clip_grad_norm_(np.ones(1000), 1.0, norm_type=0.01)
    np.testing.assert_array_equal(grads[1], 0.0)


def test_an_infinite_order_has_a_name():
    grad = np.array([1.0, -3.0])
    assert fastopt.get_total_norm(grad, "inf") == fastopt.get_total_norm(grad, norm_type=math.inf) == 3.0


@pytest.mark.parametrize(("dtype", "order"), [
    *itertools.product(DTYPES[:2], [1, 2, 3, math.inf]),
    *itertools.product(DTYPES[2:], [2]),  # of another order, a step takes the norm of the parts
])
def test_clipping_apart_is_clipping_in_the_step(dtype, order):
    grads = gradients(dtype, shapes=((5000,), (3, 7), (), (100, 100)))
    params, twins = ([np.zeros_like(grad) for grad in grads] for _ in range(2))
    opt = fastopt.SGD(params, lr=1.0)
    opt.step(grads, clip=fastopt.stages.GlobalNorm(0.5, norm_type=order))
    norm = fastopt.clip_grad_norm_(grads, 0.5, order)
    fastopt.SGD(twins, lr=1.0).step(grads)
    assert opt.last_step.grad_norm == norm
    for param, twin in zip(params, twins, strict=True):
        assert param.tobytes() == twin.tobytes()
