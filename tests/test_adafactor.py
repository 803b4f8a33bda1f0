"""Adafactor: torch's trajectories, the same bits everywhere, no full-size temporary."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from common import both_dtypes, copies, name_of, snapshot, use_level
from test_bits import placed, special

import fastopt
from fastopt import reference
from fastopt.kernels import simd, threads
from fastopt.table import METHODS

(METHOD,) = [method for method in METHODS if method.name == "Adafactor"]
OPTIONS = (
    {},
    {"weight_decay": 0.1},
    {"maximize": True, "weight_decay": 0.01},
    {"beta2_decay": -0.5, "lr": 0.2},
    {"beta2_decay": 0.0},
    {"beta2_decay": -2.0},
    {"eps": (1e-3, 0.1), "d": 2.0},
    {"eps": (0.5, 10.0), "d": 1.5},  # the bound acts on some elements
    {"eps": (50.0, 1e-3)},  # and on all
    {"eps": (1e-300, 0.0)},  # in float32 the square is 0
)
# rows up to 64 are taken in panels of 4096 columns, more of them 4 at a time
SHAPES = ((5, 3), (1, 17), (17, 1), (3, 70), (64, 33), (65, 33), (67, 5), (3, 4097), (130, 300), (2, 3, 4),
          (2, 3, 80, 5), (1, 1), (17,), (1,), ())
DTYPES = {"float32": np.float32, "float64": np.float64}

every_option = pytest.mark.parametrize("options", OPTIONS, ids=name_of)
every_option_but_the_last = pytest.mark.parametrize("options", OPTIONS[:-1], ids=name_of)


def problem(steps, dtype="float64", shapes=SHAPES, seed=0):
    """Parameters and gradients whose rows, columns and steps differ in size by decades; some are missing."""
    rng = np.random.default_rng(seed)

    def gradient(shape):
        array = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 1)
        for axis, size in enumerate(shape):
            array *= np.expand_dims(10.0 ** rng.integers(-2, 1, size), tuple(range(1, len(shape) - axis)))
        return np.asarray(array, dtype)

    params = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    grads = [[None if (step + i) % 5 == 3 else gradient(shape) for i, shape in enumerate(shapes)]
             for step in range(steps)]
    return params, grads


def groups(params, options):
    """Two groups, the second with rates of its own."""
    return [{"params": params[::2]}, {"params": params[1::2], "lr": 0.03, "d": 3.0}], options


def in_groups(row):
    return [*row[::2], *row[1::2]]


def torch_steps(torch, params, grads, options, **how):
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    given, options = groups(tensors, options)
    optimizer = torch.optim.Adafactor(given, **options, **how)
    for row in grads:
        for tensor, grad in zip(tensors, row, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        optimizer.step()
    return optimizer, tensors


def our_steps(params, grads, options):
    given, options = groups(params, options)
    optimizer = fastopt.Adafactor(given, **options)
    for row in grads:
        optimizer.step(in_groups(row))
    return optimizer


def check_states(optimizer, theirs, **tolerance):
    for position, entries in theirs.state_dict()["state"].items():
        ours = optimizer.state_dict()["state"][position]
        assert list(ours) == list(entries)
        for key, value in entries.items():
            assert ours[key].shape == tuple(value.shape)
            assert str(ours[key].dtype) == str(value.dtype).removeprefix("torch.")
            np.testing.assert_allclose(ours[key], value.numpy(), **tolerance)


# ---- torch

@pytest.fixture
def torch():
    """torch on one thread: its pool would spin beside the other processes of a test run."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)


@every_option
@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_agrees_with_torch(options, foreach, torch):
    params, grads = problem(100)
    theirs, tensors = torch_steps(torch, params, grads, options, foreach=foreach)
    optimizer = our_steps(params, grads, options)
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)
    check_states(optimizer, theirs, rtol=1e-12)


@every_option_but_the_last
def test_float32_stays_close_to_torch(options, torch):
    params, grads = problem(20, "float32")
    theirs, tensors = torch_steps(torch, params, grads, options)
    optimizer = our_steps(params, grads, options)
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=2e-5, atol=2e-5)
    check_states(optimizer, theirs, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (70, 6), (2, 3, 4), (20,)], ids=str)
