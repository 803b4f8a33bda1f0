"""Optimizer: what a user holds: structures of parameters and gradients, names, groups, hooks and checkpoints."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakMethod

import numpy as np

from ..interrupts import uninterrupted
from ..kernels.arrays import aligned, as_array
from ..kernels.checks import called, check_parameter, flat
from ..kernels.hold import exclusive
from .checkpoint import match, match_stages, pack
from .engine import Engine, Front
from .hooks import ANY_HOOKS, GLOBAL_POST, GLOBAL_PRE, Hooked
from .method import Method
from .settings import KEPT, Rate, Rates
from .state import ParameterState, Whole, fitted, step_count
from .tree import containers, flatten, is_container, is_pair, listed

__all__ = ["Grads", "Optimizer", "Params", "Rate", "Rates", "float32"]

Params = Any  # see Optimizer: the forms are too many for a type to help
Grads = Any


def float32(x: float) -> float:
    """Rounds to float32, where torch keeps a number in that."""
    return float(np.float32(x))


class Optimizer(Method, Hooked, Front):
    """What every optimizer has; a method adds its hyperparameters, slots and coefficients.

    A parameter is a writable C-contiguous float32 or float64 array; it is updated in place. A complex64 or
    complex128 one is stepped as pairs of reals, as in torch; its gradients and state are complex. `params` is one
    array, an iterable of arrays, of (name, array) pairs or of group dicts (`{"params": ..., "lr": ...}`), or a
    mapping of names to arrays. Mappings and sequences may be nested; names are then dotted paths. Anything that
    exports such memory (DLPack on the CPU, the buffer protocol, `__array_interface__`) serves as an array.
    """

    _Engine = Engine  # what makes its steps
    _left_out = 0  # steps that a GradScaler did not make, after unscale_() found what is not finite

    # ---- construction

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self._setup()
        self._engine.check(defaults)
        groups = self._as_groups(params)
        if not groups:
            raise ValueError("params is empty: there is nothing to optimize")
        for group in groups:
            self.add_param_group(group)

    def _setup(self):
        self._engine = self._Engine(type(self))
        self._groups: list[dict[str, Any]] = []
        self._names: set = set()
        self._given: list[tuple] = []  # what parameters were given in: (structure, its leaves by key, positions)
        self._plain = True  # a list of gradients is one for each parameter, in order
        self._setup_hooks()

    @staticmethod
    def _as_groups(params):
        params = listed(params)
        if not is_container(params):
            return [{"params": params}]
        if isinstance(params, (list, tuple)) and all(is_group(group) for group in params):
            return list(params)
        return [{"params": params}] if params else []

    @exclusive
    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Adds a group: a dict with `params` and any hyperparameters that differ from the defaults.

        It may be a group of another optimizer of this kind, with its `param_names` and what schedulers keep in it. The
        optimizer is unchanged if this raises.

        Raises:
            TypeError, ValueError: as for the constructor; also parameters already in another group,
                hyperparameters this method does not have, and names given for only some of the parameters.
        """
        self._add_group(param_group)

    def _add_group(self, param_group):
        if not isinstance(param_group, Mapping):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError("param_group must have the key 'params'")
        own = [name for name in self.defaults if name not in self.fixed]
        fixed = {name for name, value in self.fixed.items() if param_group.get(name) == value}
        unknown = [name for name in param_group if name not in {*own, *fixed, *KEPT, "params", "param_names"}]
        if unknown:
            raise ValueError(f"{type(self).__name__} has no hyperparameter {unknown[0]!r}; it has {', '.join(own)}")
        given = listed(param_group["params"])
        leaves = flatten(given)
        names = [name for name, _ in leaves]
        if not leaves:
            raise ValueError("params of a group is empty")
        if param_group.get("param_names") is not None:
            names = check_param_names(param_group["param_names"], names)
            leaves = [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
        check_names(names, self._names)
        params = []
        for position, (name, leaf) in enumerate(leaves, len(self._plan)):
            label = called(position, name)
            array = as_array(leaf, label)
            check_parameter(array, label)
            self.check_parameter(array, label)
            params.append(array)
        group = {"params": params}
        if names[0] is not None:
            group["param_names"] = names
        group.update(self.defaults)
        group.update((key, value) for key, value in param_group.items() if key not in ("params", "param_names"))
        self._engine.check(group)
        with uninterrupted():
            self._join(group, params, names, given)

    def _join(self, group, params, names, given):
        """Takes a checked group in."""
        first = len(self._plan)
        self._admit(group, names)
        self._plain = len(self._groups) == 1 and not (is_container(given) and any(map(is_container, given)))
        self._remember(given, range(first, first + len(params)))
        if self._engine.pipeline is not None:
            self._engine.pipeline.grow()

    def _admit(self, group, names):
        """Takes a group into the tables."""
        self._engine.add(group["params"], names, group)
        self._names.update(group.get("param_names", [None]))
        self._groups.append(group)
        if len(self._groups) == 1:
            self._plan.watch([self._groups], WeakMethod(self._look_again))
        else:
            self._plan.watched.take_anew(self._groups)
        self._plan.watched.add([group["params"]])

    # ---- where the parameters are

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, as torch has them: changing `group["lr"]` acts at the next step."""
        return self._groups

    @param_groups.setter
    def param_groups(self, groups):
        raise AttributeError("param_groups cannot be replaced: change the values in its groups; add_param_group() adds "
                             "a group, rebind() moves to other arrays")

    def _remember(self, structure, positions):
        """Keeps what the parameters at these positions were given in, so that a step sees if they leave it."""
        leaves, params = by_key(structure), self._plan.params
        known = {id(params[position]): position for position in positions}
        where = {key: known.get(id(leaf)) for key, leaf in leaves.items()}
        for key, leaf in leaves.items():
            if where[key] is None and not isinstance(leaf, np.ndarray):  # what exports the memory of a parameter
                where[key] = next((i for i in positions if same_memory(leaf, params[i])), None)
        self._given.append((structure, leaves, where))
        self._plan.watched.add(containers(structure))

    def _look_again(self):
        """Raises if another array, or none, is where a parameter was given; called when a container has changed."""
        plan, groups = self._plan, self.param_groups
        if [*map(id, groups)] != [*map(id, plan.watched.contents[0])] and plan.watched.containers[0] is groups:
            raise ValueError("param_groups was changed: add_param_group() adds a group; one that was taken out is not "
                             "stepped any more, and one that was put in never was")
        for index, group in enumerate(self._engine.groups):
            now, arrays = groups[index].get("params"), [plan.params[position] for position in group.positions]
            where = f"param_groups[{index}]['params']"
            if now is not group.params:
                raise ValueError(f"{where} was replaced; rebind(params) moves to other arrays, add_param_group() adds "
                                 "parameters")
            if len(now) != len(arrays):
                raise ValueError(f"{where} has {len(now)} entries instead of {len(arrays)}: add_param_group() adds "
                                 "parameters, remove_param() takes one out")
            for offset, (array, new) in enumerate(zip(arrays, now, strict=True)):
                if new is not array:
                    raise ValueError(f"{where}[{offset}] is another array than {plan.label(group.positions[offset])}; "
                                     "rebind(params) moves to other arrays")
        found = [self._where_now(structure, leaves, where) for structure, leaves, where in self._given]
        self._given[:] = [(structure, *now) for (structure, _, _), now in zip(self._given, found, strict=True)]
        plan.watched.take_anew()

    def _where_now(self, structure, leaves, where):
        """The leaves of a structure, and which parameters they are; raises if one of these has left it."""
        plan, now = self._plan, by_key(structure)
        others = {key for key, position in where.items() if position is None}  # no parameters
        known = {id(param): position for position, param in enumerate(plan.params)}
        places = {key: known.get(id(leaf)) for key, leaf in now.items()}
        for key, leaf in now.items():
            if places[key] is None and key not in others:
                places[key] = next((i for i, param in enumerate(plan.params) if same_memory(leaf, param)), None)
        for key, position in where.items():
            if position is None or position in places.values():
                continue
            label = plan.label(position)
            if key not in now:
                raise ValueError(f"{label} is no longer in what it was given in; remove_param() takes a parameter out")
            raise ValueError(f"{label} was replaced by another array where it was given: the old one would be stepped; "
                             "rebind(params) moves to the arrays of now, replace_param() takes one with another shape, "
                             "add_param_group() adds one")
        for key, position in places.items():
            if position is None and key not in others:
                raise ValueError(f"{key!r} was added to what parameters were given in, but is none of the optimizer; "
                                 "add_param_group() adds it")
        return now, places

    # ---- other parameters with the state of these

    def _find(self, key):
        """The position of a parameter: of its position, its name, or itself."""
        plan = self._plan
        if isinstance(key, str):
            found = [i for i, name in enumerate(plan.names) if name == key]
        elif isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            found = [int(key)] if 0 <= key < len(plan) else []
        else:
            found = [i for i, param in enumerate(plan.params) if param is key]
        if not found:
            raise ValueError(f"key must be the position or the name of a parameter, or the array itself, got {key!r}")
        return found[0]

    def _check_alone(self, what):
        """Raises where something beside the state has the shape of a parameter."""
        pipeline = self._engine.pipeline
        if pipeline is not None and pipeline.options.average:
            raise ValueError(f"{what} does not change the averages of set_stages(): take them out first, and make new "
                             "ones afterwards")
        if pipeline is not None and pipeline.sums.weight:
            raise ValueError(f"{what} while gradients are accumulated: step first")
        if self._plan.lent:
            raise ValueError(f"{what} while averages are in the parameters")

    @exclusive
    def replace_param(self, key: Any, param: Any, state: Any = "keep") -> None:
        """Steps another array in the place of a parameter from now on, also one of another shape, with its state.

        Args:
            key: which parameter: its position over all groups, its name, or the array itself.
            param: the new array, as for the constructor. It takes the place of the old one in the lists and mappings
                in which parameters were given, too.
            state: `"keep"` keeps state and step count; the shape and dtype must be the same. `"new"` begins anew. A
                function `(name, array) -> array` makes each state array of the new shape from the old one, such as
                `lambda name, array: array[kept]` after pruning; it is called before anything changes.

        Slow weights of Lookahead begin at the new array. Bound gradients are forgotten.

        Raises:
            TypeError, ValueError: an argument is not as said above, a state array does not fit, or averages follow
                the parameters; nothing was changed.

        >>> import numpy as np, fastopt
        >>> params = {"w": np.ones((3, 2))}
        >>> opt = fastopt.Adam(params, lr=0.1)
        >>> opt.step({"w": np.ones((3, 2))})
        >>> pruned = params["w"][[0, 2]]
        >>> opt.replace_param("w", pruned, lambda name, array: array[[0, 2]])
        >>> params["w"] is pruned
        True
        >>> opt.step({"w": np.ones((2, 2))})
        >>> params["w"].round(6).tolist(), opt.state[0]["step"]
        ([[0.8, 0.8], [0.8, 0.8]], 2)
        """
        self._check_alone("replace_param()")
        plan, position = self._plan, self._find(key)
        label, old = plan.label(position), plan.params[position]
        array = as_array(param, label)
        check_parameter(array, label)
        method = self._engine.method_of(position)
        method.check_parameter(array, label)
        arrays, step = self._engine.arrays[position], plan.get_step(position)
        if isinstance(state, str) and state == "new":
            made, step = {}, 0
        elif isinstance(state, str) and state == "keep":
            if array.shape != old.shape or array.dtype != old.dtype:
                raise ValueError(f"{label} must have shape {old.shape} and dtype {old.dtype} to keep its state, got "
                                 f"{array.shape} and {array.dtype}; state may be a function, or 'new'")
            made = arrays
        elif callable(state):
            made = {}
            for name, own in arrays.items():
                made[name] = aligned(method.state_shape(name, array.shape), array.dtype)
                made[name][...] = fitted(state(name, own), made[name], name, label)
        else:
            raise ValueError(f"state must be 'keep', 'new' or a function, got {state!r}")
        with uninterrupted():
            self._engine.replace(position, array, made, step)
            self._put(position, array)
            for structure, leaves, where in self._given:
                for key, place in where.items():
                    if place == position:
                        where[key] = position if exchanged(structure, leaves[key], array) else None
                        leaves[key] = array

    def _put(self, position, array):
        """Puts an array into its group."""
        group = self._engine.groups[self._plan.group(position)]
        group.params[group.positions.index(position)] = array

    @exclusive
    def remove_param(self, key: Any) -> None:
        """Takes a parameter out, with its state; the others keep theirs. Bound gradients are forgotten.

        Args:
            key: which parameter: its position over all groups, its name, or the array itself.

        Raises:
            ValueError: there is no such parameter, it is the only one of its group, or averages follow the
                parameters; nothing was changed.
        """
        self._check_alone("remove_param()")
        engine, position = self._engine, self._find(key)
        group = engine.groups[self._plan.group(position)]
        if len(group.positions) == 1:
            raise ValueError(f"{self._plan.label(position)} is the only parameter of its group")
        offset, plan = group.positions.index(position), engine.without(position)
        with uninterrupted():
            del group.params[offset]
            if "param_names" in group.options:
                self._names.discard(group.options["param_names"].pop(offset))
            for _, _, where in self._given:
                where.update({key: None if place == position else place - (place > position)
                              for key, place in where.items() if place is not None})
            plan.watch(self._boxes(), WeakMethod(self._look_again))
            for structure, _, _ in self._given:
                plan.watched.add(containers(structure))
            engine.remove(position, plan)

    # ---- state

    @property
    def state(self) -> dict[int, ParameterState]:
        """The state of each parameter that has one, by its position over all groups."""
        return {position: ParameterState(self._engine, position)
                for position in range(len(self._plan)) if self._engine.has_state(position)}

    @exclusive
    def reset_state(self) -> None:
        """Forgets all state and step counts, as if no step had been made; hyperparameters stay."""
        with uninterrupted():
            self._engine.reset()

    @property
    def step_count(self) -> int:
        """Steps made so far: what a schedule in a hyperparameter is called with. Settable.

        Setting it also sets the step count of every parameter that has a state.
        """
        return self._engine.steps

    @step_count.setter
    @exclusive
    def step_count(self, count: int) -> None:
        count = step_count(count)
        with uninterrupted():
            self._engine.count_from(count)

    def _tried(self):
        """Steps made and steps skipped: another number tells that `step` was called."""
        skipped = 0 if self._engine.pipeline is None else self.last_step.skipped_steps
        return self.step_count + skipped + self._left_out

    # ---- gradients

    def _arrange(self, grads):
        """Brings gradients of any accepted structure into a list with one entry for each parameter."""
        plan = self._plan
        found = flat(grads, plan.names)
        if found is not None:
            return found
        if isinstance(grads, np.ndarray):
            return [grads]
        groups = len(self.param_groups)
        if groups > 1 and isinstance(grads, (list, tuple)) and len(grads) == groups and all(map(is_container, grads)):
            parts = [part["params"] if isinstance(part, Mapping) and "params" in part else part for part in grads]
            leaves = []
            for index, part in enumerate(parts):
                part, wanted = flatten(part), len(self._engine.groups[index].positions)
                if len(part) != wanted:
                    raise ValueError(f"grads of group {index} must have {wanted} entries, got {len(part)}")
                leaves += part
        else:
            leaves = flatten(grads)
        return self._in_order(leaves)

    def _in_order(self, leaves):
        """Gradients as (name, array) pairs, in the order of the parameters."""
        plan = self._plan
        names = [name for name, _ in leaves]
        if not any(names):
            return [leaf for _, leaf in leaves]
        if None in names:
            raise ValueError("grads must have names for all parameters or for none")
        if names == plan.names:
            return [leaf for _, leaf in leaves]
        given = dict(leaves)
        missing = [name for name in plan.names if name not in given]
        unknown = [name for name in names if name not in plan.names]
        if missing or unknown:
            problems = [f"lacks {missing[0]!r} (None skips a parameter)"] if missing else []
            problems += [f"has {unknown[0]!r}, which is no parameter"] if unknown else []
            raise ValueError(f"grads {' and '.join(problems)}")
        return [given[name] for name in plan.names]

    @exclusive
    def bind_grads(self, grads: Grads) -> None:
        """Keeps the arrays of `grads` for every later `step()` without gradients.

        Args:
            grads: gradients in the structure of `params`; None skips a parameter. The arrays are read at each
                step, so that a framework may write new gradients into the same memory. They must not be copies.

        A step asks for them again, with a ValueError, once parameters were added or whoever else held one of the arrays
        has dropped it: new values could not come into it any more.

        Raises:
            TypeError, ValueError: as for `step`; what was bound before stays bound.
        """
        self._plan.bind(self._arrange(grads))

    @exclusive
    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clears the bound gradients; does nothing when none are bound.

        Args:
            set_to_none: False writes zeros into the bound arrays, for frameworks that add into them. True
                forgets the arrays instead. (torch's default is True; there the next backward pass makes new
                ones, here nobody would.)
        """
        if set_to_none:
            self._plan.unbind()
            return
        bound = [array for array in self._plan.bound_gradients if array is not None]
        for array in bound:
            if not array.flags.writeable:
                raise ValueError("zero_grad() cannot write into a read-only gradient")
        for array in bound:
            array.fill(0)

    @exclusive
    def rebind(self, params: Params) -> None:
        """Points the optimizer at other arrays, when a framework's parameters moved; the state stays.

        Args:
            params: the structure, shapes and dtypes of the parameters so far, over all groups in order.

        Raises:
            TypeError, ValueError: anything differs; the optimizer is unchanged.
        """
        structure = listed(params)
        self._move_to(structure, self._arrange(structure))

    def _move_to(self, structure, leaves):
        plan = self._plan
        arrays = [as_array(leaf, f"params[{i}]") for i, leaf in enumerate(leaves)]
        for i, array in enumerate(arrays):
            if i < len(plan):
                self._engine.method_of(i).check_parameter(array, plan.label(i))
        with uninterrupted():
            plan.rebind(arrays)
            self._show(arrays)
            self._given.clear()
            self._plan.watch(self._boxes(), WeakMethod(self._look_again))
            self._remember(structure, range(len(plan)))

    def _show(self, arrays):
        """Puts arrays into the groups."""
        for group in self._engine.groups:
            group.params[:] = [arrays[position] for position in group.positions]
            group.options["params"] = group.params

    def _boxes(self):
        """The lists of the groups that hold parameters."""
        return [self._groups, *(group.params for group in self._engine.groups)]

    # ---- stages beside the rule

    @exclusive
    def set_stages(self, **options: Any) -> None:
        """Sets what a step does beside the rule, in the same pass over memory, in place of what was set before.

        In the order in which a step has them; all are off by default, and one that is off costs nothing:

        Args:
            accumulation: "mean" or "sum" of the micro-batches given to `accumulate`.
            on_nonfinite: what a gradient with NaN or infinite elements does: "propagate" steps as torch does; "skip"
                leaves parameters, state and step counts as they are; "raise" too, and raises
                `fastopt.stages.NonFiniteGradient` with the first parameter and index. The last two cost one
                sweep that reads the gradients, unless a norm is taken anyway.
            max_skips: raises when more than so many steps in a row were skipped; None never does.
            clip: a number is the largest global norm; or one of `fastopt.stages.GlobalNorm`, `ParameterNorm`,
                `Value` and `Adaptive`. Gradients are scaled inside the step and not written.
            centralize: takes the mean of each row off the gradients of matrices and higher dimensions (Yong et al.
                2020, arXiv 2004.01461).
            no_decay: parameters without weight decay: patterns of names such as "*.bias", or a number: all with at
                most so many dimensions.
            lr_scale: multipliers of the learning rate: a mapping of patterns of names to numbers, of which the first
                that fits counts, or one number for each parameter. See `fastopt.stages.layer_decay`.
            corrected_weight_decay: the largest learning rate η₀; decoupled decay is λ η²/η₀ then, so that the weights
                keep their norm under a schedule (Defazio 2025, arXiv 2506.02285).
            clip_update: d; divides the learning rate of a parameter by max(1, RMS(g/√v̂)/d) (StableAdamW; Wortsman et
                al. 2023, arXiv 2304.13013). Costs a sweep that reads the gradients and the second moment, and the
                parameters with coupled weight decay.
            cautious: leaves out what an update has against its gradient, and scales the rest by 1/(the share that
                is left) (Liang et al. 2024, arXiv 2411.16085); costs a sweep that reads the gradients and the state
                that has the update's sign. "unscaled" does not scale and costs none.
            cautious_weight_decay: decays only where the update has the sign of the parameter (Chen et al. 2025,
                arXiv 2510.12402).
            lookahead: (k, α): every k steps the slow weights move by α towards the parameters, which then take
                their place (Zhang et al. 2019, arXiv 1907.08610).
            bounds: (low, high), or "nonnegative": parameters are projected into it, those without a gradient too.
            average: an average of `fastopt.averages`, or several: updated with every step that is made.
            zero_grad: writes zeros into the gradients of the step, also of one that is skipped; those that were given
                to `accumulate` are only read.
            statistics: `last_step` has the norms of gradients, updates and parameters of every group, for logs: of
                float32 arrays they are right to a relative 1e-5.

        A step with stages needs dense gradients. `step(clip=..., grad_scale=..., on_nonfinite=...)` does the same for
        one step, and `last_step` says what it did.

        Raises:
            TypeError, ValueError: an option is not as said above, or has no meaning for this method; what was set
                before stays.

        >>> import numpy as np, fastopt
        >>> w = np.zeros(2)
        >>> opt = fastopt.SGD([w], lr=1.0)
        >>> opt.set_stages(clip=fastopt.stages.GlobalNorm(1.0, eps=0.0), on_nonfinite="skip")
        >>> opt.step([np.array([3.0, 4.0])])
        >>> w, opt.last_step.grad_norm
        (array([-0.6, -0.8]), 5.0)
        """
        from ..stages import Stages  # not before somebody wants some: it takes longer than all else

        self._engine.set_stages(Stages(**options))

    @property
    def last_step(self) -> Any:
        """What the last step with stages did: see `fastopt.stages.Step`."""
        pipeline = self._engine.pipeline
        from ..stages import Step

        return Step() if pipeline is None else pipeline.last

    def accumulate(self, grads: Grads = None, weight: float = 1.0) -> None:
        """Adds the gradients of a micro-batch to those of the next `step()`, which is then called without any.

        Weight decay, clipping and counters act once, in that step. The gradients are summed in one buffer of the size
        of the parameters. Without `grads` the ones that were bound count, into which a framework adds by itself.

        Args:
            grads: as for `step`; None in it skips that parameter.
            weight: of this micro-batch, above 0; the mean is the weighted one.

        Raises:
            TypeError, ValueError: as for `step`; nothing was changed.

        >>> import numpy as np, fastopt
        >>> w = np.zeros(2)
        >>> opt = fastopt.SGD([w], lr=1.0)
        >>> opt.accumulate([np.array([1.0, 0.0])])
        >>> opt.accumulate([np.array([3.0, 2.0])])
        >>> opt.step()
        >>> w
        array([-2., -1.])
        """
        if grads is not None and not (type(grads) is list and self._plain):
            grads = self._plan.during(self._arrange, grads)
        self._engine.accumulate(grads, weight)

    # ---- the step

    def step(self, grads: Grads = None, closure: Callable[[], Any] | None = None, *, clip: Any = None,
             grad_scale: float | None = None, on_nonfinite: str | None = None, params: Params = None) -> Any:
        """Makes one step: updates every parameter that has a gradient, in place.

        Args:
            grads: gradients in the structure of `params` (or a flat list of them): C-contiguous float32 or
                float64 arrays of the shapes of their parameters, only read. None in the place of an array
                skips that parameter. None for all uses the arrays given to `bind_grads`.
            closure: a function without arguments that computes the loss anew and returns it, or returns
                `(loss, grads)`. It is called once, before the update.
            clip, on_nonfinite: for this step; see `set_stages`.
            grad_scale: the gradients are divided by this, above 0, before all else.
            params: the parameters as they are now, in the structure of the constructor, for callers that hold them
                elsewhere: where they are other arrays than those of the last step, `rebind` moves there first.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            TypeError, ValueError: a gradient, parameter or hyperparameter is not as it must be; a gradient lies in
                memory that the step writes; something else is where a parameter was given. Nothing was changed: no
                parameter, no state, no step count.
            RuntimeError: another thread is stepping this optimizer, or this step called it.

        A signal that arrives meanwhile, Ctrl-C too, is handled before the step is begun or when it is made and counted.
        """
        if params is not None:
            return self._step_at(params, grads, closure, clip, grad_scale, on_nonfinite)
        if self._hooked or ANY_HOOKS:
            return self._step_with_hooks(grads, closure, clip, grad_scale, on_nonfinite)
        if clip is None and grad_scale is None and on_nonfinite is None:
            engine = self._engine
            found = grads if type(grads) is list and self._plain else flat(grads, engine.plan.names)
            if found is None or closure is not None:
                return self._step(grads, closure)
            if engine.pipeline is None:
                return engine.plan.step(found, engine, engine._num_threads)  # as engine.step() would
            return engine.pipeline.advance(found)
        return self._step(grads, closure, clip=clip, grad_scale=grad_scale, on_nonfinite=on_nonfinite)

    def _step_at(self, params, grads, closure, clip, grad_scale, on_nonfinite):
        """A step of these parameters; if it raises, those of before are the optimizer's again."""
        params, before = listed(params), list(self._plan.params)
        given = [structure for structure, _, _ in self._given]
        leaves = self._arrange(params)
        if len(leaves) != len(before) or any(leaf is not param for leaf, param in zip(leaves, before, strict=True)):
            self.rebind(params)
        try:
            return self.step(grads, closure, clip=clip, grad_scale=grad_scale, on_nonfinite=on_nonfinite)
        except BaseException:
            if any(now is not param for now, param in zip(self._plan.params, before, strict=True)):
                self.rebind(given[0] if len(given) == 1 else before)
            raise

    def _step_with_hooks(self, grads, closure, clip, grad_scale, on_nonfinite):
        options = {"clip": clip, "grad_scale": grad_scale, "on_nonfinite": on_nonfinite}
        args, kwargs = (), {"grads": grads, "closure": closure,
                            **{name: value for name, value in options.items() if value is not None}}
        for hook in (*GLOBAL_PRE.values(), *self._step_pre.values()):
            result = hook(self, args, kwargs)
            if result is not None:
                try:
                    args, kwargs = result
                except (TypeError, ValueError):
                    raise TypeError(f"a step pre-hook must return None or (args, kwargs), got {result!r}") from None
        loss = self._step(*args, **kwargs)
        for hook in (*self._step_post.values(), *GLOBAL_POST.values()):
            hook(self, args, kwargs)
        return loss

    def _step(self, grads=None, closure=None, **options):
        loss = None
        if callable(grads) and closure is None:
            grads, closure = None, grads  # torch's order: step(closure)
        if closure is not None:
            if grads is not None:
                raise ValueError("step() takes grads or a closure, not both")
            loss = closure()
            if isinstance(loss, tuple):
                loss, grads = loss
        grads = grads if grads is None else self._arrange(grads)
        self._engine.step(grads, **options)
        return loss

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Returns the state and hyperparameters in torch.optim's layout, with NumPy arrays in it.

        `{"state": {position: {"step": ..., slot: array}}, "param_groups": [...], "step_count": n}`. The state
        arrays are the live ones, as in torch: copy the dict (`copy.deepcopy`) to keep a snapshot. A
        hyperparameter that is a schedule is saved as its value now; the schedule itself is code, which the
        program that loads brings along.
        """
        for hook in self._state_dict_pre.values():
            hook(self)
        result = exclusive(type(self)._pack)(self)
        for hook in self._state_dict_post.values():
            result = hook(self, result) or result
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a checkpoint made by `state_dict` here or by the same optimizer of torch.optim.

        Parameters are matched by name when both sides have names, else by position. State arrays are copied
        and take the dtype of their parameter. Hyperparameters are replaced, except that a schedule set here
        stays. Options of torch without a meaning here are ignored.

        Raises:
            TypeError, ValueError: groups, parameters, names, state keys or shapes do not fit; nothing was changed.
        """
        for hook in self._load_pre.values():
            state_dict = hook(self, state_dict) or state_dict
        exclusive(type(self)._load)(self, state_dict)
        for hook in self._load_post.values():
            hook(self)

    def _pack(self):
        packed, pipeline = pack(self._engine, self._engine.groups), self._engine.pipeline
        return packed if pipeline is None else {**packed, "stages": pipeline.state()}

    def _load(self, state_dict):
        self._adopt(self._fitted(state_dict))

    def _fitted(self, state_dict):
        """A checkpoint in the form that `_adopt` takes; raises, with nothing changed, if it does not fit."""
        return match(self._engine, self._engine.groups, state_dict), match_stages(self._engine, state_dict)

    def _adopt(self, fitted):
        (groups, states, count), stages = fitted
        with uninterrupted():
            self._engine.adopt_stages(stages)
            for group, options in zip(self._engine.groups, groups, strict=True):
                group.options.clear()
                group.options.update(options)
            self._engine.set_states([states.get(position, (0, (0.0,) * len(self.scalar_slots), {}))
                                     for position in range(len(self._plan))], count)

    # ---- copies and printing

    @exclusive
    def __getstate__(self):
        return {
            "defaults": self.defaults,
            "param_groups": self.param_groups,
            "names": list(self._plan.names),
            "arrays": self._engine.arrays,
            "steps": [self._plan.get_step(position) for position in range(len(self._plan))],
            "plain": self._plain,
            "pipeline": self._engine.pipeline and self._engine.pipeline.saved(),
            "count": self._plan.steps,
            "num_threads": self.num_threads,
            "scalars": [self._plan.get_scalars(position) for position in range(len(self._plan))],
            "bound": list(self._plan.bound_gradients) if self._plan.has_bound else None,
            "given": self._copied_structures(),
            "whole": Whole(self._plan),
        }

    def __setstate__(self, saved):
        self._setup()
        self.defaults = saved["defaults"]
        self._restore_groups(saved)
        engine = self._engine
        for position, (arrays, step) in enumerate(zip(saved["arrays"], saved["steps"], strict=True)):
            copied = engine.method_of(position).copied
            engine.arrays[position] = {name: copied(array) for name, array in arrays.items()}
            engine.plan.set_step(position, step)
            engine.plan.set_scalars(position, saved["scalars"][position])
        engine.plan.steps = saved["count"]
        engine.num_threads = saved["num_threads"]
        self._plain = saved["plain"]
        self._restore_structures(saved["given"])
        if saved["bound"] is not None:
            self._plan.bind(saved["bound"])
        if saved["pipeline"] is not None:
            self._engine.restore_stages(saved["pipeline"])
        engine.states_changed()

    def _restore_groups(self, saved):
        """Takes the groups of a pickle."""
        names = iter(saved["names"])
        for group in saved["param_groups"]:
            self._admit(group, [next(names) for _ in group["params"]])

    def _copied_structures(self):
        """The structures that parameters were given in, where a copy of them has the copies of the parameters."""
        return [(structure, [position for position in where.values() if position is not None])
                for structure, leaves, where in self._given
                if all(position is not None and leaves[key] is self._plan.params[position]
                       for key, position in where.items())
                and all(type(box) in (list, dict) for box in containers(structure))]

    def _restore_structures(self, structures):
        for structure, positions in structures:
            self._remember(structure, positions)

    def __repr__(self):
        lines = []
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name not in ("params", "param_names")]
        return f"{type(self).__name__} (\n" + "\n".join(lines) + "\n)"


