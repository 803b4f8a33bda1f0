"""Every rule again in plain NumPy: the oracle of the tests, documentation, and a baseline.

Each function steps one parameter in place: `rule(param, grad, state, step, **hyperparameters)`. `state` is a
dict, empty before the first step; `step` is 1 at the first step. Formulas and defaults are torch.optim's;
arithmetic is in the dtype of `param`. Where the step depends on norms of the whole parameter, the function returns the
factors that come of them: of the gradient, of its coupled weight decay, or of the rate. Nothing is checked: see
`fastopt.functional` for that.

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


def norm_of(array):
    return np.sqrt(np.sum(np.square(np.abs(array), dtype=np.float64)))


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
        # of an infinite v less an infinite a², which is finite but for its range
        variance = np.maximum(np.where(np.isinf(v) & np.isfinite(a), v, v - a * a), 0.0)
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


def lamb(param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, maximize=False):
    beta1, beta2 = betas
    g = prepared(param, grad, maximize, 0.0)
    m, v = slot(state, "exp_avg", param), slot(state, "exp_avg_sq", param)
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    u = m / (1 - beta1**step) / (np.sqrt(v) / np.sqrt(1 - beta2**step) + eps) + weight_decay * param
    norm, length = norm_of(param), norm_of(u)
    rate = norm / length if norm and length else 1.0
    param -= lr * rate * u
    return {"rate": rate}


def lars(param, grad, state, step, *, lr=1.0, momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3, eps=1e-8,
         nesterov=False, maximize=False):
    g = prepared(param, grad, maximize, 0.0)
    norm, divisor = norm_of(param), norm_of(g) + weight_decay * norm_of(param) + eps
    factor = trust_coefficient * norm / divisor if norm and divisor else 1.0
    g = lr * factor * (g + weight_decay * param)
    if momentum:
        b = slot(state, "momentum_buffer", param)
        b[...] = momentum * b - g
        param += momentum * b - g if nesterov else b
    else:
        param -= g
    return {"gradient": factor, "decay": factor}


def novograd(param, grad, state, step, *, lr=1e-2, betas=(0.95, 0.98), eps=1e-8, weight_decay=0.0,
             grad_averaging=False, maximize=False):
    beta1, beta2 = betas
    g = prepared(param, grad, maximize, 0.0)
    m, square = slot(state, "exp_avg", param), norm_of(g) ** 2
    v = state["exp_avg_sq"] = square if step == 1 else beta2 * state["exp_avg_sq"] + (1 - beta2) * square
    share = 1 - beta1 if grad_averaging else 1.0
    factor = 1 / (np.sqrt(v) + eps or 1.0)
    m[...] = beta1 * m + share * (factor * g + weight_decay * param)
    param -= lr * m
    return {"gradient": factor}


def adamw(param, grad, state, step, *, weight_decay=1e-2, **hyperparameters):
    adam(param, grad, state, step, weight_decay=weight_decay, decoupled_weight_decay=True, **hyperparameters)


def decayed(param, weight_decay, decoupled_weight_decay):
    """The coupled and the decoupled weight decay."""
    return (0.0, weight_decay * param) if decoupled_weight_decay else (weight_decay, 0.0)


def radam(param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
          decoupled_weight_decay=False, maximize=False):
    beta1, beta2 = betas
    coupled, decay = decayed(param, weight_decay, decoupled_weight_decay)
    g = prepared(param, grad, maximize, coupled)
    m, v = slot(state, "exp_avg", param), slot(state, "exp_avg_sq", param)
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / correction2
    update = m / correction1
    if rho > 5:
        rectified = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
        update = update * rectified * correction2**0.5 / (np.sqrt(v) + eps)
    param -= lr * (update + decay)


def nadam(param, grad, state, step, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3,
          decoupled_weight_decay=False, maximize=False):
    beta1, beta2 = betas
    coupled, decay = decayed(param, weight_decay, decoupled_weight_decay)
    g = prepared(param, grad, maximize, coupled)
    m, v = slot(state, "exp_avg", param), slot(state, "exp_avg_sq", param)
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    # torch keeps the product of the mu in float32
    product = state["mu_product"] = np.float32(state.get("mu_product", 1.0)) * np.float32(mu)
    root = np.sqrt(v / (1 - beta2**step)) + eps
    nesterov = (1 - mu) / (1 - float(product)) * g + mu_next / (1 - float(product) * mu_next) * m
    param -= lr * (nesterov / root + decay)


def adamax(param, grad, state, step, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False):
    beta1, beta2 = betas
    g = prepared(param, grad, maximize, weight_decay)
    m, u = slot(state, "exp_avg", param), slot(state, "exp_inf", param)
    m[...] = beta1 * m + (1 - beta1) * g
    np.maximum(beta2 * u, np.abs(g) + eps, out=u)
    param -= lr / (1 - beta1**step) * m / u


def adadelta(param, grad, state, step, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False):
    g = prepared(param, grad, maximize, weight_decay)
    v, a = slot(state, "square_avg", param), slot(state, "acc_delta", param)
    v[...] = rho * v + (1 - rho) * g * g
    delta = np.sqrt(a + eps) / np.sqrt(v + eps) * g
    a[...] = rho * a + (1 - rho) * delta * delta
    param -= lr * delta


def asgd(param, grad, state, step, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, maximize=False):
    g = prepared(param, grad, maximize, weight_decay)
    average = slot(state, "ax", param)
    # torch keeps both in float32
    eta, mu = float(np.float32(state.get("eta", lr))), float(np.float32(state.get("mu", 1.0)))
    param -= eta * g + lambd * eta * param
    average[...] = param if mu == 1 else average + mu * (param - average)
    state["eta"] = lr / (1 + lambd * lr * step) ** alpha
    state["mu"] = 1 / max(1, step - t0)


def rprop(param, grad, state, step, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), maximize=False):
    g = prepared(param, grad, maximize, 0.0)
    previous, z = slot(state, "prev", param), slot(state, "step_size", param, lr)
    sign = np.sign(g * previous)
    factor = np.where(sign > 0, etas[1], np.where(sign < 0, etas[0], np.where(sign == 0, 1.0, sign)))
    z[...] = np.clip(z * factor, *step_sizes)
    g = np.where(sign < 0, 0.0, g)
    param -= np.sign(g) * z
    previous[...] = g


def lion(param, grad, state, step, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False):
    beta1, beta2 = betas
    g = prepared(param, grad, maximize, 0.0)
    m = slot(state, "exp_avg", param)
    update = np.sign(beta1 * m + (1 - beta1) * g)
    m[...] = beta2 * m + (1 - beta2) * g
    param -= lr * (update + weight_decay * param)


def ademamix(param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=5.0, beta3_warmup=None,
             alpha_warmup=None, eps=1e-8, weight_decay=0.0, maximize=False):
    beta1, beta2, beta3 = betas
    rest3 = 1 - beta3
    if alpha_warmup is not None:
        alpha *= min(step / alpha_warmup, 1)
    if beta3_warmup is not None and step < beta3_warmup:  # with log 0 = -inf for a beta of 0
        share = step / beta3_warmup
        with np.errstate(divide="ignore"):
            log3 = 1 / ((1 - share) / np.log(beta1) + share / np.log(beta3))
        beta3, rest3 = np.exp(log3), -np.expm1(log3)
    g = prepared(param, grad, maximize, 0.0)
    m, s, v = (slot(state, name, param) for name in ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"))
    m[...] = beta1 * m + (1 - beta1) * g
    s[...] = beta3 * s + rest3 * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    update = (m / (1 - beta1**step) + alpha * s) / (np.sqrt(v / (1 - beta2**step)) + eps)
    param -= lr * (update + weight_decay * param)


def muon(param, grad, state, step, *, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
         ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-7, ns_steps=5, adjust_lr_fn=None):
    g = grad.astype(param.dtype)
    b = slot(state, "momentum_buffer", param)
    b[...] = momentum * b + (1 - momentum) * g
    x = (1 - momentum) * g + momentum * b if nesterov else b
    x = x / max(np.linalg.norm(x), eps)
    rows, columns = param.shape
    x = x if rows <= columns else x.T
    for _ in range(ns_steps):
        gram = x @ x.T
        x = ns_coefficients[0] * x + (ns_coefficients[1] * gram + ns_coefficients[2] * gram @ gram) @ x
    x = x if rows <= columns else x.T
    ratio = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, rows / columns) ** 0.5
    param -= lr * (weight_decay * param + ratio * x)


def average(mean, param, weight):
    """Moves the average of a parameter towards it in place, by `weight` of the way: `fastopt.averages`."""
    mean[...] = mean + weight * (param - mean) if weight < 0.5 else param - (1 - weight) * (param - mean)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def adafactor(param, grad, state, step, *, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0,
              maximize=False):
    if param.size == 0:
        return
    g = prepared(param, grad, maximize, 0.0)
    eps1, eps2 = eps
    if eps1 is None:
        eps1 = float(np.finfo(param.dtype).eps)
    w = step**beta2_decay
    alpha = max(eps2, rms(param)) * min(lr, step**-0.5)
    if param.ndim > 1:
        row, col = slot(state, "row_var", param[..., :1]), slot(state, "col_var", param[..., :1, :])
        row[...] = (1 - w) * row + w * np.mean(g * g, axis=-1, keepdims=True)
        col[...] = (1 - w) * col + w * np.mean(g * g, axis=-2, keepdims=True)
        variance = row / np.maximum(np.mean(row, axis=-2, keepdims=True), eps1) * col
    else:
        variance = slot(state, "variance", param)
        variance[...] = (1 - w) * variance + w * g * g
    update = g / np.sqrt(np.maximum(variance, eps1 * eps1))
    param -= alpha / max(1.0, rms(update) / d) * update + lr * weight_decay * param
