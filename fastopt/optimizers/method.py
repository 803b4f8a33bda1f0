"""Method: what an optimizer says of itself."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..kernels.arrays import owned
from ..kernels.rules import Coefficients


class Method:
    """The declaration of a method: its hyperparameters, its state, and the coefficients of a step.

    It has no arrays and makes no step: see `Engine`. Each optimizer is the declaration of its method too.
    """

    rule: ClassVar[str | None]  # the compiled rule; None: it has none
    whole: ClassVar[bool] = False  # it steps a whole parameter at a time, in NumPy: see WholeOptimizer
    hyperparameters: ClassVar[dict]  # name -> check
    state_slots: ClassVar[tuple[str, ...]]  # names of the state arrays, in the order in which the rule has them
    scalar_slots: ClassVar[tuple[str, ...]] = ()  # names of the numbers that each parameter has beside its arrays
    scalars_shared: ClassVar[bool] = True  # parameters of one group and step have the same; False: see `factors`
    fixed: ClassVar[dict] = {}  # hyperparameters that are not arguments

    # ---- what it does

    sparse: ClassVar[str] = "no"  # "too": accepts sparse gradients; "only": no dense ones
    decays: ClassVar[bool] = True  # it has a weight decay
    decouples: ClassVar[str | bool] = False  # the decay is not of the gradient; a name: if that is set
    turns: ClassVar[bool] = False  # an update may have another sign than the gradient
    direction: ClassVar[str | None] = None  # the state array that has the sign of the update
    second_moment: ClassVar[str | None] = None  # the state array with the mean of squared gradients that it divides by
    rate_free: ClassVar[bool] = False  # lr is only where its step sizes begin
    rate_ahead: ClassVar[bool] = False  # `scalar_slots` hold the rate of the next step
    needs: ClassVar[tuple[tuple[str, ...], ...]] = ()  # sums that its factors are made of: see `Plan.measure`
    settles: ClassVar[bool] = False  # the coefficients of step 2 are those of every later one
    closure: ClassVar[bool] = False  # a step takes several gradients, from its closure

    # ---- checkpoints

    in_torch: ClassVar[bool] = True  # torch.optim has it
    counts_steps: ClassVar[bool] = True  # False: torch keeps no step count for it
    integer_step: ClassVar[bool] = False  # a checkpoint of torch has the step count as an int
    same_order: ClassVar[bool] = False  # a checkpoint must have the parameters in the order of this optimizer
    eager_state: ClassVar[bool] = False  # a checkpoint of torch has the state before the first gradient

    @staticmethod
    def slots(settings) -> dict[str, float]:
        """The state arrays that these settings need, with their initial values."""
        raise NotImplementedError

    @staticmethod
    def scalars(settings) -> tuple[float, ...]:
        """The initial values of `scalar_slots`."""
        return ()

    @staticmethod
    def advance(settings, step, scalars) -> tuple[float, ...]:
        """The values of `scalar_slots` after this step."""
        return ()

    @staticmethod
    def coefficients(settings, step) -> Coefficients:
        """What the rule needs at this step (the first is 1), by name, in double precision: `rules.adam(b1=..., ...)`.

        A method with `scalar_slots` gets their values before the step as a third argument.
        """
        raise NotImplementedError

    @staticmethod
    def factors(settings, step, sums, scalars) -> dict[str, np.ndarray]:
        """What a step is multiplied with in each parameter: see `Plan.run`. For a method that `needs` sums.

        Called for parameters that are at one step of one group. `sums` has an array of them for each of `needs`, and
        `scalars` for each of `scalar_slots`, if they are not shared; it is to be made what they are after the step.
        """
        return {}

    @classmethod
    def decoupled(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the weight decay is of the parameter, not of the gradient."""
        return bool(settings.get(cls.decouples) if isinstance(cls.decouples, str) else cls.decouples)

    @classmethod
    def prepared(cls, settings: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """What a gradient is multiplied with, the weight decay that is added to it, the share of the parameter that is
        taken off beside the update, and the limit of an element, of which there is none."""
        sign = -1.0 if settings.get("maximize") else 1.0
        if not cls.decays:
            return sign, 0.0, 0.0, 0.0
        decay = settings["weight_decay"]
        return (sign, 0.0, settings["lr"] * decay, 0.0) if cls.decoupled(settings) else (sign, decay, 0.0, 0.0)

    @staticmethod
    def carried(options: Mapping[str, Any], count: int) -> str | None:
        """The state array in which rows move on after a sparse gradient touched them; None: no other rows move."""
        return None

    @classmethod
    def known_slots(cls, param: np.ndarray) -> tuple[str, ...]:
        """The state arrays that this parameter may have in a checkpoint."""
        return cls.state_slots

    @classmethod
    def needed_slots(cls, param: np.ndarray, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that it must have with these settings, once it has a state."""
        return tuple(cls.slots(settings))

    @classmethod
    def state_shape(cls, slot: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state array of a parameter of this shape."""
        return shape

    @classmethod
    def check_parameter(cls, param: np.ndarray, label: str) -> None:
        """Raises ValueError if this method cannot step this parameter."""

    copied = staticmethod(owned)  # copies a state array: what comes out of a pickle has no aligned memory

    @staticmethod
    def check_settings(settings):
        """Raises ValueError if hyperparameters that are fine alone do not go together."""
