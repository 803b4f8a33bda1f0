"""The cases: how many arrays of how many elements, on how many threads."""

import argparse
import re
from dataclasses import dataclass
from math import prod

from ..cli import Stop, need_memory, whole

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


def case_named(name):
    """A check of an option: the case of a name, if its arrays fit into the memory that is free."""
    try:
        case = parse(name)
        # parameters, gradients and two moments, of fastopt and of one rival, in float32; objects of Python
        need_memory(8 * 4 * case.total + 1_000 * case.arrays)
    except (ValueError, Stop) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return case


def shape_named(name):
    """A check of an option: the shape of a name such as `1024x1024` or `64`, if some arrays of it fit into memory."""
    sizes = [whole(1)(size) for size in name.split("x")]
    if len(sizes) > 32:
        raise argparse.ArgumentTypeError(f"must have at most 32 dimensions, got {len(sizes)}")
    try:
        need_memory(8 * 4 * prod(sizes))
    except Stop as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return tuple(sizes)


CASES = tuple(map(parse, ("1x64", "100x64", "1000x16", "1x100k", "1x1M", "1x10M")))
FULL = (*CASES, parse("1x30M"))
