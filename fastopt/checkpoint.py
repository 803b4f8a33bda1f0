"""Files that hold a training: optimizers, schedulers, averages, parameters and what a program adds of its own.

A file is in the format of safetensors: eight bytes with the length of a header, the header in JSON, then the arrays,
one after the other. What is no array is JSON in the header's `__metadata__`; nothing is pickled. Tools for safetensors
read the arrays under names such as `optimizer.state.encoder.weight.exp_avg`.
"""

import contextlib
import errno
import fcntl
import glob
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .averages import Average
from .grad_scaler import GradScaler
from .interrupts import uninterrupted
from .kernels.arrays import aligned, as_array
from .kernels.checksum import xxh64
from .lr_scheduler import LRScheduler
from .optimizers.base import Optimizer, Params
from .optimizers.settings import NOT_TORCHS
from .optimizers.state import Given, judging
from .optimizers.tree import flatten

__all__ = ["load", "save", "to_torch"]

Progress = Callable[[int, int], Any]

VERSION = 1
CHUNK = 1 << 20  # bytes that have a checksum, which begins with that before: they stay in cache until they are written
REPORT = 1 << 23  # bytes after which progress is told
SUM = b"0" * 16  # where the checksum of the header stands in it
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes; what the library safetensors reads
# where a dict that torch.save wrote usually has the parts
TORCH_KEYS = {"optimizer": ("optimizer", "optimizer_state_dict"), "scheduler": ("scheduler", "scheduler_state_dict"),
              "ema": ("ema", "ema_state_dict"), "params": ("model", "model_state_dict"),
              "scaler": ("scaler", "scaler_state_dict")}
KINDS = {"optimizer": Optimizer, "scheduler": LRScheduler, "ema": Average, "scaler": GradScaler}


# ---- the two functions


def save(path: str | os.PathLike, optimizer: Any = None, scheduler: Any = None, ema: Any = None, *,
         params: Params = None, scaler: Any = None, extra: Any = None, progress: Progress | None = None) -> None:
    """Writes a training into a file, whole or not at all.

    Args:
        path: of the file. What was there stays whole until the new file is, also if the process is killed or the
            machine stops: it is written beside it under a name of its own (`.name.*.partial`, removed by the next
            `save` if a killed process left it), brought to the disk, and renamed.
        optimizer, scheduler, ema, scaler: an optimizer, a scheduler, an average, a `GradScaler`; or a list of them.
        params: parameters in any structure that an optimizer takes.
        extra: anything made of dicts, lists, tuples, strings, bytes, numbers, None and arrays; comes back as it is.
        progress: is called as `progress(bytes so far, bytes in all)`, some ten times for a gigabyte at least.

    Raises:
        TypeError, ValueError: an argument is not as described, or has an object of another kind.
        OSError: the file cannot be written: no such folder, no permission, no space. The old file is still there.

    The arrays are written from where they are: a large state takes no second memory. Until it is done, a step of the
    optimizer by another thread raises RuntimeError.

    >>> import os, tempfile, numpy as np, fastopt
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "training.safetensors")
    >>> params = {"w": np.ones(3)}
    >>> opt = fastopt.Adam(params, lr=0.1)
    >>> opt.step({"w": np.ones(3)})
    >>> fastopt.save(path, opt, params=params, extra={"epoch": 7})
    >>> again = {"w": np.zeros(3)}
    >>> other = fastopt.Adam(again)
    >>> fastopt.load(path, other, params=again)
    {'epoch': 7}
    >>> again["w"].tolist() == params["w"].tolist(), other.param_groups[0]["lr"], other.step_count
    (True, 0.1, 1)
    >>> folder.cleanup()

    Source of the format: huggingface.co/docs/safetensors.
    """
    parts = given(optimizer, scheduler, ema, scaler)
    arrays = Arrays()
    content: dict[str, Any] = {}
    with contextlib.ExitStack() as held:
        for each in listed(parts.get("optimizer", [])):
            held.enter_context(each.register_step_pre_hook(refuse_step))
        for name, part in parts.items():
            many = [described(arrays, path_of(name, part, i), each) for i, each in enumerate(listed(part))]
            content[name] = many if isinstance(part, (list, tuple)) else many[0]
        if params is not None:
            leaves = [(key, as_array(leaf, f"params[{i}]")) for i, (key, leaf) in enumerate(flatten(params))]
            content["params"] = [[key, arrays.add(f"params.{i if key is None else key}", array)]
                                 for i, (key, array) in enumerate(leaves)]
        content["extra"] = arrays.encoded(extra, "extra")
        write(os.fspath(path), arrays.found, content, progress)


