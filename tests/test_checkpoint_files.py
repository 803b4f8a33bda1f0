"""`fastopt.save` and `fastopt.load`: files that are whole, or refused; and the way to torch and back."""

import copy
import errno
import json
import math
import os
import re
import stat
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from common import name_of
from test_checkpoints import EVERY, everything, hybrid, inputs, plain, shapes, step, trained
from test_lr_scheduler import METRICS, METRICS_SEEN, RESUMED, every, optimizer_of

import fastopt
from fastopt import checkpoint
from fastopt.kernels.checksum import xxh64
from fastopt.table import METHODS

TRAININGS = [*EVERY, (next(method for method in METHODS if method.closure), {"history_size": 2})]
ADAM = next(method for method in METHODS if method.name == "Adam")


# ---- going on with the same bits


def digest(folder):
    """Loads every training of a folder, goes on, and prints the bits of the parameters."""
    for i, (method, options) in enumerate(TRAININGS):
        optimizer, params, _ = trained(method, options, steps=1, seed=9, names=bool(i % 2))
        extra = fastopt.load(os.path.join(folder, str(i)), optimizer, params=params)
        for row in extra["rows"]:
            step(method, optimizer, row)
        print(i, [param.tobytes().hex() for param in params])


@pytest.mark.parametrize(("level", "threads"), [("v2", "1"), ("v3", "2")])
def test_every_method_goes_on_with_the_same_bits_on_another_level_and_number_of_threads(level, threads, tmp_path):
    expected = []
    for i, (method, options) in enumerate(TRAININGS):
        optimizer, params, rows = trained(method, options, steps=6, names=bool(i % 2))
        fastopt.save(tmp_path / str(i), optimizer, params=params, extra={"rows": rows})
        for row in rows:
            step(method, optimizer, row)
        expected.append(f"{i} {[param.tobytes().hex() for param in params]}")
    tests = os.path.dirname(__file__)
    code = f"import sys; sys.path.insert(0, {tests!r}); import test_checkpoint_files as t; t.digest({str(tmp_path)!r})"
    environment = {**os.environ, "FASTOPT_SIMD": level, "FASTOPT_NUM_THREADS": threads}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "FASTOPT_SIMD" in run.stderr:
        pytest.skip("this CPU lacks the level")
    assert run.stdout.splitlines() == expected, run.stderr


def whole_training(seed=0):
    """A training with all that a file can hold."""
    params, rows = inputs(9, shapes=((5, 3), (7,), ()), skip=False, seed=seed)
    params = dict(zip(("layer.weight", "layer.bias", "scale"), params, strict=True))
    optimizer = fastopt.AdamW(params, lr=0.1, amsgrad=True)
    ema, swa = fastopt.averages.EMA(optimizer, decay=0.9, dtype="float64"), fastopt.averages.SWA(optimizer)
    optimizer.set_stages(lookahead=(2, 0.5), clip=1.0, on_nonfinite="skip", average=ema)
    schedulers = [fastopt.lr_scheduler.CosineAnnealingLR(optimizer, 20), fastopt.lr_scheduler.StepLR(optimizer, 2, 0.5)]
    scaler = fastopt.GradScaler(init_scale=8.0, growth_interval=2)
    return params, rows, dict(optimizer=optimizer, scheduler=schedulers, ema=[ema, swa], scaler=scaler, params=params)


def go_on(params, rows, parts):
    for row in rows:
        parts["scaler"].step(parts["optimizer"], [8.0 * grad for grad in row])
        parts["scaler"].update()
        for scheduler in parts["scheduler"]:
            scheduler.step()
        parts["ema"][1].update()


def state_of(parts):
    flat = [each for part in parts.values() for each in (part if isinstance(part, list) else [part])]
    return plain([each if isinstance(each, dict) else each.state_dict() for each in flat])


