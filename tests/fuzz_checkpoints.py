"""Spoils checkpoints at random and loads them: `python tests/fuzz_checkpoints.py 20000`.

A case takes the state of an optimizer of any method, of the hybrid, a scheduler, an average or a GradScaler, or a file
of several of them, and drops, adds, renames, swaps, doubles or corrupts one to three of its entries (of a file also
bytes). It must be refused by a TypeError or ValueError, and nothing have changed; or load, and then be whole: it can be
saved and loaded again, and step. Each case has a number; `--only NUMBER` runs it again, with its traceback.
"""

import argparse
import collections
import copy
import os
import random
import sys
import tempfile
import traceback
import warnings

import numpy as np

sys.path.insert(0, os.path.dirname(__file__))

from test_checkpoints import EVERY, hybrid, plain, step, trained
from test_lr_scheduler import METRICS, RESUMED, optimizer_of

import fastopt

JUNK = [None, True, -1, 0, 1, 1.5, 2**62, 2**63, 10**400, -0.0, 1e300, float("nan"), float("inf"), 1j, "", "x", b"x",
        (), [], {}, [[]], {"a": 1}, (1, 2), (0.5, 0.5, 0.5), object(), len, np.ones(1), np.ones(3), np.array(2.0),
        np.float32(3), np.ma.masked, np.ma.masked_array([1.0, 2.0], [True, False]), np.array("x"),
        np.array([None]), np.ones((2, 2), complex), np.zeros((0,)), {1: {2: 3}}, float, slice(3)]


class Subject:
    """Something that loads a state, and what is to be seen of it."""

    def __init__(self, one, others=(), go_on=lambda: None):
        self.one, self.others, self.go_on = one, others, go_on

    def state(self):
        return self.one.state_dict()

    def load(self, state):
        self.one.load_state_dict(state)

    def seen(self):
        return repr([plain(each.state_dict()) for each in (self.one, *self.others)])


def of_method(rng, seed):
    method, options = rng.choice(EVERY)
    optimizer, _, rows = trained(method, options, seed=seed, names=rng.random() < 0.5)
    if method.elementwise and rng.random() < 0.3:
        optimizer.set_stages(lookahead=(2, 0.5), clip=1.0)
        optimizer.step(rows[0])
        if rng.random() < 0.5:
            optimizer.accumulate(rows[1])

    def go_on():
        if optimizer._engine.pipeline and optimizer._engine.pipeline.sums.weight:
            optimizer.step()
        step(method, optimizer, rows[2])

    return Subject(optimizer, go_on=go_on)


def of_hybrid(rng, seed):
    optimizer, _, rows = hybrid(seed=seed)
    if rng.random() < 0.5:
        optimizer.set_stages(lookahead=(2, 0.5))
        optimizer.step(rows[0])
    return Subject(optimizer, go_on=lambda: optimizer.step(rows[1]))


def of_scheduler(rng, seed):
    name, make = rng.choice(list((RESUMED | METRICS).items()))
    optimizer = optimizer_of()
    schedulers = make(fastopt.lr_scheduler, optimizer)
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    metrics = [1.0] if name in METRICS else []

    def go_on():
        optimizer.step([np.ones(2)] * 2)
        for scheduler in schedulers:
            scheduler.step(*metrics)

    for _ in range(rng.randrange(4)):
        go_on()
    return Subject(schedulers[0], (optimizer, *schedulers[1:]), go_on)


def of_average(rng, seed):
    params = {"a": np.arange(3.0), "b": np.ones((2, 2))} if rng.random() < 0.5 else [np.arange(3.0), np.ones((2, 2))]
    average = rng.choice([fastopt.averages.EMA, fastopt.averages.SWA])(params)
    average.update()
    return Subject(average, go_on=average.update)


def of_scaler(rng, seed):
    scaler = fastopt.GradScaler(init_scale=8.0, growth_interval=2)
    optimizer = fastopt.SGD(np.ones(2))

    def go_on():
        scaler.step(optimizer, np.ones(2))
        scaler.update()

    go_on()
    return Subject(scaler, go_on=go_on)


class File(Subject):
    """A file of a training: its bytes are the state."""

    def __init__(self, rng, seed, folder):
        self.parts = [make(rng, seed) for make in (of_method, of_scheduler, of_average, of_scaler)]
        optimizer, scheduler, average, scaler = (part.one for part in self.parts)
        self.arguments = dict(optimizer=[optimizer, scheduler.optimizer], scheduler=scheduler, ema=average,
                              scaler=scaler)
        self.path = os.path.join(folder, "checkpoint")
        super().__init__(optimizer, (scheduler, average, scaler, *self.parts[1].others), self.go_on)

    def go_on(self):
        for part in self.parts:
            part.go_on()

    def state(self):
        fastopt.save(self.path, **self.arguments, extra=[1, (2.0,)])
        with open(self.path, "rb") as file:
            return file.read()

    def load(self, state):
        with open(self.path, "wb") as file:
            file.write(state)
        fastopt.load(self.path, **self.arguments)


SUBJECTS = {"method": of_method, "hybrid": of_hybrid, "scheduler": of_scheduler, "average": of_average,
            "scaler": of_scaler}


