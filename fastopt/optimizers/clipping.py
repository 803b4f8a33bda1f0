"""The ways to clip under the names that pickles of before have them."""

from ..stages.clip import Adaptive, GlobalNorm, ParameterNorm, Value

__all__ = ["Adaptive", "GlobalNorm", "ParameterNorm", "Value"]
