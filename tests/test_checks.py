"""Numbers in every form are numbers; what is none, or too large, is refused by name."""

import math
from fractions import Fraction

import numpy as np
import pytest

import fastopt
from fastopt import checks
from fastopt.table import METHODS

HALVES = [0.5, np.float16(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), np.array([[0.5]], "f"), Fraction(1, 2),
          np.longdouble(0.5), np.array([0.5], object)]
THREES = [3, 3.0, np.int8(3), np.uint64(3), np.array(3), np.array([3.0]), np.array([[3]], "u1"), Fraction(3)]
NONE = ["1", b"1", bytearray(b"1"), None, True, np.True_, np.array([True]), 1j, np.array([1j]), np.ones(2), np.ones(0),
        [], [0.5], {}, object(), np.array(["1"]), np.array([None]), np.ma.masked, np.ma.array([0.5], mask=[True])]
LARGE = [10**400, -(10**400), 10**5000, Fraction(10**400)]
REAL = [checks.real, checks.number]
WHOLE = [checks.whole, checks.at_least_one, checks.whole_from(-5)]
BOUNDED = [checks.nonnegative, checks.positive, checks.fraction, checks.closed_fraction]


@pytest.mark.parametrize("value", HALVES, ids=repr)
@pytest.mark.parametrize("check", [*REAL, *BOUNDED])
def test_numbers(check, value):
    assert check("x", value) == 0.5 and type(check("x", value)) is float


@pytest.mark.parametrize("value", THREES, ids=repr)
@pytest.mark.parametrize("check", WHOLE)
def test_whole_numbers(check, value):
    assert check("x", value) == 3 and type(check("x", value)) is int


def test_whole_numbers_beyond_the_bits_of_a_float_are_exact():
    for given in (2**53 + 1, np.int64(2**53 + 1), np.array([2**63 + 1], "u8")):
        assert checks.whole("x", given) == int(np.asarray(given).item())


@pytest.mark.parametrize("value", [*NONE, *LARGE], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("check", [*REAL, *BOUNDED, *WHOLE])
def test_what_is_no_number(check, value):
    with pytest.raises((TypeError, ValueError), match="^x must be "):
        check("x", value)


@pytest.mark.parametrize("value", [*NONE, *LARGE], ids=lambda value: type(value).__name__)
def test_parts_that_are_no_numbers(value):
    for check, given in ((checks.pair, (0.5, value)), (checks.fractions, (value, 0.5)), (checks.numbers(2), [value, 1]),
                         (checks.ordered, (0.0, value)), (checks.shrink_and_grow, (0.5, value))):
        with pytest.raises((TypeError, ValueError), match=r"^x\[[01]\] must be "):
            check("x", given)
    for check in (checks.pair, checks.fractions, checks.numbers(3), checks.ordered, checks.shrink_and_grow):
        if not isinstance(value, np.ndarray) or value.shape != (2,):
            with pytest.raises((TypeError, ValueError), match="^x"):
                check("x", value)


@pytest.mark.parametrize("value", [2.5, math.nan, "1", None, True, np.ones(2), [], 10**400, -1], ids=repr)
def test_integers(value):
    with pytest.raises((TypeError, ValueError), match="^x must be an integer"):
        checks.whole_number(0, 10)("x", value)
    for three in (3, np.int8(3), np.array(3), np.array([3])):
        assert checks.whole_number(0, 10)("x", three) == 3


@pytest.mark.parametrize("value", [3, np.array(["a", "b"]), ["a"], np.ones(3), {}, None], ids=repr)
def test_choices(value):
    with pytest.raises(ValueError, match="^x must be one of 'a', 'b'"):
        checks.one_of("a", "b")("x", value)


@pytest.mark.parametrize("value", [1, 0.0, "True", None, np.array([1]), np.array([True, False])], ids=repr)
def test_flags(value):
    with pytest.raises(TypeError, match="^x must be True or False"):
        checks.flag("x", value)
    assert checks.flag("x", np.True_) is checks.flag("x", np.array([True])) is True


def test_tensors_of_one_element_are_numbers():
    torch = pytest.importorskip("torch")
    for value in (torch.tensor(0.5), torch.tensor([0.5], requires_grad=True), torch.tensor([[0.5]], dtype=torch.half)):
        assert checks.fraction("x", value) == 0.5
    assert checks.whole("x", torch.tensor([3])) == checks.integer(torch.tensor(3)) == 3
    assert checks.flag("x", torch.tensor(True)) is True
    for value in (torch.ones(2), torch.ones(0), torch.ones((), device="meta"), torch.tensor(1j), torch.tensor(True)):
        with pytest.raises((TypeError, ValueError), match="^x must be a number"):
            checks.real("x", value)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_hyperparameter_of_every_method(method):
    """Arrays of one element serve; numbers beyond a float are refused, and change nothing."""
    rate = np.array([0.25])
    optimizer = method.optimizer(np.ones((2, 2)), lr=rate)
    for name, check in optimizer.hyperparameters.items():
        value = optimizer.param_groups[0][name]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert check(name, np.array([value])) == value
        with pytest.raises((TypeError, ValueError), match=name):
            method.optimizer(np.ones((2, 2)), **{name: 10**400})
    gradient = np.ones((2, 2))
    if method.optimizer.sparse == "only":
        gradient = fastopt.SparseRows(np.arange(2), gradient, gradient.shape)
    grads = (lambda: (1.0, [gradient])) if method.closure else [gradient]
    for wrong in (10**400, np.ones(2)):
        optimizer.param_groups[0]["lr"] = wrong
        with pytest.raises((TypeError, ValueError), match="lr must be a number"):
            optimizer.step(grads)
    assert optimizer.step_count == 0
    optimizer.param_groups[0]["lr"] = rate
    twin = method.optimizer(np.ones((2, 2)), lr=0.25)
    for each in (optimizer, twin):
        each.step(grads)
    assert optimizer.param_groups[0]["params"][0].tolist() == twin.param_groups[0]["params"][0].tolist()
