"""Every command line of the package, as processes: what goes wrong costs one line and an exit code, no traceback."""

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastopt import cli, plot_schedule
from fastopt import schedules as s

SPEEDS = '{"results": [{"method": "AdamW", "case": "100x64", "best": 1}]}'
# name: its arguments, so that it ends soon; FILE is where it writes
COMMANDS = {
    "fastopt demo": "--epochs 1 --hidden 8 8 --output FILE",
    "fastopt plot-schedule": "linear_schedule --steps 10 --output FILE",
    "fastopt bench": "--case 2x8 --method SGD --rounds 1 --json FILE",
    "fastopt info": "",
    "fastopt": "--help",
    "python -m fastopt.bench": "--case 2x8 --method SGD --rounds 1 --json FILE",
    "python -m fastopt.schedules.table": "",
    "python -m fastopt.table": "SPEEDS",
}
RUNNING = {name: arguments for name, arguments in COMMANDS.items() if arguments != "--help"}
# without torch and Numba, whose import takes longer than all the rest
START = """
import runpy, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name in ("numba", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""

every_command = pytest.mark.parametrize("name", COMMANDS)
every_run = pytest.mark.parametrize("name", RUNNING)
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


def test_every_main_is_in_the_table():
    package = Path(cli.__file__).parent
    mains = {".".join(("fastopt", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__main__")
             for path in package.rglob("*.py") if "__main__" in path.read_text(encoding="utf-8").splitlines()[-2:][0]}
    mains -= {"fastopt", "fastopt.kernels.loops"}  # the second is a step of the build
    assert mains == {name.split()[-1] for name in COMMANDS if "-m" in name}
    assert set(cli.COMMANDS) == {name.split()[-1] for name in COMMANDS if name.startswith("fastopt ")}


def process(name, *arguments, env=None, **options):
    words = name.split()
    module, more = (words[2], []) if words[0] == "python" else ("fastopt", words[1:])
    return subprocess.Popen([sys.executable, "-c", START, module, *more, *map(str, arguments)], text=True,
                            encoding="utf-8", env=os.environ | {"PYTHONUNBUFFERED": ""} | (env or {}),
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options)


def run(name, tmp_path, arguments=None, **options):
    """(exit code, stdout, the lines of stderr but for progress bars) of a command."""
    speeds = tmp_path / "speeds.json"
    speeds.write_text(SPEEDS)
    if arguments is None:
        arguments = COMMANDS[name].replace("FILE", str(tmp_path / "file.png")).replace("SPEEDS", str(speeds)).split()
    with process(name, *arguments, **options) as running:
        out, err = running.communicate(timeout=120)
    return running.returncode, out, [line.rsplit("\r", 1)[-1].strip() for line in err.splitlines()]


@every_command
def test_ascii_is_enough(name, tmp_path):
    code, out, err = run(name, tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert code == 0, err
    assert out and out.isascii()
    assert "Traceback" not in "".join(err)


def test_what_ascii_lacks_is_written_in_its_letters(tmp_path):
    code, out, _ = run("fastopt bench", tmp_path, ["--case", "2x8", "--method", "SGD", "--rounds", "1"],
                       env={"PYTHONIOENCODING": "ascii"})
    assert code == 0 and "| best us |" in out
    path = tmp_path / "Bäder.png"
    code, out, _ = run("fastopt plot-schedule", tmp_path, ["linear_schedule", "--output", path],
                       env={"PYTHONIOENCODING": "ascii"})
    assert code == 0 and out.endswith("B\\xe4der.png\n") and path.exists()


@every_command
def test_a_closed_pipe_ends_a_command_silently(name, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    code, _, err = run(name, tmp_path, stdout=writing)
    os.close(writing)
    assert code == 141
    assert not any(err), err
    assert not (tmp_path / "file.png").exists() or name == "fastopt plot-schedule"


@needs_full
@pytest.mark.parametrize(("name", "unbuffered"), [
    *((name, "") for name in COMMANDS), ("fastopt", "1"), ("fastopt info", "1")])
def test_a_full_disk_is_told(name, unbuffered, tmp_path):
    with open("/dev/full", "w") as full:
        code, _, err = run(name, tmp_path, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert code == 1
    assert [line for line in err if line] == [
        f"{name}: cannot read or write the output: No space left on device"]


@needs_full
def test_messages_that_cannot_be_written_are_dropped(tmp_path):
    with open("/dev/full", "w") as full, process("fastopt plot-schedule", "nothing", stderr=full) as running:
        assert running.communicate(timeout=60)[0] == ""
    assert running.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor")
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams(closed, tmp_path):
    code, _, err = run("fastopt info", tmp_path, preexec_fn=lambda: os.close(closed))
    assert (code, err) == (0, [])


@every_run
@pytest.mark.parametrize(("variable", "value", "message"), [
    ("FASTOPT_SIMD", "zz", "FASTOPT_SIMD must be one of "),
    ("FASTOPT_NUM_THREADS", "zz", "FASTOPT_NUM_THREADS must be an integer of at least 1, got 'zz'"),
    ("FASTOPT_NUM_THREADS", "0", "FASTOPT_NUM_THREADS must be an integer of at least 1, got '0'"),
], ids=["level", "word", "zero"])
def test_wrong_environment_variables_are_told(name, variable, value, message, tmp_path):
    code, out, err = run(name, tmp_path, env={variable: value})
    assert (code, out) == (1, "")
    assert len(err) == 1 and err[0].startswith(f"{name}: {message}")
    assert not (tmp_path / "file.png").exists()


def test_wrong_environment_variables_of_the_blas_are_told(tmp_path):
    code, _, err = run("fastopt bench", tmp_path, ["muon"], env={"OPENBLAS_NUM_THREADS": "zz", "OMP_NUM_THREADS": "1"})
    assert code == 1
    assert err[-1] == "fastopt bench: OPENBLAS_NUM_THREADS must be an integer of at least 1, got 'zz'"


def test_the_help_needs_no_environment(tmp_path):
    code, out, err = run("fastopt bench", tmp_path, ["--help"], env={"FASTOPT_NUM_THREADS": "zz"})
    assert (code, err) == (0, []) and "--case" in out


WRITING = [name for name, arguments in COMMANDS.items() if "FILE" in arguments]


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("place", ["nowhere/file.png", "folder", "locked/file.png", ""])
def test_an_output_that_cannot_be_written_is_told_before_the_work(name, place, tmp_path):
    if place.startswith("locked") and hasattr(os, "geteuid") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    path = str(tmp_path / place) if place else ""
    code, out, err = run(name, tmp_path, [path if word == "FILE" else word for word in COMMANDS[name].split()])
    assert code in (1, 2)
    assert out == "" or "handwritten digits" in out
    assert "Traceback" not in "".join(err) and (path or "directory") in err[-1]


def test_an_output_is_kept_until_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("something longer than what comes next")
    with pytest.raises(ZeroDivisionError), cli.writing(path):
        1 / 0  # noqa: B018
    assert path.read_text().startswith("something longer")
    with cli.writing(path) as write:
        assert path.read_text().startswith("something longer")
        write(b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), cli.writing(tmp_path / "other"):
        assert (tmp_path / "other").exists()
        1 / 0  # noqa: B018
    assert not (tmp_path / "other").exists()


@needs_full
@pytest.mark.parametrize("name", [name for name in WRITING if "json" in COMMANDS[name]])
def test_an_output_on_a_full_disk_is_told(name, tmp_path):
    arguments = COMMANDS[name].replace("FILE", "/dev/full").split()
    code, out, err = run(name, tmp_path, arguments)
    assert code == 1 and "| 2x8 |" in out
    assert err == [f"{name}: cannot write /dev/full: No space left on device"]


# command, options, the last line of stderr
WRONG = [
    *((name, f"{option} {value}", f"argument {option}: must be a finite number greater than 0, got '{value}'")
      for name, option in (("fastopt bench", "--seconds"), ("python -m fastopt.bench", "--seconds"),
                           ("fastopt bench", "--gigabytes"), ("fastopt demo", "--lr"))
      for value in ("-1", "0", "nan", "inf", "zz")),
    *(("fastopt bench", f"{option} {value}", f"argument {option}: must be an integer ")
      for option in ("--rounds", "--threads") for value in ("0", "1.5")),
    *(("fastopt bench", f"{race} --case {case}", "not enough memory: it takes some ")
      for race in ("", "averages", "whole-step", "stages", "lbfgs")
      for case in ("1x999999999999999", "1x999999999999M", *(["999999999999x1"] if race != "lbfgs" else []))),
    ("fastopt bench", "adafactor --case 99999999x99999999", "not enough memory: it takes some "),
    ("fastopt bench", "adafactor --case " + "x".join("1" * 65), "argument --case: a case has from 1 to 32 dimensions"),
    ("fastopt bench", "adafactor --case 8xy", "a case is named by its shape, such as 1024x1024, got '8xy'"),
    ("fastopt bench", "muon --case 999999x999999", "not enough memory: it takes some "),
    ("fastopt bench", "sparse --case 4096x99999999", "not enough memory: it takes some "),
    ("fastopt bench", "averages --case 0x8", "argument --case: a case is named <arrays>x<elements>"),
    ("fastopt bench", "nothing", "argument WHAT: there is no 'nothing'; there are steps, "),
    ("fastopt bench", "muon --method SGD", "argument --method: muon has no 'SGD'; it has Muon"),
    ("fastopt bench", "muon --contender zz", "argument --contender: muon has no 'zz'; it has fastopt, "),
    ("fastopt bench", "sparse --dtype float64", "argument --dtype: sparse is measured in float32"),
    ("fastopt bench", "checkpoint --gigabytes 1e9", "not enough memory: it takes some "),
    ("fastopt bench", "checkpoint --gigabytes 0.001 --folder /no/such", "cannot read or write /no/such/"),
    ("fastopt demo", "--hidden 999999 999999", "not enough memory: it takes some "),
    ("fastopt demo", f"--hidden {'9' * 30} 1", "not enough memory: it takes some "),
    ("python -m fastopt.table", __file__, "test_cli.py is not a file of fastopt bench --speed"),
    ("python -m fastopt.table", "/no/such/file", "cannot read or write /no/such/file: No such file or directory"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=lambda text: str(text)[:60])
def test_wrong_options_are_told(name, options, message, tmp_path):
    words = name.split()
    module = words[2] if words[0] == "python" else "fastopt"
    main = importlib.import_module(module + ".__main__" * (module in ("fastopt", "fastopt.bench"))).main
    code, err = called(main, [*words[1 if words[0] == "fastopt" else 3:], *options.split()])
    assert code in (1, 2)
    assert message in err.splitlines()[-1]


def called(main, arguments):
    """(exit code, stderr) of a main in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = exit.code
    return code, err.getvalue()


