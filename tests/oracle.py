"""A second optimizer for the property tests: slow, in extended precision, and without any code that steps fastopt's.

The rules are those of `fastopt.reference`; the stages, averages, sparse rows and counters are written anew here.
Complex arrays are kept as pairs of reals, in one more dimension.
"""

import math

import numpy as np

from fastopt import reference
from fastopt.stages import Adaptive, GlobalNorm, ParameterNorm, Value

WIDE = np.longdouble
ROUNDING = {"f": 2.0**-23, "d": 2.0**-52, "F": 2.0**-23, "D": 2.0**-52}


def wide(array):
    """A copy in extended precision, of pairs of reals if it is complex."""
    array = np.array(array)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(WIDE)


def at(value, count):
    """A hyperparameter after a number of steps."""
    if callable(value):
        return value(count)
    return tuple(at(part, count) for part in value) if isinstance(value, (list, tuple)) else value


def norm(arrays, order):
    """The norm of all arrays as one vector, whatever their range."""
    flat = np.concatenate([np.abs(array).ravel() for array in arrays] or [np.zeros(0, WIDE)])
    most = np.max(flat, initial=0)
    if order in (math.inf, "inf") or not np.isfinite(most) or most == 0:
        return most
    powers = (flat / most) ** WIDE(order)
    return most * WIDE(math.fsum(powers.tolist())) ** (1 / WIDE(order))


def ratio_of(norm, clip):
    return WIDE(1) if norm + clip.eps <= clip.max_norm else clip.max_norm / (norm + clip.eps)


class Mean:
    """An average of parameters."""

    def __init__(self, kind, options, params):
        self.kind, self.options, self.count = kind, options, 0
        self.arrays = [param.copy() for param in params]

    def share(self):
        """The weight of the newest parameters."""
        if self.kind == "SWA":
            return 1 / self.count
        decay, t = self.options.get("decay", 0.999), self.count - 1 - self.options.get("update_after_step", 0)
        if t <= 0:
            return 1.0
        return (1 - decay) / (1 - decay ** (t + 1)) if self.options.get("debias") else 1 - decay


