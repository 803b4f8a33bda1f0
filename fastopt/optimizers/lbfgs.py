"""L-BFGS."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import isfinite, sqrt
from typing import Any

import numpy as np

from ..checks import at_least_one, nonnegative, number, one_of, real, whole
from ..interrupts import Interrupts
from ..kernels.checks import check_parameter
from .base import Optimizer, Params, Rate
from .engine import Engine
from .line_search import Point, finite, strong_wolfe
from .pairs import Pairs, dot
from .state import fitted, judging

LEAST_CURVATURE = 1e-10  # a pair with sᵀy of no more is left out
MEMORY = "memory"  # the slot of the first parameter that has all state


@np.errstate(all="ignore")
def largest(vector: np.ndarray) -> float:
    """The largest magnitude; NaN if there is one in the vector."""
    return float(max(vector.max(), -vector.min()))


class Vectors:
    """The parameters as one vector, and the vectors that a step works in."""

    def __init__(self, params: list[np.ndarray]) -> None:
        self.length, self.dtype = sum(param.size for param in params), params[0].dtype
        self.start = self.new()  # the parameters before the step
        self.point = self.new()  # and before an iteration
        self.work = self.new()
        self.grads: list[np.ndarray] = []
        self.see(params)

    def new(self) -> np.ndarray:
        return np.empty(self.length, self.dtype)

    def see(self, params: list[np.ndarray]) -> None:
        """Works on these parameters from now on."""
        self.params = params
        self.cuts = [0, *np.cumsum([param.size for param in params]).tolist()]

    def parts(self, *vectors: np.ndarray) -> Iterator[list[np.ndarray]]:
        """For each parameter: the parameter, and its part of each vector, flat."""
        for param, (low, high) in zip(self.params, pairwise(self.cuts), strict=True):
            yield [param.reshape(-1), *(vector[low:high] for vector in vectors)]

    def save(self, out: np.ndarray) -> None:
        for param, part in self.parts(out):
            part[...] = param

    def load(self, vector: np.ndarray) -> None:
        for param, part in self.parts(vector):
            param[...] = part

    @np.errstate(all="ignore")
    def move(self, t: float, direction: np.ndarray) -> None:
        """Sets the parameters to `point` + t · direction."""
        for param, part, at in self.parts(direction, self.point):
            np.multiply(part, t, out=param)
            param += at

    @np.errstate(over="ignore")
    def gather(self, taken: list[tuple[int, np.ndarray]], held: tuple[Point, ...]) -> np.ndarray:
        """The gradients as one vector, other than those of the held points; zeros where a parameter has no gradient."""
        out = next((grad for grad in self.grads if all(grad is not point.grad for point in held)), None)
        if out is None:
            out = self.new()
            self.grads.append(out)
        given = dict(taken)
        for position, (_, part) in enumerate(self.parts(out)):
            part[...] = given[position].reshape(-1) if position in given else 0
        return out


class Memory:
    """What stays between steps: in torch the state of the first parameter, by the same names."""

    def __init__(self, vectors: Vectors, size: int) -> None:
        self.func_evals = self.n_iter = 0
        self.t = self.previous_loss = 0.0
        self.al: np.ndarray | None = None
        self.direction, self.previous_grad = vectors.new(), vectors.new()  # they mean nothing before n_iter is 1
        self.pairs = Pairs(size, vectors.length, vectors.dtype)

    @np.errstate(all="ignore")
    def turn(self, grad: np.ndarray, work: np.ndarray) -> None:
        """Makes a new direction, from the gradient and what the last step told."""
        d, pairs = self.direction, self.pairs
        self.n_iter += 1
        if self.n_iter == 1:
            np.negative(grad, out=d)
        else:
            change = np.subtract(grad, self.previous_grad, out=self.previous_grad)
            curvature = self.t * dot(change, d)
            if curvature > LEAST_CURVATURE:
                pairs.add(d, self.t, change, curvature, grad)
            else:
                pairs.skip(grad)
            self.al = pairs.direction(grad, d, work)
        self.previous_grad[...] = grad

    def resize(self, size: int) -> None:
        """Keeps the newest `size` pairs from now on."""
        old = self.pairs
        if size != old.size:
            self.pairs = Pairs.of(size, old.steps(), old.changes(), old.rows.shape[1], old.rows.dtype, old.scale)

    def mark(self) -> dict[str, Any]:
        """What `restore` needs."""
        return {**self.__dict__, "direction": self.direction.copy(), "previous_grad": self.previous_grad.copy(),
                "mark": self.pairs.mark()}

    def restore(self, mark: dict[str, Any]) -> None:
        self.__dict__.update({key: value for key, value in mark.items() if key != "mark"})
        self.pairs.restore(mark["mark"])

    def entries(self, history_size: int) -> dict[str, Any]:
        """All of it in torch's layout; the arrays are live."""
        entries: dict[str, Any] = {"func_evals": self.func_evals, "n_iter": self.n_iter}
        if self.n_iter:
            pairs = self.pairs
            entries |= {
                "d": self.direction, "t": self.t, "old_dirs": pairs.changes(), "old_stps": pairs.steps(),
                "ro": [1.0 / curvature for curvature in pairs.curvatures()], "H_diag": pairs.scale,
                "prev_flat_grad": self.previous_grad, "prev_loss": self.previous_loss,
            }
        if self.al is not None:
            entries["al"] = [*self.al.tolist(), *[None] * (history_size - len(self.al))]
        return entries

    @classmethod
    def of(cls, entries: Mapping[str, Any], vectors: Vectors, size: int, label: str) -> "Memory":
        """The reverse of `entries`; everything is judged, and copied."""
        if not isinstance(entries, Mapping):
            raise TypeError(f"state of {label} must be a dict, got {type(entries).__name__}")

        def judged(check, name):
            return check(f"state {name!r} of {label}", entries[name])

        def parts(name):
            if not isinstance(entries[name], (list, tuple)):
                raise TypeError(f"state {name!r} of {label} must be a list, got {type(entries[name]).__name__}")
            return entries[name]

        counts, later = ("func_evals", "n_iter"), ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad",
                                                   "prev_loss")
        unknown = [name for name in entries if name not in (*counts, *later, "al")]
        if unknown:
            raise ValueError(f"state of {label} has {unknown[0]!r}; LBFGS has {', '.join((*counts, *later, 'al'))}")
        wanted: tuple[str, ...] = counts
        if entries.get("n_iter") is not None and judged(whole, "n_iter"):
            wanted += later if judged(whole, "n_iter") == 1 else (*later, "al")
        missing = [name for name in wanted if entries.get(name) is None]
        if missing:
            raise ValueError(f"state of {label} lacks {missing[0]!r}")
        memory = cls(vectors, 1)
        memory.func_evals, memory.n_iter = judged(whole, "func_evals"), judged(whole, "n_iter")
        if memory.n_iter > memory.func_evals:
            raise ValueError(f"state of {label} has an n_iter of {memory.n_iter}, more than the func_evals")
        if not memory.n_iter:
            early = [name for name in entries if name not in counts and entries[name] is not None]
            if early:
                raise ValueError(f"state of {label} has {early[0]!r}, but an n_iter of 0")
            return memory
        memory.t, memory.previous_loss = judged(nonnegative, "t"), judged(real, "prev_loss")
        scale = judged(real, "H_diag")
        if scale < 0:
            raise ValueError(f"state 'H_diag' of {label} must be at least 0, got {scale!r}")
        memory.direction = fitted(entries["d"], vectors.point, "d", label)
        memory.previous_grad = fitted(entries["prev_flat_grad"], vectors.point, "prev_flat_grad", label)
        steps, changes = ([fitted(value, vectors.point, name, label) for value in parts(name)]
                          for name in ("old_stps", "old_dirs"))
        inverses = [real(f"state 'ro' of {label}", value) for value in parts("ro")]
        if not len(steps) == len(changes) == len(inverses):
            raise ValueError(f"state of {label} has {len(steps)} old_stps and {len(changes)} old_dirs, and "
                             f"{len(inverses)} numbers in ro")
        memory.pairs = Pairs.of(size, steps, changes, vectors.length, vectors.dtype, scale)
        for inverse, step, change in zip(inverses, steps, changes, strict=True):
            curvature, reach = dot(step, change), sqrt(dot(step, step)) * sqrt(dot(change, change))
            if not inverse >= 0 or (isfinite(reach) and abs(inverse * curvature - 1.0) > 1e-2 * inverse * reach + 1e-6):
                raise ValueError(f"state 'ro' of {label} must have 1 / (old_stps · old_dirs), got {inverse!r} "
                                 f"where that is 1 / {curvature!r}")
        if entries.get("al") is not None:
            al = [real(f"state 'al' of {label}", value) for value in parts("al") if value is not None]
            memory.al = np.array(al[: memory.pairs.count])
        return memory


