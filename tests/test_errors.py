"""Bad input raises an error that names what is wrong, and changes nothing."""

import numpy as np
import pytest
from common import copies, every_method, inputs, snapshot

import fastopt
from fastopt import SGD, Adagrad, Adam, AdamW, RMSprop, functional, lr_scheduler


def readonly(array):
    array.flags.writeable = False
    return array


def misaligned(n, dtype="float64"):
    itemsize = np.dtype(dtype).itemsize
    return np.zeros(n * itemsize + 1, np.uint8)[1:].view(dtype)


SHARED = np.zeros(10)

BAD_PARAMS = {
    "list of numbers": ([1.0, 2.0], TypeError, "parameter 0 must be an array.*float"),
    "string": ("abc", TypeError, "parameter 0 must be an array"),
    "None": ([np.zeros(2), None], TypeError, "parameter 1 must be an array"),
    "nothing": ([], ValueError, "params is empty"),
    "empty mapping": ({}, ValueError, "params is empty"),
    "empty group": ([{"params": []}], ValueError, "params of a group is empty"),
    "set": ({1.0, 2.0}, TypeError, "a set has none"),
    "integers": ([np.zeros(2, int)], TypeError, "parameter 0 must be float32, float64, complex64 or complex128, got"),
    "float16": ({"w": np.zeros(2, "float16")}, TypeError, "parameter 'w' must be float32, .*, got float16"),
    "long double": ([np.zeros(2, "longdouble")], TypeError, "parameter 0 must be float32, float64, complex64 or"),
    "not contiguous": ([np.zeros((4, 4))[:, 1]], ValueError, "parameter 0 must be C-contiguous"),
    "transposed": ([np.zeros((4, 3)).T], ValueError, "parameter 0 must be C-contiguous"),
    "read-only": ([readonly(np.zeros(3))], ValueError, "parameter 0 is read-only"),
    "byte order": ([np.zeros(3, ">f8")], ValueError, "parameter 0 must be C-contiguous.*native byte order"),
    "misaligned": ([misaligned(3)], ValueError, "parameter 0 must be C-contiguous, aligned"),
    "twice": ([SHARED, SHARED], ValueError, "parameter 0 and parameter 1 share memory"),
    "overlap": ({"a": SHARED[:6], "b": SHARED[5:]}, ValueError, "parameter 'a' and parameter 'b' share memory"),
    "across groups": ([{"params": SHARED}, {"params": SHARED[3:]}], ValueError, "share memory"),
    "name twice": ([("w", np.zeros(2)), ("w", np.zeros(2))], ValueError, "the parameter name 'w' is used more"),
    "some names": ([("w", np.zeros(2)), np.zeros(2)], ValueError, "either all parameters have names or none"),
    "unknown option": ([{"params": np.zeros(2), "learning_rate": 1}], ValueError,
                       "SGD has no hyperparameter 'learning_rate'; it has lr, momentum"),
    "read-only buffer": ([memoryview(b"12345678").cast("d")], ValueError, "parameter 0 is read-only"),
}


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_bad_params(params, error, message):
    with pytest.raises(error, match=message):
        SGD(params)


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_a_refused_group_leaves_the_optimizer_as_it_was(params, error, message):
    param = np.zeros(3)
    optimizer = SGD([param], lr=1.0)
    before = repr(optimizer)
    group = params[0] if isinstance(params, list) and params and isinstance(params[0], dict) else {"params": params}
    if isinstance(params, list) and len(params) == 2 and isinstance(params[1], dict):
        optimizer.add_param_group(params[0])
        before, group = repr(optimizer), params[1]
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group(group)
    assert repr(optimizer) == before
    optimizer.step([np.ones(3), *[None] * (len(optimizer._plan) - 1)])
    np.testing.assert_array_equal(param, -1)


@pytest.mark.parametrize(("group", "error", "message"), [
    (None, TypeError, "param_group must be a dict, got NoneType"),
    ({"lr": 1.0}, ValueError, "param_group must have the key 'params'"),
    ({"params": np.zeros(2), "lr": -1}, ValueError, "lr must be at least 0, got -1"),
])
def test_bad_groups(group, error, message):
    optimizer = SGD(np.zeros(3))
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


