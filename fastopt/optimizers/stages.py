"""The stages of a step beside the rule: their options, and the step that has them.

All that a step does without stages stands in engine.py; it comes here only when some are set.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from weakref import ref

import numpy as np

from ..checks import at_least_one, check_matches, flag, nonnegative, one_of, pair, positive, real, whole
from ..interrupts import uninterrupted
from ..kernels import rules
from ..kernels.arrays import full_like, owned
from .clipping import Adaptive, Clip, GlobalNorm, Norm, ParameterNorm, Value, as_clip
from .engine import Engine
from .method import Method
from .norms import LEAST, each_shrunk, is_safe, norm_of, norms_of, root, shrunk
from .state import fitted, judging

__all__ = ["NonFiniteGradient", "Stages", "Step", "layer_decay"]

policies = one_of("propagate", "skip", "raise")


class NonFiniteGradient(ArithmeticError):
    """A gradient has NaN or infinite elements: raised with `on_nonfinite="raise"`, before anything is changed."""


@dataclass(frozen=True)
class Stages:
    """What a step does beside the rule; see `Optimizer.set_stages`."""

    clip: Clip | float | None = None
    on_nonfinite: str = "propagate"
    max_skips: int | None = None
    average: Any = ()
    zero_grad: bool = False
    accumulation: str = "mean"
    centralize: bool = False
    cautious: bool | str = False
    cautious_weight_decay: bool = False
    corrected_weight_decay: float | None = None
    no_decay: Any = ()
    lr_scale: Any = None
    clip_update: float | None = None
    bounds: tuple[float, float] | str | None = None
    lookahead: tuple[int, float] | None = None
    statistics: bool = False

    def __post_init__(self):
        averages = self.average if isinstance(self.average, (list, tuple)) else (self.average,)
        for name, value in {
            "clip": as_clip(self.clip),
            "on_nonfinite": policies("on_nonfinite", self.on_nonfinite),
            "max_skips": None if self.max_skips is None else at_least_one("max_skips", self.max_skips),
            "average": tuple(average for average in averages if average is not None),
            "zero_grad": flag("zero_grad", self.zero_grad),
            "accumulation": one_of("mean", "sum")("accumulation", self.accumulation),
            "centralize": flag("centralize", self.centralize),
            "cautious": true_false_unscaled("cautious", self.cautious),
            "cautious_weight_decay": flag("cautious_weight_decay", self.cautious_weight_decay),
            "corrected_weight_decay": optional(positive)("corrected_weight_decay", self.corrected_weight_decay),
            "no_decay": patterns_or_dimensions(self.no_decay),
            "clip_update": optional(positive)("clip_update", self.clip_update),
            "bounds": optional(interval)("bounds", self.bounds),
            "lookahead": optional(steps_and_share)("lookahead", self.lookahead),
            "statistics": flag("statistics", self.statistics),
        }.items():
            object.__setattr__(self, name, value)


def true_false_unscaled(name, value):
    if not isinstance(value, (bool, str)) or value not in (True, False, "unscaled"):
        raise TypeError(f"{name} must be True, False or 'unscaled', got {value!r}")
    return value


def optional(check):
    return lambda name, value: None if value is None else check(name, value)


def interval(name, value):
    if isinstance(value, str) and value == "nonnegative":
        return 0.0, math.inf
    try:
        low, high = () if isinstance(value, str) else value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be (low, high) or 'nonnegative', got {value!r}") from None
    low, high = real(f"{name}[0]", low), real(f"{name}[1]", high)
    if not low <= high:
        raise ValueError(f"{name} must be two numbers, the lower first, got {value!r}")
    return low, high


def patterns_or_dimensions(value):
    rules = (value,) if isinstance(value, (str, int)) else value
    if not isinstance(rules, Sequence) or not all(isinstance(rule, str) or type(rule) is int for rule in rules):
        raise TypeError(f"no_decay must be patterns of names or a number of dimensions, got {value!r}")
    return tuple(rules)


def steps_and_share(name, value):
    steps, share = pair(name, value)
    if not 0 < share <= 1:
        raise ValueError(f"{name}[1] must be above 0 and at most 1, got {value[1]!r}")
    return at_least_one(f"{name}[0]", steps), share


@dataclass
class Step:
    """What the last step did.

    Attributes:
        grad_norm: the norm of all gradients before clipping, after unscaling; None where none was taken.
        skipped: the step was not made, as a gradient was not finite.
        clipped: the share of norms that were clipped: 0 or 1 with a global norm; of the parameters or units else.
        grad_norms, update_norms, param_norms: with `statistics`, the 2-norms of each group; the update is what was
            added to the parameters, which are measured after it.
        update_norm, param_norm: the same over all groups.
        steps: steps with stages so far, the skipped ones included.
        skipped_steps, clipped_steps: how many of them were skipped; the sum of `clipped` over them. Divided by `steps`
            they are the shares for a log.
    """

    grad_norm: float | None = None
    skipped: bool = False
    clipped: float = 0.0
    steps: int = 0
    skipped_steps: int = 0
    clipped_steps: float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    update_norms: list[float] = field(default_factory=list)
    param_norms: list[float] = field(default_factory=list)

    @property
    def update_norm(self) -> float | None:
        return math.hypot(*self.update_norms) if self.update_norms else None

    @property
    def param_norm(self) -> float | None:
        return math.hypot(*self.param_norms) if self.param_norms else None


class Accumulation(Method):
    """Adds weighted gradients to their sum, which is the parameter. The settings are the weight."""

    rule = "accumulate"
    decays = False
    hyperparameters = {}
    state_slots = ()

    @staticmethod
    def slots(settings):
        return {}

    @staticmethod
    def coefficients(settings, step):
        return rules.accumulate(first=step == 1, w=settings)


class Pipeline:
    """The stages of one engine, and what they keep between its steps."""

    def __init__(self, engine, stages, before=None):
        self.setup(engine, stages)
        if before is not None:
            if before.weight:
                raise ValueError("gradients are accumulated that the stages set before have not stepped with")
            self.slow = before.slow if stages.lookahead and before.stages.lookahead else []
        self.install()

    def setup(self, engine, stages):
        """Sets what a pipeline has before its tables and its first step."""
        self.reference, self.stages = ref(engine), stages  # no cycle: memory goes with the engine
        self.idle = stages == Stages()
        self.group_of = ()  # of each parameter, once statistics need it
        self.last = Step()
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self.clipped = 0.0
        self.slow: list[np.ndarray] = []  # the slow weights of Lookahead
        self.sum = None  # an engine whose parameters are the sums of gradients; see accumulate()
        self.weight, self.in_bound = 0.0, False

    @property
    def engine(self):
        return self.reference()

    def written(self):
        """(parameter, array) of what the stages write beside parameters and state."""
        return [*enumerate(self.slow), *(pair for average in self.stages.average
                                         for pair in enumerate(average._plan.params))]

    def grow(self):
        """Begins the slow weights of parameters that were added."""
        if self.stages.lookahead:
            self.slow += [owned(param) for param in self.engine.plan.params[len(self.slow):]]

    def replaced(self, position, param):
        """Follows another array in the place of a parameter."""
        self.sum, self.group_of = None, ()
        if self.slow:
            self.slow[position] = owned(param)

    def removed(self, position):
        """Goes on without a parameter."""
        self.sum, self.group_of = None, ()
        if self.slow:
            del self.slow[position]

    def reset(self):
        """Begins anew, as if no step had been made."""
        self.set_state(self.engine.plan.params, dict.fromkeys(self.COUNTERS, 0))
        self.last = Step()

    # ---- copies and checkpoints

    COUNTERS = ("steps", "skipped", "skipped_in_a_row", "clipped")

    def state(self):
        """What a checkpoint has of the stages; averages have checkpoints of their own."""
        if self.in_bound:
            raise ValueError("gradients are accumulated in the bound arrays, which no checkpoint has: step first")
        accumulated = {"accumulated": self.taken(), "weight": self.weight} if self.weight else {}
        return {"slow": list(self.slow), **{name: getattr(self, name) for name in self.COUNTERS}, **accumulated}

    def match(self, state):
        """What `set_state` takes, from a checkpoint; raises ValueError or TypeError if it does not fit."""
        wanted, optional = ("slow", *self.COUNTERS), ("accumulated", "weight")
        missing = [name for name in wanted if state and name not in state]
        unknown = [name for name in state if name not in {*wanted, *optional}]
        if missing or unknown or len(state) == len(wanted) + 1:
            raise ValueError(f"stages of the state_dict must have {wanted}, and may have {optional}; got {list(state)}")
        slow = self.match_arrays("slow", state.get("slow", []), self.slow)
        with judging("stages of the state_dict"):
            counters = {name: (nonnegative if name == "clipped" else whole)(name, state[name])
                        for name in self.COUNTERS if state}
            weight = positive("weight", state["weight"]) if "weight" in state else 0.0
        params = self.engine.plan.params
        accumulated = self.match_arrays("accumulated", state["accumulated"], params) if weight else []
        return slow, counters, accumulated, weight

    def match_arrays(self, name, arrays, like):
        what = "slow weights of Lookahead" if name == "slow" else "accumulated gradients"
        if not isinstance(arrays, (list, tuple)):
            raise TypeError(f"{what} of the state_dict must be a list of arrays, got {type(arrays).__name__}")
        if len(arrays) != len(like):
            raise ValueError(f"state_dict has {what} for {len(arrays)} parameters, this optimizer has {len(like)}")
        label = self.engine.plan.label
        return [None if array is None and name == "accumulated" else fitted(array, own, name, label(i))
                for i, (array, own) in enumerate(zip(arrays, like, strict=True))]

    def set_state(self, slow, counters, accumulated=(), weight=0.0):
        for own, array in zip(self.slow, slow, strict=False):
            own[...] = array
        vars(self).update(dict.fromkeys(self.COUNTERS, 0) | counters)
        self.forget()
        if weight:
            self.ready_sum()
            for i, array in enumerate(accumulated):
                if array is not None:
                    self.sum.plan.params[i][...] = array
                    self.sum.plan.set_step(i, 1)
            self.weight = weight

    def snapshot(self):
        """What steps change: arrays with copies of them, and numbers. For `restore`."""
        arrays = [*self.slow, *(array for average in self.stages.average for array in average.averages)]
        if self.in_bound:  # those micro-batches are in the arrays themselves
            arrays += [array for array in self.engine.plan.bound_gradients
                       if array is not None and array.flags.writeable]
        names = (*self.COUNTERS, "sum", "weight", "in_bound")
        return ([(array, array.copy()) for array in arrays], [average.n_averaged for average in self.stages.average],
                {name: getattr(self, name) for name in names}, self.last)

    def set_aside(self):
        """Begins a new accumulation; the old one is in a snapshot."""
        self.sum, self.weight, self.in_bound = None, 0.0, False

    def restore(self, snapshot):
        """The reverse."""
        arrays, counts, numbers, self.last = snapshot
        for array, values in arrays:
            array[...] = values
        for average, count in zip(self.stages.average, counts, strict=True):
            average.n_averaged = count
        vars(self).update(numbers)

    def saved(self):
        """What a pickle has."""
        if self.weight:
            raise ValueError("gradients are accumulated: step before copying the optimizer")
        return {"stages": self.stages, "last": self.last, **self.state()}

    @classmethod
    def unset(cls, engine):
        """A pipeline without stages that the engine does not have yet."""
        pipeline = object.__new__(cls)
        pipeline.setup(engine, Stages())
        pipeline.check()
        return pipeline

    @classmethod
    def restored(cls, engine, saved):
        """The reverse. Tables are made at the next step: an average may itself be on its way out of the pickle."""
        pipeline = object.__new__(cls)
        pipeline.setup(engine, saved["stages"])
        pipeline.last, pipeline.slow = saved["last"], [owned(array) for array in saved["slow"]]
        vars(pipeline).update({name: saved[name] for name in cls.COUNTERS})
        return pipeline

    # ---- what goes together

    def check(self):
        engine, method, stages = self.engine, self.engine.method, self.stages
        name = method.__name__
        if method.sparse == "only":
            raise ValueError(f"{name} has no stages: they need dense gradients")
        for option in ("cautious_weight_decay", "corrected_weight_decay"):
            if getattr(stages, option) and not all(method.decoupled(group.options) for group in engine.groups):
                raise ValueError(f"{option} needs decoupled weight decay, which {name} has not with these options")
        if stages.no_decay and not method.decays:
            raise ValueError(f"no_decay has no meaning for {name}: it has no weight_decay")
        if stages.clip_update is not None and method.second_moment is None:
            raise ValueError(f"clip_update needs a second moment, exp_avg_sq, which {name} has not")
        if stages.cautious and not method.turns:
            raise ValueError(f"cautious has no meaning for {name}: its update always has the sign of the gradient")
        if stages.lr_scale is not None and method.rate_free:
            raise ValueError(f"lr_scale has no meaning for {name}: lr is only where its step sizes begin")
        for option in ("centralize", "bounds"):
            if getattr(stages, option) and self.has_complex():
                raise ValueError(f"{option} has no meaning for complex parameters")
        self.check_clip(stages.clip)
        for i, average in enumerate(stages.average):
            if isinstance(average, type) or not hasattr(average, "coefficients"):
                raise TypeError(f"average must be an average of fastopt.averages or a list of them, got {average!r}")
            if any(average is other for other in stages.average[:i]):
                raise ValueError(f"average has {average!r} twice")
            averages, params = average.averages, engine.plan.params
            if len(averages) != len(params):
                raise ValueError(f"average has {len(averages)} parameters, the optimizer {len(params)}")
            for position, (own, param) in enumerate(zip(averages, params, strict=True)):
                if own.shape != param.shape or own.dtype != param.dtype:
                    raise ValueError(f"average of {engine.plan.label(position)} must have shape {param.shape} and "
                                     f"dtype {param.dtype}, got {own.shape} and {own.dtype}")

    def has_complex(self):
        return any(param.dtype.kind == "c" for param in self.engine.plan.params)

    def check_clip(self, clip):
        if (isinstance(clip, Value) or getattr(clip, "norm_type", 2.0) != 2.0) and self.has_complex():
            raise ValueError(f"{clip} has no meaning for complex parameters: they have the 2-norm only")

    # ---- the tables

    def install(self):
        """Shows the stages to the plan, if they may be; needed again when parameters were added."""
        self.check()
        self.grow()
        stages, plan = self.stages, self.engine.plan
        kinds = multipliers(stages, plan)
        self.kinds = list(dict.fromkeys(kinds))  # of each variant
        variants = [self.kinds.index(kind) for kind in kinds]
        self.adapts = stages.corrected_weight_decay is not None or any(
            kind != (1.0, 1.0) for kind in self.kinds)
        followers, self.shared = [], []  # shared: (place in the table, its source)
        if stages.lookahead:
            self.shared.append((len(followers), None))
            followers.append(("lookahead", self.slow, True))
        bounds = len(followers)
        if stages.bounds:  # after Lookahead, which may round across them
            followers.append(("project", None, True))
        for average in stages.average:
            self.shared.append((len(followers), average))
            followers.append(("average", average.averages, True))
        plan.stage(followers, on=True, zero=stages.zero_grad, keeps=stages.statistics, cautious=bool(stages.cautious),
                   careful=stages.cautious_weight_decay)
        if stages.bounds:
            plan.follow(bounds, stages.bounds)
        plan.set_variants(variants)
        self.has_rows = np.array([param.ndim > 1 for param in plan.params])  # whose means centralize takes off
        self.sizes = np.array([max(1, param.size * (1 + (param.dtype.kind == "c"))) for param in plan.params], float)

    # ---- the step

    def advance(self, grads, clip=None, grad_scale=None, on_nonfinite=None):
        """Makes the step of `Engine.step` with the stages, or skips it."""
        plan = self.engine.plan
        if self.idle and clip is None and grad_scale is None and on_nonfinite is None and not self.weight:
            if plan.staged:
                plan.during(plan.stage, [])
            plan.during(self.engine.make, grads, self.counted(Step()))
            return
        plan.during(self.checked, grads, (clip, grad_scale, on_nonfinite))
        if self.stages.max_skips is not None and self.skipped_in_a_row > self.stages.max_skips:
            raise NonFiniteGradient(f"{self.skipped_in_a_row} steps in a row were skipped for gradients that are not "
                                    f"finite; max_skips is {self.stages.max_skips}")

    def checked(self, grads, options):
        """The same, with the plan taken."""
        clip, grad_scale, on_nonfinite = options
        engine, stages, plan = self.engine, self.stages, self.engine.plan
        if clip is None:
            clip = stages.clip
        else:
            clip = as_clip(clip)
            self.check_clip(clip)
        policy = stages.on_nonfinite if on_nonfinite is None else policies("on_nonfinite", on_nonfinite)
        unscale = 1.0 if grad_scale is None else 1.0 / positive("grad_scale", grad_scale)
        if self.weight:
            if grads is not None:
                raise ValueError("step() takes no grads after accumulate(): give them to accumulate() too")
            grads, unscale = self.taken(), unscale / (self.weight if stages.accumulation == "mean" else 1.0)
        for average in stages.average:
            average._check_free("step()")
        if not plan.staged:
            self.install()
        cohorts = engine.begin(grads)
        record = Step()
        norms = self.measure(clip, policy, unscale, record)
        if record.skipped:
            with uninterrupted():
                if stages.zero_grad:
                    for _, gradient in plan.taken():
                        gradient[...] = 0
                for target, values in self.counted(record):
                    target.update(values)
                self.forget()
        else:
            self.walk(cohorts, clip, unscale, norms, record)

    def counted(self, record):
        """What a step counts here beside its own counters: see `Plan.finish`."""
        made = {"steps": self.steps + 1, "clipped": self.clipped + record.clipped,
                "skipped": self.skipped + record.skipped,
                "skipped_in_a_row": self.skipped_in_a_row + 1 if record.skipped else 0, "last": record}
        record.steps, record.skipped_steps, record.clipped_steps = made["steps"], made["skipped"], made["clipped"]
        changes = [(vars(self), made)]
        if not record.skipped:
            changes += [(vars(average), {"_n_averaged": average.n_averaged + 1}) for average in self.stages.average]
            if self.weight:
                made |= {"weight": 0.0, "in_bound": False}
                if self.sum is not None:
                    changes.append((self.sum.plan, None))
        return changes

    def measure(self, clip, policy, unscale, record):
        """Takes norms of the gradients, if anything needs them, and decides whether the step is made.

        Returns that of all, those of each parameter, and their order; None where it was not needed.
        """
        plan = self.engine.plan
        normed = isinstance(clip, Norm)
        if not normed and policy == "propagate":
            return None, None, 2.0
        order = clip.norm_type if normed else 2.0
        total = plan.powers(order, self.engine.num_threads)
        if order == math.inf or is_safe(total):  # else it takes looking at the gradients
            norm = root(total, order)
        else:
            norm = norm_of([grad for _, grad in plan.taken()], order, total)
        record.grad_norm = unscale * norm
        if policy != "propagate" and not math.isfinite(record.grad_norm):
            found = first_nonfinite(plan)
            if found is not None and policy == "raise":
                raise NonFiniteGradient(found)
            record.skipped = found is not None
        if not (self.stages.statistics or isinstance(clip, ParameterNorm)):
            return norm, None, order
        return norm, norms_of(plan.each_power(order), order, lambda: [(i, 1, grad) for i, grad in plan.taken()]), order

    @np.errstate(all="ignore")
    def units(self, clip, scale, limit, norms, record):
        """The scale of each unit of the gradients, and the offset that is taken off before scaling."""
        plan = self.engine.plan
        rows = self.stages.centralize or isinstance(clip, Adaptive)
        first = plan.divide(rows)
        lengths = np.diff(first)
        units = np.zeros((first[-1], 2))
        units[:, 0] = scale
        if rows:
            most = limit / scale if limit else math.inf
            sums = plan.unit_sums(self.engine.num_threads, centers=self.stages.centralize, limit=most,
                                  adapts=isinstance(clip, Adaptive))
            if self.stages.centralize:  # a mean at the limit is one of elements at the limit only, wherever that rounds
                means = np.where(np.abs(sums[:, 0]) < most, sums[:, 0], np.copysign(math.inf, sums[:, 0]))
                units[:, 1] = np.where(np.repeat(self.has_rows, lengths), means, 0.0)
            if isinstance(clip, Adaptive):
                norms = norms_of(sums[:, 1], 2.0, lambda: [
                    (first[i], lengths[i], grad) for i, grad in plan.taken()])
                weights = norms_of(sums[:, 2], 2.0, lambda: [
                    (first[i], lengths[i], plan.params[i]) for i, _ in plan.taken()])
                most = clip.clip_factor * np.maximum(weights, clip.eps)
                units[:, 0] = each_shrunk(norms, most, 0.0, scale, 1e-6)
        if isinstance(clip, ParameterNorm):
            units[:, 0] = np.repeat(each_shrunk(norms, clip.max_norm, clip.eps, scale), lengths)
        if isinstance(clip, (ParameterNorm, Adaptive)) and len(units):
            record.clipped = float(np.mean(units[:, 0] != scale))
        return units

    def walk(self, cohorts, clip, unscale, measured, record):
        """Answers the plan, and steps; before it, a look ahead where a stage must know the whole update."""
        engine, stages, plan = self.engine, self.stages, self.engine.plan
        threads, scale = engine.num_threads, unscale
        norm, norms, order = measured
        if isinstance(clip, GlobalNorm):
            scale = shrunk(norm, clip.max_norm, clip.eps, unscale)
            record.clipped = float(scale != unscale)
        limit = clip.clip_value if isinstance(clip, Value) else 0.0
        if stages.centralize or isinstance(clip, (ParameterNorm, Adaptive)):
            plan.use_units(self.units(clip, scale, limit, norms, record))
            scale = 1.0  # each unit has its own
        answers = self.answers(cohorts, scale, limit)
        if plan.unready:
            engine.give_states(plan.missing())
        factors = None
        if stages.cautious is True or stages.clip_update is not None:
            factors = self.factors(cohorts, answers)
        for place, average in self.shared:
            if average is None:
                steps, share = stages.lookahead
                plan.follow(place, (share,), (plan.steps + 1) % steps == 0)
            else:
                plan.follow(place, average._rule(average.n_averaged + 1))
        known = norms if order == 2.0 else None
        if stages.statistics:
            plan.take_sums(gradient=known is None, param=True, update=True)
        with uninterrupted() if stages.statistics else nullcontext():
            taken = plan.run(answers, threads, self.counted(record), factors)
            if stages.statistics:
                if known is not None:
                    taken[:, 0] = known
                self.take_statistics(taken, unscale, record)

    @np.errstate(all="ignore")
    def factors(self, cohorts, answers):
        """What each parameter's rate, and what cautious leaves of its update, are multiplied with: see `Plan.run`."""
        method, stages, plan = self.engine.method, self.stages, self.engine.plan
        sums, factors, constants = [], {}, None
        if stages.clip_update is not None:
            sums.append(("ratio", "prepared", f"after{method.state_slots.index(method.second_moment)}"))
            constants = [(1.0 / (1.0 - group.settings["betas"][1] ** step), group.settings["eps"] ** 2)
                         for group, step, _ in cohorts]
        if stages.cautious is True:
            direction = f"after{method.state_slots.index(method.direction)}" if method.direction else "update"
            sums.append(("agreement", direction, "prepared"))
        means = plan.measure(answers, sums, self.engine.num_threads, constants=constants) / self.sizes[:, None]
        if stages.clip_update is not None:
            factors["rate"] = 1.0 / np.maximum(np.sqrt(means[:, 0]) / stages.clip_update, 1.0)
        if stages.cautious is True:
            factors["mask"] = 1.0 / np.maximum(means[:, -1], 1e-3)
        return factors

    @np.errstate(all="ignore")
    def take_statistics(self, norms, unscale, record):
        """Writes down the norms of each group, from those of the gradient, of each parameter and of its update."""
        if len(self.group_of) != len(norms):
            self.group_of = np.array([self.engine.group_of(i) for i in range(len(norms))])
        squares = np.stack([np.bincount(self.group_of, column) for column in (norms**2).T], axis=1)
        by_group = np.sqrt(squares)
        for group, k in zip(*np.nonzero((squares < LEAST) | np.isinf(squares)), strict=True):
            by_group[group, k] = norm_of([norms[self.group_of == group, k]], 2.0)
        norms = by_group * (unscale, 1.0, 1.0)
        record.grad_norms, record.param_norms, record.update_norms = (column.tolist() for column in norms.T)
        if record.grad_norm is None:
            record.grad_norm = math.hypot(*record.grad_norms)

    def answers(self, cohorts, scale, limit):
        """What the plan needs of each cohort."""
        engine, answers = self.engine, []
        for (group, step, scalars), variant in zip(cohorts, engine.plan.variants(), strict=True):
            settings, (sign, coupled, decay, _) = group.settings, group.prepare
            if self.adapts:
                settings = self.adapted(settings, variant)
                sign, coupled, decay, _ = engine.method.prepared(settings)
            if scalars:
                coefficients, after = engine.with_scalars(settings, step, scalars)
            else:
                coefficients, after = engine.method.coefficients(settings, step), scalars
            answers.append(((sign * scale, coupled, decay, limit), coefficients, after))
        return answers

    def adapted(self, settings, variant):
        """The settings of a variant."""
        method, stages, settings = self.engine.method, self.stages, dict(settings)
        lr_scale, decay_scale = self.kinds[variant]
        if method.decays:
            settings["weight_decay"] *= decay_scale
            if stages.corrected_weight_decay is not None:
                settings["weight_decay"] *= settings["lr"] / stages.corrected_weight_decay
        settings["lr"] *= lr_scale
        return settings

    # ---- accumulation

    def accumulate(self, grads, weight):
        """Adds weighted gradients to the buffers; None counts a micro-batch in the bound gradients."""
        plan, weight = self.engine.plan, positive("weight", weight)
        if grads is None:
            if not plan.has_bound:
                raise ValueError("accumulate() needs grads: none were given and none are bound (see bind_grads)")
            if weight != 1.0:
                raise ValueError("bound gradients are summed by whoever writes them: weight must be 1")
            if self.weight and not self.in_bound:
                raise ValueError("accumulate() was called with grads before this one without")
            vars(self).update({"in_bound": True, "weight": self.weight + weight})
        else:
            if self.in_bound:
                raise ValueError("accumulate() was called without grads before this one with")
            self.ready_sum()
            self.sum.plan.during(self.add, grads, weight)

    def add(self, grads, weight):
        """Sums gradients; the plan of the sums is taken."""
        for group in self.sum.groups:
            group.settings = weight
        self.sum._num_threads = self.engine._num_threads
        self.sum.make(grads, [(vars(self), {"weight": self.weight + weight})])

    def ready_sum(self):
        """Makes the buffers that are summed into, for every parameter."""
        plan = self.engine.plan
        if self.sum is None:
            self.sum = Engine(Accumulation)
        if len(self.sum.plan) < len(plan):
            new = slice(len(self.sum.plan), None)
            with uninterrupted():
                self.sum.add_given([full_like(param, 0.0) for param in plan.params[new]], plan.names[new])

    def taken(self):
        """The gradients that were accumulated: None are those bound."""
        if self.in_bound:
            return None
        sums = self.sum.plan
        given = [array if sums.get_step(i) else None for i, array in enumerate(sums.params)]
        return given + [None] * (len(self.engine.plan) - len(given))  # of parameters that were added since

    def forget(self):
        """Begins a new accumulation."""
        self.weight, self.in_bound = 0.0, False
        if self.sum is not None:
            for i in range(len(self.sum.plan)):
                self.sum.plan.set_step(i, 0)


