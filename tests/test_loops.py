"""What kernels/loops.py makes of a rule, and which rules it refuses."""

import re
import runpy
from pathlib import Path

import pytest

import fastopt
from fastopt.kernels import rules

FOLDER = Path(fastopt.__file__).parent / "kernels"
LIMITS = {"STATES": 2, "DECAY": 3, "FORMS": 4}
GOOD = "cdef inline real rule(real q, real g, real *m, bint fast, real eta) noexcept nogil:\n    return eta * g\n"


@pytest.fixture(scope="module")
def loops():
    return runpy.run_path(str(FOLDER / "loops.py"))


def test_a_signature_is_a_declaration(loops):
    rule, = loops["read"](GOOD, LIMITS)
    assert (rule.name, rule.first) == ("rule", "q")
    assert (rule.states, rule.forms, rule.coefficients) == (["m"], ["fast"], ["eta"])
    assert [name for _, _, name, _ in rule.loops()] == [f"rule_{name}" for form in ("", "_fast") for name in (
        f"step{form}", f"step{form}_scaled", f"step{form}_decays", f"step{form}_scaled_decays", f"update{form}",
        f"advance{form}")]


@pytest.mark.parametrize(("change", "message"), [
    (("eta", "scale"), "'scale' is a name of the loop's own"),
    (("fast", "u"), "'u' is a name of the loop's own"),
    (("eta", "s1"), "'s1' is a name of the loop's own"),
    (("real eta", "real m"), "two arguments have the same name"),
    (("real *m", "real *m, real *v, real *w"), "at most 2 states have room, got 3: m, v, w"),
    (("real eta", "real a, real b, real c2, real d"), "at most 3 coefficients have room, got 4: a, b, c2, d"),
    (("bint fast", "bint one, bint two, bint three"), "at most 2 forms have room, got 3: one, two, three"),
    (("real *m, bint fast", "bint fast, real *m"), "the arguments must be"),
    (("real eta", "float eta"), "the arguments must be"),
    (("real g, ", ""), "the arguments must be"),
    (("cdef", "# fast needs slow\ncdef"), "'fast' needs 'slow', but its forms are fast"),
    ((" nogil", ""), "rule: a rule begins with"),
    (("inline real", "inline float"), "rule: a rule begins with"),
])
def test_what_is_refused(loops, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loops["read"](GOOD.replace(*change), LIMITS)


def test_two_rules_of_one_name_are_refused(loops):
    with pytest.raises(ValueError, match="two rules of one name"):
        loops["read"](GOOD + GOOD, LIMITS)


@pytest.mark.parametrize(("name", "forms"), [
    ("sgd", {"", "momentum", "momentum_nesterov"}), ("average", {"", "first", "light"}),
    ("traffic", {"", "one", "one_two", "one_two_three"}),
])
def test_forms_that_nobody_can_ask_for_are_not_made(name, forms):
    prefix = f"{name}_step"
    found = {loop.removeprefix(prefix).strip("_") for loop in rules.TABLE[name].loops if loop.startswith(prefix)}
    assert {form for form in found if not re.search("scaled|decays", form)} == forms


def test_what_is_made_is_up_to_date(loops, tmp_path):
    made = [FOLDER / "loops.pxi", FOLDER / "named.pxi", FOLDER / "rules.pyi", FOLDER.parent / "api_rules.pxi",
            FOLDER.parent / "include" / "fastopt_rules.h"]
    if not (FOLDER / "rules.pxi").exists() or not all(path.exists() for path in made):
        pytest.skip("needs the sources")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "include").mkdir()
    for name in ("rules.pxi", "rules.pxd"):
        (tmp_path / "kernels" / name).write_text((FOLDER / name).read_text())
    loops["make"](tmp_path / "kernels")
    for path in made:
        assert (tmp_path / path.relative_to(FOLDER.parent)).read_text() == path.read_text()


def test_coefficients_are_named():
    given = {"b1": 0.9, "u1": 0.1, "b2": 0.99, "a": 0.5, "eps": 0.0}
    made = rules.adamax(**{name: given[name] for name in rules.TABLE["adamax"].coefficients})
    assert made.named() == given
    assert made == rules.adamax(**given)
    assert made != rules.adamax(**given | {"a": 0.25})
    assert repr(made) == "adamax(b1=0.9, u1=0.1, b2=0.99, a=0.5, eps=0.0)"
    assert rules.adamax(**dict(reversed(given.items()))) == made


@pytest.mark.parametrize(("rule", "given", "error", "message"), [
    ("adadelta", {}, TypeError, "adadelta takes its coefficients by name: rho, one_rho, eps, eta"),
    ("accumulate", {"w": 1.0, "u": 0.0}, TypeError, "the rule accumulate has no coefficient 'u'; it has w, first"),
    ("adagrad", {"eta": 1.0, "eps": 0.0}, TypeError, "the rule adagrad needs the coefficient 'eps_in'"),
    ("sgd", {"nesterov": True, "mu": 0.0, "tau": 0.0, "x": 0.0, "y": 1.0}, ValueError,
     "the rule sgd has no form nesterov"),
    ("average", {"first": True, "light": True, "w": 0.1, "rest": 0.9}, ValueError,
     "the rule average has no form first with light"),
    ("accumulate", {"w": "1"}, TypeError, "must be real number, not str"),
])
def test_coefficients_that_are_wrong_or_missing(rule, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(rules, rule)(**given)
    with pytest.raises(TypeError, match="takes its coefficients by name"):
        getattr(rules, rule)(1.0, **given)
