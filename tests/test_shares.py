"""The shares of a threaded walk write apart, and none reads what another writes: they may run at once.

ThreadSanitizer does not know gcc's OpenMP, so this stands for it: the shares of each pass of a step are done one by
one, in one order and in the other. Each changes bytes that no other changes, and the result has the bits of a serial
step.
"""

import numpy as np
import pytest
from common import CASES, name_of

import fastopt
from fastopt import averages
from fastopt.kernels import threads

SIZES = (1, 7, 2047, 2049, 4096, 5_000, 3, 9_000)  # blocks of 2,048 elements, cut at the ends of parameters
STAGES = {
    "none": None,
    "clip": {"clip": 1.0},
    "all": {"clip": fastopt.stages.ParameterNorm(1.0), "centralize": True, "bounds": (-2, 2), "lookahead": (2, 0.5),
            "average": averages.EMA, "statistics": True, "zero_grad": True},
}


@pytest.fixture
def shares(monkeypatch):
    """In place of threads: does the shares one by one and keeps what each of them changed."""
    real = threads.parallel()
    if real is None:
        pytest.skip("built without OpenMP")

    class Shares:
        watched: tuple = ()
        backwards = False
        passes: list = []

        def limit(self):
            return 64

        def run(self, address, purpose, parts):
            changed = []
            for part in reversed(range(parts)) if self.backwards else range(parts):
                before = [array.view(np.uint8).copy() for array in self.watched]
                real.run_share(address, purpose, part, parts)
                changed.append([array.view(np.uint8) != old for array, old in zip(self.watched, before, strict=True)])
            self.passes.append(changed)

    made = Shares()
    made.passes = []
    monkeypatch.setattr(threads, "parallel", lambda: made)
    monkeypatch.setattr(threads, "PER_THREAD", 1)
    monkeypatch.setattr(threads, "most", lambda: 64)
    return made


def steps(method, options, stages, parts, watch=lambda arrays: None):
    """Every array of some steps, as bytes."""
    rng = np.random.default_rng(3)
    params = [rng.standard_normal(size).astype("float32") for size in SIZES]
    grads = [rng.standard_normal(size).astype("float32") for size in SIZES]
    optimizer = method.optimizer(params, **{"lr": 0.01} | options)
    optimizer.num_threads = parts
    average = []
    if stages is not None:
        if "average" in stages:
            average = [averages.EMA(params)]
            stages = stages | {"average": average[0]}
        optimizer.set_stages(**stages)
    arrays = [*params, *grads]
    for _ in range(3):
        for grad, row in zip(grads, rng.standard_normal((len(SIZES), max(SIZES))), strict=True):
            grad[...] = row[: grad.size]
        optimizer.step(grads)
        state = [value for entries in optimizer.state.values() for value in entries.values()
                 if isinstance(value, np.ndarray) and value.ndim == 1]
        arrays = [*params, *grads, *state, *(average[0].averages if average else ())]
        watch(arrays)
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize(("method", "options"), CASES, ids=name_of)
def test_shares_write_apart(method, options, stages, shares):
    if method.optimizer.sparse == "only":
        pytest.skip("has no dense steps")
    serial = steps(method, options, STAGES[stages], 1)
    for parts in (2, 5):
        for shares.backwards in (False, True):
            shares.watched, shares.passes = (), []
            assert steps(method, options, STAGES[stages], parts,
                         lambda arrays: setattr(shares, "watched", arrays)) == serial
            assert len(shares.passes) >= 3
            for changed in shares.passes:
                assert len(changed) == parts
                for each in zip(*changed, strict=True):
                    assert np.sum(each, axis=0, dtype=int).max(initial=0) <= 1
            # the last pass is a step: every share of it wrote
            assert all(any(array.any() for array in share) for share in shares.passes[-1])
