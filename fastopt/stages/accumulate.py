"""Gradients of micro-batches that are summed until the next step."""

from ..checks import one_of, positive
from .stage import Stage


class Accumulate(Stage):
    """Every pipeline has one. Sums are taken into arrays of its own, or by whoever has bound the gradients."""

    options = {"accumulation": one_of("mean", "sum")}

    def __init__(self, options):
        self.mean = options.accumulation == "mean"
        self.sum = None  # an engine whose parameters are the sums
        self.weight, self.in_bound = 0.0, False

    def take_over(self, before):
        if before.weight:
            raise ValueError("gradients are accumulated that the stages set before have not stepped with")

    def replaced(self, position, param):
        self.sum = None

    def removed(self, position):
        self.sum = None

    def arrays(self, engine):
        if not self.in_bound:
            return []
        return [array for array in engine.plan.bound_gradients if array is not None and array.flags.writeable]

    def numbers(self):
        return [(self, ("sum", "weight", "in_bound"))]

    # ---- micro-batches

    def add(self, engine, grads, weight):
        """Adds weighted gradients; None counts a micro-batch in the bound ones."""
        plan, weight = engine.plan, positive("weight", weight)
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
            self.ready(engine)
            self.sum._num_threads = engine._num_threads
            self.sum.plan.during(self.add_to_sum, grads, weight)

    def add_to_sum(self, grads, weight):
        for group in self.sum.groups:
            group.settings = weight
        self.sum.make(grads, [(vars(self), {"weight": self.weight + weight})])

    def ready(self, engine):
        """Makes the arrays that are summed into, for every parameter."""
        self.sum = engine.summing(self.sum)

    def taken(self, engine):
        """The gradients that were accumulated: None are those bound."""
        if self.in_bound:
            return None
        sums = self.sum.plan
        given = [array if sums.get_step(i) else None for i, array in enumerate(sums.params)]
        return given + [None] * (len(engine.plan) - len(given))  # of parameters that were added since

    def forget(self):
        """Begins a new accumulation."""
        self.weight, self.in_bound = 0.0, False
        if self.sum is not None:
            for i in range(len(self.sum.plan)):
                self.sum.plan.set_step(i, 0)

    def set_aside(self):
        """Begins a new accumulation; the old one is in a snapshot."""
        self.sum, self.weight, self.in_bound = None, 0.0, False

    # ---- the step

    def instead(self, engine, grads):
        """(gradients, what to divide them by) of a step that was given these gradients."""
        if not self.weight:
            return grads, 1.0
        if grads is not None:
            raise ValueError("step() takes no grads after accumulate(): give them to accumulate() too")
        return self.taken(engine), self.weight if self.mean else 1.0

    def also(self, course):
        changes = [(vars(self), {"weight": 0.0, "in_bound": False})] if self.weight else []
        return changes + ([(self.sum.plan, None)] if changes and self.sum is not None else [])

    def skip(self, course):
        self.forget()

    def set_state(self, engine, accumulated, weight):
        """Takes what a checkpoint has: a sum or None for each parameter."""
        self.forget()
        if weight:
            self.ready(engine)
            for i, array in enumerate(accumulated):
                if array is not None:
                    self.sum.plan.params[i][...] = array
                    self.sum.plan.set_step(i, 1)
            self.weight = weight
