"""The table of methods: one row each. It drives the tests, the benchmarks and the table in the README.

`python -m fastopt.table docs/speeds.json` prints the README's table.
"""

import inspect
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from . import functional, optimizers, reference
from .cli import Parser, Stop, execute, figures


@dataclass(frozen=True, eq=False)
class Method:
    """One optimizer.

    Attributes:
        optimizer: the class.
        source: where the method comes from.
        lr: a learning rate at which it minimises the quadratic of the tests.
        digits: options with which it trains the model of `fastopt demo`; without any, its defaults do.
        full_batch: whether it wants the same data at every step.
        state_note, traffic_note: what the README's table says where a number of bytes for each element does not.
        rosenbrock: options with which it minimises Rosenbrock's function there, beside that rate.
        variants: sets of options; every test of a property runs over all of them.
        matrices_only: whether it steps nothing but matrices, so that a model needs the hybrid with AdamW.
        closure: whether `step` needs a function that computes the loss anew, and a loss that does so exactly.
        torch_fused: whether torch.optim has a fused CPU kernel for it.
        sign_only: whether only the sign of its step depends on the gradient, so that the rounding of a zero decides.
    """

    optimizer: type[Any]
    source: str
    lr: float
    variants: tuple[dict, ...]
    matrices_only: bool = False
    torch_fused: bool = False
    sign_only: bool = False
    closure: bool = False
    rosenbrock: dict = field(default_factory=dict)
    digits: dict = field(default_factory=dict)
    full_batch: bool = False
    state_note: str = ""
    traffic_note: str = ""

    @property
    def name(self):
        return self.optimizer.__name__

    @property
    def elementwise(self):
        """Whether a compiled rule steps it from dense gradients, element by element."""
        return self.optimizer.rule is not None and self.optimizer.sparse != "only"

    @property
    def layerwise(self):
        """Whether its step depends on the whole of a parameter, so that it may not be cut into several."""
        return bool(self.optimizer.needs)

    @property
    def in_torch(self):
        """Whether torch.optim has it."""
        return self.optimizer.in_torch

    @property
    def reference(self):
        """The twin in plain NumPy."""
        return getattr(reference, self.name.lower())

    @property
    def functional(self):
        """The function without an Optimizer."""
        return getattr(functional, self.name.lower())

    @property
    def options(self):
        """The arguments after `params`, with their defaults."""
        parameters = inspect.signature(self.optimizer).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name != "params"}

    def slots(self, **options):
        """The state arrays that these options need, with their initial values."""
        return self.optimizer.slots(self.options | self.optimizer.fixed | options)

    def state_bytes(self, itemsize=4, **options):
        """Bytes of state for each element."""
        return itemsize * len(self.slots(**options))

    def traffic(self, itemsize=4, **options):
        """Bytes a step moves for each element: it reads the gradient, reads and writes parameter and state."""
        return itemsize * (3 + 2 * len(self.slots(**options)))