def test_a_whole_training_goes_on(tmp_path):
    params, rows, parts = whole_training()
    go_on(params, rows[:3], parts)
    parts["optimizer"].accumulate(rows[3])
    fastopt.save(tmp_path / "x", **parts, extra="step 3")
    _, _, others = whole_training(seed=1)
    assert fastopt.load(tmp_path / "x", **others) == "step 3"
    assert state_of(others) == state_of(parts)
    for each in (parts, others):
        each["optimizer"].step()
        go_on(params, rows[4:], each)
    assert state_of(others) == state_of(parts)


@every(RESUMED | METRICS)
def test_every_scheduler_goes_on(make, tmp_path):
    optimizer, other = optimizer_of(), optimizer_of()
    scheduler, again = make(fastopt.lr_scheduler, optimizer), make(fastopt.lr_scheduler, other)
    listed = scheduler if isinstance(scheduler, list) else [scheduler]

    def drive(optimizer, schedulers, metrics):
        rates = []
        for metric in metrics:
            optimizer.step([np.ones(2)] * 2)
            for each in schedulers if isinstance(schedulers, list) else [schedulers]:
                each.step(*([metric] if make in METRICS.values() else []))
            rates.append([(group["lr"], group.get("momentum")) for group in optimizer.param_groups])
        return rates

    assert listed
    drive(optimizer, scheduler, METRICS_SEEN[:20])
    fastopt.save(tmp_path / "x", optimizer, scheduler)
    fastopt.load(tmp_path / "x", other, again)
    assert drive(optimizer, scheduler, METRICS_SEEN[20:35]) == drive(other, again, METRICS_SEEN[20:35])


@pytest.mark.parametrize("average", [None, "float64"])
@pytest.mark.parametrize("make", [fastopt.averages.EMA, fastopt.averages.SWA])
def test_every_average_goes_on(make, average, tmp_path):
    params = [np.arange(3.0, dtype="float32"), np.ones((2, 2))]
    one, other = make(params, dtype=average), make(params, dtype=average)
    for k in range(3):
        params[0][...] = k
        one.update()
    fastopt.save(tmp_path / "x", ema=one)
    fastopt.load(tmp_path / "x", ema=other)
    for each in (one, other):
        each.update()
    assert plain(one.state_dict()) == plain(other.state_dict())


def test_the_hybrid_goes_on(tmp_path):
    optimizer, params, rows = hybrid()
    fastopt.save(tmp_path / "x", optimizer, params=params)
    other, twins, _ = hybrid(seed=1)
    fastopt.load(tmp_path / "x", other, params=twins)
    for row in rows:
        optimizer.step(row)
        other.step(row)
    assert everything(optimizer, params) == everything(other, twins)


def test_parameters_load_by_name_and_into_other_frameworks(tmp_path):
    params = {"a": np.arange(3.0), "b": np.ones((2, 2), "complex64") * 1j}
    fastopt.save(tmp_path / "x", params=params)
    again = {"b": np.zeros((2, 2), "complex64"), "a": np.zeros(3)}
    assert fastopt.load(tmp_path / "x", params=again) is None
    assert again["a"].tolist() == [0.0, 1.0, 2.0] and again["b"][0, 0] == 1j
    memory = [bytearray(24), np.zeros((2, 2), "complex64")]
    fastopt.load(tmp_path / "x", params=[memoryview(memory[0]).cast("d"), memory[1]])
    assert np.frombuffer(memory[0]).tolist() == [0.0, 1.0, 2.0]


# ---- values