def first_nonfinite(plan):
    """Says where the first element is that is not finite; None: all are."""
    for i, gradient in plan.taken():
        bad = np.flatnonzero(~np.isfinite(gradient))
        if len(bad):
            index = tuple(int(k) for k in np.unravel_index(bad[0], gradient.shape))
            return f"gradient of {plan.label(i)} is {gradient[index]} at index {index}"
    return None


def multipliers(stages, plan):
    """(of the learning rate, of the weight decay) for each parameter."""
    rate = scale_of(stages.lr_scale, plan)
    check_matches("no_decay", [rule for rule in stages.no_decay if isinstance(rule, str)], plan.names)
    keep = [0.0 if excluded(stages.no_decay, plan.names[i], param) else 1.0 for i, param in enumerate(plan.params)]
    return list(zip(rate, keep, strict=True))


def excluded(no_decay, name, param):
    """Whether a parameter is one of those that `no_decay` describes."""
    for rule in no_decay:
        if isinstance(rule, int):
            if param.ndim <= rule:
                return True
        elif fnmatchcase(name, rule):
            return True
    return False


def scale_of(lr_scale, plan):
    """The multiplier of each parameter's learning rate; the first pattern that fits counts."""
    if lr_scale is None:
        return [1.0] * len(plan)
    if isinstance(lr_scale, Mapping):
        check_matches("lr_scale", lr_scale, plan.names)
        checked = {pattern: nonnegative(f"lr_scale[{pattern!r}]", scale) for pattern, scale in lr_scale.items()}
        return [next((scale for pattern, scale in checked.items()
                      if fnmatchcase(name, pattern)), 1.0) for name in plan.names]
    if not isinstance(lr_scale, Sequence) or isinstance(lr_scale, str):
        raise TypeError("lr_scale must be a mapping of patterns of names to numbers, or one number for each parameter, "
                        f"got {lr_scale!r}")
    scales = [nonnegative("lr_scale", scale) for scale in lr_scale]
    if len(scales) != len(plan):
        raise ValueError(f"lr_scale must have {len(plan)} numbers, one for each parameter, got {len(scales)}")
    return scales


def layer_decay(layers: Sequence[str], decay: float) -> dict[str, float]:
    """Learning rates that fall from the last layer to the first: an `lr_scale` for `Optimizer.set_stages`.

    Args:
        layers: patterns of the names of each layer's parameters, from the first layer to the last.
        decay: the rate of a layer as a fraction of the next one's; above 0.

    >>> layer_decay(["embed.*", "block0.*", "head.*"], 0.5)
    {'embed.*': 0.25, 'block0.*': 0.5, 'head.*': 1.0}

    Source: Howard, Ruder 2018, arXiv 1801.06146; Bao et al. 2021, arXiv 2106.08254.
    """
    decay = positive("decay", decay)
    return {pattern: decay ** (len(layers) - 1 - i) for i, pattern in enumerate(layers)}
