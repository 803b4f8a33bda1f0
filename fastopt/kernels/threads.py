"""How many threads a step uses, and whether it flushes subnormals: the settings of the process."""

import math
import os
import warnings
from functools import cache

PER_THREAD = 16_384  # elements: fewer for each thread and the team costs more than it brings

num_threads: int | None = None  # until it is set or first asked for
flush_subnormals = True
serial = False  # no threads in this process: built without, or forked from a team that could not be paused


def set_num_threads(n: int) -> None:
    """Sets how many threads a step may use, for every optimizer without a `num_threads` of its own.

    Args:
        n: at least 1. The default is 1, or the environment variable `FASTOPT_NUM_THREADS`.

    A step never uses more threads than `omp_get_max_threads()` (so `OMP_NUM_THREADS` and `threadpool_limits`
    hold), than the CPUs this process may run on, than its cgroup quota, or than one for each 16,384 elements.
    The result has the same bits for any number.

    Threads pay where little else runs. Beside a BLAS with threads of its own (NumPy's matrix products), both teams
    spin while they wait and take the CPUs from each other, which can cost far more than the step: measure your
    loop, and if it gets slower set `OMP_WAIT_POLICY=passive` or `OPENBLAS_NUM_THREADS=1` before Python starts.

    Raises:
        ValueError: `n` is not an integer of at least 1.

    >>> import fastopt
    >>> fastopt.set_num_threads(2)
    >>> fastopt.get_num_threads()
    2
    >>> fastopt.set_num_threads(1)
    """
    global num_threads
    num_threads = check(n, "n")


def get_num_threads() -> int:
    """The number that `set_num_threads` set, else the environment variable `FASTOPT_NUM_THREADS`, else 1.

    Raises:
        ValueError: the variable is asked and is not an integer of at least 1.
    """
    global num_threads
    if num_threads is None:
        given = os.environ.get("FASTOPT_NUM_THREADS") or "1"
        try:
            num_threads = check(int(given), "FASTOPT_NUM_THREADS")
        except ValueError:
            raise ValueError(f"FASTOPT_NUM_THREADS must be an integer of at least 1, got {given!r}") from None
    return num_threads


def set_flush_subnormals(flush: bool) -> None:
    """Sets whether a step treats subnormal numbers as zero; on by default.

    The moments of a unit that stopped learning decay into subnormals, which x86 CPUs handle some 27 times
    slower. The thread's own mode is restored after the step. Off means exact IEEE arithmetic.

    >>> import fastopt
    >>> fastopt.set_flush_subnormals(False)
    >>> fastopt.get_flush_subnormals()
    False
    >>> fastopt.set_flush_subnormals(True)
    """
    global flush_subnormals
    flush_subnormals = bool(flush)


def get_flush_subnormals() -> bool:
    """Whether a step treats subnormal numbers as zero."""
    return flush_subnormals


def check(n, name):
    if isinstance(n, bool) or not hasattr(type(n), "__index__") or n.__index__() < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {n!r}")
    return n.__index__()


class Threaded:
    """What may have a number of threads of its own."""

    _num_threads: int | None = None

    @property
    def num_threads(self) -> int | None:
        """How many threads a step or an update may use; None (the default) is `fastopt.get_num_threads()`."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, n: int | None) -> None:
        self._num_threads = None if n is None else check(n, "num_threads")


@cache
def parallel():
    """The OpenMP module, loaded at the first call; None where there is none."""
    try:
        from . import parallel as module
    except ImportError:
        return None
    return module


@cache
def warn_serial():
    warnings.warn("fastopt steps with one thread: it was built without OpenMP, or the OpenMP runtime does not load",
                  stacklevel=3)


@cache
def quota():
    """The CPUs that this process's cgroup allows, rounded up; infinite without a limit. Read once."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            limit, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
                limit = file.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read()
        except OSError:
            return math.inf
    return math.inf if limit in ("max", "-1") else max(1, math.ceil(int(limit) / int(period)))


def cpus():
    """The CPUs this process may run on now."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most():
    """The most threads a step could use now."""
    return 1 if serial or parallel() is None else int(max(1, min(parallel().limit(), cpus(), quota())))


def resolve(asked, elements):
    """The threads of a step over `elements` elements, when `asked` (None: the process's setting)."""
    n = min(get_num_threads() if asked is None else asked, elements // PER_THREAD)
    if n > 1 and parallel() is None:
        warn_serial()
    return 1 if n <= 1 else min(n, most())