def same(one, other):
    if isinstance(one, np.ndarray) or isinstance(one, np.generic):
        return type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape and (
            one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return type(other) is dict and list(map(repr, one)) == list(map(repr, other)) and all(
            same(one[key], value) for key, value in other.items())
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


VALUES = [
    None, True, 0, -1, 2**53 - 1, 2**53, 2**53 + 1, -(2**64), 10**300, 0.1, -0.0, 5e-324, 1e308, math.inf, -math.inf,
    math.nan, 1 + 2j, complex(-0.0, math.inf), "", "ä\n\"\\\u2028", "\ud800", "$array", b"", b"\x00\xff", (), [], {},
    (1, [2, (3,)]), {"$array": "x"}, {"a": {"$dict": 1}}, {1: "one", (2, 3): [4], None: 5, "6": 6, 2.5: 7}, {"": 0},
    np.float32(0.1), np.int64(-3), np.bool_(True), np.float64(math.nan), np.complex64(1j), np.uint8(255),
    np.array(1.5), np.zeros((0, 3)), np.zeros((3, 0), complex), np.array(2j), np.arange(6, dtype="i2").reshape(2, 3).T,
    (np.arange(6) * 1j).reshape(2, 3).T, np.array([True, False]), np.arange(5, dtype="u8")[::2], np.array([], "f2"),
    {"__metadata__": np.ones(2), "header": '"header":"00000000"', "fastopt": [np.ones(1), np.ones(1)]},
]


@pytest.mark.parametrize("value", [*VALUES, VALUES], ids=lambda value: repr(value)[:40])
def test_values_come_back_exactly(value, tmp_path):
    fastopt.save(tmp_path / "x", extra=value)
    found = fastopt.load(tmp_path / "x")
    assert same(value, found)
    os.unlink(tmp_path / "x")
    if isinstance(found, np.ndarray) and found.size:
        found[...] = 0  # its own memory


def test_foreign_byte_order_comes_back_as_numbers(tmp_path):
    fastopt.save(tmp_path / "x", extra=np.arange(3, dtype=">f8"))
    assert fastopt.load(tmp_path / "x").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("value", [
    object(), {1, 2}, lambda: 0, [{"a": (1, print)}], np.array([None]), np.array(["a"]), np.ma.masked_array([1.0], [1]),
    np.longdouble(1), np.array(1, "M8[s]"), np.zeros(2, "i4,f4"), {"a": OrderedDict, "b": 1}],
    ids=lambda value: type(value).__name__)
def test_values_that_a_file_cannot_have(value, tmp_path):
    fastopt.save(tmp_path / "x", extra=1)
    with pytest.raises(TypeError, match=r"extra.* is .*, which a checkpoint cannot have"):
        fastopt.save(tmp_path / "x", extra=value)
    assert fastopt.load(tmp_path / "x") == 1 and os.listdir(tmp_path) == ["x"]


def test_checksums_are_those_of_xxhash():
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1


def test_the_library_safetensors_reads_the_arrays(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    params, rows, parts = whole_training()
    go_on(params, rows[:2], parts)
    fastopt.save(tmp_path / "x", **parts, extra=[np.arange(3)])
    found = safetensors.load_file(tmp_path / "x")
    state = parts["optimizer"].state[0]
    assert found["optimizer.state.layer.weight.exp_avg"].tobytes() == state["exp_avg"].tobytes()
    assert found["optimizer.stages.slow.scale"].shape == ()
    assert found["params.layer.bias"].tobytes() == params["layer.bias"].tobytes()
    assert found["ema.0.module.layer.bias"].dtype == np.float64
    assert found["extra.0"].tolist() == [0, 1, 2]


# ---- files that are not as they were


def small(path, seed=0):
    optimizer, params, _ = trained(ADAM, {}, seed=seed, names=True)
    fastopt.save(path, optimizer, params=dict(zip("ab", params, strict=True)), extra={"epoch": 3})
    return optimizer, params


def refused(path, optimizer, params, message=None, error=(TypeError, ValueError), **others):
    before = everything(optimizer, params)
    with pytest.raises(error, match=message) as caught:
        fastopt.load(path, optimizer, params=params, **others)
    assert os.fspath(path) in str(caught.value)
    assert everything(optimizer, params) == before


@pytest.mark.parametrize("flip", [1, 0x20, 0xFF])
def test_every_byte_that_is_altered_is_noticed(flip, tmp_path):
    path = tmp_path / "x"
    small(path)
    whole = path.read_bytes()
    optimizer, params, _ = trained(ADAM, {}, seed=1, names=True)
    before = everything(optimizer, params)
    with open(path, "r+b", buffering=0) as file:
        for i, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ flip]), i)
            with pytest.raises(ValueError, match=r"damaged|torch"):
                fastopt.load(path, optimizer, params=params)
            os.pwrite(file.fileno(), bytes([byte]), i)
    assert everything(optimizer, params) == before
    assert fastopt.load(path, optimizer, params=params) == {"epoch": 3}


