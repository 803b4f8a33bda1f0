"""Properties that every method of the table has."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from common import (
    both_dtypes,
    copies,
    every_case,
    every_method,
    every_method_of_torch,
    inputs,
    parameters_of,
    reference_steps,
    snapshot,
    torch_knows,
)

import fastopt


@every_case
def test_float64_agrees_with_the_reference(method, options):
    params, grads = inputs(100)
    expected = copies(params)
    optimizer = method.optimizer(params, **options)
    for row in grads:
        optimizer.step(row)
    states = reference_steps(method, expected, grads, **options)
    for param, like in zip(params, expected, strict=True):
        np.testing.assert_allclose(param, like, rtol=1e-12, atol=1e-14)
    for position, state in optimizer.state.items():
        for slot in method.slots(**options):
            np.testing.assert_allclose(state[slot], states[position][slot], rtol=1e-12, atol=1e-14)


@every_case
def test_each_float32_step_is_within_a_few_ulp_of_the_float64_step_rounded(method, options):
    params, grads = inputs(40, "float32", shapes=((257,),), skip=False)
    param = params[0]
    optimizer = method.optimizer(param, **options)
    exact_state = {}
    for step, (grad,) in enumerate(grads, 1):
        exact = param.astype("float64")
        before, state_before = exact.copy(), {slot: np.copy(value) for slot, value in exact_state.items()}
        method.reference(exact, grad.astype("float64"), exact_state, step, **options)
        optimizer.step([grad])
        # rounding of the parameter, and of an update that passes through a handful of operations
        scale = np.maximum(np.abs(exact), np.abs(before))
        update = np.abs(exact - before) + optimizer.param_groups[0]["lr"] * np.abs(grad)
        ulp = np.spacing(scale.astype("float32")) + 8 * np.finfo("float32").eps * update
        state = optimizer.state[0] if optimizer.state else {}
        if options.get("centered"):  # v - a^2 cancels: what is left has the rounding of v in it
            variance = exact_state["square_avg"] - exact_state["grad_avg"] ** 2
            ulp = ulp * (1 + exact_state["square_avg"] / np.maximum(variance, 1e-12))
        assert np.all(np.abs(param - exact) <= 2 * ulp), step
        for slot in method.slots(**options):
            value = exact_state[slot]
            error = np.abs(state[slot] - value)
            size = np.abs(value) + np.abs(state_before.get(slot, 0)) + grad.astype("float64") ** 2
            if not options.get("centered"):
                assert np.all(error <= 4 * np.finfo("float32").eps * np.maximum(size, 1)), slot
            value[...] = state[slot]


@every_case
@both_dtypes
def test_functional_gives_the_bits_of_the_optimizer(method, options, dtype):
    if set(options) & set(method.optimizer.fixed):
        pytest.skip("not an option of this method")
    params, grads = inputs(5, dtype)
    twins = copies(params)
    optimizer = method.optimizer(params, **options)
    slots = method.slots(**options)
    plural = {slot: f"{slot}_list" if f"{slot}s" in method.options else f"{slot}s"
              for slot in [*slots, *method.optimizer.scalar_slots]}
    columns = {plural[slot]: [np.full_like(twin, value) for twin in twins] for slot, value in slots.items()}
    columns |= {plural[slot]: [np.zeros(()) for _ in twins] for slot in method.optimizer.scalar_slots}
    hyper = {name: value for name, value in (method.options | options).items()
             if name in parameters_of(method.functional)}
    for step, row in enumerate(grads, 1):
        row = [np.zeros_like(param) if grad is None else grad for param, grad in zip(params, row, strict=True)]
        optimizer.step(row)
        method.functional(twins, row, **columns, step=step, **hyper)
    for param, twin in zip(params, twins, strict=True):
        assert param.tobytes() == twin.tobytes()
    for position, state in optimizer.state.items():
        for slot in slots:
            assert state[slot].tobytes() == columns[plural[slot]][position].tobytes()
        for slot in method.optimizer.scalar_slots:
            assert state[slot] == columns[plural[slot]][position]


@every_case
def test_float64_gradients_of_float32_parameters_are_rounded_once(method, options):
    params, grads = inputs(5, "float32", shapes=((4500,),), skip=False)
    twins = copies(params)
    first, second = method.optimizer(params, **options), method.optimizer(twins, **options)
    rng = np.random.default_rng(1)
    for _ in grads:
        grad = rng.standard_normal(4500)
        first.step([grad])
        second.step([grad.astype("float32")])
    assert params[0].tobytes() == twins[0].tobytes()


@every_method
def test_float32_gradients_of_float64_parameters_are_widened(method):
    params, _ = inputs(0, "float64", shapes=((33,),))
    twins = copies(params)
    grad = np.linspace(-1, 1, 33, dtype="float32")
    method.optimizer(params).step([grad])
    method.optimizer(twins).step([grad.astype("float64")])
    assert params[0].tobytes() == twins[0].tobytes()


@every_case
def test_groups_step_as_optimizers_of_their_own(method, options):
    params, grads = inputs(10)
    twins = copies(params)
    together = method.optimizer(
        [{"params": params[:2]}, {"params": params[2:], "lr": 0.3, **options}], lr=0.1)
    apart = method.optimizer(twins[:2], lr=0.1), method.optimizer(twins[2:], lr=0.3, **options)
    for row in grads:
        together.step(row)
        apart[0].step(row[:2])
        apart[1].step(row[2:])
    for param, twin in zip(params, twins, strict=True):
        assert param.tobytes() == twin.tobytes()


@every_case
@pytest.mark.parametrize("how", [pickle.dumps, copy.deepcopy, None], ids=["pickle", "deepcopy", "state_dict"])
def test_a_copy_goes_on_with_the_same_bits(method, options, how):
    params, grads = inputs(12)
    optimizer = method.optimizer(params, **options)
    for row in grads[:6]:
        optimizer.step(row)
    if how is None:
        others = copies(params)
        other = method.optimizer(others)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif how is pickle.dumps:
        others, other = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        others, other = copy.deepcopy((params, optimizer))
    for row in grads[6:]:
        optimizer.step(row)
        other.step(row)
    assert snapshot(optimizer, params) == snapshot(other, others)


@every_case
def test_a_parameter_without_a_gradient_is_left_alone(method, options):
    params, grads = inputs(3, skip=False)
    before = params[0].copy()
    optimizer = method.optimizer(params, **options)
    for row in grads:
        optimizer.step([None, *row[1:]])
    assert params[0].tobytes() == before.tobytes()
    assert 0 not in optimizer.state
    assert (0 in optimizer.state_dict()["state"]) == method.optimizer.eager_state
    # its own steps count from its first gradient
    twin = before.copy()
    method.optimizer(twin, **options).step(grads[0][0])
    optimizer.step([grads[0][0], *[None] * 4])
    assert params[0].tobytes() == twin.tobytes()


@every_case
def test_gradients_are_only_read(method, options):
    params, grads = inputs(1, skip=False)
    for grad in grads[0]:
        grad.flags.writeable = False
    before = copies(grads[0])
    method.optimizer(params, **options).step(grads[0])
    assert [grad.tobytes() for grad in grads[0]] == [grad.tobytes() for grad in before]


@every_case
def test_bound_gradients_give_the_same_bits(method, options):
    params, grads = inputs(6)
    twins = copies(params)
    first, second = method.optimizer(params, **options), method.optimizer(twins, **options)
    for row in grads:
        first.step(row)
        second.bind_grads(row)
        second.step()
    assert snapshot(first, params) == snapshot(second, twins)


@every_case
def test_a_step_allocates_no_array(method, options):
    param, grad = np.ones(100_000, "float32"), np.ones(100_000, "float32")
    optimizer = method.optimizer(param, **options)
    optimizer.step(grad)
    tracemalloc.start()
    try:
        optimizer.step(grad)
        tracemalloc.reset_peak()
        start = tracemalloc.get_traced_memory()[0]
        optimizer.step(grad)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert peak < 4096


@every_method
def test_the_state_is_as_large_as_the_table_says(method):
    for options in method.variants:
        param = np.ones(1000, "float32")
        optimizer = method.optimizer(param, **options)
        optimizer.step(param.copy())
        arrays = [value for state in optimizer.state.values() for value in state.values()
                  if isinstance(value, np.ndarray)]
        assert sum(array.nbytes for array in arrays) == 1000 * method.state_bytes(**options)


@every_case
def test_non_finite_gradients_spread_as_in_the_reference(method, options):
    grad = np.array([np.nan, np.inf, -np.inf, 1e300, 0.0, 1.0])
    param = np.linspace(1, 2, 6)
    expected, state = param.copy(), {}
    optimizer = method.optimizer(param, **options)
    with np.errstate(all="ignore"):
        for step in (1, 2, 3):
            optimizer.step(grad)
            method.reference(expected, grad, state, step, **options)
    np.testing.assert_allclose(param, expected, rtol=1e-12)


@every_method
def test_converges_on_a_quadratic(method):
    target = np.linspace(-1, 1, 10)
    x = np.zeros(10)
    optimizer = method.optimizer(x, lr=method.lr)
    schedule = fastopt.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        optimizer.step(2 * (x - target))
        schedule.step()
    np.testing.assert_allclose(x, target, atol=3e-2)


@every_method
def test_converges_on_rosenbrock(method):
    x = np.zeros(2)
    optimizer = method.optimizer(x, **{"lr": method.lr, **method.rosenbrock})
    for _ in range(10_000):
        a, b = x
        optimizer.step(np.array([-2 * (1 - a) - 40 * a * (b - a * a), 20 * (b - a * a)]))
    np.testing.assert_allclose(x, 1, atol=3e-2)


@every_method
def test_every_option_is_in_a_variant(method):
    used = {name for options in method.variants for name in options}
    assert set(method.options) - used <= {"lr", "alpha", "betas", "dampening", "eps"}


@every_method_of_torch
def test_defaults_and_order_are_those_of_torch(method):
    torch = pytest.importorskip("torch")
    theirs = parameters_of(getattr(torch.optim, method.name))
    known = [name for name in theirs if name in method.options]
    own = [name for name in method.options if name in theirs]
    assert own == known or set(own) == set(known)
    for name in known:
        assert method.options[name] == theirs[name].default, name
    positional = [name for name, parameter in theirs.items() if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    left_out = {"foreach", "fused", "capturable", "differentiable"}
    for ours, their in zip(method.options, (name for name in positional if name != "params"), strict=False):
        if their in left_out:
            break
        assert ours == their
    assert {name for name in theirs if name not in {*left_out, "params"}} <= set(method.options)


@every_case
def test_variants_that_torch_does_not_have_are_marked(method, options):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.optim, method.name, None)
    assert (theirs is not None) == method.in_torch
    assert torch_knows(method, options) == (method.in_torch and set(options) <= set(parameters_of(theirs)))


@every_method
def test_what_a_method_says_of_its_update_is_so(method):
    """That it may have another sign than the gradient, and what it divides by."""
    turned, own = False, {"weight_decay", "lambd", "maximize"}
    for options in [{name: value for name, value in options.items() if name not in own} for options in method.variants]:
        rng = np.random.default_rng(0)
        param = np.zeros(200)
        optimizer = method.optimizer(param, **options)
        for step in range(6):
            before, grad = param.copy(), rng.uniform(0.5, 1.0, 200) * (-0.01 if step == 5 else 1.0)
            optimizer.step(grad)
            turned |= bool(np.any((param - before) * grad > 0))
            if step == 0 and method.optimizer.second_moment:
                share = optimizer.state[0][method.optimizer.second_moment] / grad**2
                np.testing.assert_allclose(share, 1.0 - optimizer.param_groups[0]["betas"][1])
    assert turned == method.optimizer.turns
    assert method.optimizer.decays == ("weight_decay" in method.options)


@every_case
def test_coefficients_that_settle_are_those_of_step_2(method, options):
    optimizer = method.optimizer(np.zeros(1), **options)
    settings = optimizer._engine.read(optimizer._engine.groups[0]).settings
    if method.optimizer.scalar_slots:
        assert not method.optimizer.settles
        return
    later = {method.optimizer.coefficients(settings, step) for step in (2, 3, 10, 1000)}
    assert len(later) == 1 or not method.optimizer.settles


def test_a_gradient_whose_conversion_empties_the_list_is_an_error():
    grads = []

    class Shrinking:
        @property
        def __array_interface__(self):
            del grads[1:]
            return np.ones(2).__array_interface__

    params = [np.zeros(2), np.zeros(2)]
    grads += [Shrinking(), np.ones(2)]
    with pytest.raises(ValueError, match="one entry for each of the 2 parameters"):
        fastopt.SGD(params).step(grads)
    assert not any(param.any() for param in params)
