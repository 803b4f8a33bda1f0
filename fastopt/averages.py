"""Averages of weights beside the training: exponential (EMA) and with equal weights (SWA).

An average follows the parameters of a model in memory of its own. It is updated after each step, and evaluated
instead of the parameters, because it often generalises better.

>>> import numpy as np, fastopt
>>> params = {"w": np.zeros(3)}
>>> opt = fastopt.SGD(params, lr=1.0)
>>> ema = fastopt.averages.EMA(opt, decay=0.5)
>>> for _ in range(3):
...     opt.step({"w": np.full(3, -1.0)})
...     ema.update()
>>> params["w"]
array([3., 3., 3.])
>>> with ema.average_parameters():
...     print(params["w"])
[2.25 2.25 2.25]
>>> params["w"]
array([3., 3., 3.])
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .checks import closed_fraction, flag, fraction, one_of, positive, whole
from .interrupts import uninterrupted
from .kernels import rules
from .kernels.arrays import owned
from .kernels.hold import Ensured, exclusive
from .optimizers.base import Optimizer, Params, Rate
from .optimizers.engine import Engine, Front
from .optimizers.method import Method
from .optimizers.settings import at
from .optimizers.state import Whole, fitted, step_count

__all__ = ["EMA", "SWA", "Average"]

PLAIN = (1.0, 0.0, 0.0, 0.0)  # what Plan.run wants to know of a gradient that is taken as it is
BLOCK = 65_536  # bytes that are exchanged at a time: they stay in the L2


class Averaging(Method):
    """What an average does with the parameters: they take the role of a gradient."""

    rule = "average"
    decays = False
    hyperparameters = {}
    state_slots = ()


class Average(Front):
    """Base of the averages: a weighted mean of what the parameters were at each `update()`.

    With the weight w of the parameters θ at update k, which `weight(k)` gives::

        a = a + w (θ - a)

    At the first update w is 1: the average is a copy. Until then it is a copy of what the parameters were when it
    was made.

    Args:
        params: the parameters to follow, in any structure that an optimizer takes (the hyperparameters of groups have
            no effect); or an `Optimizer`, to follow its parameters.
        dtype: None keeps the averages in the dtype of their parameters. `"float64"` (of complex parameters:
            complex128) keeps them in double precision: with tiny weights a float32 average stops following.

    Attributes:
        averages: the averages, in the order of the parameters: arrays in memory of their own, always the same objects.
        n_averaged: updates made, as in torch's AveragedModel. Settable; 0 makes the next update start over.
        num_threads: how many threads an update may use; None (the default) is `fastopt.get_num_threads()`.

    Raises:
        TypeError, ValueError: a parameter is not one that an optimizer takes, or an argument is not as described.

    An update is one pass over memory and has the same bits on every SIMD level and for any number of threads. It is
    the compiled rule `average`, with the average as the parameter, the live parameter as the gradient and
    `coefficients(k)`: whoever steps the parameters block by block can call it on each block in the cache, and set
    `n_averaged` afterwards.
    """

    def __init__(self, params: Params, *, dtype: str | None = None) -> None:
        one_of(None, "float64")("dtype", dtype)
        source = params if isinstance(params, Optimizer) else Parameters(params)
        self._setup([owned(param, np.result_type(param, dtype) if dtype else None)
                     for param in source._plan.params], source._plan.names)
        self._source = source  # an optimizer that holds the parameters

    def _setup(self, averages, names):
        self._engine = Engine(Averaging)
        self._engine.add(averages, names, {})
        self._exchanged = False  # True: the averages are in the parameters
        self._n_averaged = 0

    # ---- what an average says of itself

    def weight(self, count: int) -> float:
        """The weight of the parameters at update number `count`, from 1: above 0 (or 0, for no effect), at most 1."""
        raise NotImplementedError

    def coefficients(self, count: int) -> tuple[float, float]:
        """What the rule `average` needs at update number `count`, from 1: (w, 1 - w), in double precision."""
        weight = self.weight(count)
        return weight, 1.0 - weight

    def _rule(self, count):
        """The same, with the form of the rule, which rounds otherwise where w is 1/2 or more."""
        w, rest = self.coefficients(count)
        return rules.average(first=rest == 0.0, light=w < rest, w=w, rest=rest)

    def _settings(self):
        """The arguments, to print."""
        return {}

    # ---- the update

    def update(self) -> None:
        """Takes the parameters as they are now into the average. Call it after a step of the optimizer.

        Raises:
            ValueError: a parameter was resized or added since; the average is unchanged.
            RuntimeError: the averages are in the parameters (see `average_parameters`), or another thread is updating.
        """
        self._check_not_swapped("update()")
        count = self._n_averaged + 1
        self._engine.plan.during(self._take, self._rule(count), [(vars(self), {"_n_averaged": count})])

    def _take(self, rule, then):
        """Makes an update; `then` is what it counts. The plan is taken."""
        source = self._source._engine.plan
        try:
            source.check_watched()
            self._take_from(source.params, rule, then)
        except (TypeError, ValueError):
            self._check_parameters()
            raise

    def _take_from(self, params, rule, then=None):
        self._engine.make_given(params, PLAIN, rule, then)

    @property
    def averages(self) -> list[np.ndarray]:
        """The averages, in the order of the parameters."""
        self._check_free("averages")
        return list(self._plan.params)

    @property
    def n_averaged(self) -> int:
        """Updates made so far. Settable."""
        return self._n_averaged

    @n_averaged.setter
    def n_averaged(self, count: int) -> None:
        self._n_averaged = step_count(count)

    def rebind(self, params: Params) -> None:
        """Averages other arrays from now on, after a framework replaced its parameters; the averages stay.

        An average of an optimizer takes part in `Optimizer.rebind` by itself, and this rebinds that optimizer.

        Args:
            params: the structure, shapes and dtypes of the parameters so far.

        Raises:
            TypeError, ValueError: anything differs; nothing was changed.
            RuntimeError: the averages are in the parameters.
        """
        self._check_free("rebind()")
        self._source.rebind(params)

    # ---- the averages instead of the parameters

    def average_parameters(self) -> AbstractContextManager[None]:
        """A context in which the parameters have the values of their averages.

        Afterwards, also after an exception, the parameters have their own values back, bit for bit. The contents are
        exchanged in place, without further memory (averages in double precision need a copy of the size of the
        parameters). What is written into the parameters meanwhile goes into the averages, or with double precision is
        lost. Until then `update()`, a step of the optimizer that was given to the average, and all else that needs
        the averages raise RuntimeError, and so does a second `average_parameters()`.

        Raises:
            ValueError: a parameter is read-only, or was resized or added since; nothing was changed.
            RuntimeError: the averages are in the parameters already, or another thread is updating.
        """
        return Exchanged(self)

    def copy_to(self, params: Params = None) -> None:
        """Copies the averages into parameters, for good.

        Args:
            params: the destination, in any structure that an optimizer takes, or an optimizer; matched by name where
                both sides have names, else by position. None is the parameters that are averaged.

        Raises:
            TypeError, ValueError: number, names, shapes or kinds of number differ, or a parameter cannot be written;
                nothing was changed.
            RuntimeError: the averages are in the parameters.
        """
        self._check_not_swapped("copy_to()")
        if params is None:
            self._check_parameters(writable=True)
            target = self._source
        else:
            target = params if isinstance(params, Optimizer) else Parameters(params)
        pairs = []
        for position, average in zip(self._matched(target._plan.names), self._plan.params, strict=True):
            param, label = target._plan.params[position], target._plan.label(position)
            if not param.flags.writeable:
                raise ValueError(f"{label} is read-only")
            if param.shape != average.shape or param.dtype.kind != average.dtype.kind:
                raise ValueError(f"{label} must have shape {average.shape} and a dtype like {average.dtype}, "
                                 f"got {param.shape} and {param.dtype}")
            pairs.append((param, average))
        self._plan.during(target._plan.during, write, pairs)

    # ---- checkpoints and copies

    @exclusive
    def state_dict(self) -> dict[str, Any]:
        """Returns copies of the averages, and their count, in the layout of torch's AveragedModel.

        `{"n_averaged": n, "module.<name>": array, ...}`; a parameter without a name has its position
        instead. As in torch, the arguments are not saved: the program that loads has to give them.

        Raises:
            RuntimeError: the averages are in the parameters, or an update is being made.
        """
        self._check_not_swapped("state_dict()")
        return {"n_averaged": self.n_averaged,
                **{key: average.copy() for key, average in zip(self._keys(), self._plan.params, strict=True)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned, here or in torch. Arrays are copied and take the dtype of the averages.

        Raises:
            TypeError, ValueError: the count, names, shapes or kinds of number do not fit; nothing was changed.
            RuntimeError: the averages are in the parameters, or an update is being made.
        """
        self._check_not_swapped("load_state_dict()")
        self._adopt(self._fitted(state_dict))

    def _fitted(self, state_dict):
        """A checkpoint in the form that `_adopt` takes; raises, with nothing changed, if it does not fit."""
        if not isinstance(state_dict, Mapping) or "n_averaged" not in state_dict:
            raise ValueError("state_dict must be a dict with 'n_averaged'")
        count, keys = step_count(state_dict["n_averaged"]), self._keys()
        missing = [key for key in keys if key not in state_dict]
        unknown = [key for key in state_dict if key != "n_averaged" and key not in keys]
        if missing or unknown:
            problems = [f"lacks {missing[0]!r}"] if missing else []
            problems += [f"has {unknown[0]!r}, which is no parameter here"] if unknown else []
            raise ValueError(f"state_dict {' and '.join(problems)}")
        return count, [fitted(state_dict[key], average, key, self._plan.label(position))
                       for position, (key, average) in enumerate(zip(keys, self._plan.params, strict=True))]

    @exclusive
    def _adopt(self, fitted):
        count, arrays = fitted
        with uninterrupted(), np.errstate(all="ignore"):
            for average, array in zip(self._plan.params, arrays, strict=True):
                average[...] = array
            self._n_averaged = count

    def _keys(self):
        return [f"module.{position if name is None else name}" for position, name in enumerate(self._plan.names)]

    def __getstate__(self):
        self._check_not_swapped("a copy")
        own = {name: value for name, value in vars(self).items() if name not in ("_engine", "_exchanged")}
        return own | {"_num_threads": self.num_threads}, self.averages, list(self._plan.names), Whole(self._plan)

    def __setstate__(self, saved):
        own, averages, names, _ = saved
        self._setup([owned(average) for average in averages], names)
        self.num_threads = own.pop("_num_threads", None)
        vars(self).update(own)

    def __repr__(self):
        settings = [f"{name}={value!r}" for name, value in self._settings().items()]
        return f"{type(self).__name__}({', '.join([*settings, f'n_averaged={self.n_averaged}'])})"

    # ---- checks

    def _check_not_swapped(self, what):
        if self._exchanged:
            raise RuntimeError(f"{what} while the averages are in the parameters: leave average_parameters() first")

    def _check_free(self, what):
        """The same, and while they are updated."""
        self._check_not_swapped(what)
        self._plan.check_idle()

    def _check_parameters(self, writable=False):
        """Raises ValueError unless the parameters are still those that the averages were made for."""
        live = self._source._plan
        if len(live) != len(self._plan):
            raise ValueError(f"the optimizer has {len(live)} parameters, this average {len(self._plan)}: parameters "
                             f"that are added later need an average of their own")
        for position, (param, average) in enumerate(zip(live.params, self._plan.params, strict=True)):
            if param.shape != average.shape or param.dtype.kind != average.dtype.kind:
                raise ValueError(f"{live.label(position)} must have shape {average.shape} and a dtype like "
                                 f"{average.dtype}, got {param.shape} and {param.dtype}")
            if writable and not param.flags.writeable:
                raise ValueError(f"{live.label(position)} is read-only")

    def _matched(self, names):
        """For each average the position in `names` that it belongs to."""
        own = self._plan.names
        if len(names) != len(own):
            raise ValueError(f"params must have {len(own)} arrays, as the average, got {len(names)}")
        if None in names or None in own:
            return range(len(own))
        if set(names) != set(own):
            raise ValueError(f"the parameter {min(set(names) ^ set(own))!r} is on one side only")
        return [names.index(name) for name in own]


