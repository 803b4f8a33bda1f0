"""Fixtures that several test files share."""

import pytest

from fastopt.kernels import threads


@pytest.fixture
def team(monkeypatch):
    """Lets a step have any number of threads, however small it is and however few CPUs there are."""
    if threads.parallel() is None:
        pytest.skip("built without OpenMP")
    monkeypatch.setattr(threads, "PER_THREAD", 1)
    monkeypatch.setattr(threads, "most", lambda: 64)