class ClosureEngine(Engine):
    """Keeps the parameters and the memory of L-BFGS, which makes its steps itself."""

    def has_state(self, position):
        return bool(self.arrays[position])

    def pack_state(self, position, settings):
        memory = self.arrays[position].get(MEMORY)
        return memory.entries(settings["history_size"]) if memory else {}

    def match_state(self, position, entries, settings):
        if position:
            raise ValueError(f"the state must belong to {self.plan.label(0)}, got that of {self.plan.label(position)}")
        vectors, label = Vectors(self.plan.params), self.plan.label(position)
        memory = Memory.of(entries, vectors, settings["history_size"], label)
        return 1, (), {MEMORY: memory}


class LBFGS(Optimizer):
    r"""L-BFGS: a quasi-Newton method for functions that are evaluated whole, without sampling noise.

    With gradient g, and for the last `history_size` steps the pairs of the step s and the change y of the gradient
    over it, an iteration is::

        q = g;  from the newest pair to the oldest:   α = sᵀq / sᵀy,  q = q - α y
        r = γ q                                       γ = sᵀy / yᵀy of the newest pair
        from the oldest pair to the newest:           β = yᵀr / sᵀy,  r = r + (α - β) s
        θ = θ - t r

    The first iteration of all goes along -g with t = η min(1, 1 / Σ|g|), every later one has t = η, or with a line
    search the step t that this finds from there. A pair with sᵀy ≤ 10⁻¹⁰ is left out.

    Args:
        params: see `Optimizer`; one group, all of one dtype. Together they are the vector θ.
        lr: the step η, at least 0; with a line search the first step that it tries.
        max_iter: iterations in a call of `step`, at most.
        max_eval: evaluations of the closure in a call of `step`, at most (None: 1.25 · `max_iter`). As in torch, an
            iteration without a line search begins while fewer were made.
        tolerance_grad: a step ends where no element of the gradient is larger.
        tolerance_change: a step ends where no parameter, or where the loss, changed by more, and where the slope
            gᵀd of the direction is flatter than that.
        history_size: pairs to remember; each costs two vectors as long as all parameters together, and time.
        line_search_fn: None, or `"strong_wolfe"`: the step t then meets the strong Wolfe conditions, with 10⁻⁴ for
            the decrease of the loss and 0.9 for the slope.

    Raises:
        TypeError, ValueError: an argument is not as described, there is more than one group, or the parameters
            differ in dtype or have no element; see also `Optimizer`.

    >>> import numpy as np, fastopt
    >>> w = np.array([-1.2, 1.0])
    >>> opt = fastopt.LBFGS([w], line_search_fn="strong_wolfe", max_iter=50)
    >>> def rosenbrock():
    ...     x, y = w
    ...     return (1 - x)**2 + 100 * (y - x*x)**2, [np.array([2*(x - 1) - 400*x*(y - x*x), 200*(y - x*x)])]
    >>> float(opt.step(rosenbrock).round(6))
    24.2
    >>> w.round(3)
    array([1., 1.])

    Source: Liu and Nocedal 1989; Nocedal and Wright 2006, Numerical Optimization, algorithms 7.4, 3.5 and 3.6; the
    compact form that is computed here: Byrd, Nocedal and Schnabel 1994. Departs from torch in rounding (in float32
    the scalars are double here), in that a step that failed is undone (see `step`), and where `history_size` is
    lowered between steps: the oldest pairs go. The vectors are multiplied by NumPy's BLAS: the bits of the result
    depend on it and on its number of threads, and `num_threads` has no effect.
    """

    _Engine = ClosureEngine
    rule = None
    decays = False
    closure = True
    state_slots = ()
    counts_steps = False
    same_order = True
    hyperparameters = {
        "lr": nonnegative,
        "max_iter": at_least_one,
        "max_eval": at_least_one,
        "tolerance_grad": number,
        "tolerance_change": number,
        "history_size": at_least_one,
        "line_search_fn": one_of(None, "strong_wolfe"),
    }

    def __init__(self, params: Params, lr: Rate = 1, max_iter: int = 20, max_eval: int | None = None,
                 tolerance_grad: float = 1e-7, tolerance_change: float = 1e-9, history_size: int = 100,
                 line_search_fn: str | None = None) -> None:
        if max_eval is None:
            max_eval = at_least_one("max_iter", max_iter) * 5 // 4
        super().__init__(params, dict(lr=lr, max_iter=max_iter, max_eval=max_eval, tolerance_grad=tolerance_grad,
                                      tolerance_change=tolerance_change, history_size=history_size,
                                      line_search_fn=line_search_fn))

    def _setup(self):
        super()._setup()
        self._stepping = threading.Lock()
        self._kept: Vectors | None = None

    @staticmethod
    def slots(settings):
        return {}

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Refuses a second group: the parameters are one vector.

        Raises:
            ValueError: there is a group already; the parameters of the first differ in dtype or have no element.
        """
        if self.param_groups:
            raise ValueError("LBFGS has one parameter group: its parameters are one vector")
        super().add_param_group(param_group)
        first = self._plan.params[0]
        for position, param in enumerate(self._plan.params):
            if param.dtype != first.dtype:
                raise ValueError(f"LBFGS needs parameters of one dtype: {self._plan.label(0)} is {first.dtype}, "
                                 f"{self._plan.label(position)} {param.dtype}")
        if not sum(param.size for param in self._plan.params):
            raise ValueError("params has no element: there is nothing to optimize")

    def replace_param(self, key: Any, param: Any, state: Any = "keep") -> None:
        """Raises ValueError: the state is of all parameters as one vector; `rebind` moves to arrays of their shapes."""
        raise ValueError("LBFGS has one state for all parameters: rebind() moves to others of the same shapes")

    def remove_param(self, key: Any) -> None:
        """Raises ValueError: see `replace_param`."""
        raise ValueError("LBFGS has one state for all parameters: make a new optimizer for fewer")

    # ---- the step

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Makes up to `max_iter` iterations, and updates every parameter in place.

        Args:
            closure: a function without arguments that computes the loss anew and returns `(loss, grads)`, with
                grads in the structure of `params`; or only the loss, where gradients are bound (`bind_grads`):
                it then writes them into the bound arrays. It is called many times, each time with other values in
                the parameters, which it must not change. The gradients are copied after each call. None in them
                stands for zeros.

        Returns:
            The loss that the closure returned first, of the parameters before the step.

        Raises:
            TypeError, ValueError: there is no closure; a gradient, parameter or hyperparameter is not as it must be.
            RuntimeError: another thread, or the closure, is stepping this optimizer.

        If anything raises, the closure and Ctrl-C included, the parameters and the state are put back to what they
        were before the step. A loss or gradient that is not finite is no error. Without a line search it spreads into
        the parameters, as in torch: keep a copy, or raise in the closure. A line search comes back from there, and
        the step ends at the best point that it saw, which may be the one where it began.
        """
        return super().step(closure=closure)

    def _step(self, grads=None, closure=None):
        if closure is None:
            closure = grads  # a hook's arguments may be (closure,)
        if not callable(closure):
            raise TypeError(f"LBFGS needs step(closure): a function that computes the loss, got {closure!r}")
        interrupts = Interrupts()
        with interrupts:
            if not self._stepping.acquire(blocking=False):
                raise RuntimeError("this optimizer is in use: a step is being made by another thread or by the "
                                   "function that called this one; give each thread an optimizer of its own")
            try:
                return self._whole_step(lambda: interrupts.call(closure))  # which takes the time of a step
            finally:
                self._stepping.release()

    def _whole_step(self, closure):
        """A step that is made or undone."""
        settings = self._engine.read(self._engine.groups[0]).settings
        vectors = self._vectors()
        memory = self._engine.arrays[0].get(MEMORY) or Memory(vectors, settings["history_size"])
        vectors.save(vectors.start)
        mark = memory.mark()
        try:
            memory.resize(settings["history_size"])
            loss = self._iterate(closure, memory, settings, vectors)
        except BaseException:
            vectors.load(vectors.start)
            memory.restore(mark)
            raise
        memory.pairs.forget_mark()
        self._engine.arrays[0][MEMORY] = memory
        self._plan.steps += 1
        return loss

    def _vectors(self):
        """The working vectors, over the parameters as they are now."""
        params = self._plan.params
        for position, param in enumerate(params):
            check_parameter(param, self._plan.label(position))
        if self._kept is None:
            self._kept = Vectors(params)
        self._kept.see(params)
        if self._kept.cuts[-1] != self._kept.length:
            raise ValueError("the memory of a parameter has moved since it was given; call rebind(params)")
        return self._kept

    def _evaluate(self, closure, memory, vectors, *held):
        """Calls the closure: returns what it gave as the loss, and the gradient."""
        loss, grads = closure(), None
        if isinstance(loss, tuple):
            loss, grads = loss
        memory.func_evals += 1
        return loss, self._plan.during(self._gathered, grads, (vectors, held))

    def _gathered(self, grads, where):
        """The gradients, checked, as one vector; the plan is taken."""
        vectors, held = where
        self._plan.begin(grads if grads is None else self._arrange(grads))
        return vectors.gather(self._plan.taken(), held)

    def _iterate(self, closure, memory, settings, vectors):
        """All iterations of a step; the rules that end it, and their order, are torch's."""
        before = memory.func_evals
        first, grad = self._evaluate(closure, memory, vectors)
        loss, searches = real("loss", first), settings["line_search_fn"] is not None
        if largest(grad) <= settings["tolerance_grad"]:
            return first
        if searches and not (isfinite(loss) and isfinite(largest(grad))):
            return first  # there is no way down from here
        for left in reversed(range(settings["max_iter"])):
            memory.turn(grad, vectors.work)
            memory.previous_loss = loss
            memory.t = first_step(settings["lr"], grad) if memory.n_iter == 1 else settings["lr"]
            start = Point(0.0, loss, dot(grad, memory.direction), grad)
            if start.slope > -settings["tolerance_change"]:
                break
            vectors.save(vectors.point)
            if not searches:
                loss, grad = self._go(closure, memory, vectors, start, left)
            else:
                most = settings["max_eval"] - (memory.func_evals - before)
                loss, grad = self._search(closure, memory, vectors, start, settings["tolerance_change"], most)
            evaluated = memory.func_evals - before
            if not left or evaluated >= settings["max_eval"] or ended(memory, settings, loss, grad):
                break
        return first

    def _go(self, closure, memory, vectors, start, left):
        """Makes the step t as it is; the last of a call is not evaluated."""
        vectors.move(memory.t, memory.direction)
        if not left:
            return start.loss, start.grad
        loss, grad = self._evaluate(closure, memory, vectors)
        return real("loss", loss), grad

    def _search(self, closure, memory, vectors, start, tolerance_change, most):
        """Makes the step that the line search finds; where it left the domain of the loss, the best that it saw."""
        best, left = start, False

        def evaluate(t, *held):
            nonlocal best, left
            vectors.move(t, memory.direction)
            loss, grad = self._evaluate(closure, memory, vectors, *held, best)
            point = Point(t, real("loss", loss), dot(grad, memory.direction), grad)
            if not finite(point):
                left = True
            elif point.loss < best.loss:
                best = point
            return point

        found, _ = strong_wolfe(evaluate, start, memory.t, largest(memory.direction), tolerance_change, most)
        if left:
            found = best
            if found is start:  # the direction is of no use
                memory.pairs = Pairs(memory.pairs.size, vectors.length, vectors.dtype)
        memory.t = found.t
        vectors.move(found.t, memory.direction)
        if found.t == 0.0:
            vectors.load(vectors.point)  # also where the direction is not finite
        return found.loss, found.grad

    # ---- state

    @property
    def state(self) -> dict[int, Any]:  # type: ignore[override]
        """The state in torch's layout, under the first parameter; its vectors are live, its numbers are copies."""
        entries = self._engine.pack_state(0, self.param_groups[0])
        return {0: entries} if entries else {}

    def _pack(self):
        packed, memory, size = super()._pack(), self._engine.arrays[0].get(MEMORY), self.param_groups[0]["history_size"]
        if memory is None or memory.pairs.size != size:
            return packed
        return {**packed, "products": memory.pairs.products()}  # torch has them not, and overlooks them

    def _fitted(self, state_dict):
        fitted = (groups, states, _), _ = super()._fitted(state_dict)
        if "products" in state_dict:
            if MEMORY not in states.get(0, (0, (), {}))[2]:
                raise ValueError("state_dict has products of L-BFGS, and no state that they belong to")
            memory = states[0][2][MEMORY]
            memory.resize(groups[0]["history_size"])
            with judging("products of the state_dict"):
                memory.pairs.take(state_dict["products"])
        return fitted

    @staticmethod
    def copied(memory):
        return copy.deepcopy(memory)


@np.errstate(all="ignore")
def first_step(lr: float, grad: np.ndarray) -> float:
    """The step along the first direction, which is not scaled yet."""
    return float(min(1.0, 1.0 / np.abs(grad).sum(dtype=np.float64))) * lr


def ended(memory: Memory, settings: Mapping[str, Any], loss: float, grad: np.ndarray) -> bool:
    """Whether an iteration leaves nothing to do."""
    return (largest(grad) <= settings["tolerance_grad"]
            or abs(memory.t) * largest(memory.direction) <= settings["tolerance_change"]
            or abs(loss - memory.previous_loss) < settings["tolerance_change"])
