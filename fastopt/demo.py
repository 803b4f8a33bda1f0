"""The demo: trains a network on handwritten digits, and times the optimizer against its rule in plain NumPy.

The network is a perceptron in NumPy with a backward pass written by hand; the digits ship with scikit-learn.
It is also an example of a training loop: `train` is all there is to it. Needs `pip install "fastopt[demo]"`.

>>> import numpy as np
>>> params = init_model((4, 5, 5, 3), seed=0, dtype=np.float64)
>>> loss, grads = loss_and_grads(params, np.ones((2, 4)), np.array([0, 2]))
>>> [grads[name].shape == param.shape for name, param in params.items()]
[True, True, True, True, True, True]
"""

import argparse
import hashlib
import importlib
import inspect
import io
import itertools
import math
import statistics
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from . import lr_scheduler, table
from ._version import __version__
from .cli import Stop, need_memory, picture, positive, whole, writing
from .optimizers import MuonAdamW

__all__ = [
    "History",
    "Settings",
    "add_arguments",
    "digits",
    "init_model",
    "loss_and_grads",
    "plot",
    "run",
    "train",
]

CLASSES = 10
METHODS = tuple(method for method in table.METHODS if method.optimizer.sparse != "only" and not method.closure)
ADAMW = next(method for method in METHODS if method.name == "AdamW")  # steps what Muon does not


# ---- data

@dataclass(frozen=True)
class Data:
    """Images, one in each row, with values from 0 to 1, and the digits they show."""

    train_images: np.ndarray
    train_digits: np.ndarray
    test_images: np.ndarray
    test_digits: np.ndarray


def optional(module):
    """Imports a module of the optional packages."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Stop(
            f'it needs scikit-learn, matplotlib and tqdm ({error}): pip install "fastopt[demo]"') from None


def digits(seed, dtype):
    """scikit-learn's 1,797 digits of 8 by 8 pixels; a fifth of each class is for the test."""
    given = optional("sklearn.datasets").load_digits()
    images, shown = (given.data / 16).astype(dtype), given.target
    split = optional("sklearn.model_selection").train_test_split
    train_images, test_images, train_digits, test_digits = split(
        images, shown, test_size=0.2, stratify=shown, random_state=seed)
    return Data(train_images, train_digits, test_images, test_digits)


# ---- model

def init_model(sizes, seed, dtype):
    """Weights (He et al. 2015) and zero biases of the layers between `sizes`, as a dict of arrays."""
    random = np.random.default_rng(seed)
    params = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
        weight = random.standard_normal((inputs, outputs)) * math.sqrt(2 / inputs)
        params[f"weight{layer}"] = weight.astype(dtype)
        params[f"bias{layer}"] = np.zeros(outputs, dtype)
    return params


def forward(params, images):
    """Returns the inputs of every layer, and the logits."""
    layers = len(params) // 2
    inputs = [images]
    for layer in range(1, layers + 1):
        outputs = inputs[-1] @ params[f"weight{layer}"] + params[f"bias{layer}"]
        if layer < layers:
            inputs.append(np.maximum(outputs, 0))
    return inputs, outputs


