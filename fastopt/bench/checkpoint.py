"""What it takes to write and read a large state.

An AdamW of float32 parameters, with its two moments and the parameters themselves, goes into a file and back by
`fastopt.save` and `fastopt.load`, by `torch.save` and `torch.load`, and by `numpy.savez` and `numpy.load`. The disk's
own speed is what one `write` of the same bytes and an `fsync`, and one `readinto` an array take. Every file is brought
to the disk (`fsync`) within the time that counts, and every reader ends with the numbers in arrays of its own. What
was written just before is still in the system's cache when it is read. The contenders take turns, each in a process of
its own, so that its peak of memory can be told, above what the process had with the arrays made.
"""

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
from ..cli import Stop, need_memory
from ..optimizers import AdamW
from .race import torch
from .runner import table_head, table_line

GIGABYTE = 10**9
ROUNDS = 5
# what a process of its own runs
MEASURE = """
import json, sys
from fastopt.bench import checkpoint
contender, path, size = sys.argv[1:]
print(json.dumps(checkpoint.measure(contender, path, int(size))))
"""


def made(size):
    """An optimizer in the middle of a run, and its parameters: `size` bytes together."""
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


CONTENDERS = {"fastopt": Fastopt, "the disk itself": Disk, "torch": Torch, "numpy.savez": NumPy}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(contender, path, size):
    """Seconds to write and to read, and how much memory was taken above that of the arrays."""
    made = CONTENDERS[contender](size)
    before, start = peak(), perf_counter()
    made.write(path)
    written, memory = perf_counter() - start, peak() - before
    start = perf_counter()
    made.read(path)
    return {"written": written, "read": perf_counter() - start, "memory of writing": memory,
            "memory of both": peak() - before, "bytes": os.path.getsize(path)}


def report(args):
    """Measures every contender in turns and prints a table; returns what was measured, for JSON."""
    size = int(args.gigabytes * GIGABYTE)
    need_memory(size)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measured(os.path.join(folder, "checkpoint"), size, args.rounds or ROUNDS)
    print(f"{args.gigabytes:g} GB: the parameters and state of an AdamW; GB/s; memory in GB beyond the arrays\n")
    print(table_head("contender", "write + fsync: best", "median", "its memory", "read: best", "median",
                     "memory of both"))
    for contender, turns in found.items():
        cells = [contender]
        for verb, memory in (("written", "memory of writing"), ("read", "memory of both")):
            speeds = [turn["bytes"] / turn[verb] / GIGABYTE for turn in turns]
            cells += [f"{max(speeds):.2f}", f"{median(speeds):.2f}",
                      f"{max(turn[memory] for turn in turns) / GIGABYTE:.2f}"]
        print(table_line(*cells), flush=True)
    return [{"contender": contender} | turn for contender, turns in found.items() for turn in turns]


def measured(path, size, rounds):
    """{contender: what `measure` found in each round}."""
    found: dict[str, list[dict]] = {name: [] for name in CONTENDERS if name != "torch" or torch()}
    for _ in range(rounds):
        for contender, turns in found.items():
            command = [sys.executable, "-c", MEASURE, contender, path, str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Stop(f"{contender}: {done.stderr.strip().rpartition(chr(10))[2]}")
            turns.append(json.loads(done.stdout))
            os.unlink(path)
    return found
