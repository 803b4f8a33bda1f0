"""Every schedule once, as a pure function of the step in closed form and double precision.

A schedule is called with the number of steps made so far, from 0 (fractions of a step are allowed, negative steps
are errors), and returns a value. Any hyperparameter of an optimizer may be one. Names and arguments are optax's
where optax has the schedule. A schedule compares equal to another with the same arguments, prints as the call that
makes it, can be pickled, computes whole arrays of steps, and can be added, multiplied, shifted, joined and so on.

>>> from fastopt import schedules
>>> rate = schedules.linear_schedule(1.0, 0.0, transition_steps=4)
>>> [rate(step) for step in range(6)]
[1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
>>> schedules.warmup(0.1 * rate, 2).preview(7)
array([0.   , 0.05 , 0.1  , 0.075, 0.05 , 0.025, 0.   ])
"""

from .core import (
    Schedule,
    add,
    as_schedule,
    clamp,
    compose,
    constant_schedule,
    divide,
    function_schedule,
    linear_schedule,
    maximum,
    minimum,
    multiply,
    schedule,
    shift,
    subtract,
)
from .cycles import (
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    cyclic_schedule,
    linear_onecycle_schedule,
    onecycle_schedule,
)
from .decays import (
    cosine_annealing_schedule,
    cosine_decay_schedule,
    cosine_k_decay_schedule,
    exponential_decay,
    inverse_sqrt_schedule,
    inverse_time_decay,
    noam_schedule,
    polynomial_schedule,
    rex_schedule,
    tanh_decay_schedule,
)
from .pieces import (
    join_schedules,
    multistep_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    sgdr_schedule,
    warmup,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

__all__ = [
    "Schedule",
    "add",
    "as_schedule",
    "clamp",
    "compose",
    "constant_schedule",
    "cosine_annealing_schedule",
    "cosine_decay_schedule",
    "cosine_k_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cyclic_schedule",
    "divide",
    "exponential_decay",
    "function_schedule",
    "inverse_sqrt_schedule",
    "inverse_time_decay",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "maximum",
    "minimum",
    "multiply",
    "multistep_schedule",
    "noam_schedule",
    "onecycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "rex_schedule",
    "schedule",
    "sgdr_schedule",
    "shift",
    "subtract",
    "tanh_decay_schedule",
    "warmup",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
]

for _name in __all__:  # what pickles and help() say does not depend on the file
    globals()[_name].__module__ = "fastopt.schedules"
