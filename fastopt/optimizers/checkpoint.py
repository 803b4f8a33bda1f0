"""Checkpoints in torch.optim's layout: packing an optimizer, and fitting a checkpoint to one.

Nothing here changes an optimizer.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import nonnegative, number, positive, real, whole
from ..kernels.arrays import full_like
from .settings import KEPT, NOT_TORCHS, TORCH_ONLY, at, is_schedule, plain
from .state import fitted, judging, step_count


def pack(engine, groups) -> dict[str, Any]:
    """What `Optimizer.state_dict` returns of these groups, before its hooks."""
    made, count = engine.steps, 0
    packed_groups, state = [], {}
    for group in groups:
        packed = {name: at(value, made) if name in group.method.hyperparameters else value
                  for name, value in group.options.items() if name != "params"}
        packed_groups.append({**packed, "params": list(range(count, count + len(group.positions)))})
        for place, position in enumerate(group.positions, count):
            entries = engine.pack_state(position, packed)
            if entries:
                state[place] = entries
        count += len(group.positions)
    return {"state": state, "param_groups": packed_groups, "step_count": made}


def pack_state(engine, position, settings):
    """The state of one parameter; empty where a checkpoint of torch has none."""
    plan, arrays, method = engine.plan, engine.arrays[position], engine.method_of(position)
    step = plan.get_step(position)
    if not method.counts_steps:
        return dict(arrays) if step else {}
    if not (step or arrays or method.eager_state):
        return {}
    # torch's type, while that can count: a float32 stops at 2**24
    count = step if method.integer_step else np.array(step, np.float32 if step < 2**24 else np.float64)
    scalars = engine.get_scalars(position) if step else method.scalars(settings)
    # an option that was switched on since the last step needs an array that the next step would begin
    return {"step": count,
            **{name: np.array(value, np.float32 if method.in_torch else np.float64)
               for name, value in zip(method.scalar_slots, scalars, strict=True)},
            **{name: full_like(plan.params[position], value)
               for name, value in method.slots(settings).items() if name not in arrays},
            **arrays}


def match(engine, ours, saved: Mapping[str, Any]):
    """Fits a checkpoint to groups: returns new options, {position: (step, scalars, arrays)} and the step count.

    Raises ValueError or TypeError, naming what does not fit.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping) or "param_groups" not in saved:
        raise ValueError("state_dict must be a dict with 'state' and 'param_groups'")
    theirs = saved["param_groups"]
    if not isinstance(theirs, (list, tuple)):
        raise TypeError(f"param_groups of the state_dict must be a list, got {type(theirs).__name__}")
    if len(theirs) != len(ours):
        raise ValueError(f"state_dict has {len(theirs)} parameter groups, this optimizer {len(ours)}")
    groups: list[dict[str, Any]] = []
    order: dict[Any, int] = {}
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if not isinstance(their, Mapping):
            raise TypeError(f"group {index} of the state_dict must be a dict, got {type(their).__name__}")
        for key, position in match_positions(index, their, our.options, our.positions):
            if key in order:
                raise ValueError(f"state_dict has the parameter {key!r} twice in its groups")
            order[key] = position
        groups.append(match_group(our.method, index, their, our.options))
        if our.method.same_order and list(order.values()) != sorted(order.values()):
            raise ValueError(f"{our.method.__name__} needs the parameters in the order of the state_dict")
    given = {}
    for key, entries in saved["state"].items():
        if key not in order:
            raise ValueError(f"state_dict has a state for parameter {key!r}, which none of its groups has")
        if not isinstance(entries, Mapping):
            label = engine.plan.label(order[key])
            raise TypeError(f"state of {label} must be a dict, got {type(entries).__name__}")
        given[order[key]] = entries
    count = step_count(saved["step_count"]) if "step_count" in saved else None
    states = {}
    for index, (group, our) in enumerate(zip(groups, ours, strict=True)):
        with judging(f"group {index} of the state_dict"):
            settings = {name: check(name, at(group[name], engine.steps if count is None else count))
                        for name, check in our.method.hyperparameters.items()}
            our.method.check_settings(settings)
        for position in our.positions:
            if position in given or our.method.eager_state:
                states[position] = engine.match_state(position, given.get(position, {}), settings)
    if count is None:
        count = max((step for step, _, _ in states.values()), default=0)
    return groups, states, count


def match_positions(index, their, our, positions):
    """The ids of a checkpoint's group with their positions here: by name when both sides have names, else in order."""
    ids, what = their.get("params"), f"params of group {index} of the state_dict"
    if not isinstance(ids, (list, tuple)) or not all(isinstance(key, (int, str, np.integer)) for key in ids):
        raise TypeError(f"{what} must be a list of numbers or names, got {ids!r}")
    if len(ids) != len(positions):
        raise ValueError(f"group {index} has {len(ids)} parameters in the state_dict and {len(positions)} here")
    names, known = their.get("param_names"), our.get("param_names")
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"param_names of group {index} of the state_dict must be a list of names, got {names!r}")
        if len(names) != len(ids) or len(set(names)) != len(ids):
            raise ValueError(f"group {index} has {len(ids)} parameters in the state_dict, and {len(set(names))} names")
    if names is not None and known is not None:
        if set(names) != set(known):
            raise ValueError(f"group {index}: the parameter {min(set(names) ^ set(known))!r} is on one side only")
        place = dict(zip(known, positions, strict=True))
        positions = [place[name] for name in names]
    return list(zip(ids, positions, strict=True))


