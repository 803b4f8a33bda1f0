"""Random optimizers and random sequences of what is done with them, each against `oracle.Oracle`.

    python tests/fuzz_steps.py --cases 100000 --seed 0

prints each failure in its smallest form, as a line to paste into `test_fuzz.py`. Every row of the table of methods
takes part. A case makes an optimizer and then some operations: steps with gradients of all kinds, sparse ones,
accumulation, wrong gradients and hyperparameters, other stages, copies, checkpoints, new groups. After each of them
parameters, state, counters, averages and `last_step` must be those of the oracle, or it must raise TypeError or
ValueError (of a gradient that is not finite, where that was asked for, NonFiniteGradient) and have changed nothing.

How far from the oracle, which computes in extended precision: by a few roundings of each number. Where that is not
enough, for a method may amplify them (a difference that cancels, a mask, a root of nearly nothing), the oracle is
asked again, with a random rounding of every number that the optimizer rounds; a result must lie among what comes out.
"""

import argparse
import contextlib
import copy
import math
import pickle
import re
import sys
import time
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from oracle import ROUNDING, Oracle, at, wide

import fastopt
from fastopt.kernels import threads
from fastopt.stages import Adaptive, GlobalNorm, NonFiniteGradient, ParameterNorm, Value
from fastopt.table import METHODS

TABLE = {method.name: method for method in METHODS if not method.closure}
REFUSAL = (TypeError, ValueError)
OWN_AVERAGES = {"EMA": fastopt.averages.EMA, "SWA": fastopt.averages.SWA}


@dataclass(frozen=True)
class Falling:
    """A schedule."""

    first: float

    def __call__(self, count):
        return self.first / (1 + count)


@dataclass(frozen=True)
class Always:
    """A schedule that gives what no hyperparameter can be."""

    value: object

    def __call__(self, count):
        return self.value


@dataclass
class Case:
    """What is made, of groups given as (shapes, dtypes, own options), and what is done then, operation by operation."""

    method: str
    options: dict = field(default_factory=dict)
    groups: list = field(default_factory=lambda: [([(3,)], ["d"], {})])
    form: str = "list"
    stages: dict | None = None
    operations: list = field(default_factory=lambda: [("step", ["plain"], {})])
    seed: int = 0


class Refused(Exception):
    """The options of a case do not go together."""


class Wrong(AssertionError):
    """The optimizer did something else than the oracle."""


# ---- the run of a case