class EMA(Average):
    r"""Exponential moving average: the weight of old parameters decays from update to update.

    With decay d, the average a of the parameters θ after k updates, and t = k - 1 - `update_after_step`::

        a = d a + (1 - d) θ                            a = θ while t ≤ 0
        d = decay,  or decay(t) of a schedule
        warmup:   d = min(decay, 1 - (1 + t / γ)^-power),  at least min_decay
        debias:   a = s / (1 - dᵗ⁺¹)  with  s = d s + (1 - d) θ  from zero

    Args:
        params: see `Average`; an optimizer too.
        decay: d, at least 0 and at most 1: a number, or a schedule that is called with t, from 1.
        warmup: lets the decay rise from 0 to `decay`, so that the first parameters are soon forgotten. With power 2/3
            it reaches 0.999 after 31,600 updates and 0.9999 after a million, with power 3/4 after 10,000 and 215,000.
        inv_gamma: γ, above 0: larger is slower.
        power: above 0: larger is faster; 1 with γ = 1 gives the mean of all.
        min_decay: d is never less, from the second averaged parameters on; at least 0 and at most `decay`.
        update_after_step: the number of updates that only copy the parameters, before averaging begins.
        debias: weights all parameters by how long ago they were, the first too, which otherwise has the weight of
            all before it (Adam's bias correction). Needs a decay that is a number below 1, without warm-up.
        dtype: see `Average`.

    Raises:
        TypeError, ValueError: an argument is not as described; see also `Average`.

    >>> import numpy as np, fastopt
    >>> w = np.array([0.0])
    >>> plain, debiased = fastopt.averages.EMA([w], decay=0.9), fastopt.averages.EMA([w], decay=0.9, debias=True)
    >>> for w[:] in (0.0, 1.0):
    ...     plain.update()
    ...     debiased.update()
    >>> plain.averages[0].round(4), debiased.averages[0].round(4)
    (array([0.1]), array([0.5263]))

    Source: Polyak and Juditsky 1992. Without options it is torch's AveragedModel with get_ema_multi_avg_fn; `warmup`
    and its options are those of timm's ModelEmaV3 and of EMAModel in Hugging Face's diffusers; `debias` is that of
    optax's ema. The form is that of torch's lerp, without its fused multiplications.
    """

    def __init__(self, params: Params, decay: Rate = 0.999, *, warmup: bool = False, inv_gamma: float = 1.0,
                 power: float = 2 / 3, min_decay: float = 0.0, update_after_step: int = 0, debias: bool = False,
                 dtype: str | None = None) -> None:
        self.decay = decay if callable(decay) else closed_fraction("decay", decay)
        self.warmup, self.debias = flag("warmup", warmup), flag("debias", debias)
        self.inv_gamma, self.power = positive("inv_gamma", inv_gamma), positive("power", power)
        self.min_decay = closed_fraction("min_decay", min_decay)
        self.update_after_step = whole("update_after_step", update_after_step)
        if not callable(decay) and self.min_decay > self.decay:
            raise ValueError(f"min_decay must be at most decay, {self.decay}, got {min_decay!r}")
        if self.debias and (callable(decay) or self.warmup):
            raise ValueError("debias needs a decay that is a number, without warmup")
        if self.debias:
            fraction("decay with debias", decay)
        super().__init__(params, dtype=dtype)

    def weight(self, count: int) -> float:
        """The weight of the parameters at update number `count`, from 1.

        Raises:
            TypeError, ValueError: the schedule of the decay gave no number from 0 to 1.
        """
        t = count - 1 - self.update_after_step
        if t <= 0:
            return 1.0
        decay = closed_fraction("decay", at(self.decay, t))
        if self.debias:
            return (1.0 - decay) / (1.0 - decay ** (t + 1))
        weight = 1.0 - decay
        if self.warmup:
            weight = max(weight, (1.0 + t / self.inv_gamma) ** -self.power)
        return min(weight, 1.0 - self.min_decay)

    def _settings(self):
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class SWA(Average):
    """Stochastic weight averaging: the mean of the parameters at all updates, each with the same weight.

    With the average a of the parameters θ at k updates::

        a = a + (θ - a) / k

    Update it at the end of each epoch, once training has reached a good region, at a learning rate that stays high.

    Args:
        params: see `Average`; an optimizer too.
        dtype: see `Average`.

    Raises:
        TypeError, ValueError: see `Average`.

    >>> import numpy as np, fastopt
    >>> w = np.array([0.0])
    >>> swa = fastopt.averages.SWA([w])
    >>> for w[:] in (1.0, 2.0, 6.0):
    ...     swa.update()
    >>> swa.averages[0]
    array([3.])

    Source: Izmailov et al. 2018, arXiv 1803.05407. It is torch's AveragedModel as it is by default, where however the
    weight 1 / k is rounded to float32 also for float64 parameters.
    """

    def weight(self, count: int) -> float:
        """The weight of the parameters at update number `count`, from 1: 1 / count."""
        return 1.0 / count


