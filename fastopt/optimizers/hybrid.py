"""MuonAdamW: one optimizer for a whole model, Muon for its matrices and AdamW for the rest."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakMethod

import numpy as np

from ..checks import check_matches
from ..kernels.arrays import as_array
from ..kernels.checks import called, check_parameter
from .adam import AdamW
from .base import Optimizer, Params, check_names, is_group
from .checkpoint import match, match_stages, pack
from .muon import Muon
from .state import ParameterState
from .tree import flatten, is_container, listed

Exclude = str | Iterable[str] | Callable[[Any, np.ndarray], bool]
METHODS: dict[str, type[Optimizer]] = {"muon": Muon, "adamw": AdamW}  # name of a part -> what steps it


class Part(Optimizer):
    """The group of one method of a `MuonAdamW`, for a scheduler, and to be looked at."""

    rule = None
    decays = False
    hyperparameters = {}
    state_slots = ()

    def __init__(self, whole: "MuonAdamW", name: str) -> None:
        self._whole, self._name = whole, name
        self._engine, self.defaults = whole._engine, whole.defaults[name]
        self._setup_hooks()

    def __reduce__(self):
        return Part, (self._whole, self._name)

    @property
    def _group(self):
        return self._whole._parts[self._name]

    @property  # type: ignore[misc]
    def param_groups(self) -> list[dict[str, Any]]:
        """Its group."""
        return [self._group.options]

    @property
    def state(self) -> dict[int, ParameterState]:
        """The state of each of its parameters that has one, by its position among them."""
        return {i: ParameterState(self._engine, position) for i, position in enumerate(self._group.positions)
                if self._engine.has_state(position)}

    def state_dict(self) -> dict[str, Any]:
        """What `MuonAdamW.state_dict` has under the name of this part."""
        return self._whole.state_dict()[self._name]

    def _tried(self):
        return self._whole._tried()

    def refused(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError: a part is stepped and changed with its whole."""
        raise ValueError(f"{self._name} is a part of a MuonAdamW, which steps, loads and changes both together: "
                         f"ask that")

    accumulate = add_param_group = bind_grads = load_state_dict = rebind = remove_param = replace_param = refused
    reset_state = set_stages = step = zero_grad = refused  # type: ignore[assignment]