def cross_entropy(logits, labels):
    """Returns the mean of -log softmax(logits)[label], and the softmax."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = np.mean(np.log(sums[:, 0]) - shifted[rows, labels], dtype=np.float64)
    return float(loss), powers / sums


def loss_and_grads(params, images, labels):
    """Returns the mean loss, and its gradients in a dict like `params`.

    With inputs a of a layer and the gradient d of its outputs: dW = aᵀ d, db = Σ d, and the gradient of the
    outputs of the layer below is d Wᵀ where its ReLU let them through, that is where a > 0.
    """
    inputs, logits = forward(params, images)
    loss, d = cross_entropy(logits, labels)
    d[np.arange(len(labels)), labels] -= 1
    d /= len(labels)
    grads = dict.fromkeys(params)
    for layer in range(len(inputs), 0, -1):
        a = inputs[layer - 1]
        grads[f"weight{layer}"] = a.T @ d
        grads[f"bias{layer}"] = d.sum(axis=0)
        if layer > 1:
            d = (d @ params[f"weight{layer}"].T) * (a > 0)
    return loss, grads


def evaluate(params, images, labels):
    """Returns the mean loss, and the share of images that are recognized."""
    _, logits = forward(params, images)
    loss, _ = cross_entropy(logits, labels)
    return loss, float(np.mean(logits.argmax(axis=1) == labels))


def digest(params):
    """A short fingerprint of the bits of the parameters."""
    return hashlib.sha256(b"".join(param.tobytes() for param in params.values())).hexdigest()[:16]


# ---- schedules

def warmup(steps):
    """A factor that rises in a straight line for a tenth of the steps, then falls as 1 / √step."""
    rise = max(1, steps // 10)
    return lambda step: min((step + 1) / rise, math.sqrt(rise / (step + 1)))


SCHEDULES = {
    "none": lambda optimizer, steps: None,
    "step": lambda optimizer, steps: lr_scheduler.StepLR(optimizer, math.ceil(steps / 4), gamma=0.3),
    "multistep": lambda optimizer, steps: lr_scheduler.MultiStepLR(
        optimizer, [max(1, steps * quarters // 4) for quarters in (2, 3)], gamma=0.2),
    "exponential": lambda optimizer, steps: lr_scheduler.ExponentialLR(optimizer, gamma=0.02 ** (1 / steps)),
    "cosine": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
    "linear": lambda optimizer, steps: lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps),
    "lambda": lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, warmup(steps)),
}


# ---- training

@dataclass(frozen=True)
class Settings:
    """What a run is made with; the seed decides the split, the first weights and the batches."""

    schedule: str = "cosine"
    lr: float | None = None  # None: the method's, see `options_of`
    epochs: int = 30
    batch: int = 32
    hidden: tuple[int, int] = (256, 128)
    dtype: str = "float32"
    seed: int = 0
    threads: int | None = None  # of the optimizer; None: fastopt.get_num_threads()

    def steps(self, images):
        """Steps of a run over a number of images."""
        return self.epochs * math.ceil(images / self.batch)

    @property
    def bytes(self):
        """Of parameters, gradients, two moments and the work of a step, in both engines."""
        first, second = self.hidden
        return 12 * np.dtype(self.dtype).itemsize * (64 * first + first * second + second * CLASSES)

    def suited(self, method, images):
        """The same for a method that wants all images in every step, where it is one."""
        return replace(self, batch=images) if method.full_batch else self


@dataclass
class History:
    """What happened in a run.

    Attributes:
        name: the optimizer.
        lr: the learning rate it started from.
        params: the trained parameters.
        losses, rates: training loss and learning rate of each step.
        seconds, numpy_seconds: what each step took in the optimizer and in the same rule in plain NumPy.
        train_losses, test_losses, accuracies: after each epoch; the training loss is the mean of its steps.
        difference: the largest difference between a parameter and its twin that NumPy stepped.
    """

    name: str
    lr: float
    params: dict[str, np.ndarray]
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    numpy_seconds: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    difference: float = 0.0

    @property
    def ratio(self):
        """How many times as long NumPy takes for a step: medians."""
        return statistics.median(self.numpy_seconds) / statistics.median(self.seconds)


class Shadow:
    """The same rule in plain NumPy, stepping copies of the parameters."""

    def __init__(self, method, params):
        self.method = method
        self.params = [param.copy() for param in params.values()]
        self.methods = [ADAMW if method.matrices_only and param.ndim != 2 else method for param in self.params]
        self.states = [{} for _ in self.params]
        self.count = 0

    def step(self, grads, groups):
        """Steps with the hyperparameters of the parameter groups: one for each method."""
        self.count += 1
        both = dict.fromkeys((self.method, *self.methods))
        options = {method: {name: group[name] for name in method.options}
                   for method, group in zip(both, groups, strict=True)}
        for method, param, grad, state in zip(self.methods, self.params, grads.values(), self.states, strict=True):
            method.reference(param, grad, state, self.count, **options[method])


def make_optimizer(method, params, lr=None):
    """The optimizer of a method; AdamW steps what a method for matrices does not."""
    if method.matrices_only:
        return MuonAdamW(params, muon=options_of(method, lr), adamw=options_of(ADAMW))
    return method.optimizer(params, **options_of(method, lr))


def options_of(method, lr=None):
    """The arguments that the demo gives to an optimizer."""
    options = dict(method.digits)
    if lr is not None:
        options["lr"] = lr
    elif method.options["lr"] is inspect.Parameter.empty:
        options.setdefault("lr", method.lr)
    return options


def timed(function, *arguments):
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def batches(settings, images, labels):
    """Yields for each epoch a list of its batches, in an order that the seed decides."""
    # another stream than the first weights have
    random = np.random.default_rng((settings.seed, 1))
    for _ in range(settings.epochs):
        order = random.permutation(len(images))
        cuts = range(settings.batch, len(order), settings.batch)
        yield [(images[batch], labels[batch]) for batch in np.split(order, cuts)]


def checked(loss, name, count):
    if not math.isfinite(loss):
        raise Stop(f"{name} diverged: the loss is {loss} after {count} steps; choose a smaller --lr")
    return loss


def train(method, data, settings, after_step=lambda: None, after_epoch=lambda history: None):
    """Trains a new model with one method of the table.

    Args:
        method: a row of `fastopt.table.METHODS`.
        data: from `digits`.
        settings: see `Settings`.
        after_step, after_epoch: called without arguments and with the `History` so far.

    Returns:
        History: everything that `plot` shows.

    Raises:
        Stop: the loss is no longer finite.
    """
    settings = settings.suited(method, len(data.train_images))
    sizes = (data.train_images.shape[1], *settings.hidden, CLASSES)
    params = init_model(sizes, settings.seed, settings.dtype)
    shadow = Shadow(method, params)
    optimizer = make_optimizer(method, params, settings.lr)
    optimizer.num_threads = settings.threads
    group = optimizer.param_groups[0]
    history = History(method.name, group["lr"], params)
    scheduler = SCHEDULES[settings.schedule](optimizer, settings.steps(len(data.train_images)))
    with np.errstate(over="ignore", invalid="ignore"):  # `checked` tells of a run that diverges
        for epoch in batches(settings, data.train_images, data.train_digits):
            before = len(history.losses)
            for images, labels in epoch:
                loss, grads = loss_and_grads(params, images, labels)
                history.losses.append(checked(loss, method.name, len(history.losses)))
                history.rates.append(group["lr"])
                step_both(optimizer, shadow, grads, history)
                if scheduler is not None:
                    scheduler.step()
                after_step()
            history.train_losses.append(statistics.fmean(history.losses[before:]))
            loss, accuracy = evaluate(params, data.test_images, data.test_digits)
            history.test_losses.append(checked(loss, method.name, len(history.losses)))
            history.accuracies.append(accuracy)
            after_epoch(history)
    history.difference = max(
        float(np.abs(twin - param).max()) for twin, param in zip(shadow.params, params.values(), strict=True))
    return history


def step_both(optimizer, shadow, grads, history):
    """Steps the parameters and their NumPy twins, in turns: the second finds the gradients in cache."""
    groups = optimizer.param_groups
    if len(history.seconds) % 2:
        history.numpy_seconds.append(timed(shadow.step, grads, groups))
        history.seconds.append(timed(optimizer.step, grads))
    else:
        history.seconds.append(timed(optimizer.step, grads))
        history.numpy_seconds.append(timed(shadow.step, grads, groups))


# ---- picture

def plot(histories, settings, write):
    """Gives to `write` a PNG of the loss, accuracy and learning rate of some runs with the same settings."""
    figure = optional("matplotlib.figure").Figure(figsize=(14, 5), dpi=110, layout="constrained")
    loss, accuracy, rate = panels = figure.subplots(1, 3)
    if len(histories) == 1:
        title = plot_one(histories[0], *panels)
    else:
        title = plot_race(histories, *panels)
        handles, labels = accuracy.get_legend_handles_labels()
        columns = min(5, len(histories))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{title}\n{describe(settings)}", fontsize=13)
    epochs = (0, 1.02 * settings.epochs)
    loss.set(xlabel="epoch", ylabel="cross-entropy", yscale="log", xlim=epochs)
    accuracy.set(title="Accuracy on the test images", xlabel="epoch", ylabel="accuracy", xlim=epochs)
    accuracy.yaxis.set_major_formatter("{x:.4g} %")
    rate.set(title="Learning rate", xlabel="step", ylabel="learning rate")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save(figure, write)


def save(figure, write):
    """Gives a figure as a PNG to `write`."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write(png.getvalue())