@pytest.mark.parametrize("where", ["param", "grad", "column", "row"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("eps", [(None, 1e-3), (0.0, 1e-3)], ids=["eps", "no eps"])
def test_what_is_not_finite_spreads_as_in_torch(shape, where, value, late, eps, torch):
    rng = np.random.default_rng(1)
    param = rng.standard_normal(shape)
    grads = [rng.standard_normal(shape) for _ in range(6)]
    for grad in grads:  # a row and a column without a gradient
        grad[..., 1] = 0
        if grad.ndim > 1:
            grad[..., 0, :] = 0
    if where == "column":
        grads[late][..., 2] = value
    elif where == "row":
        grads[late][-1] = value
    else:
        (param if where == "param" else grads[late]).flat[-1] = value
    tensor = torch.tensor(param, requires_grad=True)
    theirs, ours = torch.optim.Adafactor([tensor], eps=eps), fastopt.Adafactor([param], eps=eps)
    for grad in grads:
        tensor.grad = torch.tensor(grad)
        theirs.step()
        with np.errstate(all="raise"):
            ours.step([grad])
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)
    check_states(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_checkpoints_go_both_ways(foreach, torch):
    params, grads = problem(20)
    options = {"weight_decay": 0.1, "eps": (1e-3, 0.1)}
    theirs, tensors = torch_steps(torch, params, grads[:7], options, foreach=foreach)
    mine = our_steps(params, grads[:7], options)
    saved_mine, saved_theirs = copy.deepcopy(mine.state_dict()), copy.deepcopy(theirs.state_dict())
    for entries in saved_mine["state"].values():
        entries.update((key, torch.from_numpy(np.asarray(value))) for key, value in entries.items())
    # each goes on from the checkpoint of the other
    mine = fastopt.Adafactor(groups(params, {})[0])
    theirs = torch.optim.Adafactor(groups(tensors, {})[0], foreach=foreach)
    mine.load_state_dict(saved_theirs)
    theirs.load_state_dict(saved_mine)
    assert mine.param_groups[1]["eps"] == (1e-3, 0.1)
    for row in grads[7:]:
        mine.step(in_groups(row))
        for tensor, grad in zip(tensors, row, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        theirs.step()
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12, atol=1e-13)


# ---- the twin, and float32

@pytest.mark.parametrize(("dtype", "options"), [*(("float64", options) for options in OPTIONS),
                                                *(("float32", options) for options in OPTIONS[:-1])], ids=name_of)
def test_agrees_with_the_reference(dtype, options):
    params, grads = problem(30, dtype)
    twins, states, counts = copies(params), [{} for _ in params], [0] * len(params)
    optimizer = fastopt.Adafactor(params, **options)
    for row in grads:
        optimizer.step(row)
        for i, grad in enumerate(row):
            if grad is not None:
                counts[i] += 1
                reference.adafactor(twins[i], grad, states[i], counts[i], **options)
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(param, twin, **(dict(rtol=1e-12, atol=1e-13) if dtype == "float64"
                                                   else dict(rtol=5e-5, atol=5e-5)))


@every_option_but_the_last
def test_float32_is_within_a_few_ulp_of_float64_at_each_step(options):
    params, grads = problem(12, "float32")
    options = {"eps": (float(np.finfo("float32").eps), 1e-3)} | options
    narrow = fastopt.Adafactor(params, **options)
    unit = np.finfo("float32").eps
    for row in grads:
        exact = [param.astype("float64") for param in params]
        wide = fastopt.Adafactor(exact, **options)
        saved = copy.deepcopy(narrow.state_dict())
        wide.load_state_dict(saved)
        before = copies(params)
        narrow.step(row)
        wide.step([None if grad is None else grad.astype("float64") for grad in row])
        for i, state in narrow.state.items():
            for key, value in state.items():
                np.testing.assert_allclose(value, wide.state[i][key], rtol=2 * unit)
            size = np.abs(before[i]) + np.abs(exact[i] - before[i])
            assert (np.abs(params[i] - exact[i]) <= 4 * unit * size).all()


@both_dtypes
def test_a_gradient_of_the_other_dtype_is_converted(dtype):
    params, grads = problem(8, dtype)
    twins = copies(params)
    other = {"float32": "float64", "float64": "float32"}[dtype]
    given = [[None if grad is None else np.asarray(grad.astype(other) * (1 + 4e-8)) for grad in row] for row in grads]
    first, second = fastopt.Adafactor(params), fastopt.Adafactor(twins)
    for row in given:
        first.step(row)
        second.step([None if grad is None else grad.astype(dtype) for grad in row])
    assert [param.tobytes() for param in params] == [twin.tobytes() for twin in twins]


# ---- bits

BIT_SHAPES = ((5, 7), (1, 33), (33, 1), (66, 40), (66, 1), (64, 31), (3, 4100), (131, 65), (2, 3, 70, 4), (1023,),
              (), (0,))


def bits(dtype, *, given=None, offset=0, scale=1.0, **options):
    """Every parameter and state after some steps, as bytes: half of the shapes with special values in them."""
    rng = np.random.default_rng(3)
    result = b""
    for special_ones in (False, True):
        def draw(shape, scale=1.0, dtype=dtype, special_ones=special_ones):
            size = int(np.prod(shape))
            flat = (special(rng, size, dtype) if special_ones else rng.standard_normal(size)) * scale
            return placed(flat.astype(dtype), offset).reshape(shape)

        with np.errstate(all="ignore"):
            params = [draw(shape) for shape in BIT_SHAPES]
            optimizer = fastopt.Adafactor(params, **options)
            for _ in range(4):
                optimizer.step([draw(shape, scale, given or dtype) for shape in BIT_SHAPES])
        result += b"".join(param.tobytes() for param in params)
        result += b"".join(np.asarray(value).tobytes() for state in optimizer.state.values()
                           for value in state.values())
    return result


@both_dtypes
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e-22])
@pytest.mark.parametrize("flush", [True, False])
def test_levels(dtype, given, scale, flush, monkeypatch):
    monkeypatch.setattr(threads, "flush_subnormals", flush)
    results = set()
    for level in simd.available():
        use_level(monkeypatch, level)
        results.add(bits(dtype, given=given, scale=scale) + bits(dtype, given=given, scale=scale, weight_decay=0.1))
    assert len(results) == 1


