"""The stages under the names that pickles of before have them."""

from ..stages.options import Stages
from ..stages.step import Step

__all__ = ["Stages", "Step"]
