"""The whole step of a training loop, and what each stage adds to it: `python -m fastopt.bench.stages`.

First table: clip by the global norm, AdamW, an exponential moving average of the weights, and gradients set to zero.
fastopt does it in one `step()` with `set_stages(clip=1.0, average=ema, zero_grad=True)`. torch does it in four calls,
of which each is the fastest of torch's own ways for this case, as raced just before (the table says which):
`clip_grad_norm_`, fused or foreach `AdamW.step()`, `get_ema_multi_avg_fn` or a loop of `lerp_`, and `zero_grad` or
`_foreach_zero_`. Both have the same number of threads.

The same-traffic limit moves 44 bytes for each float32 element: a sweep that reads the gradient (4, a sum of squares,
`Plan.powers`), then one pass that reads the gradient (4), reads and writes the parameter, two moments and an average
(32), with one multiplication each, and clears the gradient (4).

Before each step, outside of the time that counts, the gradients are written anew, for every rival alike: standard
normal, so that their norm is far above 1 and clipping acts. They lie one after the other in one block of memory.
fastopt and the limit work on the same parameters, gradients and moments; torch's lie in memory of the same kind.

Second table: AdamW alone, and with one stage at a time, all on the same parameters, gradients and moments. "Its bytes"
is what a stage may cost if memory is all that counts: the bytes that the pass moves with it, over the 28 of the step
alone, and a read of an array for each one that it must see as a whole before. What such a read costs is measured with
`numpy.max`. A parameter has rows here, so that stages that work by rows have some. The line "before any stages" was
measured at the start, when no optimizer of the process had stages; all others afterwards, in turns. The median is a
ratio of medians.
"""

import sys
from dataclasses import dataclass
from math import gcd
from statistics import median

import numpy as np

from ..averages import EMA, SWA
from ..cli import Parser, execute, positive, whole
from ..kernels import threads as threading
from ..kernels.arrays import owned
from ..kernels.plan import AS_IT_IS, Plan
from ..optimizers import AdamW
from ..stages import Adaptive, ParameterNorm, Value
from .cases import case_named, parse
from .cli import figures, table_head
from .machine import machine
from .rivals import BOUND, FASTOPT, LIMIT, LIMIT_STATES, Rival, same_traffic, tensor, torch
from .runner import interleave, spacer, torch_threads

TORCH = "torch"
DECAY = 0.999
PLAIN_BYTES, BYTES = 28, 44  # that a step moves for each element: AdamW alone, the whole step
ROUNDS, SECONDS = 60, 6.0  # of a case
LARGEST = "1x30000000"
CASES = ("1000x16", "100x64", "1x1000000", LARGEST)


@dataclass(frozen=True)
class Target:
    """The whole step shall be so many times as fast as torch, and have this share of the limit's speed."""

    torch: float
    limit: float = 0.0


# (case, threads)
TARGETS = {
    ("1000x16", 1): Target(100),
    ("1x1000000", 1): Target(1.7),
    (LARGEST, 1): Target(1.45, 0.95),
    (LARGEST, 2): Target(1.45, 0.95),
}


class Work:
    """The arrays of a case, which all that step NumPy memory share, and the gradients' values."""

    def __init__(self, case, threads=1):
        self.case, self.threads = case, threads
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

    def refill(self):
        np.copyto(self.gradient, self.values)

    def optimizer(self, stages=None):
        """An AdamW with these stages; in the place of an average there is its class."""
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

    def rival(self, name, stages=None):
        # other objects over the same memory at every call, as from a loop that computes its gradients anew
        return Rival(name, self.optimizer(stages).step, (self.grads, [grad[:] for grad in self.grads]), self.refill)


# ---- the whole step ----------------------------------------------------------------------------

WHOLE = {"clip": 1.0, "average": EMA, "zero_grad": True}  # EMA's decay is 0.999 unless another is given


def rivals(work):
    """The ways to make the whole step."""
    bound = work.optimizer(WHOLE)
    bound.bind_grads(work.grads)
    found = [work.rival(FASTOPT, WHOLE), Rival(BOUND, lambda _: bound.step(), before=work.refill)]
    if torch() is not None:
        found.append(TorchStep(work).rival())
    return [*found, Rival(LIMIT, limit(work), before=work.refill)]


def limit(work):
    """See `rivals.limit` and above; the third state array stands for the average."""
    plan, threads = Plan("traffic"), work.threads
    plan.extend([owned(param, np.float32) for param in work.params], [None] * work.case.arrays, 0)
    for i, moments in enumerate(work.moments):
        plan.set_state(i, [*moments.values(), owned(work.params[i], np.float32)])
    plan.stage([], on=True, zero=True)
    plan.bind(work.grads)
    answers = [(AS_IT_IS, same_traffic(LIMIT_STATES), (), ())]

    def step(_):
        plan.begin(None)
        plan.powers(2.0, threads)
        plan.run(answers, threads)

    return step


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

    def refill(self):
        self.gradient.copy_(self.values)

    def lerp_one_by_one(self):
        for average, param in zip(self.averages, self.params, strict=True):
            average.lerp_(param, 1 - DECAY)

    def fastest(self, work, ways):
        """(name, way) of the least best time."""
        entries = [Rival(name, lambda _, way=way: way(), before=self.refill) for name, way in ways.items()]
        samples = interleave(entries, rounds=10, seconds=1.0, between=spacer(work.bytes))
        return min(zip(ways.items(), samples, strict=True), key=lambda entry: min(entry[1]))[0]

    def rival(self):
        clip, advance, average, zero = (way for _, way in self.parts)

        def step(_):
            clip()
            advance()
            average()
            zero()

        return Rival(f"{TORCH}: {', '.join(name for name, _ in self.parts)}", step, before=self.refill)


