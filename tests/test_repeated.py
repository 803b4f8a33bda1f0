"""A step that is like the last is made by a shorter way; whatever is another then, it does what any step does."""

import numpy as np
import pytest

import fastopt
from fastopt.table import METHODS

COUNT = 40


def scene(name, options, dtype="float32"):
    rng = np.random.default_rng(3)
    params = [rng.standard_normal((3, 4)).astype(dtype) for _ in range(COUNT)]
    groups = [{"params": params[:25]}, {"params": params[25:], "lr": 0.02}]
    return getattr(fastopt, name)(groups, **{"lr": 0.01} | options)


def gradients(optimizer, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(param.shape).astype(param.dtype)
            for group in optimizer.param_groups for param in group["params"]]


def replaced(number, make):
    """Another gradient in the place of one: what `make` returns for the optimizer and that gradient."""
    def change(optimizer, grads):
        grads[number] = make(optimizer, grads[number])

    return change


def option(name, value, group=1):
    return lambda optimizer, grads: optimizer.param_groups[group].update({name: value})


def reshaped(optimizer, grads):
    optimizer.param_groups[1]["params"][4].shape = 4, 3


def both_reshaped(optimizer, grads):
    reshaped(optimizer, grads)
    grads[29] = grads[29].reshape(4, 3)


def in_a_turn(optimizer, grads):
    grads[:] = grads[::-1]


CHANGES = {
    "nothing": lambda optimizer, grads: None,
    "another order": in_a_turn,
    "none": replaced(30, lambda optimizer, grad: None),
    "none in a group": lambda optimizer, grads: grads.__setitem__(slice(25, None), [None] * 15),
    "none at all": lambda optimizer, grads: grads.__setitem__(slice(None), [None] * COUNT),
    "wider": replaced(30, lambda optimizer, grad: grad.astype(f"{grad.dtype.kind}{2 * grad.itemsize}")),
    "integers": replaced(30, lambda optimizer, grad: grad.view("int32")),
    "another byte order": replaced(30, lambda optimizer, grad: grad.astype(grad.dtype.newbyteorder())),
    "strided": replaced(0, lambda optimizer, grad: np.asfortranarray(grad)),
    "another shape": replaced(39, lambda optimizer, grad: grad.reshape(4, 3)),
    "a subclass": replaced(7, lambda optimizer, grad: np.ma.masked_array(grad)),
    "read-only": replaced(7, lambda optimizer, grad: np.broadcast_to(grad, grad.shape)),
    "the parameter": replaced(30, lambda optimizer, grad: optimizer.param_groups[1]["params"][5]),
    "another parameter": replaced(30, lambda optimizer, grad: optimizer.param_groups[0]["params"][5][:]),
    "a state": replaced(30, lambda optimizer, grad: next(
        (value for value in optimizer.state[2].values() if isinstance(value, np.ndarray)), grad)),
    "one less": lambda optimizer, grads: grads.pop(),
    "one more": lambda optimizer, grads: grads.append(grads[0]),
    "a read-only parameter": lambda optimizer, grads: optimizer.param_groups[1]["params"][4].setflags(write=False),
    "a parameter of another shape": reshaped,
    "both of another shape": both_reshaped,
    "another parameter in the group": lambda optimizer, grads: optimizer.param_groups[0]["params"].reverse(),
    "another rate": option("lr", 0.5),
    "a wrong rate": option("lr", -1.0),
    "a schedule": option("lr", lambda step: 0.1 / (1 + step)),
    "other slots": option("amsgrad", True),
    "another direction": option("maximize", True, 0),
    "a step count": lambda optimizer, grads: setattr(optimizer, "step_count", 7),
    "no state": lambda optimizer, grads: optimizer.reset_state(),
}

REFUSED = {"integers", "another byte order", "strided", "another shape", "the parameter", "another parameter",
           "one less", "one more", "a read-only parameter", "a parameter of another shape",
           "both of another shape", "another parameter in the group", "a wrong rate"}


def outcome(optimizer, grads, step):
    try:
        step(grads)
        error = None
    except (TypeError, ValueError) as raised:
        error = type(raised), str(raised)
    params = sorted(param.tobytes() for group in optimizer.param_groups for param in group["params"])
    states = [{key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in state.items()}
              for state in optimizer.state.values()]
    return error, params, states, optimizer.step_count


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "ASGD"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_is_not_like_the_last_does_what_any_step_does(change, name, dtype):
    outcomes = []
    for shorter in (True, False):
        optimizer = scene(name, {}, dtype)
        engine = optimizer._engine

        def longer(grads, engine=engine):
            engine.plan.during(engine.make, grads)

        seen = []
        for seed in range(5):
            grads = gradients(optimizer, seed)
            if seed == 3:
                CHANGES[change](optimizer, grads)
            seen.append(outcome(optimizer, grads, optimizer.step if shorter else longer))
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]
    if change in REFUSED:
        assert outcomes[0][3][0] is not None
        assert outcomes[0][3][1:] == outcomes[0][2][1:]  # and nothing was changed


@pytest.mark.parametrize("name", [row.name for row in METHODS if row.elementwise and row.optimizer.sparse != "only"])
def test_it_asks_a_schedule_once_whatever_way_it_goes(name):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.01

    optimizer = scene(name, {"lr": schedule})
    for seed in range(6):
        grads = gradients(optimizer, seed)
        if seed == 3:
            grads[2] = None
        optimizer.step(grads)
    assert asked == list(range(6))


def test_the_gradients_of_a_step_are_those_that_it_was_given_whatever_a_schedule_does():
    def schedule(step):
        if step == 2:
            grads[:] = [grad * 2 for grad in grads]
        return 0.01

    params = [[np.ones(3) for _ in range(COUNT)] for _ in range(2)]
    optimizer, other = fastopt.SGD(params[0], lr=schedule), fastopt.SGD(params[1], lr=0.01)
    for _ in range(4):
        grads = [np.ones(3) for _ in range(COUNT)]
        given = list(grads)
        optimizer.step(grads)
        other.step(given)
    np.testing.assert_array_equal(params[0], params[1])


def test_a_group_without_a_gradient_is_not_asked():
    """Neither its schedules nor its options: as in the first step."""
    asked, params, grad = [], [np.ones(2), np.ones(2)], np.ones(2)
    optimizer = fastopt.SGD([{"params": [param], "lr": lambda t: asked.append(t) or 0.1} for param in params])
    optimizer.step([grad, grad])
    optimizer.step([grad, grad])
    optimizer.param_groups[0]["lr"] = -1.0
    del asked[:]
    optimizer.step([None, grad])
    assert asked == [2]
    with pytest.raises(ValueError, match="lr must be at least 0"):
        optimizer.step([grad, grad])


@pytest.mark.parametrize("wrong", [[np.ones(3)], [np.ones(2, int)], [], [None, None]])
def test_a_step_that_is_refused_asks_no_schedule(wrong):
    asked, param = [], np.ones(2)
    optimizer = fastopt.SGD([param], lr=lambda t: asked.append(t) or 0.1)
    for _ in range(3):
        optimizer.step([np.ones(2)])
    with pytest.raises((ValueError, TypeError)):
        optimizer.step(wrong)
    optimizer.step([np.ones(2)])
    assert asked == [0, 1, 2, 3]
