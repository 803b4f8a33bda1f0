"""The optimizers: one small file per family."""

from .adagrad import Adagrad
from .adam import Adam, AdamW
from .base import Optimizer
from .hooks import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
]
