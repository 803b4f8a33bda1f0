"""The whole step of a training loop, and what each stage adds to it.

The race `whole-step`: clip by the global norm, AdamW, an exponential moving average of the weights, and gradients set
to zero. fastopt does it in one `step()` with `set_stages(clip=1.0, average=ema, zero_grad=True)`. torch does it in four
calls, each the fastest of torch's own ways for this case, as raced just before (the table says which):
`clip_grad_norm_`, fused or foreach `AdamW.step()`, `get_ema_multi_avg_fn` or a loop of `lerp_`, and `zero_grad` or
`_foreach_zero_`.

Its same-traffic limit moves 44 bytes for each float32 element: a sweep that reads the gradient (4, a sum of squares,
`Plan.powers`), then one pass that reads the gradient (4), reads and writes the parameter, two moments and an average
(32), with one multiplication each, and clears the gradient (4).

Before each step, outside of the time that counts, the gradients are written anew, for every contender alike: standard
normal, so that their norm is far above 1 and clipping acts. They lie one after the other in one block of memory.
fastopt and the limit work on the same parameters, gradients and moments; torch's lie in memory of the same kind.

The race `stages`: AdamW alone, and with one stage at a time, all on the same parameters, gradients and moments. "Its
bytes" is what a stage may cost if memory is all that counts: the bytes that the pass moves with it, over the 28 of the
step alone, and a read of an array for each one that it must read as a whole before. What such a read costs is measured
with `numpy.max`. A parameter has rows here, so that stages that work by rows have some.
"""

from math import gcd

import numpy as np

from ..averages import EMA, SWA
from ..kernels.arrays import owned
from ..optimizers import AdamW
from ..stages import Adaptive, ParameterNorm, Value
from .cases import parse
from .limit import same_traffic_whole
from .race import FASTOPT, LIMIT, TORCH, Contender, Race, Row, Step, torch
from .runner import interleave, microseconds, spacer, times
from .steps import BOUND, tensor

DECAY = 0.999
PLAIN_BYTES, BYTES = 28, 44  # that a step moves for each element: AdamW alone, the whole step
WHOLE = {"clip": 1.0, "average": EMA, "zero_grad": True}  # EMA's decay is 0.999 unless another is given


class Work:
    """The arrays of a case, which all that step NumPy memory share, and the gradients' values."""

    def __init__(self, row, case, dtype="float32", threads=1):
        self.case, self.threads = case, threads
        self.elements, self.traffic = case.total, BYTES * case.total
        random = np.random.default_rng(7)
        shape = -1, gcd(case.elements, 1000)
        self.params = [owned(random.standard_normal(case.elements, np.float32).reshape(shape), np.float32)
                       for _ in range(case.arrays)]
        self.values = random.standard_normal((case.arrays, *self.params[0].shape), np.float32)
        self.gradient = owned(self.values, np.float32)
        self.grads = list(self.gradient)
        self.moments = [{} for _ in self.params]  # made by the first step of an optimizer

    @property
    def bytes(self):
        """Of parameters, gradients, moments and an average."""
        return 5 * 4 * self.case.total

    def refill(self, arguments=(None,)):
        np.copyto(self.gradient, self.values)
        return arguments

    def optimizer(self, stages=None):
        """An AdamW with these stages; for an average they have its class."""
        made = AdamW(self.params)
        made.num_threads = self.threads
        made._engine.arrays = self.moments
        if stages is not None:
            if "average" in stages:
                stages = stages | {"average": stages["average"](made)}
            made.set_stages(**stages)
        made.step(self.grads)
        self.refill()
        return made

    def step(self, function, *arguments, **about):
        """A step before which the gradients are written anew; its argument is None or given."""
        return Step(function, before=lambda _: self.refill(arguments or (None,)), **about)

    def stepping(self, stages=None, **about):
        return self.step(self.optimizer(stages).step, self.grads, **about)


# ---- the whole step ----------------------------------------------------------------------------

def bound(work):
    optimizer = work.optimizer(WHOLE)
    optimizer.bind_grads(work.grads)
    return work.step(optimizer.step)


def limit(work):
    """The third state array stands for the average."""
    if not work.moments[0]:
        work.optimizer()
    params = [owned(param, np.float32) for param in work.params]
    states = [[*moments.values(), owned(param, np.float32)]
              for moments, param in zip(work.moments, work.params, strict=True)]
    step = same_traffic_whole(params, states, work.grads, work.threads)
    return work.step(lambda _: step())