def describe(settings):
    return (f"{settings.hidden[0]} and {settings.hidden[1]} hidden units, {settings.dtype}, "
            f"batches of {settings.batch}, schedule: {settings.schedule}, seed {settings.seed}")


def epochs_of(history):
    return range(1, len(history.accuracies) + 1)


def percent(accuracies):
    return [100 * accuracy for accuracy in accuracies]


def plot_one(history, loss, accuracy, rate):
    steps = np.arange(1, len(history.losses) + 1)
    passes = steps * len(history.accuracies) / len(steps)
    curve = {"linewidth": 2, "marker": "."}
    loss.plot(passes, history.losses, color="C0", alpha=0.25, linewidth=0.8, label="training, each step")
    loss.plot(epochs_of(history), history.train_losses, color="C0", label="training, mean", **curve)
    loss.plot(epochs_of(history), history.test_losses, color="C1", label="test", **curve)
    loss.set_title("Loss")
    loss.legend()
    accuracy.plot(epochs_of(history), percent(history.accuracies), color="C1", **curve)
    rate.plot(steps, history.rates, color="C2", linewidth=2)
    return f"{history.name} on handwritten digits: test accuracy {percent(history.accuracies)[-1]:.1f} %"


def plot_race(histories, loss, accuracy, rate):
    dashes = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
    # lines that lie on each other are told apart by their dashes, and by the later one being thinner
    widths = np.linspace(3.2, 1.4, len(histories))
    for index, (history, width) in enumerate(zip(histories, widths, strict=True)):
        style = {"color": f"C{index % 10}", "linestyle": dashes[index % len(dashes)], "linewidth": width}
        label = f"{history.name}, lr {history.lr:g}: {percent(history.accuracies)[-1]:.1f} %"
        loss.plot(epochs_of(history), history.test_losses, **style, marker=".")
        accuracy.plot(epochs_of(history), percent(history.accuracies), label=label, **style, marker=".")
        rate.plot(range(1, len(history.rates) + 1), history.rates, **style)
    loss.set_title("Loss on the test images")
    # a schedule that ends at 0 has no place on a log axis
    low = min(max(min(history.rates), history.lr / 100) for history in histories)
    rate.set(yscale="log", ylim=(low / 1.3, 1.3 * max(max(history.rates) for history in histories)))
    return f"{len(histories)} optimizers on handwritten digits"


