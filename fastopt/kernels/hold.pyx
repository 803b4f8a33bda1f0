"""Who may step, read or change an optimizer, and what must happen whatever signal arrives.

CPython delivers signals between the bytecodes of Python functions, and right after a call returns. What is taken by a
call and given back in a `finally` can therefore be lost between the two. The contexts here are entered and left in C,
where no signal is delivered.
"""

import os

cdef extern from "Python.h":
    size_t PyThread_get_thread_ident() noexcept

cdef long forks = 0  # how often this process is a child


def after_fork_in_child():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)


cdef class Hold:
    """A context that one thread at a time can have, once.

    A child that was forked while another thread had it does not have that thread, and can take it.
    """

    def __enter__(self):
        """Takes it by one act: nothing else runs between the look and the taking.

        Raises:
            RuntimeError: it is taken.
        """
        if self.owner != 0:
            self.check_idle()
        self.owner = PyThread_get_thread_ident()
        self.generation = forks
        self.turns += 1
        return self

    def __exit__(self, *_):
        self.give()

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
