"""How far float32 is from float64.

Every method and option set of fastopt.table makes the same steps in float32, with fastopt and with torch's loops
(foreach=False and foreach=True), and in float64 with the formulas of fastopt.reference. Printed is the root mean square
of what the parameters are off after them, in units in the last place of a parameter of their size, as a table for
docs/numbers.md. torch's columns are empty without torch, and where it lacks the options.
"""

import numpy as np

from ..table import METHODS
from .race import torch
from .runner import figures, table_head, table_line

SHAPE, STEPS = (40, 50), (10, 1000)
OWN = {"eps_mode", "momentum_mode"}  # options that torch lacks


def steps(count, seed=0):
    """Parameters, and `count` gradients, in float32."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(SHAPE).astype("float32"), rng.standard_normal((count, *SHAPE)).astype("float32")


def exact(method, options, param, grads):
    """The parameters after the steps in float64."""
    param, state = param.astype("float64"), {}
    for step, grad in enumerate(grads, 1):
        method.reference(param, grad, state, step, **options)
    return param


def with_fastopt(method, options, param, grads):
    param = param.copy()
    optimizer = method.optimizer([param], **options)
    for grad in grads:
        optimizer.step([grad])
    return param


def with_torch(method, options, param, grads, foreach):
    """None where torch lacks the method or the options."""
    library = torch()
    cls = library and getattr(library.optim, method.name, None)
    if not cls or OWN & set(options):
        return None
    tensor = library.tensor(param)
    how = {} if method.name == "Muon" else {"foreach": foreach}  # it has no other loop
    optimizer = cls([tensor], **options, **how)
    for grad in grads:
        tensor.grad = library.tensor(grad)
        optimizer.step()
    return tensor.numpy()


def error(param, expected):
    """The root mean square of the difference, in units in the last place."""
    if param is None:
        return None
    size = np.sqrt(np.mean(expected**2))
    return float(np.sqrt(np.mean((param - expected) ** 2)) / np.spacing(np.float32(size)))


def measured(counts=STEPS):
    """(method, options, steps, errors of fastopt, of torch's loop and of its foreach loop), row by row."""
    for method in METHODS:
        if method.closure or method.optimizer.sparse == "only":
            continue
        for options in method.variants:
            for count in counts[:1] if method.matrices_only else counts:  # which takes torch minutes
                param, grads = steps(count)
                expected = exact(method, options, param, grads)
                yield (method, options, count, error(with_fastopt(method, options, param, grads), expected),
                       *(error(with_torch(method, options, param, grads, foreach), expected)
                         for foreach in (False, True)))


def line(method, options, count, *errors):
    """One row of the table."""
    named = ", ".join(f"`{name}={value!r}`" for name, value in options.items())
    return table_line(f"`{method.name}`", named, count, *map(figures, errors))


def report(args):
    """Prints the table; returns its rows, for JSON."""
    if library := torch():
        library.set_num_threads(1)  # for arrays so small they would wait for each other
    print(table_head("method", "options", "steps", "fastopt", "torch, loop", "torch, foreach"))
    results = []
    for method, options, count, *errors in measured():
        print(line(method, options, count, *errors), flush=True)
        results.append({"method": method.name, "options": options, "steps": count}
                       | dict(zip(("fastopt", "torch loop", "torch foreach"), errors, strict=True)))
    return results
