"""torch.optim.lr_scheduler's classes: each binds a schedule to the learning rates of an optimizer.

A scheduler sets the rate of each group when it is made and at every `step()`, which comes after the step of the
optimizer. Several may drive one optimizer, and `get_scheduler` makes them by Hugging Face's names.

>>> import numpy as np, fastopt
>>> opt = fastopt.SGD([np.zeros(3)], lr=1.0)
>>> scheduler = fastopt.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
>>> for _ in range(4):
...     opt.step([np.ones(3)])
...     scheduler.step()
...     print(scheduler.get_last_lr())
[1.0]
[0.5]
[0.5]
[0.25]
"""

from .base import LRScheduler
from .composition import ChainedScheduler, SequentialLR
from .cycles import CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR
from .factors import (
    SWALR,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from .lambdas import LambdaLR, MultiplicativeLR
from .metrics import GreedyLR, ReduceLROnPlateau
from .names import get_scheduler

__all__ = [
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "GreedyLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "get_scheduler",
]