class Run:
    def __init__(self, case):
        self.case, self.method = case, TABLE[case.method]
        self.history = []  # what the oracle was told, to tell it to another one
        self.bound = self.pending = None
        self.own_averages = []
        self.single = False  # whether there were gradients in single precision
        self.rng = np.random.default_rng([case.seed, 0])
        self.params, groups, made = [], [], []
        for shapes, dtypes, own in case.groups:
            arrays = [self.draw(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
            names = self.names(arrays)
            groups.append((arrays, names, own))
            self.params += arrays
        single = len(groups) == 1
        for arrays, names, own in groups:
            shaped = self.shaped(arrays, names)
            made.append(shaped if single else {"params": shaped, **copy.deepcopy(own)})
        self.given = made[0] if single else made
        options = copy.deepcopy(case.options) | (copy.deepcopy(groups[0][2]) if single else {})
        try:
            for _, _, own in groups:
                self.judge(case.options | own)
            self.optimizer = self.method.optimizer(self.given, **options)
        except REFUSAL as error:
            raise Refused from error
        self.oracle = Oracle(self.method)
        for arrays, names, own in groups:
            defaults = self.method.options | case.options | own
            self.tell("add_group", [array.copy() for array in arrays], names, copy.deepcopy(defaults))
        if case.stages is not None:
            self.set_stages(case.stages)

    def judge(self, options):
        """Raises if options do not go together, of which an optimizer with a schedule says nothing before a step."""
        self.method.optimizer([np.ones((2, 2))], **{name: at(value, 0) for name, value in options.items()})

    def names(self, arrays):
        first = len(self.params)
        return [f"{'b' if array.ndim < 2 else 'w'}{first + k}" for k, array in enumerate(arrays)]

    def shaped(self, leaves, names):
        """Parameters or gradients in the structure of this case."""
        form = self.case.form
        if form == "dict":
            return dict(zip(names, leaves, strict=True))
        if form == "pairs":
            return list(zip(names, leaves, strict=True))
        if form == "tuple":
            return tuple(leaves)
        if form == "nested":
            return [leaves[0], list(leaves[1:])]
        return leaves[0] if form == "array" and len(leaves) == 1 else list(leaves)

    @property
    def named(self):
        return self.case.form in ("dict", "pairs")

    def tell(self, name, *args, **options):
        """Does the same to the oracle."""
        self.history.append((name, args, options))
        return getattr(self.oracle, name)(*copy.deepcopy(args), **options)

    def go(self):
        for k, (name, *args) in enumerate(self.case.operations):
            self.rng = np.random.default_rng([self.case.seed, k + 1])
            getattr(self, name)(*args)
            self.compare(f"after operation {k}, {name}")

    # ---- numbers

    def draw(self, shape, dtype, kind="plain"):
        def normal():
            x = self.rng.standard_normal(shape)
            if kind == "decades":
                x = x * 10.0 ** self.rng.integers(-6, 3, shape)
            return np.asarray(x)

        x = normal() + 1j * normal() if np.dtype(dtype).kind == "c" else normal()
        if kind == "zero":
            x = x * 0
        elif kind == "equal":
            x = x * 0 + 0.75
        elif kind == "small":
            x = x * 1e-5
        elif kind == "large":
            x = x * 1e4
        elif kind in ("huge", "tiny"):
            most = (30 if dtype in "fF" else 200) - (0 if kind == "huge" else 1)
            x = x * 10.0 ** (most if kind == "huge" else -most)
        x = np.array(x, dtype)
        if kind in ("nan", "inf") and x.size:
            x.reshape(-1)[self.rng.integers(x.size)] = {"nan": np.nan, "inf": -np.inf}[kind]
        return x

    def gradients(self, kinds):
        """A gradient of each parameter, and copies of them."""
        grads = []
        for k, param in enumerate(self.params):
            kind = kinds[k % len(kinds)]
            dtype = param.dtype.char
            if kind == "none":
                grads.append(None)
                continue
            if kind == "other":
                self.single = True
                dtype = {"f": "d", "d": "f", "F": "D", "D": "F"}[dtype]
            grad = self.draw(param.shape, dtype, kind)
            if kind == "readonly":
                grad.setflags(write=False)
            grads.append(grad)
        return grads, [None if grad is None else grad.copy() for grad in grads]

    def arranged(self, grads, how):
        names = self.oracle.names
        if how == "shuffled" and self.named:
            order = self.rng.permutation(len(grads))
            return {names[k]: grads[k] for k in order}
        if how == "buffers":
            return [grad if grad is None or not grad.ndim or not grad.size else memoryview(grad) for grad in grads]
        if how == "same":
            parts = [[k for k, group in enumerate(self.oracle.group_of) if group == index]
                     for index in range(len(self.oracle.groups))]
            shaped = [self.shaped([grads[k] for k in part], [names[k] for k in part]) for part in parts]
            return shaped[0] if len(shaped) == 1 else [{"params": part} for part in shaped]
        return list(grads)

    # ---- what must hold

    def snapshot(self):
        """All that a step may change, as bytes."""
        optimizer = self.optimizer
        state = {i: {key: np.asarray(value).tobytes() for key, value in entries.items()}
                 for i, entries in optimizer.state.items()}
        stages = {key: [array is not None and array.tobytes() for array in value] if isinstance(value, list) else value
                  for key, value in optimizer.state_dict().get("stages", {}).items() if value}
        averages = [(average.n_averaged, [a.tobytes() for a in average.averages]) for average in self.own_averages]
        groups = [{key: repr(value) for key, value in group.items() if key != "params"}
                  for group in optimizer.param_groups]
        return ([param.tobytes() for param in self.params], state, stages, averages, optimizer.step_count,
                repr(optimizer.last_step), groups)

    @contextlib.contextmanager
    def refused(self, what, *errors, grads=()):
        """The block must raise one of these and change nothing."""
        before = self.snapshot(), [None if g is None else g.tobytes() for g in grads]
        try:
            yield
        except Exception as error:
            if not isinstance(error, errors or REFUSAL) or not str(error):
                raise Wrong(f"{what}: {type(error).__name__}: {error}") from error
        else:
            raise Wrong(f"{what}: accepted")
        after = self.snapshot(), [None if g is None else g.tobytes() for g in grads]
        if after != before:
            raise Wrong(f"{what}: refused, but changed {differing(before, after)}")

    def attempt(self, what, function):
        """Returns whether it was done; if not, it was refused and has changed nothing."""
        before = self.snapshot()
        try:
            function()
        except REFUSAL:
            if self.snapshot() != before:
                raise Wrong(f"{what}: refused, but changed {differing(before, self.snapshot())}") from None
            return False
        return True

    def compare(self, when):
        """The optimizer must be as the oracle is."""
        optimizer, oracle, self.replays = self.optimizer, self.oracle, None
        if optimizer.step_count != oracle.count:
            raise Wrong(f"{when}: step_count is {optimizer.step_count}, should be {oracle.count}")
        for i, (label, got, expected, kind) in enumerate(self.numbers(oracle)):
            if not self.close(got, expected, kind):
                self.among_rounded(i, label, got, expected, kind, when)
        for i, count in enumerate(oracle.counts):
            if self.params[i].size and (i in optimizer.state) != (count > 0) and not (
                    count == 0 and self.method.optimizer.eager_state):
                raise Wrong(f"{when}: state of parameter {i} is {optimizer.state.get(i)}, steps made {count}")
            if count and self.method.optimizer.counts_steps and optimizer.state[i].get("step", count) != count:
                raise Wrong(f"{when}: step of parameter {i} is {optimizer.state[i]['step']}, should be {count}")
        for average, own in zip(self.own_averages, oracle.averages, strict=True):
            if average.n_averaged != own.count:
                raise Wrong(f"{when}: {average!r} should have {own.count} updates")
        self.compare_last(when)

    def numbers(self, oracle):
        """All arrays to compare: (label, optimizer's, oracle's, kind of number)."""
        state = self.optimizer.state
        for i, (param, own) in enumerate(zip(self.params, oracle.params, strict=True)):
            yield f"parameter {i}", param, own, oracle.kinds[i]
            if i in state and param.size:
                for key, value in oracle.states[i].items():
                    if key in state[i]:
                        kind = oracle.kinds[i] if np.ndim(value) or key in self.method.optimizer.state_slots else "f"
                        yield f"{key} of parameter {i}", state[i][key], value, kind
        for k, (average, own) in enumerate(zip(self.own_averages, oracle.averages, strict=True)):
            for i, (mean, expected) in enumerate(zip(average.averages, own.arrays, strict=True)):
                yield f"average {k} of parameter {i}", mean, expected, oracle.kinds[i]

    @staticmethod
    def close(got, expected, kind):
        got, expected = wide(got), np.asarray(expected)
        if got.shape != expected.shape:
            return False
        with np.errstate(all="ignore"):
            near = np.abs(got - expected) <= 16 * ROUNDING[kind] * np.abs(expected) + LEAST[kind]
        return bool(np.all(near | (got == expected) | ~np.isfinite(got) & ~np.isfinite(expected)))

    def among_rounded(self, index, label, got, expected, kind, when):
        """Whether what is not close to the oracle is among what roundings make of it."""
        if self.replays is None:
            self.replays = [list(self.numbers(self.replayed(noise))) for noise in range(12)]
        others = [replay[index][2] for replay in self.replays]
        got = wide(got)
        with np.errstate(all="ignore"):
            spread = np.max([np.abs(other - expected) for other in others], axis=0)
            near = np.abs(got - expected) <= 32 * spread + 16 * ROUNDING[kind] * np.abs(expected) + LEAST[kind]
        near = near | (got == expected) | ~np.isfinite(got) & ~np.all(np.isfinite([expected, *others]), axis=0)
        # not finite in one of them: an overflow of the dtype, or a quotient of nothing
        near = near | ~np.isfinite(spread)
        if not np.all(near):
            where = np.unravel_index(np.argmin(near), near.shape)
            raise Wrong(f"{when}: {label} is {got[where]} at {tuple(map(int, where))}, should be "
                        f"{expected[where]} ± {32 * spread[where]:.2g}")

    def replayed(self, noise):
        oracle = Oracle(self.method, noise)
        for name, args, options in self.history:
            getattr(oracle, name)(*copy.deepcopy(args), **options)
        return oracle

    def compare_last(self, when):
        last, own = self.optimizer.last_step, self.oracle.last
        if self.oracle.stages is None or "forgotten" in own:
            return
        for name in ("steps", "skipped_steps"):
            if getattr(last, name) != own[name]:
                raise Wrong(f"{when}: last_step.{name} is {getattr(last, name)}, should be {own[name]}")
        if "skipped" not in own:
            return
        if last.skipped != own["skipped"]:
            raise Wrong(f"{when}: last_step.skipped is {last.skipped}, should be {own['skipped']}")
        if own["clipped"] is not None and not own["near"] and last.clipped != own["clipped"]:
            raise Wrong(f"{when}: last_step.clipped is {last.clipped}, should be {own['clipped']}")
        single = self.single or any(kind in "fF" for kind in self.oracle.kinds)
        whole = own["grad_norm"], *own.get("grad_norms", ()), *own.get("param_norms", ())
        mine = last.grad_norm, *last.grad_norms, *last.param_norms
        if len(whole) != len(mine):
            raise Wrong(f"{when}: last_step is {last}, should be {own}")
        for got, expected in zip(mine, whole, strict=True):
            if (got is None) != (expected is None):
                raise Wrong(f"{when}: last_step.grad_norm is {got}, should be {expected}")
            if got is not None and not math.isclose(got, expected, rel_tol=2e-5 if single else 1e-9, abs_tol=1e-37) \
                    and math.isfinite(got) | math.isfinite(expected):
                raise Wrong(f"{when}: a norm of last_step is {got}, should be {float(expected)}")
        largest = max(map(float, own.get("param_norms", [0.0])), default=0.0)
        for got, expected in zip(last.update_norms, own.get("update_norms", ()), strict=True):
            tolerance = (2e-3 if single else 1e-8) * (expected + 1e-3 * largest)
            if math.isfinite(expected) and abs(got - expected) > tolerance:
                raise Wrong(f"{when}: update_norms are {last.update_norms}, should be {own['update_norms']}")

    # ---- operations

    def step(self, kinds, options, how="flat"):
        """A step, or what it raises, if that is what was asked for."""
        if self.method.optimizer.sparse == "only":
            return self.sparse_step(kinds, options)
        if {"clip_update", "cautious"} & set(self.oracle.stages or {}) and options.get("on_nonfinite") == "propagate":
            return None  # one number that is not finite decides over all of its parameter
        if self.pending:
            grads, copies, passed = [], [None] * len(self.params), None
        else:
            grads, copies = self.gradients(kinds)
            passed = self.arranged(grads, how)
            if passed is None:
                return None
        zero = (self.oracle.stages or {}).get("zero_grad", False)
        if zero and any(grad is not None and not grad.flags.writeable for grad in grads):
            with self.refused("a read-only gradient with zero_grad", grads=grads):
                self.optimizer.step(passed, **options)
            return None
        if self.meaningless(options.get("clip")):
            with self.refused("a clip that complex numbers cannot have", grads=grads):
                self.optimizer.step(passed, **options)
            self.tell("touch")
            return None
        trial = copy.deepcopy(self.oracle)
        if trial.step(copies, **copy.deepcopy(options)) == "raised":
            with self.refused("a gradient that is not finite", NonFiniteGradient, grads=grads):
                self.optimizer.step(passed, **options)
            self.tell("touch")
            return None
        if how == "closure":
            loss = self.optimizer.step(lambda: (1.5, passed), **options)
            if loss != 1.5:
                raise Wrong(f"step returned {loss}")
        else:
            self.optimizer.step(passed, **options)
        self.tell("step", copies, **options)
        self.pending = None
        for grad, before in zip(grads, copies, strict=bool(grads)):
            wanted = None if before is None else (before * 0 if zero else before)
            if grad is not None and not (grad.tobytes() == wanted.tobytes() or (zero and not grad.any())):
                raise Wrong("the step changed a gradient")
        return None

    def meaningless(self, clip):
        """Whether a clip is for real numbers and there are complex ones."""
        return (isinstance(clip, Value) or getattr(clip, "norm_type", 2) != 2) and any(
            kind in "FD" for kind in self.oracle.kinds)

    def step_bound(self, kinds):
        """Writes new gradients into those that were bound, and steps."""
        if self.bound is None or self.pending:
            return
        for grad in self.bound:
            if grad is not None:
                grad[...] = self.draw(grad.shape, grad.dtype.char, kinds[0] if kinds[0] not in SPECIAL else "plain")
        copies = [None if grad is None else grad.copy() for grad in self.bound]
        self.optimizer.step()
        self.tell("step", copies)

    def bind(self, kinds):
        if self.method.optimizer.sparse == "only":
            return
        grads, _ = self.gradients([kind for kind in kinds if kind != "readonly"] or ["plain"])
        self.optimizer.bind_grads(grads)
        self.bound = grads

    def accumulate(self, kinds, weight):
        if self.method.optimizer.sparse == "only":
            with self.refused("accumulate"):
                self.optimizer.accumulate(self.gradients(kinds)[0], weight)
            return
        grads, copies = self.gradients([kind for kind in kinds if kind not in ("nan", "inf")] or ["plain"])
        self.optimizer.accumulate(grads, weight)
        self.tell("accumulate", copies, weight)
        self.pending = True

    def sparse_step(self, kinds, options=None):
        """A step with the rows of some tables, where the method takes such gradients."""
        if self.pending or self.oracle.stages or options:
            return
        if self.method.optimizer.sparse == "no" or any(
                at(group.get("weight_decay", 0.0), self.oracle.count) for group in self.oracle.groups):
            grads = [fastopt.SparseRows([0], np.ones((1, *p.shape[1:]), p.dtype), p.shape) if p.ndim and len(p)
                     else None for p in self.params]
            if any(grad is not None for grad in grads):
                with self.refused("a sparse gradient"):
                    self.optimizer.step(grads)
            return
        grads, twins = [], []
        for k, param in enumerate(self.params):
            if not param.ndim or not len(param) or kinds[k % len(kinds)] == "none":
                grads.append(None)
                twins.append(None)
                continue
            rows = self.rng.integers(0, len(param), self.rng.integers(0, 6))
            values = self.draw((len(rows), *param.shape[1:]), param.dtype.char)
            dense = np.zeros(param.shape, param.dtype)
            np.add.at(dense, rows, values)
            grads.append(fastopt.SparseRows(rows, values, param.shape))
            twins.append((dense, np.unique(rows)))
        self.optimizer.step(grads)
        self.tell("sparse_step", twins)

    def wrong_step(self, kind, position):
        """A gradient, or a structure of them, that cannot be stepped with."""
        position %= len(self.params)
        grads, _ = self.gradients(["plain"])
        made = WRONG_GRADIENTS[kind](self, grads, position)
        if made is None or self.pending:
            return
        with self.refused(f"gradient {position}: {kind}", grads=grads):
            self.optimizer.step(made)

    def wrong_option(self, name, value):
        if self.method.optimizer.sparse == "only":
            return
        if self.oracle.stages is None:
            self.set_stages({})
        with self.refused(f"step({name}={value!r})"):
            self.optimizer.step(self.gradients(["plain"])[0] if not self.pending else None, **{name: value})

    def wrong_hyper(self, group, name, value):
        """A hyperparameter that no step can have."""
        if name not in self.method.optimizer.hyperparameters:
            return
        group = self.optimizer.param_groups[group % len(self.optimizer.param_groups)]
        default = self.method.options.get(name)
        if (value is None and default is None) or (isinstance(default, bool) and isinstance(value, bool)) or (
                name == "t0" and value == -1.5):
            return
        with self.refused(f"{name}={value!r}"):
            self.method.optimizer([np.ones(2)] if not self.method.matrices_only else [np.ones((2, 2))], **{name: value})
        if not self.pending:
            with self.refused(f"group[{name!r}] = {value!r}"), self.kept_from(group):
                group[name] = value
                self.optimizer.step(self.gradients(["plain"])[0])

    def wrong_schedule(self, group, name, value):
        """A schedule that gives such a value; what it gives is known at the step only."""
        if name not in self.method.optimizer.hyperparameters or self.pending or value is None:
            return
        group = self.optimizer.param_groups[group % len(self.optimizer.param_groups)]
        if isinstance(self.method.options.get(name), bool) and isinstance(value, bool):
            return
        kept, group[name] = group[name], Always(value)
        try:
            self.optimizer.step(self.gradients(["plain"])[0])
        except REFUSAL:
            group[name] = kept
        else:
            raise Wrong(f"{name} = {value!r} of a schedule: accepted")

    def wrong_group(self, kind):
        """Parameters that cannot be added."""
        params = WRONG_PARAMETERS[kind](self)
        if params is None:
            return
        with self.refused(f"parameters: {kind}"):
            self.optimizer.add_param_group({"params": params})
        if self.named or kind == "nothing":
            return
        with self.refused(f"parameters: {kind}"):
            self.method.optimizer([*self.params, *params] if isinstance(params, list) else params)

    def reshaped(self, position):
        """Somebody gives a parameter another shape, in place."""
        param = self.params[position % len(self.params)]
        shape = param.shape
        if self.pending or shape == shape[::-1]:
            return
        grads = self.gradients(["plain"])[0] if self.method.optimizer.sparse != "only" else [
            fastopt.SparseRows([], np.zeros((0, *p.shape[1:]), p.dtype), p.shape) if p.ndim else None
            for p in self.params]
        before = self.snapshot()
        param.shape = shape[::-1]
        try:
            self.optimizer.step(grads)
        except REFUSAL:
            param.shape = shape
        else:
            raise Wrong("a parameter of another shape: accepted")
        if self.snapshot() != before:
            raise Wrong(f"a parameter of another shape: refused, but changed {differing(before, self.snapshot())}")

    @staticmethod
    @contextlib.contextmanager
    def kept_from(group):
        """Puts all hyperparameters back."""
        kept = dict(group)
        try:
            yield
        finally:
            group.update(kept)

    def hyper(self, group, name, value):
        """Another hyperparameter from now on, if it may be."""
        group %= len(self.optimizer.param_groups)
        if name not in self.method.options:
            return
        own = self.optimizer.param_groups[group]
        kept, own[name] = own[name], copy.deepcopy(value)
        if self.pending:
            own[name] = kept
            return
        grads, copies = self.gradients(["plain"])
        if self.method.optimizer.sparse == "only":
            grads = copies = [None for _ in grads]
        if self.attempt(f"{name}={value!r}", lambda: self.optimizer.step(grads)):
            self.tell("set_option", group, name, copy.deepcopy(value))
            self.tell("step", copies)
        else:
            own[name] = kept

    def hyper_in_place(self, group, name, part, value):
        """A list that a group has is changed; then all is as if another list had been set."""
        group %= len(self.optimizer.param_groups)
        own = self.optimizer.param_groups[group].get(name)
        if isinstance(own, list) and part < len(own):
            old, own[part] = own[part], value
            try:
                self.method.optimizer([np.ones((2, 2))], **{name: own})
            except REFUSAL:
                own[part] = old
                return
            for index, other in enumerate(self.optimizer.param_groups):
                if other.get(name) is own:  # groups may share the list of the defaults
                    self.tell("set_option", index, name, list(own))

    def set_stages(self, stages):
        stages = copy.deepcopy(stages)
        averages = [OWN_AVERAGES[kind](self.optimizer, **options) for kind, options in stages.get("average", ())]
        if self.attempt(f"set_stages({stages})",
                        lambda: self.optimizer.set_stages(**stages | ({"average": averages} if averages else {}))):
            if self.pending:
                raise Wrong("set_stages was accepted, though gradients are accumulated")
            self.own_averages = averages
            self.tell("set_stages", stages)

    def wrong_stages(self, options):
        with self.refused(f"set_stages({options})"):
            self.optimizer.set_stages(**options)

    def copied(self, how):
        """Goes on with a copy of everything, in other memory."""
        if self.pending:
            with self.refused(how):
                pickle.dumps(self.optimizer) if how == "pickle" else copy.deepcopy(self.optimizer)
            return
        everything = self.params, self.optimizer, self.bound, self.own_averages
        if how == "pickle":
            everything = pickle.loads(pickle.dumps(everything))
        else:
            everything = copy.deepcopy(everything)
        self.params, self.optimizer, self.bound, self.own_averages = everything

    def reload(self):
        """Goes on with a new optimizer that loaded a checkpoint."""
        saved = copy.deepcopy(self.optimizer.state_dict())
        params = [param.copy() for param in self.params]
        groups = []
        for index, group in enumerate(self.optimizer.param_groups):
            part = [k for k, own in enumerate(self.oracle.group_of) if own == index]
            shaped = self.shaped([params[k] for k in part], [self.oracle.names[k] for k in part])
            needed = {key: value for key, value in group.items()
                         if key in self.method.options and (callable(value) or isinstance(value, (bool, list, tuple)))}
            groups.append({"params": shaped, **needed})
        try:
            fresh = self.method.optimizer(groups)
        except REFUSAL:  # where a value goes with another one only
            fresh = self.method.optimizer([group | {key: old[key] for key in self.method.options} for group, old in zip(
                groups, self.optimizer.param_groups, strict=True)])
        averages = []
        if self.oracle.stages is not None:
            for average, (kind, options) in zip(self.own_averages, self.oracle.stages.get("average", ()), strict=True):
                averages.append(OWN_AVERAGES[kind](fresh, **options))
                averages[-1].load_state_dict(average.state_dict())
            fresh.set_stages(**self.oracle.stages | ({"average": averages} if averages else {}))
        fresh.load_state_dict(saved)
        self.params, self.optimizer, self.bound, self.own_averages = params, fresh, None, averages
        self.tell("loaded")

    def add_group(self, shapes, dtypes, options):
        if self.pending:
            return
        if self.own_averages:
            self.set_stages({key: value for key, value in self.oracle.stages.items() if key != "average"})
        stages = self.oracle.stages or {}
        if not isinstance(stages.get("lr_scale", {}), dict):
            self.set_stages({key: value for key, value in stages.items() if key != "lr_scale"})
        if {"centralize", "bounds", "clip"} & set(stages) and {"F", "D"} & set(dtypes):
            return
        arrays = [self.draw(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        names = self.names(arrays)
        group = {"params": self.shaped(arrays, names), **copy.deepcopy(options)}
        defaults = {name: self.optimizer.defaults[name] for name in self.method.options}
        try:
            self.judge(defaults | options)
        except REFUSAL:
            return
        if self.attempt(f"add_param_group({options})", lambda: self.optimizer.add_param_group(group)):
            self.params += arrays
            self.tell("add_group", [array.copy() for array in arrays], names, defaults | options)
            if self.bound is not None:
                with self.refused("bound gradients after add_param_group"):
                    self.optimizer.step()
                self.bound = None

    def rebind(self):
        params = [param.copy() for param in self.params]
        self.optimizer.rebind(self.arranged(params, "same"))
        self.params = params

    def replaced(self, how):
        """Someone writes other arrays into the lists of the optimizer: a step must not go into the void."""
        if self.pending:
            return
        listed = self.optimizer.param_groups[0]["params"]
        kept = list(listed)
        if how == "replace":
            listed[0] = listed[0].copy()
        elif how == "append":
            listed.append(listed[0].copy())
        else:
            listed.pop()
        with self.refused(f"params of a group: {how}"):
            self.optimizer.step(self.gradients(["plain"])[0] if self.method.optimizer.sparse != "only" else [
                None for _ in self.params])
        listed[:] = kept

    def read_only(self, position):
        """A parameter that cannot be written."""
        position %= len(self.params)
        param = self.params[position]
        if self.pending or self.method.optimizer.sparse == "only" or not param.flags.owndata:
            return
        param.setflags(write=False)
        with self.refused("a read-only parameter"):
            self.optimizer.step(self.gradients(["plain"])[0])
        param.setflags(write=True)

    def reset(self):
        self.optimizer.reset_state()
        self.tell("reset")
        self.pending = None

    def set_count(self, count):
        self.optimizer.step_count = count
        self.tell("set_count", count)

    def wrong_count(self, count):
        with self.refused(f"step_count = {count!r}"):
            self.optimizer.step_count = count

    def set_state(self, position, key):
        """Another state array for a parameter that has one."""
        position %= len(self.params)
        keys = [slot for slot in self.optimizer.state.get(position, ()) if slot in self.method.optimizer.state_slots]
        if not keys:
            return
        key = keys[key % len(keys)]
        old = np.asarray(self.optimizer.state[position][key])
        array = self.draw(old.shape, old.dtype.char)
        array = np.abs(array.real) + 1e-3 + 1j * (np.abs(array.imag) + 1e-3) if old.dtype.kind == "c" else np.abs(array)
        array = np.asarray(array, old.dtype)
        self.optimizer.state[position][key] = array
        self.tell("set_state", position, key, array)
        for value in (array.astype(object), np.zeros((*old.shape, 2), old.dtype), "x", None):
            with self.refused(f"state {key} = {value!r}"):
                self.optimizer.state[position][key] = value

    def exchange(self):
        """The averages instead of the parameters, and back."""
        for average, own in zip(self.own_averages, self.oracle.averages, strict=True):
            before = [param.tobytes() for param in self.params]
            with average.average_parameters():
                for i, (param, expected) in enumerate(zip(self.params, own.arrays, strict=True)):
                    if not np.allclose(wide(param), expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                        raise Wrong(f"average of parameter {i} is {param}, should be {expected}")
                try:
                    self.optimizer.step(self.gradients(["plain"])[0] if not self.pending else None)
                except RuntimeError:
                    pass
                else:
                    raise Wrong("a step while the averages are in the parameters was accepted")
            if before != [param.tobytes() for param in self.params]:
                raise Wrong("parameters are others after average_parameters()")


LEAST = {"f": 1e-36, "F": 1e-36, "d": 1e-290, "D": 1e-290}
SPECIAL = ("none", "nan", "inf", "readonly", "other")


def differing(before, after):
    names = "parameters", "state", "stages", "averages", "step_count", "last_step", "groups"
    if isinstance(before[0], tuple):
        before, after = (*before[0], before[1]), (*after[0], after[1])
        names = *names, "gradients"
    return ", ".join(name for name, old, new in zip(names, before, after, strict=True) if old != new)


# ---- gradients that must be refused: functions that return what to step with, or None where it would be right

def entry(make):
    def wrong(run, grads, position):
        made = make(run, grads[position], run.params[position])
        if made is None:
            return None
        return [made if k == position else grad for k, grad in enumerate(grads)]

    return wrong


def strided(run, grad, param, step=2):
    if grad.size < 2 or not grad.ndim:
        return None
    made = grad[::-1] if step < 0 else np.repeat(grad, 2, axis=0)[::step]
    return None if made.flags.c_contiguous else made


def fortran(run, grad, param):
    turned = np.asfortranarray(grad)
    return None if turned.flags.c_contiguous else turned


def unaligned(run, grad, param):
    raw = np.zeros(grad.nbytes + 1, np.uint8)
    return raw[1:].view(grad.dtype).reshape(grad.shape) if grad.size else None


def of_state(run, grad, param):
    position = next(i for i, other in enumerate(run.params) if other is param)
    arrays = [value for value in run.optimizer.state.get(position, {}).values()
              if isinstance(value, np.ndarray) and value.shape == param.shape and value.dtype == param.dtype]
    return arrays[0] if arrays and param.size else None


def other_parameter(run, grads, position):
    twins = [i for i, param in enumerate(run.params) if i != position and param.shape == run.params[position].shape]
    if not twins or not run.params[position].size:
        return None
    other = run.params[twins[0]]
    if other.dtype.kind != run.params[position].dtype.kind:
        return None
    return [other if k == position else grad for k, grad in enumerate(grads)]


def average_of(run, grads, position):
    if not run.own_averages or not run.params[position].size:
        return None
    return [run.own_averages[0].averages[position] if k == position else grad for k, grad in enumerate(grads)]


def sparse_beside(run, grads, position):
    """Sparse gradients, which a step takes up, and one that it cannot have."""
    if run.method.optimizer.sparse == "no":
        return None
    made = [fastopt.SparseRows([0], np.ones((1, *p.shape[1:]), p.dtype), p.shape) if p.ndim and len(p) else None
            for p in run.params]
    if any(at(group.get("weight_decay", 0.0), run.oracle.count) for group in run.oracle.groups):
        return None
    return [fastopt.SparseRows([], np.zeros((0, 7)), (1, 7)) if k == position else g for k, g in enumerate(made)]


class Odd:
    """What exports memory, and fails at it."""

    def __init__(self, error):
        self.error = error

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **_):
        raise self.error


WRONG_GRADIENTS = {
    "shape": entry(lambda run, g, p: np.zeros((*p.shape, 2), g.dtype)),
    "length": entry(lambda run, g, p: np.zeros((p.shape[0] + 1, *p.shape[1:]), g.dtype) if p.ndim else None),
    "integers": entry(lambda run, g, p: np.zeros(p.shape, int)),
    "booleans": entry(lambda run, g, p: np.zeros(p.shape, bool)),
    "float16": entry(lambda run, g, p: np.zeros(p.shape, np.float16)),
    "longdouble": entry(lambda run, g, p: np.zeros(p.shape, np.longdouble)),
    "objects": entry(lambda run, g, p: g.astype(object)),
    "strings": entry(lambda run, g, p: np.full(p.shape, "x")),
    "complex or real": entry(lambda run, g, p: np.zeros(p.shape, "d" if p.dtype.kind == "c" else "D")),
    "byte order": entry(lambda run, g, p: g.astype(g.dtype.newbyteorder())),
    "fortran": entry(fortran),
    "strided": entry(strided),
    "backwards": entry(lambda run, g, p: strided(run, g, p, -1)),
    "unaligned": entry(unaligned),
    "masked": entry(lambda run, g, p: np.ma.masked_array(g, np.zeros(g.shape, bool))),
    "list": entry(lambda run, g, p: g.tolist() if g.ndim == 1 and g.size > 1 else None),
    "string": entry(lambda run, g, p: "gradient"),
    "bytes": entry(lambda run, g, p: b"12345678"),
    "function": entry(lambda run, g, p: print),
    "object": entry(lambda run, g, p: object()),
    "KeyError": entry(lambda run, g, p: Odd(KeyError("x"))),
    "ZeroDivisionError": entry(lambda run, g, p: Odd(ZeroDivisionError("x"))),
    "AttributeError": entry(lambda run, g, p: Odd(AttributeError("x"))),
    "parameter": entry(lambda run, g, p: p if p.size else None),
    "part of parameter": entry(lambda run, g, p: p.view() if p.size else None),
    "state": entry(of_state),
    "other parameter": other_parameter,
    "average": average_of,
    "sparse beside wrong": sparse_beside,
    "one too few": lambda run, grads, k: grads[:-1] if len(grads) > 1 else None,
    "one too many": lambda run, grads, k: grads + grads[:1],
    "nothing": lambda run, grads, k: [],
    "unknown name": lambda run, grads, k: {f"x{i}": g for i, g in enumerate(grads)} if run.named else None,
    "missing name": lambda run, grads, k: dict(list(zip(run.oracle.names, grads, strict=True))[1:])
    if run.named and len(grads) > 1 else None,
    "a set": lambda run, grads, k: {1.0, 2.0},
    "a number": lambda run, grads, k: 7,
    "not bound": lambda run, grads, k: None,
}

WRONG_PARAMETERS = {
    "integers": lambda run: [np.ones((2, 3), int)],
    "float16": lambda run: [np.ones((2, 3), np.float16)],
    "byte order": lambda run: [np.ones((2, 3)).astype(">f8")],
    "fortran": lambda run: [np.asfortranarray(np.ones((2, 3)))],
    "strided": lambda run: [np.ones((4, 3))[::2]],
    "read-only": lambda run: [np.broadcast_to(1.0, (2, 3))],
    "masked": lambda run: [np.ma.masked_array(np.ones((2, 3)))],
    "list": lambda run: [[1.0, 2.0]],
    "string": lambda run: ["x"],
    "none": lambda run: [None],
    "nothing": lambda run: [],
    "a set": lambda run: {1.0},
    "number": lambda run: [1.0],
    "sparse": lambda run: [fastopt.SparseRows([0], np.ones((1, 3)), (2, 3))],
    "odd": lambda run: [Odd(KeyError("x"))],
    "known": lambda run: [run.params[0]] if run.params[0].size else None,
    "overlap": lambda run: [run.params[0].reshape(-1)[:1].reshape(1, 1)] if run.params[0].size else None,
    "twice": lambda run: [array := np.ones((2, 3)), array],
    "overlap among them": lambda run: [array := np.ones((2, 3)), array[1:]],
    "some names": lambda run: [("x", np.ones((2, 3))), np.ones((3, 2))],
    "a name twice": lambda run: [("x", np.ones((2, 3))), ("x", np.ones((3, 2)))],
}

# ---- strategies

SHAPES = [(3,), (), (0,), (1,), (17,), (5, 3), (3, 5), (1, 4), (2, 3, 4), (2, 1), (0, 3), (33, 20), (2050,), (4, 600)]
MATRICES = [(5, 3), (3, 5), (1, 4), (2, 1), (4, 4), (0, 3), (33, 20), (3, 0)]
NUMBERS = [0.0, 1e-10, 1e-8, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0, 1.5, 2.0, 3.0, -0.5, -0.8]
WRONG_VALUES = [math.nan, math.inf, -math.inf, 10**400, -1.5, "x", "0.1", None, [], [0.5], (0.5,), {}, b"1", 1j,
                np.ones(5), (0.9, math.nan), (0.9, "x"), (2.0, 2.0, 2.0, 2.0), np.ma.masked]
KINDS = ["plain", "plain", "plain", "none", "zero", "equal", "small", "large", "decades", "other", "readonly"]
CLIPS = [0.5, 1e6, GlobalNorm(3.0, 1.0, 0.0), GlobalNorm(0.5, 3.0), GlobalNorm(2.0, 0.5), GlobalNorm(0.3, math.inf),
         GlobalNorm(1.0, 64.0), ParameterNorm(0.7), ParameterNorm(0.7, math.inf, 0.0), ParameterNorm(0.5, 20.0),
         Value(0.4), Adaptive(), Adaptive(1e-3, 1e-6)]
STAGES = {
    "clip": st.sampled_from(CLIPS),
    "on_nonfinite": st.sampled_from(["skip", "raise", "propagate"]),
    "average": st.lists(st.sampled_from([("EMA", {"decay": 0.5}), ("EMA", {}), ("SWA", {}),
                                         ("EMA", {"decay": 0.9, "debias": True}),
                                         ("EMA", {"decay": 0.9, "update_after_step": 2})]), min_size=1, max_size=2),
    "zero_grad": st.just(True),
    "accumulation": st.just("sum"),
    "centralize": st.just(True),
    "cautious": st.sampled_from([True, "unscaled"]),
    "cautious_weight_decay": st.just(True),
    "corrected_weight_decay": st.sampled_from([0.3, 0.01]),
    "no_decay": st.sampled_from([1, 0, "b*", ["b*"]]),
    "lr_scale": st.sampled_from([{"b*": 0.5}, {"w*": 2.0, "b*": 0.0}]),
    "clip_update": st.sampled_from([0.5, 1.0]),
    "lookahead": st.sampled_from([(1, 0.5), (2, 1.0), (3, 0.8)]),
    "bounds": st.sampled_from([(-0.5, 0.25), "nonnegative"]),
    "statistics": st.just(True),
}
WRONG_STAGES = [{"clip": -1}, {"clip": math.nan}, {"clip": "x"}, {"bounds": (1, 0)}, {"bounds": 3}, {"lookahead": 3},
                {"lookahead": (0, 0.5)}, {"lookahead": (2, 0.0)}, {"average": 3}, {"zero_grad": 1}, {"no_decay": 1.5},
                {"lr_scale": [1.0] * 99}, {"lr_scale": {"zzz": 1.0}}, {"no_decay": "zzz"}, {"cautious": "x"},
                {"on_nonfinite": "x"}, {"max_skips": 0}, {"clip_update": 0}, {"accumulation": 3}, {"nothing": 1}]


OPERATIONS = [
    *["step"] * 6, "nonfinite", "nonfinite", "clipped", "scaled", "sparse_step", "step_bound", "bind", "accumulate",
    *["wrong_step"] * 3, "wrong_option", *["wrong_hyper"] * 2, "hyper", "hyper_in_place", "set_stages", "wrong_stages",
    "copied", *["reload"] * 2, "add_group", "rebind", "replaced", "read_only", "reset", "set_count", "wrong_count",
    "set_state", "exchange", "wrong_schedule", "wrong_group", "reshaped",
]


def accepted(method, name, value):
    """Whether a hyperparameter may have this value, alone."""
    try:
        method.optimizer.hyperparameters[name](name, value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def values_of(method, name):
    """Values that a hyperparameter may have: its default and those of the variants, and others of its kind."""
    default = method.options[name]
    known = [default] + [variant[name] for variant in method.variants if name in variant]
    if isinstance(default, bool) or isinstance(default, str) or default is None:
        return [True, False] if isinstance(default, bool) else known
    if isinstance(default, tuple):
        known += [list(value) for value in known]
        if len(default) == 2:
            known += [(a, b) for a in (0.0, 0.5, 0.9) for b in (0.5, 0.99, 1.5)]
    elif isinstance(default, int):
        known += [1, 2, 3]
    else:
        known += NUMBERS
    fit = [value for value in known if accepted(method, name, value) and not extreme(name, value)]
    return [*fit, (Falling(0.9), 0.99)] if name == "betas" else fit


def extreme(name, value):
    """Values at which a method divides by next to nothing."""
    return (name == "eps" and isinstance(value, float) and value < 1e-10) or (name in ("d", "t0") and value == 0)


@st.composite
def options_of(draw, method, single=False):
    options = dict(draw(st.sampled_from(method.variants)))
    for name in draw(st.lists(st.sampled_from(sorted(set(method.options) - {"capturable"})), max_size=2, unique=True)):
        options[name] = draw(st.sampled_from(values_of(method, name)))
    if "lr" in method.options and method.name != "Rprop" and draw(st.integers(0, 5)) == 0:
        options["lr"] = Falling(0.1)
    try:
        method.optimizer([np.ones((2, 2))], **copy.deepcopy(options))
    except (TypeError, ValueError):
        return dict(draw(st.sampled_from(method.variants)))
    return options


def sizes_of(method, most=4):
    dtypes = "fd" if method.optimizer.rule is None else "ffddFD"
    one = st.tuples(st.sampled_from(MATRICES if method.matrices_only else SHAPES), st.sampled_from(dtypes))
    return st.lists(one, min_size=1, max_size=most)


@st.composite
def groups_of(draw, method):
    groups = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        sizes = draw(sizes_of(method))
        groups.append(([shape for shape, _ in sizes], [dtype for _, dtype in sizes], draw(options_of(method))))
    return groups


@st.composite
def few_stages(draw):
    names = draw(st.lists(st.sampled_from(sorted(STAGES)), max_size=4, unique=True))
    return {name: draw(STAGES[name]) for name in names}


@st.composite
def operation_of(draw, method, named):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    name = draw(st.sampled_from(OPERATIONS))
    how = draw(st.sampled_from(["flat", "same", "shuffled", "buffers", "closure"]))
    if name == "step":
        return "step", kinds, {}, how
    if name == "nonfinite":
        policies = ["skip", "raise"] if method.optimizer.rule is None else ["skip", "raise", "propagate"]
        return ("step", [draw(st.sampled_from(["nan", "inf"])), *kinds],
                {"on_nonfinite": draw(st.sampled_from(policies))}, how)
    if name == "clipped":
        clip = draw(st.sampled_from(CLIPS))
        if isinstance(clip, (GlobalNorm, ParameterNorm)) and draw(st.booleans()):
            kinds = ["huge"]
        return "step", kinds, {"clip": clip}, how
    if name == "scaled":
        return "step", kinds, {"grad_scale": draw(st.sampled_from([0.5, 3.0, 65536.0]))}, how
    if name in ("sparse_step", "step_bound", "bind"):
        return name, kinds
    if name == "accumulate":
        return name, kinds, draw(st.sampled_from([1.0, 2.0, 0.25]))
    if name == "wrong_step":
        return name, draw(st.sampled_from(list(WRONG_GRADIENTS))), draw(st.integers(0, 3))
    if name == "wrong_option":
        return draw(st.sampled_from([(name, key, value) for key, values in {
            "clip": (-1, 0, math.nan, "x", [1]), "grad_scale": (0, -1.0, math.nan, math.inf, "x", 10**400),
            "on_nonfinite": ("x", 3)}.items() for value in values]))
    if name in ("wrong_hyper", "wrong_schedule"):
        return (name, draw(st.integers(0, 2)), draw(st.sampled_from(sorted(method.optimizer.hyperparameters))),
                draw(st.sampled_from(WRONG_VALUES)))
    if name == "hyper":
        key = draw(st.sampled_from(sorted(method.options)))
        return name, draw(st.integers(0, 2)), key, draw(st.sampled_from(values_of(method, key)))
    if name == "hyper_in_place":
        tuples = [key for key, value in method.options.items() if isinstance(value, tuple)] or ["none"]
        return (name, draw(st.integers(0, 2)), draw(st.sampled_from(tuples)), draw(st.integers(0, 1)),
                draw(st.sampled_from([0.0, 0.5, 0.9, 1.5])))
    if name == "set_stages":
        stages = draw(few_stages())
        return name, stages if named else without_names(stages)
    if name == "wrong_stages":
        return name, draw(st.sampled_from(WRONG_STAGES))
    if name == "copied":
        return name, draw(st.sampled_from(["pickle", "deepcopy"]))
    if name == "add_group":
        sizes = draw(sizes_of(method, 2))
        return name, [shape for shape, _ in sizes], [dtype for _, dtype in sizes], draw(options_of(method))
    if name == "replaced":
        return name, draw(st.sampled_from(["replace", "append", "pop"]))
    if name == "wrong_group":
        return name, draw(st.sampled_from(list(WRONG_PARAMETERS)))
    if name in ("read_only", "reshaped"):
        return name, draw(st.integers(0, 3))
    if name == "set_count":
        return name, draw(st.sampled_from([1, 2, 100, 2**31]))
    if name == "wrong_count":
        return name, draw(st.sampled_from([-1, 1.5, "x", None, math.nan, math.inf, 2**63, 10**400]))
    if name == "set_state":
        return name, draw(st.integers(0, 3)), draw(st.integers(0, 2))
    return (name,)


def without_names(stages):
    return {key: value for key, value in stages.items() if key not in ("lr_scale", "no_decay")}


@st.composite
def cases(draw, names=tuple(TABLE)):
    method = TABLE[draw(st.sampled_from(names))]
    form = draw(st.sampled_from(["list", "list", "dict", "pairs", "tuple", "nested", "array"]))
    stages = draw(st.one_of(st.none(), few_stages()))
    if stages and form not in ("dict", "pairs"):
        stages = without_names(stages)
    operations = draw(st.lists(operation_of(method, form in ("dict", "pairs")), min_size=1, max_size=10))
    options = draw(st.one_of(st.just({}), options_of(method)))
    return Case(method.name, options, draw(groups_of(method)), form, stages, operations, draw(st.integers(0, 2**16)))


# ---- the command

def check(case):
    """Runs a case; raises Wrong, or whatever else came up, where optimizer and oracle part."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with contextlib.suppress(Refused):
            Run(case).go()


def failure_of(case):
    """What `check` raises."""
    try:
        check(case)
    except Exception as error:
        return error
    return None


def kind_of(case, error):
    """Failures of one kind differ in numbers only."""
    by_method = f"{case.method} " if ", should be" in str(error) else ""
    return by_method + type(error).__name__ + re.sub(r"[-+]?\d[\d.e+-]*|operation \S+", "#", str(error))[:70]


def smaller(case):
    """Cases with one thing less."""
    for name in ("operations", "groups"):
        parts = getattr(case, name)
        for k in range(len(parts) - (name == "groups" and len(parts) == 1) * len(parts)):
            yield replace(case, **{name: parts[:k] + parts[k + 1 :]})
    for k, (shapes, dtypes, own) in enumerate(case.groups):
        less = [(shapes[:i] + shapes[i + 1 :], dtypes[:i] + dtypes[i + 1 :], own)
                for i in range(len(shapes)) if len(shapes) > 1]
        less += [(shapes, dtypes, {key: own[key] for key in own if key != name}) for name in own]
        for group in less:
            yield replace(case, groups=[*case.groups[:k], group, *case.groups[k + 1 :]])
    for name in case.options:
        yield replace(case, options={key: case.options[key] for key in case.options if key != name})
    if case.stages is not None:
        yield replace(case, stages=None)
        for name in case.stages:
            yield replace(case, stages={key: case.stages[key] for key in case.stages if key != name})
    for k, operation in enumerate(case.operations):
        if operation[0] == "step" and operation != ("step", ["plain"], {}):
            yield replace(case, operations=[*case.operations[:k], ("step", ["plain"], {}), *case.operations[k + 1 :]])


def smallest(case, error):
    """A case that fails in the same way and has nothing in it that it does not need."""
    kind, found = kind_of(case, error), True
    while found:
        found = next((less for less in smaller(case) if kind_of(less, failure_of(less)) == kind), None)
        case = found or case
    return case


def fuzz(count, seed, chunk, report, methods=tuple(TABLE)):
    """Runs a number of cases, a chunk at a time, and returns the failures: kind -> (how many, smallest case, error)."""
    failures, done, began = {}, 0, time.monotonic()

    def run(case):
        nonlocal done
        done += 1
        error = failure_of(case)
        if error is not None:
            kind = kind_of(case, error)
            if kind in failures:
                failures[kind][0] += 1
                return
            case = smallest(case, error)
            failures[kind] = [1, case, failure_of(case)]
            line = f"\n    {case!r},\n    # {type(error).__name__}: {failures[kind][2]}"
            report(line.replace(str(10**400), "10**400"))

    for number in range(-(-count // chunk)):
        some = settings(max_examples=min(chunk, count - done), database=None, deadline=None, phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck))
        seeded(seed * 1_000_003 + number)(some(given(cases(methods))(run)))()
        report(f"{done} cases, {sum(n for n, *_ in failures.values())} failed, {time.monotonic() - began:.0f} s")
    for kind, (n, *_) in sorted(failures.items(), key=lambda item: -item[1][0]):
        report(f"{n:6d}  {kind}")
    return failures


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Steps random optimizers against an oracle.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=500, help="cases between two lines of progress")
    parser.add_argument("--threads", type=int, help="steps with this many threads, however small they are")
    parser.add_argument("--method", action="append", choices=list(TABLE), help="only this one; may be repeated")
    asked = parser.parse_args(arguments)
    if asked.threads:
        threads.PER_THREAD, threads.most = 1, lambda: asked.threads
        fastopt.set_num_threads(asked.threads)
    failures = fuzz(asked.cases, asked.seed, asked.chunk, lambda line: print(line, flush=True),
                    tuple(asked.method or TABLE))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
