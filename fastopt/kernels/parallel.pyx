# cython: cdivision=True, boundscheck=False, wraparound=False
"""The only module linked to OpenMP; imported at the first threaded step."""

from cython.parallel cimport parallel, threadid

from .tables cimport Walk
from .walk cimport walk

import os

cdef extern from "omp.h" nogil:
    """
    /* gcc has it since version 9 and clang since 11; both say so only later */
    #if _OPENMP >= 201811 || (defined(__clang__) && __clang_major__ >= 11) || (defined(__GNUC__) && __GNUC__ >= 9)
      #define fastopt_pause() omp_pause_resource_all(omp_pause_soft)
    #else
      #define fastopt_pause() 1
    #endif
    """
    int omp_get_max_threads()
    int omp_get_num_threads()
    int fastopt_pause()


def limit():
    """Threads that OpenMP would use now."""
    return omp_get_max_threads()


def run(size_t address, int purpose, Py_ssize_t parts):
    """Walks the plan at `address` with a team of `parts` threads."""
    cdef Walk *w = <Walk*>address
    with nogil, parallel(num_threads=parts):
        walk(w, purpose, threadid(), omp_get_num_threads())


def run_share(size_t address, int purpose, Py_ssize_t part, Py_ssize_t parts):
    """Does share `part` of `parts` alone: a test does them one by one and looks at what each of them writes."""
    walk(<Walk*>address, purpose, part, parts)


# A child forked while the team sleeps would wait for threads it does not have: let them go before a fork.
# Where the runtime cannot, the child steps serially.
_paused = True


def _before_fork():
    global _paused
    _paused = fastopt_pause() == 0


def _after_fork_in_child(paused=None):
    from . import threads

    threads.serial = not (_paused if paused is None else paused)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
