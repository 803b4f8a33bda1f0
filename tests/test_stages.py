"""The stages of a step: against a twin in plain NumPy, against torch, bit for bit, and what they refuse."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch_cases
from common import (
    CASES,
    ELEMENTWISE,
    SIZES,
    both_dtypes,
    copies,
    inputs,
    name_of,
    placed,
    reference_steps,
    snapshot,
    special,
    use_level,
)

import fastopt
from fastopt import SGD, Adam, AdamW
from fastopt.averages import EMA, SWA
from fastopt.kernels import rules, simd, threads
from fastopt.kernels.plan import AS_IT_IS, Plan
from fastopt.stages import Adaptive, GlobalNorm, NonFiniteGradient, ParameterNorm, Value, layer_decay

SHAPES = ((5, 3), (), (0,), (17,), (2, 3, 4), (3, 700), (4, 1))
NAMES = ("a.weight", "a.scale", "b.empty", "b.bias", "b.weight", "c.weight", "c.column")
RATES = [1.0, 0.5, 1.0, 2.0, 0.0, 0.25, 0.5]
STEPS = 7

# the options of set_stages; "average" has classes, that each test makes averages of
STAGES = {
    "off": {},
    "2-norm": {"clip": 0.5},
    "2-norm kept": {"clip": 1e6},
    "1-norm": {"clip": GlobalNorm(3.0, 1.0, eps=0.0)},
    "3-norm": {"clip": GlobalNorm(0.5, 3.0)},
    "half norm": {"clip": GlobalNorm(20.0, 0.5)},
    "largest": {"clip": GlobalNorm(0.3, "inf")},
    "parameter norm": {"clip": ParameterNorm(0.7)},
    "parameter largest": {"clip": ParameterNorm(0.7, np.inf, eps=0.0)},
    "value": {"clip": Value(0.4)},
    "adaptive": {"clip": Adaptive()},
    "adaptive small": {"clip": Adaptive(1e-3, eps=1e-6)},
    "centralize": {"centralize": True},
    "centralize, norm": {"centralize": True, "clip": 0.5},
    "centralize, parameter norm": {"centralize": True, "clip": ParameterNorm(0.7)},
    "centralize, value": {"centralize": True, "clip": Value(0.4)},
    "centralize, adaptive": {"centralize": True, "clip": Adaptive(0.1)},
    "no decay of vectors": {"no_decay": 1},
    "no decay by name": {"no_decay": ["*.bias", "c.*"]},
    "rates": {"lr_scale": RATES},
    "rates by name": {"lr_scale": layer_decay(["a.*", "b.*", "c.*"], 0.5)},
    "corrected decay": {"corrected_weight_decay": 0.3},
    "corrected decay, rates": {"corrected_weight_decay": 0.3, "lr_scale": RATES, "no_decay": "b.*"},
    "clip update": {"clip_update": 0.5},
    "clip update, rates": {"clip_update": 0.9, "lr_scale": RATES, "clip": 0.5},
    "clip update, centralize": {"clip_update": 0.5, "centralize": True},
    "cautious": {"cautious": True},
    "cautious unscaled": {"cautious": "unscaled"},
    "cautious decay": {"cautious_weight_decay": True},
    "cautious both": {"cautious": True, "cautious_weight_decay": True, "no_decay": 1},
    "cautious, clip update": {"cautious": True, "clip_update": 0.5, "corrected_weight_decay": 0.5},
    "cautious, clip update, value": {"cautious": True, "clip_update": 0.5, "clip": Value(0.4)},
    "cautious, adaptive": {"cautious": True, "clip": Adaptive(0.3)},
    "cautious, centralize": {"cautious": True, "centralize": True},
    "cautious unscaled, clip update": {"cautious": "unscaled", "clip_update": 0.5, "lr_scale": RATES},
    "bounds": {"bounds": (-0.5, 0.25)},
    "nonnegative": {"bounds": "nonnegative"},
    "lookahead": {"lookahead": (3, 0.5)},
    "lookahead, bounds": {"lookahead": (2, 1.0), "bounds": (-0.3, 0.3)},
    "averages": {"average": [lambda o: EMA(o, decay=0.5), SWA]},
    "statistics": {"statistics": True},
    "statistics, 1-norm": {"statistics": True, "clip": GlobalNorm(3.0, 1.0)},
    "statistics, 2-norm": {"statistics": True, "clip": GlobalNorm(0.5)},
    "zero": {"zero_grad": True},
    "many": {"clip": Adaptive(0.1), "centralize": True, "lr_scale": RATES, "cautious": "unscaled",
             "bounds": (-0.5, 0.5), "lookahead": (2, 0.8), "average": [EMA], "statistics": True, "zero_grad": True},
    "many sweeps": {"clip": 0.5, "cautious": True, "bounds": (-0.5, 0.5), "lookahead": (2, 0.8), "average": [EMA],
                    "statistics": True, "zero_grad": True, "on_nonfinite": "skip"},
}


def decoupled(method, options):
    return method.optimizer.decoupled(method.options | method.optimizer.fixed | options)


def meaningless(method, options, stages):
    """Why a method cannot have these stages: a part of the message; None if it can."""
    optimizer = method.optimizer
    if stages.get("cautious") and not optimizer.turns:
        return "cautious has no meaning"
    if "lr_scale" in stages and optimizer.rate_free:
        return "lr_scale has no meaning"
    if "no_decay" in stages and not optimizer.decays:
        return "no_decay has no meaning"
    for option in ("cautious_weight_decay", "corrected_weight_decay"):
        if option in stages and not decoupled(method, options):
            return f"{option} needs decoupled weight decay"
    if "clip_update" in stages and optimizer.second_moment is None:
        return "clip_update needs a second moment"
    return None


PRODUCT = [(method, options, name) for method, options in CASES for name in STAGES]
# epsilons of the size of the second moment: they decide over the sign of an update with momentum
PRODUCT += [(method, {"momentum": 0.9, "eps": 1.0, "eps_mode": mode}, "cautious")
            for method in ELEMENTWISE if method.name == "RMSprop" for mode in ("outside", "inside")]
every_stage = pytest.mark.parametrize(
    ("method", "options", "name"),
    [row for row in PRODUCT if meaningless(row[0], row[1], STAGES[row[2]]) is None], ids=name_of)


def rate(step):
    """The learning rate of the second group."""
    return 0.02 / (1 + step)


def make(method, options, params, stages):
    """An optimizer with two groups and these stages, and its averages."""
    named = list(zip(NAMES, params, strict=True))
    first = {"lr": rate} if method.name != "Rprop" else {}
    optimizer = method.optimizer([{"params": named[:4], **options}, {"params": named[4:], **first, **options}], lr=0.05)
    averages = [average(optimizer) for average in stages.get("average", ())]
    optimizer.set_stages(**{**stages, **({"average": averages} if averages else {})})
    return optimizer, averages


# ---- the twin

def norm(x, order):
    x = np.abs(x.ravel())
    return np.max(x, initial=0.0) if order == np.inf else float(np.sum(x**order)) ** (1 / order)


def rowwise(array):
    """Norms of rows, in a shape that goes with the array."""
    if array.ndim < 2:
        return np.sqrt(np.sum(array**2))
    return np.sqrt(np.sum(array**2, axis=tuple(range(1, array.ndim)), keepdims=True))


def clipped(grads, params, clip):
    """Gradients clipped as torch, Keras and timm do; None stays None."""
    if isinstance(clip, float):
        clip = GlobalNorm(clip)
    given = [g for g in grads if g is not None]
    if isinstance(clip, GlobalNorm):
        total = norm(np.array([norm(g, clip.norm_type) for g in given]), clip.norm_type)
        scale = min(1.0, clip.max_norm / (total + clip.eps))
        return [None if g is None else g * scale for g in grads]
    result = []
    for g, p in zip(grads, params, strict=True):
        if g is not None and isinstance(clip, ParameterNorm):
            g = g * min(1.0, clip.max_norm / max(norm(g, clip.norm_type) + clip.eps, 1e-300))
        elif g is not None and isinstance(clip, Value):
            g = np.clip(g, -clip.clip_value, clip.clip_value)
        elif g is not None and isinstance(clip, Adaptive):
            most = np.maximum(rowwise(p), clip.eps) * clip.clip_factor
            mine = rowwise(g)
            g = np.where(mine < most, g, g * (most / np.maximum(mine, 1e-6)))
        result.append(g)
    return result


def centered(g):
    """Rows less their means; equal elements leave exactly 0."""
    g = g - g[(slice(None), *([slice(1)] * (g.ndim - 1)))]
    return g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)


class Twin:
    """The stages again, in float64 and NumPy, around the rules of fastopt.reference."""

    def __init__(self, method, options, params, stages):
        self.method, self.stages = method, stages
        self.options = {name: value for name, value in method.options.items() if name != "lr"} | options
        self.params = [param.astype("float64") for param in params]
        self.slow = copies(self.params)
        self.averages = [None for _ in stages.get("average", ())]
        self.states, self.counts, self.steps = [{} for _ in params], [0] * len(params), 0
        self.norms = None

    def rates(self, i):
        lr = 0.05 if i < 4 or self.method.name == "Rprop" else rate(self.steps)
        scale = self.stages.get("lr_scale", RATES[:1] * 7)
        return lr, {"a": 0.25, "b": 0.5, "c": 1.0}[NAMES[i][0]] if isinstance(scale, dict) else scale[i]

    def decays(self, i):
        rule = self.stages.get("no_decay")
        if rule == 1:
            return self.params[i].ndim > 1
        return not (rule and (NAMES[i][0] == "b" if rule == "b.*" else NAMES[i] == "b.bias" or NAMES[i][0] == "c"))

    def step(self, grads):
        stages = self.stages
        grads = [None if g is None else g.astype("float64") for g in grads]
        raw, before = grads, copies(self.params)
        grads = clipped(grads, self.params, stages.get("clip"))
        for i, g in enumerate(grads):
            if g is None:
                continue
            if stages.get("centralize") and g.ndim > 1:
                g = centered(g)
            self.update(i, g)
        self.steps += 1
        if "lookahead" in stages and self.steps % stages["lookahead"][0] == 0:
            for slow, p in zip(self.slow, self.params, strict=True):
                slow += stages["lookahead"][1] * (p - slow)
                p[...] = slow
        if "bounds" in stages:
            low, high = (0, np.inf) if stages["bounds"] == "nonnegative" else stages["bounds"]
            self.params = [np.array(np.clip(p, low, high)) for p in self.params]
        for k, kind in enumerate(stages.get("average", ())):
            share = 1.0 if self.steps == 1 else 1 / self.steps if kind is SWA else 0.5 if kind is not EMA else 1e-3
            self.averages[k] = [p * share + (1 - share) * old
                                for p, old in zip(self.params, self.averages[k] or self.params, strict=True)]
        groups = (range(4), range(4, 7))
        self.norms = [[np.sqrt(sum(np.sum(np.square(array(i))) for i in group)) for group in groups]
                      for array in (lambda i: 0.0 if raw[i] is None else raw[i],
                                    lambda i: self.params[i] - before[i], lambda i: self.params[i])]

    def update(self, i, g):
        stages, options, q = self.stages, dict(self.options), self.params[i].copy()
        q, (lr, scale) = np.array(q), self.rates(i)
        self.counts[i] += 1
        weight_decay = options.pop("weight_decay", 0.0) * self.decays(i)
        if "corrected_weight_decay" in stages:
            weight_decay *= lr / stages["corrected_weight_decay"]
        lr *= scale
        apart = decoupled(self.method, options) and ("cautious" in stages or "cautious_weight_decay" in stages)
        if "weight_decay" in self.options:
            # norms of an update are with its decay
            options["weight_decay"] = 0.0 if apart and not self.method.layerwise else weight_decay
        h = -g if options.get("maximize") else g
        h = h if decoupled(self.method, options) else h + weight_decay * q
        for name in self.method.optimizer.fixed:
            options.pop(name, None)

        def rule(param, state, lr):
            return param, self.method.reference(param, g, state, self.counts[i], lr=lr, **options) or {}

        if "clip_update" in stages:
            state = copy.deepcopy(self.states[i])
            rule(q.copy(), state, lr)
            v = state["exp_avg_sq"] / (1 - options["betas"][1] ** self.counts[i])
            rms = np.sqrt(np.mean(h * h / np.maximum(v, options["eps"] ** 2))) if q.size else 0.0
            lr /= max(1.0, rms / stages["clip_update"])
        p, factors = rule(q.copy(), self.states[i], lr)
        lr *= factors.get("rate", 1.0)
        if self.method.layerwise:
            h = factors.get("gradient", 1.0) * (-g if options.get("maximize") else g)
            h = h if decoupled(self.method, options) else h + factors.get("decay", 1.0) * weight_decay * q
            p = p + lr * weight_decay * q if apart else p
        if stages.get("cautious"):
            mask = (q - p) * h > 0
            share = max(mask.mean(), 1e-3) if q.size and stages["cautious"] is True else 1.0
            p = q - (q - p) * mask / share
        if apart:
            agrees = (q - p) * q >= 0 if "cautious_weight_decay" in stages else True
            p = p - lr * weight_decay * q * agrees
        self.params[i] = np.array(p)


TOLERANCE = {"float64": dict(rtol=1e-11, atol=1e-13), "float32": dict(rtol=3e-5, atol=3e-6)}


def compare(got, expected, dtype="float64", **what):
    for i, (mine, other) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(mine, other, **TOLERANCE[dtype], err_msg=f"{NAMES[i]} {what}")


def against_the_twin(method, options, name, dtype):
    stages = STAGES[name]
    params, rows = inputs(STEPS, dtype, SHAPES, seed=3)
    twin = Twin(method, options, params, stages)
    optimizer, averages = make(method, options, params, stages)
    for step, row in enumerate(rows):
        twin.step(row)
        row = [None if g is None else np.asarray(4 * g) for g in row]
        given = copies(row)
        optimizer.step(given, grad_scale=4.0)
        compare(params, twin.params, dtype, step=step)
        for average, expected in zip(averages, twin.averages, strict=True):
            compare(average.averages, expected, dtype, step=step)
        for g, original in zip(given, row, strict=True):
            if g is not None:
                np.testing.assert_array_equal(g, 0 * original if stages.get("zero_grad") else original)
        if stages.get("statistics"):
            last = optimizer.last_step
            for got, expected in zip((last.grad_norms, last.update_norms, last.param_norms), twin.norms, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-9 if dtype == "float64" else 1e-3)
            assert last.param_norm == pytest.approx(np.hypot(*last.param_norms))
            assert last.update_norm == pytest.approx(np.hypot(*last.update_norms))
    assert optimizer.step_count == STEPS


@every_stage
def test_agrees_with_the_twin(method, options, name):
    against_the_twin(method, options, name, "float64")


# with a mask, a rounding decides over an element
@pytest.mark.parametrize("name", [name for name, stages in STAGES.items() if "cautious" not in name
                                  and "cautious" not in stages])
@pytest.mark.parametrize("method", ELEMENTWISE, ids=name_of)
def test_agrees_with_the_twin_in_float32(method, name):
    if method.sign_only and "centralize" in STAGES[name]:
        pytest.skip("the sign of what is left of equal elements decides")
    if meaningless(method, {}, STAGES[name]) is None:
        against_the_twin(method, {"maximize": True}, name, "float32")


@pytest.mark.parametrize(("method", "options", "name"), [row for row in PRODUCT if meaningless(
    row[0], row[1], STAGES[row[2]])], ids=name_of)
def test_an_option_without_a_meaning_is_refused(method, options, name):
    params, rows = inputs(2, shapes=SHAPES, skip=False)
    optimizer, _ = make(method, options, params, {"zero_grad": True})
    stages = {key: value for key, value in STAGES[name].items() if key != "average"}
    with pytest.raises(ValueError, match="has no meaning for|needs decoupled weight decay|needs a second moment"):
        optimizer.set_stages(**stages)
    optimizer.step(rows[0])
    assert all(np.all(g == 0) for g in rows[0])  # what was set before stays


@pytest.mark.parametrize(("method", "options"), CASES, ids=name_of)
@both_dtypes
def test_stages_that_are_off_have_the_bits_of_a_plain_step(method, options, dtype):
    results = []
    for staged in (False, True):
        params, rows = inputs(STEPS, dtype, (*SHAPES, (2049,)))
        params[3][::5] = np.nan
        params[3][1::5] = np.inf
        optimizer = method.optimizer(params, **options)
        if staged:
            optimizer.set_stages()
        for row in rows:
            optimizer.step(row)
        results.append(snapshot(optimizer, params))
    assert results[0] == results[1]


# ---- torch

CLIPS = {
    "none": (None, lambda torch, tensors: None),
    "2-norm": (0.5, lambda torch, t: torch.nn.utils.clip_grad_norm_(t, 0.5)),
    "1-norm": (GlobalNorm(3.0, 1), lambda torch, t: torch.nn.utils.clip_grad_norm_(t, 3.0, norm_type=1)),
    "4-norm": (GlobalNorm(0.5, 4), lambda torch, t: torch.nn.utils.clip_grad_norm_(t, 0.5, norm_type=4)),
    "largest": (GlobalNorm(0.5, np.inf), lambda torch, t: torch.nn.utils.clip_grad_norm_(t, 0.5, norm_type=np.inf)),
    "value": (Value(0.3), lambda torch, t: torch.nn.utils.clip_grad_value_(t, 0.3)),
}


@pytest.mark.parametrize(("method", "options"), torch_cases.KNOWN, ids=name_of)
@pytest.mark.parametrize("dtype", torch_cases.DTYPES)
@pytest.mark.parametrize("kind", CLIPS)
def test_agrees_with_the_same_calls_of_torch(method, options, dtype, kind):
    torch = pytest.importorskip("torch")
    clip, torch_clip = CLIPS[kind]
    params, rows = torch_cases.problem(dtype)
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    theirs = getattr(torch.optim, method.name)(**torch_cases.arguments(tensors, options), foreach=False)
    means = {EMA: [tensor.detach().clone() for tensor in tensors], SWA: [t.detach().clone() for t in tensors]}
    mine = method.optimizer(**torch_cases.arguments(params, options))
    averages = {EMA: EMA(mine, decay=0.9), SWA: SWA(mine)}
    mine.set_stages(average=list(averages.values()), zero_grad=True)
    for count, row in enumerate(rows[:20]):
        scaled = [None if g is None else np.asarray(g * g.dtype.type(1024)) for g in row]
        for tensor, g in zip(tensors, scaled, strict=True):
            tensor.grad = None if g is None else torch.tensor(g)
            if g is not None:
                tensor.grad.mul_(1 / 1024)
        total = torch_clip(torch, [t for t in tensors if t.grad is not None and t.numel()])
        theirs.step()
        theirs.zero_grad(set_to_none=False)
        for cls, weight in ((EMA, 0.1), (SWA, 1 / (count + 1))):
            for mean, tensor in zip(means[cls], tensors, strict=True):
                mean.lerp_(tensor.detach(), 1.0 if count == 0 else weight)
        mine.step(scaled, clip=clip, grad_scale=1024)
        if total is not None:
            np.testing.assert_allclose(mine.last_step.grad_norm, total.item(), rtol=1e-5)
        for g, tensor in zip(scaled, tensors, strict=True):
            if g is not None:
                np.testing.assert_array_equal(g, tensor.grad.numpy())
    tolerance = {"float64": dict(rtol=1e-12, atol=1e-13), "float32": dict(rtol=2e-5, atol=2e-6)}[dtype]
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), **tolerance)
    for cls, average in averages.items():
        for mean, tensor in zip(average.averages, means[cls], strict=True):
            np.testing.assert_allclose(mean, tensor.numpy(), **tolerance)


@pytest.mark.parametrize("clip", [0.5, GlobalNorm(0.5, 1), GlobalNorm(0.5, np.inf), Value(0.3)], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_through_as_in_torch(clip, bad):
    torch = pytest.importorskip("torch")
    params, rows = inputs(1, skip=False)
    rows[0][0][1, 2] = bad
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    for tensor, g in zip(tensors, rows[0], strict=True):
        tensor.grad = torch.tensor(g)
    tensors = [tensor for tensor in tensors if tensor.numel()]
    if isinstance(clip, Value):
        torch.nn.utils.clip_grad_value_(tensors, clip.clip_value)
    else:
        as_norm = GlobalNorm(clip) if isinstance(clip, float) else clip
        torch.nn.utils.clip_grad_norm_(tensors, as_norm.max_norm, norm_type=as_norm.norm_type)
    torch.optim.SGD(tensors, lr=0.1).step()
    SGD(params, lr=0.1).step(rows[0], clip=clip)
    for param, tensor in zip([param for param in params if param.size], tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-12)


# ---- bits

BIT_SHAPES = (*((n,) for n in SIZES), (3, 2051), (41, 50), (700, 3), ())


def bits(stages, dtype, method="AdamW", level=None, offset=0, tame=True, gradient=None):
    rng = np.random.default_rng(2)

    def drawn(shape, at, dtype):
        size = int(np.prod(shape))
        array = rng.standard_normal(size) if tame else special(rng, size, dtype)
        return placed(array.astype(dtype), at).reshape(shape)

    params = [drawn(shape, offset, dtype) for shape in BIT_SHAPES]
    optimizer = getattr(fastopt, method)(params, lr=0.05, **({"momentum": 0.9} if method == "SGD" else {}))
    averages = [average(optimizer) for average in stages.get("average", ())]
    optimizer.set_stages(**{**stages, "average": averages})
    for _ in range(3):
        optimizer.step([drawn(shape, 3 * offset % 7, gradient or dtype) for shape in BIT_SHAPES])
    last = optimizer.last_step
    return (b"".join(array.tobytes() for array in params),
            [array.tobytes() for state in optimizer.state.values() for array in state._arrays.values()],
            [array.tobytes() for average in averages for array in average.averages],
            [array.tobytes() for array in optimizer._engine.pipeline.slow],
            repr((last.grad_norm, last.clipped, last.grad_norms, last.update_norms, last.param_norms)))


BIT_STAGES = {name: {key: value for key, value in stages.items() if key not in ("lr_scale", "no_decay")}
              for name, stages in STAGES.items()}


@pytest.mark.parametrize("name", BIT_STAGES)
@pytest.mark.parametrize(("dtype", "gradient"), [("float32", None), ("float64", None), ("float32", "float64")])
@pytest.mark.parametrize("tame", [True, False], ids=["finite", "special"])
def test_the_same_bits_everywhere(name, dtype, gradient, tame, team, monkeypatch):
    first = bits(BIT_STAGES[name], dtype, tame=tame, gradient=gradient)
    for number, level in enumerate(simd.available()):
        use_level(monkeypatch, level)
        for n in range(1, 5):
            monkeypatch.setattr(threads, "num_threads", n)
            again = bits(BIT_STAGES[name], dtype, offset=(0, 1, 3, 5)[(n + number) % 4], tame=tame, gradient=gradient)
            assert again == first, (level, n)


@pytest.mark.parametrize("method", [method.name for method in ELEMENTWISE if method.name != "AdamW"])
@both_dtypes
def test_the_same_bits_for_every_method(method, dtype, team, monkeypatch):
    stages = {"clip": Adaptive(0.1), "centralize": True, "bounds": (-1.0, 2.0), "lookahead": (2, 0.5),
              "average": [EMA], "statistics": True}
    results = []
    for level in simd.available():
        use_level(monkeypatch, level)
        for n in (1, 3):
            monkeypatch.setattr(threads, "num_threads", n)
            results.append(bits(stages, dtype, method, offset=n, tame=False))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("name", BIT_STAGES)
def test_the_same_bits_with_subnormals(name, monkeypatch):
    monkeypatch.setattr(threads, "flush_subnormals", False)
    results = []
    for level in simd.available():
        use_level(monkeypatch, level)
        results.append(bits(BIT_STAGES[name], "float32", tame=False))
    assert all(result == results[0] for result in results)


def test_what_is_not_finite_is_hidden_by_no_stage():
    for name, stages in STAGES.items():
        for bad in (np.nan, np.inf):
            params, rows = inputs(1, shapes=SHAPES, skip=False)
            rows[0][0][1, 2] = bad
            stages = {**stages, "on_nonfinite": "propagate"}
            optimizer, _ = make(next(m for m in ELEMENTWISE if m.name == "AdamW"), {}, params, stages)
            optimizer.step(rows[0])
            limited = stages.get("clip") == Value(0.4) and bad == np.inf
            assert np.isfinite(params[0][1, 2]) == limited, (name, bad)
            if "clip" not in stages and "clip_update" not in stages:
                assert np.isfinite(params[3]).all(), name


# ---- gradients that are not finite

def everything(optimizer, params, averages=()):
    """All that a step with stages may change, as bytes."""
    pipeline = optimizer._engine.pipeline
    return (snapshot(optimizer, params), [array.tobytes() for a in averages for array in a.averages],
            [a.n_averaged for a in averages], [array.tobytes() for array in pipeline.slow])


@pytest.mark.parametrize("method", ELEMENTWISE, ids=name_of)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [None, 1.0, GlobalNorm(1.0, 1), GlobalNorm(1.0, np.inf), ParameterNorm(1.0),
                                  Value(1.0), Adaptive()], ids=str)
def test_a_step_is_skipped_or_refused(method, bad, clip):
    params, rows = inputs(5, shapes=SHAPES, skip=False)
    optimizer, averages = make(method, {}, params, {"on_nonfinite": "skip", "clip": clip, "lookahead": (1, 0.5),
                                                    "average": [EMA]})
    for fresh in (True, False):
        before = everything(optimizer, params, averages)
        wrong = copies(rows[1])
        wrong[4][1, 2, 3] = wrong[5][0, 600] = bad
        optimizer.step(wrong)
        assert everything(optimizer, params, averages) == before
        assert optimizer.last_step.skipped and optimizer.last_step.clipped == 0
        wanted = rf"gradient of parameter 'b.weight' is {bad} at index \(1, 2, 3\)"
        with pytest.raises(NonFiniteGradient, match=wanted):
            optimizer.step(wrong, on_nonfinite="raise")
        assert everything(optimizer, params, averages) == before
        optimizer.step(rows[2])
        assert not optimizer.last_step.skipped
        assert optimizer.step_count == (1 if fresh else 2)
        assert averages[0].n_averaged == optimizer.step_count


def test_skips_in_a_row_end_a_run():
    param, bad = np.ones(3), np.array([0.0, np.nan, 0.0])
    optimizer = SGD(param)
    optimizer.set_stages(on_nonfinite="skip", max_skips=2)
    for _ in range(2):
        optimizer.step(bad)
        optimizer.step(bad)
        optimizer.step(np.ones(3))
    optimizer.step(bad)
    optimizer.step(bad)
    with pytest.raises(NonFiniteGradient, match="3 steps in a row were skipped .*max_skips is 2"):
        optimizer.step(bad)
    assert optimizer.step_count == 2


def test_large_gradients_are_finite_though_their_norm_is_not():
    param = np.zeros(2)
    optimizer = SGD(param, lr=1.0)
    optimizer.set_stages(on_nonfinite="skip")
    for clip in (None, GlobalNorm(1.0, 1)):
        optimizer.step(np.array([1.5e308, 1.5e308]), clip=clip)
        assert not optimizer.last_step.skipped
        assert optimizer.last_step.grad_norm == np.inf
    optimizer.step(np.array([1.5e308, 1.5e308]), clip=GlobalNorm(1.0, 0.25))  # the power overflows, not the sum
    assert optimizer.last_step.grad_norm == np.inf and not optimizer.last_step.skipped
    optimizer.step(np.array([1e200, 1e200]), clip=GlobalNorm(1.0, 0.5))
    assert optimizer.last_step.grad_norm == pytest.approx(4e200)


def test_a_skipped_step_clears_the_gradients_too():
    param, gradient = np.ones(2), np.array([np.nan, 1.0])
    optimizer = SGD(param, lr=1.0)
    optimizer.set_stages(on_nonfinite="skip", zero_grad=True)
    optimizer.bind_grads(gradient)
    optimizer.step()
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(param, 1)


@pytest.mark.parametrize("clip", [GlobalNorm(1.0, eps=0), ParameterNorm(1.0, eps=0), Adaptive()], ids=str)
def test_gradients_of_zeros(clip):
    for stages in ({}, {"clip_update": 1.0}, {"cautious": True}, {"centralize": True}, {"statistics": True}):
        params, grads = [np.ones((2, 3)), np.ones(())], [np.zeros((2, 3)), np.zeros(())]
        optimizer = AdamW(params, weight_decay=0.0)
        optimizer.set_stages(clip=clip, **stages)
        optimizer.step(grads)
        np.testing.assert_array_equal(params[0], 1)
        assert optimizer.last_step.clipped == 0


def test_the_share_of_a_mask_is_at_least_a_thousandth():
    param, gradient = np.zeros(5000), np.ones(5000)
    optimizer = Adam(param, lr=1.0, betas=(0.9, 0.999))
    optimizer.set_stages(cautious=True)
    optimizer.step(gradient)
    before, gradient[1:] = param.copy(), -1e-9
    optimizer.step(gradient)  # the mean of the gradients agrees with the gradient in one element
    np.testing.assert_array_equal(param[1:], before[1:])
    np.testing.assert_allclose(param[0] - before[0], -1000.0, rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@both_dtypes
def test_only_elements_that_move_against_their_gradient_have_a_share(sign, dtype):
    # mean of the gradients 0, against 0, with the gradient, against it, NaN twice
    first = sign * np.array([1.0, 1.0, 1.0, 1.0, np.nan, np.nan])
    second = sign * np.array([-0.5, 0.0, 1.0, -0.25, 1.0, -1.0])
    param = np.zeros(6, dtype)
    optimizer = SGD(param, lr=1.0, momentum=0.5)
    optimizer.step(first.astype(dtype))
    param[4:] = 0
    before = param.copy()
    optimizer.set_stages(cautious=True)
    optimizer.step(second.astype(dtype))
    np.testing.assert_allclose((param - before)[:4], sign * np.array([0.0, 0.0, -6 * 1.5, 0.0]), rtol=1e-6)
    assert np.isnan(param[4:]).all()


@pytest.mark.parametrize("flush", [True, False])
def test_a_subnormal_gradient_counts_where_it_is_not_flushed(flush):
    param = np.zeros(4, "float32")
    optimizer = SGD(param, lr=1.0, momentum=0.5)
    optimizer.set_stages(cautious=True)
    fastopt.set_flush_subnormals(flush)
    try:
        optimizer.step(np.ones(4, "float32"))
        optimizer.step(np.array([1, 1e-40, 1e-40, 1e-40], "float32"))
    finally:
        fastopt.set_flush_subnormals(True)
    np.testing.assert_allclose(param, [-1 - 4 * 1.5, -1, -1, -1] if flush else [-2.5, -1.5, -1.5, -1.5], rtol=1e-6)


@pytest.mark.parametrize("method", [method for method in ELEMENTWISE if method.optimizer.second_moment], ids=name_of)
@pytest.mark.parametrize("size", [3e19, 3e-30])
def test_the_square_of_a_gradient_may_be_out_of_range_in_clip_update(method, size):
    params = {dtype: np.ones(50, dtype) for dtype in ("float32", "float64")}
    for param in params.values():
        optimizer = method.optimizer(param, lr=0.1)
        optimizer.set_stages(clip_update=0.5)
        for count in range(22):
            optimizer.step(np.full(50, size if count == 20 else 1.0, param.dtype))
    np.testing.assert_allclose(params["float32"], params["float64"], rtol=1e-5)


@both_dtypes
@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("grad_scale", [1e37, 1e40, 1e60, 1e300])
def test_a_scale_near_0_is_not_none(grad_scale, flush, dtype, monkeypatch):
    monkeypatch.setattr(threads, "flush_subnormals", flush)
    param = np.zeros(9, dtype)
    SGD(param, lr=1.0).step(np.ones(9, dtype), grad_scale=grad_scale)
    np.testing.assert_allclose(-param, 1 / grad_scale, rtol=1e-6, atol=np.finfo(np.float32).tiny)


@both_dtypes
@pytest.mark.parametrize("method", [method for method in ELEMENTWISE if method.optimizer.second_moment], ids=name_of)
@pytest.mark.parametrize("eps", [1e-20, 0.0])
def test_an_element_without_a_gradient_does_not_matter_to_clip_update(method, eps, dtype):
    gradient = np.array([1, -1, 0], dtype)
    params = np.ones((2, 3), dtype)
    for param, clip_update in zip(params, (None, 1.0), strict=True):
        optimizer = method.optimizer(param, lr=0.1, eps=eps)
        optimizer.set_stages(clip_update=clip_update)
        optimizer.step(gradient)
    assert params[0, :2].tobytes() == params[1, :2].tobytes()
    assert eps == 0 or params[0, 2] == params[1, 2]


def test_tiny_units_are_scaled_as_in_timm():
    param = np.zeros((3, 2))
    optimizer = SGD(param, lr=1.0)
    optimizer.step(np.array([[3e-8, 4e-8], [3e-10, 0.0], [0.3, 0.4]]), clip=Adaptive(1e-3, eps=1e-6))
    np.testing.assert_allclose(-param, [[3e-11, 4e-11], [3e-10, 0.0], [6e-10, 8e-10]], rtol=1e-12)


# ---- accumulation

@pytest.mark.parametrize(("method", "options"), CASES, ids=name_of)
@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("bound", [False, True])
def test_micro_batches_are_one_step(method, options, kind, bound):
    stages = {"clip": 0.5, "lookahead": (2, 0.5), "average": [EMA]}
    weights = [1.0, 1.0, 1.0] if bound else [2.0, 1.0, 0.5]
    results = []
    for accumulated in (False, True):
        params, rows = inputs(9, shapes=SHAPES)
        optimizer, averages = make(method, options, params, {**stages, "accumulation": kind})
        for start in range(0, 9, 3):
            part = rows[start : start + 3]
            total = [None if all(row[i] is None for row in part) else np.array(sum(
                w * row[i] for w, row in zip(weights, part, strict=True) if row[i] is not None))
                for i in range(len(params))]
            if not accumulated:
                share = sum(weights) if kind == "mean" else 1.0
                optimizer.step([None if g is None else np.asarray(g / share) for g in total])
                continue
            if bound:
                optimizer.bind_grads(total)
            for weight, row in zip(weights, part, strict=True):
                if bound:
                    optimizer.accumulate()
                else:
                    optimizer.accumulate(dict(zip(NAMES, row, strict=True)), weight=weight)
            optimizer.step()
        results.append((params, averages[0].averages))
        assert optimizer.step_count == averages[0].n_averaged == 3
    compare(results[0][0], results[1][0])
    compare(results[0][1], results[1][1])


def test_accumulation_changes_nothing_until_the_step_and_survives_errors():
    params, rows = inputs(4, shapes=SHAPES, skip=False)
    optimizer, averages = make(next(m for m in ELEMENTWISE if m.name == "AdamW"), {}, params, {"average": [SWA]})
    twins = copies(params)
    twin = AdamW(twins, lr=0.05)
    before = everything(optimizer, params, averages)
    optimizer.accumulate(rows[0])
    for wrong, error, message in [
        (dict(grads=rows[1][:-1]), ValueError, "one entry for each"),
        (dict(grads=[np.zeros(3), *rows[1][1:]]), ValueError, "gradient of parameter 'a.weight' must have shape"),
        (dict(grads=rows[1], weight=0), ValueError, "weight must be above 0"),
        (dict(grads=rows[1], weight="x"), TypeError, "weight must be a number"),
        (dict(), ValueError, "accumulate.. needs grads"),
    ]:
        with pytest.raises(error, match=message):
            optimizer.accumulate(**wrong)
    with pytest.raises(ValueError, match="takes no grads after accumulate"):
        optimizer.step(rows[0])
    with pytest.raises(ValueError, match="have not stepped with"):
        optimizer.set_stages()
    with pytest.raises(ValueError, match="gradients are accumulated: step before copying"):
        copy.deepcopy(optimizer)
    optimizer.bind_grads(rows[3])
    with pytest.raises(ValueError, match="called with grads before"):
        optimizer.accumulate()
    with pytest.raises(ValueError, match="clip must be above 0"):
        optimizer.step(clip=-1.0)
    optimizer.accumulate(rows[1])
    assert everything(optimizer, params, averages) == before
    optimizer.step()
    twin.step([np.asarray((a + b) / 2) for a, b in zip(rows[0], rows[1], strict=True)])
    compare(params[:4], twins[:4])
    optimizer.accumulate()
    with pytest.raises(ValueError, match="called without grads before"):
        optimizer.accumulate(rows[0])
    with pytest.raises(ValueError, match="weight must be 1"):
        optimizer.accumulate(weight=2.0)
    optimizer.step()
    assert optimizer.step_count == 2


def test_a_bad_micro_batch_can_be_dropped():
    param = np.ones(2)
    optimizer = SGD(param, lr=1.0)
    optimizer.accumulate([np.array([np.nan, 1.0])])
    with pytest.raises(NonFiniteGradient):
        optimizer.step(on_nonfinite="raise")
    optimizer.step(on_nonfinite="skip")
    optimizer.accumulate([np.ones(2)])
    optimizer.step()
    np.testing.assert_array_equal(param, 0)
    optimizer.accumulate([np.ones(2)])
    optimizer.reset_state()
    optimizer.step([np.ones(2)])
    np.testing.assert_array_equal(param, -1)


def test_parameters_can_be_added_between_micro_batches():
    first, second = np.zeros(2), np.zeros(3)
    optimizer = SGD([first], lr=1.0)
    optimizer.accumulate([np.ones(2)])
    optimizer.add_param_group({"params": [second]})
    optimizer.step()
    np.testing.assert_array_equal(first, -1)
    np.testing.assert_array_equal(second, 0)
    optimizer.accumulate([np.ones(2), np.ones(3)])
    optimizer.step()
    np.testing.assert_array_equal(second, -1)


# ---- what changes under the stages

@pytest.mark.parametrize(("first", "then"), [
    ({"clip": Adaptive(1e-3), "centralize": True, "cautious": True, "clip_update": 0.1}, {"statistics": True}),
    ({"clip": 1e3}, {"clip": 1e3, "statistics": True}),
    ({"clip": Value(0.1)}, {}),
], ids=str)
def test_what_is_set_for_one_step_is_gone_in_the_next(first, then):
    params, rows = inputs(2, shapes=SHAPES, skip=False)
    rows[1][0] = rows[1][4] = None
    optimizer = AdamW(params, lr=0.1)
    optimizer.set_stages(**first)
    optimizer.step(rows[0])
    other, twins = copy.deepcopy((optimizer, params))  # a copy has a plan of its own
    for each in (optimizer, other):
        each.set_stages(**then)
        each.step(rows[1])
    assert everything(optimizer, params) == everything(other, twins)
    assert optimizer.last_step == other.last_step


def test_parameters_that_are_added_get_their_stages():
    params, rows = inputs(6, shapes=((3, 2), (5,)), skip=False)
    twins = copies(params)
    optimizer = Adam({"a": params[0]})
    optimizer.set_stages(lookahead=(2, 0.5), no_decay="a", statistics=True)
    optimizer.step({"a": rows[0][0]})
    optimizer.add_param_group({"params": {"b": params[1]}, "weight_decay": 0.5})
    saved = copy.deepcopy(optimizer.state_dict())
    assert len(saved["stages"]["slow"]) == 2
    optimizer.load_state_dict(saved)
    twin = Adam([twins[0]])
    other = Adam([twins[1]], weight_decay=0.5)
    slow = copies(twins)
    twin.step([rows[0][0]])
    for count, row in enumerate(rows[1:], 2):
        optimizer.step(row)
        twin.step([row[0]])
        other.step([row[1]])
        if count % 2 == 0:
            for own, param in zip(slow, twins, strict=True):
                own += 0.5 * (param - own)
                param[...] = own
        compare(params, twins)
    assert len(optimizer.last_step.param_norms) == 2


def test_an_average_does_not_take_in_what_is_added():
    params = [np.ones(2), np.ones(3)]
    optimizer = SGD(params[:1])
    optimizer.set_stages(average=EMA(optimizer))
    optimizer.add_param_group({"params": params[1:]})
    with pytest.raises(ValueError, match="average has 1 parameters, the optimizer 2"):
        optimizer.step([np.ones(2), np.ones(3)])
    optimizer.set_stages(average=EMA(optimizer))
    optimizer.step([np.ones(2), np.ones(3)])


@pytest.mark.parametrize("stages", [{"lookahead": (1, 0.5)}, {"bounds": (0, 1)}, {"average": [SWA]},
                                    {"statistics": True}], ids=str)
def test_a_parameter_without_a_gradient_is_checked_as_well(stages):
    moved, other = np.zeros(4), np.zeros(4)
    optimizer = SGD([moved, other])
    averages = [average(optimizer) for average in stages.get("average", ())]
    optimizer.set_stages(**{**stages, "average": averages})
    optimizer.step([None, np.ones(4)])
    other.resize(100_000, refcheck=False)
    with pytest.raises(ValueError, match="the memory of parameter 1 has moved"):
        optimizer.step([np.ones(4), None])
    optimizer = SGD([moved, np.zeros(4)])
    optimizer.set_stages(**{**stages, "average": (), "statistics": True})
    moved.flags.writeable = False
    with pytest.raises(ValueError, match="parameter 0 is read-only"):
        optimizer.step([None, np.ones(4)])


def test_a_parameter_without_a_gradient_goes_through_the_stages_that_are_for_all():
    params = [np.full(3, 5.0), np.full(3, 0.5)]
    optimizer = SGD(params, lr=1.0)
    swa = SWA(optimizer)
    optimizer.set_stages(bounds=(0.0, 1.0), average=swa, statistics=True)
    optimizer.step([None, np.ones(3)])
    np.testing.assert_array_equal(params, [[1.0] * 3, [0.0] * 3])
    np.testing.assert_array_equal(swa.averages, params)
    assert optimizer.last_step.update_norm == pytest.approx(np.sqrt(3 * 16 + 3 * 0.25))
    assert optimizer.last_step.grad_norm == pytest.approx(np.sqrt(3))


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1e-16, 1.0, 1e14, 1e16, 1e20, 1e25])
@pytest.mark.parametrize("length", [5, 32, 700, 2100])
def test_statistics_of_float32_numbers_whose_squares_are_out_of_range(size, length):
    rng = np.random.default_rng(0)
    param, gradient = (np.asarray(size * rng.standard_normal(length), "float32") for _ in range(2))
    before = param.astype("float64")
    optimizer = SGD(param, lr=1.0)
    optimizer.set_stages(statistics=True)
    optimizer.step(gradient)
    last, after = optimizer.last_step, param.astype("float64")
    for got, array in ((last.grad_norm, gradient.astype("float64")), (last.update_norm, after - before),
                       (last.param_norm, after)):
        assert got == pytest.approx(np.sqrt(np.sum(array**2)), rel=1e-5, abs=0)


def test_the_share_that_is_clipped_leaves_out_missing_gradients():
    params = [np.ones((2, 3)), np.ones(3), np.ones(3)]
    optimizer = SGD(params)
    for clip, share in ((Adaptive(), 0.5), (ParameterNorm(1.0), 1.0)):
        optimizer.step([np.array([[1e3] * 3, [1e-9] * 3]), None, None], clip=clip)
        assert optimizer.last_step.clipped == share


def test_rebinding_leaves_the_stages():
    params, rows = inputs(4, shapes=SHAPES, skip=False)
    optimizer, averages = make(ELEMENTWISE[0], {}, params, STAGES["many"] | {"cautious": False})
    twins = copies(params)
    twin, others = make(ELEMENTWISE[0], {}, twins, STAGES["many"] | {"cautious": False})
    for count, row in enumerate(rows):
        if count == 2:
            params = copies(params)
            optimizer.rebind(params)
            gc.collect()
        optimizer.step(copies(row))
        twin.step(copies(row))
    assert everything(optimizer, params, averages) == everything(twin, twins, others)


def test_a_group_that_changes_its_options_steps_with_them():
    params, rows = inputs(6, shapes=((4, 3), (5,)), skip=False)
    twins = copies(params)
    optimizer, twin = SGD(params, lr=0.1), SGD(twins, lr=0.1)
    optimizer.set_stages(clip=1e9)
    for count, row in enumerate(rows):
        if count == 3:
            for each in (optimizer, twin):
                each.param_groups[0].update(momentum=0.9, dampening=0.5, lr=lambda step: 0.1 / (1 + step))
        optimizer.step(row)
        twin.step(row)
        assert snapshot(optimizer, params) == snapshot(twin, twins)


# ---- copies and checkpoints

@pytest.mark.parametrize("how", [copy.deepcopy, lambda bundle: pickle.loads(pickle.dumps(bundle))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["many", "many sweeps"])
def test_a_copy_goes_on_alike(how, name):
    params, rows = inputs(8, shapes=SHAPES)
    method = next(m for m in ELEMENTWISE if m.name == "AdamW")
    optimizer, averages = make(method, {}, params, STAGES[name])
    for row in rows[:4]:
        optimizer.step(copies(row))
    again, others, twins = how((optimizer, averages, params))
    assert again.last_step == optimizer.last_step
    for row in rows[4:]:
        optimizer.step(copies(row))
        again.step(copies(row))
    assert everything(optimizer, params, averages) == everything(again, twins, others)


def test_a_checkpoint_goes_on_alike():
    params, rows = inputs(8, shapes=SHAPES)
    stages = {"lookahead": (3, 0.5), "on_nonfinite": "skip", "max_skips": 2}
    optimizer, _ = make(ELEMENTWISE[0], {}, params, stages)
    bad = [np.full_like(g, np.nan) for g in inputs(1, shapes=SHAPES, skip=False)[1][0]]
    for row in [*rows[:4], bad, bad]:
        optimizer.step(row)
    twins = copies(params)
    again, _ = make(ELEMENTWISE[0], {}, twins, stages)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, again):
        with pytest.raises(NonFiniteGradient):
            each.step(bad)
        for row in rows[4:]:
            each.step(row)
    assert everything(optimizer, params) == everything(again, twins)


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda s: s.pop("stages"), ValueError, "slow weights of Lookahead for 0 parameters, this optimizer has 2"),
    (lambda s: s["stages"]["slow"].pop(), ValueError, "for 1 parameters, this optimizer has 2"),
    (lambda s: s["stages"].update(slow=[np.ones(3), np.ones(3)]), ValueError, "'slow' of parameter 0 must have shape"),
    (lambda s: s["stages"].update(slow=[np.ones(2) * 1j, np.ones(3)]), TypeError, "must be floating point"),
    (lambda s: s["stages"].update(skipped_in_a_row="x"), TypeError, "skipped_in_a_row must be a number"),
])
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, error, message):
    params = [np.ones(2), np.ones(3)]
    optimizer = SGD(params, momentum=0.9)
    optimizer.set_stages(lookahead=(2, 0.5))
    optimizer.step([np.ones(2), np.ones(3)])
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    before = everything(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert everything(optimizer, params) == before


def test_resetting_begins_the_slow_weights_anew():
    param = np.zeros(2)
    optimizer = SGD(param, lr=1.0)
    optimizer.set_stages(lookahead=(2, 0.5))
    optimizer.step(np.ones(2))
    optimizer.reset_state()
    optimizer.step(np.ones(2))
    optimizer.step(np.ones(2))
    np.testing.assert_array_equal(param, -2.0)  # half way from -1 to -3


def test_the_memory_goes_with_the_optimizer():
    params = [np.ones(1000)]
    optimizer = AdamW(params)
    optimizer.set_stages(lookahead=(2, 0.5), average=EMA(optimizer))
    optimizer.accumulate([np.ones(1000)])
    optimizer.step()
    slow = weakref.ref(optimizer._engine.pipeline.slow[0])
    del optimizer
    gc.collect()
    assert slow() is None


# ---- errors

OPTIONS = {
    "unknown": (dict(clipping=1.0), TypeError, "clipping"),
    "clip": (dict(clip=-1), ValueError, "clip must be above 0"),
    "clip name": (dict(clip="x"), TypeError, "clip must be a number.*GlobalNorm, ParameterNorm, Value and Adaptive"),
    "clip flag": (dict(clip=True), TypeError, "clip must be a number"),
    "clip list": (dict(clip=[1.0, 2.0]), TypeError, "clip must be a number"),
    "clip nan": (dict(clip=np.nan), ValueError, "clip must be finite"),
    "policy": (dict(on_nonfinite="stop"), ValueError, "on_nonfinite must be one of 'propagate', 'skip', 'raise'"),
    "max_skips": (dict(max_skips=0), ValueError, "max_skips must be a whole number of at least 1"),
    "zero_grad": (dict(zero_grad=1), TypeError, "zero_grad must be True or False"),
    "accumulation": (dict(accumulation="max"), ValueError, "accumulation must be one of 'mean', 'sum'"),
    "centralize": (dict(centralize="rows"), TypeError, "centralize must be True or False"),
    "cautious": (dict(cautious=1), TypeError, "cautious must be True, False or 'unscaled'"),
    "cautious name": (dict(cautious="scaled"), TypeError, "cautious must be True, False or 'unscaled'"),
    "cautious decay": (dict(cautious_weight_decay=2), TypeError, "cautious_weight_decay must be True or False"),
    "corrected": (dict(corrected_weight_decay=0), ValueError, "corrected_weight_decay must be above 0"),
    "no_decay": (dict(no_decay=1.5), TypeError, "no_decay must be patterns of names or a number of dimensions"),
    "no_decay flag": (dict(no_decay=True), TypeError, "no_decay must be patterns"),
    "no_decay none": (dict(no_decay=[None]), TypeError, "no_decay must be patterns"),
    "no_decay typo": (dict(no_decay="*.bais"), ValueError, "no_decay has '.*bais', which matches no parameter of w, b"),
    "lr_scale": (dict(lr_scale=0.5), TypeError, "lr_scale must be a mapping of patterns"),
    "lr_scale count": (dict(lr_scale=[1.0]), ValueError, "lr_scale must have 2 numbers"),
    "lr_scale minus": (dict(lr_scale={"w": -1.0}), ValueError, "lr_scale.'w'. must be at least 0"),
    "lr_scale typo": (dict(lr_scale={"v": 1.0}), ValueError, "lr_scale has 'v', which matches no parameter"),
    "clip_update": (dict(clip_update=-1.0), ValueError, "clip_update must be above 0"),
    "bounds": (dict(bounds=(1, 0)), ValueError, "bounds must be two numbers, the lower first"),
    "bounds nan": (dict(bounds=(np.nan, 0)), ValueError, "bounds must be two numbers, the lower first"),
    "bounds number": (dict(bounds=1.0), TypeError, "bounds must be .low, high. or 'nonnegative'"),
    "bounds name": (dict(bounds="12"), TypeError, "bounds must be .low, high. or 'nonnegative'"),
    "lookahead": (dict(lookahead=5), TypeError, "lookahead must be a pair"),
    "lookahead k": (dict(lookahead=(0, 0.5)), ValueError, "lookahead.0. must be a whole number of at least 1"),
    "lookahead share": (dict(lookahead=(5, 1.5)), ValueError, "lookahead.1. must be above 0 and at most 1"),
    "average": (dict(average="ema"), TypeError, "average must be an average of fastopt.averages"),
    "average class": (dict(average=EMA), TypeError, "average must be an average of fastopt.averages"),
    "average count": (dict(average=EMA([np.ones(2)])), ValueError, "average has 1 parameters, the optimizer 2"),
    "average shape": (dict(average=EMA([np.ones((3, 2)), np.ones(4)])), ValueError,
                      "average of parameter 'b' must have shape"),
    "average dtype": (dict(average=EMA([np.ones((3, 2)), np.ones(3, "float32")])), ValueError,
                      "average of parameter 'b' must have shape .* and dtype float64"),
    "statistics": (dict(statistics=None), TypeError, "statistics must be True or False"),
}


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(options, error, message):
    params = {"w": np.ones((3, 2)), "b": np.ones(3)}
    optimizer = AdamW(params)
    with pytest.raises(error, match=message):
        optimizer.set_stages(**options)
    assert optimizer._engine.pipeline is None
    optimizer.set_stages(bounds=(0.5, 0.75), lookahead=(1, 0.5))
    with pytest.raises(error, match=message):
        optimizer.set_stages(**options)
    optimizer.step({name: np.ones_like(param) for name, param in params.items()})
    np.testing.assert_array_equal(params["b"], 0.75)  # what was set before stays


CLIP_ARGUMENTS = [
    (lambda: GlobalNorm(0), ValueError, "max_norm must be above 0"),
    (lambda: GlobalNorm(1, 0), ValueError, "norm_type must be above 0"),
    (lambda: GlobalNorm(1, -1), ValueError, "norm_type must be above 0"),
    (lambda: GlobalNorm(1, -np.inf), ValueError, "norm_type must be finite"),
    (lambda: GlobalNorm(1, "fro"), TypeError, "norm_type must be a number"),
    (lambda: GlobalNorm(1, eps=-1), ValueError, "eps must be at least 0"),
    (lambda: ParameterNorm(-1), ValueError, "max_norm must be above 0"),
    (lambda: ParameterNorm(1, 0), ValueError, "norm_type must be above 0"),
    (lambda: Value(0), ValueError, "clip_value must be above 0"),
    (lambda: Adaptive(0), ValueError, "clip_factor must be above 0"),
    (lambda: Adaptive(1, eps=0), ValueError, "eps must be above 0"),
    (lambda: layer_decay(["a"], 0), ValueError, "decay must be above 0"),
]


@pytest.mark.parametrize(("make_one", "error", "message"), CLIP_ARGUMENTS)
def test_arguments_of_a_clip(make_one, error, message):
    with pytest.raises(error, match=message):
        make_one()


@pytest.mark.parametrize(("options", "error", "message"), [
    (dict(clip=0), ValueError, "clip must be above 0"),
    (dict(grad_scale=0), ValueError, "grad_scale must be above 0"),
    (dict(grad_scale=np.inf), ValueError, "grad_scale must be finite"),
    (dict(on_nonfinite="x"), ValueError, "on_nonfinite must be one of"),
])
def test_arguments_of_a_step(options, error, message):
    params, rows = inputs(2, skip=False)
    optimizer = Adam(params)
    optimizer.step(rows[0], clip=1.0)
    before = everything(optimizer, params)
    with pytest.raises(error, match=message):
        optimizer.step(rows[1], **options)
    assert everything(optimizer, params) == before
    optimizer.step(rows[1])


def test_patterns_need_names():
    optimizer = AdamW([np.ones(2)])
    for options in ({"no_decay": "*.bias"}, {"lr_scale": {"*": 0.5}}):
        with pytest.raises(ValueError, match="has patterns of names, but the parameters have no names"):
            optimizer.set_stages(**options)


@pytest.mark.parametrize(("stages", "message"), [
    ({"clip": Value(1.0)}, "no meaning for complex"),
    ({"clip": GlobalNorm(1.0, 1)}, "no meaning for complex"),
    ({"clip": ParameterNorm(1.0, np.inf)}, "no meaning for complex"),
    ({"centralize": True}, "centralize has no meaning for complex"),
    ({"bounds": (0, 1)}, "bounds has no meaning for complex"),
], ids=str)
def test_what_complex_parameters_cannot_have(stages, message):
    optimizer = AdamW([np.ones(3), np.ones((2, 2), complex)])
    with pytest.raises(ValueError, match=message):
        optimizer.set_stages(**stages)
    if "clip" in stages:
        with pytest.raises(ValueError, match=message):
            optimizer.step([np.ones(3), np.ones((2, 2), complex)], clip=stages["clip"])


@pytest.mark.parametrize("stages", [{"clip": 0.5}, {"clip": ParameterNorm(0.7)}, {"clip": Adaptive(0.1)},
                                    {"clip_update": 0.5}, {"lookahead": (2, 0.5)}, {"statistics": True},
                                    {"cautious": True}], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (700,), ()])
def test_complex_parameters_are_pairs_of_reals(stages, shape):
    rng = np.random.default_rng(0)
    pairs = [np.asarray(rng.standard_normal((*shape, 2))) for _ in range(6)]
    as_complex = [np.array(pair.view(complex)[..., 0]) for pair in pairs]
    if isinstance(stages.get("clip"), Adaptive) and len(shape) == 1:
        pairs = [pair.reshape(-1) for pair in pairs]  # all is one unit
    if isinstance(stages.get("clip"), Adaptive) and not shape:
        pairs = [pair.reshape(2) for pair in pairs]
    optimizers = [AdamW([pairs[0]], lr=0.1), AdamW([as_complex[0]], lr=0.1)]
    for optimizer in optimizers:
        optimizer.set_stages(**stages)
    for pair, gradient in zip(pairs[1:], as_complex[1:], strict=True):
        optimizers[0].step([pair])
        optimizers[1].step([gradient])
    np.testing.assert_allclose(as_complex[0].reshape(-1).view(float), pairs[0].reshape(-1), rtol=1e-12)
    assert optimizers[0].last_step.update_norm == pytest.approx(optimizers[1].last_step.update_norm)


# ---- gradients that are cleared, sparse ones, closures and hooks

def test_gradients_that_cannot_be_cleared_are_refused():
    params, rows = inputs(2, skip=False)
    optimizer = SGD(params, lr=1.0)
    optimizer.set_stages(zero_grad=True)
    before = everything(optimizer, params)
    fixed = rows[0][3].copy()
    fixed.flags.writeable = False
    memory = np.zeros(40)
    for wrong, message in [
        ([*rows[0][:3], fixed, rows[0][4]], "gradient of parameter 3 is read-only"),
        ([*rows[0][:1], 1.0, *rows[0][2:]], "gradient of parameter 1"),
        ([*rows[0][:3], memory[:17], memory[16:].reshape(2, 3, 4)], "gradient of parameter 3 and gradient of"),
        ([*rows[0][:3], params[4].reshape(-1)[:17], None], "share memory"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            optimizer.step(wrong)
        assert everything(optimizer, params) == before
    optimizer.bind_grads(rows[1])
    rows[1][3].flags.writeable = False
    with pytest.raises(ValueError, match="gradient of parameter 3 is read-only"):
        optimizer.step()
    rows[1][3].flags.writeable = True
    optimizer.step()
    assert all(np.all(g == 0) for g in rows[1])
    # what was fine apart is not so together
    memory = [memory[:17], memory[16:].reshape(2, 3, 4)]
    optimizer.step([*rows[0][:3], memory[0], None])
    optimizer.step([*rows[0][:3], None, memory[1]])
    with pytest.raises(ValueError, match="gradient of parameter 3 and gradient of parameter 4 share memory"):
        optimizer.step([*rows[0][:3], *memory])


def test_gradients_are_cleared_after_they_were_used_with_every_stage():
    for name, stages in STAGES.items():
        params, rows = inputs(1, shapes=SHAPES, skip=False)
        twins = copies(params)
        method = next(m for m in ELEMENTWISE if m.name == "AdamW")
        for given, zero in ((params, True), (twins, False)):
            optimizer, _ = make(method, {}, given, {**stages, "zero_grad": zero})
            optimizer.step(copies(rows[0]))
        assert [p.tobytes() for p in params] == [p.tobytes() for p in twins], name


def test_sparse_gradients_are_refused():
    param = np.ones((4, 2))
    sparse = fastopt.SparseRows(np.array([1, 3]), np.ones((2, 2)), (4, 2))
    optimizer = SGD(param)
    optimizer.step(sparse)
    before = param.copy()
    with pytest.raises(TypeError, match="gradient of parameter 0 is sparse: the stages of a step need dense"):
        optimizer.step(sparse, clip=1.0)
    with pytest.raises(TypeError, match="gradient of parameter 0 is sparse"):
        optimizer.accumulate([sparse])
    np.testing.assert_array_equal(param, before)
    with pytest.raises(ValueError, match="SparseAdam has no stages"):
        fastopt.SparseAdam(np.ones((4, 2))).set_stages(clip=1.0)


def test_closures_and_hooks_go_with_stages():
    param = np.ones(2)
    optimizer = SGD(param, lr=1.0)
    optimizer.set_stages(clip=GlobalNorm(5.0, eps=0.0))
    assert optimizer.step(closure=lambda: (3.0, [np.array([6.0, 8.0])])) == 3.0
    np.testing.assert_array_equal(param, [-2.0, -3.0])
    seen = []
    with optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(sorted(kwargs))):
        optimizer.step([np.array([6.0, 8.0])], clip=GlobalNorm(10.0, eps=0.0))
    np.testing.assert_array_equal(param, [-8.0, -11.0])
    assert seen == [["clip", "closure", "grads"]]


def test_averages_in_the_parameters_stop_the_step():
    param = np.ones(2)
    optimizer = SGD(param)
    ema = EMA([param])  # follows the parameter, not the optimizer
    optimizer.set_stages(average=ema)
    with ema.average_parameters(), pytest.raises(RuntimeError, match="while the averages are in the parameters"):
        optimizer.step(np.ones(2))
    optimizer.step(np.ones(2))
    assert ema.n_averaged == 1


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(("dtype", "other"), [("float32", "float64"), ("float64", "float32")])
def test_the_dtype_of_a_gradient_does_not_matter(name, dtype, other):
    results = []
    for given in (dtype, other):
        params, rows = inputs(3, dtype, SHAPES)
        optimizer, _ = make(next(m for m in ELEMENTWISE if m.name == "AdamW"), {"maximize": True}, params, STAGES[name])
        for row in rows:
            row = [None if g is None else np.asarray(g.astype("float32"), given) for g in row]
            optimizer.step(row, grad_scale=4.0)
        results.append(snapshot(optimizer, params))
    assert results[0] == results[1]


def test_reference_steps_are_what_is_left_without_stages():
    method = ELEMENTWISE[0]
    params, rows = inputs(3)
    twins = copies(params)
    optimizer = method.optimizer(params)
    for row in rows:
        optimizer.step(row, grad_scale=1.0)
    reference_steps(method, twins, rows)
    compare(params, twins)


def test_asking_for_the_last_step_sets_nothing():
    optimizer = SGD(np.ones(2))
    assert optimizer.last_step.grad_norm is None
    assert optimizer._engine.pipeline is None


# ---- methods without a compiled rule: the same calls by hand

WHOLE = {
    "Adafactor": lambda params: fastopt.Adafactor(params, lr=0.1, weight_decay=0.1),
    "Muon": lambda params: fastopt.Muon({name: p for name, p in params.items() if p.ndim == 2}, lr=0.05),
    "MuonAdamW": lambda params: fastopt.MuonAdamW(params, muon={"lr": 0.05}, adamw={"lr": 0.01}),
}
WHOLE_STAGES = [name for name, stages in STAGES.items()
                if not {"no_decay", "lr_scale", "clip_update", "cautious", "cautious_weight_decay",
                        "corrected_weight_decay"} & set(stages)]


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("name", WHOLE_STAGES)
def test_stages_of_whole_methods_are_the_calls_by_hand(kind, name):
    stages = STAGES[name]
    params, rows = inputs(STEPS, shapes=SHAPES, seed=1)
    shown = [i for i, p in enumerate(params) if p.ndim == 2 or kind != "Muon"]
    params, rows = [params[i] for i in shown], [[row[i] for i in shown] for row in rows]
    twins = copies(params)
    optimizer, twin = (WHOLE[kind](dict(zip([NAMES[i] for i in shown], given, strict=True)))
                       for given in (params, twins))
    averages = [average(optimizer) for average in stages.get("average", ())]
    others = [average(twin) for average in stages.get("average", ())]
    optimizer.set_stages(**{**stages, "average": averages})
    slow = copies(twins)
    for count, row in enumerate(rows, 1):
        scaled = [None if g is None else np.asarray(g * 3.0) for g in row]
        grads = [g if g is None or not stages.get("centralize") or g.ndim < 2
                 else centered(g)
                 for g in clipped(row, twins, stages.get("clip"))]
        before = copies(twins)
        twin.step([None if g is None else np.asarray(g) for g in grads])
        if "lookahead" in stages and count % stages["lookahead"][0] == 0:
            for own, param in zip(slow, twins, strict=True):
                own += stages["lookahead"][1] * (param - own)
                param[...] = own
        if "bounds" in stages:
            for param in twins:
                np.clip(param, *((0, np.inf) if stages["bounds"] == "nonnegative" else stages["bounds"]), out=param)
        for other in others:
            other.update()
        optimizer.step(scaled, grad_scale=3.0)
        for i, (mine, theirs) in enumerate(zip(params, twins, strict=True)):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11, err_msg=f"{shown[i]} in step {count}")
        for average, other in zip(averages, others, strict=True):
            for mine, theirs in zip(average.averages, other.averages, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)
        if stages.get("zero_grad"):
            assert all(g is None or np.all(g == 0) for g in scaled)
        if stages.get("statistics"):
            for got, arrays in ((optimizer.last_step.update_norm, [p - q for p, q in zip(twins, before, strict=True)]),
                                (optimizer.last_step.param_norm, twins)):
                assert got == pytest.approx(np.sqrt(sum(np.sum(array**2) for array in arrays)))
            total = np.sqrt(sum(np.sum(g**2) for g in row if g is not None))
            assert np.hypot.reduce(optimizer.last_step.grad_norms) == pytest.approx(total)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_methods_skip_refuse_and_accumulate(kind):
    params = {"w": np.ones((3, 2))}
    rows = inputs(3, shapes=((3, 2),), skip=False)[1]
    optimizer, twin = WHOLE[kind](params), WHOLE[kind]({"w": np.ones((3, 2))})
    swa = SWA(optimizer)
    optimizer.set_stages(on_nonfinite="skip", average=swa, lookahead=(1, 0.5))
    bad = rows[0][0].copy()
    bad[2, 1] = np.nan
    before = everything(optimizer, params.values(), [swa])
    optimizer.step({"w": bad})
    assert optimizer.last_step.skipped
    with pytest.raises(NonFiniteGradient, match=r"gradient of parameter 'w' is nan at index \(2, 1\)"):
        optimizer.step({"w": bad}, on_nonfinite="raise")
    assert everything(optimizer, params.values(), [swa]) == before
    for row in rows:
        optimizer.accumulate(row)
    optimizer.step(clip=0.5)
    twin.set_stages(lookahead=(1, 0.5))
    twin.step([sum(row[0] for row in rows) / 3], clip=0.5)
    np.testing.assert_allclose(params["w"], twin._plan.params[0], rtol=1e-12)
    again = pickle.loads(pickle.dumps(optimizer))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (optimizer, again):
        each.step(rows[0])
    assert again._plan.params[0].tobytes() == params["w"].tobytes()


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("stages", [{"cautious": True}, {"cautious_weight_decay": True}, {"no_decay": 1},
                                    {"lr_scale": [1.0]}, {"clip_update": 1.0}, {"corrected_weight_decay": 1.0}],
                         ids=str)
def test_what_whole_methods_cannot_have(kind, stages):
    with pytest.raises(ValueError, match=f"{next(iter(stages))} has no meaning for {kind}"):
        WHOLE[kind]({"w": np.ones((2, 2))}).set_stages(**stages)


def test_stages_of_other_kinds_of_step():
    with pytest.raises(ValueError, match="LBFGS has no stages"):
        fastopt.LBFGS([np.ones(2)]).set_stages(clip=1.0)
    optimizer = WHOLE["MuonAdamW"]({"w": np.ones((2, 2)), "b": np.ones(2)})
    with pytest.raises(ValueError, match="adamw is a part of a MuonAdamW, which steps, loads and changes both"):
        optimizer.adamw.set_stages(clip=1.0)


def test_a_plan_takes_an_array_for_each_parameter():
    plan = Plan("sgd")
    plan.extend([np.ones(2), np.ones(3)], [None, None], 0)
    with pytest.raises(ValueError, match="there must be 2 arrays, got 1"):
        plan.stage([("average", [np.ones(2)], True)], on=True)


def test_new_stages_take_no_sums():
    plan = Plan("sgd")
    plan.extend([np.ones(2)], [None], 0)
    plan.set_state(0, [])
    for on in (True, False):
        plan.stage([], on=on)
        plan.take_sums(param=True)
        plan.stage([], on=on)
        plan.begin([np.ones(2)])
        coefficients = (AS_IT_IS, rules.sgd(mu=0.0, tau=0.0, x=0.0, y=1.0), ())
        assert plan.run([coefficients]) is None


def test_the_last_step_counts_what_was_skipped_and_clipped():
    params = [np.zeros(4)]
    optimizer = fastopt.SGD(params, lr=0.1)
    optimizer.set_stages(clip=1.0, on_nonfinite="skip")
    for size in (0.1, 10.0, np.nan, 10.0):
        optimizer.step([np.full(4, size)])
    last = optimizer.last_step
    assert (last.steps, last.skipped_steps, last.clipped_steps) == (4, 1, 2.0)
    again = fastopt.SGD([np.zeros(4)], lr=0.1)
    again.set_stages(clip=1.0, on_nonfinite="skip")
    again.load_state_dict(optimizer.state_dict())
    again.step([np.full(4, 0.1)])
    assert (again.last_step.steps, again.last_step.skipped_steps, again.last_step.clipped_steps) == (5, 1, 2.0)
