"""The cases: how many arrays of how many elements, on how many threads."""

import re
from dataclasses import dataclass
from math import prod

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

    @property
    def memory(self):
        """Bytes: parameters, gradients and two moments, of fastopt and of one contender in float32; objects."""
        return 8 * 4 * self.total + 1_000 * self.arrays


@dataclass(frozen=True)
class Shape:
    """One array of a shape."""

    sizes: tuple[int, ...]

    @property
    def name(self):
        return "x".join(map(str, self.sizes))

    @property
    def total(self):
        return prod(self.sizes)

    @property
    def threads(self):
        return (1,)

    @property
    def memory(self):
        return 8 * 4 * self.total


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


def parse_shape(name, dimensions=range(1, 33), make=Shape):
    """The shape of a name such as `1024x1024` or `64`.

    Raises:
        ValueError: it is no such name, or has another number of dimensions than allowed.
    """
    sizes = [int(size) if size.isdecimal() else 0 for size in name.split("x")]
    if min(sizes) < 1:
        raise ValueError(f"a case is named by its shape, such as 1024x1024, got {name!r}")
    if len(sizes) not in dimensions:
        least, most = dimensions[0], dimensions[-1]
        allowed = f"{least}" if least == most else f"from {least} to {most}"
        raise ValueError(f"a case has {allowed} dimensions, got {len(sizes)} in {name!r}")
    return make(tuple(sizes))


CASES = ("1x64", "100x64", "1000x16", "1x100k", "1x1M", "1x10M")
FULL = (*CASES, "1x30M")
