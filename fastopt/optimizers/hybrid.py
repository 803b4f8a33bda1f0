"""MuonAdamW: one optimizer for a whole model, Muon for its matrices and AdamW for the rest."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakMethod

import numpy as np

from ..checks import check_matches
from ..interrupts import uninterrupted
from ..kernels.arrays import as_array
from ..kernels.checks import called, check_overlap, check_parameter
from ..kernels.hold import exclusive
from .adam import AdamW
from .base import Optimizer, Params, check_names, is_group
from .checkpoint import match_stages
from .muon import Muon
from .state import ParameterState, Whole, step_count
from .tree import flatten, is_container, listed

Exclude = str | Iterable[str] | Callable[[Any, np.ndarray], bool]


class MuonAdamW(Optimizer):
    """Muon for the matrices of a model and AdamW for everything else, as one optimizer.

    Args:
        params: the parameters, in any structure that `Optimizer` takes but groups.
        muon: arguments of `Muon`, a mapping: schedules too.
        adamw: arguments of `AdamW`, likewise.
        exclude: which matrices AdamW steps nevertheless, such as embeddings and the last layer. Patterns of names
            as in a shell (`"embedding*"`, `"*.head.weight"`; one or a list), or a function `(name, array) -> bool`.

    Attributes:
        muon, adamw: the two optimizers, or None where there is no parameter for one. Give one of them to a scheduler
            to drive its rate alone; a scheduler of the `MuonAdamW` drives both.
        param_groups: the groups of both, Muon's first; what is changed there acts at the next step.

    Raises:
        TypeError, ValueError: as for `Muon` and `AdamW`; also groups, a pattern that no parameter matches, and
            patterns where parameters have no names.

    `step`, `bind_grads` and `rebind` take the structure of `params`. A step that raises has changed nothing in either
    part. `state_dict` is `{"muon": ..., "adamw": ...}`, each a checkpoint that the optimizer of that name in
    torch.optim can load, and the reverse; parameters count within their part there. `num_threads` is of AdamW's part.

    >>> import numpy as np, fastopt
    >>> params = {"embedding": np.ones((4, 2)), "weight": np.ones((2, 2)), "bias": np.zeros(2)}
    >>> opt = fastopt.MuonAdamW(params, muon={"lr": 0.02}, adamw={"lr": 0.001}, exclude="embedding")
    >>> opt.muon.param_groups[0]["param_names"], opt.adamw.param_groups[0]["param_names"]
    (['weight'], ['embedding', 'bias'])
    >>> opt.step({name: np.ones_like(param) for name, param in params.items()})
    >>> params["bias"].round(6)
    array([-0.001, -0.001])

    Source: Jordan et al. 2024; Loshchilov and Hutter 2019. torch.optim has no such optimizer.
    """

    rule = None
    hyperparameters = {}
    state_slots = ()

    muon: Muon | None
    adamw: AdamW | None
    _positions_of: dict[str, list[int]]

    def __init__(self, params: Params, *, muon: Mapping[str, Any] | None = None,
                 adamw: Mapping[str, Any] | None = None, exclude: Exclude = ()) -> None:
        self._setup()
        given = listed(params)
        if is_group(given) or (isinstance(given, (list, tuple)) and any(map(is_group, given))):
            raise ValueError("MuonAdamW makes the groups itself: params must be parameters, not group dicts")
        leaves = flatten(given)
        if not leaves:
            raise ValueError("params is empty: there is nothing to optimize")
        names = [name for name, _ in leaves]
        check_names(names)
        arrays = []
        for position, (name, leaf) in enumerate(leaves):
            label = called(position, name)
            arrays.append(as_array(leaf, label))
            check_parameter(arrays[-1], label)
        excluded = chosen(exclude, names, arrays)
        matrices = [array.ndim == 2 and not out for array, out in zip(arrays, excluded, strict=True)]
        self._make(arrays, names, matrices, muon, adamw)
        self._remember(given, range(len(arrays)))
        self._plain = not (is_container(given) and any(map(is_container, given)))
        self.defaults = {name: part.defaults for name, part in self._parts.items()}

    def _setup(self):
        self.muon = self.adamw = None
        self._positions_of = {}  # name of a part -> positions of its parameters
        super()._setup()

    def _make(self, arrays, names, matrices, muon, adamw):
        made = {}
        for part, cls, options in (("muon", Muon, muon), ("adamw", AdamW, adamw)):
            if options is not None and not isinstance(options, Mapping):
                raise TypeError(f"{part} must be a mapping of arguments, got {type(options).__name__}")
            positions = [i for i, matrix in enumerate(matrices) if matrix == (part == "muon")]
            here = [arrays[i] if names[i] is None else (names[i], arrays[i]) for i in positions]
            # without parameters of its own, a part still checks its arguments
            made[part] = cls(here or np.zeros((1, 1)), **(options or {})) if here or options else None
            if here:
                self._positions_of[part] = positions
        self._plan.extend(arrays, names, 0)
        self._plan.watch((), WeakMethod(self._look_again))
        self._arrays = [{} for _ in arrays]
        self.muon = made["muon"] if "muon" in self._positions_of else None
        self.adamw = made["adamw"] if "adamw" in self._positions_of else None

    @property
    def _parts(self) -> dict[str, Optimizer]:
        return {name: getattr(self, name) for name in self._positions_of}

    @property  # type: ignore[misc]
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both parts, Muon's first."""
        return [group for part in self._parts.values() for group in part.param_groups]

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Raises ValueError: a `MuonAdamW` has all its parameters from the start."""
        raise ValueError("MuonAdamW takes all parameters when it is made")

    # ---- state

    @property
    def state(self) -> dict[int, ParameterState]:
        """The state of each parameter that has one, by its position in `params`."""
        found = {self._positions_of[name][i]: state
                 for name, part in self._parts.items() for i, state in part.state.items()}
        return dict(sorted(found.items()))

    @exclusive
    def reset_state(self) -> None:
        """Forgets all state and step counts, as if no step had been made; hyperparameters stay."""
        with uninterrupted():
            for part in self._parts.values():
                part.reset_state()
            if self._pipeline is not None:
                self._pipeline.reset()

    @property
    def step_count(self) -> int:
        """Steps made so far, of both parts. Settable."""
        return max(part.step_count for part in self._parts.values())

    @step_count.setter
    @exclusive
    def step_count(self, count: int) -> None:
        count = step_count(count)
        with uninterrupted():
            for part in self._parts.values():
                part.step_count = count

    def replace_param(self, key: Any, param: Any, state: Any = "keep") -> None:
        """Steps another array in the place of a parameter from now on: see `Optimizer.replace_param`.

        A matrix stays with its part.
        """
        position = self._find(key)
        name = next(name for name, positions in self._positions_of.items() if position in positions)
        part, place, before = self._parts[name], self._positions_of[name].index(position), self._plan.params[position]
        array = as_array(param, self._plan.label(position))
        check_overlap([array, *(other for other in self._plan.params if other is not before)], lambda i: (
            f"the new array of {self._plan.label(position)}" if i == 0 else "another parameter"), 1)
        self._check_alone("replace_param()")
        with uninterrupted():
            part.replace_param(place, array, state)
            super().replace_param(position, array, "new")

    def _put(self, position, array):
        """The groups are those of the parts."""

    def remove_param(self, key: Any) -> None:
        """Raises ValueError: a `MuonAdamW` keeps its parameters."""
        raise ValueError("MuonAdamW keeps the parameters that it was made with")

    # ---- gradients and the step

    def _arrange(self, grads):
        if isinstance(grads, np.ndarray):
            return [grads]
        return self._in_order(flatten(grads))

    def _split(self, entries):
        """What each part gets of a list with an entry for each parameter."""
        return {name: [entries[i] for i in positions] for name, positions in self._positions_of.items()}

    def _move_to(self, structure, leaves):
        before = self._split(self._plan.params)
        super()._move_to(structure, leaves)
        with uninterrupted():
            try:
                for name, moved in self._split(self._plan.params).items():
                    self._parts[name].rebind(moved)
            except BaseException:
                for name, params in before.items():
                    self._parts[name].rebind(params)
                raise

    def _guard(self):
        """Shows the plan the state of both parts."""
        stages = self._pipeline.written() if self._pipeline is not None else []
        self._plan.guard(stages + [(self._positions_of[name][i], array) for name, part in self._parts.items()
                                   for i, arrays in enumerate(part._arrays) for array in arrays.values()])

    def _show(self, arrays):
        """The groups are those of the parts."""

    def _boxes(self):
        return []

    def _make_step(self, grads, then=None, first=None, after=None):
        for name, part in self._parts.items():
            if part._pipeline is not None:
                raise ValueError(f"{name} has stages of its own: set them for the whole MuonAdamW")
        plan = self._plan
        self._guard()
        plan.begin(grads)  # checks all gradients, and names them as the caller does
        taken = dict(plan.taken())
        split = self._split([taken.get(i) for i in range(len(plan))])
        if self.adamw is not None:
            self.adamw.num_threads = self._num_threads

        def last():
            if after is not None:
                after()
            plan.finish(then)

        if self.muon is None:
            with uninterrupted():
                self.adamw._advance(split["adamw"])
                last()
            return
        second = None if self.adamw is None else lambda: self.adamw._advance(split["adamw"])
        # AdamW steps when Muon can no longer fail
        self.muon._plan.during(lambda grads: self.muon._make_step(grads, None, second, last), split["muon"])

    # ---- checkpoints and copies

    def _pack(self):
        packed = {name: part._pack() for name, part in self._parts.items()}
        return packed if self._pipeline is None else {**packed, "stages": self._pipeline.state()}

    def _fitted(self, state_dict):
        if not isinstance(state_dict, Mapping) or set(state_dict) - {"stages"} != set(self._parts):
            raise ValueError(f"state_dict of this MuonAdamW must have the keys {', '.join(map(repr, self._parts))}")
        parts = {name: part._fitted(state_dict[name]) for name, part in self._parts.items()}
        return parts, match_stages(self, state_dict)

    def _adopt(self, fitted):
        parts, stages = fitted
        with uninterrupted():
            self._adopt_stages(stages)
            for name, part in self._parts.items():
                part._adopt(parts[name])

    @exclusive
    def __getstate__(self):
        return {
            "params": list(self._plan.params),
            "names": list(self._plan.names),
            "positions": self._positions_of,
            "parts": self._parts,
            "defaults": self.defaults,
            "plain": self._plain,
            "num_threads": self._num_threads,
            "bound": list(self._plan.bound_gradients) if self._plan.has_bound else None,
            "pipeline": self._pipeline and self._pipeline.saved(),
            "given": self._copied_structures(),
            "whole": Whole(self._plan),
        }

    def __setstate__(self, saved):
        self._setup()
        self._plan.extend(saved["params"], saved["names"], 0)
        self._positions_of = saved["positions"]
        for name, part in saved["parts"].items():
            setattr(self, name, part)
        self.defaults = saved["defaults"]
        self._plain = saved["plain"]
        self._num_threads = saved["num_threads"]
        self._plan.watch((), WeakMethod(self._look_again))
        self._restore_structures(saved["given"])
        if saved["bound"] is not None:
            self._plan.bind(saved["bound"])
        if saved["pipeline"] is not None:
            self._pipeline = self._pipelines().restored(self, saved["pipeline"])


def chosen(exclude, names, arrays):
    """For each parameter, whether `exclude` means it."""
    if callable(exclude):
        return [bool(exclude(name, array)) for name, array in zip(names, arrays, strict=True)]
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if wrong:
        raise TypeError(f"exclude must be patterns of names or a function, got {wrong[0]!r}")
    check_matches("exclude", patterns, names, "; give a function")
    return [any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]