def nodes(node, path=()):
    """Every dict, list and tuple in a state, with the way to it."""
    if isinstance(node, (dict, list, tuple)) and len(node):
        yield path, node
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from nodes(value, (*path, key))


def replaced(node, path, new):
    """A copy in which something else stands at the end of the way."""
    if not path:
        return new
    here = dict(node) if isinstance(node, dict) else list(node)
    here[path[0]] = replaced(here[path[0]], path[1:], new)
    return here if type(node) in (dict, list) else type(node)(here)


def spoilt(rng, state):
    """A state with one entry changed, and what was done."""
    path, node = rng.choice(list(nodes(state)) or [((), state)])
    here = dict(node) if isinstance(node, dict) else list(node)
    keys = list(here) if isinstance(here, dict) else list(range(len(here)))
    what = rng.choice(["drop", "add", "rename", "swap", "double", "junk", "corrupt", "corrupt"])
    if not keys:
        return replaced(state, path, rng.choice(JUNK)), "all"
    key, other = rng.choice(keys), rng.choice(keys)
    if what == "drop":
        del here[key]
    elif what == "swap":
        here[key], here[other] = here[other], here[key]
    elif what == "junk":
        here[key] = rng.choice(JUNK)
    elif what == "corrupt":
        here[key] = corrupt(rng, here[key])
    elif isinstance(here, dict):
        new = rng.choice(["x", 0, 1, 7, "step", "exp_avg", "lr", None, (1,), -1])
        here[new] = copy.copy(here.pop(key) if what == "rename" else here[key])
    else:
        here.insert(other, copy.copy(here[key]))
    return replaced(state, path, here if isinstance(node, (dict, list)) else tuple(here)), f"{what} {(*path, key)}"


def corrupt(rng, value):
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        return rng.choice([
            lambda: value[..., None], lambda: value.astype(complex), lambda: value.astype(int),
            lambda: value.astype("O"), lambda: value.ravel()[:-1],
            lambda: np.ma.masked_array(value, np.ones(value.shape, bool)),
            lambda: value.astype(">f8"), lambda: value.astype("f2"), lambda: value * np.nan, lambda: value.T,
            lambda: value.tolist(), lambda: np.asmatrix(value) if value.ndim < 3 else value, lambda: value[None][:0],
            lambda: -value])()
    if isinstance(value, (int, float)):
        return rng.choice([-value, value + 0.5, value * 2, str(value), [value], np.array([value]), value + 1, 10**9])
    if isinstance(value, str):
        return rng.choice([value + "x", value[:-1], value.encode()])
    if isinstance(value, (list, tuple)):
        return rng.choice([value[:-1], [*value, *value], dict(enumerate(value)), tuple(value), None])
    return rng.choice(JUNK)


def altered(rng, data):
    """Bytes that are not what they were."""
    at, to = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice([
        lambda: (data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :], f"bit at {at}"),
        lambda: (data[:at], f"end at {at}"), lambda: (data[:at] + data[to:], f"without {at} to {to}"),
        lambda: (data[:at] + data[to:] + data[at:to], f"{at} to {to} at the end"),
        lambda: (data[:at] + bytes(to - at) + data[to:], f"zeros from {at} to {to}"),
        lambda: (data + data[at:to], "more at the end"),
    ])()


def run(number, folder):
    """One case: returns its kind and what came of it; raises AssertionError if that must not be."""
    rng = random.Random(number)
    kind = rng.choice(["file", *["method"] * 5, *["scheduler"] * 3, "hybrid", "average", "scaler"])
    source, subject = (File(rng, seed, folder) if kind == "file" else SUBJECTS[kind](random.Random(number), seed)
                       for rng, seed in ((random.Random(number), 0), (random.Random(number), 1)))
    state = source.state() if kind == "file" else copy.deepcopy(source.state())
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        state, what = altered(rng, state) if kind == "file" else spoilt(rng, state)
        done.append(what)
        if not isinstance(state, (dict, bytes)) or not state:
            break
    before = subject.seen()
    try:
        subject.load(state)
    except (TypeError, ValueError):
        assert subject.seen() == before, f"case {number}, {kind}, {done}: refused, but something changed"
        return kind, "refused"
    except Exception as error:
        raise AssertionError(f"case {number}, {kind}, {done}: {type(error).__name__}: {error}") from error
    try:
        subject.load(copy.deepcopy(subject.state()))
        subject.go_on()
        subject.seen()
    except Exception as error:
        raise AssertionError(f"case {number}, {kind}, {done}: loaded, but is not whole: {error!r}") from error
    return kind, "loaded"


def fuzz(numbers):
    """Runs cases; returns how many came out how, and what must not be."""
    counts: collections.Counter = collections.Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for number in numbers:
            try:
                counts[run(number, folder)] += 1
            except AssertionError as error:
                failures.append(error)
    return counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=int, nargs="?", default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", type=int, help="the one case to run, with its traceback")
    arguments = parser.parse_args()
    numbers = range(arguments.start, arguments.start + arguments.cases)
    counts, failures = fuzz(numbers if arguments.only is None else [arguments.only])
    for (kind, what), count in sorted(counts.items()):
        print(f"{kind:10} {what:8} {count}")
    for error in failures[:40]:
        print(error)
    if arguments.only is not None:
        for error in failures:
            traceback.print_exception(error)
    print(f"{len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