# ---- command line

def names():
    return ", ".join(method.name for method in METHODS)


def method_named(text):
    for method in METHODS:
        if method.name.lower() == text.lower():
            return method
    raise argparse.ArgumentTypeError(f"must be one of {names()}, got {text!r}")


def add_arguments(parser):
    """Adds the options of `fastopt demo`."""
    default = Settings()
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--optimizer", type=method_named, default="AdamW", metavar="NAME",
                     help=f"one of {names()} (default: AdamW)")
    who.add_argument("--compare", type=method_named, nargs="*", metavar="NAME",
                     help="race several optimizers in one picture; without names, all of them")
    parser.add_argument("--schedule", type=str.lower, choices=SCHEDULES, default=default.schedule,
                        help="learning-rate schedule, fitted to the number of steps (default: %(default)s)")
    parser.add_argument("--lr", type=positive, metavar="RATE",
                        help="initial learning rate (default: one that suits the optimizer)")
    parser.add_argument("--epochs", type=whole(1), default=default.epochs, metavar="N",
                        help="passes over the training images (default: %(default)s)")
    parser.add_argument("--batch", type=whole(1), default=default.batch, metavar="N",
                        help="images in a step (default: %(default)s)")
    parser.add_argument("--hidden", type=whole(1), nargs=2, default=default.hidden, metavar="N",
                        help="units of the two hidden layers (default: {} {})".format(*default.hidden))
    parser.add_argument("--dtype", choices=("float32", "float64"), default=default.dtype,
                        help="of the parameters and all arithmetic (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=default.seed, metavar="N",
                        help="decides the split, the first weights and the batches (default: %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=default.threads, metavar="N",
                        help="threads of the optimizer (default: fastopt.get_num_threads())")
    parser.add_argument("--output", type=picture, default="fastopt-demo.png", metavar="FILE",
                        help="the PNG (default: %(default)s)")


