"""The memory's own limit: passes that move the bytes of a step and hardly compute.

Each goes through the library's own walk with a rule that makes one multiplication for each element. Its factor of 1
keeps every state as it is: no number ever leaves the normal range.
"""

from ..kernels import rules
from ..kernels.plan import AS_IT_IS, Plan

STATES = 3  # arrays that the rule can have, at most


def same_traffic(params, states, grads, threads=1):
    """A function that reads the gradients, reads and writes the parameters and their state arrays."""
    plan, coefficients = made(params, states)
    plan.bind(grads)

    def step():
        plan.begin(None)
        plan.run([(AS_IT_IS, coefficients, ())], threads)

    return step


def same_traffic_whole(params, states, grads, threads=1):
    """The same with a sweep before that reads the gradients, for their norm, and with gradients that are cleared."""
    plan, coefficients = made(params, states)
    plan.stage([], on=True, zero=True)
    plan.bind(grads)

    def step():
        plan.begin(None)
        plan.powers(2.0, threads)
        plan.run([(AS_IT_IS, coefficients, ())], threads)

    return step


def same_traffic_rows(table, states):
    """The same as the first for the rows of a table that a `SparseRows` touches, which the function takes."""
    plan, coefficients = made([table], [states])
    plan.accept("only")

    def step(grad):
        plan.begin([grad])
        plan.run([(AS_IT_IS, coefficients, ())])

    return step


def made(params, states):
    """A plan over the arrays, and the coefficients of its steps."""
    plan = Plan("traffic")
    plan.extend(params, [None] * len(params), 0)
    for i, arrays in enumerate(states):
        if arrays:
            plan.set_state(i, arrays)
    count = len(states[0])
    return plan, rules.traffic(one=count > 0, two=count > 1, three=count > 2, x=1.0)
