"""The demo and the command line."""

import os
import re
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import fastopt
from fastopt import demo
from fastopt.cli import main, writing
from fastopt.kernels import simd

METHODS = demo.METHODS
NAMES = [method.name for method in METHODS]
SHORT = demo.Settings(epochs=2, hidden=(32, 16))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def data():
    return demo.digits(0, "float32")


def run(capsys, *options):
    """Runs a short demo: returns what it printed to stdout and stderr."""
    assert main(["demo", "--epochs", "2", "--hidden", "32", "16", *map(str, options)]) == 0
    return capsys.readouterr()


def digest(capsys, picture, *options):
    return re.search(r"sha256 ([0-9a-f]{16})\n", run(capsys, "--output", picture, *options).out).group(1)


def accuracy(out):
    return float(re.search(r"final test accuracy of \w+, lr [\d.e-]+: ([\d.]+)%", out).group(1))


# ---- the model

def test_gradients_are_the_finite_differences_of_the_loss():
    random = np.random.default_rng(3)
    params = demo.init_model((6, 5, 4, 3), seed=1, dtype="float64")
    for param in params.values():
        param += 0.1 * random.standard_normal(param.shape)
    images, labels = random.random((7, 6)), random.integers(0, 3, 7)
    _, grads = demo.loss_and_grads(params, images, labels)
    assert list(grads) == list(params)
    width = 1e-6
    for name, param in params.items():
        differences = np.empty_like(param)
        for index in np.ndindex(param.shape):
            kept = param[index]
            param[index] = kept + width
            above, _ = demo.loss_and_grads(params, images, labels)
            param[index] = kept - width
            below, _ = demo.loss_and_grads(params, images, labels)
            param[index] = kept
            differences[index] = (above - below) / (2 * width)
        assert np.abs(differences).max() > 1e-3
        np.testing.assert_allclose(grads[name], differences, rtol=1e-6, atol=1e-9, err_msg=name)


def test_loss_is_finite_for_large_logits():
    loss, shares = demo.cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert loss == 5e3
    assert shares.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_in_the_dtype(dtype):
    data = demo.digits(0, dtype)
    params = demo.init_model((64, 8, 8, 10), seed=0, dtype=dtype)
    _, grads = demo.loss_and_grads(params, data.train_images[:9], data.train_digits[:9])
    arrays = [data.train_images, data.test_images, *params.values(), *grads.values()]
    assert {array.dtype.name for array in arrays} == {dtype}


def test_split_is_stratified_and_seeded(data):
    assert len(data.train_images) == 1437 and len(data.test_images) == 360
    assert np.ptp(np.bincount(data.test_digits, minlength=10)) <= 2
    again, other = demo.digits(0, "float32"), demo.digits(1, "float32")
    assert np.array_equal(data.test_images, again.test_images)
    assert not np.array_equal(data.test_images, other.test_images)
    assert 0 == data.train_images.min() and data.train_images.max() == 1


def test_an_epoch_has_every_image_once(data):
    settings = demo.Settings(epochs=2, batch=100)
    first, second = demo.batches(settings, np.arange(1437), np.arange(1437))
    assert [len(images) for images, _ in first] == [100] * 14 + [37]
    assert len(first) * 2 == settings.steps(1437)
    orders = [np.concatenate([images for images, _ in epoch]) for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1437))
    assert not np.array_equal(*orders)


# ---- training

@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_optimizer_learns_and_steps_as_its_reference(method, data):
    settings = replace(SHORT, epochs=30 if method.full_batch else 10)
    history = demo.train(method, data, settings)
    assert history.accuracies[-1] > 0.5
    assert history.train_losses[-1] < history.train_losses[0]
    assert history.difference < 1e-5 or method.name == "Rprop"  # a sign that turns in the last bit moves a whole step
    assert len(history.seconds) == len(history.numpy_seconds) == len(history.losses)
    assert len(history.losses) == settings.suited(method, 1437).steps(1437)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_optimizer_reaches_96_percent(method, data):
    history = demo.train(method, data, demo.Settings())
    assert history.accuracies[-1] >= 0.96


# the factors of the rate at the first, the middle and the last of 90 steps
FACTORS = {
    "none": (1, 1, 1),
    "step": (1, 0.3, 0.027),
    "multistep": (1, 0.2, 0.04),
    "exponential": (1, 0.02**0.5, 0.02 ** (89 / 90)),
    "cosine": (1, 0.5, 0.5 * (1 + np.cos(np.pi * 89 / 90))),
    "linear": (1, 0.5, 1 / 90),
    "lambda": (1 / 9, (9 / 46) ** 0.5, 0.1**0.5),
}


