"""The averages follow their parameters as torch's do, come and go in their place, and are saved and copied whole."""

import copy
import pickle
import signal
import threading

import numpy as np
import pytest
from common import SIZES, both_dtypes, copies, inputs, placed, special, use_level

import fastopt
from fastopt import averages, reference, schedules
from fastopt.averages import EMA, SWA
from fastopt.kernels import rules, simd, threads
from fastopt.kernels.plan import AS_IT_IS, Plan

DTYPES = ("float32", "float64", "complex64", "complex128")
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

# class, arguments, and what the averages must be, anew in double precision from all parameters so far
AVERAGES = {
    "EMA": (EMA, {}),
    "EMA half": (EMA, {"decay": 0.5}),
    "EMA short": (EMA, {"decay": 0.1}),
    "EMA none": (EMA, {"decay": 0.0}),
    "EMA schedule": (EMA, {"decay": schedules.linear_schedule(0.2, 0.95, 30)}),
    "EMA warmup": (EMA, {"warmup": True}),
    "EMA warmup slow": (EMA, {"warmup": True, "inv_gamma": 10.0, "power": 0.75, "min_decay": 0.3, "decay": 0.9}),
    "EMA late": (EMA, {"decay": 0.9, "update_after_step": 7}),
    "EMA debiased": (EMA, {"decay": 0.9, "debias": True}),
    "SWA": (SWA, {}),
}
every_average = pytest.mark.parametrize(("cls", "arguments"), AVERAGES.values(), ids=AVERAGES)


def numbers(rng, shape, dtype):
    x = rng.standard_normal(shape)
    return np.asarray(x + 1j * rng.standard_normal(shape) if "complex" in dtype else x, dtype)