def test_memory_that_numpy_does_not_get_is_told(monkeypatch):
    monkeypatch.setattr("fastopt.bench.cli.need_memory", lambda size: None)
    code, err = called(cli.main, ["bench", "muon", "--case", "999999x999999"])
    assert code == 1
    assert err.startswith("fastopt bench: not enough memory: Unable to allocate")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize(("name", "arguments"), [
    ("fastopt demo", "--epochs 1000000 --output FILE"),
    ("fastopt bench", "--seconds 1000 --rounds 1000000 --case 100x64 --json FILE"),
])
def test_ctrl_c_costs_one_line(name, arguments, tmp_path):
    restored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with process(name, *arguments.replace("FILE", str(tmp_path / "file.png")).split(), env={"PYTHONUNBUFFERED": "1"},
                 **restored) as running:
        running.stdout.readline()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in err and err.splitlines()[-1].endswith(f"{name}: interrupted")
    assert not list(tmp_path.iterdir())


ENDLESS = [
    "9**9**9", "2**-9**9**9", "9.0**9**9", "(-8)**0.5", "9**9**9**9 * linear_schedule(0, 1, 9)", "1 << 10**10",
    "[1] * 10**10", "'a' * 10**10", "'a' + 'b'", "(0,) * 10**10", "'%999999999d' % 1", "'a'.ljust(10**10)",
    "'{:9999999999}'.format(1)", "10**400 * 1.0", "9" * 5_000, "9" * 20_000, "-" * 9_000 + "1", "(" * 5_000, "[" * 150,
    "1" + "+1" * 4_000, "linear_schedule(0, 1, 10).preview(10**12)", "linear_schedule(0, 1, 10).map(linear_schedule)",
    "linear_schedule(0, 1, 10)()", "(1)(2)", "1()", "linear_schedule(**{'init_value': 1})", "linear_schedule(*[1, 2])",
    "~1", "not 1", "1j", "b'a'", "...", "f'{1}'", "1 if 1 else 2", "lambda step: 9**9**9", "(x := 1)", "1 < 2",
    "[1][0]", "{1, 2}", "{**{}}", "(linear_schedule)", "'linear'", "linear_schedule(0, 1, 10) ** 2", "1 // 0", "1 % 0",
    "2**63", "10**18 * 10", "linear_schedule(0, 1, transition_steps=9**9**9)", "9**9**9 * 0",
    "function_schedule(linear_schedule)",
]