@both_dtypes
@pytest.mark.parametrize("shape", [(5, 7), (70, 3), (40,)], ids=str)
def test_every_nan_that_comes_out_is_the_same(dtype, shape):
    """Which of two NaN survives a sum is up to the compiler: so there is one."""
    param, grad = np.ones(shape, dtype), np.ones(shape, dtype)
    param.flat[2], param.flat[3], grad.flat[3], grad.flat[4] = np.nan, -np.nan, np.nan, -np.nan
    optimizer = fastopt.Adafactor(param)
    for _ in range(2):
        optimizer.step(grad)
    arrays = [param, *(value for key, value in optimizer.state[0].items() if key != "step")]
    assert len({array.dtype.type(x).tobytes() for array in arrays for x in array.flat if np.isnan(x)}) == 1


@both_dtypes
def test_alignment(dtype):
    assert len({bits(dtype, offset=offset) for offset in (0, 1, 3, 5)}) == 1


def test_threads(monkeypatch):
    serial = bits("float32")
    monkeypatch.setattr(threads, "num_threads", 2)
    assert bits("float32") == serial


@both_dtypes
def test_subnormals_are_flushed_and_the_mode_of_the_thread_is_restored(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    param = np.full((4, 4), tiny)
    fastopt.Adafactor(param).step(np.zeros((4, 4), dtype))
    assert (param == 0).all()
    assert np.full(3, tiny)[0] != 0
    assert tiny * np.ones(1, dtype) != 0


# ---- memory and state

@pytest.mark.parametrize("shape", [(1000, 500), (8, 60000), (1, 500000), (500000, 1), (4, 300, 400), (500000,)],
                         ids=str)
@both_dtypes
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_no_temporary_of_full_size(shape, dtype, given, scale):
    param, grad = np.ones(shape, dtype), np.full(shape, scale, given)
    optimizer = fastopt.Adafactor(param, weight_decay=0.1)
    optimizer.step(grad)
    tracemalloc.start()
    try:
        optimizer.step(grad)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        optimizer.step(grad)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 10_000  # sums of 500 columns in double; the parameter has at least 1.9 MB


def test_the_state_takes_rows_and_columns():
    optimizer = fastopt.Adafactor([np.ones((30, 20)), np.ones((2, 3, 4)), np.ones(7), np.ones(())])
    optimizer.step([np.ones((30, 20)), np.ones((2, 3, 4)), np.ones(7), np.ones(())])
    shapes = [{key: np.shape(value) for key, value in state.items()} for state in optimizer.state.values()]
    assert shapes == [
        {"step": (), "row_var": (30, 1), "col_var": (1, 20)},
        {"step": (), "row_var": (2, 3, 1), "col_var": (2, 1, 4)},
        {"step": (), "variance": (7,)},
        {"step": (), "variance": ()},
    ]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_an_empty_parameter_is_counted_only(shape):
    param, other = np.ones(shape), np.ones(2)
    optimizer = fastopt.Adafactor([param, other])
    for _ in range(2):
        optimizer.step([np.ones(shape), np.ones(2)])
    assert optimizer.state[0]["step"] == 2
    assert other[0] < 1
    fastopt.Adafactor([np.ones(shape), np.ones(2)]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))],
                         ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(duplicate):
    params, grads = problem(8)
    first = fastopt.Adafactor(params, lr=0.1, weight_decay=0.1)
    for row in grads[:4]:
        first.step(row)
    second = duplicate(first)
    twins = second.param_groups[0]["params"]
    assert not any(np.shares_memory(param, twin) for param, twin in zip(params, twins, strict=True))
    for row in grads[4:]:
        first.step(row)
        second.step(row)
    assert snapshot(first, params) == snapshot(second, twins)


