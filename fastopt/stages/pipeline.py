"""The stages of one engine, and the step that has them.

All that a step does without stages stands in the engine; it comes here only when some are set.
"""

import math
from contextlib import nullcontext
from weakref import ref

import numpy as np

from ..checks import positive
from ..interrupts import uninterrupted
from ..kernels.arrays import owned
from ..norms import is_safe, norm_of, norms_of, root
from .accumulate import Accumulate
from .clip import Clipping, Units
from .lookahead import Lookahead
from .nonfinite import NonFinite
from .options import ORDER, Stages
from .statistics import Statistics
from .step import Course, Step


class Pipeline:
    """The stages of one engine, and what they keep between its steps."""

    def __init__(self, engine, options, before=None):
        self.setup(engine, options)
        if before is not None:
            for stage in (self.sums, *self.stages):
                earlier = before.find(type(stage))
                if earlier is not None:
                    stage.take_over(earlier)
        self.install()

    def setup(self, engine, options):
        """Sets what a pipeline has before its tables and its first step."""
        self.reference, self.options = ref(engine), options  # no cycle: memory goes with the engine
        self.stages = [stage(options) for stage in ORDER if stage.asked(options)]
        self.sums = Accumulate(options)
        self.last = Step()
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self.clipped = 0.0

    @property
    def engine(self):
        return self.reference()

    def find(self, kind):
        """The stage of a kind; None: it is not set."""
        return next((stage for stage in (self.sums, *self.stages) if type(stage) is kind), None)

    def written(self):
        """(parameter, array) of what the stages write beside parameters and state."""
        return [pair for stage in self.stages for pair in stage.written()]

    def grow(self):
        """Follows parameters that were added."""
        for stage in self.stages:
            stage.grow(self.engine)

    def replaced(self, position, param):
        """Follows another array in the place of a parameter."""
        for stage in (self.sums, *self.stages):
            stage.replaced(position, param)

    def removed(self, position):
        """Goes on without a parameter."""
        for stage in (self.sums, *self.stages):
            stage.removed(position)

    def reset(self):
        """Begins anew, as if no step had been made."""
        vars(self).update(dict.fromkeys(self.COUNTERS, 0))
        self.last = Step()
        self.sums.forget()
        for stage in self.stages:
            stage.reset(self.engine)

    # ---- copies and checkpoints

    COUNTERS = ("steps", "skipped", "skipped_in_a_row", "clipped")

    @property
    def slow(self):
        """The slow weights of Lookahead."""
        lookahead = self.find(Lookahead)
        return [] if lookahead is None else lookahead.slow

    def state(self):
        """What a checkpoint has of the stages; averages have checkpoints of their own."""
        sums = self.sums
        if sums.in_bound:
            raise ValueError("gradients are accumulated in the bound arrays, which no checkpoint has: step first")
        accumulated = {"accumulated": sums.taken(self.engine), "weight": sums.weight} if sums.weight else {}
        return {"slow": list(self.slow), **{name: getattr(self, name) for name in self.COUNTERS}, **accumulated}

    def set_state(self, slow, counters, accumulated=(), weight=0.0):
        for own, array in zip(self.slow, slow, strict=False):
            own[...] = array
        vars(self).update(dict.fromkeys(self.COUNTERS, 0) | counters)
        self.sums.set_state(self.engine, accumulated, weight)

    def snapshot(self):
        """What steps change: arrays and numbers. For `restore`."""
        stages = (self.sums, *self.stages)
        numbers = [(self, (*self.COUNTERS, "last")), *(pair for stage in stages for pair in stage.numbers())]
        return ([(array, array.copy()) for stage in stages for array in stage.arrays(self.engine)],
                [(owner, {name: getattr(owner, name) for name in names}) for owner, names in numbers])

    def restore(self, snapshot):
        """The reverse."""
        arrays, numbers = snapshot
        for array, values in arrays:
            array[...] = values
        for owner, values in numbers:
            for name, value in values.items():
                setattr(owner, name, value)

    def saved(self):
        """What a pickle has."""
        if self.sums.weight:
            raise ValueError("gradients are accumulated: step before copying the optimizer")
        return {"stages": self.options, "last": self.last, **self.state()}

    @classmethod
    def unset(cls, engine):
        """A pipeline without stages that the engine does not have yet."""
        pipeline = object.__new__(cls)
        pipeline.setup(engine, Stages())
        pipeline.check()
        return pipeline

    @classmethod
    def restored(cls, engine, saved):
        """The reverse of `saved`. Tables are made at the next step: an average may itself be on its way out of the
        pickle."""
        pipeline = object.__new__(cls)
        pipeline.setup(engine, saved["stages"])
        pipeline.last, pipeline.slow[:] = saved["last"], map(owned, saved["slow"])
        vars(pipeline).update({name: saved[name] for name in cls.COUNTERS})
        return pipeline

    # ---- the tables

    def check(self):
        if self.engine.method.sparse == "only":
            raise ValueError(f"{self.engine.method.__name__} has no stages: they need dense gradients")
        for stage in self.stages:
            stage.check(self.engine)

    def install(self):
        """Shows the stages to the plan, if they may be; needed again when parameters were added."""
        self.check()
        self.grow()
        plan = self.engine.plan
        adapting = [stage for stage in self.stages if stage.adapt is not None]
        kinds = list(zip(*(stage.kinds(plan) for stage in adapting), strict=True)) or [()] * len(plan)
        variants = list(dict.fromkeys(kinds))
        self.adapted = [list(zip(adapting, kind, strict=True)) for kind in variants]  # of each variant
        followers, self.places = [], []
        for stage in self.stages:
            own = stage.followers()
            if own:
                self.places.append((stage, len(followers)))
                followers += own
        plan.stage(followers, on=True, **{mark: True for stage in self.stages for mark in stage.marks})
        numbers = {kind: number for number, kind in enumerate(variants)}
        plan.set_variants([numbers[kind] for kind in kinds])
        self.sizes = np.array([max(1, param.size * (1 + (param.dtype.kind == "c"))) for param in plan.params], float)

    # ---- the step

    def advance(self, grads, clip=None, grad_scale=None, on_nonfinite=None):
        """Makes the step of `Engine.step` with the stages, or skips it."""
        plan = self.engine.plan
        if not (self.stages or self.sums.weight) and clip is None and grad_scale is None and on_nonfinite is None:
            if plan.staged:
                plan.during(plan.stage, [])
            plan.during(self.engine.make, grads, self.counted(Course(self.engine, [], Step())))
            return
        plan.during(self.checked, grads, (clip, grad_scale, on_nonfinite))
        judge = self.find(NonFinite)
        if judge is not None:
            judge.check_skips(self.skipped_in_a_row)

    def checked(self, grads, options):
        """The same, with the plan taken."""
        clip, grad_scale, on_nonfinite = options
        plan = self.engine.plan
        stages = self.for_once(clip, on_nonfinite)
        unscale = 1.0 if grad_scale is None else 1.0 / positive("grad_scale", grad_scale)
        grads, weight = self.sums.instead(self.engine, grads)
        course = Course(self.engine, stages, Step(), unscale / weight)
        for stage in stages:
            stage.begin(course)
        if not plan.staged:
            self.install()
        course.cohorts = self.engine.begin(grads)
        self.measure(course)
        for stage in stages:
            stage.judge(course)
        if course.record.skipped:
            with uninterrupted():
                for stage in (*stages, self.sums):
                    stage.skip(course)
                for target, values in self.counted(course):
                    target.update(values)
        else:
            self.make(course)

    def for_once(self, clip, on_nonfinite):
        """The stages of one step, which may be given other options."""
        stages = self.stages
        if clip is not None:
            own = Clipping(Stages(clip=clip))
            own.check(self.engine)
            stages = [own, *(stage for stage in stages if type(stage) is not Clipping)]
        if on_nonfinite is not None:
            own = NonFinite(Stages(on_nonfinite=on_nonfinite))
            first = sum(type(stage) is Clipping for stage in stages)
            stages = [*stages[:first], own, *(stage for stage in stages[first:] if type(stage) is not NonFinite)]
        return stages

    def counted(self, course):
        """What a step counts here beside its own counters: see `Plan.finish`."""
        record = course.record
        made = {"steps": self.steps + 1, "clipped": self.clipped + record.clipped,
                "skipped": self.skipped + record.skipped,
                "skipped_in_a_row": self.skipped_in_a_row + 1 if record.skipped else 0, "last": record}
        record.steps, record.skipped_steps, record.clipped_steps = made["steps"], made["skipped"], made["clipped"]
        changes = [(vars(self), made)]
        if not record.skipped:
            changes += [change for stage in (self.sums, *course.stages) for change in stage.also(course)]
        return changes

    def measure(self, course):
        """Takes the norm of the gradients, if anything needs it."""
        orders = [stage.norm for stage in course.stages if stage.norm is not None]
        if not orders:
            return
        plan, order = course.plan, orders[0]
        total = plan.powers(order, course.threads)
        if order == math.inf or is_safe(total):  # else it takes looking at the gradients
            course.norm = root(total, order)
        else:
            course.norm = norm_of([grad for _, grad in plan.taken()], order, total)
        course.order, course.record.grad_norm = order, course.unscale * course.norm
        if any(stage.by_parameter for stage in course.stages):
            course.norms = norms_of(plan.each_power(order), order, lambda: [(i, 1, grad) for i, grad in plan.taken()])

    @np.errstate(all="ignore")
    def units(self, course, cutting):
        """What stages do to single units of the gradients; None: none does anything."""
        plan = course.plan
        rows = any(stage.rows for stage in cutting)
        first = plan.divide(rows)
        units = Units(first, np.diff(first), np.zeros((first[-1], 2)))
        units.scales[:] = course.scale
        if rows:
            if course.limit:
                units.limit = course.limit / course.scale
            units.means, units.squares, units.param_squares = plan.unit_sums(
                course.threads, limit=units.limit, centers=any(stage.centers for stage in cutting),
                adapts=any(stage.adapts for stage in cutting)).T
        for stage in cutting:
            stage.each_unit(course, units)
        return units

    def make(self, course):
        """Answers the plan, and steps; before it, a rehearsal where a factor is of the whole update."""
        engine, plan, stages = course.engine, course.plan, course.stages
        course.scale = course.unscale
        for stage in stages:
            stage.before(course)
        cutting = [stage for stage in stages if stage.by_unit]
        if cutting:
            plan.use_units(self.units(course, cutting).table)
            course.scale = 1.0  # each unit has its own
        adapted = [self.adapted[variant] for variant in plan.variants()]
        answers, every = engine.answers(course.cohorts, adapted, course.scale, course.limit)
        if plan.unready:
            engine.give_missing()
        factors, scalars = self.factors(course, answers, every)
        for stage, place in self.places:
            stage.after(course, place)
        statistics = self.find(Statistics)
        norms = course.norms if course.order == 2.0 else None
        if statistics is not None:
            plan.take_sums(gradient=norms is None, param=True, update=True)
        with uninterrupted() if statistics is not None else nullcontext():
            taken = plan.run(answers, course.threads, self.counted(course), factors, scalars)
            if statistics is not None:
                if norms is not None:
                    taken[:, 0] = norms
                statistics.take(course, taken)

    @np.errstate(all="ignore")
    def factors(self, course, answers, every):
        """The factors of each parameter, and its scalars after the step: see `Engine.rehearse`."""
        asking = [stage for stage in course.stages if stage.needs]
        if not (asking or course.engine.needs):
            return None, None
        needs = tuple(need for stage in asking for need in stage.needs)
        constants = [next(filter(None, (stage.constants(*own[1:]) for stage in asking)), (0.0, 0.0)) for own in every]
        factors, scalars, sums = course.engine.rehearse(answers, every, needs, constants)
        first = 0
        for stage in asking:
            own = stage.factors(sums[:, first : first + len(stage.needs)], self.sizes)
            first += len(stage.needs)
            for name, values in own.items():
                factors[name] = factors[name] * values if name in factors else values
        return factors, scalars

    # ---- accumulation

    def accumulate(self, grads, weight):
        """Adds weighted gradients to those of the next step; None counts a micro-batch in the bound gradients."""
        self.sums.add(self.engine, grads, weight)