NOT_NUMBERS = [("abc", TypeError, "must be a number"), (None, TypeError, "must be a number"),
               (True, TypeError, "must be a number"), (float("nan"), ValueError, "must be finite"),
               (float("inf"), ValueError, "must be finite"), (np.zeros(3), TypeError, "must be a number")]

BAD_HYPERPARAMETERS = [
    *[(method, name, *wrong) for method in (SGD, Adagrad, RMSprop, Adam, AdamW) for name in ("lr", "weight_decay")
      for wrong in [*NOT_NUMBERS, (-0.1, ValueError, "must be at least 0, got -0.1")]],
    (SGD, "momentum", -0.5, ValueError, "must be at least 0"),
    (SGD, "dampening", "x", TypeError, "must be a number"),
    (SGD, "nesterov", 1, TypeError, "must be True or False, got 1"),
    (SGD, "nesterov", True, ValueError, "nesterov needs momentum > 0 and dampening = 0"),
    (SGD, "maximize", None, TypeError, "must be True or False"),
    (SGD, "momentum_mode", "keras", ValueError, "must be one of 'torch', 'classic', got 'keras'"),
    (Adagrad, "lr_decay", -1, ValueError, "must be at least 0"),
    (Adagrad, "initial_accumulator_value", -1, ValueError, "must be at least 0"),
    (Adagrad, "eps", -1e-9, ValueError, "must be at least 0"),
    (Adagrad, "eps_mode", "hat", ValueError, "must be one of 'outside', 'inside', got 'hat'"),
    (RMSprop, "alpha", 1.5, ValueError, "must be at least 0 and at most 1"),
    (RMSprop, "centered", "no", TypeError, "must be True or False"),
    (RMSprop, "momentum", -1, ValueError, "must be at least 0"),
    (Adam, "betas", 0.9, TypeError, "must be a pair of numbers"),
    (Adam, "betas", (0.9, 0.99, 0.999), TypeError, "must be a pair of numbers"),
    (Adam, "betas", (1.0, 0.999), ValueError, r"betas\[0\] must be at least 0 and less than 1, got 1.0"),
    (Adam, "betas", (0.9, -0.1), ValueError, r"betas\[1\] must be at least 0 and less than 1"),
    (Adam, "eps", float("nan"), ValueError, "must be finite"),
    (AdamW, "amsgrad", "yes", TypeError, "must be True or False"),
]