class Parameters(Optimizer):
    """Holds parameters in any structure that an optimizer takes, with its checks; it makes no steps."""

    rule = None
    hyperparameters = {}
    state_slots = ()

    def __init__(self, params: Params) -> None:
        super().__init__(params, {})

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds the parameters of a group; its hyperparameters have no meaning here."""
        super().add_param_group({"params": param_group["params"]})


def write(pairs):
    """Copies the second array of each pair into the first."""
    with uninterrupted(), np.errstate(all="ignore"):
        for param, average in pairs:
            param[...] = average


class Exchanged(Ensured):
    """The context of `Average.average_parameters`."""

    def __init__(self, average: Average) -> None:
        self.average, self.source = average, average._source._plan
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.mine = self.refused = False

    def begin(self) -> None:
        average = self.average
        if average._exchanged:
            self.refused = self.mine
            raise RuntimeError("average_parameters(): the averages are in the parameters already")
        average._plan.during(self.source.during, self.exchange, average)

    def exchange(self, average):
        with uninterrupted():
            average._check_parameters(writable=True)
            self.pairs = [(flat(param), flat(in_dtype(own, param.dtype)))
                          for param, own in zip(self.source.params, average._plan.params, strict=True)]
            exchange(self.pairs)
            average._exchanged = self.mine = True
            self.source.lent += 1

    def end(self) -> None:
        with uninterrupted():
            if self.refused:  # it was entered twice: the first is still to be left
                self.refused = False
            elif self.mine:
                exchange(self.pairs)
                self.average._exchanged = self.mine = False
                self.source.lent -= 1
                self.pairs = []


def in_dtype(array, dtype):
    """The array itself if it has this dtype, else a copy that has it."""
    with np.errstate(all="ignore"):
        return array.astype(dtype, copy=False)


def flat(array):
    """The bytes of a C-contiguous array. The view stays writable, whatever becomes of the array's flag."""
    return array.reshape(-1).view(np.uint8)


def exchange(pairs):
    """Exchanges the contents of the arrays of bytes of each pair, a block at a time."""
    scratch = np.empty(BLOCK, np.uint8)
    for one, other in pairs:
        for start in range(0, one.size, scratch.size):
            here, there = one[start : start + scratch.size], other[start : start + scratch.size]
            kept = scratch[: here.size]
            kept[...] = here
            here[...] = there
            there[...] = kept
