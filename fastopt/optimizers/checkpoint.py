"""Checkpoints in torch.optim's layout: packing an optimizer, and fitting a checkpoint to one.

Nothing here changes an optimizer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..kernels.arrays import aligned, full_like
from .checks import number
from .settings import TORCH_ONLY, at, is_schedule, plain
from .state import same_shape, step_count


def pack(optimizer) -> dict[str, Any]:
    """What `Optimizer.state_dict` returns, before its hooks."""
    plan, made = optimizer._plan, optimizer.step_count
    groups, state = [], {}
    for index, group in enumerate(optimizer.param_groups):
        packed = {name: at(value, made) if name in optimizer.hyperparameters else value
                  for name, value in group.items() if name != "params"}
        groups.append({**packed, "params": list(optimizer._positions(index))})
    for position in range(len(plan)):
        entries = optimizer._pack_state(position)
        if entries:
            state[position] = entries
    return {"state": state, "param_groups": groups, "step_count": made}


def pack_state(optimizer, position):
    """The state of one parameter; empty where a checkpoint of torch has none."""
    plan = optimizer._plan
    step, entries = plan.get_step(position), dict(optimizer._arrays[position])
    if optimizer.eager_state and not entries:
        settings = optimizer._settings(plan.group(position))[0]
        entries = {name: full_like(plan.params[position], value)
                   for name, value in optimizer.slots(settings).items()}
    if optimizer.counts_steps and (step or optimizer.eager_state):
        # torch's type, while that can count: a float32 stops at 2**24
        count = step if optimizer.integer_step else np.array(step, np.float32 if step < 2**24 else np.float64)
        entries = {"step": count,
                   **{name: np.array(value, np.float32)
                      for name, value in zip(optimizer.scalar_slots, plan.get_scalars(position), strict=True)},
                   **entries}
    return entries if step or optimizer.eager_state else {}


def match(optimizer, saved: Mapping[str, Any]):
    """Fits a checkpoint to an optimizer: returns new groups, {position: (step, scalars, arrays)} and the step count.

    Raises ValueError or TypeError, naming what does not fit.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping) or "param_groups" not in saved:
        raise ValueError("state_dict must be a dict with 'state' and 'param_groups'")
    theirs, ours = saved["param_groups"], optimizer.param_groups
    if len(theirs) != len(ours):
        raise ValueError(f"state_dict has {len(theirs)} parameter groups, this optimizer {len(ours)}")
    groups: list[dict[str, Any]] = []
    order: dict[Any, int] = {}
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        order |= match_positions(index, their, our, optimizer._positions(index))
        groups.append(match_group(optimizer, their, our))
    if optimizer.same_order and list(order.values()) != sorted(order.values()):
        raise ValueError(f"{type(optimizer).__name__} needs the parameters in the order of the state_dict")
    states = {}
    for key, entries in saved["state"].items():
        if key not in order:
            raise ValueError(f"state_dict has a state for parameter {key!r}, which none of its groups has")
        states[order[key]] = optimizer._match_state(order[key], entries)
    for group in groups:
        optimizer._check_group(group)
    most = max((step for step, _, _ in states.values()), default=0)
    return groups, states, step_count(saved.get("step_count", most))


def match_positions(index, their, our, positions):
    """The ids of a checkpoint's group as positions here: by name when both sides have names, else in order."""
    if len(their.get("params", ())) != len(positions):
        raise ValueError(
            f"group {index} has {len(their.get('params', ()))} parameters in the state_dict and {len(positions)} here"
        )
    names, known = their.get("param_names"), our.get("param_names")
    if names is not None and known is not None:
        if sorted(names) != sorted(known):
            raise ValueError(f"group {index}: the parameter {min(set(names) ^ set(known))!r} is on one side only")
        positions = [positions[known.index(name)] for name in names]
    return dict(zip(their["params"], positions, strict=True))


def match_group(optimizer, their, our):
    """A group with the checkpoint's values; parameters, names, schedules and fixed options stay ours."""
    group = {**our, **{name: plain(value) for name, value in their.items() if name not in TORCH_ONLY}}
    group.pop("param_names", None)
    stay = [name for name in optimizer.hyperparameters if is_schedule(our[name]) or name in optimizer.fixed]
    return group | {name: our[name] for name in ("params", "param_names", *stay) if name in our}


def match_state(optimizer, position, entries):
    """Checks the state of one parameter: returns its step count, its scalars and copies of its arrays."""
    param, label = optimizer._plan.params[position], optimizer._plan.label(position)
    if optimizer.counts_steps and "step" not in entries:
        raise ValueError(f"state of {label} lacks 'step'")
    arrays = {}
    for name, value in entries.items():
        if name in ("step", *optimizer.scalar_slots) or value is None:  # torch has None for a buffer not made yet
            continue
        if name not in optimizer.state_slots:
            raise ValueError(f"state of {label} has {name!r}; {type(optimizer).__name__} has {optimizer.state_slots}")
        arrays[name] = aligned(optimizer.state_shape(name, param.shape), param.dtype)
        arrays[name][...] = same_shape(value, arrays[name], name, label)
    missing = [name for name in optimizer.scalar_slots if name not in entries]
    if missing:
        raise ValueError(f"state of {label} lacks {missing[0]!r}")
    scalars = tuple(number(f"state {name!r} of {label}", entries[name]) for name in optimizer.scalar_slots)
    # a method without a count: only its first step, which makes the buffer, differs
    return step_count(entries.get("step", bool(arrays))), scalars, arrays
