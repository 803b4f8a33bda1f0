"""Engine: the one place where a step is made."""

from typing import ClassVar
from weakref import WeakMethod

import numpy as np

from ..interrupts import uninterrupted
from ..kernels import rules
from ..kernels.arrays import full_like
from ..kernels.plan import AS_IT_IS, Plan
from ..kernels.threads import Threaded
from ..kernels.watched import Settled, changed, unchanged
from .checkpoint import match_state, pack_state
from .method import Method
from .settings import at, is_schedule, lasts

REHEARSED = "prepared", "update", "move", "after"  # operands of sums, which factors of the gradient change


class Group(Settled):
    """A group of parameters, and what its options came to when they were last read.

    Attributes, beside those of `Settled`:
        method: what steps it.
        params: the list of parameters in it, to notice a replacement.
        positions: where its parameters stand in the plan.
        slots: the state arrays that its parameters have.
        turn: in which turn of the plan they were read, so that a schedule is called once in each.
    """

    __slots__ = ("known", "method", "params", "positions", "slots", "turn", "values")

    def __init__(self, method, options, positions):
        self.method, self.coefficients = method, method.coefficients
        self.options, self.params, self.positions = options, options.get("params"), list(positions)
        self.forget()

    def forget(self):
        """Lets the options be read anew at the next step."""
        self.settings = self.prepare = self.later = self.slots = self.turn = None
        self.seen = None  # the values of `options` then; None: read them at every step
        self.known, self.values = {}, {}  # the options then, and the settings of those that do not change by themselves


