"""fastopt: fused neural-network optimizers and learning-rate schedules for the CPU, over NumPy memory."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import optimizers
from ._version import __version__
from .config import get_include, show_config
from .kernels.threads import (
    get_flush_subnormals,
    get_num_threads,
    set_flush_subnormals,
    set_num_threads,
)
from .optimizers import *  # noqa: F403

if TYPE_CHECKING:
    from . import averages, functional, lr_finder, lr_scheduler, reference, schedules, stages
    from .checkpoint import load, save, to_torch
    from .clip import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
    from .grad_scaler import GradScaler

__all__ = [
    *optimizers.__all__,
    "GradScaler",
    "__version__",
    "averages",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "functional",
    "get_flush_subnormals",
    "get_include",
    "get_num_threads",
    "get_total_norm",
    "load",
    "lr_finder",
    "lr_scheduler",
    "reference",
    "save",
    "schedules",
    "set_flush_subnormals",
    "set_num_threads",
    "show_config",
    "stages",
    "to_torch",
]

# Loaded when first used: an optimizer alone is there at once. Module, and the name in it if it is not the module.
LATER = {
    **{name: (name, None)
       for name in ("averages", "functional", "lr_finder", "lr_scheduler", "reference", "schedules", "stages")},
    **{name: ("clip", name)
       for name in ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_", "get_total_norm")},
    "GradScaler": ("grad_scaler", "GradScaler"),
    **{name: ("checkpoint", name) for name in ("load", "save", "to_torch")},
}


def __getattr__(name):
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, part = LATER[name]
    value = import_module(f"{__name__}.{module}")
    if part is not None:
        value = getattr(value, part)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *LATER})
