"""Draws schedules: `fastopt plot-schedule NAME [option=value ...] ...`, and the gallery of the documentation.

>>> list(curves(["linear_schedule", "end_value=0.1", "warmup(0.5, 10)"], steps=100).values())[0]
linear_schedule(init_value=1.0, end_value=0.1, transition_steps=75, transition_begin=0)
"""

import argparse
import ast
import importlib
import operator
import re
import textwrap
import warnings

from . import schedules
from .cli import Stop, picture, whole, writing
from .demo import save
from .schedules.core import Schedule
from .schedules.table import ROWS

EXAMPLES = {row.name: row for row in ROWS}
HELP = """
A schedule is a NAME with options, each of which replaces that of an example fitted to the number of steps:
    fastopt plot-schedule cosine_decay_schedule alpha=0.1 exponential_decay decay_rate=0.3
or an expression of fastopt.schedules:
    fastopt plot-schedule "warmup(cosine_decay_schedule(1.0, 900), 100) * 0.5"
"""


def curves(words, steps):
    """The schedules that the words of a command line ask for, under the words that name them.

    Args:
        words: names, each followed by `option=value`, and expressions.
        steps: the number of steps that the examples, whose options are replaced, are fitted to.

    Raises:
        Stop: with what is wrong and what is allowed.
    """
    found = {}
    asked: list[list[str]] = []
    for word in words:
        if not re.match(r"\w+=[^=]", word):
            asked.append([word])
        elif asked:
            asked[-1].append(word)
        else:
            raise Stop(f"{word} must follow the name of a schedule")
    for first, *options in asked:
        found[" ".join([first, *options])] = curve(first, options, steps)
    return found


def curve(word, options, steps):
    try:
        if word.isidentifier():
            if word not in EXAMPLES:
                raise Stop(f"there is no schedule {word!r}; there are {', '.join(EXAMPLES)}")
            row = EXAMPLES[word]
            given = (option.split("=", 1) for option in options)
            return row.make(**row.examples(steps)[0] | {name: argument(text) for name, text in given})
        if options:
            raise Stop(f"options follow a name, not an expression: {' '.join([word, *options])}")
        return schedules.as_schedule(evaluated(word))
    except (TypeError, ValueError, ArithmeticError, SyntaxError, NameError, AttributeError) as error:
        raise Stop(f"{' '.join([word, *options])}: {error}") from None


def argument(text):
    """A number, list, mapping or schedule; any other text is itself, such as the name of a mode."""
    try:
        return evaluated(text)
    except (SyntaxError, NameError):
        return text


# of an expression: what it may be built of is bounded, so that no expression takes long or much memory
LONGEST, DEEPEST, LARGEST = 10_000, 100, 2**63
NUMBERS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
           ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.UAdd: operator.pos,
           ast.USub: operator.neg}
SCHEDULES = {kind: NUMBERS[kind] for kind in (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub)}