class Engine(Threaded):
    """Steps groups of parameters, each by a method: it has their plan, their settings, their state and the stages.

    It knows a parameter by its position; what it is called and what it was given in is for those who have an engine.
    The rules of all methods are stepped in one pass. A method without a rule steps its parameters in NumPy, one after
    the other: see `WholeOptimizer`.
    """

    def __init__(self, method):
        self.method = method  # of groups that have no other, and of the stages
        self.groups: list[Group] = []
        self.arrays: list[dict[str, np.ndarray]] = []  # per parameter: slot -> state array
        self.pipeline = None  # the stages of a step, where some were set
        self.regrouped: set[Group] = set()  # groups whose options changed which state arrays they have
        self.touched: dict = {}  # position -> after how many steps, and the rows that `method.carried` moves on
        self.rate_now = False  # True: where the last step leaves a rate for this one, that of the settings now counts
        self.works: dict = {}  # method without a rule -> what it works in
        self.needs: tuple = ()  # sums that factors of the methods are made of
        self.plan = self.new_plan()

    def new_plan(self):
        method = self.method
        plan = Plan(method.rule, scalars=len(method.scalar_slots), shared=method.scalars_shared,
                    rehearsed=bool(method.needs))
        plan.accept(self.method.sparse, WeakMethod(self.sparse_rows))  # no cycle: memory goes with the engine
        return plan

    @property
    def parts(self):
        """The engines that have the state."""
        return [self]

    @property
    def steps(self):
        """Steps made so far."""
        return self.plan.steps

    # ---- parameters

    def group_of(self, position):
        """The number of a parameter's group."""
        return self.plan.group(position)

    def method_of(self, position):
        """What steps a parameter."""
        return self.groups[self.plan.group(position)].method

    def add(self, params, names, options):
        """Takes the parameters of a group in."""
        self.add_groups(params, names, [(self.method, options, range(len(params)))])

    def add_groups(self, params, names, groups):
        """Takes parameters of several groups in: (method, options, positions among these parameters)."""
        first, numbers = len(self.plan), [0] * len(params)
        for number, (_, _, positions) in enumerate(groups, len(self.groups)):
            for position in positions:
                numbers[position] = number
        self.plan.extend(params, names, numbers)
        for method, options, positions in groups:
            self.groups.append(Group(method, options, [first + position for position in positions]))
            if method.whole and method not in self.works:
                self.works[method] = method.new_work(self.plan.level)
            self.needs = tuple(dict.fromkeys((*self.needs, *method.needs)))
        self.arrays += [{} for _ in params]

    def add_given(self, params, names):
        """The same, where whoever steps gives the settings of the group anew."""
        self.add(params, names, {})
        group = self.groups[-1]
        group.prepare, group.seen = AS_IT_IS, []

    def replace(self, position, param, arrays, step):
        """Puts another array in the place of a parameter, with this state."""
        scalars = self.plan.get_scalars(position)
        self.plan.replace(position, param)
        self.plan.set_step(position, step)
        self.plan.set_scalars(position, scalars)
        self.arrays[position] = arrays
        self.touched.pop(position, None)
        if self.pipeline is not None:
            self.pipeline.replaced(position, param)
        self.states_changed()

    def without(self, position):
        """A plan without a parameter, for `remove`."""
        before, plan = self.plan, self.new_plan()
        places = [place for place in range(len(before)) if place != position]
        plan.extend([before.params[place] for place in places], [before.names[place] for place in places],
                    [before.group(place) for place in places])
        for i, place in enumerate(places):
            plan.set_step(i, before.get_step(place))
            plan.set_scalars(i, before.get_scalars(place))
        plan.steps = before.steps
        return plan

    def remove(self, position, plan):
        """Goes on with a plan that has one parameter less."""
        self.plan = plan
        del self.arrays[position]
        for group in self.groups:
            group.positions[:] = [place - (place > position) for place in group.positions if place != position]
        self.forget()
        if self.pipeline is not None:
            self.pipeline.removed(position)
        self.states_changed()

    # ---- settings

    def forget(self):
        """Lets every group be read anew at the next step; called when groups or state were replaced."""
        for group in self.groups:
            group.forget()
        self.regrouped.clear()
        self.touched = {}

    def check(self, options):
        """Raises if hyperparameters of a group to be are wrong, as far as can be known before their schedules run."""
        checks = self.method.hyperparameters
        settings = {name: check(name, options[name]) for name, check in checks.items()
                    if not is_schedule(options[name])}
        if len(settings) == len(checks):
            self.method.check_settings(settings)

    def read(self, group):
        """Makes the settings of the step to come from the options of a group, if any is another than before."""
        if not unchanged(group.options, group.seen) and group.turn != self.plan.turns:
            self.read_anew(group)
        return group

    def read_anew(self, group):
        """The same, where one is."""
        method, options = group.method, group.options
        rate_only = changed(options, group.seen) == ["lr"] and type(options["lr"]) is float
        if rate_only:  # as after each step of a scheduler; no state array depends on it
            settings, lasting = {**group.settings, "lr": method.hyperparameters["lr"]("lr", options["lr"])}, True
        else:
            settings, lasting = self.checked(group)
        method.check_settings(settings)
        prepare = group.prepare
        if not rate_only or method.decouples:  # the decoupled decay goes with the rate
            prepare = method.prepared(settings)
        group.later = (prepare, method.coefficients(settings, 2), ()) if method.settles else None
        group.settings, group.prepare = settings, prepare
        group.seen, group.turn = list(options.values()) if lasting else None, self.plan.turns
        if not rate_only:
            slots = tuple(method.slots(settings))
            if slots != group.slots:
                group.slots = slots
                self.regrouped.add(group)

    def checked(self, group):
        """The settings of a group, and whether they last; a value is checked again only if it is another object."""
        options = group.options
        if options.get("params") is not group.params:
            self.plan.look_again()
        settings, values = {}, {}
        for name, check in group.method.hyperparameters.items():
            if name not in options:
                raise ValueError(f"param_groups[{self.groups.index(group)}] lacks {name!r}")
            value = options[name]
            if name in group.values and value is group.known[name]:
                settings[name] = values[name] = group.values[name]
                continue
            settings[name] = check(name, at(value, self.plan.steps))
            if lasts(value):  # a list or array can change in place without a trace, and is read at every step
                values[name] = settings[name]
        group.known, group.values = dict(options), values
        return settings, len(values) == len(settings)

    # ---- state

    def repoint(self):
        """Gives parameters of groups whose options changed the slots that they have now, all or none.

        Returns whether some of them begin to count their steps anew.
        """
        restarted = False
        for group in [group for group in self.groups if group in self.regrouped]:
            restarted |= self.give_states([position for position in group.positions if self.plan.has_state(position)])
            self.regrouped.discard(group)
        return restarted

    def give_missing(self):
        """Makes, or shows, the state of the parameters that step for the first time."""
        missing = self.plan.missing()
        loaded = any(self.arrays[position] for position in missing)
        self.give_states(missing)
        if loaded:  # the plan has not known it until now, and a gradient may lie in it
            self.plan.check_apart()

    def give_states(self, positions):
        """Makes the state arrays that parameters lack, all or none, and shows them to the plan.

        Returns whether a parameter begins to count its steps anew.
        """
        plan, made, restarted = self.plan, [], False
        for position in positions:
            group, arrays = self.groups[plan.group(position)], self.arrays[position]
            if group.method.whole:
                continue
            slots = group.method.slots(group.settings)
            made.append((position, slots, {name: full_like(plan.params[position], value)
                                           for name, value in slots.items() if name not in arrays}))
        for position, slots, new in made:
            arrays, method = self.arrays[position], self.method_of(position)
            if new and not method.counts_steps and plan.get_step(position):
                plan.set_step(position, 0)  # a buffer made now starts from its first gradient
                restarted = True
            arrays.update(new)
            plan.set_state(position, [arrays[name] if name in slots else None for name in method.state_slots])
        return restarted

    def has_state(self, position):
        return self.plan.get_step(position) > 0 or bool(self.arrays[position])

    def get_scalars(self, position):
        """The numbers that a parameter has beside its state arrays."""
        return self.plan.get_scalars(position)

    def states_changed(self):
        """Shows the plan the state that it does not hold itself: called when other arrays are the state, or stages."""
        if self.works or self.method.rule is None:
            stages = self.pipeline.written() if self.pipeline is not None else []
            self.plan.guard(stages + [(position, array) for group in self.groups if group.method.whole
                                      for position in group.positions for array in self.arrays[position].values()])

    def pack_state(self, position, settings):
        """The state of a parameter in torch's layout; empty: it has none."""
        return pack_state(self, position, settings)

    def match_state(self, position, entries, settings):
        """The reverse: a step count, scalars and arrays of its own."""
        return match_state(self, position, entries, settings)

    def reset(self):
        """Forgets all state and step counts."""
        for position in range(len(self.plan)):
            self.plan.drop_state(position)
            self.arrays[position] = {}
        self.forget()
        self.states_changed()
        self.plan.steps = 0
        if self.pipeline is not None:
            self.pipeline.reset()

    def count_from(self, count):
        """Sets the steps made so far, of every parameter that has a state too."""
        for position in range(len(self.plan)):
            if self.has_state(position):
                self.plan.set_step(position, count)
        self.plan.steps = count

    def get_states(self):
        """For each parameter its step count, scalars and state arrays, live; and the steps made."""
        plan = self.plan
        return [(plan.get_step(position), plan.get_scalars(position), self.arrays[position])
                for position in range(len(plan))], plan.steps

    def set_states(self, states, count):
        """The reverse."""
        for position, (step, scalars, arrays) in enumerate(states):
            self.plan.drop_state(position)
            self.plan.set_step(position, step)
            self.plan.set_scalars(position, scalars)
            self.arrays[position] = arrays
        self.forget()
        self.plan.steps = count
        self.states_changed()

    # ---- the step

    def step(self, grads, **options):
        """Makes a step, with a list of one gradient for each parameter, or (None) with the bound ones.

        `options`: those of `Optimizer.step` that need stages.
        """
        if self.pipeline is None and not options:
            self.plan.step(grads, self, self._num_threads)  # nobody else, and nothing that this calls, changes it
        else:
            self.stages().advance(grads, **options)

    def make(self, grads, then=None, after=None):
        """Makes a step without stages; the plan is taken. `then`: what else it counts, see `Plan.finish`.

        With a method without a rule, `after` is called when the parameters are stepped.
        """
        plan = self.plan
        while True:
            cohorts = plan.begin(grads)
            for index, _, _ in cohorts:
                self.read(self.groups[index])
            if not (self.regrouped and self.repoint()):  # else some parameters start their count anew
                break
        answers = [self.answer(*cohort) for cohort in cohorts]
        if plan.unready:
            self.give_missing()
        if self.works or after is not None:
            self.make_whole(answers, then, after)
        elif self.needs:
            every = [(self.groups[index].method, self.groups[index].settings, step) for index, step, _ in cohorts]
            factors, scalars, _ = self.rehearse(answers, every)
            plan.run(answers, self._num_threads, then, factors, scalars)
        else:
            plan.run(answers, self._num_threads, then)

    def make_given(self, grads, prepare, rule, then=None):
        """Makes a step with the same answer to every cohort, which whoever steps gives; the plan is taken."""
        plan = self.plan
        plan.run([(prepare, rule, ())] * len(plan.begin(grads)), self._num_threads, then)

    def make_whole(self, answers, then, after):
        """The rest of a step of which some parameters are stepped in NumPy."""
        plan, work = self.plan, []
        for position, grad in plan.taken():
            group, param = self.groups[plan.group(position)], plan.params[position]
            if group.method.whole:
                state = self.arrays[position] or group.method.new_state(param, group.settings)
                group.method.prepare(self.works[group.method], param)
                work.append((group, position, param, grad, state, plan.get_step(position) + 1))
        # a warning that is an error, or np.seterr, must not end a step half way
        with uninterrupted(), np.errstate(all="ignore"):
            plan.run_plain(answers, self._num_threads, then)
            new = [(position, state) for _, position, _, _, state, _ in work if not self.arrays[position]]
            for position, state in new:
                self.arrays[position] = state
            if new:
                self.states_changed()
            for group, _, param, grad, state, step in work:
                group.method.update(self.works[group.method], param, grad, state, group.settings, step)
            if after is not None:
                after()

    def answer(self, index, step, scalars):
        """What a cohort of the plan has in a step: see `Plan.run`; None if its parameters have to get other slots."""
        group = self.read(self.groups[index])
        if self.regrouped:
            return None
        if step > 1 and group.later:
            return group.later
        if scalars:
            return group.prepare, *self.with_scalars(group.settings, step, scalars)
        return group.prepare, group.coefficients(group.settings, step), ()

    def begin(self, grads):
        """Begins a step with stages: its cohorts as (group, step, scalars)."""
        while True:
            cohorts = [(self.read(self.groups[index]), step, scalars)
                       for index, step, scalars in self.plan.begin(grads)]
            if not (self.regrouped and self.repoint()):
                return cohorts

    def with_scalars(self, settings, step, scalars):
        """The coefficients of a step, and the scalars after it, of a method that has some."""
        method = self.method
        if step == 1:
            scalars = method.scalars(settings)
        elif self.rate_now and method.rate_ahead:
            scalars = method.advance(settings, step - 1, scalars)
        return method.coefficients(settings, step, scalars), method.advance(settings, step, scalars)

    def answers(self, cohorts, adapted, scale, limit):
        """What the plan is answered of cohorts, in a step with stages, and the settings that this comes from.

        `adapted`: for each cohort the stages that make other settings of them, and with what: see `Pipeline.install`.
        `scale`, `limit`: of the gradients.
        """
        answers, every = [], []
        for (group, step, scalars), stages in zip(cohorts, adapted, strict=True):
            settings, prepare = group.settings, group.prepare
            if stages:
                settings = dict(settings)
                for stage, kind in stages:
                    stage.adapt(settings, kind)
                prepare = group.method.prepared(settings)
            if scalars:
                coefficients, after = self.with_scalars(settings, step, scalars)
            else:
                coefficients, after = group.coefficients(settings, step), scalars
            sign, coupled, decay, _ = prepare
            answers.append(((sign * scale, coupled, decay, limit), coefficients, after))
            every.append((group.method, settings, step))
        return answers, every

    def rehearse(self, answers, every, needs=(), constants=None):
        """(factors of each parameter, its scalars after the step, the sums that others need), of a step to be made.

        See `Plan.run` and `Plan.measure`. `every` has for each cohort its method, settings and step.
        """
        plan, own, threads = self.plan, self.needs, self.num_threads
        if not own:
            return {}, None, plan.measure(answers, needs, threads, constants=constants)
        if needs and any(operand.startswith(REHEARSED) for _, *operands in own for operand in operands):
            sums = plan.measure(answers, (*own, *needs), threads, constants=constants)
            return *self.factors(sums, every), sums[:, len(own) :]
        factors, scalars = self.factors(plan.measure(answers, own, threads), every)
        others = None
        if needs:  # those see what comes of the factors
            others = plan.measure(answers, needs, threads, constants=constants, factors=factors)
        return factors, scalars, others

    @np.errstate(all="ignore")
    def factors(self, sums, every):
        """The factors of each parameter, and its scalars after the step."""
        plan, columns = self.plan, dict(zip(self.needs, sums.T, strict=False))
        cohorts, numbers = plan.cohorts_of(), ()
        scalars = None if self.method.scalars_shared else plan.every_scalar()
        factors: dict[str, np.ndarray] = {}
        for k, (method, settings, step) in enumerate(every):
            which = slice(None) if cohorts is None else np.flatnonzero(cohorts == k)
            if scalars is not None:
                numbers = scalars[which].T
            made = method.factors(settings, step, [columns[need][which] for need in method.needs], numbers)
            if cohorts is None:
                return made, scalars
            for name, values in made.items():
                factors.setdefault(name, np.ones(len(sums)))[which] = values
            if scalars is not None:
                scalars[which] = numbers.T
        return factors, scalars

    def sparse_rows(self, position, gradient):
        """Checks a sparse gradient against the options, and returns the one to step with."""
        plan, method = self.plan, self.method
        index = plan.group(position)
        options = self.groups[index].options
        if method.decays and at(options["weight_decay"], plan.steps):
            raise ValueError(f"group {index} has weight_decay, which is not possible with sparse gradients")
        slot = method.carried(options, plan.steps)
        if slot is None:
            return gradient
        # the rows that were touched are all that have a buffer, as in torch
        steps, buffer = plan.get_step(position), self.arrays[position].get(slot)
        known, touched = self.touched.get(position, (None, ()))
        if known != steps or plan.exposed(position):  # a dense step, a loaded state, or somebody may have written to it
            touched = () if buffer is None else np.flatnonzero(buffer.any(axis=tuple(range(1, buffer.ndim))))
        touched = np.union1d(touched, gradient.indices).astype(np.int64, copy=False)
        plan.note(self.touched, {position: (steps + 1, touched)})
        return gradient.over(touched)

    # ---- stages beside the rule

    def stages(self):
        """The pipeline; made now if there is none."""
        if self.pipeline is None:
            from ..stages.options import Stages

            self.plan.during(self.set_stages, Stages())
        return self.pipeline

    def set_stages(self, stages):
        """Sets the stages; the plan is taken."""
        self.pipeline = self.pipelines()(self, stages, self.pipeline)
        self.states_changed()

    def pipelines(self):
        """The class of this method's stages."""
        if self.works or self.method.rule is None:
            from .whole_stages import WholePipeline

            return WholePipeline
        from ..stages.pipeline import Pipeline

        return Pipeline

    def adopt_stages(self, stages):
        """Takes what `match_stages` made of a checkpoint."""
        if stages is not None:
            self.pipeline, state = stages
            self.pipeline.set_state(*state)

    def restore_stages(self, saved):
        """Takes the stages of a pickle."""
        self.pipeline = self.pipelines().restored(self, saved)

    def accumulate(self, grads, weight):
        """Adds the gradients of a micro-batch, in the form of `step`, to those of the next step."""
        self.plan.during(self.stages().accumulate, grads, weight)


    def summing(self, sums=None):
        """An engine whose parameters are sums of this one's gradients: `sums`, if it is there, made to have all."""
        if sums is None:
            sums = Engine(Accumulation)
        new = slice(len(sums.plan), None)
        params = [full_like(param, 0.0) for param in self.plan.params[new]]
        if params:
            with uninterrupted():
                sums.add_given(params, self.plan.names[new])
        return sums


class Accumulation(Method):
    """Adds weighted gradients to their sum, which is the parameter. The settings are the weight."""

    rule = "accumulate"
    decays = False
    hyperparameters: ClassVar = {}
    state_slots = ()

    @staticmethod
    def slots(settings):
        return {}

    @staticmethod
    def coefficients(settings, step):
        return rules.accumulate(first=step == 1, w=settings)


class Front:
    """What has an engine, `_engine`, for its user."""

    _engine: Engine

    @property
    def _plan(self):
        return self._engine.plan

    @property
    def num_threads(self) -> int | None:
        """How many threads a step or an update may use; None (the default) is `fastopt.get_num_threads()`."""
        return self._engine.num_threads

    @num_threads.setter
    def num_threads(self, n: int | None) -> None:
        self._engine.num_threads = n