def check_names(names, known=()):
    """Raises unless `names` can stand beside the `known` ones."""
    if len({name is None for name in itertools.chain(names, known)}) > 1:
        raise ValueError("either all parameters have names or none has")
    used = Counter(itertools.chain(names, known))
    twice = [name for name in names if name is not None and used[name] > 1]
    if twice:
        raise ValueError(f"the parameter name {twice[0]!r} is used more than once")


def check_param_names(given, names):
    """The names that a group has beside its parameters; those that stand in `params` must be the same."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"param_names must be a list of names, got {given!r}")
    if len(given) != len(names):
        raise ValueError(f"param_names must have {len(names)} names, one for each parameter, got {len(given)}")
    if any(name not in (None, other) for name, other in zip(names, given, strict=True)):
        raise ValueError(f"param_names is {list(given)}, but the names in params are {names}")
    return list(given)


def exchanged(structure, old, new):
    """Puts `new` in the place of `old` in the lists and mappings of a structure; whether there was one."""
    done = False
    for box in containers(structure):
        for key, value in list(box.items() if isinstance(box, Mapping) else enumerate(box)):
            if value is old:
                box[key], done = new, True
            elif is_pair(value) and value[1] is old:
                box[key], done = (value[0], new), True
    return done


def by_key(structure):
    """The leaves of a structure by their names, or by their places where they have none."""
    return {i if name is None else name: leaf for i, (name, leaf) in enumerate(flatten(structure))}


def same_memory(leaf, param):
    """Whether a leaf of a structure is the memory of a parameter, as it is stepped."""
    if leaf is param:
        return True
    try:
        array = as_array(leaf, "")
    except TypeError:
        return False
    return (array.shape == param.shape and array.dtype == param.dtype and array.strides == param.strides
            and array.ctypes.data == param.ctypes.data)


def is_group(node):
    return isinstance(node, Mapping) and "params" in node