def load(path: str | os.PathLike, optimizer: Any = None, scheduler: Any = None, ema: Any = None, *,
         params: Params = None, scaler: Any = None, progress: Progress | None = None) -> Any:
    """Loads what `save` wrote, into objects made as they were made for it: all of them, or none.

    Args:
        path: of the file; or of one that `torch.save` wrote, if torch is installed: a `state_dict` of an optimizer, or
            a dict with entries `optimizer`, `scheduler`, `ema`, `scaler`, `model` (for `params`), or the same with
            `_state_dict` after them. It is read with `weights_only=True`.
        optimizer, scheduler, ema, scaler: what to load into: each one, or a list, as they were given to `save`. What is
            in the file and not asked for here stays there.
        params: arrays to write the parameters into, matched by name where both sides have names, else in order.
        progress: as for `save`.

    Returns:
        What `extra` was; for a file of torch, a dict of all other entries.

    Raises:
        TypeError, ValueError: the file is damaged, of another version, of another model, or of other optimizers or
            schedulers than these; nothing was changed.
        OSError: the file cannot be read.
        ImportError: it is a file of torch, which is not installed.

    Checksums tell whether a byte was altered by accident. All is judged before anything is changed. A file from a
    stranger can do no harm. Parameters and state have the same bits as when they were saved, whatever the machine.
    State is read into new arrays, which the optimizer takes once all is read; until then it has its old ones, too.

    See `save` for an example.
    """
    path, wanted = os.fspath(path), given(optimizer, scheduler, ema, scaler)
    content = opened(path, {*wanted, *(() if params is None else ("params",)), "extra"}, progress)
    with judging(path):
        commits = [] if params is None else judged_params(content, params)
        for name, part in wanted.items():
            saved = content.get(name)
            if saved is None:
                raise ValueError(f"there is no {name} in it")
            if count(saved) != count(part):
                raise ValueError(f"it has {count(saved)} {name}, and {count(part)} is asked for")
            commits += [judged(path_of(name, part, i), each, its)
                        for i, (each, its) in enumerate(zip(listed(part), listed(saved), strict=True))]
        extra = usual(content.get("extra"))
    with uninterrupted():
        for commit in commits:
            commit()
    for each in listed(optimizer):
        if each is not None:
            for hook in each._load_post.values():
                hook(each)
    return extra


def refuse_step(*_):
    raise RuntimeError("step() while the optimizer is in use by save(): it writes the state from where it is")


def count(part):
    return f"a list of {len(part)} as" if isinstance(part, (list, tuple)) else "one"


def listed(part):
    return part if isinstance(part, (list, tuple)) else [part]


def path_of(name, part, i):
    return f"{name}.{i}" if isinstance(part, (list, tuple)) else name


def given(optimizer, scheduler, ema, scaler):
    """The objects that were given, checked."""
    parts = {"optimizer": optimizer, "scheduler": scheduler, "ema": ema, "scaler": scaler}
    parts = {name: part for name, part in parts.items() if part is not None}
    for name, part in parts.items():
        for each in listed(part):
            if not isinstance(each, KINDS[name]):
                raise TypeError(f"{name} must be of fastopt ({KINDS[name].__name__}) or a list of such, "
                                f"got {type(each).__name__}")
    return parts


# ---- what the objects hold