def evaluated(text):
    """The value of an expression of numbers and fastopt.schedules, and of nothing else."""
    if len(text) > LONGEST:
        raise ValueError(f"an expression has at most {LONGEST:,} characters, got {len(text):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the text might be a slip
            tree = ast.parse(text.strip(), mode="eval")
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    return value_of(tree.body)


def value_of(node, depth=1):
    def inner(part):
        return value_of(part, depth + 1)

    if depth > DEEPEST:
        raise ValueError(f"an expression is nested at most {DEEPEST} deep")
    match node:
        case ast.Constant(value=None | bool() | str() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return bounded(value)
        case ast.List(elts=parts):
            return [inner(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(inner(part) for part in parts)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {inner(key): inner(value) for key, value in zip(keys, values, strict=True)}
        case ast.Name(id=name):
            if name not in EXAMPLES:
                raise NameError(f"name {name!r} is not defined")
            return EXAMPLES[name].make
        case ast.UnaryOp(op=op, operand=operand):
            return arithmetic(node, type(op), inner(operand))
        case ast.BinOp(op=op, left=left, right=right):
            return arithmetic(node, type(op), inner(left), inner(right))
        case ast.Call(func=function, args=args, keywords=keywords) if all(keyword.arg for keyword in keywords):
            called = method(function, depth) if isinstance(function, ast.Attribute) else inner(function)
            if not callable(called) or isinstance(called, Schedule):
                raise TypeError(f"{ast.unparse(function)!r} is not a function that makes a schedule")
            return called(*map(inner, args), **{keyword.arg: inner(keyword.value) for keyword in keywords})
    raise not_allowed(node)


def method(node, depth):
    schedule = value_of(node.value, depth + 1)
    if not isinstance(schedule, Schedule) or node.attr not in ("shift", "clamp"):
        raise not_allowed(node)
    return getattr(schedule, node.attr)


def arithmetic(node, kind, *operands):
    if all(isinstance(operand, int | float) for operand in operands) and kind in NUMBERS:
        try:
            if kind is ast.Pow:
                abs(operands[0] or 1.0) ** float(operands[1])  # overflows in no time where integers would grow on
            return bounded(NUMBERS[kind](*operands))
        except OverflowError:
            raise ValueError(f"{ast.unparse(node)!r} is too large") from None
    if all(isinstance(operand, int | float | Schedule) for operand in operands) and kind in SCHEDULES:
        return SCHEDULES[kind](*operands)
    raise not_allowed(node)


def bounded(number):
    """The number itself: an integer may have 63 bits."""
    if isinstance(number, complex):
        raise ValueError("a root of a negative number is no number here")
    if isinstance(number, int) and abs(number) >= LARGEST:
        raise ValueError("an integer must be less than 2 ** 63")
    return number


def not_allowed(node):
    return SyntaxError(f"{ast.unparse(node)!r} is not a number, a schedule or arithmetic with them")


# ---- drawing

def new_figure(width, height):
    try:
        return importlib.import_module("matplotlib.figure").Figure(
            figsize=(width, height), dpi=100, layout="constrained")
    except ImportError as error:
        raise Stop(f"it needs matplotlib ({error}): pip install matplotlib") from None


def plot(found, steps, write):
    """Gives to `write` a PNG of schedules over `0, 1, ... steps - 1`."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    for label, schedule in found.items():
        try:
            values = schedule.preview(steps)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise Stop(f"{label}: {error}") from None
        axes.plot(values, linewidth=1.8, label=textwrap.fill(label, 100))
    axes.set(xlabel="step", ylabel="value", xlim=(0, max(steps - 1, 1)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", frameon=False)
    save(figure, write)


def gallery(write, steps=1000, columns=5):
    """Gives to `write` a PNG with one panel for each schedule, and in it one curve for each of its examples."""
    lines = -(-len(ROWS) // columns)
    figure = new_figure(2.7 * columns, 2.0 * lines)
    panels = figure.subplots(lines, columns).ravel()
    for row, axes in zip(ROWS, panels, strict=False):
        examples = row.examples(steps)
        for arguments in examples:
            axes.plot(row.make(**arguments).preview(steps), linewidth=1.4, label=differences(arguments, examples))
        axes.set_title(row.name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if len(examples) > 1:
            bottom, top = axes.get_ylim()
            axes.set_ylim(top=top + 0.1 * len(examples) * (top - bottom))
            axes.legend(loc="upper right", fontsize=6, framealpha=0.6, handlelength=1.2, labelspacing=0.2)
    for axes in panels[len(ROWS):]:
        axes.set_axis_off()
    save(figure, write)


def differences(arguments, examples):
    """What sets one example apart from the others."""
    names = [name for name, value in arguments.items() if any(example.get(name) != value for example in examples)]
    return ", ".join(arguments[name] if isinstance(arguments[name], str) else f"{name}={arguments[name]}"
                     for name in names)


# ---- the command

def add_arguments(parser):
    """Adds the options of `fastopt plot-schedule`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP + "\n" + textwrap.fill(f"Names: {', '.join(EXAMPLES)}.", 110)
    parser.add_argument("words", nargs="*", metavar="NAME [option=value ...]", help="schedules, drawn in one picture")
    parser.add_argument("--steps", type=whole(10, 10_000_000), default=1000, metavar="N",
                        help="steps to draw (default: %(default)s)")
    parser.add_argument("--gallery", action="store_true", help="draw every schedule in a panel of its own instead")
    parser.add_argument("--output", type=picture, default="fastopt-schedule.png", metavar="FILE",
                        help="the PNG (default: %(default)s)")


def run(args):
    """Runs the command with parsed options; returns the exit code."""
    if args.gallery == bool(args.words):
        raise Stop("give the names of schedules, or --gallery alone" + ("" if args.words else
                   f"; there are {', '.join(EXAMPLES)}"))
    with writing(args.output) as write:
        if args.gallery:
            gallery(write, args.steps)
        else:
            plot(curves(args.words, args.steps), args.steps, write)
    print(f"wrote {args.output}")
    return 0
