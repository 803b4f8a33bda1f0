"""Fixtures that several test files share."""

import signal

import pytest

from fastopt.kernels import threads

# a shell may start a background job with Ctrl-C ignored; the tests of interrupts want it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def team(monkeypatch):
    """Lets a step have any number of threads, however small it is and however few CPUs there are."""
    if threads.parallel() is None:
        pytest.skip("built without OpenMP")
    monkeypatch.setattr(threads, "PER_THREAD", 1)
    monkeypatch.setattr(threads, "most", lambda: 64)
