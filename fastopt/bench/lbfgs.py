"""What LBFGS costs beside its closure, against torch.optim.LBFGS: `python -m fastopt.bench.lbfgs`.

Both minimise the same quadratic ½ Σ aᵢ xᵢ² in float32, whose curvatures aᵢ are so spread that nothing converges.
Both have their full history before the first turn. In a turn each makes some iterations in one `step`; the time its
closure took is subtracted. The turns alternate, and both have one thread: torch by its own switch, NumPy's BLAS by
threadpoolctl, without which it keeps the threads it has.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ..cli import Parser, execute, need_memory, whole
from ..optimizers import LBFGS
from .rivals import torch
from .runner import no_garbage_collection

ELEMENTS = 1_000_000
HISTORY = 100
ITERATIONS = 5  # of a turn
ROUNDS = 9
OPTIONS = {"lr": 0.5, "tolerance_grad": -1.0, "tolerance_change": -1.0}  # nothing ends a step early


def problem(elements):
    """The curvatures, and where the search starts."""
    random = np.random.default_rng(0)
    curvatures = np.exp(random.uniform(np.log(1e-2), np.log(1e2), elements)).astype(np.float32)
    return curvatures, random.standard_normal(elements, dtype=np.float32)


@dataclass
class Contender:
    """An optimizer on its own copy of the problem; `seconds` is what its closure has taken."""

    name: str
    group: dict[str, Any]
    step: Callable[[], Any]
    clock: list[float]

    def turn(self, iterations):
        """Seconds per iteration without the closure's."""
        self.group.update(max_iter=iterations, max_eval=2 * iterations)
        self.clock[0] = 0.0
        start = perf_counter()
        self.step()
        return (perf_counter() - start - self.clock[0]) / iterations


def quadratic(x, curvatures, grad, clock):
    """A function that computes the loss, and writes the gradient; its time is added to the clock."""
    def evaluate():
        start = perf_counter()
        np.multiply(x, curvatures, out=grad)
        loss = 0.5 * float(x @ grad)
        clock[0] += perf_counter() - start
        return loss

    return evaluate


def ours(elements, history, line_search):
    curvatures, x = problem(elements)
    clock, grad = [0.0], np.empty_like(x)
    optimizer = LBFGS([x], history_size=history, line_search_fn=line_search, **OPTIONS)
    optimizer.bind_grads([grad])
    closure = quadratic(x, curvatures, grad, clock)
    return Contender("fastopt", optimizer.param_groups[0], lambda: optimizer.step(closure), clock)


def theirs(elements, history, line_search):
    curvatures, x = problem(elements)
    clock, grad = [0.0], np.empty_like(x)
    tensor = torch().from_numpy(x).requires_grad_()
    tensor.grad = torch().from_numpy(grad)
    optimizer = torch().optim.LBFGS([tensor], history_size=history, line_search_fn=line_search, **OPTIONS)
    closure = quadratic(x, curvatures, grad, clock)
    return Contender("torch", optimizer.param_groups[0], lambda: optimizer.step(closure), clock)


@contextlib.contextmanager
def one_thread():
    """One thread for torch and for NumPy's BLAS."""
    with contextlib.ExitStack() as stack:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            print("threadpoolctl is not installed: NumPy's BLAS keeps its threads.")
        else:
            stack.enter_context(threadpool_limits(1))
        if torch():
            stack.callback(torch().set_num_threads, torch().get_num_threads())
            torch().set_num_threads(1)
        yield


def measure(elements, history, line_search=None, rounds=ROUNDS, iterations=ITERATIONS):
    """Seconds per iteration of every turn, by the name of the contender."""
    with one_thread(), no_garbage_collection():
        contenders = [make(elements, history, line_search) for make in ((ours, theirs) if torch() else (ours,))]
        samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for contender in contenders:
            contender.turn(history + 2)
        for number in range(rounds):
            for contender in contenders if number % 2 else reversed(contenders):
                samples[contender.name].append(contender.turn(iterations))
    return samples


def report(elements, history, rounds):
    """Measures and prints both kinds of step."""
    need_memory(4 * elements * 2 * history)
    print(f"{elements:,} float32 parameters, {history} pairs, one thread; milliseconds per iteration\n")
    print("| line search | optimizer | best | median | share of torch's: best | median |")
    print("|---|---|---|---|---|---|")
    for line_search in (None, "strong_wolfe"):
        samples = measure(elements, history, line_search, rounds)
        like = samples.get("torch")
        for name, seconds in samples.items():
            shares = f"{min(seconds) / min(like):.2f} | {median(seconds) / median(like):.2f}" if like else "- | -"
            print(f"| {line_search or 'none'} | {name} | {min(seconds) * 1e3:.1f} | {median(seconds) * 1e3:.1f} "
                  f"| {shares} |", flush=True)


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.lbfgs", description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=whole(1), default=ELEMENTS, metavar="N",
                        help="parameters (default: %(default)s)")
    parser.add_argument("--history", type=whole(1), default=HISTORY, metavar="N", help="pairs (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, metavar="N", help="turns (default: %(default)s)")
    return execute(parser, lambda args: report(args.elements, args.history, args.rounds), arguments)


if __name__ == "__main__":
    sys.exit(main())