def test_every_length_that_is_not_the_whole_is_noticed(tmp_path):
    path = tmp_path / "x"
    small(path)
    with open(path, "ab") as file:
        file.write(b"\0")
    optimizer, params, _ = trained(ADAM, {}, seed=1, names=True)
    refused(path, optimizer, params, "1 bytes too many")
    before = everything(optimizer, params)
    os.truncate(path, path.stat().st_size - 1)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(ValueError, match="damaged"):
            fastopt.load(path, optimizer, params=params)
    assert everything(optimizer, params) == before


def rewritten(path, change):
    """A file with another header, whose checksum is right."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8 : 8 + length])
    entries["__metadata__"]["header"] = checkpoint.SUM.decode()
    change(entries)
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % 64)
    head = head.replace(checkpoint.SUM, checkpoint.checksum(head), 1)
    path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + length :])


def content(change):
    """Changes what is no array."""
    def changed(entries):
        text = json.loads(entries["__metadata__"]["content"])
        text = change(text) or text
        entries["__metadata__"]["content"] = json.dumps(text)

    return changed


FIRST = "optimizer.state.a.exp_avg"
MADE_UP = {
    "version": (lambda h: h["__metadata__"].update(fastopt="2"), "of version 2, and this fastopt reads version 1"),
    "no version": (lambda h: h["__metadata__"].pop("fastopt"), "damaged"),
    "no content": (lambda h: h["__metadata__"].pop("content"), "damaged"),
    "no sums": (lambda h: h["__metadata__"].update(sums=""), "damaged"),
    "not JSON": (lambda h: h["__metadata__"].update(content="{"), "damaged"),
    "deep": (lambda h: h["__metadata__"].update(content="[" * 100_000), "damaged"),
    "dtype": (lambda h: h[FIRST].update(dtype="F128"), "damaged"),
    "shape": (lambda h: h[FIRST].update(shape=[-1]), "damaged"),
    "huge": (lambda h: h[FIRST].update(shape=[2**60]), "damaged"),
    "shape of no kind": (lambda h: h[FIRST].update(shape=[2.0]), "damaged"),
    "offsets": (lambda h: h[FIRST].update(data_offsets=[0, 2**60]), "damaged"),
    "negative": (lambda h: h[FIRST].update(data_offsets=[-8, 8]), "damaged"),
    "no entry": (lambda h: h.pop(FIRST), "damaged"),
    "a list": (content(lambda text: [text]), "damaged"),
    "strange mark": (content(lambda text: text.update(extra={"$object": "os.system"})), "damaged"),
    "strange array": (content(lambda text: text.update(extra={"$array": "x"})), "damaged"),
    "strange key": (content(lambda text: text.update(extra={"$dict": [[{"$dict": []}, 1]]})), "damaged"),
    "an array twice": (content(lambda text: text.update(extra=[{"$array": FIRST}])), "damaged"),
    "strange number": (content(lambda text: text.update(extra={"$int": "x"})), "damaged"),
    "no class": (content(lambda text: text.update(optimizer=3)), "optimizer is not as save"),
    "params of no kind": (content(lambda text: text.update(params=[[1], [2]])), "params are not as save"),
    "params no list": (content(lambda text: text.update(params=3)), "params are not as save"),
    "params no array": (content(lambda text: text["params"][0].__setitem__(1, 3)), "parameter 0 is int in the file"),
    "no params": (content(lambda text: text.pop("params") and None), "there are no params in it"),
    "no optimizer": (content(lambda text: text.pop("optimizer") and None), "there is no optimizer in it"),
    "a list of optimizers": (content(lambda text: text.update(optimizer=[text["optimizer"], 3])),
                             "it has a list of 2 as optimizer, and one is asked for"),
    "state": (content(lambda text: text["optimizer"].update(state=None)), "state_dict must be a dict"),
}


@pytest.mark.parametrize(("change", "message"), MADE_UP.values(), ids=MADE_UP)
def test_a_made_up_file_does_no_harm(change, message, tmp_path):
    small(tmp_path / "x")
    rewritten(tmp_path / "x", change)
    optimizer, params, _ = trained(ADAM, {}, seed=1, names=True)
    refused(tmp_path / "x", optimizer, params, message)


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 100, b"PK\x03\x04rest", b"\x80\x04x", b"{}" * 50,
                                  (2**63).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}"])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    optimizer, params, _ = trained(ADAM, {}, names=True)
    if data[:1] in (b"P", b"\x80"):
        pytest.importorskip("torch")
    refused(tmp_path / "x", optimizer, params)


def test_a_file_of_safetensors_without_a_training_says_so(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"a": np.ones(3)}, tmp_path / "x")
    optimizer, params, _ = trained(ADAM, {}, names=True)
    refused(tmp_path / "x", optimizer, params, "no checkpoint of fastopt")


def test_other_objects_than_those_that_were_saved(tmp_path):
    path = tmp_path / "x"
    small(path)
    for method in METHODS:
        if method is not ADAM:
            optimizer, _, _ = trained(method, {}, names=True)
            with pytest.raises(ValueError, match=f"is of Adam, and {method.name} is asked for"):
                fastopt.load(path, optimizer)
    optimizer, params, _ = trained(ADAM, {}, names=True)
    twin = {"a": np.zeros((5, 3)), "c": np.zeros(7)}
    for other, message in ((twin, "the parameter 'b' is on one side only"), ([np.zeros(3)], "2 params, and 1 are"),
                           ([np.zeros((3, 5)), np.zeros(7)], r"float64 of shape \(5, 3\) in the file"),
                           ([np.zeros((5, 3), "f"), np.zeros(7)], "and float32 of shape")):
        with pytest.raises(ValueError, match=message):
            fastopt.load(path, optimizer, params=other)
    with pytest.raises(ValueError, match="there is no ema in it"):
        fastopt.load(path, optimizer, ema=fastopt.averages.EMA(params))
    with pytest.raises(ValueError, match="it has one optimizer, and a list of 1 as"):
        fastopt.load(path, [optimizer])
    params[1].flags.writeable = False
    refused(path, optimizer, params, "parameter 1 is read-only")
    for name in ("optimizer", "scheduler", "ema", "scaler"):
        with pytest.raises(TypeError, match=f"{name} must be of fastopt"):
            fastopt.load(path, **{name: object()})
        with pytest.raises(TypeError, match=f"{name} must be of fastopt"):
            fastopt.save(path, **{name: [object()]})


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "ema", "scaler", "params"])
def test_all_are_loaded_or_none(part, tmp_path):
    params, rows, parts = whole_training()
    go_on(params, rows[:3], parts)
    fastopt.save(tmp_path / "x", **parts)

    def spoilt(text):
        saved = text[part][-1] if isinstance(text[part], list) else text[part]
        if part == "params":
            saved[1] = 3
        else:
            saved["state"] = {"optimizer": {}, "scheduler": {}, "ema": {}, "scaler": {"scale": -1}}[part]

    rewritten(tmp_path / "x", content(spoilt))
    _, rows, others = whole_training(seed=1)
    go_on(None, rows[:1], others)
    before = state_of(others)
    with pytest.raises((TypeError, ValueError)):
        fastopt.load(tmp_path / "x", **others)
    assert state_of(others) == before


def test_hooks_run_as_when_a_dict_is_loaded(tmp_path):
    optimizer = trained(ADAM, {})[0]
    seen = []
    optimizer.register_state_dict_post_hook(lambda opt, saved: {**saved, "note": (1,)})
    optimizer.register_load_state_dict_pre_hook(lambda opt, saved: seen.append(saved["note"]))
    optimizer.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    fastopt.save(tmp_path / "x", optimizer)
    fastopt.load(tmp_path / "x", optimizer)
    assert seen == [(1,), "loaded"]


# ---- writing


def test_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    optimizer, _, _ = trained(ADAM, {})
    with pytest.raises(FileNotFoundError, match="no such"):
        fastopt.save(tmp_path / "no such" / "x", optimizer)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        fastopt.save(tmp_path, optimizer)
    with pytest.raises(OSError, match="/dev/null"):
        fastopt.save("/dev/null", optimizer)
    with pytest.raises(FileNotFoundError, match="no such"):
        fastopt.load(tmp_path / "no such", optimizer)
    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x'"):
        fastopt.save(tmp_path / "x", optimizer)
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_limit_to_the_size_of_files(tmp_path):
    """As a full disk: the write itself fails."""
    code = f"""
