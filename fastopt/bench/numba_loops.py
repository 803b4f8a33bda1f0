"""The methods as plain loops that Numba compiles: what a NumPy user writes who wants one pass over memory.

Each loop is the formula of one element, in the arithmetic of the arrays' dtype (fastmath is off), with the scalars of a
step computed in double before it. With more than one thread the same loop is compiled with `parallel=True`. Only this
module imports Numba; nothing is compiled before a loop is first called.

`LOOPS` has for each method its loop over (p, g, *states, *coefficients) and a function of its settings that returns a
function of the step's number: its coefficients.
"""

from functools import cache
from itertools import count
from math import sqrt

import numba
import numpy as np
from numba import prange

LANES = 2048  # elements of each of the three arrays of `divider`, which stay in an L1
LONG = 1_000_000  # elements that a call of it goes through, at least


# ---- the loops ---------------------------------------------------------------------------------

def sgd(p, g, eta):
    for i in prange(p.size):
        p[i] -= eta * g[i]


def sgd_with_momentum(p, g, b, eta, mu):
    for i in prange(p.size):
        b[i] = mu * b[i] + g[i]
        p[i] -= eta * b[i]


def adagrad(p, g, s, eta, eps):
    for i in prange(p.size):
        s[i] += g[i] * g[i]
        p[i] -= eta * g[i] / (np.sqrt(s[i]) + eps)


def rmsprop(p, g, v, eta, a, u, eps):
    for i in prange(p.size):
        v[i] = a * v[i] + u * g[i] * g[i]
        p[i] -= eta * g[i] / (np.sqrt(v[i]) + eps)


def adam(p, g, m, v, eta, b1, u1, b2, u2, eps, keep):
    for i in prange(p.size):
        m[i] = b1 * m[i] + u1 * g[i]
        v[i] = b2 * v[i] + u2 * g[i] * g[i]
        p[i] = keep * p[i] - eta * m[i] / (np.sqrt(v[i]) + eps)


def radam(p, g, m, v, eta, b1, u1, b2, u2, eps, rectified):
    if rectified:
        for i in prange(p.size):
            m[i] = b1 * m[i] + u1 * g[i]
            v[i] = b2 * v[i] + u2 * g[i] * g[i]
            p[i] -= eta * m[i] / (np.sqrt(v[i]) + eps)
    else:
        for i in prange(p.size):
            m[i] = b1 * m[i] + u1 * g[i]
            v[i] = b2 * v[i] + u2 * g[i] * g[i]
            p[i] -= eta * m[i]


def nadam(p, g, m, v, b1, u1, b2, u2, share_g, share_m, eps):
    for i in prange(p.size):
        m[i] = b1 * m[i] + u1 * g[i]
        v[i] = b2 * v[i] + u2 * g[i] * g[i]
        p[i] -= (share_g * g[i] + share_m * m[i]) / (np.sqrt(v[i]) + eps)


def adamax(p, g, m, w, eta, b1, u1, b2, eps):
    for i in prange(p.size):
        m[i] = b1 * m[i] + u1 * g[i]
        w[i] = max(b2 * w[i], abs(g[i]) + eps)
        p[i] -= eta * m[i] / w[i]


def adadelta(p, g, v, a, eta, rho, u, eps):
    for i in prange(p.size):
        v[i] = rho * v[i] + u * g[i] * g[i]
        delta = np.sqrt(a[i] + eps) / np.sqrt(v[i] + eps) * g[i]
        a[i] = rho * a[i] + u * delta * delta
        p[i] -= eta * delta


def asgd(p, g, average, eta, keep):
    for i in prange(p.size):
        p[i] = keep * p[i] - eta * g[i]
        average[i] = p[i]  # until step t0


def rprop(p, g, previous, z, less, more, least, most, one, zero):
    for i in prange(p.size):
        turn = g[i] * previous[i]
        size = z[i] * (more if turn > zero else less if turn < zero else one)
        z[i] = min(max(size, least), most)
        h = zero if turn < zero else g[i]
        p[i] -= z[i] if h > zero else -z[i] if h < zero else h
        previous[i] = h


