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
from .engine import Engine
from .muon import Muon
from .state import ParameterState, Whole
from .tree import flatten, is_container, listed

Exclude = str | Iterable[str] | Callable[[Any, np.ndarray], bool]


class HybridEngine(Engine):
    """Steps parameters by the engines of two methods."""

    def __init__(self, method):
        super().__init__(method)
        self.engines: dict[str, Any] = {}  # name of a part -> its engine
        self.positions: dict[str, list[int]] = {}  # and where its parameters stand here

    @property
    def parts(self):
        return list(self.engines.values())

    @property
    def steps(self):
        return max(engine.steps for engine in self.parts)

    def group_of(self, position):
        """As the groups of the parts are numbered, one part after the other."""
        before = 0
        for name, positions in self.positions.items():
            if position in positions:
                return before + self.engines[name].group_of(positions.index(position))
            before += len(self.engines[name].groups)
        raise IndexError(position)

    def split(self, entries):
        """What each part gets of a list with an entry for each parameter."""
        return {name: [entries[i] for i in positions] for name, positions in self.positions.items()}

    def reset(self):
        for engine in self.parts:
            engine.plan.during(type(engine).reset, engine)
        if self.pipeline is not None:
            self.pipeline.reset()

    def count_from(self, count):
        for engine in self.parts:
            engine.plan.during(engine.count_from, count)

    def states_changed(self):
        """Shows the plan the state of both parts."""
        stages = self.pipeline.written() if self.pipeline is not None else []
        self.plan.guard(stages + [(self.positions[name][i], array) for name, engine in self.engines.items()
                                  for i, arrays in enumerate(engine.arrays) for array in arrays.values()])

    def make(self, grads, then=None, after=None):
        for name, engine in self.engines.items():
            if engine.pipeline is not None:
                raise ValueError(f"{name} has stages of its own: set them for the whole MuonAdamW")
        plan, muon, adamw = self.plan, self.engines.get("muon"), self.engines.get("adamw")
        self.states_changed()
        plan.begin(grads)  # checks all gradients, and names them as the caller does
        taken = dict(plan.taken())
        split = self.split([taken.get(i) for i in range(len(plan))])
        if adamw is not None:
            adamw.num_threads = self.num_threads

        def last():
            if after is not None:
                after()
            plan.finish(then)

        if muon is None:
            with uninterrupted():
                adamw.step(split["adamw"])
                last()
            return
        second = None if adamw is None else lambda: adamw.step(split["adamw"])
        # AdamW steps when Muon can no longer fail
        muon.plan.during(lambda grads: muon.make(grads, None, second, last), split["muon"])

    def begin(self, grads):
        return self.plan.begin(grads)


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

    _Engine = HybridEngine
    rule = None
    in_torch = False
    hyperparameters = {}
    state_slots = ()

    _engine: HybridEngine
    muon: Muon | None
    adamw: AdamW | None

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
                self._engine.positions[part] = positions
        self._take(arrays, names, made)

    def _take(self, arrays, names, parts):
        """Begins with the parts that have parameters."""
        self._plan.extend(arrays, names, 0)
        self._plan.watch((), WeakMethod(self._look_again))
        self._engine.arrays += [{} for _ in arrays]
        for name in self._engine.positions:
            setattr(self, name, parts[name])
            self._engine.engines[name] = parts[name]._engine

    @property
    def _parts(self) -> dict[str, Optimizer]:
        return {name: getattr(self, name) for name in self._engine.positions}

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
        found = {self._engine.positions[name][i]: state
                 for name, part in self._parts.items() for i, state in part.state.items()}
        return dict(sorted(found.items()))

    def replace_param(self, key: Any, param: Any, state: Any = "keep") -> None:
        """Steps another array in the place of a parameter from now on: see `Optimizer.replace_param`.

        A matrix stays with its part.
        """
        position = self._find(key)
        name, positions = next((name, positions) for name, positions in self._engine.positions.items()
                               if position in positions)
        part, place, before = self._parts[name], positions.index(position), self._plan.params[position]
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

    def _move_to(self, structure, leaves):
        before = self._engine.split(self._plan.params)
        super()._move_to(structure, leaves)
        with uninterrupted():
            try:
                for name, moved in self._engine.split(self._plan.params).items():
                    self._parts[name].rebind(moved)
            except BaseException:
                for name, params in before.items():
                    self._parts[name].rebind(params)
                raise

    def _show(self, arrays):
        """The groups are those of the parts."""

    def _boxes(self):
        return []

    # ---- checkpoints and copies

    def _pack(self):
        packed = {name: part._pack() for name, part in self._parts.items()}
        pipeline = self._engine.pipeline
        return packed if pipeline is None else {**packed, "stages": pipeline.state()}

    def _fitted(self, state_dict):
        if not isinstance(state_dict, Mapping) or set(state_dict) - {"stages"} != set(self._parts):
            raise ValueError(f"state_dict of this MuonAdamW must have the keys {', '.join(map(repr, self._parts))}")
        parts = {name: part._fitted(state_dict[name]) for name, part in self._parts.items()}
        return parts, match_stages(self._engine, state_dict)

    def _adopt(self, fitted):
        parts, stages = fitted
        with uninterrupted():
            self._engine.adopt_stages(stages)
            for name, part in self._parts.items():
                part._adopt(parts[name])

    @exclusive
    def __getstate__(self):
        return {
            "params": list(self._plan.params),
            "names": list(self._plan.names),
            "positions": self._engine.positions,
            "parts": self._parts,
            "defaults": self.defaults,
            "plain": self._plain,
            "num_threads": self.num_threads,
            "bound": list(self._plan.bound_gradients) if self._plan.has_bound else None,
            "pipeline": self._engine.pipeline and self._engine.pipeline.saved(),
            "given": self._copied_structures(),
            "whole": Whole(self._plan),
        }

    def __setstate__(self, saved):
        self._setup()
        self._engine.positions = saved["positions"]
        self._take(saved["params"], saved["names"], saved["parts"])
        self.defaults = saved["defaults"]
        self._plain = saved["plain"]
        self.num_threads = saved["num_threads"]
        self._restore_structures(saved["given"])
        if saved["bound"] is not None:
            self._plan.bind(saved["bound"])
        if saved["pipeline"] is not None:
            self._engine.restore_stages(saved["pipeline"])


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
