"""The cases: how many arrays of how many elements, on how many threads."""

import re
from dataclasses import dataclass

LARGE = 1_000_000  # elements: from here on more than one thread can pay
MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000}


@dataclass(frozen=True)
class Case:
    """`arrays` parameters of `elements` elements each."""

    arrays: int
    elements: int

    @property
    def name(self):
        return f"{self.arrays}x{self.elements}"

    @property
    def total(self):
        """Elements of all arrays."""
        return self.arrays * self.elements

    @property
    def threads(self):
        """The numbers of threads that are measured unless others are asked for."""
        return (1, 2) if self.total >= LARGE else (1,)


def parse(name):
    """The case of a name such as `100x64`, `1x1,000,000` or `1x30M`.

    Raises:
        ValueError: it is no such name.
    """
    match = re.fullmatch(r"([\d,_]+)x([\d,_]+)([km]?)", name.strip().lower())
    counts = [int(re.sub(r"[,_]", "", digits) or 0) for digits in match.groups()[:2]] if match else [0]
    if min(counts) < 1:
        raise ValueError(f"a case is named <arrays>x<elements>, such as 100x64 or 1x30M, got {name!r}")
    return Case(counts[0], counts[1] * MULTIPLES[match[3]])


CASES = tuple(map(parse, ("1x64", "100x64", "1000x16", "1x100k", "1x1M", "1x10M")))
FULL = (*CASES, parse("1x30M"))
