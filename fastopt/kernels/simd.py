"""Which level of the rules runs here: the best that this CPU has, or the one FASTOPT_SIMD names."""

import importlib.util
import os
from functools import cache

from . import cpu

LEVELS = tuple(level for level in ("base", "v2", "v3", "v4")
               if cpu.supports(level) and importlib.util.find_spec(f"{__package__}.level_{level}"))


def available():
    """The levels this CPU can run, slowest first: `v2` (SSE4.2), `v3` (AVX2, FMA), `v4` (AVX-512), or `base`."""
    return LEVELS


@cache
def level():
    """The level in use. Raises ValueError if FASTOPT_SIMD names one that does not run here."""
    asked = os.environ.get("FASTOPT_SIMD")
    if not asked:
        return LEVELS[-1]
    if asked not in LEVELS:
        raise ValueError(f"FASTOPT_SIMD must be one of {', '.join(LEVELS)} on this CPU, got {asked!r}")
    return asked


@cache
def table(name):
    """The compiled module of a level: its RULES and PREPARE hold the functions."""
    return importlib.import_module(f"{__package__}.level_{name}")