def test_a_checkpoint_that_does_not_fit_changes_nothing():
    params = [np.ones((4, 3)), np.ones(2)]
    optimizer = fastopt.Adafactor(params)
    optimizer.step([np.ones((4, 3)), np.ones(2)])
    before = snapshot(optimizer, params)
    for key, wrong in (("row_var", np.ones((1, 4))), ("col_var", np.ones(3)), ("variance", np.ones(4))):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][key] = wrong
        with pytest.raises(ValueError, match=f"state '{key}' of parameter 0 must have shape"):
            optimizer.load_state_dict(saved)
    assert snapshot(optimizer, params) == before


# ---- use

def test_it_minimises_a_quadratic():
    rng = np.random.default_rng(0)
    wanted = [rng.standard_normal(shape) for shape in ((30, 20), (2, 3, 4), (9,), ())]
    params = [np.zeros_like(array) for array in wanted]
    optimizer = fastopt.Adafactor(params, lr=lambda step: 0.3 * 0.99**step)
    for _ in range(1000):
        optimizer.step([2 * (param - array) for param, array in zip(params, wanted, strict=True)])
    for param, array in zip(params, wanted, strict=True):
        np.testing.assert_allclose(param, array, atol=1e-3)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"lr": -1.0}, ValueError, "lr must be at least 0, got -1.0"),
    ({"beta2_decay": 0.1}, ValueError, "beta2_decay must be at most 0, got 0.1"),
    ({"d": 0.9}, ValueError, "d must be at least 1, got 0.9"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0"),
    ({"eps": (-1e-3, 1e-3)}, ValueError, r"eps\[0\] must be at least 0"),
    ({"eps": (None, -1e-3)}, ValueError, r"eps\[1\] must be at least 0"),
    ({"eps": (1e-3, None)}, TypeError, r"eps\[1\] must be a number, got None"),
    ({"eps": 1e-3}, TypeError, "eps must be a pair of a number or None and a number, got 0.001"),
    ({"maximize": 1}, TypeError, "maximize must be True or False"),
], ids=str)
def test_wrong_hyperparameters(options, error, message):
    with pytest.raises(error, match=message):
        fastopt.Adafactor(np.ones(2), **options)
    with pytest.raises(error, match=message):
        fastopt.Adafactor([{"params": [np.ones(2)], **options}])


@pytest.mark.parametrize("grads", [[np.ones((4, 3)), np.ones(3)], [np.ones((3, 4)), np.ones(2)],
                                   [np.ones((3, 4)).T, np.ones(3)], [np.ones((4, 3), int), np.ones(3)]])
def test_a_step_that_raises_changes_nothing(grads):
    params = [np.ones((4, 3)), np.ones(2)]
    optimizer = fastopt.Adafactor(params)
    optimizer.step([np.ones((4, 3)), np.ones(2)])
    before = snapshot(optimizer, params)
    with pytest.raises((TypeError, ValueError), match="gradient of parameter"):
        optimizer.step(grads)
    assert snapshot(optimizer, params) == before


def test_hyperparameters_change_between_steps():
    params, grads = problem(6)
    twins = copies(params)
    optimizer, other = fastopt.Adafactor(params, d=lambda step: 1.0 + step), fastopt.Adafactor(twins)
    for step, row in enumerate(grads):
        optimizer.step(row)
        other.param_groups[0]["d"] = 1.0 + step
        other.step(row)
    assert snapshot(optimizer, params) == snapshot(other, twins)


@pytest.mark.parametrize("method", [fastopt.Adafactor, fastopt.Muon])
def test_a_step_with_stages_allocates_no_array(method):
    params = [np.ones((300, 400), "float32")]
    optimizer, grads = method(params), [np.full((300, 400), 1e-3, "float32")]
    optimizer.set_stages(clip=0.01, statistics=True, lookahead=(2, 0.5), average=fastopt.averages.EMA(params, 0.5))
    for _ in range(4):
        optimizer.step(grads)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(2):
            optimizer.step(grads)
        assert tracemalloc.get_traced_memory()[1] - before < params[0].nbytes / 2
    finally:
        tracemalloc.stop()
