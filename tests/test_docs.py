"""Docstrings run, the README's table is that of the code, every public name is documented, stubs are complete."""

import doctest
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import fastopt
from fastopt import table

MODULES = ["averages", "clip", "config", "functional", "grad_scaler", "kernels.threads", "lr_finder",
           "lr_scheduler", "plot_schedule", "reference", "schedules"]
MODULES += [f"{room}.{path.stem}" for room in ("lr_scheduler", "optimizers", "schedules")
            for path in Path(fastopt.__file__).parent.joinpath(room).glob("*.py")]
STUBS = sorted(Path(fastopt.__file__).parent.joinpath("kernels").glob("*.pyi"))
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"fastopt.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0


def test_every_method_has_an_example():
    for method in table.METHODS:
        assert ">>>" in method.optimizer.__doc__
        assert "Source:" in method.optimizer.__doc__
        for option in method.options:
            assert re.search(rf"^\s+{option}:", method.optimizer.__doc__, re.MULTILINE), (method.name, option)


def public(module, prefix):
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value):
            yield f"{prefix}.{name}", value
            if inspect.isclass(value):
                for key, member in vars(value).items():
                    if not key.startswith("_") and inspect.isfunction(member):
                        yield f"{prefix}.{name}.{key}", member


@pytest.mark.parametrize("module", [fastopt, fastopt.averages, fastopt.functional, fastopt.lr_finder,
                                    fastopt.lr_scheduler, fastopt.schedules])
def test_every_public_name_has_a_docstring(module):
    bare = [name for name, value in public(module, module.__name__)
            if not inspect.getdoc(value) and name.rsplit(".", 1)[-1] not in ("slots", "check_settings")]
    assert bare == []


def interface(scope, module):
    """The public names of a module or class: of functions with their arguments, of classes with their own names."""
    found = dict.fromkeys(inspect.get_annotations(scope))
    for name, value in vars(scope).items():
        if name.startswith("_") or inspect.ismodule(value) or getattr(value, "__module__", module) != module:
            continue
        if inspect.isclass(value):
            found[name] = interface(value, module)
        elif callable(value):
            found[name] = [(argument.name, argument.kind, argument.default)
                           for argument in inspect.signature(value).parameters.values()]
        else:
            found[name] = None
    return found


@pytest.mark.parametrize("path", STUBS, ids=[path.stem for path in STUBS])
def test_a_stub_has_what_its_module_has(path):
    name = f"fastopt.kernels.{path.stem}"
    module = pytest.importorskip(name, exc_type=ImportError)
    stub = ModuleType(name)
    exec(compile(path.read_text(), path, "exec"), vars(stub))
    assert interface(stub, name) == interface(module, name)


def test_the_readme_has_the_table_of_the_code():
    if not README.exists():
        pytest.skip("not a checkout")
    speeds = json.loads((README.parent / "docs" / "speeds.json").read_text())["results"]
    assert {one["method"].split()[0] for one in speeds} <= {method.name for method in table.METHODS}
    assert table.markdown(speeds) in README.read_text()


def test_the_table_is_written_into_the_readme(tmp_path):
    if not README.exists():
        pytest.skip("not a checkout")
    speeds, copy, text = README.parent / "docs" / "speeds.json", tmp_path / "README.md", README.read_text()
    copy.write_text(text.replace("Kingma, Ba 2015", "nobody"))
    assert table.main([str(speeds), "--into", str(copy)]) == 0
    assert copy.read_text() == text
    copy.write_text("no table")
    assert table.main([str(speeds), "--into", str(copy)]) != 0
    assert copy.read_text() == "no table"



def test_the_readme_example_runs(capsys):
    if not README.exists():
        pytest.skip("not a checkout")
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    exec(compile(example, "README.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 0.1