@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:40])
def test_expressions_are_bounded(text, tmp_path):
    code, err = called(cli.main, ["plot-schedule", "--steps", "10", "--output", str(tmp_path / "file.png"), "--", text])
    assert code == 1
    assert err.startswith("fastopt plot-schedule: ") and err.count("\n") == 1
    assert not (tmp_path / "file.png").exists()


@pytest.mark.parametrize(("text", "value"), [
    ("2**10 - 7 // 2", 1021), ("-2**-1", -0.5), ("1e-3 * 10 % 3", 0.01), ("0**0", 1), ("+(3 - 1)", 2),
    ("2.0**0.5", 2**0.5),
    ("[1, (2, 3), {'a': -4}, None, True, 'b']", [1, (2, 3), {"a": -4}, None, True, "b"]),
    ("9 * 10**17", 900_000_000_000_000_000), ("1" + "+1" * 90, 91),
])
def test_values_of_expressions(text, value):
    assert plot_schedule.evaluated(text) == value


def test_expressions_of_schedules():
    text = "-(2 * warmup(linear_schedule(1.0, 0, 50), 10).shift(3).clamp(0, high=0.5) - 1) / 4"
    made = -(2 * s.warmup(s.linear_schedule(1.0, 0, 50), 10).shift(3).clamp(0, high=0.5) - 1) / 4
    assert plot_schedule.evaluated(text) == made
