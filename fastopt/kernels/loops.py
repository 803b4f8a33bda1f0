"""Makes, around the formula of each rule in rules.pxi, a loop for every form of it. Run by setup.py.

A rule is declared once, by its signature: pointers are its states, `bint` its forms, `real` its coefficients. From it
come loops.pxi, which every level includes; named.pxi, the names that rules.pyx checks, and rules.pyi, its stub; and for
C and Cython callers the numbers of forms and coefficients, in include/fastopt_rules.h and api_rules.pxi.
"""

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
MADE = "# Made by kernels/loops.py from kernels/rules.pxi.\n"
RULE = re.compile(r"^((?:#[^\n]*\n)*)cdef inline real (\w+)\(([^)]*)\) noexcept nogil:$", re.MULTILINE)
NEEDS = re.compile(r"^# (\w+) needs (not )?(\w+)$", re.MULTILINE)
# what a loop calls its own: a coefficient of such a name would be assigned twice, and the loop be double
OWN = {"p", "g", "n", "c", "i", "h", "q", "u", "scale", "decay", "scaled", "decays", "update"}

LOOP = """
cdef inline loop {name}_loop({arguments}) noexcept nogil:
    cdef Py_ssize_t i
{unpack}    for i in range(n):
{body}
"""
FORM = """
cdef void {function}({arguments}) noexcept nogil:
    {name}_loop({passed})
"""
STEP = "vec p, vec g, vec s0, vec s1, vec s2, vec s3, Py_ssize_t n, vec c"
STUB = '''
class Rule:
    name: str
    number: int
    states: tuple[str, ...]
    forms: tuple[str, ...]
    coefficients: tuple[str, ...]
    own: tuple[int, ...]
    loops: tuple[str, ...]
    def __init__(self, name: str, number: int, states: tuple[str, ...], forms: tuple[str, ...],
                 coefficients: tuple[str, ...], own: tuple[int, ...], loops: tuple[str, ...]) -> None: ...

class Coefficients:
    def named(self) -> dict[str, float]: ...

TABLE: dict[str, Rule]

'''


@dataclass
class Rule:
    """A rule as its signature declares it."""

    name: str
    first: str  # "q": it sees the parameter; "p": what it returns is the parameter; "": it sees the gradient only
    states: list[str]
    forms: list[str]
    coefficients: list[str]
    needs: list[tuple[str, bool, str]]  # a form, and another one that must, or must not, go with it

    @property
    def own(self):
        """The names of all forms that somebody can ask for: of each, which of `forms` hold."""
        for values in product((False, True), repeat=len(self.forms)):
            held = dict(zip(reversed(self.forms), values, strict=True))
            if all(held[other] is wanted for form, wanted, other in self.needs if held[form]):
                yield {form: held[form] for form in self.forms}

    def number(self, held):
        """The number of a form: a bit for each of `forms`."""
        return sum(held[form] << k for k, form in enumerate(self.forms))

    def loops(self):
        """(kind, own form, name of the function, what the loop is told) of each loop: see rules.pxd for the kinds."""
        kinds = [("step",), ("step", "scaled"), ("step", "decays"), ("step", "scaled", "decays"), ("update",),
                 ("advance",)]
        for held in self.own:
            own = [form for form in self.forms if held[form]]
            for kind, words in enumerate(kinds[:1] if self.first == "p" else kinds):
                yield kind, held, "_".join([self.name, words[0], *own, *words[1:]]), words