def roots_over(out, x, y, elements):
    for _ in range(elements // out.size):
        for j in range(out.size):
            out[j] = np.sqrt(x[j]) / y[j]


def roots_over_roots(out, x, y, elements):
    for _ in range(elements // out.size):
        for j in range(out.size):
            out[j] = np.sqrt(x[j]) / np.sqrt(y[j])


# ---- their coefficients ------------------------------------------------------------------------

def of_sgd(lr, momentum, **_):
    return lambda number: (lr, momentum) if momentum else (lr,)


def of_adagrad(lr, eps, **_):
    return lambda number: (lr, eps)


def of_rmsprop(lr, alpha, eps, **_):
    return lambda number: (lr, alpha, 1 - alpha, eps)


def of_adam(lr, betas, eps, weight_decay=0.0, **_):
    b1, b2 = betas

    def coefficients(number):
        root = sqrt(1 - b2**number)
        return lr * root / (1 - b1**number), b1, 1 - b1, b2, 1 - b2, eps * root, 1 - lr * weight_decay

    return coefficients


def of_radam(lr, betas, eps, **_):
    b1, b2 = betas
    longest = 2 / (1 - b2) - 1

    def coefficients(number):
        rest = 1 - b2**number
        rho = longest - 2 * number * b2**number / rest
        eta = lr / (1 - b1**number)
        if rho > 5:
            eta *= sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho) * rest)
        return eta, b1, 1 - b1, b2, 1 - b2, eps, rho > 5

    return coefficients


def of_nadam(lr, betas, eps, momentum_decay, **_):
    b1, b2 = betas
    products = [1.0]

    def mu(number):
        return b1 * (1 - 0.5 * 0.96 ** (number * momentum_decay))

    def coefficients(number):
        while len(products) <= number:
            products.append(products[-1] * mu(len(products)))
        product, following, root = products[number], mu(number + 1), sqrt(1 - b2**number)
        return (b1, 1 - b1, b2, 1 - b2, lr * root * (1 - mu(number)) / (1 - product),
                lr * root * following / (1 - product * following), eps * root)

    return coefficients


def of_adamax(lr, betas, eps, **_):
    return lambda number: (lr / (1 - betas[0]**number), betas[0], 1 - betas[0], betas[1], eps)


def of_adadelta(lr, rho, eps, **_):
    return lambda number: (lr, rho, 1 - rho, eps)


def of_asgd(lr, lambd, alpha, **_):
    def coefficients(number):
        eta = lr / (1 + lambd * lr * (number - 1)) ** alpha
        return eta, 1 - lambd * eta

    return coefficients


def of_rprop(etas, step_sizes, **_):
    return lambda number: (*etas, *step_sizes, 1.0, 0.0)


LOOPS = {
    "SGD": (sgd, of_sgd),
    "SGD momentum=0.9": (sgd_with_momentum, of_sgd),
    "Adagrad": (adagrad, of_adagrad),
    "RMSprop": (rmsprop, of_rmsprop),
    "Adam": (adam, of_adam),
    "AdamW": (adam, of_adam),
    "RAdam": (radam, of_radam),
    "NAdam": (nadam, of_nadam),
    "Adamax": (adamax, of_adamax),
    "Adadelta": (adadelta, of_adadelta),
    "ASGD": (asgd, of_asgd),
    "Rprop": (rprop, of_rprop),
}


# method: what it asks of the unit that divides and takes roots, for each element
ROOTS = dict.fromkeys(("Adagrad", "RMSprop", "Adam", "AdamW", "RAdam", "NAdam"), roots_over)
ROOTS["Adadelta"] = roots_over_roots


@cache
def compiled(loop, parallel=False):
    return numba.njit(loop, parallel=parallel, fastmath=False, error_model="numpy")


def step(row, params, grads, states, threads=1):
    """A function that makes the next step of a row; the first has been made."""
    plain, of = LOOPS[row.name]
    loop, coefficients, numbers = compiled(plain, threads > 1), of(**row.settings), count(2)
    scalar = params[0].dtype.type
    arrays = list(zip(params, grads, *zip(*states, strict=True), strict=True))

    def step():
        given = [value if type(value) is bool else scalar(value) for value in coefficients(next(numbers))]
        for one in arrays:
            loop(*one, *given)

    return step


def divider(name, elements, dtype):
    """(function, n): it makes the divisions and roots of n steps of a method on one thread; None if it has none.

    Their arguments stay in the L1, and hardly anything else is done: no loop that makes as many is faster.
    """
    if name not in ROOTS:
        return None
    length = min(elements, LANES)
    loop, steps = compiled(ROOTS[name]), -(-LONG // elements)
    out, x, y = (np.full(length, value, dtype) for value in (0.0, 3.0, 7.0))
    return lambda: loop(out, x, y, elements * steps), steps