def described(arrays, path, part):
    """An object as what stands in a file."""
    names = {}  # of the parameters, by the path of what has an entry for each
    if isinstance(part, Optimizer):
        names = {f"{path}{each}": part._plan.names for each in (".state", ".stages.slow", ".stages.accumulated")}
        for name, group in getattr(part, "_parts", {}).items():
            names[f"{path}.{name}.state"] = [part._plan.names[position] for position in group.positions]
    return {"class": type(part).__name__, "state": arrays.encoded(part.state_dict(), path, names)}


def judged(path, part, saved):
    """A function that loads a saved object and cannot fail; raises if it does not fit."""
    if not isinstance(saved, Mapping) or "state" not in saved:
        raise ValueError(f"{path} is not as save() writes it")
    if saved.get("class") not in (None, type(part).__name__):
        raise ValueError(f"{path} is of {saved['class']}, and {type(part).__name__} is asked for")
    state = saved["state"]
    if isinstance(part, GradScaler):
        if part.is_enabled():
            GradScaler().load_state_dict(state)
        return lambda: part.load_state_dict(state)
    if isinstance(part, Optimizer):
        for hook in part._load_pre.values():
            state = hook(part, state) or state
        part._plan.check_idle()
    if isinstance(part, Average):
        part._check_not_swapped("load()")
    fitted = part._fitted(state)
    return lambda: part._adopt(fitted)


def judged_params(content, params):
    """The same for each parameter."""
    saved = content.get("params")
    if saved is None:
        raise ValueError("there are no params in it")
    if not isinstance(saved, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in saved):
        raise ValueError("its params are not as save() writes them")
    leaves = flatten(params)
    if len(saved) != len(leaves):
        raise ValueError(f"it has {len(saved)} params, and {len(leaves)} are asked for")
    names = [name for name, _ in leaves]
    if None not in names and None not in [name for name, _ in saved]:
        arrays = dict(saved)
        if set(arrays) != set(names):
            raise ValueError(f"the parameter {min(set(arrays) ^ set(names))!r} is on one side only")
        saved = [(name, arrays[name]) for name in names]
    commits = []
    for i, ((name, leaf), (_, array)) in enumerate(zip(leaves, saved, strict=True)):
        label = f"parameter {i if name is None else name!r}"
        own = as_array(leaf, label)
        if not isinstance(array, np.ndarray) or array.shape != own.shape or array.dtype != own.dtype:
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{label} is {found} in the file, and {own.dtype} of shape {own.shape} here")
        if not own.flags.writeable:
            raise ValueError(f"{label} is read-only")
        commits.append(lambda own=own, array=array: own.__setitem__(..., array))
    return commits


# ---- values and arrays


