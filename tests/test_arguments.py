"""Every way by which an array comes in takes the same arrays, reads them alike, and refuses the same ones."""

import array
import ctypes
import itertools

import numpy as np
import pytest

import fastopt
from fastopt import SGD, SparseRows, functional
from fastopt.averages import EMA
from fastopt.table import METHODS

SHAPES = ((3, 4), (5,), (2, 3, 2), (1, 4), (), (0, 3))
DTYPES = ("float32", "float64")


# ---- what is given instead of a plain array: functions that return None where there is no such thing

class Careless(np.ndarray):
    """A subclass that changes what its functions do."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        raise RuntimeError("this class has ufuncs of its own")

    def __array_function__(self, *_):
        raise RuntimeError("this class has functions of its own")


class Finalized(np.ndarray):
    def __array_finalize__(self, other):
        self.note = getattr(other, "note", None)

    def sum(self, *_, **__):
        return 12345.0


class Exporter:
    """Memory by DLPack, and nothing else."""

    def __init__(self, given, error=None, where="__dlpack__"):
        self.given, self.error, self.where = given, error, where

    def __dlpack_device__(self):
        if self.error and self.where == "__dlpack_device__":
            raise self.error
        return (1, 0)

    def __dlpack__(self, **options):
        if self.error:
            raise self.error
        return self.given.__dlpack__(**options)


class Interface:
    """Memory by `__array_interface__`, and nothing else."""

    def __init__(self, given):
        self.given, self.__array_interface__ = given, given.__array_interface__


class OddInterface:
    @property
    def __array_interface__(self):
        raise KeyError("typestr")


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype)
    raw = raw[: x.size].reshape(x.shape)
    raw[...] = x
    return raw if x.size else None


def strided(x):
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]) if x.ndim else (), x.dtype)
    if not x.size or not x.ndim:
        return None
    wide[..., ::2] = x
    return wide[..., ::2]


def backwards(x):
    return np.ascontiguousarray(x[::-1])[::-1] if x.ndim and x.size and len(x) > 1 else None


def fortran(x):
    turned = np.asfortranarray(x)
    return None if turned.flags.c_contiguous else turned


def readonly(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def flat(make):
    return lambda x: make(x) if x.ndim == 1 and x.size else None


def raising(error, where="__dlpack__"):
    return lambda x: Exporter(x, error, where)


def tensor(x):
    return pytest.importorskip("torch").from_numpy(x)


SAME = {  # must be taken like the plain array wherever memory is taken at all
    "plain": lambda x: x,
    "matrix": lambda x: np.asmatrix(x) if x.ndim == 2 else None,
    "own ufuncs": lambda x: x.view(Careless),
    "own finalize": lambda x: x.view(Finalized),
}
EXPORTERS = {
    "memoryview": lambda x: memoryview(x) if x.size and x.ndim else None,
    "array.array": flat(lambda x: array.array(x.dtype.char, x.tobytes())),
    "ctypes": flat(lambda x: ((ctypes.c_float if x.itemsize == 4 else ctypes.c_double) * len(x))(*x)),
    "DLPack": Exporter,
    "interface": Interface,
    "torch": tensor,
}
PERHAPS = {  # taken right, or refused
    "readonly": readonly,
    "byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": unaligned,
    "strided": strided,
    "backwards": backwards,
    "fortran": fortran,
    "list": lambda x: x.tolist() if x.ndim else None,
}
NEVER = {  # must be refused everywhere
    "masked": lambda x: np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) == 0),
    "masked, without mask": np.ma.masked_array,
    "objects": lambda x: x.astype(object),
    "strings": lambda x: x.astype(str),
    "dates": lambda x: np.zeros(x.shape, "M8[s]"),
    "records": lambda x: np.zeros(x.shape, "f,f"),
    "text": lambda x: "1.0",
    "bytes": lambda x: b"12345678",
    "object": lambda x: object(),
    "function": lambda x: len,
    "odd interface": lambda x: OddInterface(),
    **{f"{type(error).__name__} in {where}": raising(error, where)
       for error in (KeyError("x"), IndexError("x"), AttributeError("x"), ZeroDivisionError("x"), LookupError("x"),
                     OSError("x"), NotImplementedError("x"), AssertionError("x"), OverflowError("x"),
                     ModuleNotFoundError("x"), UnicodeError("x"), StopIteration("x"))
       for where in ("__dlpack__", "__dlpack_device__")},
}


# ---- the arguments that take arrays

class Door:
    """A place for one array, `plain`, and what there is around it.

    `words`: one of them must be in the message of a refusal. `takes`: what else must be taken.
    """

    words = ("gradient", "grads")
    takes = ()
    in_place = False

    def __init__(self, shape, dtype):
        rng = np.random.default_rng(5)

        def draw():
            return np.asarray(rng.standard_normal(shape), dtype)

        self.param, self.plain = draw(), draw()
        self.make()

    def make(self):
        self.optimizer = SGD([self.param], lr=0.1, momentum=0.9)
        self.optimizer.step([self.plain * 2])

    def use(self, x):
        raise NotImplementedError

    def world(self):
        """Everything that may have changed, as bytes."""
        optimizer = self.optimizer
        return (self.param.tobytes(), optimizer.step_count,
                {i: {key: np.asarray(value).tobytes() for key, value in state.items()}
                 for i, state in optimizer.state.items()})


class Gradient(Door):
    takes = (*EXPORTERS, "readonly")

    def __init__(self, shape, dtype, method, stages=None, **options):
        self.method, self.stages, self.options = method, stages, options
        super().__init__(shape, dtype)

    def make(self):
        self.optimizer = self.method.optimizer([self.param], **self.options)
        if self.stages:
            self.optimizer.set_stages(**self.stages)
        self.optimizer.step([self.plain * 2])

    def use(self, x):
        self.optimizer.step([x])


class Alone(Gradient):
    """The gradient itself, not in a list."""

    takes = EXPORTERS

    def use(self, x):
        self.optimizer.step(x if x is not len else [x])  # a function would be a closure


class Named(Gradient):
    takes = EXPORTERS

    def make(self):
        self.optimizer = self.method.optimizer({"w": self.param}, **self.options)

    def use(self, x):
        self.optimizer.step({"w": x})


class Bound(Gradient):
    takes = EXPORTERS

    def use(self, x):
        self.optimizer.bind_grads([x])
        self.optimizer.step()


class Accumulated(Gradient):
    takes = EXPORTERS

    def use(self, x):
        self.optimizer.accumulate([x], 0.5)
        self.optimizer.step()


class Parameter(Door):
    words = ("parameter", "param")
    takes = EXPORTERS
    in_place = True

    def __init__(self, shape, dtype, method, **options):
        self.method, self.options = method, options
        super().__init__(shape, dtype)

    def make(self):
        self.optimizer = self.method.optimizer([self.param])

    def use(self, x):
        self.method.optimizer([x], **self.options).step([self.param.astype(self.plain.dtype)])


class Rebound(Door):
    words = ("parameter", "param")
    takes = EXPORTERS
    in_place = True

    def use(self, x):
        self.optimizer.rebind([x])
        self.optimizer.step([np.ones_like(self.param)])
        self.optimizer.rebind([self.param])


class Added(Door):
    words = ("parameter", "param")
    takes = EXPORTERS
    in_place = True

    def use(self, x):
        self.optimizer.add_param_group({"params": [x]})
        self.optimizer.step([None, np.ones_like(self.param)])
        self.optimizer = SGD([self.param])


class State(Door):
    words = ("state", "momentum_buffer")
    takes = ("readonly", "byte order", "strided", "backwards", "fortran", "unaligned", "torch")

    def use(self, x):
        self.optimizer.state[0]["momentum_buffer"] = x


class Checkpoint(Door):
    words = ("state", "momentum_buffer")
    takes = State.takes

    def use(self, x):
        saved = self.optimizer.state_dict()
        saved["state"][0] = {**saved["state"][0], "momentum_buffer": x}
        self.optimizer.load_state_dict(saved)


class Averaged(Door):
    words = ("average", "state", "module", "param")
    takes = State.takes

    def make(self):
        super().make()
        self.average = EMA(self.optimizer)

    def use(self, x):
        self.average.load_state_dict({"n_averaged": 3, "module.0": x})

    def world(self):
        return super().world(), self.average.n_averaged, [a.tobytes() for a in self.average.averages]


class Followed(Averaged):
    """A parameter that an average follows."""

    words = ("parameter", "param")
    takes = EXPORTERS

    def use(self, x):
        average = EMA([x], decay=0.5)
        average.update()
        self.average.load_state_dict({"n_averaged": 1, "module.0": average.averages[0]})


class CopiedTo(Averaged):
    words = ("parameter", "param")
    takes = EXPORTERS
    in_place = True

    def use(self, x):
        self.average.copy_to([x])


class Functional(Door):
    words = ("params", "parameter", "gradient", "grads", "momentum", "exp_avg")
    takes = EXPORTERS

    def __init__(self, shape, dtype, place):
        self.place, self.in_place = place, place != 1
        super().__init__(shape, dtype)

    def make(self):
        super().make()
        self.arguments = [self.param, *(np.full_like(self.param, value) for value in (1.0, 0.0, 0.0))]

    def use(self, x):
        arguments = [x if k == self.place else [argument] for k, argument in enumerate(self.arguments)]
        arguments[self.place] = [x]
        functional.adam(*arguments, step=2, lr=0.1)

    def world(self):
        return [argument.tobytes() for k, argument in enumerate(self.arguments) if k != self.place]


class Clipped(Door):
    takes = EXPORTERS
    in_place = True

    def __init__(self, shape, dtype, clip):
        self.clip = clip
        super().__init__(shape, dtype)

    def use(self, x):
        self.answer = self.clip([self.param, x], 0.1)

    def world(self):
        return self.param.tobytes(), getattr(self, "answer", None)


class Normed(Clipped):
    takes = (*EXPORTERS, "readonly")
    in_place = False

    def use(self, x):
        self.answer = round(fastopt.get_total_norm([self.param, x]), 6)  # of a list, the sum is another


class SparseValues(Door):
    words = ("values", "gradient")
    takes = ("readonly",)

    def use(self, x):
        rows = np.arange(len(self.plain))[::-1].copy()
        self.optimizer.step([SparseRows(rows, x, self.param.shape)])


def arguments():
    one = [(method, options) for method in METHODS if not method.closure for options in method.variants[:2]]
    for method, options in one:
        if method.optimizer.sparse != "only":
            yield f"gradient of {method.name} {options}", lambda s, d, m=method, o=options: Gradient(s, d, m, **o)
            yield f"parameter of {method.name} {options}", lambda s, d, m=method, o=options: Parameter(s, d, m, **o)
    whole = [method for method in METHODS if method.name in ("Adam", "Muon", "Adafactor")]
    for method in whole:
        for name, stages in {"clip": {"clip": 0.1}, "statistics": {"statistics": True}, "centre": {"centralize": True},
                             "adaptive": {"clip": fastopt.stages.Adaptive(), "on_nonfinite": "raise"}}.items():
            yield f"gradient of {method.name} with {name}", lambda s, d, m=method, g=stages: Gradient(s, d, m, g)
        for kind in (Alone, Named, Bound, Accumulated):
            yield f"{kind.__name__} gradient of {method.name}", lambda s, d, m=method, k=kind: k(s, d, m)
    for kind in (Rebound, Added, State, Checkpoint, Averaged, Followed, CopiedTo, Normed, SparseValues):
        yield kind.__name__, (lambda s, d, k=kind: k(s, d)) if kind is not Normed else lambda s, d: Normed(s, d, None)
    for place in range(4):
        yield f"functional, argument {place}", lambda s, d, p=place: Functional(s, d, p)
    for clip in (fastopt.clip_grad_norm_, fastopt.clip_grad_value_, lambda grads, most: fastopt.clip_grads_with_norm_(
            grads, most, 3.0)):
        yield f"clip {getattr(clip, '__name__', clip)}", lambda s, d, c=clip: Clipped(s, d, c)


ARGUMENTS = dict(arguments())


def values(x):
    """What memory holds, whatever it comes as; None: no memory."""
    if isinstance(x, (Exporter, Interface)):
        x = x.given
    if isinstance(x, np.ma.MaskedArray):
        x = x.data
    if isinstance(x, (str, bytes, OddInterface, list)) or callable(x) or type(x) is object:
        return None
    return np.array(x.view(np.ndarray) if isinstance(x, np.ndarray) else np.asarray(x))


def problem(make, shape, dtype, name, present):
    """What is wrong with how an argument takes something; None: nothing."""
    try:
        argument, twin = make(shape, dtype), make(shape, dtype)
    except ValueError:
        return None  # a method that steps no such shape
    if isinstance(argument, SparseValues) and not argument.plain.ndim:
        return None
    given = present(argument.plain.copy())
    if given is None:
        return None
    before, inside = argument.world(), values(given)
    try:
        argument.use(given)
    except (TypeError, ValueError) as error:
        if argument.world() != before:
            return f"refused, but changed something ({error})"
        if inside is not None and values(given).tobytes() != inside.tobytes():
            return f"refused, but wrote into what was given ({error})"
        if not any(word in str(error) for word in argument.words):
            return f"refused without a name: {error}"
        if name in SAME or name in argument.takes:
            return f"refused: {error}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if name in NEVER:
        return "accepted"
    plain = twin.plain.copy()
    twin.use(plain)
    if argument.world() != twin.world():
        return "taken for something else"
    if inside is not None and not np.array_equal(values(given), plain):
        return "not written" if argument.in_place else "written"
    return None


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.filterwarnings("ignore:The numpy.matrix")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_every_argument_takes_an_array_right_or_refuses_it(argument):
    cases = [*itertools.product({**SAME, **EXPORTERS, **PERHAPS}.items(), SHAPES, DTYPES),
             *itertools.product(NEVER.items(), SHAPES[:1], DTYPES[:1])]
    problems = [f"{name} {dtype} {shape}: {found}" for (name, present), shape, dtype in cases
                if (found := problem(ARGUMENTS[argument], shape, dtype, name, present))]
    assert not problems, "\n".join(problems)


# ---- indices, and matrices of scipy

@pytest.mark.parametrize("indices", [
    np.array([2, 0], ">i8"), np.array([2, 0], "<u4"), np.array([2, 9, 0, 9])[::2], np.array([0, 2])[::-1],
    [2, 0], (2, 0), memoryview(np.array([2, 0])), array.array("i", [2, 0]),
], ids=lambda indices: type(indices).__name__)
def test_indices_of_any_whole_kind(indices):
    table = np.zeros((3, 2))
    SGD([table], lr=1.0).step([SparseRows(indices, np.array([[1.0, 2.0], [3.0, 4.0]]), table.shape)])
    np.testing.assert_array_equal(table, [[-3, -4], [0, 0], [-1, -2]])


@pytest.mark.parametrize("indices", [
    np.ma.masked_array([2, 0], [True, False]), np.array([2.0, 0.0]), np.array([2, 0], object), np.array([True, False]),
    "20", None, {2, 0}, Exporter(np.array([2, 0]), KeyError("x")),
], ids=lambda indices: type(indices).__name__)
def test_indices_that_are_none(indices):
    with pytest.raises((TypeError, ValueError), match="indices"):
        SparseRows(indices, np.ones((2, 2)), (3, 2))


@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4"])
@pytest.mark.parametrize("shape", [(4, 3), (5,)], ids=str)
def test_scipy_of_any_byte_order_and_dimension(form, dtype, shape):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros(shape)
    dense[1], dense[3] = 2.0, -1.0
    try:
        grad = getattr(sparse, f"{form}_array")(dense.astype(dtype))
    except ValueError:
        pytest.skip("no such matrix")
    table = np.zeros(shape)
    try:
        SGD([table], lr=1.0).step([grad])
    except (TypeError, ValueError) as error:
        assert "gradient" in str(error) or "values" in str(error)
        assert not table.any()
    else:
        np.testing.assert_array_equal(table, -dense)


def test_sparse_rows_cannot_be_changed_after_they_were_checked():
    table = np.zeros((4, 2))
    grad = SparseRows([1, 2], np.ones((2, 2)), table.shape)
    try:
        grad.indices[0] = 100_000
    except ValueError:
        pass
    try:
        SGD([table], lr=1.0).step([grad])
    except (TypeError, ValueError):
        assert not table.any()
    else:
        np.testing.assert_array_equal(table[1:3], -1)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_memory_that_was_given_as_a_subclass_is_stepped_plainly():
    for method in METHODS:
        if method.closure or method.optimizer.sparse == "only":
            continue
        plain = np.arange(6.0).reshape(2, 3) + 1
        careless = plain.copy().view(Careless)
        matrix = np.asmatrix(plain.copy())
        for param in (plain, careless, matrix):
            method.optimizer([param]).step([np.ones((2, 3))])
        assert plain.tobytes() == careless.tobytes() == matrix.tobytes()


