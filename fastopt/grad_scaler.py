"""Dynamic loss scaling, for gradients that are computed in low precision."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .checks import at_least_one, flag, number, whole
from .clip import gradients, multiply, reals
from .interrupts import uninterrupted
from .kernels.norms import power_sum
from .kernels.sparse import SparseRows
from .optimizers.base import Grads, Optimizer, float32
from .optimizers.tree import flatten

__all__ = ["GradScaler"]

LEAST, MOST = 2.0**-126, 2.0**126  # a scale and its reciprocal are normal float32 numbers


class GradScaler:
    """Scales a loss up so that small gradients do not vanish in low precision, and finds the scale by itself.

    The gradients of `scale(loss)` are divided by the scale inside the step. Where one is infinite or NaN, the step is
    skipped, and `update()` lowers the scale; after n steps in a row that were made, it raises it::

        skipped:   scale = backoff_factor scale            n steps made:   scale = growth_factor scale

    Args:
        init_scale: the first scale, from 2^-126 to 2^126.
        growth_factor: above 1.
        backoff_factor: above 0 and below 1.
        growth_interval: n, at least 1.
        enabled: False makes `step` the optimizer's own, `scale` return what it is given, and the rest do nothing.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Names, defaults, growth rules and checkpoints are those of torch.amp.GradScaler, and the scale is a float32 number
    as there. Unlike torch's: gradients are arguments, which `step` only reads;
    `scale` need not be called before `step`, for those who multiply by `get_scale()`; a scale that would leave the
    range above stays as it is (torch lets it fall to 0); a growth interval made shorter than the steps made in a row
    takes effect at once (in torch never); and a call out of turn always raises RuntimeError.

    >>> import numpy as np, fastopt
    >>> w = np.ones(2)
    >>> opt = fastopt.SGD(w, lr=0.5)
    >>> scaler = fastopt.GradScaler(init_scale=1024.0, growth_interval=1)
    >>> for x in (1.0, np.inf):
    ...     scaler.step(opt, scaler.scale(np.full(2, x)))
    ...     scaler.update()
    ...     print(w, scaler.get_scale())
    [0.5 0.5] 2048.0
    [0.5 0.5] 1024.0

    Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, init_scale: float = 2.0**16, growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000, enabled: bool = True) -> None:
        self._enabled = flag("enabled", enabled)
        self._scale = checked_scale("init_scale", init_scale)
        self._growth_factor = growth("growth_factor", growth_factor)
        self._backoff_factor = backoff("backoff_factor", backoff_factor)
        self._growth_interval = at_least_one("growth_interval", growth_interval)
        self._growth_tracker = 0  # steps made in a row
        self._new_iteration()

    def _new_iteration(self):
        self._found: dict[Any, bool] = {}  # optimizer -> whether a gradient was not finite
        self._stepped: set[Any] = set()

    # ---- one iteration

    def scale(self, outputs: Any) -> Any:
        """Returns a loss, or arrays, multiplied by the scale.

        Args:
            outputs: anything that can be multiplied by a float: a number, an array, a tensor of another framework; or
                a list, tuple, mapping or iterator of such, which is returned as one (a mapping as a dict). Floats of
                16 bits and less, which end at 65504 or before, become float32: in torch a loss does so, but a tensor
                of several elements overflows.

        Raises:
            TypeError: something cannot be multiplied.
        """
        if not self._enabled:
            return outputs
        if isinstance(outputs, Mapping):
            return {key: self.scale(value) for key, value in outputs.items()}
        if isinstance(outputs, (list, tuple)):
            return getattr(type(outputs), "_make", type(outputs))(map(self.scale, outputs))  # _make: a namedtuple
        if isinstance(outputs, Iterator):
            return map(self.scale, outputs)
        try:
            with np.errstate(over="ignore"):
                return widened(outputs) * self._scale
        except (TypeError, ValueError):
            raise TypeError("outputs must be numbers or arrays, or lists, tuples, mappings or iterators of them, "
                            f"got {type(outputs).__name__}") from None

    def unscale_(self, optimizer: Optimizer, grads: Grads = None) -> None:
        """Divides gradients by the scale, in place, and checks them for NaN and infinities: to clip or inspect them.

        Needed only where something uses the unscaled gradients before the step: `step(..., clip=...)` clips without.

        Args:
            optimizer: the optimizer that `step` will be called with.
            grads: writable gradients, as for `Optimizer.step`, sparse ones too. None: those bound to the optimizer.

        Raises:
            TypeError, ValueError: a gradient is invalid; nothing was changed.
            RuntimeError: called a second time for this optimizer, or after its step, before `update()`.
        """
        if not self._enabled:
            return
        self._check_not_stepped("unscale_()", optimizer)
        if optimizer in self._found:
            raise RuntimeError("unscale_() was already called for this optimizer since the last update()")
        leaves = flatten(bound_gradients(optimizer) if grads is None else grads)
        _, arrays = gradients([stored(leaf) if name is None else (name, stored(leaf)) for name, leaf in leaves], True)
        largest = power_sum([reals(array) for array in arrays], math.inf)
        with uninterrupted():
            multiply(arrays, 1.0 / self._scale)
            self._found[optimizer] = not math.isfinite(largest)

    def step(self, optimizer: Optimizer, grads: Grads = None, *args: Any, **kwargs: Any) -> Any:
        """Makes a step of `optimizer` with unscaled gradients, or skips it if any is infinite or NaN.

        A step that is skipped leaves parameters, state and step counts as they were, whatever the optimizer's own
        `on_nonfinite` is. After `unscale_` the gradients are taken as they are, with what was found then.

        Args:
            optimizer: a fastopt optimizer, but LBFGS, which takes closures.
            grads: scaled gradients, as for `Optimizer.step`; only read. Sparse ones need `unscale_` before.
            args, kwargs: what else `Optimizer.step` takes, but a closure.

        Returns:
            What `Optimizer.step` returned; None where it was not called.

        Raises:
            TypeError, ValueError: as for `Optimizer.step`; nothing was changed.
            RuntimeError: a second step of this optimizer before `update()`, or a closure.
        """
        if not self._enabled:
            return optimizer.step(grads, *args, **kwargs)
        if args or callable(grads) or kwargs.get("closure") is not None:
            raise RuntimeError("a closure cannot be used with a GradScaler: its gradients would not be unscaled")
        self._check_not_stepped("step()", optimizer)
        result = None
        if optimizer not in self._found:
            result = optimizer.step(grads, grad_scale=self._scale, on_nonfinite="skip", **kwargs)
            self._found[optimizer] = optimizer.last_step.skipped
        elif self._found[optimizer]:
            optimizer._left_out += 1
        else:
            result = optimizer.step(grads, **kwargs)
        self._stepped.add(optimizer)
        return result

    def update(self, new_scale: float | None = None) -> None:
        """Ends an iteration: adapts the scale to what its steps found.

        Args:
            new_scale: sets the scale to this instead.

        Raises:
            TypeError, ValueError: `new_scale` is not a number from 2^-126 to 2^126; nothing was changed.
            RuntimeError: no step was made since the last `update()`, and there is no `new_scale`.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = checked_scale("new_scale", new_scale)
        elif not self._found:
            raise RuntimeError("update() needs a step() or unscale_() since the last update()")
        elif any(self._found.values()):
            self._growth_tracker = 0
            self._multiply(self._backoff_factor)
        else:
            self._growth_tracker += 1
            if self._growth_tracker >= self._growth_interval:  # above: the interval was made shorter meanwhile
                self._growth_tracker = 0
                self._multiply(self._growth_factor)
        self._new_iteration()

    def _multiply(self, factor):
        scale = self._scale * factor
        if LEAST <= scale <= MOST:
            self._scale = float32(scale)

    def _check_not_stepped(self, what, optimizer):
        if optimizer in self._stepped:
            raise RuntimeError(f"{what} came after a step() of this optimizer, without an update() between")

    # ---- settings

    def is_enabled(self) -> bool:
        """Whether this scaler scales."""
        return self._enabled

    def get_scale(self) -> float:
        """The scale; 1.0 if not enabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """What the scale is multiplied by to raise it."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Sets what the scale is multiplied by to raise it: above 1, else ValueError."""
        self._growth_factor = growth("new_factor", new_factor)

    def get_backoff_factor(self) -> float:
        """What the scale is multiplied by after a step that was skipped."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Sets what the scale is multiplied by after a step that was skipped: above 0 and below 1, else ValueError."""
        self._backoff_factor = backoff("new_factor", new_factor)

    def get_growth_interval(self) -> int:
        """Steps made in a row that raise the scale."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Sets how many steps made in a row raise the scale: at least 1, else ValueError."""
        self._growth_interval = at_least_one("new_interval", new_interval)

    # ---- checkpoints and copies

    def state_dict(self) -> dict[str, Any]:
        """Returns the scale, its settings and the steps made in a row, in torch's layout; empty if not enabled.

        To be called after `update()`: what an unfinished iteration found is not saved.
        """
        if not self._enabled:
            return {}
        return {"scale": self._scale, "growth_factor": self._growth_factor, "backoff_factor": self._backoff_factor,
                "growth_interval": self._growth_interval, "_growth_tracker": self._growth_tracker}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned, here or in torch; does nothing if not enabled.

        Raises:
            TypeError, ValueError: a key is missing or unknown (empty: saved by a scaler that was not enabled), or a
                value is not as it must be; nothing was changed.
        """
        if not self._enabled:
            return
        checks = {"scale": checked_scale, "growth_factor": growth, "backoff_factor": backoff,
                  "growth_interval": at_least_one, "_growth_tracker": whole}
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        if set(state_dict) != set(checks):
            given = ", ".join(map(str, state_dict)) or "none"
            raise ValueError(f"state_dict must have the keys {', '.join(checks)}; got {given}")
        values = {f"_{name.lstrip('_')}": check(name, state_dict[name]) for name, check in checks.items()}
        vars(self).update(values)

    def __getstate__(self):
        if self._found:
            raise RuntimeError("a GradScaler can be copied and pickled only between iterations, after update()")
        return {name: value for name, value in vars(self).items() if name not in ("_found", "_stepped")}

    def __setstate__(self, state):
        vars(self).update(state)
        self._new_iteration()

    def __repr__(self):
        entries = ", ".join(f"{name.lstrip('_')}={value!r}" for name, value in self.state_dict().items())
        return f"GradScaler({entries or 'enabled=False'})"


def widened(outputs):
    """A float, or an array or tensor of floats, of less than 32 bits as float32; all else as it is."""
    dtype = getattr(outputs, "dtype", None)
    floats = getattr(dtype, "is_floating_point", False) or getattr(dtype, "kind", "") in ("f", "V")  # V: bfloat16
    if not floats or dtype.itemsize >= 4:
        return outputs
    return outputs.float() if hasattr(outputs, "float") else outputs.astype(np.float32)


def bound_gradients(optimizer):
    plan = optimizer._engine.plan
    if not plan.has_bound:
        raise ValueError("unscale_() needs grads, or gradients bound to the optimizer with bind_grads()")
    return plan.bound_gradients


def stored(gradient):
    """The array that holds the elements of a gradient."""
    if isinstance(gradient, SparseRows):
        return gradient.stored
    return gradient.data if hasattr(gradient, "tocoo") else gradient  # a scipy.sparse matrix


# ---- checks

def checked_scale(name, value):
    scale = number(name, value)
    if not LEAST <= scale <= MOST:
        raise ValueError(f"{name} must be from 2^-126 to 2^126, got {value!r}")
    return float32(scale)


def growth(name, value):
    factor = number(name, value)
    if factor <= 1:
        raise ValueError(f"{name} must be above 1, got {value!r}")
    return factor


def backoff(name, value):
    factor = number(name, value)
    if not 0 < factor < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value!r}")
    return factor