def run(args):
    """Runs the demo with parsed options; returns the exit code."""
    settings, data = prepared(args)
    with writing(args.output) as write:
        if args.compare is None:
            run_one(args.optimizer, settings, data, write)
        else:
            run_race(args.compare or METHODS, settings, data, write)
    print(f"picture: {args.output}")
    return 0


def prepared(args):
    """What both kinds of run need: settings and data."""
    for module in ("matplotlib.figure", "tqdm"):  # rather now than after the training
        optional(module)
    settings = Settings(args.schedule, args.lr, args.epochs, args.batch, tuple(args.hidden), args.dtype,
                        args.seed, args.threads)
    need_memory(settings.bytes)
    data = digits(settings.seed, settings.dtype)
    print(f"fastopt {__version__}: {len(data.train_images)} handwritten digits for training, "
          f"{len(data.test_images)} for the test")
    print(f"{describe(settings)}, epochs: {settings.epochs}")
    return settings, data


def progress(total):
    """A progress bar, to stderr."""
    tqdm = optional("tqdm").tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that outlives the bar

    return Bar(total=total, unit="step", leave=False)


def run_one(method, settings, data, write):
    images = len(data.train_images)
    with progress(settings.suited(method, images).steps(images)) as bar:
        bar.set_description(method.name)
        history = train(method, data, settings, bar.update,
                        lambda history: bar.write(epoch_line(history, settings)))
    plot([history], settings, write)
    print(f"final test accuracy of {history.name}, lr {history.lr:g}: {history.accuracies[-1]:.2%}")
    print(f"optimizer:                {timing(history.seconds)}")
    print(f"same rule in plain NumPy: {timing(history.numpy_seconds)}")
    print(f"ratio NumPy / fastopt:    {history.ratio:.1f} of the medians")
    print(f"largest difference between their parameters: {history.difference:.0e}")
    print(f"parameters: sha256 {digest(history.params)}")


def run_race(methods, settings, data, write):
    methods = list({method.name: method for method in methods}.values())
    histories = []
    images = len(data.train_images)
    with progress(sum(settings.suited(method, images).steps(images) for method in methods)) as bar:
        bar.write("optimizer          lr  accuracy  test loss     fastopt       NumPy  ratio  sha256")
        for method in methods:
            bar.set_description(method.name)
            histories.append(train(method, data, settings, bar.update))
            bar.write(race_line(histories[-1]))
    plot(histories, settings, write)
    print("fastopt, NumPy: median of a step of the optimizer, and of the same rule in plain NumPy")


def epoch_line(history, settings):
    return (f"epoch {len(history.accuracies):3}/{settings.epochs}"
            f"  training loss {history.train_losses[-1]:.4f}"
            f"  test loss {history.test_losses[-1]:.4f}"
            f"  test accuracy {history.accuracies[-1]:.2%}")


def microseconds(seconds):
    return 1e6 * statistics.median(seconds)


def timing(seconds):
    return f"{microseconds(seconds):6.1f} us a step, {sum(seconds):.3f} s in all {len(seconds)} steps"


def race_line(history):
    return (f"{history.name:12} {history.lr:8g} {history.accuracies[-1]:9.2%} {history.test_losses[-1]:10.4f}"
            f" {microseconds(history.seconds):8.1f} us {microseconds(history.numpy_seconds):8.1f} us"
            f" {history.ratio:6.1f}  {digest(history.params)}")