METHODS = (
    Method(
        optimizers.SGD,
        source="Robbins, Monro 1951; Sutskever et al. 2013",
        lr=0.05,
        variants=(
            {},
            {"weight_decay": 0.1},
            {"maximize": True},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            {"momentum": 0.9, "momentum_mode": "classic", "dampening": 0.1},
            {"momentum": 0.9, "momentum_mode": "classic", "nesterov": True},
        ),
        torch_fused=True,
        rosenbrock={"lr": 0.0025, "momentum": 0.9},
        digits={"lr": 0.05, "momentum": 0.9},
    ),
    Method(
        optimizers.Adagrad,
        source="Duchi, Hazan, Singer 2011",
        lr=0.5,
        variants=(
            {},
            {"lr_decay": 0.1, "weight_decay": 0.1, "maximize": True},
            {"initial_accumulator_value": 0.5, "eps": 1e-3},
            {"eps_mode": "inside", "eps": 1e-3},
        ),
        torch_fused=True,
    ),
    Method(
        optimizers.RMSprop,
        source="Tieleman, Hinton 2012; Graves 2013",
        lr=0.01,
        variants=(
            {},
            {"momentum": 0.9},
            {"centered": True},
            {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
            {"alpha": 0.9, "eps": 1e-3, "eps_mode": "inside"},
        ),
        digits={"lr": 2e-3},
    ),
    Method(
        optimizers.Adam,
        source="Kingma, Ba 2015; Reddi et al. 2018",
        lr=0.05,
        variants=(
            {},
            {"amsgrad": True},
            {"weight_decay": 0.1, "maximize": True},
            {"betas": (0.0, 0.9), "eps": 1e-3},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "amsgrad": True},
            {"eps_mode": "hat", "eps": 1e-3},
            {"eps_mode": "inside", "eps": 1e-3},
        ),
        torch_fused=True,
        digits={"lr": 2e-3},
    ),
    Method(
        optimizers.AdamW,
        source="Loshchilov, Hutter 2019",
        lr=0.05,
        variants=(
            {},
            {"amsgrad": True, "weight_decay": 0.5},
            {"maximize": True, "betas": (0.5, 0.9), "weight_decay": 0.0},
            {"eps_mode": "hat", "eps": 1e-3},
        ),
        torch_fused=True,
        digits={"lr": 2e-3},
    ),
    Method(
        optimizers.RAdam,
        source="Liu et al. 2020",
        lr=0.05,
        variants=(
            {},
            {"weight_decay": 0.1, "maximize": True},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-3},
        ),
        digits={"lr": 5e-3},
    ),
    Method(
        optimizers.NAdam,
        source="Dozat 2016",
        lr=0.05,
        variants=(
            {},
            {"weight_decay": 0.1, "maximize": True, "momentum_decay": 0.1},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-3},
        ),
    ),
    Method(
        optimizers.Adamax,
        source="Kingma, Ba 2015",
        lr=0.05,
        variants=({}, {"weight_decay": 0.1, "maximize": True, "betas": (0.5, 0.9), "eps": 1e-3}),
        digits={"lr": 5e-3},
    ),
    Method(
        optimizers.Adadelta,
        source="Zeiler 2012",
        lr=1.0,
        variants=({}, {"rho": 0.5, "weight_decay": 0.1, "maximize": True, "eps": 1e-3}),
        rosenbrock={"lr": 0.1},
    ),
    Method(
        optimizers.ASGD,
        source="Polyak, Juditsky 1992",
        lr=0.05,
        variants=(
            {},
            {"lambd": 0.1, "alpha": 0.5, "weight_decay": 0.1, "maximize": True},
            {"t0": 3.0},
        ),
        rosenbrock={"lr": 0.005},
        digits={"lr": 0.2},
    ),
    Method(
        optimizers.Rprop,
        sign_only=True,
        source="Riedmiller, Braun 1993",
        lr=0.01,
        variants=({}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.05), "maximize": True}),
        digits={"lr": 3e-3, "step_sizes": (1e-6, 3e-3)},
        full_batch=True,
    ),
    Method(
        optimizers.LAMB,
        source="You et al. 2020",
        lr=0.02,
        rosenbrock={"lr": 0.005},
        variants=({}, {"weight_decay": 0.1, "maximize": True, "betas": (0.5, 0.9), "eps": 1e-3}),
    ),
    Method(
        optimizers.LARS,
        source="You, Gitman, Ginsburg 2017",
        lr=1.0,
        variants=(
            {},
            {"momentum": 0.0, "weight_decay": 0.1, "maximize": True},
            {"nesterov": True, "trust_coefficient": 0.01, "weight_decay": 0.05, "eps": 0.0},
        ),
    ),
    Method(
        optimizers.NovoGrad,
        source="Ginsburg et al. 2019",
        lr=0.01,
        variants=(
            {},
            {"grad_averaging": True, "weight_decay": 0.1, "maximize": True},
            {"betas": (0.5, 0.9), "eps": 1e-3},
        ),
    ),
    Method(
        optimizers.Lion,
        sign_only=True,
        source="Chen et al. 2023",
        lr=0.01,
        variants=({}, {"betas": (0.95, 0.98), "weight_decay": 0.5, "maximize": True}),
        digits={"lr": 3e-4},
    ),
    Method(
        optimizers.AdEMAMix,
        source="Pagliardini, Ablin, Grangier 2024",
        lr=0.05,
        variants=(
            {},
            {"betas": (0.8, 0.99, 0.999), "alpha": 2.0, "weight_decay": 0.5, "maximize": True},
            {"beta3_warmup": 3, "alpha_warmup": 5, "eps": 1e-3},
        ),
        digits={"lr": 1e-3},
    ),
    Method(
        optimizers.SparseAdam,
        source="Kingma, Ba 2015, on touched rows",
        lr=0.05,
        variants=({}, {"betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}),
        traffic_note="28 for touched rows",
    ),
    Method(
        optimizers.Muon,
        source="Jordan et al. 2024; Liu et al. 2025",
        lr=0.05,
        variants=(
            {},
            {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
            {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.5},
            {"adjust_lr_fn": "original", "ns_steps": 3, "eps": 1e-3},
            {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 20},
            {"ns_coefficients": (1.5, -0.5, 0.0)},
            {"ns_coefficients": (2.0, -1.5, -0.25), "ns_steps": 2},
            {"ns_coefficients": (0.5, 0.0, 0.5)},
        ),
        digits={"lr": 0.02},
        matrices_only=True,
        traffic_note="matrix products",
    ),
    Method(
        optimizers.Adafactor,
        source="Shazeer, Stern 2018",
        lr=0.05,
        variants=(
            {},
            {"weight_decay": 0.1, "maximize": True, "beta2_decay": -0.5},
            {"eps": (1e-3, 0.1), "d": 2.0},
        ),
        state_note="rows + columns",
        traffic_note="20",
    ),
    Method(
        optimizers.LBFGS,
        source="Liu, Nocedal 1989; Nocedal, Wright 2006",
        lr=1.0,
        variants=({}, {"line_search_fn": "strong_wolfe"}),
        closure=True,
        state_note="8 · `history_size` + 8",
        traffic_note="16 · `history_size` in an iteration",
    ),
)


SPEED_CASES = ("100x64", "1x1000000")  # of the elementwise methods, that the README's table has


def markdown(speeds):
    """The README's table of methods; `speeds` are the results of `fastopt bench --speed`."""
    lines = [
        "| optimizer | options (besides `params`) | source | state, bytes | traffic, bytes "
        "| torch's fastest path takes |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        options = ", ".join(f"`{name}={value!r}`" for name, value in method.options.items())
        states = sorted({method.state_bytes(**variant) for variant in method.variants})
        traffic = sorted({method.traffic(**variant) for variant in method.variants})
        lines.append(
            f"| `{method.name}` | {options} | {method.source} | "
            f"{method.state_note or ' or '.join(map(str, states))} | "
            f"{method.traffic_note or ' or '.join(map(str, traffic))} | {speed(method, speeds)} |"
        )
    return "\n".join(lines)


def speed(method, speeds):
    """How many times fastopt's step torch's takes, in the cases of a method."""
    return ", ".join(f"{figures(one['best'])} x at {one['case']}" for one in speeds
                     if one["method"] == method.name and (one["case"] in SPEED_CASES or not method.elementwise))


def main(arguments=None):
    description = "Prints the README's table of methods."
    parser = Parser(prog="python -m fastopt.table", description=description)
    parser.add_argument("file", help="what fastopt bench --speed --json wrote")
    parser.add_argument("--into", metavar="README", help="a file whose table is replaced; nothing is printed")
    return execute(parser, report, arguments)


def report(args):
    with open(args.file, encoding="utf-8") as file:
        try:
            text = markdown(json.load(file)["results"])
        except (ValueError, KeyError, TypeError):
            raise Stop(f"{args.file} is not a file of fastopt bench --speed") from None
    if args.into is None:
        print(text)
        return
    with open(args.into, encoding="utf-8") as file:
        before, table, after = file.read().partition(text.splitlines()[0])
    if not table:
        raise Stop(f"{args.into} has no such table")
    with open(args.into, "w", encoding="utf-8") as file:
        file.write(before + text + after[after.index("\n\n"):])


if __name__ == "__main__":
    sys.exit(main())