def match_group(method, index, their, our):
    """A group with the checkpoint's values; parameters, names, schedules and fixed options stay ours."""
    own = method.hyperparameters
    unknown = [name for name in their if name not in {*own, *KEPT, *TORCH_ONLY, "params", "param_names"}]
    if unknown:
        raise ValueError(f"group {index} of the state_dict has {unknown[0]!r}, which {method.__name__} does not have")
    group = {name: value for name, value in our.items() if name in {*KEPT, *NOT_TORCHS, *method.fixed}}
    for name, value in their.items():
        if name in own or name in KEPT:
            what = f"{name} of group {index} of the state_dict"
            with judging(what):
                group[name] = plain(value)
                check_kept(name, group[name]) if name in KEPT else own[name](name, group[name])
            if name in method.fixed and group[name] != method.fixed[name]:
                raise ValueError(f"{what} is {group[name]!r}; with {method.__name__} it is always "
                                 f"{method.fixed[name]!r}")
    off = off_by_default(method)
    for name in own:
        if name not in group:
            if name not in off:
                raise ValueError(f"group {index} of the state_dict lacks {name!r}, which {method.__name__} needs")
            group[name] = off[name]
    stay = [name for name in own if is_schedule(our[name])]
    group |= {name: our[name] for name in ("params", "param_names", *stay) if name in our}
    return {name: group[name] for name in (*our, *group) if name in group}  # in our order


def off_by_default(method):
    """Options that a checkpoint may lack, as torch added them over the years: they were off before."""
    parameters = inspect.signature(method).parameters.items()
    return {name: parameter.default for name, parameter in parameters if not parameter.default}


def check_kept(name, value):
    """Checks what schedulers and users put into a group."""
    if name != "name":
        number(name, value)
    elif value is not None and not isinstance(value, str):
        raise TypeError(f"name must be a string, got {value!r}")


def match_state(engine, position, entries, settings):
    """Checks the state of one parameter: returns its step count, its scalars and copies of its arrays."""
    param, label, method = engine.plan.params[position], engine.plan.label(position), engine.method_of(position)
    numbers = (*(("step",) if method.counts_steps else ()), *method.scalar_slots)
    unknown = [name for name in entries if name not in (*numbers, *method.state_slots)]
    if unknown:
        raise ValueError(f"state of {label} has {unknown[0]!r}; {method.__name__} has {method.state_slots}")
    given = {name: value for name, value in entries.items() if value is not None}  # torch has None for no array yet
    if not given and not method.eager_state:
        return 0, (0.0,) * len(method.scalar_slots), {}
    missing = [name for name in (*numbers, *method.needed_slots(param, settings)) if name not in given]
    if missing:
        raise ValueError(f"state of {label} lacks {missing[0]!r}")
    with judging(f"state of {label}"):
        # a method without a count: only its first step, which makes the buffer, differs
        step = step_count(given["step"]) if method.counts_steps else 1
        # what is made of a parameter's own gradients may be infinite or NaN, as its arrays may
        check = number if method.scalars_shared else real
        scalars = tuple(check(name, plain(given[name])) for name in method.scalar_slots)
        begun = method.scalars(settings)
        if not step and any(abs(mine - its) > 1e-6 * abs(its) for mine, its in zip(scalars, begun, strict=True)):
            raise ValueError(f"with step 0, {', '.join(method.scalar_slots)} must be {begun}, got {scalars}")
    arrays = {name: fitted(value, np.broadcast_to(param.dtype.type(0), method.state_shape(name, param.shape)), name,
                           label)
              for name, value in given.items() if name not in numbers}
    strange = [name for name in arrays if name not in method.known_slots(param)]
    if strange:
        raise ValueError(f"state of {label} has {strange[0]!r}, which a parameter of shape {param.shape} does not have")
    return step, scalars, arrays


def match_stages(engine, saved: Mapping[str, Any]):
    """Fits what a checkpoint has of the stages: returns the pipeline that is to have it, and its new state."""
    state, pipeline = saved.get("stages", {}), engine.pipeline
    if not isinstance(state, Mapping):
        raise TypeError(f"stages of the state_dict must be a dict, got {type(state).__name__}")
    if pipeline is None:
        if not state:
            return None
        pipeline = engine.pipelines().unset(engine)
    wanted, optional = ("slow", *pipeline.COUNTERS), ("accumulated", "weight")
    missing = [name for name in wanted if state and name not in state]
    unknown = [name for name in state if name not in {*wanted, *optional}]
    if missing or unknown or len(state) == len(wanted) + 1:
        raise ValueError(f"stages of the state_dict must have {wanted}, and may have {optional}; got {list(state)}")
    slow = match_arrays(engine, "slow", state.get("slow", []), pipeline.slow)
    with judging("stages of the state_dict"):
        counters = {name: (nonnegative if name == "clipped" else whole)(name, state[name])
                    for name in pipeline.COUNTERS if state}
        weight = positive("weight", state["weight"]) if "weight" in state else 0.0
    accumulated = match_arrays(engine, "accumulated", state["accumulated"], engine.plan.params) if weight else []
    return pipeline, (slow, counters, accumulated, weight)


def match_arrays(engine, name, arrays, like):
    """Arrays of the stages, one for each parameter."""
    what = "slow weights of Lookahead" if name == "slow" else "accumulated gradients"
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{what} of the state_dict must be a list of arrays, got {type(arrays).__name__}")
    if len(arrays) != len(like):
        raise ValueError(f"state_dict has {what} for {len(arrays)} parameters, this optimizer has {len(like)}")
    return [None if array is None and name == "accumulated" else fitted(array, own, name, engine.plan.label(i))
            for i, (array, own) in enumerate(zip(arrays, like, strict=True))]