@pytest.mark.parametrize("schedule", demo.SCHEDULES)
def test_schedules_are_fitted_to_the_steps(schedule, data):
    history = demo.train(METHODS[0], data, replace(SHORT, schedule=schedule, lr=0.02))
    rates = [history.rates[step] for step in (0, 45, -1)]
    assert len(history.rates) == 90
    np.testing.assert_allclose(rates, 0.02 * np.array(FACTORS[schedule]), rtol=1e-9)


@pytest.mark.parametrize("schedule", demo.SCHEDULES)
def test_a_run_of_one_step(schedule, data, tmp_path):
    settings = replace(SHORT, schedule=schedule, epochs=1, batch=5000)
    histories = [demo.train(method, data, settings) for method in METHODS[:2]]
    assert all(len(history.losses) == 1 for history in histories)
    with writing(tmp_path / "picture.png") as write:
        demo.plot(histories, settings, write)
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


def test_a_method_without_options_for_the_digits_runs_with_its_defaults():
    method = replace(METHODS[0], digits={})
    assert demo.options_of(method) == {}
    assert demo.options_of(method, 0.5) == {"lr": 0.5}


# ---- the command

def test_the_default_run_reaches_97_percent(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert accuracy(out) >= 97
    line = r"^epoch +\d+/30  training loss [\d.]+  test loss [\d.]+  test accuracy [\d.]+%$"
    assert len(re.findall(line, out, re.M)) == 30
    assert (tmp_path / "fastopt-demo.png").read_bytes().startswith(PNG)


def test_a_short_run_prints_and_writes_what_it_should(capsys, tmp_path):
    picture = tmp_path / "picture.png"
    out, err = run(capsys, "--output", picture, "--optimizer", "rmsPROP", "--lr", 0.004, "--dtype", "float64",
                   "--batch", 50, "--schedule", "linear")
    assert picture.read_bytes().startswith(PNG)
    assert accuracy(out) > 50
    assert "RMSprop, lr 0.004:" in out and "float64, batches of 50, schedule: linear, seed 0" in out
    assert len(re.findall("^epoch", out, re.M)) == 2
    assert re.search(r"^optimizer: +[\d.]+ us a step, [\d.]+ s in all 58 steps$", out, re.M)
    assert re.search(r"^same rule in plain NumPy: +[\d.]+ us a step, [\d.]+ s in all 58 steps$", out, re.M)
    assert re.search(r"^ratio NumPy / fastopt: +[\d.]+ ", out, re.M)
    assert f"picture: {picture}" in out
    assert "RMSprop" in err and "step" in err  # the progress bar


def test_the_seed_decides_the_bits(capsys, tmp_path):
    picture = tmp_path / "picture.png"
    first = digest(capsys, picture, "--seed", 5)
    assert digest(capsys, picture, "--seed", 5) == first
    assert digest(capsys, picture, "--seed", 6) != first
    assert digest(capsys, picture, "--seed", 5, "--schedule", "none") != first


def test_threads_do_not_change_the_bits(capsys, tmp_path):
    options = tmp_path / "picture.png", "--hidden", 256, 128, "--epochs", 1
    assert digest(capsys, *options, "--threads", 2) == digest(capsys, *options, "--threads", 1)


def test_threads_are_those_of_the_optimizer(data, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "Shadow", lambda method, params: types.SimpleNamespace(
        step=lambda grads, group: None, params=list(params.values())))
    monkeypatch.setattr(demo, "step_both", lambda optimizer, *_: asked.append(optimizer.num_threads))
    demo.train(METHODS[0], data, replace(SHORT, epochs=1, threads=2, schedule="none"))
    assert set(asked) == {2}


@pytest.mark.parametrize("names, raced", [
    ([], NAMES),
    (["adam", "SGD", "Adam"], ["Adam", "SGD"]),
    (["sgd"], ["SGD"]),
])
def test_compare_races_optimizers_in_one_picture(names, raced, capsys, tmp_path, monkeypatch):
    shown, plot = [], demo.plot
    monkeypatch.setattr(demo, "plot", lambda runs, *rest: plot(shown.extend(runs) or runs, *rest))
    out = run(capsys, "--output", tmp_path / "race.png", "--compare", *names).out
    assert re.findall(r"^(\w+) .*%.* us .* us .*[0-9a-f]{16}$", out, re.M) == raced
    assert [history.name for history in shown] == raced
    assert (tmp_path / "race.png").read_bytes().startswith(PNG)


def test_a_race_is_fair(data):
    settings = replace(SHORT, epochs=1)
    histories = [demo.train(method, data, settings) for method in METHODS if not method.full_batch]
    assert len({history.losses[0] for history in histories}) == 1


@pytest.mark.parametrize("options, message", [
    (["--optimizer", "Sofia"], "--optimizer: must be one of SGD, "),
    (["--compare", "Adam", "Sofia"], "--compare: must be one of SGD, "),
    (["--optimizer", "SGD", "--compare"], "--compare: not allowed with argument --optimizer"),
    (["--schedule", "saw"], "--schedule: invalid choice: 'saw' (choose from"),
    (["--lr", "0"], "--lr: must be a finite number greater than 0, got '0'"),
    (["--lr", "nan"], "--lr: must be a finite number"),
    (["--lr", "fast"], "--lr: must be a finite number"),
    (["--epochs", "0"], "--epochs: must be an integer of at least 1, got '0'"),
    (["--epochs", "1.5"], "--epochs: must be an integer"),
    (["--batch", "-3"], "--batch: must be an integer of at least 1"),
    (["--hidden", "32"], "--hidden: expected 2 arguments"),
    (["--hidden", "32", "0"], "--hidden: must be an integer of at least 1"),
    (["--dtype", "float16"], "--dtype: invalid choice: 'float16' (choose from"),
    (["--seed", "-1"], "--seed: must be an integer from 0 to 4294967295, got '-1'"),
    (["--seed", "4294967296"], "--seed: must be an integer from 0 to 4294967295"),
    (["--threads", "0"], "--threads: must be an integer of at least 1"),
    (["--output", "."], "--output: must be a file for a PNG, got the directory '.'"),
    (["--output", "no such place/picture.png"], "--output: must be in a directory that exists"),
    (["--output", "picture.pdf"], "--output: must end in .png"),
])
def test_bad_options_exit_with_code_2(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["demo", *options])
    assert exit.value.code == 2
    assert f"fastopt demo: error: argument {message}" in capsys.readouterr().err


def test_divergence_is_told(capsys, tmp_path):
    assert main(["demo", "--lr", "1e30", "--output", str(tmp_path / "picture.png")]) == 1
    assert re.search(r"AdamW diverged: the loss is (nan|inf) after \d+ steps; choose a smaller --lr",
                     capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_told(capsys, data, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(demo, "picture", lambda text: tmp_path / "here")
    assert main(["demo", "--epochs", "1", "--hidden", "8", "8", "--output", "somewhere"]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["sklearn.datasets", "matplotlib.figure", "tqdm"])
def test_a_missing_package_is_told_before_the_training(package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(demo, "train", None)
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert 'pip install "fastopt[demo]"' in err and package in err


def test_info_prints_version_and_level(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^fastopt +{re.escape(fastopt.__version__)}$", out, re.M)
    assert re.search(rf"^simd +{simd.level()} ", out, re.M)


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"fastopt {fastopt.__version__}\n"


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(command in out for command in ("demo", "bench", "info"))


def test_an_unknown_command_exits_with_code_2(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["dance"])
    assert exit.value.code == 2
    assert "'dance'" in capsys.readouterr().err


def test_bench_is_the_module_of_the_benchmarks(monkeypatch):
    module = types.ModuleType("fastopt.bench.cli")
    module.add_arguments = lambda parser: parser.add_argument("--sizes", type=int)
    module.run = lambda args: args.sizes
    monkeypatch.setitem(sys.modules, "fastopt.bench", types.ModuleType("fastopt.bench"))
    monkeypatch.setitem(sys.modules, "fastopt.bench.cli", module)
    assert main(["bench", "--sizes", "7"]) == 7


def test_without_bench_the_rest_works(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastopt.bench", None)
    monkeypatch.delitem(sys.modules, "fastopt.bench.cli", raising=False)
    assert main(["bench"]) == 1
    assert "fastopt bench: not part of this installation" in capsys.readouterr().err
    assert main(["info"]) == 0
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--help"])
    assert exit.value.code == 0


PROCESS = """
import sys
import fastopt.cli, fastopt.demo
loaded = {"sklearn", "matplotlib", "tqdm"} & set(sys.modules)
assert not loaded, loaded
code = fastopt.cli.main(["demo", "--epochs", "1", "--hidden", "8", "8", "--output", sys.argv[1]])
assert "matplotlib.pyplot" not in sys.modules
sys.exit(code)
"""


def test_optional_packages_are_loaded_late_and_pyplot_never(tmp_path):
    picture = tmp_path / "picture.png"
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROCESS, os.fspath(picture)], check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(PNG)


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fastopt", "--version"], check=True, capture_output=True,
                          text=True)
    assert done.stdout == f"fastopt {fastopt.__version__}\n"
