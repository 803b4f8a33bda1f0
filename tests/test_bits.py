"""The same bits on every level, with any number of threads, block cuts, alignment and order."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from common import SIZES, both_dtypes, every_case, every_method, placed, special, use_level

import fastopt
from fastopt.kernels import simd, threads
from fastopt.kernels.plan import Plan


def bits(method, options, dtype, *, offset=0, seed=0, steps=4, pieces=None):
    """Steps parameters of every size and returns all parameters and states as bytes."""
    rng = np.random.default_rng(seed)
    sizes = SIZES if pieces is None else pieces
    total = sum(sizes)
    whole = special(rng, total, dtype)
    grads = [special(rng, total, dtype) for _ in range(steps)]
    ends = np.cumsum(sizes)[:-1]
    params = [placed(part, offset) for part in np.split(whole, ends)]
    optimizer = method.optimizer(params, **options)
    for grad in grads:
        optimizer.step([placed(part, (3 * offset) % 7) for part in np.split(grad, ends)])
    slots = method.slots(**options)
    result = b"".join(param.tobytes() for param in params)
    for slot in slots:
        result += b"".join(state[slot].tobytes() for state in optimizer.state.values())
    return result


@every_case
@both_dtypes
def test_levels(method, options, dtype, monkeypatch):
    results = set()
    for level in simd.available():
        use_level(monkeypatch, level)
        results.add(bits(method, options, dtype))
    assert len(results) == 1


@every_case
@both_dtypes
def test_threads(method, options, dtype, team, monkeypatch):
    serial = bits(method, options, dtype)
    calls = []
    run = threads.parallel().run
    monkeypatch.setattr(threads.parallel(), "run", lambda *args: (calls.append(args[2]), run(*args)))
    for n in (2, 3, 7):
        monkeypatch.setattr(threads, "num_threads", n)
        assert bits(method, options, dtype) == serial, n
    assert set(calls) == {2, 3, 7}


@every_case
@both_dtypes
def test_alignment(method, options, dtype):
    assert len({bits(method, options, dtype, offset=offset) for offset in (0, 1, 3, 5)}) == 1


@every_case
@both_dtypes
def test_cutting_a_parameter_into_pieces(method, options, dtype):
    total = sum(SIZES)
    same = bits(method, options, dtype) == bits(method, options, dtype, pieces=(total,))
    assert same != method.layerwise


@every_case
def test_unflushed_subnormals_are_the_same_on_every_level(method, options, monkeypatch):
    monkeypatch.setattr(threads, "flush_subnormals", False)
    results = set()
    for level in simd.available():
        use_level(monkeypatch, level)
        results.add(bits(method, options, "float32"))
    assert len(results) == 1


@pytest.mark.parametrize("parts", range(1, 9))
@pytest.mark.parametrize("sizes", [(1,), (2048, 1, 5000), (3,) * 50, (100_000, *(7,) * 30), (0, 0, 4097, 0)])
def test_every_element_is_stepped_once_whatever_the_parts(sizes, parts, team, monkeypatch):
    monkeypatch.setattr(threads, "resolve", lambda *_: parts)
    params = [np.zeros(size, "float32") for size in sizes]
    fastopt.SGD(params, lr=1.0).step([np.full(size, -1, "float32") for size in sizes])
    for param in params:
        np.testing.assert_array_equal(param, 1)


@every_method
def test_subnormals_are_flushed_and_the_mode_of_the_thread_is_restored(method):
    tiny = np.float32(1e-41)
    param, grad = np.full(100, 1.0, "float32"), np.full(100, 1e-21, "float32")
    optimizer = method.optimizer(param, **({"momentum": 0.5} if method.name == "SGD" else {}))
    optimizer.step(np.full(100, 1e-38, "float32"))
    for _ in range(60):
        optimizer.step(np.zeros(100, "float32"))
    for slot in method.slots(**({"momentum": 0.5} if method.name == "SGD" else {})):
        assert not np.any((optimizer.state[0][slot] != 0) & (np.abs(optimizer.state[0][slot]) < 1e-37))
    assert tiny * np.float32(1) == tiny != 0
    assert np.all(grad * np.float32(1e-20) != 0)


def test_flushing_can_be_switched_off():
    start = np.full(10, 1e-39, "float32")
    results = {}
    for flush in (True, False):
        fastopt.set_flush_subnormals(flush)
        try:
            assert fastopt.get_flush_subnormals() is flush
            param = start.copy()
            fastopt.SGD(param, lr=1.0).step(np.zeros(10, "float32"))
            results[flush] = param
        finally:
            fastopt.set_flush_subnormals(True)
    np.testing.assert_array_equal(results[False], start)
    np.testing.assert_array_equal(results[True], 0)


def test_threads_flush_too(team, monkeypatch):
    monkeypatch.setattr(threads, "num_threads", 4)
    param = np.full(100_000, 1e-39, "float32")
    fastopt.SGD(param, lr=1.0).step(np.zeros(100_000, "float32"))
    np.testing.assert_array_equal(param, 0)


def test_the_level_can_be_forced_and_a_wrong_one_names_the_choices():
    script = "import fastopt.kernels.simd as simd; print(simd.level())"
    for level in simd.available():
        run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "FASTOPT_SIMD": level},
                             capture_output=True, text=True, check=True)
        assert run.stdout.strip() == level
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "FASTOPT_SIMD": "v9"},
                         capture_output=True, text=True)
    assert run.returncode != 0
    assert f"FASTOPT_SIMD must be one of {', '.join(simd.available())}" in run.stderr


def test_a_plan_steps_by_a_rule_that_there_is():
    with pytest.raises(ValueError, match="rule must be one of"):
        Plan("nonsense")


def test_a_whole_run_has_the_same_bits_in_another_process():
    script = textwrap.dedent("""
        import hashlib, numpy as np, fastopt
        rng = np.random.default_rng(0)
        w = rng.standard_normal(50_000).astype("float32")
        opt = fastopt.AdamW(w, lr=1e-2)
        for _ in range(20):
            opt.step(rng.standard_normal(50_000).astype("float32"))
        print(hashlib.sha256(w.tobytes()).hexdigest())
    """)
    digests = set()
    for level in simd.available():
        for n in ("1", "2"):
            env = {**os.environ, "FASTOPT_SIMD": level, "FASTOPT_NUM_THREADS": n}
            run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
            digests.add(run.stdout)
    assert len(digests) == 1
