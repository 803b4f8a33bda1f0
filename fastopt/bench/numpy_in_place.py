"""The methods in NumPy's in-place arithmetic, as fast as NumPy goes: the contender that needs no compiler.

No array is allocated in a step: the scratch is made once. Constants are 0-d arrays, because NumPy takes twice
as long for a call with a Python float. The state is the method's own, as in `fastopt.reference`.

Each function of `METHODS` takes what `cut` made and returns the function that makes one step; its keywords
are the hyperparameters it knows.
"""

import inspect
from itertools import count
from math import sqrt

import numpy as np
from numpy import add, divide, multiply, subtract

BLOCK = 32_768  # elements: a block's arrays and the scratch stay in an L2 of 1 MB; the fastest of 4k to 128k


def cut(params, grads, states, block=None):
    """Tuples (p, g, *states, scratch): one for each array, or for each block of it."""
    longest = max(map(len, params))
    length = min(block or longest, longest)
    scratch = np.empty(length, params[0].dtype)
    parts = []
    for arrays in zip(params, grads, *zip(*states, strict=True), strict=True):
        for start in range(0, len(arrays[0]), length):
            views = [array[start : start + length] for array in arrays]
            parts.append((*views, scratch[: len(views[0])]))
    return parts


def constants(parts, *values):
    return [np.array(value, parts[0][0].dtype) for value in values]


def find(row):
    """The step maker of a row, None if there is none for its method or its options."""
    method = METHODS.get(row.method.name)
    if method is None:
        return None
    known = set(inspect.signature(method).parameters) - {"parts"}
    if any(value != row.method.options[name] for name, value in row.options.items() if name not in known):
        return None
    hyperparameters = {name: value for name, value in row.settings.items() if name in known}
    return lambda parts: method(parts, **hyperparameters)


def sgd(parts, *, lr, momentum):
    eta, mu = constants(parts, lr, momentum)

    def plain():
        for p, g, t in parts:
            multiply(g, eta, t)
            subtract(p, t, p)

    def with_momentum():
        for p, g, b, t in parts:
            multiply(b, mu, b)
            add(b, g, b)
            multiply(b, eta, t)
            subtract(p, t, p)

    return with_momentum if momentum else plain


def adagrad(parts, *, lr, eps):
    eta, epsilon = constants(parts, lr, eps)

    def step():
        for p, g, s, t in parts:
            multiply(g, g, t)
            add(s, t, s)
            np.sqrt(s, t)
            add(t, epsilon, t)
            divide(g, t, t)
            multiply(t, eta, t)
            subtract(p, t, p)

    return step


def rmsprop(parts, *, lr, alpha, eps):
    eta, a, beta, epsilon = constants(parts, lr, alpha, 1 - alpha, eps)

    def step():
        for p, g, v, t in parts:
            multiply(g, g, t)
            multiply(t, beta, t)
            multiply(v, a, v)
            add(v, t, v)
            np.sqrt(v, t)
            add(t, epsilon, t)
            divide(g, t, t)
            multiply(t, eta, t)
            subtract(p, t, p)

    return step


def adam(parts, *, lr, betas, eps, decay=0.0):
    numbers = count(2)
    b1, u1, b2, u2 = constants(parts, betas[0], 1 - betas[0], betas[1], 1 - betas[1])

    def step():
        # the bias corrections join the step size and epsilon: no pass of their own
        number = next(numbers)
        root2 = sqrt(1 - betas[1] ** number)
        eta = lr * root2 / (1 - betas[0] ** number)
        eta, epsilon, keep = constants(parts, eta, eps * root2, 1 - lr * decay)
        for p, g, m, v, t in parts:
            multiply(m, b1, m)
            multiply(g, u1, t)
            add(m, t, m)
            multiply(g, g, t)
            multiply(t, u2, t)
            multiply(v, b2, v)
            add(v, t, v)
            np.sqrt(v, t)
            add(t, epsilon, t)
            divide(m, t, t)
            multiply(t, eta, t)
            if decay:
                multiply(p, keep, p)
            subtract(p, t, p)

    return step


def adamw(parts, *, lr, betas, eps, weight_decay):
    return adam(parts, lr=lr, betas=betas, eps=eps, decay=weight_decay)


METHODS = {"SGD": sgd, "Adagrad": adagrad, "RMSprop": rmsprop, "Adam": adam, "AdamW": adamw}
