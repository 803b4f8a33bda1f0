"""What it takes to write and read a large state: `python -m fastopt.bench.checkpoint`.

An AdamW of float32 parameters, with its two moments and the parameters themselves, goes into a file and back by
`fastopt.save` and `fastopt.load`, by `torch.save` and `torch.load`, and by `numpy.savez` and `numpy.load`. The disk's
own speed is that of one `write` of the same bytes and an `fsync`, and of one `readinto` an array. Every file is brought
to the disk (`fsync`) within the time that counts, and every reader ends with the numbers in arrays of its own. What
was written just before is still in the system's cache when it is read. The ways take turns, each in a process of its
own, so that its peak of memory can be told, above what the process had with the arrays made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

import numpy as np

from ..checkpoint import load, save
from ..cli import Parser, Stop, execute, need_memory, positive, whole
from ..optimizers import AdamW
from .rivals import torch

GIGABYTE = 10**9
ROUNDS = 5
WAYS = ("fastopt", "the disk itself", "torch", "numpy.savez")


def made(size):
    """An optimizer in the middle of a run, and its parameters: so many bytes together."""
    shape = max(1, size // (3 * 4 * 12)),
    params = {f"layer{i}": np.ones(shape, np.float32) for i in range(12)}
    optimizer = AdamW(params)
    optimizer.step({name: np.full(shape, 0.5, np.float32) for name in params})
    return params, optimizer


def arrays_of(params, optimizer):
    state = optimizer.state_dict()["state"]
    return {**params, **{f"{i}.{name}": value for i, entries in state.items() for name, value in entries.items()}}


def synced(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class Fastopt:
    def __init__(self, size):
        self.params, self.optimizer = made(size)

    def write(self, path):
        save(path, self.optimizer, params=self.params)

    def read(self, path):
        load(path, self.optimizer, params=self.params)


class Disk(Fastopt):
    def __init__(self, size):
        super().__init__(size)
        self.arrays = arrays_of(self.params, self.optimizer)

    def write(self, path):
        with open(path, "wb", buffering=0) as file:
            for array in self.arrays.values():
                if array.ndim:
                    file.write(array)
            os.fsync(file.fileno())

    def read(self, path):
        with open(path, "rb", buffering=0) as file:
            for array in self.arrays.values():
                if array.ndim:
                    file.readinto(array)


class NumPy(Disk):
    def write(self, path):
        with open(path, "wb") as file:
            np.savez(file, **self.arrays)
        synced(path)

    def read(self, path):
        with np.load(path) as found:
            for name, array in self.arrays.items():
                array[...] = found[name]


class Torch:
    def __init__(self, size):
        params, _ = made(size)
        self.params = {name: torch().from_numpy(param).requires_grad_() for name, param in params.items()}
        self.optimizer = torch().optim.AdamW(self.params.values())
        for tensor in self.params.values():
            tensor.grad = torch().ones_like(tensor)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def write(self, path):
        torch().save({"model": self.params, "optimizer": self.optimizer.state_dict()}, path)
        synced(path)

    def read(self, path):
        found = torch().load(path, weights_only=True)
        self.optimizer.load_state_dict(found["optimizer"])
        with torch().no_grad():
            for name, tensor in self.params.items():
                tensor.copy_(found["model"][name])


MAKERS = dict(zip(WAYS, (Fastopt, Disk, Torch, NumPy), strict=True))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way, path, size):
    """Seconds to write and to read, and how much memory was taken above that of the arrays."""
    rival = MAKERS[way](size)
    before, start = peak(), perf_counter()
    rival.write(path)
    written, memory = perf_counter() - start, peak() - before
    start = perf_counter()
    rival.read(path)
    return {"written": written, "read": perf_counter() - start, "memory of writing": memory,
            "memory of both": peak() - before, "bytes": os.path.getsize(path)}


def report(folder, size, rounds):
    """Measures every way in turns, each in a process of its own, and prints a table."""
    path = os.path.join(folder, "checkpoint")
    ways = [way for way in WAYS if way != "torch" or torch()]
    found: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, "-m", "fastopt.bench.checkpoint", "--measure", way, path, str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Stop(f"{way}: {done.stderr.strip().rpartition(chr(10))[2]}")
            found[way].append(json.loads(done.stdout))
            os.unlink(path)
    print(f"{size / GIGABYTE:g} GB: the parameters and state of an AdamW; GB/s; memory in GB beyond the arrays\n")
    print("| way | write + fsync: best | median | its memory | read: best | median | memory of both |")
    print("|---|---|---|---|---|---|---|")
    for way, turns in found.items():
        cells = [way]
        for verb, memory in (("written", "memory of writing"), ("read", "memory of both")):
            speeds = [turn["bytes"] / turn[verb] / GIGABYTE for turn in turns]
            cells += [f"{max(speeds):.2f}", f"{median(speeds):.2f}",
                      f"{max(turn[memory] for turn in turns) / GIGABYTE:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(arguments=None):
    parser = Parser(prog="python -m fastopt.bench.checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=positive, default=1.0, metavar="X", help="of state (default: %(default)s)")
    parser.add_argument("--rounds", type=whole(1), default=ROUNDS, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--folder", metavar="PATH", help="where to write (default: the system's for temporary files)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return execute(parser, run, arguments)


def run(args):
    if args.measure:
        way, path, size = args.measure
        print(json.dumps(measure(way, path, int(size))))
        return
    need_memory(args.gigabytes * GIGABYTE)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report(folder, int(args.gigabytes * GIGABYTE), args.rounds)


if __name__ == "__main__":
    sys.exit(main())
