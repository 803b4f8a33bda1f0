"""fastopt: fused neural-network optimizers and learning-rate schedules for the CPU, over NumPy memory."""

from importlib import import_module

from . import averages, functional, lr_finder, lr_scheduler, optimizers, reference, schedules
from ._version import __version__
from .clip import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from .config import get_include, show_config
from .grad_scaler import GradScaler
from .kernels.threads import (
    get_flush_subnormals,
    get_num_threads,
    set_flush_subnormals,
    set_num_threads,
)
from .optimizers import *  # noqa: F403

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
    "lr_finder",
    "lr_scheduler",
    "reference",
    "schedules",
    "set_flush_subnormals",
    "set_num_threads",
    "show_config",
    "stages",  # noqa: F405
]


def __getattr__(name):
    if name != "stages":
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")  # by those who use it: what it imports takes longer than all else