class Arrays:
    """Collects the arrays of a tree under names, and puts JSON for everything else."""

    def __init__(self):
        self.found: dict[str, np.ndarray] = {}

    def add(self, path, array):
        """Keeps an array; returns what stands for it."""
        name = path
        while name in self.found:
            name += "'"
        found: dict[str, Any] = {"$array": name}
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{path} is a masked array, which a checkpoint cannot have")
        if array.dtype.kind == "c":  # pairs of reals, which every reader of the format knows
            found["complex"] = True
            array = np.stack([array.real, array.imag], axis=-1) if not array.flags.c_contiguous else (
                array.reshape(-1).view(array.real.dtype).reshape(*array.shape, 2))
        little = array.dtype.newbyteorder("<")
        if little.str not in NAMES:
            raise TypeError(f"{path} is an array of {array.dtype}, which a checkpoint cannot have")
        self.found[name] = np.asarray(array, little)
        return found

    def encoded(self, value, path, names=MappingProxyType({})):
        """A value as JSON has it, from which `decoded` makes it again, exactly."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if abs(value) < 2**53 else {"$int": str(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is complex:
            return {"$complex": [self.encoded(value.real, path), self.encoded(value.imag, path)]}
        if kind is bytes:
            return {"$bytes": value.hex()}
        if isinstance(value, np.ndarray):
            return self.add(path, value)
        if isinstance(value, np.generic):
            return {"$scalar": self.add(path, np.asarray(value))}
        if kind is list or kind is tuple:
            items = [self.encoded(part, self.within(path, i, names), names) for i, part in enumerate(value)]
            return items if kind is list else {"$tuple": items}
        if isinstance(value, Mapping):
            pairs = [(key, self.encoded(part, self.within(path, key, names), names)) for key, part in value.items()]
            if all(type(key) is str and not key.startswith("$") for key, _ in pairs):
                return dict(pairs)
            return {"$dict": [[self.encoded(key, f"a key of {path}"), part] for key, part in pairs]}
        raise TypeError(f"{path} is {kind.__name__}, which a checkpoint cannot have: it has dicts, lists, tuples, "
                        "strings, bytes, numbers, None and arrays")

    @staticmethod
    def within(path, key, names):
        """The path of an entry: what there is for each parameter goes by its name, if it has one."""
        name = names[path][key] if path in names else None
        return f"{path}.{key if name is None else name}"


def decoded(node, arrays):
    """The reverse of `Arrays.encoded`."""
    if isinstance(node, list):
        return [decoded(part, arrays) for part in node]
    if not isinstance(node, dict):
        return node
    mark = next(iter(node), "")
    if not mark.startswith("$"):
        return {key: decoded(part, arrays) for key, part in node.items()}
    value = node[mark]
    if mark == "$array":
        array = arrays.pop(value)  # each stands for itself: two states must not share memory
        if node.get("complex"):
            array = array.view(f"c{2 * array.dtype.itemsize}").reshape(array.shape[:-1])
        return array
    if mark == "$scalar":
        return decoded(value, arrays)[()]
    if mark == "$tuple":
        return tuple(decoded(value, arrays))
    if mark == "$dict":
        return {decoded(key, arrays): decoded(part, arrays) for key, part in value}
    if mark == "$complex":
        return complex(*decoded(value, arrays))
    return {"$int": int, "$float": float, "$bytes": bytes.fromhex}[mark](value)


def usual(node):
    """The same with arrays of NumPy's own class."""
    if isinstance(node, np.ndarray):
        return np.asarray(node)
    if isinstance(node, (list, tuple)):
        return type(node)(map(usual, node))
    return {key: usual(part) for key, part in node.items()} if isinstance(node, dict) else node


# ---- writing


def write(path, arrays, content, progress):
    """Writes the file under another name, and renames it when it is whole and on the disk."""
    target = os.path.realpath(path)
    folder, base = os.path.split(target)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        kind = IsADirectoryError if stat.S_ISDIR(mode) else OSError
        raise kind(errno.EISDIR if kind is IsADirectoryError else errno.EINVAL, "this is no file", path)
    try:
        partial, file = begun(folder, base)
        try:
            with file:
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                fill(file, arrays, content, progress)
                os.fsync(file.fileno())
                os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
        synced(folder)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error


