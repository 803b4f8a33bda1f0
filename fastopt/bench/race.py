"""What a race is made of: rows, cases, and the contenders that make the step of a row in a case.

A benchmark is one `Race`: a table of its contenders, and the arrays that they work on. `runner` measures all of them in
the same way, `cli` prints them. A new contender costs its function and its row.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

LIMIT = "same-traffic limit"
FASTOPT, TORCH = "fastopt", "torch"  # in races where each has one way
ROUNDS, SECONDS = 60, 2.0  # of a comparison, at most, unless asked otherwise


@dataclass(frozen=True)
class Row:
    """What is stepped: a method with options."""

    name: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """How a contender makes a step: `step(argument)`, with each of `arguments` in turn.

    Attributes:
        arguments: None where `step` takes none.
        before: makes the arguments of the next steps, whose number it is given and which is at most `batch`; the time
            that it takes does not count.
        aside: the seconds since it was last called that do not count though they passed within steps.
        steps: that one call makes.
        traffic: bytes that a step moves, where they are not those of the race's work.
        label: what is shown for the name of the contender.
    """

    step: Callable
    arguments: tuple | None = None
    before: Callable[[int], list] | None = None
    batch: int = 1
    aside: Callable[[], float] | None = None
    steps: int = 1
    traffic: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Contender:
    """One way to make the step of a row in a case.

    Attributes:
        make: takes the work of the race, returns a `Step`, or None where there is no such way for the row or case.
        needs: the package without which it is left out.
        asked: whether it takes part only where it is asked for by its name.
    """

    name: str
    make: Callable[[Any], Step | None]
    needs: str | None = None
    asked: bool = False


@dataclass(frozen=True)
class Race:
    """A benchmark.

    Attributes:
        name, about: what selects it, and one sentence.
        rows: what is stepped, each with a `name`.
        cases: the names of those that are measured unless others are asked for; `parse` makes a case of a name.
        work: makes what the contenders share, from a row, a case, the name of a dtype and a number of threads. It has
            `bytes`, that they go through together; and where there are such, `elements` and `traffic`, the bytes
            that a step moves.
        base: the contender whose time the others are compared with.
        columns: of its table after the contender, {head: function(comparison, name) -> text}; None for those of
            `runner`.
        dtypes: that it is measured in, the first unless asked otherwise.
        rounds, seconds: of a comparison, at most.
    """

    name: str
    about: str
    rows: tuple
    cases: tuple[str, ...]
    parse: Callable[[str], Any]
    work: Callable[[Any, Any, str, int], Any]
    contenders: tuple[Contender, ...]
    base: str
    columns: dict[str, Callable] | None = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    rounds: int = ROUNDS
    seconds: float = SECONDS

    def enter(self, work, names=None):
        """{contender: its step} for this work: of all that are there, or of the base and those with these `names`."""
        found = {one.name: one.make(work) for one in self.contenders
                 if (not one.asked if names is None else one.name in {self.base, *names})
                 and (one.needs is None or installed(one.needs))}
        return {name: step for name, step in found.items() if step is not None}


@cache
def installed(package):
    """The module of a package, None where it is missing.

    torch must be imported before fastopt's threads start: then both use one OpenMP runtime, whereas two would spin
    against each other.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def torch():
    return installed("torch")