@pytest.mark.parametrize(("method", "name", "value", "error", "message"), BAD_HYPERPARAMETERS)
def test_bad_hyperparameters(method, name, value, error, message):
    with pytest.raises(error, match=message) as caught:
        method(np.zeros(2), **{name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(("method", "name", "value", "error", "message"), BAD_HYPERPARAMETERS)
def test_bad_hyperparameters_set_between_steps_change_nothing(method, name, value, error, message):
    params, grads = inputs(2, skip=False)
    optimizer = method([{"params": params[:2]}, {"params": params[2:]}])
    optimizer.step(grads[0])
    before = snapshot(optimizer, params)
    good = optimizer.param_groups[1][name]
    for wrong in (value, lambda step: value):
        optimizer.param_groups[1][name] = wrong
        with pytest.raises(error):
            optimizer.step(grads[1])
        assert snapshot(optimizer, params) == before
    optimizer.param_groups[1][name] = good
    optimizer.step(grads[1])


def bad_gradients(grads):
    """Lists of gradients for `inputs`, each with something wrong in the last or only in one place."""
    yield "too few", grads[:-1], ValueError, "one entry for each of the 5 parameters"
    yield "too many", [*grads, grads[0]], ValueError, "one entry for each of the 5 parameters"
    yield "shape", [*grads[:-1], np.zeros((4, 3, 2))], ValueError, \
        r"gradient of parameter 4 must have shape \(2, 3, 4\), got \(4, 3, 2\)"
    yield "dimensions", [*grads[:-1], np.zeros(24)], ValueError, "gradient of parameter 4 must have shape"
    yield "integers", [*grads[:-1], np.zeros((2, 3, 4), int)], TypeError, \
        "gradient of parameter 4 must be float32 or float64, got int64"
    yield "complex", [*grads[:-1], np.zeros((2, 3, 4), complex)], TypeError, "must be float32 or float64, got complex"
    yield "float16", [*grads[:-1], np.zeros((2, 3, 4), "float16")], TypeError, "must be float32 or float64"
    yield "not contiguous", [np.zeros((3, 5)).T, *grads[1:]], ValueError, \
        "gradient of parameter 0 must be C-contiguous.*numpy.ascontiguousarray"
    yield "strided", [*grads[:3], np.zeros(34)[::2], grads[4]], ValueError, "gradient of parameter 3 must be C-cont"
    yield "expanded", [np.broadcast_to(np.zeros(()), (5, 3)), *grads[1:]], ValueError, "must be C-contiguous"
    yield "byte order", [np.zeros((5, 3), ">f8"), *grads[1:]], ValueError, "native byte order"
    yield "list", [*grads[:3], [0.0] * 17, grads[4]], (TypeError, ValueError), None
    yield "string", [*grads[:3], "x", grads[4]], TypeError, "gradient of parameter 3 must be an array"
    yield "misaligned", [*grads[:3], misaligned(17), grads[4]], ValueError, "aligned"
    yield "names", {"w": grads[0]}, (TypeError, ValueError), None
    yield "number", 1, (TypeError, ValueError), None


@every_method
def test_a_step_that_raises_has_changed_nothing(method):
    params, steps = inputs(3, skip=False)
    optimizer = method.optimizer([{"params": params[:3]}, {"params": params[3:]}])
    for fresh in (True, False):
        before = snapshot(optimizer, params)
        for what, grads, error, message in bad_gradients(steps[1]):
            with pytest.raises(error, match=message):
                optimizer.step(grads)
            assert snapshot(optimizer, params) == before, what
        if fresh:
            assert optimizer.state == {}
            optimizer.step(steps[0])


@every_method
def test_a_gradient_that_is_its_parameter_is_refused(method):
    params, grads = inputs(1, skip=False)
    optimizer = method.optimizer(params)
    before = copies(params)
    for shared in (params[3], params[3].view()):
        with pytest.raises(ValueError, match="gradient of parameter 3 shares memory with its parameter"):
            optimizer.step([*grads[0][:3], shared, grads[0][4]])
        assert [x.tobytes() for x in params] == [x.tobytes() for x in before]


@every_method
def test_a_parameter_that_became_read_only_is_refused(method):
    params, grads = inputs(2, skip=False)
    optimizer = method.optimizer(params)
    optimizer.bind_grads(grads[0])
    optimizer.step(grads[0])
    params[3].flags.writeable = False
    before = snapshot(optimizer, params)
    for given in (grads[1], None):
        with pytest.raises(ValueError, match="parameter 3 is read-only"):
            optimizer.step(given)
        assert snapshot(optimizer, params) == before
    params[3].flags.writeable = True
    optimizer.step(grads[1])


def test_a_parameter_whose_memory_moved_is_refused():
    param = np.zeros(4)
    optimizer = SGD(param)
    optimizer.step(np.zeros(4))
    param.resize(10_000, refcheck=False)
    with pytest.raises(ValueError, match="shape|moved"):
        optimizer.step(np.ones(4))
    with pytest.raises(ValueError, match="moved since it was given; call rebind"):
        optimizer.step(np.ones(10_000))
    optimizer.bind_grads(np.ones(10_000))
    with pytest.raises(ValueError, match="moved since it was given; call rebind"):
        optimizer.step()


def test_replacing_the_list_of_params_is_refused():
    param = np.zeros(4)
    optimizer = SGD(param)
    optimizer.param_groups[0]["params"] = [np.zeros(4)]
    with pytest.raises(ValueError, match="was replaced; rebind"):
        optimizer.step(np.ones(4))


def test_gradients_by_name_must_be_complete():
    optimizer = SGD({"w": np.zeros(2), "b": np.zeros(1)})
    with pytest.raises(ValueError, match="grads lacks 'b'"):
        optimizer.step({"w": np.zeros(2)})
    with pytest.raises(ValueError, match="has 'c', which is no parameter"):
        optimizer.step({"w": np.zeros(2), "b": np.zeros(1), "c": np.zeros(1)})
    optimizer.step({"b": np.zeros(1), "w": None})


def test_a_step_without_gradients_is_refused():
    optimizer = SGD(np.zeros(2))
    with pytest.raises(ValueError, match="needs grads"):
        optimizer.step()
    with pytest.raises(ValueError, match="grads or a closure, not both"):
        optimizer.step([np.zeros(2)], closure=lambda: 0.0)


def test_rebind_refuses_other_shapes_and_changes_nothing():
    params, grads = inputs(1, skip=False)
    optimizer = SGD(params, lr=1.0)
    good = copies(params)
    for bad, message in (
        (good[:-1], "params must have 5 arrays, got 4"),
        ([*good[:-1], np.zeros(24)], "parameter 4 must have shape"),
        ([*good[:-1], np.zeros((2, 3, 4), "float32")], "dtype float64"),
        ([*good[:-1], readonly(good[4].copy())], "read-only"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.rebind(bad)
    before = copies(params)
    optimizer.step(grads[0])
    assert not np.array_equal(params[0], before[0])
    assert np.array_equal(good[0], before[0])


def broken(saved, change):
    saved = {"state": {key: dict(value) for key, value in saved["state"].items()},
             "param_groups": [dict(group) for group in saved["param_groups"]], "step_count": saved["step_count"]}
    change(saved)
    return saved


BROKEN_CHECKPOINTS = {
    "no state": (lambda s: s.pop("state"), "must be a dict with 'state'"),
    "no groups": (lambda s: s.pop("param_groups"), "must be a dict with 'state' and 'param_groups'"),
    "groups": (lambda s: s["param_groups"].append({}), "has 2 parameter groups, this optimizer 1"),
    "parameters": (lambda s: s["param_groups"][0].update(params=[0, 1]), "group 0 has 2 parameters in the state_dict"),
    "stranger": (lambda s: s["state"].update({77: {}}), "has a state for parameter 77"),
    "shape": (lambda s: s["state"][3].update(exp_avg=np.zeros(16)), r"state 'exp_avg' of parameter 3 must have shape"),
    "dtype": (lambda s: s["state"][3].update(exp_avg=np.zeros(17, complex)), "must be floating point"),
    "slot": (lambda s: s["state"][3].update(momentum_buffer=np.zeros(17)), "has 'momentum_buffer'"),
    "no step": (lambda s: s["state"][3].pop("step"), "state of parameter 3 lacks 'step'"),
    "half a step": (lambda s: s["state"][3].update(step=1.5), "step must be a whole number"),
    "count": (lambda s: s.update(step_count=-1), "step must be a whole number"),
    "rate": (lambda s: s["param_groups"][0].update(lr=-1.0), "lr must be at least 0"),
    "names": (lambda s: s["param_groups"][0].update(betas=None), "betas must be a pair"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_CHECKPOINTS.values(), ids=BROKEN_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    params, grads = inputs(3, skip=False)
    optimizer = Adam(params)
    optimizer.step(grads[0])
    saved = broken(optimizer.state_dict(), change)
    optimizer.step(grads[1])
    before = snapshot(optimizer, params)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer, params) == before
    optimizer.step(grads[2])


def test_a_checkpoint_with_other_names_is_refused():
    first, second = Adam({"a": np.zeros(2), "b": np.zeros(2)}), Adam({"a": np.zeros(2), "c": np.zeros(2)})
    with pytest.raises(ValueError, match="the parameter 'b' is on one side only"):
        second.load_state_dict(first.state_dict())


FUNCTIONAL = {
    "unknown": (dict(learning_rate=1.0), TypeError, "has no argument 'learning_rate'"),
    "fixed": (dict(decoupled_weight_decay=False), TypeError, "has no argument 'decoupled_weight_decay'"),
    "rate": (dict(lr=-1), ValueError, "lr must be at least 0"),
    "step": (dict(step=0), ValueError, "step must be an integer of at least 1"),
    "float step": (dict(step=1.5), ValueError, "step must be an integer of at least 1"),
    "threads": (dict(num_threads=0), ValueError, "num_threads must be an integer"),
    "amsgrad": (dict(amsgrad=True), TypeError, "needs max_exp_avg_sqs with these options"),
    "shape": (dict(exp_avgs=np.zeros(4)), ValueError, "state of parameter 0 must have shape"),
    "state dtype": (dict(exp_avgs=np.zeros(3, "float32")), ValueError, "state of parameter 0 must have"),
    "gradient": (dict(grads=np.zeros(4)), ValueError, "gradient of parameter 0 must have shape"),
    "count": (dict(exp_avgs=[np.zeros(3), np.zeros(3)]), ValueError, "exp_avgs must have 1 arrays"),
    "list": (dict(params=[1.0]), TypeError, r"params\[0\] must be an array"),
    "shared": (dict(exp_avgs=SHARED[:3], exp_avg_sqs=SHARED[:3]), ValueError,
               r"exp_avgs\[0\] and exp_avg_sqs\[0\] share memory"),
    "empty": (dict(params=[], grads=[], exp_avgs=[], exp_avg_sqs=[]), ValueError, "params is empty"),
}


@pytest.mark.parametrize(("change", "error", "message"), FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_functional(change, error, message):
    arguments = dict(params=np.ones(3), grads=np.ones(3), exp_avgs=np.zeros(3), exp_avg_sqs=np.zeros(3), step=1)
    arguments |= change
    before = {name: np.array(value, copy=True) for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error, match=message):
        functional.adamw(**arguments)
    for name, value in before.items():
        np.testing.assert_array_equal(arguments[name], value)


def test_functional_takes_each_state_once():
    with pytest.raises(TypeError, match="each once"):
        functional.sgd(np.zeros(2), np.zeros(2), np.zeros(2), momentum_buffers=np.zeros(2), step=1, momentum=0.9)


SCHEDULES = [
    (lambda: lr_scheduler.StepLR(SGD(np.zeros(1)), 0), ValueError, "step_size must be an integer of at least 1"),
    (lambda: lr_scheduler.StepLR(SGD(np.zeros(1)), 2, "x"), TypeError, "gamma must be a number"),
    (lambda: lr_scheduler.StepLR(None, 2), TypeError, "optimizer must be a fastopt optimizer, got NoneType"),
    (lambda: lr_scheduler.StepLR(SGD(np.zeros(1), lr=lambda step: 1.0), 2), ValueError, "is a schedule already"),
    (lambda: lr_scheduler.StepLR(SGD(np.zeros(1)), 2, last_epoch=3), KeyError, "initial_lr is missing in group 0"),
    (lambda: lr_scheduler.StepLR(SGD(np.zeros(1)), 2, last_epoch=-2), ValueError, "last_epoch must be"),
    (lambda: lr_scheduler.MultiStepLR(SGD(np.zeros(1)), [1.5]), ValueError, "milestones must be an integer"),
    (lambda: lr_scheduler.CosineAnnealingLR(SGD(np.zeros(1)), 0), ValueError, "T_max must be"),
    (lambda: lr_scheduler.LinearLR(SGD(np.zeros(1)), start_factor=0), ValueError, "start_factor must be more than 0"),
    (lambda: lr_scheduler.LinearLR(SGD(np.zeros(1)), end_factor=2), ValueError, "end_factor must be at least 0"),
    (lambda: lr_scheduler.LambdaLR(SGD(np.zeros(1)), 3), TypeError, "lr_lambda must be a function"),
    (lambda: lr_scheduler.LambdaLR(SGD(np.zeros(1)), [abs, abs]), ValueError, "lr_lambda must have 1 functions"),
]


@pytest.mark.parametrize(("make", "error", "message"), SCHEDULES)
def test_schedules(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", None, True])
def test_thread_numbers(wrong):
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        fastopt.set_num_threads(wrong)
    assert fastopt.get_num_threads() == 1
