"""What optimizer threads cost or bring inside a training loop: this decides the library's default.

A multilayer perceptron is trained in NumPy: its matrix products run on the threads of NumPy's BLAS, and
between them the optimizer steps on 1 or 2 threads. BLAS and OpenMP both let idle threads spin for a while, so
that one pool can hold the other's cores; a busy process beside takes a core away from both. The same
steps are also measured with nothing in between, as in a benchmark of the kernel alone.

The two settings take turns in one process, and the first steps of each turn are not counted. torch is not
imported. Environment variables act as usual: `OMP_WAIT_POLICY=passive` lets OpenMP's threads sleep at once,
`OPENBLAS_NUM_THREADS=1` leaves a single pool.
"""

import contextlib
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter, sleep

import numpy as np

from ..kernels import threads as threading
from ..optimizers import Adam
from .runner import no_garbage_collection

THREADS = (1, 2)
INPUTS, CLASSES = 784, 10
NETWORKS = (((512, 256), 128), ((2000, 1000), 128), ((2000, 1000), 16))  # hidden sizes, batch
ROUNDS = 15  # turns of each setting
UNCOUNTED = 3  # steps at the start of a turn
TURN = 0.25  # seconds that a turn lasts, about
REST = 0.1  # seconds: by then the threads of a BLAS have stopped spinning

SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass(frozen=True)
class Line:
    """Milliseconds on 1 and 2 optimizer threads: medians over the turns; the ratio is that within a round."""

    network: str
    neighbours: int
    part: str
    serial: float
    threaded: float
    ratio: float


class Network:
    """A multilayer perceptron with its data and optimizer."""

    def __init__(self, hidden, batch):
        rng = np.random.default_rng(7)
        sizes = (INPUTS, *hidden, CLASSES)
        self.weights = [
            (rng.standard_normal(pair) * (2 / pair[0]) ** 0.5).astype(np.float32)
            for pair in pairwise(sizes)
        ]
        self.biases = [np.zeros(size, np.float32) for size in sizes[1:]]
        self.x = rng.standard_normal((batch, INPUTS), np.float32)
        self.y = rng.integers(CLASSES, size=batch)
        self.optimizer = Adam([*self.weights, *self.biases], lr=1e-4)
        self.name = f"{INPUTS}-{'-'.join(map(str, hidden))}-{CLASSES}, batch {batch}"

    def gradients(self):
        """Forward and backward pass: relu, softmax and cross entropy."""
        layers = [self.x]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            layers.append(layers[-1] @ weight + bias)
            if len(layers) <= len(self.weights):
                np.maximum(layers[-1], 0, out=layers[-1])
        scores = np.exp(layers[-1] - layers[-1].max(1, keepdims=True))
        delta = scores / scores.sum(1, keepdims=True)
        delta[np.arange(len(self.y)), self.y] -= 1
        delta /= len(self.y)
        weights, biases = [], []
        for i in reversed(range(len(self.weights))):
            weights.insert(0, layers[i].T @ delta)
            biases.insert(0, delta.sum(0))
            if i:
                delta = (delta @ self.weights[i].T) * (layers[i] > 0)
        return [*weights, *biases]

    def turn(self, steps):
        """Seconds per training step, of the whole loop and of its optimizer."""
        for _ in range(UNCOUNTED):
            self.optimizer.step(self.gradients())
        optimizer, start = 0.0, perf_counter()
        for _ in range(steps):
            grads = self.gradients()
            before = perf_counter()
            self.optimizer.step(grads)
            optimizer += perf_counter() - before
        return (perf_counter() - start) / steps, optimizer / steps

    def alone(self, steps):
        """Seconds per optimizer step, with nothing in between and the BLAS at rest."""
        grads = self.gradients()
        sleep(REST)
        for _ in range(UNCOUNTED):
            self.optimizer.step(grads)
        start = perf_counter()
        for _ in range(steps):
            self.optimizer.step(grads)
        return (perf_counter() - start) / steps


@contextlib.contextmanager
def busy(neighbours):
    """A number of other processes, each of which occupies a core."""
    with contextlib.ExitStack() as stack:
        for _ in range(neighbours):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", SPIN], stderr=subprocess.DEVNULL))
            stack.callback(process.kill)
        yield


def measure(hidden, batch, neighbours=0, rounds=ROUNDS):
    """The lines of one network: the loop, the optimizer in it, and the optimizer alone."""
    network = Network(hidden, batch)
    samples = {threads: [] for threads in THREADS}
    order, shuffle = list(THREADS), random.Random(0).shuffle
    with no_garbage_collection(), busy(neighbours):
        steps = max(1, round(TURN / network.turn(UNCOUNTED)[0]))
        for _ in range(rounds):
            shuffle(order)
            for threads in order:
                network.optimizer.num_threads = threads
                samples[threads].append((*network.turn(steps), network.alone(steps)))
    parts = ("training step", "optimizer in the loop", "optimizer alone")
    columns = [list(zip(*samples[threads], strict=True)) for threads in THREADS]
    return [line(network.name, neighbours, part, *both)
            for part, both in zip(parts, zip(*columns, strict=True), strict=True)]


def line(network, neighbours, part, serial, threaded):
    ratio = median(two / one for one, two in zip(serial, threaded, strict=True))
    return Line(network, neighbours, part, median(serial) * 1e3, median(threaded) * 1e3, ratio)


def report(args):
    """Measures and prints all networks, without and with a busy neighbour; returns the lines, for JSON."""
    if threading.most() < max(THREADS):
        print(f"At most {threading.most()} threads can be used here: there is nothing to compare.")
        return []
    print("| network | busy neighbours | part | 1 thread, ms | 2 threads, ms | 2 threads take |")
    print("|---|---|---|---|---|---|")
    results = []
    for hidden, batch in NETWORKS:
        for neighbours in (0, 1):
            for one in measure(hidden, batch, neighbours, args.rounds or ROUNDS):
                print(f"| {one.network} | {one.neighbours} | {one.part} | {one.serial:.3f} "
                      f"| {one.threaded:.3f} | {one.ratio:.2f} x |", flush=True)
                results.append(asdict(one))
    return results
