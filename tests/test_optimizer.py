"""The interface of Optimizer: structures, groups, closures, schedules, hooks, state."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
from common import copies, every_method, inputs, snapshot

import fastopt
from fastopt import Adam, AdamW, RMSprop


def arrays(n=3):
    return [np.ones(k + 2) for k in range(n)]


STRUCTURES = {
    "array": lambda a: a[0],
    "list": lambda a: list(a),
    "tuple": lambda a: tuple(a),
    "iterator": lambda a: iter(a),
    "pairs": lambda a: [(f"p{i}", x) for i, x in enumerate(a)],
    "mapping": lambda a: {f"p{i}": x for i, x in enumerate(a)},
    "nested mapping": lambda a: {"encoder": {"w": a[0], "b": a[1]}, "head": a[2]},
    "list in mapping": lambda a: {"layers": [a[0], a[1]], "head": {"w": a[2]}},
    "layers": lambda a: [(a[0], a[1]), (a[2],)],
    "dicts in list": lambda a: [{"w": a[0], "b": a[1]}, {"w": a[2]}],
    "groups": lambda a: [{"params": [a[0], a[1]]}, {"params": a[2], "lr": 0.1}],
    "named groups": lambda a: [{"params": {"x": a[0], "y": a[1]}}, {"params": [("z", a[2])]}],
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_gradients_have_the_structure_of_params(structure):
    params = arrays()
    optimizer = fastopt.SGD(structure(params), lr=0.1)
    optimizer.step(structure([np.full_like(param, i + 1.0) for i, param in enumerate(params)]))
    count = len(optimizer._plan)
    for i, param in enumerate(params[:count]):
        np.testing.assert_allclose(param, 1 - 0.1 * (i + 1))


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_a_flat_list_of_gradients_always_serves(structure):
    params = arrays()
    optimizer = fastopt.SGD(structure(params), lr=0.1)
    count = len(optimizer._plan)
    optimizer.step([np.full_like(param, i + 1.0) for i, param in enumerate(params[:count])])
    for i, param in enumerate(params[:count]):
        np.testing.assert_allclose(param, 1 - 0.1 * (i + 1))


def test_names_are_dotted_paths_and_gradients_match_by_name():
    params = arrays()
    optimizer = fastopt.SGD(STRUCTURES["list in mapping"](params), lr=1.0)
    assert optimizer.param_groups[0]["param_names"] == ["layers.0", "layers.1", "head.w"]
    grads = {"head.w": np.full(4, 3.0), "layers.1": None, "layers.0": np.full(2, 1.0)}
    optimizer.step(grads)
    assert [param[0] for param in params] == [0.0, 1.0, -2.0]


class DLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Interface:
    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.array = array


@pytest.mark.parametrize("export", [memoryview, DLPack, Interface])
def test_foreign_memory_is_stepped_in_place(export):
    param = np.ones(5, "float32")
    optimizer = fastopt.SGD([export(param)], lr=1.0)
    optimizer.step([export(np.full(5, 0.5, "float32"))])
    np.testing.assert_array_equal(param, 0.5)


def test_torch_tensors_are_stepped_in_place():
    torch = pytest.importorskip("torch")
    param = torch.ones(5)
    fastopt.SGD([param], lr=1.0).step([torch.full((5,), 0.5)])
    assert param.tolist() == [0.5] * 5
    with pytest.raises(TypeError, match="parameter 0 must be an array.*requires? grad"):
        fastopt.SGD([torch.ones(5, requires_grad=True)])


def test_scalars_are_gradients_of_0d_parameters():
    param = np.array(1.0)
    optimizer = fastopt.SGD(param, lr=0.5)
    for grad in (np.float64(1.0), 1.0, np.array(1.0)):
        optimizer.step([grad])
    assert param == -0.5


def test_changing_a_group_acts_at_the_next_step():
    param = np.zeros(3)
    optimizer = fastopt.SGD(param, lr=1.0)
    optimizer.step(np.ones(3))
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step(np.ones(3))
    optimizer.param_groups[0].update(lr=np.float32(0.25), maximize=True)
    optimizer.step(np.ones(3))
    np.testing.assert_array_equal(param, -1.25)


def test_a_rate_in_an_array_is_read_at_every_step():
    param, rate = np.zeros(3), np.array(1.0)
    optimizer = fastopt.SGD(param, lr=rate)
    optimizer.step(np.ones(3))
    rate[...] = 0.5
    optimizer.step(np.ones(3))
    np.testing.assert_array_equal(param, -1.5)


def test_options_that_need_state_can_be_switched_between_steps():
    param, twin = np.zeros(3), np.zeros(3)
    grad = np.array([1.0, -2.0, 0.5])
    optimizer = fastopt.SGD(param, lr=0.1, dampening=0.5)
    optimizer.step(grad)
    optimizer.param_groups[0]["momentum"] = 0.9
    for _ in range(3):
        optimizer.step(grad)
    twin -= 0.1 * grad
    fresh = fastopt.SGD(twin, lr=0.1, momentum=0.9, dampening=0.5)
    for _ in range(3):
        fresh.step(grad)
    np.testing.assert_allclose(param, twin, rtol=1e-15)

    param = np.ones(3)
    optimizer = Adam(param)
    optimizer.step(grad)
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step(grad)
    np.testing.assert_array_equal(optimizer.state[0]["max_exp_avg_sq"], optimizer.state[0]["exp_avg_sq"])
    optimizer.param_groups[0]["amsgrad"] = False
    before = optimizer.state[0]["max_exp_avg_sq"].copy()
    optimizer.step(grad)
    np.testing.assert_array_equal(optimizer.state[0]["max_exp_avg_sq"], before)


def test_add_param_group():
    first, second = np.zeros(2), np.zeros(3)
    optimizer = fastopt.SGD(first, lr=1.0)
    optimizer.step(np.ones(2))
    optimizer.add_param_group({"params": second, "lr": 0.1})
    optimizer.step([np.ones(2), np.ones(3)])
    np.testing.assert_allclose(first, -2)
    np.testing.assert_allclose(second, -0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]


def test_closure_returns_the_loss_and_may_bring_the_gradients():
    param = np.array([3.0])
    optimizer = fastopt.SGD(param, lr=0.25)
    assert optimizer.step(closure=lambda: (float(param[0] ** 2), [2 * param])) == 9.0
    assert param == 1.5
    grad = np.empty(1)
    optimizer.bind_grads(grad)

    def closure():
        grad[...] = 2 * param
        return float(param[0] ** 2)

    assert optimizer.step(closure) == 2.25  # torch's order
    assert param == 0.75


def test_schedules_as_hyperparameters():
    param = np.zeros(2)
    rates = []
    optimizer = fastopt.SGD(
        [{"params": param, "lr": lambda step: rates.append(step) or 1.0 / (1 + step)}], lr=0.0)
    for _ in range(3):
        optimizer.step(np.ones(2))
    np.testing.assert_allclose(param, -(1 + 1 / 2 + 1 / 3))
    assert rates == [0, 1, 2]
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.25


def test_schedules_inside_the_betas():
    params, grads = inputs(6, skip=False)
    twins = copies(params)
    first = Adam(params, betas=(fastopt.schedules.linear_schedule(0.5, 0.9, 4), 0.99))
    second = Adam(twins)
    for step, row in enumerate(grads):
        first.step(row)
        second.param_groups[0]["betas"] = (0.5 + 0.4 * min(step, 4) / 4, 0.99)
        second.step(row)
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_allclose(param, twin, rtol=1e-14)


def test_a_loaded_checkpoint_goes_on_in_the_schedule():
    def fresh(param):
        return AdamW(param, lr=fastopt.schedules.cosine_decay_schedule(0.1, 10))

    param, (grad,) = np.ones(4), [np.array([1.0, -1.0, 2.0, 0.5])]
    optimizer = fresh(param)
    for _ in range(4):
        optimizer.step(grad)
    twin, saved = param.copy(), copy.deepcopy(optimizer.state_dict())
    other = fresh(twin)
    other.load_state_dict(saved)
    for _ in range(4):
        optimizer.step(grad)
        other.step(grad)
    assert param.tobytes() == twin.tobytes()


def test_hooks_run_in_torchs_order_and_may_change_the_arguments(monkeypatch):
    seen = []
    param = np.zeros(2)
    optimizer = fastopt.SGD(param, lr=1.0)

    def say(word):
        return lambda *_: seen.append(word)

    def double(_, args, kwargs):
        return args, {**kwargs, "grads": [2 * kwargs["grads"][0]]}

    handles = [
        fastopt.register_optimizer_step_pre_hook(say("global pre")),
        fastopt.register_optimizer_step_post_hook(say("global post")),
        optimizer.register_step_pre_hook(say("pre")),
        optimizer.register_step_pre_hook(double),
        optimizer.register_step_post_hook(say("post")),
    ]
    try:
        optimizer.step([np.ones(2)])
    finally:
        for handle in handles:
            handle.remove()
            handle.remove()
    assert seen == ["global pre", "pre", "post", "global post"]
    np.testing.assert_array_equal(param, -2)
    with monkeypatch.context() as patch:
        patch.delattr(fastopt.Optimizer, "_step_with_hooks")  # a step without hooks takes the short way again
        optimizer.step([np.ones(2)])
    assert len(seen) == 4

    with optimizer.register_step_pre_hook(lambda *_: 1), pytest.raises(TypeError, match="pre-hook must return"):
        optimizer.step([np.ones(2)])
    with pytest.raises(TypeError, match="hook must be callable"):
        optimizer.register_step_pre_hook(None)


def test_state_dict_hooks():
    seen = []
    optimizer = fastopt.SGD(np.zeros(2))
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda opt, saved: {**saved, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda opt, saved: seen.append(saved["extra"]))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("first"), prepend=True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", 1, "first", "loaded"]


def test_zero_grad_clears_bound_gradients():
    param, grad = np.zeros(2), np.ones(2)
    optimizer = fastopt.SGD(param, lr=1.0)
    optimizer.zero_grad()
    optimizer.bind_grads(grad)
    optimizer.step()
    optimizer.zero_grad()
    np.testing.assert_array_equal(grad, 0)
    optimizer.step()
    np.testing.assert_array_equal(param, -1)
    optimizer.zero_grad(set_to_none=True)
    with pytest.raises(ValueError, match="step\\(\\) needs grads"):
        optimizer.step()


def test_a_step_with_gradients_leaves_the_bound_ones_bound():
    param, grad = np.zeros(2), np.ones(2)
    optimizer = fastopt.SGD(param, lr=1.0)
    optimizer.bind_grads([grad])
    optimizer.step([np.full(2, 10.0)])
    with pytest.raises(ValueError, match="shape"):
        optimizer.bind_grads([np.ones(3)])
    with pytest.raises(ValueError, match="shape"):
        optimizer.step([np.ones(3)])
    optimizer.step()
    np.testing.assert_array_equal(param, -11)


@every_method
def test_rebind_moves_to_other_arrays(method):
    params, grads = inputs(6)
    others = copies(params)
    optimizer, straight = method.optimizer(params), method.optimizer(others)
    moved = None
    for step, row in enumerate(grads):
        if step == 3:
            moved = copies(params)
            optimizer.rebind(moved)
            assert optimizer.param_groups[0]["params"][0] is moved[0]
        optimizer.step(row)
        straight.step(row)
    for param, other in zip(moved, others, strict=True):
        assert param.tobytes() == other.tobytes()


def test_state_is_live_and_settable():
    param = np.ones(3)
    optimizer = Adam(param)
    assert optimizer.state == {}
    optimizer.step(np.ones(3))
    state = optimizer.state[0]
    assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
    assert len(state) == 3
    assert state["step"] == 1
    state["exp_avg"] = np.zeros(3)
    state["step"] = 10
    twin = np.ones(3)
    other = Adam(twin)
    other.step(np.ones(3))
    other.state[0]["exp_avg"][...] = 0
    other.step_count = 10
    optimizer.step(np.ones(3))
    other.step(np.ones(3))
    assert param.tobytes() == twin.tobytes()
    assert optimizer.state[0]["step"] == 11
    with pytest.raises(KeyError):
        state["nonsense"] = 1
    with pytest.raises(TypeError, match="cannot be deleted"):
        del state["exp_avg"]
    optimizer.reset_state()
    assert optimizer.state == {}
    assert optimizer.step_count == 0


def test_state_arrays_cannot_be_resized_away():
    optimizer = Adam(np.ones(3))
    optimizer.step(np.ones(3))
    with pytest.raises(ValueError, match="own its data"):
        optimizer.state[0]["exp_avg"].resize(100, refcheck=False)


def test_the_step_count_goes_past_what_float32_can_count():
    param = np.ones(1)
    optimizer = Adam(param)
    optimizer.step(np.ones(1))
    optimizer.step_count = 2**24
    optimizer.step(np.ones(1))
    optimizer.step(np.ones(1))
    assert optimizer.state_dict()["state"][0]["step"] == 2**24 + 2
    other = Adam(np.ones(1))
    other.load_state_dict(optimizer.state_dict())
    assert other.state[0]["step"] == 2**24 + 2


def test_tiny_decoupled_decay_does_not_vanish_in_float32():
    """torch rounds 1 - lr * weight_decay to 1 here, and never decays."""
    param = np.full(1000, 1.0, "float32")
    optimizer = AdamW(param, lr=1e-4, weight_decay=1e-4)
    still = np.full(1000, 1.0, "float32")
    other = AdamW(still, lr=1e-4, weight_decay=0.0)
    rng = np.random.default_rng(0)
    exact = still.astype("float64")
    third = AdamW(exact, lr=1e-4, weight_decay=1e-4)
    for _ in range(2000):
        grad = rng.standard_normal(1000).astype("float32")
        optimizer.step(grad)
        other.step(grad)
        third.step(grad)
    decayed = float(np.mean(still.astype("float64") - param))
    assert 0.5 * 2000 * 1e-8 < decayed < 1.5 * 2000 * 1e-8


def test_repr_is_that_of_torch():
    text = repr(fastopt.SGD([("w", np.ones(2))], lr=0.5))
    assert text.splitlines()[:3] == ["SGD (", "Parameter Group 0", "    dampening: 0.0"]
    assert "    lr: 0.5" in text


def test_num_threads_of_an_optimizer_is_kept_and_checked():
    optimizer = RMSprop(np.ones(2))
    assert optimizer.num_threads is None
    optimizer.num_threads = 2
    assert pickle.loads(pickle.dumps(optimizer)).num_threads == 2
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="num_threads must be an integer of at least 1"):
            optimizer.num_threads = wrong
    assert optimizer.num_threads == 2


def test_a_step_that_is_used_by_two_threads_at_once_says_so():
    param = np.ones(3)
    problems = []

    def schedule(_):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        return 0.1

    def attempt():
        try:
            optimizer.step(np.ones(3))
        except RuntimeError as error:
            problems.append(str(error))

    optimizer = fastopt.SGD(param, lr=schedule)
    optimizer.step(np.ones(3))
    assert len(problems) == 1
    assert "in use" in problems[0]
    np.testing.assert_allclose(param, 0.9)


def test_nothing_can_be_changed_while_a_step_is_made():
    param = np.ones(3)
    refused = []

    def schedule(_):
        for change in (
            lambda: optimizer.add_param_group({"params": np.ones(1)}),
            lambda: optimizer.rebind([np.ones(3)]),
            lambda: optimizer.bind_grads([np.ones(3)]),
            lambda: optimizer.load_state_dict({"state": {}, "param_groups": []}),
            lambda: setattr(optimizer, "step_count", 3),
            lambda: pickle.dumps(optimizer),
            optimizer.reset_state,
            optimizer.zero_grad,
        ):
            try:
                change()
            except RuntimeError:
                refused.append(change)
        return 0.1

    optimizer = fastopt.SGD(param, lr=1.0)
    optimizer.param_groups[0]["lr"] = schedule
    optimizer.step(np.ones(3))
    assert len(refused) == 8
    np.testing.assert_allclose(param, 0.9)


def test_two_optimizers_step_at_once_from_two_threads():
    params = [np.zeros(200_000, "float32") for _ in range(2)]
    grad = np.ones(200_000, "float32")

    def train(param):
        optimizer = fastopt.SGD(param, lr=1.0)
        for _ in range(50):
            optimizer.step(grad)

    threads = [threading.Thread(target=train, args=(param,)) for param in params]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for param in params:
        np.testing.assert_array_equal(param, -50)


@every_method
def test_an_interrupted_closure_changes_nothing(method):
    params, grads = inputs(2, skip=False)
    optimizer = method.optimizer(params)
    optimizer.step(grads[0])
    before = snapshot(optimizer, params)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure=closure)
    assert snapshot(optimizer, params) == before
    optimizer.step(grads[1])


@every_method
def test_the_memory_goes_with_the_optimizer(method):
    """No reference cycle keeps parameters and state until the next garbage collection."""
    param = np.ones(3)
    optimizer = method.optimizer(param)
    optimizer.step(np.ones(3))
    alive = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert alive() is None
    finally:
        gc.enable()


def test_large_state_arrays_lie_at_different_places_of_their_pages():
    param = np.zeros(100_000, "float32")
    optimizer = fastopt.Adam([param], amsgrad=True)
    optimizer.step([np.ones_like(param)])
    places = {state.ctypes.data % 4096 for name, state in optimizer.state[0].items() if name != "step"}
    assert len(places) == 3
    assert all(place % 64 == 0 for place in places)


DECOUPLED = {"decoupled_weight_decay": True}


@pytest.mark.parametrize(("method", "options"), [
    (fastopt.AdamW, {}), (fastopt.Adam, DECOUPLED), (fastopt.RAdam, DECOUPLED), (fastopt.NAdam, DECOUPLED),
])
def test_decay_begins_after_a_rate_of_0(method, options):
    w, zero = np.ones(2), np.zeros(2)
    optimizer = method([w], lr=0.0, weight_decay=0.5, **options)
    optimizer.step([zero])
    optimizer.param_groups[0]["lr"] = 0.1  # as a scheduler does that warms up from 0
    optimizer.step([zero])
    np.testing.assert_allclose(w, 0.95)