def begun(folder, base):
    """A new file beside the one that is written, locked as long as it is open; those of the dead are removed."""
    start = os.path.join(folder, f".{base[:180]}.")
    for left in glob.glob(glob.escape(start) + "*.partial"):
        with contextlib.suppress(OSError), open(left, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while somebody writes it
            os.unlink(left)
    while True:
        partial = f"{start}{secrets.token_hex(8)}.partial"
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w+b", CHUNK // 8)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # nobody took it for one of the dead
            return partial, file
        file.close()


def synced(folder):
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fill(file, arrays, content, progress):
    """Writes header and arrays; checksums are known at the end, so that memory is read once."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)  # aligned, without gaps
    total, at = sum(array.nbytes for array in arrays.values()), 0
    entries = {}
    for name, array in ordered:
        entries[name] = {"dtype": NAMES[array.dtype.str], "shape": list(array.shape),
                         "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(content, allow_nan=False)
    start = file.seek(8 + len(header(entries, text, [SUM.decode()] * len(entries))))
    tell, sums = Telling(progress, total), []
    for _, array in ordered:
        value = 0
        for chunk in chunks(np.ascontiguousarray(array).reshape(-1).view(np.uint8)):
            value = xxh64(chunk, value)
            file.write(chunk)
            tell(len(chunk))
        sums.append(f"{value:016x}")
    head = header(entries, text, sums)
    if file.tell() != start + total:
        raise OSError(errno.EIO, "the file did not take all bytes")
    file.seek(0)
    file.write(len(head).to_bytes(8, "little") + head)
    file.flush()


class Telling:
    """Tells a function how far it is, now and then and at the end."""

    def __init__(self, progress, total):
        self.progress, self.total, self.done, self.told = progress, total, 0, 0

    def __call__(self, size):
        self.done += size
        if self.progress is not None and (self.done - self.told >= REPORT or self.done == self.total):
            self.told = self.done
            self.progress(self.done, self.total)


def chunks(view):
    """Parts of an array of bytes."""
    for start in range(0, len(view), CHUNK):
        yield view[start : start + CHUNK]


def header(entries, text, sums):
    """The header as bytes, with a checksum of itself."""
    metadata = {"fastopt": str(VERSION), "header": SUM.decode(), "sums": " ".join(sums), "content": text}
    head = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % 64)
    return head.replace(mark(SUM), mark(checksum(head)), 1)


def mark(value):
    return b'"header":"' + value + b'"'


def checksum(head):
    return b"%016x" % xxh64(head)


# ---- reading


def opened(path, names, progress):
    """What is in a file under these names; the whole file is checked."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
            return from_torch(path)
        length, size = int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size
        if len(start) < 8 or not 0 < length <= min(size - 8, LARGEST_HEADER):
            raise ValueError(f"{path}: it is damaged, or no checkpoint of fastopt: it has no header")
        try:
            text, entries = checked_header(file.read(length))
            tree = json.loads(text)
            tree = {name: tree[name] for name in tree if name in names}
            content = decoded(tree, read_arrays(file, entries, set(used(tree)), size - 8 - length, progress))
            return {**content}
        except Unfit as error:
            raise ValueError(f"{path}: {error}") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: it is damaged: {error!r}") from error


def used(node):
    """The names of the arrays in JSON."""
    if isinstance(node, dict):
        if "$array" in node:
            yield node["$array"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from used(part)


class Unfit(ValueError):
    """What is wrong with a file."""


def checked_header(head):
    """What is no array, as text, and the entries of the arrays with their checksums."""
    before = mark(b"")[:-1]
    at = head.find(before) + len(before)
    if before not in head or checksum(head[:at] + SUM + head[at + len(SUM) :]) != head[at : at + len(SUM)]:
        if b'"fastopt"' in head:
            raise Unfit("it is damaged: the checksum of its header is wrong")
        raise Unfit("it is damaged, or no checkpoint of fastopt")
    entries = json.loads(head)
    metadata = entries.pop("__metadata__")
    if metadata["fastopt"] != str(VERSION):
        raise Unfit(f"it is of version {metadata['fastopt']}, and this fastopt reads version {VERSION}")
    return metadata["content"], list(zip(entries.items(), metadata["sums"].split(), strict=True))


def read_arrays(file, entries, wanted, size, progress):
    """The arrays that are wanted, by name; all are checked, and together they are the rest of the file."""
    at, found, tell, scratch = 0, {}, Telling(progress, size), np.empty(CHUNK, np.uint8)
    for (name, entry), expected in entries:
        (start, end), shape, dtype = entry["data_offsets"], entry["shape"], np.dtype(DTYPES[entry["dtype"]])
        if any(type(length) is not int or length < 0 for length in shape) or start != at or (
                end - start != math.prod(shape) * dtype.itemsize):
            raise Unfit(f"it is damaged: {name} is not where it must be")
        if end > size:
            raise Unfit(f"it is damaged: it ends after {size} bytes of data, within {name}")
        memory = None
        if name in wanted:
            memory = aligned((end - start,), np.uint8)
            found[name] = memory.view(dtype).reshape(shape).view(Given)
        value = 0
        for place in range(0, end - start, CHUNK):
            many = min(CHUNK, end - start - place)
            chunk = scratch[:many] if memory is None else memory[place : place + many]
            fill_from(file, chunk)
            value = xxh64(chunk, value)
            tell(many)
        if f"{value:016x}" != expected:
            raise Unfit(f"it is damaged: the checksum of {name} is wrong")
        at = end
    if at != size:
        raise Unfit(f"it is damaged: it has {size - at} bytes too many")
    return found


def fill_from(file, chunk):
    """Reads this number of bytes."""
    done = 0
    while done < len(chunk):
        many = file.readinto(chunk[done:])
        if not many:
            raise Unfit("it is damaged: it has become shorter")
        done += many


# ---- torch


def from_torch(path):
    """The content of a file that torch.save wrote, in the form of ours."""
    try:
        import torch
    except ImportError:
        raise ImportError(f"{path} was written by torch.save: install torch to load it") from None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zip, torch
        raise ValueError(f"{path}: torch cannot load it with weights_only=True: {error}") from error
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path}: it must be a dict, got {type(saved).__name__}")
    if {"state", "param_groups"} <= set(saved) or set(saved) in ({"muon", "adamw"}, {"muon"}, {"adamw"}):
        saved = {"optimizer": saved}
    content, extra = {}, dict(saved)
    for name, keys in TORCH_KEYS.items():
        for key in keys:
            if key in extra and name not in content:
                content[name] = torch_part(name, extra.pop(key), torch)
    return {**content, "extra": extra}


def torch_part(name, saved, torch):
    if name == "params" and isinstance(saved, Mapping):
        return [[key, tensor.numpy() if isinstance(tensor, torch.Tensor) else tensor] for key, tensor in saved.items()]
    if name == "params":
        return saved
    return [{"state": each} for each in saved] if isinstance(saved, (list, tuple)) else {"state": saved}


def to_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turns what `state_dict()` of an optimizer or average returned into what the same one in torch loads.

    Args:
        state_dict: of an optimizer, a `MuonAdamW` (its two parts are converted) or an average.

    Returns:
        The same with tensors for the arrays: copies, so that torch may step them. What torch lacks is
        left out: `step_count`, counters of stages, and options as torch always has them.

    Raises:
        ImportError: torch is not installed.
        TypeError, ValueError: it is no such dict, or it has what would be lost: slow weights of Lookahead,
            accumulated gradients, an `eps_mode` or `momentum_mode` that torch lacks.

    >>> import numpy as np, fastopt
    >>> w = np.ones(3, "float32")
    >>> opt = fastopt.Adam([w], lr=0.1)
    >>> opt.step([np.ones(3, "float32")])
    >>> import torch                                                            # doctest: +SKIP
    >>> theirs = torch.optim.Adam([torch.from_numpy(w).requires_grad_()])       # doctest: +SKIP
    >>> theirs.load_state_dict(fastopt.to_torch(opt.state_dict()))              # doctest: +SKIP

    Source of the layouts: torch.optim 2.13.
    """
    import torch

    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
    stages = state_dict.get("stages", {})
    for key, what in (("slow", "slow weights of Lookahead"), ("weight", "accumulated gradients")):
        if stages.get(key):
            raise ValueError(f"state_dict has {what}, which torch lacks")
    if "n_averaged" in state_dict:
        return {key: torch.tensor(value) for key, value in state_dict.items()}
    if "param_groups" not in state_dict:
        parts = {name: part for name, part in state_dict.items() if name in ("muon", "adamw")}
        if not parts:
            raise ValueError("state_dict must be of an optimizer or of an average")
        return {name: to_torch(part) for name, part in parts.items()}
    groups = []
    for index, group in enumerate(state_dict["param_groups"]):
        for name in NOT_TORCHS & set(group):
            if group[name] not in ("outside", "torch"):
                raise ValueError(f"group {index} has {name}={group[name]!r}, which torch lacks")
        groups.append({name: value for name, value in group.items() if name not in NOT_TORCHS})
    return {"state": {key: tensors(entries, torch) for key, entries in state_dict["state"].items()},
            "param_groups": tensors(groups, torch)}


def tensors(node, torch):
    """The same with copies of the arrays as tensors."""
    if isinstance(node, np.ndarray):
        return torch.tensor(node)
    if isinstance(node, (list, tuple)):
        return type(node)(tensors(part, torch) for part in node)
    return {key: tensors(part, torch) for key, part in node.items()} if isinstance(node, dict) else node
