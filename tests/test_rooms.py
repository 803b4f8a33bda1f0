"""The house: a room (a module or folder of the package) imports only from rooms below it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt

CHECKOUT = Path(__file__).parents[1] / "fastopt"  # which has the sources of the compiled modules
ROOT = CHECKOUT if CHECKOUT.exists() else Path(fastopt.__file__).parent
# from the ground floor up; rooms on one floor do not import each other
FLOORS = [floor.split() for floor in (
    "_version checks",
    "kernels",
    "norms",
    "api config interrupts reference",
    "cli",
    "schedules",
    "stages",
    "optimizers",
    "averages clip functional lr_scheduler",
    "grad_scaler lr_finder",
    "checkpoint table",
    "__init__",
    "__main__ bench demo",
    "plot_schedule",
)]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(path.relative_to(ROOT) for pattern in ("*.py", "*.pyx", "*.pxd") for path in ROOT.rglob(pattern))
CYTHON = re.compile(r"^\s*from (\.+|fastopt)([\w.]*) c?import ([\w, ]+)", re.MULTILINE)


def room_of(path):
    return path.parts[0].removesuffix(path.suffix)


def imported(path):
    """The modules of the package that a file imports, as paths of names within it: `kernels.plan`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix != ".py":
        found = [(0 if dots == "fastopt" else len(dots), "fastopt" * (dots == "fastopt") + module, names.split(", "))
                 for dots, module, names in CYTHON.findall(text)]
    else:
        found = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                found.append((node.level, node.module or "", [alias.name for alias in node.names]))
            elif isinstance(node, ast.Import):
                found += [(0, alias.name, []) for alias in node.names]
    for level, module, names in found:
        parts = module.split(".") if module else []
        if level:
            parts = [*path.parent.parts[:len(path.parent.parts) + 1 - level], *parts]
        elif parts[0] != "fastopt":
            continue
        else:
            parts = parts[1:] or ["__init__"]
        yield from [parts] if parts else [[name] for name in names]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_only_from_rooms_below_it(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"give {room} a floor"
    for parts in imported(path):
        other = parts[0] if parts[0] in FLOOR_OF else "__init__"  # a name of the package itself
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{path} imports {'.'.join(parts)}"


def test_imports_are_found():
    assert ["kernels"] in imported(Path("cli.py"))  # within a function
    assert ROOT != CHECKOUT or ["kernels", "hold"] in imported(Path("kernels/plan.pyx"))
    assert {"checks", "schedules"} <= {parts[0] for parts in imported(Path("lr_scheduler/cycles.py"))}


@pytest.mark.parametrize(("module", "allowed"), [
    ("checks", {"checks"}), ("schedules", {"checks", "schedules"}), ("reference", {"reference"}),
])
def test_rooms_that_need_hardly_any_other(module, allowed):
    """In a package of the same name that itself imports nothing."""
    code = f"""
import importlib, sys, types
package = sys.modules["fastopt"] = types.ModuleType("fastopt")
package.__path__ = [{str(ROOT)!r}]
importlib.import_module("fastopt.{module}")
print(*{{name.split(".")[1] for name in sys.modules if name.startswith("fastopt.")}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == allowed
