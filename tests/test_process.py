"""What fastopt does to the process: imports, OpenMP, threads, fork, the GIL."""

import os
import subprocess
import sys
import textwrap
import threading
import warnings

import numpy as np
import pytest

import fastopt
from fastopt.kernels import threads


def run(script, **env):
    """Runs a script in a fresh interpreter and returns what it printed."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True,
                            env={**os.environ, **env}, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


needs_openmp = pytest.mark.skipif(threads.parallel() is None, reason="built without OpenMP")
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")

LOADED = """
    def openmp():
        with open("/proc/self/maps") as file:
            return any("libgomp" in line or "libomp" in line or "libiomp" in line for line in file)
"""


@needs_proc
def test_importing_and_serial_steps_load_no_openmp():
    assert run(LOADED + """
    import numpy as np, fastopt, fastopt.table, fastopt.cli
    fastopt.AdamW(np.ones(1_000_000, "float32")).step(np.ones(1_000_000, "float32"))
    print(openmp())
    """) == "False"


@needs_proc
@needs_openmp
def test_a_small_step_asked_for_threads_never_enters_openmp():
    assert run(LOADED + """
    import numpy as np, fastopt
    fastopt.set_num_threads(2)
    opt = fastopt.AdamW(np.ones(20_000, "float32"))
    opt.step(np.ones(20_000, "float32"))
    print(openmp())
    opt = fastopt.AdamW(np.ones(40_000, "float32"))
    opt.step(np.ones(40_000, "float32"))
    print(openmp())
    """).split() == ["False", "True"]


def test_importing_loads_nothing_heavy():
    heavy = run("""
    import sys, fastopt
    print(*[name for name in ("torch", "scipy", "sklearn", "matplotlib", "pandas", "tqdm", "dataclasses", "argparse",
                              "subprocess", "multiprocessing") if name in sys.modules])
    """)
    alone = run("""
    import sys, numpy
    print(*[name for name in ("dataclasses", "argparse", "subprocess", "multiprocessing") if name in sys.modules])
    """)
    assert set(heavy.split()) <= set(alone.split())


@needs_openmp
def test_threads_are_limited_by_what_may_run(monkeypatch):
    used = []
    module = threads.parallel()
    real = module.run
    monkeypatch.setattr(module, "run", lambda *args: (used.append(args[-1]), real(*args)))
    usable = threads.most()

    def step(size, **settings):
        used.clear()
        optimizer = fastopt.SGD(np.ones(size, "float32"))
        optimizer.num_threads = settings.get("threads")
        optimizer.step(np.ones(size, "float32"))
        return used[0] if used else 1

    assert step(10**6) == 1
    assert step(10**6, threads=64) == usable
    assert step(threads.PER_THREAD * 2 - 1, threads=64) == 1
    monkeypatch.setattr(threads, "num_threads", 64)
    assert step(10**6) == usable
    assert step(10**6, threads=1) == 1
    monkeypatch.setattr(threads, "quota", lambda: 1)
    assert step(10**6) == 1
    monkeypatch.undo()


@needs_openmp
def test_omp_num_threads_and_threadpool_limits_hold():
    script = """
    import fastopt.kernels.threads as threads
    print(threads.most())
    """
    assert run(script, OMP_NUM_THREADS="1") == "1"
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert threads.most() == 1


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_affinity_holds():
    script = """
    import os
    import fastopt.kernels.threads as threads
    threads.most()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(threads.most())
    """
    assert run(script) == "1"


def test_the_environment_sets_the_number_of_threads():
    script = "import fastopt; print(fastopt.get_num_threads())"
    assert run(script) == "1"
    assert run(script, FASTOPT_NUM_THREADS="3") == "3"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            env={**os.environ, "FASTOPT_NUM_THREADS": "many"})
    assert "FASTOPT_NUM_THREADS must be an integer of at least 1, got 'many'" in result.stderr


FORK = """
    import os, sys, warnings, numpy as np, fastopt
    from fastopt.kernels import threads
    warnings.simplefilter("ignore")
    threads.parallel().limit = lambda: 2  # also where only one CPU may be used
    threads.quota = threads.cpus = lambda: 2
    fastopt.set_num_threads(2)
    param, grad = np.zeros(100_000, "float32"), np.ones(100_000, "float32")
    opt = fastopt.SGD(param, lr=1.0)
    for round in range(20):
        opt.step(grad)
        pid = os.fork()
        if pid == 0:
            opt.step(grad)
            os._exit(0 if param[-1] == -round - 2 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    print("done")
"""


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_steps_after_its_parent_used_threads():
    assert run(FORK) == "done"


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_serial_where_the_team_could_not_be_paused():
    assert run("""
    import os
    from fastopt.kernels import threads
    module = threads.parallel()
    pid = os.fork()
    if pid == 0:
        module._after_fork_in_child(True)
        free = not threads.serial
        module._after_fork_in_child(False)
        os._exit(0 if free and threads.serial and threads.most() == 1 else 1)
    print(os.waitpid(pid, 0)[1])
    """) == "0"


def test_without_openmp_every_step_is_serial(monkeypatch):
    monkeypatch.setattr(threads, "parallel", lambda: None)
    threads.warn_serial.cache_clear()
    param = np.zeros(100_000, "float32")
    optimizer = fastopt.SGD(param, lr=1.0)
    optimizer.step(np.ones(100_000, "float32"))
    optimizer.num_threads = 2
    with pytest.warns(UserWarning, match="steps with one thread"):
        optimizer.step(np.ones(100_000, "float32"))
    optimizer.step(np.ones(100_000, "float32"))
    np.testing.assert_array_equal(param, -3)
    assert fastopt.config.config()["openmp"] == "not built: every step is serial"


def test_a_missing_openmp_module_warns_once_and_steps_serially():
    assert run("""
    import sys, warnings
    sys.modules["fastopt.kernels.parallel"] = None
    import numpy as np, fastopt
    fastopt.set_num_threads(2)
    param = np.zeros(100_000, "float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            fastopt.SGD(param, lr=1.0).step(np.ones(100_000, "float32"))
    print(len(caught), "steps with one thread" in str(caught[0].message), param[-1])
    """) == "1 True -3.0"


def test_the_gil_is_released_while_a_large_step_is_made():
    """With so long a switch interval, another thread runs only where this one lets go of the GIL itself."""
    param, grad = np.ones(5_000_000, "float32"), np.ones(5_000_000, "float32")
    optimizer = fastopt.AdamW(param)
    optimizer.step(grad)
    gate, ran = threading.Semaphore(0), []

    def other():
        for _ in range(50):
            gate.acquire()
            ran.append(None)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        inside = 0
        for _ in range(50):
            gate.release()
            before = len(ran)
            optimizer.step(grad)
            inside += len(ran) > before
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert inside > 0


def test_show_config_says_what_runs(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastopt.show_config()
    text = capsys.readouterr().out
    for word in ("fastopt", "numpy", "compiler", "simd", "openmp", "threads", fastopt.__version__, np.__version__):
        assert word in text
