"""Who may step, read or change an optimizer, and what must happen whatever signal arrives.

CPython delivers signals between the bytecodes of Python functions, and right after a call returns. What one call takes
and another gives back, in a `finally` or a `with`, can therefore be lost between the two. Here both stand in C, where
no signal is delivered, around a call of the Python function that needs it.
"""

import os
from functools import wraps

cdef extern from "Python.h":
    size_t PyThread_get_thread_ident() noexcept

cdef long forks = 0  # how often this process is a child


def after_fork_in_child():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)


cdef class Hold:
    """What one thread at a time can have, once.

    A child that was forked while another thread had it does not have that thread, and can take it.
    """

    def during(self, function, first, second=None):
        """Calls function(first, second), or function(first) without a second, and has it meanwhile.

        It is taken by one act: nothing else runs between the look and the taking. Raises RuntimeError if it is taken.
        """
        self.acquire()
        try:
            return function(first) if second is None else function(first, second)
        finally:
            self.give()

    cdef int acquire(self) except -1:
        if self.owner != 0:
            self.check_idle()
        self.owner = PyThread_get_thread_ident()
        self.generation = forks
        self.turns += 1
        return 0

    cdef int give(self) except -1:
        self.owner = 0
        return 0

    @property
    def held(self):
        """Whether a thread of this process has it."""
        return self.owner != 0 and (self.generation == forks or self.owner == PyThread_get_thread_ident())

    def check_idle(self):
        """Raises RuntimeError while it is taken."""
        if self.held:
            raise RuntimeError(
                "this optimizer is in use: a step is being made, or it is read or changed, by another thread or by a "
                "function that this step called; give each thread an optimizer of its own"
            )


def exclusive(method):
    """A method that has the plan of its object, `_plan`, while it runs."""
    @wraps(method)
    def alone(self, *args, **kwargs):
        cdef Hold plan = self._plan
        plan.acquire()
        try:
            return method(self, *args, **kwargs)
        finally:
            plan.give()

    return alone


cdef class Ensured:
    """Base of contexts that call `begin()` and, however they are left, `end()`.

    `end` must bear to be called twice, and where `begin` stopped half way: it is called once more if a signal breaks
    into it.
    """

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.finish()
            raise

    def __exit__(self, *_):
        self.finish()

    cdef finish(self):
        try:
            self.end()
        except BaseException:
            self.end()
            raise

    def begin(self):
        """What entering does."""
        raise NotImplementedError

    def end(self):
        """What leaving does."""
        raise NotImplementedError