import numpy as np, resource, signal, fastopt
fastopt.save({str(tmp_path / "x")!r}, extra="old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for size in (20_000, 5_000_000):
    try:
        fastopt.save({str(tmp_path / "x")!r}, extra=np.zeros(size))
    except OSError as error:
        print(error)
print(fastopt.load({str(tmp_path / "x")!r}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"[Errno 27] File too large: {str(tmp_path / 'x')!r}"] * 2 + ["old"]
    assert os.listdir(tmp_path) == ["x"]


def test_links_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real")
    fastopt.save(link, extra=1)
    assert link.is_symlink() and fastopt.load(real) == 1
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    before = os.umask(0o027)
    try:
        fastopt.save(tmp_path / "new", extra=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "new", "real"]


def test_what_a_killed_process_left_is_removed_and_what_is_written_is_not(tmp_path):
    dead = tmp_path / ".x.0123456789abcdef.partial"
    dead.write_bytes(b"half")
    inside = []

    def progress(done, total):
        if not inside:
            inside.append(True)
            fastopt.save(tmp_path / "x", extra="second")

    fastopt.save(tmp_path / "x", extra=np.zeros(3), progress=progress)
    assert fastopt.load(tmp_path / "x").tolist() == [0.0] * 3
    assert os.listdir(tmp_path) == ["x"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    fastopt.save(tmp_path / "x", extra="old")

    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fastopt.save(tmp_path / "x", extra=np.zeros(3), progress=progress)
    assert fastopt.load(tmp_path / "x") == "old" and os.listdir(tmp_path) == ["x"]


def test_long_names(tmp_path):
    path = tmp_path / ("x" * 250)
    fastopt.save(path, extra=1)
    assert fastopt.load(path) == 1


def test_progress(tmp_path):
    array, seen = np.zeros(3_000_000), []
    fastopt.save(tmp_path / "x", extra=array, progress=lambda *numbers: seen.append(numbers))
    fastopt.load(tmp_path / "x", progress=lambda *numbers: seen.append(numbers))
    assert seen == 2 * [(2**23, 24_000_000), (2**24, 24_000_000), (24_000_000, 24_000_000)]


def test_the_state_is_written_from_where_it_is(tmp_path):
    import tracemalloc

    param = np.zeros(4_000_000, "f")
    optimizer = fastopt.Adam([param])
    optimizer.step([np.zeros_like(param)])
    tracemalloc.start()
    try:
        fastopt.save(tmp_path / "x", optimizer, params=[param])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


KILLS = """
    import os, random, signal, sys, time, numpy as np, fastopt
    path, numbers, clock, partial = sys.argv[1], np.empty(20_000), random.Random(0), 0
    fastopt.save(path, extra={"k": -1, "numbers": np.full(20_000, -1.0)})
    for _ in range(int(os.environ.get("FASTOPT_KILLS", "500"))):
        child = os.fork()
        if not child:
            for k in range(10**9):
                numbers[:] = k
                fastopt.save(path, extra={"k": k, "numbers": numbers})
        time.sleep(clock.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        partial += len(os.listdir(os.path.dirname(path))) > 1
        found = fastopt.load(path)
        assert (found["numbers"] == found["k"]).all()
    assert partial, "no child was killed while it wrote"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path):
    """Forked children save over and over until they are killed; in a fresh process, which has no threads of others."""
    path = tmp_path / "x"
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLS), path], check=True)
    fastopt.save(path, extra=1)
    assert os.listdir(tmp_path) == ["x"]


def test_a_step_beside_save_says_so(tmp_path):
    optimizer, _, rows = trained(ADAM, {})

    def progress(done, total):
        optimizer.step(rows[0])

    with pytest.raises(RuntimeError, match="in use by save"):
        fastopt.save(tmp_path / "x", optimizer, progress=progress)
    optimizer.step(rows[0])


def test_the_state_is_read_to_where_it_stays(tmp_path):
    import tracemalloc

    param = np.zeros(1_000_000, "f")
    optimizer, other = fastopt.Adam([param]), fastopt.Adam([param])
    optimizer.step([np.zeros_like(param)])
    fastopt.save(tmp_path / "x", optimizer)
    tracemalloc.start()
    try:
        fastopt.load(tmp_path / "x", other)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now > 8_000_000 and peak < 10_500_000


# ---- torch


def torch_twin(torch, method, params, **options):
    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    return tensors, getattr(torch.optim, method.name)(tensors, **options)


def torch_step(torch, method, optimizer, tensors, row):
    if method.closure:
        def closure():
            for tensor, grad in zip(tensors, row, strict=True):
                tensor.grad = (torch.tensor(grad) + 2 * tensor).detach()
            return sum((torch.tensor(grad) * tensor).sum() + (tensor * tensor).sum()
                       for grad, tensor in zip(row, tensors, strict=True))

        optimizer.step(closure)
        return
    for tensor, grad in zip(tensors, row, strict=True):
        tensor.grad = torch.tensor(grad)
        if method.optimizer.sparse == "only":
            tensor.grad = torch.tensor(grad).to_sparse(1)
    optimizer.step()


BY_TORCH = [(method, options) for method, options in EVERY
            if method.in_torch and not {"eps_mode", "momentum_mode"} & set(options)
            and method.name != "Muon"]  # torch iterates in bfloat16


@pytest.mark.parametrize(("method", "options"), BY_TORCH, ids=name_of)
def test_runs_go_on_in_torch_and_come_back(method, options, tmp_path):
    torch = pytest.importorskip("torch")
    # torch casts numbers like mu_product to the dtype of the parameter when it loads
    dtype = "float32" if method.optimizer.scalar_slots else "float64"
    params, rows = inputs(12, dtype, shapes=shapes(method), skip=False)
    optimizer = method.optimizer(params, **options)
    for row in rows[:4]:
        step(method, optimizer, row)
    tensors, theirs = torch_twin(torch, method, params)
    theirs.load_state_dict(fastopt.to_torch(optimizer.state_dict()))
    for row in rows[4:8]:
        step(method, optimizer, row)
        torch_step(torch, method, theirs, tensors, row)
    close = dict(rtol=2e-5, atol=2e-6) if dtype == "float32" or method.closure else dict(rtol=1e-10, atol=1e-12)
    for param, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), **close)
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    torch.save({"model": dict(zip("ab", (tensor.detach() for tensor in tensors), strict=True)),
                "optimizer_state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "y.pt")
    again = method.optimizer(params)
    assert fastopt.load(tmp_path / "x.pt", again) == {}
    twins = {name: np.zeros_like(param) for name, param in zip("ab", params, strict=True)}
    other = method.optimizer(twins)
    assert fastopt.load(tmp_path / "y.pt", other, params=twins) == {"epoch": 3}
    for row in rows[8:]:
        step(method, again, row)
        step(method, other, row)
        torch_step(torch, method, theirs, tensors, row)
    for param, twin, tensor in zip(params, twins.values(), tensors, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), **close)
        np.testing.assert_allclose(twin, tensor.detach().numpy(), **close)


def test_what_goes_to_torch_is_a_copy():
    pytest.importorskip("torch")
    optimizer, params, _ = trained(ADAM, {})
    tensor = fastopt.to_torch(optimizer.state_dict())["state"][0]["exp_avg"]
    before = everything(optimizer, params)
    tensor.fill_(7.0)
    assert everything(optimizer, params) == before


def test_the_hybrid_and_averages_go_to_torch():
    torch = pytest.importorskip("torch")
    optimizer, params, _ = hybrid()
    saved = fastopt.to_torch(optimizer.state_dict())
    assert set(saved) == {"muon", "adamw"}
    adamw = torch.optim.AdamW([torch.tensor(params[1], requires_grad=True)])
    adamw.load_state_dict(saved["adamw"])
    muon = torch.optim.Muon([torch.tensor(param, requires_grad=True) for param in (params[0], params[2])])
    muon.load_state_dict(saved["muon"])
    assert muon.state_dict()["state"][1]["momentum_buffer"].shape == (2, 2)
    again, _, _ = hybrid(seed=1)
    again.load_state_dict({"muon": muon.state_dict(), "adamw": adamw.state_dict()})
    assert everything(again, params) != everything(hybrid(seed=1)[0], params)

    module = torch.nn.Linear(2, 3)
    ema = fastopt.averages.EMA(dict(module.state_dict()))
    ema.update()
    theirs = torch.optim.swa_utils.AveragedModel(module)
    theirs.load_state_dict(fastopt.to_torch(ema.state_dict()))
    assert int(theirs.n_averaged) == 1


@pytest.mark.parametrize(("change", "message"), [
    (lambda opt: opt.set_stages(lookahead=(2, 0.5)), "slow weights of Lookahead"),
    (lambda opt: opt.accumulate([np.ones((5, 3)), np.ones(7)]), "accumulated gradients"),
    (lambda opt: opt.param_groups[0].update(eps_mode="hat"), "eps_mode='hat', which torch lacks"),
])
def test_what_torch_lacks_is_refused(change, message):
    pytest.importorskip("torch")
    optimizer, _, _ = trained(ADAM, {})
    change(optimizer)
    with pytest.raises(ValueError, match=message):
        fastopt.to_torch(optimizer.state_dict())
    with pytest.raises(ValueError, match="state_dict must be of an optimizer"):
        fastopt.to_torch({"a": 1})


def test_files_of_torch_that_do_not_fit(tmp_path):
    torch = pytest.importorskip("torch")
    optimizer, params, _ = trained(ADAM, {})
    _, theirs = torch_twin(torch, ADAM, params)
    for saved, message in (({"a": 1}, "there are no params"), ([1], "it must be a dict"),
                           ({"optimizer": 3, "model": {}}, "it has 0 params, and 2"),
                           ({"optimizer": theirs.state_dict(), "model": 3}, "params are not"),
                           ({"optimizer": print}, "weights_only=True")):
        torch.save(saved, tmp_path / "x.pt")
        refused(tmp_path / "x.pt", optimizer, params, message)
    whole = copy.copy((tmp_path / "x.pt").read_bytes())
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "x.pt", optimizer, params, "torch cannot load it")


def test_a_file_of_torch_needs_torch(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"x\.pt was written by torch\.save: install torch"):
        fastopt.load(tmp_path / "x.pt")



def test_the_readme_example_runs(tmp_path, monkeypatch):
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.exists():
        pytest.skip("this is no source tree")
    monkeypatch.chdir(tmp_path)
    example, = re.findall(r"```python\n([^`]*?fastopt\.save\([^`]*?)```", readme.read_text())
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["extra"] == {"epoch": 3}