class Oracle:
    """What an optimizer, its stages and its averages must be after each operation."""

    def __init__(self, method, noise=None):
        self.method = method
        self.native = bool(noise and noise % 2)
        self.rng = None if noise is None else np.random.default_rng(noise)
        self.params, self.kinds, self.ndims, self.names, self.group_of = [], [], [], [], []
        self.groups, self.states, self.counts, self.slow, self.averages = [], [], [], [], []
        self.count, self.stages, self.last, self.eager = 0, None, {}, False
        self.begin()

    # ---- operations

    def add_group(self, params, names, options):
        self.groups.append(dict(options))
        for param, name in zip(params, names, strict=True):
            self.params.append(self.rounded(wide(param), param.dtype.char))
            self.kinds.append(param.dtype.char)
            self.ndims.append(param.ndim)
            self.names.append(name)
            self.group_of.append(len(self.groups) - 1)
            self.states.append({})
            self.counts.append(0)
            self.slow.append(self.params[-1].copy())

    def set_stages(self, stages):
        """Averages among them, as (kind, options), begin now."""
        had = (self.stages or {}).get("lookahead")
        self.stages = dict(stages)
        if not (had and stages.get("lookahead")):
            self.slow = [param.copy() for param in self.params]
        self.averages = [Mean(kind, options, self.params) for kind, options in stages.get("average", ())]
        self.begin(counters=True)

    def set_option(self, group, name, value):
        self.groups[group][name] = value

    def set_count(self, count):
        self.count = count
        self.counts = [count if old or self.eager else 0 for old in self.counts]

    def set_state(self, i, key, array):
        self.states[i][key] = wide(array)

    def reset(self):
        self.states, self.counts = [{} for _ in self.params], [0] * len(self.params)
        self.slow = [param.copy() for param in self.params]
        self.count, self.eager = 0, False
        if self.stages is not None:
            self.begin(counters=True)

    def touch(self):
        """Steps are counted from now on, as someone asked for a stage."""
        self.stages = self.stages or {}

    def loaded(self):
        """A checkpoint does not have the last step, nor counts that torch does not keep; it may have a first state."""
        self.eager = self.method.optimizer.eager_state
        if self.eager:
            for i, state in enumerate(self.states):
                for slot, value in self.method.slots(**self.settings(i)).items():
                    state.setdefault(slot, np.full_like(self.params[i], value))
        if not self.method.optimizer.counts_steps:
            self.counts = [count if state or not param.size else 0
                           for count, state, param in zip(self.counts, self.states, self.params, strict=True)]
        self.last = {key: self.last[key] for key in ("steps", "skipped_steps")} | {"forgotten": True}

    def begin(self, counters=False):
        """Nothing is accumulated; with `counters`, no step was made."""
        self.sums, self.weight = {}, 0.0
        if counters or not self.last:
            self.last = {"steps": 0, "skipped_steps": 0}

    def accumulate(self, grads, weight):
        self.stages = self.stages or {}
        for i, grad in enumerate(grads):
            if grad is not None:
                added = weight * self.rounded(wide(grad), self.kinds[i])
                self.sums[i] = added + self.sums[i] if i in self.sums else added
        self.weight += weight

    def sparse_step(self, grads):
        """Gradients are (dense twin, rows that were touched)."""
        if self.method.optimizer.sparse == "only":
            for i, given in enumerate(grads):
                if given is not None:
                    self.counts[i] += 1
                    self.rows_step(i, *given)
            self.count += 1
        else:
            self.step([None if given is None else given[0] for given in grads])

    def rows_step(self, i, grad, rows):
        settings = self.settings(i)
        state = self.states[i]
        for slot in ("exp_avg", "exp_avg_sq"):
            state.setdefault(slot, np.zeros_like(self.params[i]))
        part = {slot: array[rows] for slot, array in state.items()}
        param = self.params[i][rows]
        reference.adam(param, self.rounded(wide(grad)[rows], self.kinds[i]), part, self.counts[i], eps_mode="hat",
                       **settings)
        self.params[i][rows] = self.rounded(param, self.kinds[i])
        for slot, array in state.items():
            array[rows] = part[slot]

    def step(self, grads, clip=None, grad_scale=None, on_nonfinite=None):
        """Returns "made", "skipped" or "raised"."""
        if not (clip is None and grad_scale is None and on_nonfinite is None):
            self.stages = self.stages or {}
        stages = self.stages or {}
        clip = stages.get("clip") if clip is None else clip
        clip = GlobalNorm(clip) if isinstance(clip, (int, float)) else clip
        policy = on_nonfinite or stages.get("on_nonfinite", "propagate")
        scale = WIDE(1) / (grad_scale or 1)
        if self.weight:
            grads = [self.sums.get(i) for i in range(len(self.params))]
            scale = scale / (self.weight if stages.get("accumulation", "mean") == "mean" else 1)
        else:
            grads = [None if g is None else self.rounded(wide(g), self.kinds[i]) for i, g in enumerate(grads)]
        given = {i: g.astype(WIDE) * scale for i, g in enumerate(grads) if g is not None}
        finite = all(np.isfinite(g).all() for g in given.values())
        record = {"grad_norm": None, "skipped": False, "clipped": 0.0, "near": False}
        normed = isinstance(clip, (GlobalNorm, ParameterNorm))
        if normed or policy != "propagate":
            record["grad_norm"] = norm(given.values(), clip.norm_type if normed else 2)
        if policy == "raise" and not finite:
            return "raised"
        if policy == "skip" and not finite:
            self.note(record | {"skipped": True})
            self.begin()
            return "skipped"
        before = [param.copy() for param in self.params]
        for i, grad in self.clipped(given, clip, record).items():
            if stages.get("centralize") and self.ndims[i] > 1:
                grad = grad - grad.mean(axis=tuple(range(1, grad.ndim)), keepdims=True)
            self.update(i, grad)
        self.count += 1
        if stages.get("lookahead") and self.count % stages["lookahead"][0] == 0:
            for i, (slow, param) in enumerate(zip(self.slow, self.params, strict=True)):
                slow += stages["lookahead"][1] * (param - slow)
                self.params[i] = slow.copy()
        if stages.get("bounds"):
            low, high = (0, np.inf) if stages["bounds"] == "nonnegative" else stages["bounds"]
            self.params = [np.array(np.clip(param, low, high)) for param in self.params]
        for average in self.averages:
            self.update_average(average)
        if stages.get("statistics"):
            groups = range(len(self.groups))
            sort = [[i for i, group in enumerate(self.group_of) if group == k] for k in groups]
            record["grad_norms"] = [norm([given[i] for i in sort[k] if i in given], 2) for k in groups]
            record["param_norms"] = [norm([self.params[i] for i in sort[k]], 2) for k in groups]
            record["update_norms"] = [norm([self.params[i] - before[i] for i in sort[k]], 2) for k in groups]
            if record["grad_norm"] is None:
                record["grad_norm"] = norm(given.values(), 2)
        self.note(record)
        self.begin()
        return "made"

    def update_average(self, average):
        average.count += 1
        share = average.share()
        for i, param in enumerate(self.params):
            mean = average.arrays[i]
            mean = mean + share * (param - mean) if share < 0.5 else param - (1 - share) * (param - mean)
            average.arrays[i] = self.rounded(mean, "d" if average.options.get("dtype") else self.kinds[i])

    # ---- parts of a step

    def note(self, record):
        if self.stages is not None:
            old = self.last
            self.last = record | {"steps": old["steps"] + 1, "skipped_steps": old["skipped_steps"] + record["skipped"]}

    def clipped(self, given, clip, record):
        """The gradients after clipping; what was clipped is noted."""
        if isinstance(clip, GlobalNorm):
            ratio = ratio_of(record["grad_norm"], clip)
            record["clipped"], record["near"] = float(ratio != 1), abs(ratio - 1) < 1e-4
            return {i: g * ratio for i, g in given.items()}
        if isinstance(clip, ParameterNorm):
            record["clipped"] = None
            return {i: g * ratio_of(norm([g], clip.norm_type), clip) for i, g in given.items()}
        if isinstance(clip, Value):
            return {i: np.clip(g, -clip.clip_value, clip.clip_value) for i, g in given.items()}
        if isinstance(clip, Adaptive):
            record["clipped"] = None
            return {i: self.adapted(self.params[i], g, self.ndims[i], clip) for i, g in given.items()}
        return given

    @staticmethod
    def adapted(param, grad, ndim, clip):
        param, grad = param.astype(WIDE), grad.astype(WIDE)
        axes = tuple(range(1, grad.ndim)) if ndim > 1 else None
        sizes = [np.sqrt(np.sum(x * x, axis=axes, keepdims=True)) for x in (param, grad)]
        most = clip.clip_factor * np.maximum(sizes[0], clip.eps)
        return grad * np.where(sizes[1] <= most, 1, most / np.maximum(sizes[1], 1e-6))

    def settings(self, i):
        """The arguments of the rule of a parameter."""
        values = {name: at(value, self.count) for name, value in self.groups[self.group_of[i]].items()}
        if self.method.name == "Adafactor" and values["eps"][0] is None:  # of the parameter, not of the oracle
            values["eps"] = (ROUNDING[self.kinds[i]], values["eps"][1])
        return values

    def update(self, i, grad):
        stages, rule, options = self.stages or {}, self.method.reference, self.settings(i)
        param, state = self.rounded(self.params[i], self.kinds[i]), self.states[i]
        fixed = self.method.optimizer.fixed
        decoupled = self.method.optimizer.decoupled(self.method.options | options | fixed)
        rate = self.rate(i)
        self.counts[i] += 1
        if not grad.size:
            return
        decay = options.get("weight_decay", 0.0) * (0.0 if self.excluded(i) else 1.0)
        if stages.get("corrected_weight_decay"):
            decay *= options["lr"] / stages["corrected_weight_decay"]
        options["lr"] *= rate
        apart = decoupled and (stages.get("cautious") or stages.get("cautious_weight_decay"))
        if "weight_decay" in options:
            # norms of an update are with its decay
            options["weight_decay"] = 0.0 if apart and not self.method.layerwise else decay
        ascent = -grad if options.get("maximize") else grad
        ascent = ascent if decoupled else ascent + decay * param
        if stages.get("clip_update") is not None:
            after = {key: np.array(value) for key, value in state.items()}
            rule(param.copy(), grad, after, self.counts[i], **options)
            second = after["exp_avg_sq"] / (1 - options["betas"][1] ** self.counts[i])
            ratios = ascent * ascent / np.maximum(second, options["eps"] ** 2)
            options["lr"] /= max(1.0, np.sqrt(ratios.mean()) / stages["clip_update"])
        moved = param.copy()
        factors = rule(moved, grad, state, self.counts[i], **options) or {}
        options["lr"] *= factors.get("rate", 1.0)
        if self.method.layerwise:
            ascent = factors.get("gradient", 1.0) * (-grad if options.get("maximize") else grad)
            ascent = ascent if decoupled else ascent + factors.get("decay", 1.0) * decay * param
            moved = moved + options["lr"] * decay * param if apart else moved
        if self.rng is not None:  # the masks compare rounded parameters
            moved = self.rounded(param - self.rounded(param - moved, self.kinds[i]), self.kinds[i])
        if stages.get("cautious"):
            kept = (param - moved) * ascent > 0
            share = max(kept.mean(), 1e-3) if stages["cautious"] is True else 1.0
            moved = param - (param - moved) * kept / share
        if apart:
            agrees = (param - moved) * param >= 0 if stages.get("cautious_weight_decay") else True
            moved = moved - options["lr"] * decay * param * agrees
        self.params[i] = self.rounded(moved, self.kinds[i])
        for key, value in state.items():
            if np.ndim(value) or key in self.method.optimizer.state_slots:
                state[key] = self.rounded(np.array(value), self.kinds[i])

    def rate(self, i):
        scale = (self.stages or {}).get("lr_scale")
        if isinstance(scale, dict):
            return next((scale[key] for key in scale if self.fits(key, self.names[i])), 1.0)
        return 1.0 if scale is None else scale[i]

    def excluded(self, i):
        rules = (self.stages or {}).get("no_decay", ())
        rules = (rules,) if isinstance(rules, (str, int)) else rules
        return any(self.ndims[i] <= rule if isinstance(rule, int) else self.fits(rule, self.names[i]) for rule in rules)

    @staticmethod
    def fits(pattern, name):
        """The tests use no pattern but a beginning and a star."""
        return name.startswith(pattern.removesuffix("*"))

    # ---- roundings

    def rounded(self, array, kind):
        """With noise, what arithmetic with this rounding might have made of the numbers; without, themselves.

        Every second oracle with noise also computes in the dtype of the parameter: a rule has differences inside.
        """
        if self.rng is None:
            return np.array(array)
        noisy = array * (1 + ROUNDING[kind] * self.rng.uniform(-1, 1, np.shape(array)))
        return np.array(noisy, kind.lower() if self.native else WIDE)