class MuonAdamW(Optimizer):
    """Muon for the matrices of a model and AdamW for everything else, as one optimizer.

    Args:
        params: the parameters, in any structure that `Optimizer` takes but groups.
        muon: arguments of `Muon`, a mapping: schedules too.
        adamw: arguments of `AdamW`, likewise.
        exclude: which matrices AdamW steps nevertheless, such as embeddings and the last layer. Patterns of names
            as in a shell (`"embedding*"`, `"*.head.weight"`; one or a list), or a function `(name, array) -> bool`.

    Attributes:
        muon, adamw: the two parts, or None where there is no parameter for one. Give one of them to a scheduler to
            drive its rate alone; a scheduler of the `MuonAdamW` drives both.
        param_groups: the groups of both, Muon's first; what is changed there acts at the next step.

    Raises:
        TypeError, ValueError: as for `Muon` and `AdamW`; also groups, a pattern that no parameter matches, and
            patterns where parameters have no names.

    `step`, `bind_grads` and `rebind` take the structure of `params`. A step that raises has changed nothing in either
    part. `state_dict` is `{"muon": ..., "adamw": ...}`, each a checkpoint that the optimizer of that name in
    torch.optim can load, and the reverse; parameters count within their part there. `num_threads` is that of the whole.

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
    in_torch = False
    hyperparameters = {}
    state_slots = ()

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
        self._make(arrays, names, matrices, {"muon": muon, "adamw": adamw})
        self._remember(given, range(len(arrays)))
        self._plain = not (is_container(given) and any(map(is_container, given)))

    def _make(self, arrays, names, matrices, options):
        groups, self.defaults = [], {}
        for part, method in METHODS.items():
            given = options[part]
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(f"{part} must be a mapping of arguments, got {type(given).__name__}")
            positions = [i for i, matrix in enumerate(matrices) if matrix == (part == "muon")]
            here = [arrays[i] if names[i] is None else (names[i], arrays[i]) for i in positions]
            # without parameters of its own, a part still checks its arguments
            made = method(here or np.zeros((1, 1)), **(given or {})) if here or given else None
            if here:
                groups.append((method, made.param_groups[0], positions))
                self.defaults[part] = made.defaults
        self._take(arrays, names, groups)

    def _take(self, arrays, names, groups):
        """Begins with these parameters and groups: (method, options, positions)."""
        self._engine.add_groups(arrays, names, groups)
        self._groups += [options for _, options, _ in groups]
        self._plan.watch(self._boxes(), WeakMethod(self._look_again))

    @property
    def _parts(self):
        """The groups of the engine by the names of their parts."""
        return {name: group for name, method in METHODS.items() for group in self._engine.groups
                if group.method is method}

    @property
    def muon(self) -> Part | None:
        """The part of the matrices; None: there is none."""
        return Part(self, "muon") if "muon" in self._parts else None

    @property
    def adamw(self) -> Part | None:
        """The part of all else; None: there is nothing else."""
        return Part(self, "adamw") if "adamw" in self._parts else None

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Raises ValueError: a `MuonAdamW` has all its parameters from the start."""
        raise ValueError("MuonAdamW takes all parameters when it is made")

    def remove_param(self, key: Any) -> None:
        """Raises ValueError: a `MuonAdamW` keeps its parameters."""
        raise ValueError("MuonAdamW keeps the parameters that it was made with")

    def _arrange(self, grads):
        if isinstance(grads, np.ndarray):
            return [grads]
        return self._in_order(flatten(grads))

    # ---- checkpoints and copies

    def _pack(self):
        packed = {name: pack(self._engine, [group]) for name, group in self._parts.items()}
        pipeline = self._engine.pipeline
        return packed if pipeline is None else {**packed, "stages": pipeline.state()}

    def _fitted(self, state_dict):
        parts = self._parts
        if not isinstance(state_dict, Mapping) or set(state_dict) - {"stages"} != set(parts):
            raise ValueError(f"state_dict of this MuonAdamW must have the keys {', '.join(map(repr, parts))}")
        groups, states, count = [], {}, 0
        for name, group in parts.items():
            options, its, made = match(self._engine, [group], state_dict[name])
            groups += options
            states |= its
            count = max(count, made)
        return (groups, states, count), match_stages(self._engine, state_dict)

    def __getstate__(self):
        groups = self._engine.groups
        return super().__getstate__() | {"methods": [group.method for group in groups],
                                         "positions": [group.positions for group in groups]}

    def __setstate__(self, saved):
        super().__setstate__(joined(saved) if "parts" in saved else saved)

    def _restore_groups(self, saved):
        arrays = [None] * len(saved["names"])
        for group, positions in zip(saved["param_groups"], saved["positions"], strict=True):
            for position, param in zip(positions, group["params"], strict=True):
                arrays[position] = param
        self._take(arrays, saved["names"], list(zip(saved["methods"], saved["param_groups"], saved["positions"],
                                                    strict=True)))


def joined(saved):
    """A pickle of the time when the parts were optimizers of their own."""
    parts, arrays, steps = saved["parts"], [{} for _ in saved["names"]], [0] * len(saved["names"])
    for name, part in parts.items():
        for place, position in enumerate(saved["positions"][name]):
            arrays[position], steps[position] = part._engine.arrays[place], part._engine.plan.get_step(place)
    return saved | {"arrays": arrays, "steps": steps, "scalars": [()] * len(arrays),
                    "methods": [METHODS[name] for name in parts],
                    "param_groups": [part.param_groups[0] for part in parts.values()],
                    "positions": [saved["positions"][name] for name in parts],
                    "count": max(part.step_count for part in parts.values())}


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