def race(case, threads=1, rounds=ROUNDS, seconds=SECONDS):
    """{rival: its seconds per step, one number for each round}."""
    with torch_threads(threads):
        work = Work(case, threads)
        entries = rivals(work)
        samples = interleave(entries, rounds, seconds, spacer(work.bytes))
    return dict(zip((one.name for one in entries), samples, strict=True))


def verdict(name, ratio, target):
    """What became of the target that a rival is the measure of; nothing where there is none."""
    if target is None or not name.startswith((TORCH, LIMIT)):
        return ""
    least = target.limit if name == LIMIT else target.torch
    if not least:
        return ""
    return f"at least {least:g} x: {'met' if ratio >= least else 'missed'}"


def print_race(cases, numbers, rounds, seconds):
    """Prints the first table; `numbers` of threads, None: those of the targets."""
    print(table_head("case", "threads", "rival", "best µs", "median µs", "GB/s", "of fastopt's time (best)",
                     "of fastopt's time (median)", "target"), flush=True)
    for case in cases:
        for threads in numbers or ((1, 2) if case.name == LARGEST else (1,)):
            if threads > 1 and threading.most() < threads:
                print(f"| {case.name} | {threads} | left out: at most {threading.most()} can be used here "
                      "| | | | | | |", flush=True)
                continue
            samples = race(case, threads, rounds, seconds)
            ours = samples[FASTOPT]
            for name, theirs in samples.items():
                best = min(theirs) / min(ours)
                middle = median(other / mine for mine, other in zip(ours, theirs, strict=True))
                print(f"| {case.name} | {threads} | {name} | {figures(min(theirs) * 1e6)} "
                      f"| {figures(median(theirs) * 1e6)} | {figures(BYTES * case.total / min(theirs) / 1e9)} "
                      f"| {best:.2f} x | {middle:.2f} x | {verdict(name, best, TARGETS.get((case.name, threads)))} |",
                      flush=True)


# ---- stage by stage ----------------------------------------------------------------------------

PLAIN, BEFORE, MICRO_BATCHES = "no stages", "no stages, before any stages", "accumulate, 2 micro-batches"
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
# the first micro-batch is read and its sum written, the second is read and its sum read and written
MOVED = {name: moved for name, (_, *moved) in STAGES.items()} | {
    BEFORE: (PLAIN_BYTES, 0), MICRO_BATCHES: (8 + 12 + PLAIN_BYTES, 0), READ: (0, 1)}


def staged(work):
    """AdamW without stages and with one at a time."""
    summing = work.optimizer({})

    def step(grads):
        summing.accumulate(grads)
        summing.accumulate(grads)
        summing.step()

    return [*(work.rival(name, stages) for name, (stages, *_) in STAGES.items()),
            Rival(MICRO_BATCHES, step, (work.grads,), work.refill),
            Rival(READ, lambda _: np.max(work.gradient), before=work.refill)]


def print_stages(works, rounds, seconds):
    """Prints the second table."""
    before = [interleave([work.rival(BEFORE)], rounds, seconds / 4, spacer(work.bytes))[0] for work in works]
    print(table_head("case", "step", "best µs", "median µs", "of the step without (best)",
                     "of the step without (median)", "its bytes"), flush=True)
    for work, first in zip(works, before, strict=True):
        entries = staged(work)
        samples = dict(zip((one.name for one in entries),
                           interleave(entries, rounds, seconds, spacer(work.bytes)), strict=True))
        plain, read = samples[PLAIN], samples.pop(READ)
        share = min(read) / min(plain)
        for name, own in {BEFORE: first, **samples, READ: read}.items():
            moved, reads = MOVED[name]
            print(f"| {work.case.name} | {name} | {figures(min(own) * 1e6)} | {figures(median(own) * 1e6)} "
                  f"| {min(own) / min(plain):.2f} x | {median(own) / median(plain):.2f} x "
                  f"| {moved / PLAIN_BYTES + reads * share:.2f} x |", flush=True)


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.stages", description=__doc__.split("\n\n")[0])
    parser.add_argument("--table", choices=("race", "stages"), help="only this one (default: both)")
    parser.add_argument("--case", action="append", type=case_named, metavar="NAME",
                        help="such as 100x64 or 1x1M (repeatable; default: "
                             f"{', '.join(CASES)}, and stage by stage 1x1M)")
    parser.add_argument("--threads", action="append", type=whole(1), metavar="N",
                        help=f"of the race (repeatable; default: 1, and 2 too for {LARGEST})")
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=SECONDS, help="of each case (default: %(default)s)")
    return execute(parser, report, arguments)


def report(args):
    """Measures and prints what the options ask for."""
    print(*(f"- {name}: {value}" for name, value in machine().items()), sep="\n", end="\n\n")
    torch()  # before the first thread of fastopt: see there
    if args.table != "race":  # first: it begins before any stages
        print_stages([Work(case) for case in args.case or [parse("1x1M")]], args.rounds, args.seconds)
        print()
    if args.table != "stages":
        print_race(args.case or [parse(case) for case in CASES], args.threads, args.rounds, args.seconds)


if __name__ == "__main__":
    sys.exit(main())