def read(text, limits):
    """The rules of rules.pxi; raises ValueError where one is not as it must be."""
    rules = []
    for comment, name, signature in RULE.findall(text):
        kinds = [argument.split() for argument in signature.replace("*", "* ").split(",")]
        of = [[words[-1] for words in kinds if words[:-1] == kind] for kind in (["real", "*"], ["bint"], ["real"])]
        states, forms, reals = of
        first = reals[0] if reals[0] in ("q", "p") else ""
        order = [["real", first]] * bool(first) + [["real", "g"]] + [["real", "*", state] for state in states]
        coefficients = reals[1 + bool(first):]
        order += [["bint", form] for form in forms] + [["real", own] for own in coefficients]
        if kinds != order:
            raise ValueError(f"{name}: the arguments must be (real q or p if it has one, real g, real * of each state, "
                             f"bint of each form, real of each coefficient), got ({signature})")
        for own in (*forms, *coefficients):
            if own in OWN or re.fullmatch(r"s\d", own):
                raise ValueError(f"{name}: {own!r} is a name of the loop's own; call it something else")
        if len({*states, *forms, *coefficients}) < len(states) + len(forms) + len(coefficients):
            raise ValueError(f"{name}: two arguments have the same name")
        for what, found, most in (("states", states, limits["STATES"]), ("coefficients", coefficients, limits["DECAY"]),
                                  ("forms", forms, limits["FORMS"].bit_length() - 1)):
            if len(found) > most:
                raise ValueError(f"{name}: at most {most} {what} have room, got {len(found)}: {', '.join(found)}")
        needs = [(form, not negated, other) for form, negated, other in NEEDS.findall(comment)]
        for form, _, other in needs:
            if form not in forms or other not in forms:
                raise ValueError(f"{name}: {form!r} needs {other!r}, but its forms are {', '.join(forms)}")
        rules.append(Rule(name, first, states, forms, coefficients, needs))
    found, written = {rule.name for rule in rules}, re.findall(r"^cdef inline \w+ (\w+)\(", text, re.MULTILINE)
    if len(found) < len(written):
        wrong = next((name for name in written if name not in found), "two rules of one name")
        raise ValueError(f"{wrong}: a rule begins with 'cdef inline real NAME(' and goes on to ') noexcept nogil:'")
    return rules


def loop(rule, what):
    """A loop around a rule: what steps, or, leaving p alone, writes the update u, or advances the states only."""
    steps = what == "step"
    flags = ["scaled", "decays", *rule.forms] if steps and rule.first != "p" else rule.forms
    slots = [f"s{k}" for k in range(len(rule.states))]
    call = [*(f"{slot} + i" for slot in slots), *rule.forms, *rule.coefficients]
    unpack = [f"    {own} = c[{k}]\n" for k, own in enumerate(rule.coefficients)]
    if rule.first == "p":
        body = [f"p[i] = {rule.name}({', '.join(['p[i]', 'g[i]', *call])})"]
    elif not steps:
        seen = ["clean(p[i])"] if rule.first else []
        body = [f"{'u[i] = ' * (what == 'update')}{rule.name}({', '.join([*seen, 'clean(g[i])', *call])})"]
    else:
        unpack = ["    scale, decay = c[SCALE], c[DECAY]\n", *unpack]
        body = ["h = clean(scale * g[i] if scaled else g[i])",
                "q = clean(p[i])" if rule.first else "q = clean(p[i]) if decays else p[i]",
                f"u = {rule.name}({', '.join([rule.first, 'h', *call] if rule.first else ['h', *call])})",
                "p[i] = q - (u + decay * q) if decays else q - u"]
    arguments = [*([] if steps else ["vec u"]), "vec p", "vec g", *(f"vec {slot}" for slot in slots), "Py_ssize_t n",
                 "vec c", *(f"bint {flag}" for flag in flags)]
    return LOOP.format(name=f"{rule.name}_{what}", arguments=", ".join(arguments), unpack="".join(unpack),
                       body="\n".join(f"        {line}" for line in body))


def level(rules):
    """loops.pxi: the loops, and the table of them."""
    text, table = [MADE, "\nfrom .rules cimport DECAY, FORMS, KINDS, SCALE\n"], []
    for number, rule in enumerate(rules):
        text += [loop(rule, what) for what in (("step",) if rule.first == "p" else ("step", "update", "advance"))]
        for kind, held, function, (what, *words) in rule.loops():
            apart = [] if what == "step" else ["u"]
            flags = ["scaled" in words, "decays" in words] if what == "step" and rule.first != "p" else []
            passed = [*apart, "p", "g", *(f"s{k}" for k in range(len(rule.states))), "n", "c",
                      *map(str, [*flags, *held.values()])]
            text.append(FORM.format(function=function, arguments=", ".join([*(f"vec {name}" for name in apart), STEP]),
                                    name=f"{rule.name}_{what}", passed=", ".join(passed)))
            form = rule.number(held)
            table += [f"LOOPS[{number}][{wide}][{form}][{kind}] = <void*>{function}[{dtype}]\n"
                      for wide, dtype in enumerate(("f32", "f64"))]
    return "".join([*text, f"\ncdef void *LOOPS[{len(rules)}][2][FORMS][KINDS]\n", *table,
                    "RULES = capsule(<void*>LOOPS)\n"])


