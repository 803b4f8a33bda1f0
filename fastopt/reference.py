"""Every rule again in plain NumPy: the oracle of the tests, documentation, and a baseline.

Each function steps one parameter in place: `rule(param, grad, state, step, **hyperparameters)`. `state` is a
dict, empty before the first step; `step` is 1 at the first step. Formulas and defaults are torch.optim's;
arithmetic is in the dtype of `param`. Nothing is checked: see `fastopt.functional` for that.

>>> import numpy as np
>>> w, state = np.array([1.0, 2.0]), {}
>>> adam(w, np.array([1.0, -3.0]), state, step=1, lr=0.1)
>>> w.round(6)
array([0.9, 2.1])
"""

import numpy as np


def prepared(param, grad, maximize, weight_decay):
    g = grad.astype(param.dtype)
    if maximize:
        g = -g
    if weight_decay:
        g = g + weight_decay * param
    return g


def slot(state, name, param, value=0.0):
    return state.setdefault(name, np.full_like(param, value))


def sgd(param, grad, state, step, *, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
        maximize=False, momentum_mode="torch"):
    g = prepared(param, grad, maximize, weight_decay)
    if momentum:
        first = "momentum_buffer" not in state
        b = slot(state, "momentum_buffer", param)
        share = 1.0 if first else 1 - dampening
        if momentum_mode == "classic":
            b[...] = momentum * b - lr * share * g
            param += momentum * b - lr * g if nesterov else b
            return
        b[...] = momentum * b + share * g
        g = g + momentum * b if nesterov else b
    param -= lr * g


def adagrad(param, grad, state, step, *, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0,
            eps=1e-10, maximize=False, eps_mode="outside"):
    g = prepared(param, grad, maximize, weight_decay)
    s = slot(state, "sum", param, initial_accumulator_value)
    s += g * g
    root = np.sqrt(s) + eps if eps_mode == "outside" else np.sqrt(s + eps)
    param -= lr / (1 + (step - 1) * lr_decay) * g / root


def rmsprop(param, grad, state, step, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0,
            centered=False, maximize=False, eps_mode="outside"):
    g = prepared(param, grad, maximize, weight_decay)
    v = slot(state, "square_avg", param)
    v[...] = alpha * v + (1 - alpha) * g * g
    variance = v
    if centered:
        a = slot(state, "grad_avg", param)
        a[...] = alpha * a + (1 - alpha) * g
        variance = v - a * a
    update = g / (np.sqrt(variance) + eps if eps_mode == "outside" else np.sqrt(variance + eps))
    if momentum:
        b = slot(state, "momentum_buffer", param)
        b[...] = momentum * b + update
        update = b
    param -= lr * update


def adam(param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
         maximize=False, decoupled_weight_decay=False, eps_mode="outside"):
    beta1, beta2 = betas
    g = prepared(param, grad, maximize, 0.0 if decoupled_weight_decay else weight_decay)
    m, v = slot(state, "exp_avg", param), slot(state, "exp_avg_sq", param)
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    if amsgrad:
        w = slot(state, "max_exp_avg_sq", param)
        np.maximum(w, v, out=w)
        v = w
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    if eps_mode == "outside":
        update = m_hat / (np.sqrt(v_hat) + eps)
    elif eps_mode == "inside":
        update = m_hat / np.sqrt(v_hat + eps)
    else:
        update = m_hat * (1 - beta2**step) ** 0.5 / (np.sqrt(v) + eps)
    if decoupled_weight_decay:
        update = update + weight_decay * param
    param -= lr * update


def adamw(param, grad, state, step, *, weight_decay=1e-2, **hyperparameters):
    adam(param, grad, state, step, weight_decay=weight_decay, decoupled_weight_decay=True, **hyperparameters)