class TorchStep:
    """torch's parameters, gradients, moments and averages, and the fastest of its ways for each part of the step."""

    def __init__(self, work):
        optim = torch().optim
        self.params = [tensor(torch().from_numpy(param)) for param in work.params]
        self.averages = [tensor(param) for param in self.params]
        self.values = torch().from_numpy(work.values)
        self.gradient = tensor(self.values)
        for param, grad in zip(self.params, self.gradient.unbind(), strict=True):
            param.grad = grad.detach()
        grads, params, averages = [param.grad for param in self.params], self.params, self.averages
        self.fused, foreach = self.optimizer(fused=True), self.optimizer(foreach=True)
        lerp = optim.swa_utils.get_ema_multi_avg_fn(DECAY)
        clip = torch().nn.utils.clip_grad_norm_
        self.parts = [self.fastest(work, ways) for ways in (
            {"clip_grad_norm_ foreach": lambda: clip(params, 1.0, foreach=True),
             "clip_grad_norm_ loop": lambda: clip(params, 1.0, foreach=False)},
            {"AdamW fused": self.fused.step, "AdamW foreach": foreach.step},
            {"get_ema_multi_avg_fn": lambda: lerp(averages, params, None), "lerp_ loop": self.lerp_one_by_one},
            {"zero_grad": lambda: self.fused.zero_grad(set_to_none=False),
             "_foreach_zero_": lambda: torch()._foreach_zero_(grads)},
        )]

    def optimizer(self, **way):
        made = torch().optim.AdamW(self.params, **way)
        made.step()
        for state in made.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = tensor(state[name])
        return made

    def refill(self, _):
        self.gradient.copy_(self.values)
        return (None,)

    def lerp_one_by_one(self):
        for average, param in zip(self.averages, self.params, strict=True):
            average.lerp_(param, 1 - DECAY)

    def fastest(self, work, ways):
        """(name, way) of the least best time."""
        steps = [Step(lambda _, way=way: way(), before=self.refill) for way in ways.values()]
        samples = interleave(steps, rounds=10, seconds=1.0, between=spacer(work.bytes))
        return min(zip(ways.items(), samples, strict=True), key=lambda entry: min(entry[1]))[0]

    def step(self):
        clip, advance, average, zero = (way for _, way in self.parts)

        def step(_):
            clip()
            advance()
            average()
            zero()

        return Step(step, before=self.refill, label=f"{TORCH}: {', '.join(name for name, _ in self.parts)}")


WHOLE_STEP = Race(
    "whole-step", "Clip by the global norm, AdamW, an average of the weights, cleared gradients: in one step.",
    (Row("AdamW"),), ("1000x16", "100x64", "1x1M", "1x30M"), parse, Work,
    (
        Contender(FASTOPT, lambda work: work.stepping(WHOLE)),
        Contender(BOUND, bound),
        Contender(TORCH, lambda work: TorchStep(work).step(), needs="torch"),
        Contender(LIMIT, limit),
    ),
    base=FASTOPT, dtypes=("float32",), seconds=6.0,
)


# ---- stage by stage ----------------------------------------------------------------------------

PLAIN, MICRO_BATCHES = "no stages", "accumulate, 2 micro-batches"
READ = "a read of the gradient, numpy.max"
# name: (the options, bytes that the pass moves for each element with them, arrays that are read as a whole before)
STAGES = {
    PLAIN: (None, PLAIN_BYTES, 0),
    "stages set, all off": ({}, PLAIN_BYTES, 0),
    "clip, global norm": ({"clip": 1.0}, PLAIN_BYTES, 1),
    "clip, norm of each parameter": ({"clip": ParameterNorm(1.0)}, PLAIN_BYTES, 1),
    "clip, value": ({"clip": Value(0.5)}, PLAIN_BYTES, 0),
    "clip, adaptive": ({"clip": Adaptive(0.01)}, PLAIN_BYTES, 2),
    "on_nonfinite, skip": ({"on_nonfinite": "skip"}, PLAIN_BYTES, 1),
    "centralize": ({"centralize": True}, PLAIN_BYTES, 1),
    "cautious": ({"cautious": True}, PLAIN_BYTES, 2),
    "cautious, unscaled": ({"cautious": "unscaled"}, PLAIN_BYTES, 0),
    "cautious_weight_decay": ({"cautious_weight_decay": True}, PLAIN_BYTES, 0),
    "clip_update": ({"clip_update": 1.0}, PLAIN_BYTES, 2),
    "bounds": ({"bounds": (-1e3, 1e3)}, PLAIN_BYTES, 0),
    "lookahead, every 5 steps": ({"lookahead": (5, 0.5)}, 29.6, 0),
    "average, EMA": ({"average": EMA}, 36, 0),
    "average, SWA": ({"average": SWA}, 36, 0),
    "zero_grad": ({"zero_grad": True}, 32, 0),
    "statistics": ({"statistics": True}, PLAIN_BYTES, 0),
    "clip, EMA and zero_grad": (WHOLE, 40, 1),
}


def accumulating(work):
    summing = work.optimizer({})

    def step(grads):
        summing.accumulate(grads)
        summing.accumulate(grads)
        summing.step()

    # the first micro-batch is read and its sum written, the second is read and its sum read and written
    return work.step(step, work.grads, traffic=(8 + 12 + PLAIN_BYTES) * work.elements)


def read(work):
    return work.step(lambda _: np.max(work.gradient), traffic=4 * work.elements)


def with_stages(name):
    stages, moved, _ = STAGES[name]
    return Contender(name, lambda work: work.stepping(stages, traffic=moved * work.elements))


def its_bytes(comparison, name):
    """What the bytes allow, over the time of the step without stages."""
    if name == READ:
        return ""
    moved = comparison.measurements[name].traffic / comparison.measurements[name].elements
    reads = STAGES[name][2] if name in STAGES else 0
    cost = comparison.ratios(READ)[0] if reads and READ in comparison.measurements else 0.0
    return f"{moved / PLAIN_BYTES + reads * cost:.2f} x"


STAGE_BY_STAGE = Race(
    "stages", "AdamW with one stage at a time.", (Row("AdamW"),), ("1x1M",), parse, Work,
    (*map(with_stages, STAGES), Contender(MICRO_BATCHES, accumulating), Contender(READ, read)),
    base=PLAIN, dtypes=("float32",), seconds=6.0,
    columns={
        "best µs": microseconds("best"),
        "median µs": microseconds("median"),
        "of the plain step (best)": times(0),
        "of the plain step (median)": times(1),
        "its bytes": its_bytes,
    },
)