def walk(params, steps, seed=1):
    """Changes the parameters in place, step by step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for param in params:
            param[...] = param + 0.1 * numbers(rng, param.shape, param.dtype.name)
        yield


def as_bytes(arrays):
    return [array.tobytes() for array in arrays]


# ---- the rule

def ran(average, param, weight, level=None, num_threads=None):
    plan = Plan("average", level)
    plan.extend(average, [None] * len(average), 0)
    plan.begin(param)
    rule = rules.average(first=weight == 1.0, light=weight < 0.5, w=weight, rest=1.0 - weight)
    plan.run([(AS_IT_IS, rule, ())], num_threads)
    return b"".join(as_bytes(average))


def drawn(dtype, offset=0, size=special):
    rng = np.random.default_rng(3)
    return [[placed(special(rng, n, dtype), k * offset % 7) for n in SIZES] for k in (1, 3)]


@both_dtypes
@pytest.mark.parametrize("weight", [1.0, 0.999, 0.5, 0.4999, 1e-3, 1e-9, 0.0])
def test_the_rule_has_the_same_bits_everywhere(weight, dtype, team):
    results = {ran(*drawn(dtype, offset), weight, level, n)
               for level in simd.available() for n in (1, 2, 7) for offset in (0, 1, 3)}
    assert len(results) == 1


@pytest.mark.parametrize("weight", [1.0, 0.9, 1e-3])
def test_the_rule_has_the_same_bits_with_subnormals(weight, monkeypatch):
    monkeypatch.setattr(threads, "flush_subnormals", False)
    assert len({ran(*drawn("float32"), weight, level) for level in simd.available()}) == 1


@both_dtypes
@pytest.mark.parametrize("weight", [1.0, 0.9, 1e-3])
def test_the_same_nan_everywhere(weight, dtype):
    payloads = np.array([np.nan, -np.nan, np.nan, 1.0, np.inf], dtype)
    payloads.view(f"u{payloads.itemsize}")[2] += 5
    average, param = (np.tile(array.reshape(-1), 3) for array in np.meshgrid(payloads, payloads))  # beside tails too
    results = {ran([average.copy()], [param], weight, level) for level in simd.available()}
    assert len(results) == 1
    assert np.isnan(np.frombuffer(results.pop(), dtype)).sum() >= 3 * (15 if weight == 1 else 21)


@every_dtype
@pytest.mark.parametrize("weight", [1.0, 0.7, 0.5, 0.3, 1e-3])
def test_the_rule_is_that_of_the_reference(weight, dtype):
    rng = np.random.default_rng(0)
    for size in SIZES:
        average, param = numbers(rng, size, dtype), numbers(rng, size, dtype)
        twin = average.copy()
        reference.average(twin, param, weight)
        ran([average], [param], weight)
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(average, twin, rtol=2 * eps, atol=2 * eps)


def test_what_is_not_finite_goes_through():
    average, param = np.array([0.0, 1.0, np.nan, np.inf]), np.array([np.nan, np.inf, 0.0, np.inf])
    for weight, towards_infinity in ((1e-3, np.inf), (0.9, np.nan)):  # inf - (1 - w) inf, as in torch
        mean = average.copy()
        ran([mean], [param], weight)
        np.testing.assert_array_equal(mean, [np.nan, towards_infinity, np.nan, np.nan])
    ran([average], [param], 1.0)
    np.testing.assert_array_equal(average, param)


# ---- the weights

def oracle(cls, arguments, history):
    """The average of a history of values, from the definition of each method rather than step by step."""
    if cls is SWA:
        return np.mean(history, axis=0)
    options = {"decay": 0.999, "update_after_step": 0, "min_decay": 0.0, "inv_gamma": 1.0, "power": 2 / 3} | arguments
    history = history[min(options["update_after_step"], len(history) - 1):]
    if options.get("debias"):
        shares = [options["decay"] ** (len(history) - 1 - i) for i in range(len(history))]
        return sum(share * value for share, value in zip(shares, history, strict=True)) / sum(shares)
    average = history[0]
    for t, value in enumerate(history[1:], 1):
        decay = options["decay"](t) if callable(options["decay"]) else options["decay"]
        if options.get("warmup"):
            decay = min(decay, 1 - (1 + t / options["inv_gamma"]) ** -options["power"])
        decay = max(decay, options["min_decay"])
        average = decay * average + (1 - decay) * value
    return average


@every_average
@every_dtype
def test_the_average_is_that_of_its_definition(cls, arguments, dtype):
    rng = np.random.default_rng(0)
    params = [numbers(rng, shape, dtype) for shape in ((5, 3), (), (0,), (17,))]
    average = cls(params, **arguments)
    histories = [[] for _ in params]
    eps = np.finfo(dtype).eps
    for count, _ in enumerate(walk(params, 40), 1):
        average.update()
        for param, mean, history in zip(params, average.averages, histories, strict=True):
            history.append(param.astype(complex if "complex" in dtype else float))
            assert mean.dtype == dtype
            np.testing.assert_allclose(mean, oracle(cls, arguments, history), rtol=4 * eps, atol=20 * eps)
            if count == 1:
                assert mean.tobytes() == param.tobytes()
    assert average.n_averaged == 40


@every_average
def test_coefficients_are_pure_and_those_of_the_update(cls, arguments):
    average = cls(np.zeros(1), **arguments)
    wanted = [average.coefficients(count) for count in range(1, 30)]
    assert wanted[0] == (1.0, 0.0)
    assert all(0 < w <= 1 and u == 1.0 - w for w, u in wanted)
    param = np.zeros(1)
    other = cls(param, **arguments)
    for w, _ in wanted:  # an average of 0 moves by the weight towards 1
        other.averages[0][:], param[:] = 0.0, 1.0
        other.update()
        assert other.averages[0] == w
    assert [average.coefficients(count) for count in range(1, 30)] == wanted


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(("cls", "arguments", "function"), [
    (EMA, {}, "ema_multi_avg_fn"), (EMA, {"decay": 0.9}, "ema_multi_avg_fn"), (EMA, {"decay": 0.3}, "ema_avg_fn"),
    (SWA, {}, "swa_avg_fn"), (SWA, {}, "swa_multi_avg_fn")])
def test_agrees_with_torch(cls, arguments, function, dtype):
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("torch.optim.swa_utils")
    rng = np.random.default_rng(0)
    params = [numbers(rng, shape, dtype) for shape in ((5, 3), (), (17,))]
    model = torch.nn.Module()
    for i, param in enumerate(params):
        model.register_parameter(str(i), torch.nn.Parameter(torch.tensor(param)))
    argument = [] if cls is SWA else [arguments.get("decay", 0.999)]
    theirs = utils.AveragedModel(model, **{function[4:]: getattr(utils, f"get_{function}")(*argument)})
    ours = cls(params, **arguments)
    # here torch divides by the count in float32
    eps = np.finfo("float32" if function == "swa_multi_avg_fn" else dtype).eps
    for _ in walk(params, 100):
        for tensor, param in zip(model.parameters(), params, strict=True):
            tensor.data.copy_(torch.tensor(param))
        theirs.update_parameters(model)
        ours.update()
        for mine, their in zip(ours.averages, theirs.module.parameters(), strict=True):
            np.testing.assert_allclose(mine, their.detach().numpy(), rtol=0, atol=20 * eps)
    assert ours.n_averaged == int(theirs.n_averaged) == 100
    # a checkpoint of torch loads
    other = cls([np.zeros_like(param) for param in params], **arguments)
    other.load_state_dict(theirs.state_dict())
    assert other.n_averaged == 100
    for mine, their in zip(other.averages, theirs.module.parameters(), strict=True):
        assert mine.tobytes() == their.detach().numpy().tobytes()
    # and the reverse
    theirs.load_state_dict({key: torch.as_tensor(value) for key, value in ours.state_dict().items()})
    for mine, their in zip(ours.averages, theirs.module.parameters(), strict=True):
        assert mine.tobytes() == their.detach().numpy().tobytes()


@pytest.mark.parametrize("options", [{"decay": 0.9}, {"decay": 0.5, "debias": True}])
def test_debiasing_is_that_of_optax(options):
    optax = pytest.importorskip("optax")
    param = np.zeros(5)
    ours = EMA(param, **{"debias": False} | options)
    theirs = optax.ema(options["decay"], debias=options.get("debias", False))
    state = theirs.init(param.astype("float32"))
    for count, _ in enumerate(walk([param], 20)):
        ours.update()
        mean, state = theirs.update(param.astype("float32"), state)
        if options.get("debias"):
            np.testing.assert_allclose(ours.averages[0], mean, rtol=1e-5, atol=1e-6)
        elif count < 5:
            assert not np.allclose(ours.averages[0], mean, rtol=0.01)  # without, optax begins at zero


def test_double_precision_moves_where_float32_stands_still():
    param = np.ones(100, "float32")
    single, double = SWA(param), SWA(param, dtype="float64")
    for average in (single, double):
        average.update()
        average.n_averaged = 10**7
    param[:] = 1.5
    for average in (single, double):
        average.update()
    assert np.all(single.averages[0] == 1)
    assert double.averages[0].dtype == float
    np.testing.assert_allclose(double.averages[0] - 1, 0.5 / (10**7 + 1), rtol=1e-8)
    assert EMA(np.ones(2, "complex64"), dtype="float64").averages[0].dtype == complex


# ---- the structures of parameters

def model():
    rng = np.random.default_rng(2)
    return {"a": rng.standard_normal((3, 2)), "b": [rng.standard_normal(4), rng.standard_normal(())]}


STRUCTURES = {
    "array": lambda: np.arange(6.0),
    "list": lambda: [np.arange(6.0), np.ones((2, 2), "float32")],
    "mapping": model,
    "pairs": lambda: [("x", np.arange(3.0)), ("y", np.arange(4.0))],
    "iterator": lambda: iter([np.arange(3.0), np.arange(4.0)]),
    "groups": lambda: [{"params": [np.arange(3.0)], "lr": 0.5}, {"params": [np.arange(4.0)]}],
    "optimizer": lambda: fastopt.AdamW(model()),
    "hybrid": lambda: fastopt.MuonAdamW(model()),
}


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=STRUCTURES)
def test_structures(make):
    given = make()
    average = EMA(given, decay=0.5)
    live = average._source._plan.params
    for _ in walk(live, 3):
        average.update()
    assert len(average.averages) == len(live) > 0
    for mean, param in zip(average.averages, live, strict=True):
        assert mean.shape == param.shape and mean.dtype == param.dtype
        assert not np.shares_memory(mean, param) and not np.array_equal(mean, param)
    if isinstance(given, fastopt.Optimizer):
        assert average._source is given


def test_an_average_averages_the_steps_of_its_optimizer():
    params, grads = inputs(5, skip=False)
    optimizer = fastopt.SGD(params, lr=0.1)
    ema = EMA(optimizer, decay=0.5)
    wanted = None
    for row in grads:
        optimizer.step(row)
        ema.update()
        wanted = copies(params) if wanted is None else [0.5 * mean + 0.5 * param
                                                        for mean, param in zip(wanted, params, strict=True)]
    for mean, want in zip(ema.averages, wanted, strict=True):
        np.testing.assert_allclose(mean, want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("of_optimizer", [True, False])
def test_rebound_parameters_are_averaged(of_optimizer):
    params = {"w": np.zeros(3)}
    optimizer = fastopt.SGD(params)
    ema = EMA(optimizer if of_optimizer else params, decay=0.5)
    ema.update()
    moved = {"w": np.full(3, 4.0)}
    (optimizer if of_optimizer else ema).rebind(moved)
    ema.update()
    np.testing.assert_array_equal(ema.averages[0], 2.0)
    with ema.average_parameters():
        np.testing.assert_array_equal(moved["w"], 2.0)
        np.testing.assert_array_equal(params["w"], 0.0)


def test_threads_and_levels_of_an_object(team, monkeypatch):
    results, teams = set(), []
    run = threads.parallel().run
    monkeypatch.setattr(threads.parallel(), "run", lambda *args: (teams.append(args[-1]), run(*args)))
    for level in simd.available():
        use_level(monkeypatch, level)
        for n in (None, 3):
            params = [placed(special(np.random.default_rng(5), size, "float32"), 1) for size in SIZES]
            ema = EMA(params, decay=0.7)
            ema.num_threads = n
            for _ in walk(params, 3):
                ema.update()
            results.add(b"".join(as_bytes(ema.averages)))
    assert len(results) == 1
    assert set(teams) == {3}
    with pytest.raises(ValueError, match="num_threads"):
        ema.num_threads = 0


# ---- instead of the parameters

def trained(dtype=None, own="float32", **arguments):
    """An optimizer, its parameters (one longer than a block, NaN among them) and their average, after some steps."""
    rng = np.random.default_rng(0)
    params = [np.asarray(rng.standard_normal(shape), own) for shape in ((300, 301), (), (0,), (7,))]
    optimizer = fastopt.SGD(params)
    ema = EMA(optimizer, decay=0.5, dtype=dtype, **arguments)
    for _ in walk(params, 3):
        ema.update()
    params[3].view(f"u{params[3].itemsize}")[:2] = 0x7FC00123, 5  # a NaN with a payload, a subnormal
    return optimizer, params, ema


@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("own", DTYPES[:3:2])
def test_averages_come_and_go(dtype, own):
    _, params, ema = trained(dtype, own) if own == "float32" else trained(dtype, "float64")
    before, means = as_bytes(params), copies(ema.averages)
    with ema.average_parameters():
        for param, mean in zip(params, means, strict=True):
            np.testing.assert_array_equal(param, mean.astype(param.dtype))
    assert as_bytes(params) == before
    assert as_bytes(ema.averages) == as_bytes(means)
    ema.update()


def test_after_an_exception_all_is_as_before():
    optimizer, params, ema = trained()
    before, means = as_bytes(params), as_bytes(ema.averages)
    with pytest.raises(ZeroDivisionError), ema.average_parameters():
        assert as_bytes(params) == means
        params[0].flags.writeable = False
        1 / 0  # noqa: B018
    params[0].flags.writeable = True
    assert (as_bytes(params), as_bytes(ema.averages)) == (before, means)
    ema.update()
    optimizer.step([None] * 4)


@pytest.mark.parametrize("when", [1, 2])
def test_interrupted_while_exchanging_all_is_as_before(when, monkeypatch):
    _, params, ema = trained()
    before, means = as_bytes(params), as_bytes(ema.averages)
    calls, exchange = [], averages.exchange

    def interrupted(*args):
        calls.append(args)
        if len(calls) == when:
            signal.raise_signal(signal.SIGINT)
        exchange(*args)

    monkeypatch.setattr(averages, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt), ema.average_parameters():
        assert when == 2
    assert len(calls) == 2
    assert (as_bytes(params), as_bytes(ema.averages)) == (before, means)
    ema.update()


MEANWHILE = {
    "nested": lambda ema, optimizer: ema.average_parameters().__enter__(),
    "update": lambda ema, optimizer: ema.update(),
    "step": lambda ema, optimizer: optimizer.step([None] * 4),
    "averages": lambda ema, optimizer: ema.averages,
    "copy_to": lambda ema, optimizer: ema.copy_to(),
    "rebind": lambda ema, optimizer: ema.rebind(copies(optimizer.param_groups[0]["params"])),
    "state_dict": lambda ema, optimizer: ema.state_dict(),
    "load_state_dict": lambda ema, optimizer: ema.load_state_dict({}),
    "copy": lambda ema, optimizer: copy.deepcopy(ema),
    "another thread": lambda ema, optimizer: in_thread(ema.update),
}


def in_thread(function):
    caught = []

    def run():
        try:
            function()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in caught:
        raise error


@pytest.mark.parametrize("what", MEANWHILE.values(), ids=MEANWHILE)
def test_meanwhile_what_needs_the_averages_is_refused(what):
    optimizer, params, ema = trained()
    before, means = as_bytes(params), as_bytes(ema.averages)
    with ema.average_parameters():
        with pytest.raises(RuntimeError, match="averages are in the parameters"):
            what(ema, optimizer)
        assert as_bytes(params) == means
    assert (as_bytes(params), as_bytes(ema.averages)) == (before, means)
    assert (ema.n_averaged, optimizer.step_count) == (3, 0)


def test_two_averages_of_the_same_parameters_nest():
    optimizer, params, ema = trained()
    swa = SWA(optimizer)
    before = as_bytes(params)
    with ema.average_parameters(), swa.average_parameters():
        np.testing.assert_array_equal(params[3], np.frombuffer(before[3], "float32"))
    assert as_bytes(params) == before


def test_what_is_written_meanwhile_goes_into_the_averages():
    _, params, ema = trained()
    before = as_bytes(params)
    with ema.average_parameters():
        params[0][...] = 9.0
    assert as_bytes(params) == before
    np.testing.assert_array_equal(ema.averages[0], 9.0)


def test_no_memory_is_needed_to_exchange():
    import tracemalloc

    param = np.zeros(3_000_000, "float32")
    ema = EMA(param)
    tracemalloc.start()
    with ema.average_parameters():
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000


def test_a_parameter_that_cannot_be_written_changes_nothing():
    _, params, ema = trained()
    params[3].flags.writeable = False
    before, means = as_bytes(params), as_bytes(ema.averages)
    for function in (lambda: ema.average_parameters().__enter__(), ema.copy_to):
        with pytest.raises(ValueError, match="parameter 3 is read-only"):
            function()
        assert (as_bytes(params), as_bytes(ema.averages)) == (before, means)
    ema.update()  # reads only
    assert ema.n_averaged == 4


def test_copy_to():
    _, params, ema = trained()
    means = copies(ema.averages)
    others = [np.zeros(param.shape, dtype) for param, dtype in zip(params, ("f8", "f4", "f4", "f8"), strict=True)]
    ema.copy_to(others)
    ema.copy_to(fastopt.SGD(twins := copies(params)))
    ema.copy_to()
    for param, mean, other, twin in zip(params, means, others, twins, strict=True):
        assert param.tobytes() == mean.tobytes() == twin.tobytes()
        np.testing.assert_array_equal(other, mean)
    named = EMA({"a": np.full(2, 1.0), "b": np.full(2, 2.0)})
    swapped = {"b": np.zeros(2), "a": np.zeros(2)}
    named.copy_to(swapped)
    np.testing.assert_array_equal(swapped["a"], 1.0)
    np.testing.assert_array_equal(swapped["b"], 2.0)


# ---- checkpoints and copies

def resumed(ema, params, way):
    """Another average of other parameters, with the state of `ema`."""
    if way == "pickle":
        return pickle.loads(pickle.dumps((params, ema)))
    if way == "deepcopy":
        return copy.deepcopy((params, ema))
    other = [np.zeros_like(param) for param in params]
    for mine, param in zip(other, params, strict=True):
        mine[...] = param
    arguments = ema._settings()
    loaded = type(ema)(other, dtype="float64" if ema.averages[0].dtype != params[0].dtype else None, **arguments)
    loaded.load_state_dict(pickle.loads(pickle.dumps(ema.state_dict())))
    return other, loaded


@every_average
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_resuming_gives_the_same_bits(cls, arguments, way, dtype):
    params = [np.asarray(numbers(np.random.default_rng(0), shape, "float32")) for shape in ((5, 3), (), (0,), (17,))]
    ema = cls(params, dtype=dtype, **arguments)
    ema.num_threads = 2
    for _ in walk(params, 9):
        ema.update()
    others, other = resumed(ema, params, way)
    assert as_bytes(other.averages) == as_bytes(ema.averages)
    assert all(mean.ctypes.data % 64 == 0 for mean in other.averages if mean.size)
    for _ in walk(params, 9, seed=4):
        ema.update()
    after = as_bytes(ema.averages)
    for _ in walk(others, 9, seed=4):
        other.update()
    assert as_bytes(other.averages) == after
    assert other.n_averaged == 18
    assert repr(other) == repr(ema)
    if way != "state_dict":
        assert other.num_threads == 2


def test_a_copy_with_its_optimizer_stays_together():
    optimizer, _, ema = trained()
    other, copied = pickle.loads(pickle.dumps((optimizer, ema)))
    assert copied._source is other
    other.param_groups[0]["params"][3][...] = 5.0
    copied.n_averaged = 0
    copied.update()
    np.testing.assert_array_equal(copied.averages[3], 5.0)


def test_a_state_is_a_copy_and_loading_fills_the_same_arrays():
    ema = EMA({"w": np.ones(3), "b": {"c": np.ones(())}})
    ema.update()
    saved = ema.state_dict()
    assert list(saved) == ["n_averaged", "module.w", "module.b.c"]
    assert list(EMA([np.ones(3)]).state_dict()) == ["n_averaged", "module.0"]
    held = ema.averages
    saved["module.w"][:] = 7.0
    np.testing.assert_array_equal(held[0], 1.0)
    saved["n_averaged"] = 12
    ema.load_state_dict(dict(reversed(saved.items())))
    assert ema.averages[0] is held[0]
    np.testing.assert_array_equal(held[0], 7.0)
    assert ema.n_averaged == 12


BAD_STATES = {
    "no dict": (lambda s: 3, "must be a dict with 'n_averaged'"),
    "no count": (lambda s: s.pop("n_averaged") and s, "must be a dict with 'n_averaged'"),
    "count": (lambda s: s | {"n_averaged": 1.5}, "must be a whole number"),
    "missing": (lambda s: s.pop("module.w") is None or s, "lacks 'module.w'"),
    "unknown": (lambda s: s | {"module.v": np.ones(3)}, "has 'module.v', which is no parameter here"),
    "shape": (lambda s: s | {"module.b": np.ones(3)}, r"state 'module.b' of parameter 'b' must have shape \(2,\)"),
    "kind": (lambda s: s | {"module.b": np.ones(2, complex)}, "must be floating point"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    ema = EMA({"w": np.ones(3), "b": np.ones(2)})
    ema.update()
    state = change(ema.state_dict() | {"module.w": np.zeros(3), "n_averaged": 9})
    with pytest.raises((TypeError, ValueError), match=message):
        ema.load_state_dict(state)
    np.testing.assert_array_equal(ema.averages[0], 1.0)
    assert ema.n_averaged == 1


# ---- errors

BAD_ARGUMENTS = [
    (EMA, {"decay": 1.5}, ValueError, "decay must be at least 0 and at most 1, got 1.5"),
    (EMA, {"decay": -0.1}, ValueError, "decay must be at least 0"),
    (EMA, {"decay": "x"}, TypeError, "decay must be a number"),
    (EMA, {"decay": float("nan")}, ValueError, "decay must be finite"),
    (EMA, {"min_decay": 0.9999}, ValueError, "min_decay must be at most decay, 0.999, got 0.9999"),
    (EMA, {"min_decay": 2}, ValueError, "min_decay must be at least 0 and at most 1"),
    (EMA, {"inv_gamma": 0}, ValueError, "inv_gamma must be above 0"),
    (EMA, {"power": -1}, ValueError, "power must be above 0"),
    (EMA, {"update_after_step": 1.5}, ValueError, "update_after_step must be a whole number"),
    (EMA, {"warmup": 1}, TypeError, "warmup must be True or False"),
    (EMA, {"debias": None}, TypeError, "debias must be True or False"),
    (EMA, {"debias": True, "warmup": True}, ValueError, "debias needs a decay that is a number, without warmup"),
    (EMA, {"debias": True, "decay": lambda t: 0.9}, ValueError, "debias needs a decay that is a number"),
    (EMA, {"debias": True, "decay": 1.0}, ValueError, "decay with debias must be at least 0 and less than 1"),
    (EMA, {"dtype": "float32"}, ValueError, "dtype must be one of None, 'float64', got 'float32'"),
    (SWA, {"dtype": 1}, ValueError, "dtype must be one of"),
]


@pytest.mark.parametrize(("cls", "arguments", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(np.zeros(2), **arguments)


@pytest.mark.parametrize(("params", "error", "message"), [
    ([], ValueError, "params is empty"),
    ({"w": np.zeros(3, int)}, TypeError, "parameter 'w' must be float32"),
    ([np.zeros((2, 3)).T], ValueError, "parameter 0 must be C-contiguous"),
    (3, TypeError, "parameter 0 must be an array"),
    ([("a", np.zeros(2)), ("a", np.zeros(2))], ValueError, "'a' is used more than once"),
    ([SHARED := np.zeros(2), SHARED], ValueError, "share memory"),
])
def test_bad_parameters(params, error, message):
    for cls in (EMA, SWA):
        with pytest.raises(error, match=message):
            cls(params)


def test_a_bad_decay_of_a_schedule_changes_nothing():
    param = np.zeros(2)
    ema = EMA(param, decay=lambda t: 0.5 if t < 2 else 2.0)
    ema.update()
    ema.update()
    param[:] = 1.0
    with pytest.raises(ValueError, match="decay must be at least 0 and at most 1, got 2.0"):
        ema.update()
    np.testing.assert_array_equal(ema.averages[0], 0.0)
    assert ema.n_averaged == 2


def test_parameters_that_changed_are_named():
    params = {"w": np.zeros(3), "b": np.zeros(2)}
    optimizer = fastopt.SGD(params)
    ema = EMA(optimizer)
    params["b"].resize(3, refcheck=False)
    for function in (ema.update, ema.copy_to, lambda: ema.average_parameters().__enter__()):
        with pytest.raises(ValueError, match=r"parameter 'b' must have shape \(2,\) and a dtype like float64, got"):
            function()
    params["b"].resize(2, refcheck=False)
    optimizer.rebind(params)
    ema.update()
    optimizer.add_param_group({"params": {"c": np.zeros(2)}})
    for function in (ema.update, ema.copy_to, lambda: ema.average_parameters().__enter__()):
        with pytest.raises(ValueError, match="the optimizer has 3 parameters, this average 2"):
            function()
    assert ema.n_averaged == 1


BAD_TARGETS = [
    ({"w": np.zeros(3)}, ValueError, "params must have 2 arrays, as the average, got 1"),
    ({"w": np.zeros(3), "c": np.zeros(2)}, ValueError, "the parameter 'b' is on one side only"),
    ({"w": np.zeros(3), "b": np.zeros(3)}, ValueError, r"parameter 'b' must have shape \(2,\)"),
    ({"w": np.zeros(3), "b": np.zeros(2, complex)}, ValueError, "parameter 'b' must have .* a dtype like float64"),
    ({"w": np.zeros(3), "b": np.zeros(2, int)}, TypeError, "parameter 'b' must be float32"),
]


@pytest.mark.parametrize(("target", "error", "message"), BAD_TARGETS)
def test_bad_targets_are_left_alone(target, error, message):
    ema = EMA({"w": np.ones(3), "b": np.ones(2)})
    with pytest.raises(error, match=message):
        ema.copy_to(target)
    assert not any(array.any() for array in target.values())


def test_the_count_is_checked_and_0_begins_anew():
    param = np.zeros(2)
    ema = EMA(param)
    ema.update()
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="step must be a whole number"):
            ema.n_averaged = wrong
    param[:] = 3.0
    ema.n_averaged = 0
    ema.update()
    np.testing.assert_array_equal(ema.averages[0], 3.0)


def test_prints_its_arguments():
    assert repr(SWA(np.zeros(2))) == "SWA(n_averaged=0)"
    assert repr(EMA(np.zeros(2), decay=0.9)).startswith("EMA(decay=0.9, warmup=False, ")


def test_memory_goes_with_the_average():
    import gc
    import weakref

    ema = EMA(fastopt.SGD(np.zeros(3)))
    ema.update()
    with ema.average_parameters():
        pass
    gone = weakref.ref(ema)
    gc.disable()
    try:
        del ema
        assert gone() is None
    finally:
        gc.enable()


def test_a_context_that_is_entered_twice_still_has_the_averages():
    w = np.zeros(2)
    average = fastopt.averages.EMA([w], 0.5)
    w[:] = 1
    context = average.average_parameters()
    with context:
        with pytest.raises(RuntimeError, match="already"):
            with context:
                pass
        assert (w == 0).all()
    assert (w == 1).all()