def named(rules):
    """named.pxi: the rules as rules.pyx has them."""
    lines = [f"    {rule.name!r}: Rule({rule.name!r}, {number}, {tuple(rule.states)}, {tuple(rule.forms)}, "
             f"{tuple(rule.coefficients)}, {tuple(map(rule.number, rule.own))}, "
             f"{tuple(function for _, _, function, _ in rule.loops())}),\n" for number, rule in enumerate(rules)]
    return f"{MADE}\nTABLE = {{\n{''.join(lines)}}}\n"


def stub(rules):
    """rules.pyi."""
    lines = [f"def {rule.name}(*, {', '.join(f'{own}: float' for own in rule.coefficients)}"
             f"{''.join(f', {form}: bool = False' for form in rule.forms)}) -> Coefficients: ...\n" for rule in rules]
    return "".join([MADE, STUB, *lines])


def numbers(rules, limits):
    """(name, number, what it is) of everything that C and Cython callers need a number for."""
    yield "FASTOPT_COEFFICIENTS", limits["COEFFICIENTS"], "room that the coefficients of a rule take"
    yield "FASTOPT_SCALE", limits["SCALE"], "among them, with FASTOPT_SCALED: what the gradient is multiplied with"
    yield "FASTOPT_DECAY", limits["DECAY"], "with FASTOPT_DECAYS: the decoupled weight decay, times the learning rate"
    yield "FASTOPT_SCALED", limits["SCALED"], "forms of every rule"
    yield "FASTOPT_DECAYS", limits["DECAYS"], ""
    for rule in rules:
        for k, form in enumerate(rule.forms):
            yield f"FASTOPT_{rule.name}_{form}".upper(), limits["UPDATE"] << k, f"a form of {rule.name}"
        for k, own in enumerate(rule.coefficients):
            yield f"FASTOPT_{rule.name}_{own}".upper(), k, f"a coefficient of {rule.name}" if not k else ""


def folded(line):
    """A line of at most 120 characters, and the rest in lines below; it is cut between arguments."""
    if len(line) <= 120:
        return line
    cut = line.rindex(", ", 0, 120) + 1
    return f"{line[:cut]}\n{folded(f'        {line[cut + 1 :]}')}"


def write(path, text):
    """Writes a file, unless it is there already: else all would be compiled again."""
    text = "\n".join(map(folded, text.split("\n")))
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def make(folder=HERE):
    """Writes what is made of rules.pxi."""
    limits = {name: int(value) for name, value in re.findall(r"^    (\w+) = (\d+)", (folder / "rules.pxd").read_text(),
                                                             re.MULTILINE)}
    rules = read((folder / "rules.pxi").read_text(), limits)
    write(folder / "loops.pxi", level(rules))
    write(folder / "named.pxi", named(rules))
    write(folder / "rules.pyi", stub(rules))
    known = list(numbers(rules, limits))
    for_c = [f"  {name} = {value},{f'  /* {what} */' if what else ''}\n" for name, value, what in known]
    for_cython = [f"    {name} = {value}{f'  # {what}' if what else ''}\n" for name, value, what in known]
    write(folder.parent / "include" / "fastopt_rules.h", f"/* {MADE[2:-1]} */\nenum {{\n{''.join(for_c)}}};\n")
    write(folder.parent / "api_rules.pxi", f"{MADE}cdef enum:\n{''.join(for_cython)}")


if __name__ == "__main__":
    make()
