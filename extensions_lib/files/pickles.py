"""PyTorch pickles (.pt, .ckpt, .bin, .pth), read for their weights alone.

A pickle is a program. First the names it would call are listed without running it; any name that
is not known to be harmless is refused, by name. Then the shapes are read with stand-ins (no torch),
or the tensors by PyTorch with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickle
import pickletools
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import AGAIN, Header, TensorInfo, foreign_content, opened, short

if TYPE_CHECKING:
    from torch import Tensor

MAX_PICKLE = 256_000_000  # bytes of the pickle program itself; tensors lie outside of it
MAX_DEPTH = 16  # of nested dicts and lists
MAX_ENTRIES = 200_000  # of all dicts and lists together; one list may stand in many places
MAX_NAMES = 50_000_000  # characters of all their dotted names
_CONVERT = "do not open it; get a .safetensors version"
# the first of the five pickles of PyTorch's format before 1.6 (torch.serialization.MAGIC_NUMBER)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_REBUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
# What PyTorch's weights_only accepts and weights need.
_WEIGHTS = frozenset(
    [("torch", name) for name in (*_STORAGES, *_DTYPES, "Size", "device")]
    + [("torch._utils", name) for name in _REBUILDERS]
    + [("torch.storage", "UntypedStorage"), ("torch.nn.parameter", "Parameter")]
    + [("collections", "OrderedDict")]
)
# Harmless things that old checkpoints and embeddings carry along; they are left out, not called.
_INERT = frozenset(
    {
        ("torch.nn.modules.container", "ParameterDict"),
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("__builtin__", "set"),
        ("builtins", "set"),
        ("collections", "defaultdict"),
        ("__builtin__", "dict"),
        ("builtins", "dict"),
    }
)


def pickle_globals(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    """The (module, name) pairs that the next pickle in `stream` would look up. Runs nothing.

    A name that the pickle computes, instead of spelling it, is given as ("", what it does).
    Raises ValueError where the stream is not a pickle.
    """
    memo: dict[int, object] = {}
    last: list[object] = [None, None]  # the two newest values on the stack, where they are texts
    for count, (opcode, operand, _) in enumerate(pickletools.genops(stream)):
        name, argument = opcode.name, cast(Any, operand)
        pushed: object = None
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument > count:
                # the unpickler reserves memory up to this number
                raise ValueError(f"memo index {argument} after {count} instructions")
            memo[argument] = last[-1]
            continue
        if name == "MEMOIZE":
            memo[len(memo)] = last[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            pushed = memo.get(argument)
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = argument.partition(" ")
            yield module, attribute
        elif name == "STACK_GLOBAL":
            if isinstance(last[0], str) and isinstance(last[1], str):
                yield last[0], last[1]
            else:
                yield "", "a name hidden from inspection"
        elif name.startswith("EXT"):
            yield "", f"an entry of the extension registry ({argument})"
        elif isinstance(argument, str) and ("UNICODE" in name or "STRING" in name):
            pushed = argument
        last = [last[1], pushed]


def _refuse_code(path: Path, stream: IO[bytes], inner: str = "") -> bool:
    """Refuses what is neither weights nor harmless; returns whether stand-ins are needed."""
    stand_ins = False
    for module, name in pickle_globals(stream):
        if (module, name) in _INERT:
            stand_ins = True
        elif (module, name) not in _WEIGHTS:
            wanted = short(f"{module}.{name}") if module else name
            where = f" (in {inner})" if inner else ""
            raise FileProblem(
                f"{path}: refused, it is not weights alone: it would call {wanted}{where};"
                f" {_CONVERT}"
            )
    return stand_ins


def names_called(path: Path) -> list[str]:
    """What a PyTorch file would call beyond what weights need, by name; nothing of it is run.

    Raises FileProblem: no file, or none that PyTorch wrote.
    """
    with opened(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"
    found: dict[str, None] = {}
    with _said_of(path), contextlib.ExitStack() as opening:
        if zipped:
            archive = opening.enter_context(zipfile.ZipFile(path))
            names = [n for n in archive.namelist() if n.lower().endswith((".pkl", ".pickle"))]
            streams: list[Any] = [_program(archive, path, name) for name in names]
        else:
            file = opening.enter_context(opened(path))
            streams = [opening.enter_context(_mapped(file))] * 5
        for stream in streams:
            for module, name in pickle_globals(stream):
                if (module, name) not in _INERT and (module, name) not in _WEIGHTS:
                    found[f"{module}.{name}" if module else name] = None
    return list(found)


# --- what kind of pickle file -----------------------------------------------------------------


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Turns whatever a hostile or broken pickle provokes into a FileProblem that names the file."""
    try:
        yield
    except FileProblem:
        raise
    except Exception as error:
        text = short(" ".join(str(error).split()) or type(error).__name__)
        raise FileProblem(f"{path}: is not a readable PyTorch file ({text}); {AGAIN}") from error


def _check(path: Path) -> tuple[bool, bool]:
    """Scans every pickle in the file. Returns (is a zip, needs stand-ins). Raises FileProblem."""
    with opened(path) as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04"):
        return True, _check_zip(path)
    foreign = foreign_content(head)
    if foreign and not head.startswith(b"\x80"):
        raise FileProblem(f"{path}: is {foreign[0]}; {foreign[1]}")
    with _said_of(path), opened(path) as file, _mapped(file) as view:
        if view[257:262] == b"ustar":
            raise FileProblem(f"{path}: is in PyTorch's oldest format (tar); {_CONVERT}")
        _refuse_code(path, view)
        view.seek(0)
        if not head.startswith(b"\x80") or _Stub(view).load() != _LEGACY_MAGIC:
            raise FileProblem(f"{path}: is not a file that PyTorch wrote; {AGAIN}")
        # protocol, system information, the object, the storage keys
        return False, any([_refuse_code(path, view) for _ in range(4)])


@contextlib.contextmanager
def _mapped(file: IO[bytes]) -> Iterator[Any]:
    # a map reads short where a file would first reserve the length that the pickle claims
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def _check_zip(path: Path) -> bool:
    with _said_of(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > 2 * path.stat().st_size + 1_000_000:
            raise FileProblem(f"{path}: would unpack to {total} bytes; it is no PyTorch file")
        names = [member.filename for member in members]
        if len(set(names)) != len(names):
            raise FileProblem(f"{path}: holds two entries of one name; {AGAIN}")
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise FileProblem(f"{path}: is a TorchScript program, not weights; {_CONVERT}")
        if len([name for name in names if name.endswith("/data.pkl")]) != 1:
            raise FileProblem(f"{path}: is a zip archive that PyTorch did not write; unpack it")
        programs = [name for name in names if name.lower().endswith((".pkl", ".pickle"))]
        return any([_refuse_code(path, _program(archive, path, name), name) for name in programs])


def _program(archive: zipfile.ZipFile, path: Path, name: str) -> io.BytesIO:
    if archive.getinfo(name).file_size > MAX_PICKLE:
        raise FileProblem(f"{path}: its {name} is over {MAX_PICKLE} bytes; {AGAIN}")
    return io.BytesIO(archive.read(name))


# --- tensors ----------------------------------------------------------------------------------


def read_pickle(path: Path) -> object:
    """The object in a PyTorch file: dicts, lists, numbers, texts and CPU tensors, nothing else.

    Raises FileProblem: code in it is refused by name.
    """
    zipped, stand_ins = _check(path)
    import torch

    # torch.serialization.load and not torch.load: a host may have replaced the latter by a
    # function that answers None where it refuses.
    options: dict[str, Any] = {"weights_only": True}
    if stand_ins:
        options = {"weights_only": False, "pickle_module": _stand_in_module()}
    elif zipped and _stored_plain(path):
        options["mmap"] = True
    with _said_of(path):
        loaded = torch.serialization.load(str(path), map_location="cpu", **options)
        if loaded is None:
            raise FileProblem(f"{path}: PyTorch refused to load it; {_CONVERT}")
        return _plain(loaded) if stand_ins else loaded


def _stored_plain(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())


class _Inert(dict[Any, Any]):
    """Stands where a harmless object stood; keeps its state, calls nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _forbid(module: str, name: str) -> NoReturn:
    raise pickle.UnpicklingError(f"it would call {module}.{name}")


class _Restricted(pickle.Unpickler):
    """Looks up only what `_WEIGHTS` names; `_INERT` names give stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INERT:
            return _Inert
        if (module, name) in _WEIGHTS:
            return super().find_class(module, name)
        _forbid(module, name)


def _stand_in_module() -> types.ModuleType:
    """The interface of `pickle` that torch.load asks for, over the restricted reader."""
    module = types.ModuleType("restricted_pickle")

    def load(file: IO[bytes], **options: Any) -> object:
        return _Restricted(file, **options).load()

    module.Unpickler = _Restricted  # type: ignore[attr-defined]
    module.load = load  # type: ignore[attr-defined]
    return module


def _plain(value: Any, depth: int = 0, left: list[int] | None = None) -> Any:
    """The object without stand-ins: a ParameterDict becomes a dict, others what items they got.

    Raises ValueError for an object that would unfold to more than the limits above.
    """
    left = [MAX_ENTRIES] if left is None else left
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}, or over {MAX_ENTRIES} entries")
    if isinstance(value, _Inert) and isinstance(value.state, dict):
        value = value.state.get("_parameters") or dict(value)
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1, left) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_plain(item, depth + 1, left) for item in value)
    return value


def flatten(loaded: object, path: Path) -> dict[str, Tensor]:
    """Every tensor of a loaded object under its dotted name; {"state_dict": …} is unwrapped.

    Raises FileProblem if there is none.
    """
    import torch

    found: dict[str, Tensor] = {}
    for name, value in _leaves(loaded, path):
        if isinstance(value, torch.Tensor):
            found[name] = _checked(value.detach(), name, path)
        elif name.endswith(".alpha") and isinstance(value, (int, float)) and abs(value) < 1e30:
            found[name] = torch.tensor(float(value))
    if not found:
        raise FileProblem(f"{path}: holds no tensors; {AGAIN}")
    return found


def _checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A few bytes can be spread over a huge tensor by its strides: such a one is refused."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise FileProblem(f"{path}: '{short(name)}' is no plain tensor ({tensor.layout}); {AGAIN}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise FileProblem(
            f"{path}: '{short(name)}' of shape {list(tensor.shape)} is larger than its data;"
            f" {AGAIN}"
        )
    return tensor


def _leaves(loaded: Any, path: Path) -> Iterator[tuple[str, object]]:
    """Everything in an object that is no dict or list, by its dotted name. Raises FileProblem."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    waiting: list[tuple[str, Any, int]] = [("", loaded, 0)]
    left, characters = MAX_ENTRIES, MAX_NAMES
    while waiting:
        prefix, value, depth = waiting.pop()
        if isinstance(value, Mapping):
            items = list(value.items())
        elif isinstance(value, (list, tuple)) and not isinstance(value, TensorInfo):
            items = list(enumerate(value))
        else:
            yield prefix, value
            continue
        left -= len(items)
        characters -= len(prefix) * len(items)
        if depth > MAX_DEPTH or left < 0 or characters < 0:
            raise FileProblem(
                f"{path}: is nested deeper than {MAX_DEPTH}, or has over {MAX_ENTRIES} entries;"
                f" {AGAIN}"
            )
        named = [(f"{prefix}.{key}" if depth else str(key), item) for key, item in items]
        waiting += [(name, item, depth + 1) for name, item in reversed(named)]


# --- shapes without torch ---------------------------------------------------------------------


def read_pickle_header(path: Path) -> Header:
    """Names, dtypes and shapes of a PyTorch file's tensors, without torch and without its code.

    Raises FileProblem.
    """
    zipped, _ = _check(path)
    with _said_of(path):
        if zipped:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                loaded = _Stub(_program(archive, path, name)).load()
        else:
            with opened(path) as file, _mapped(file) as view:
                loaded = [_Stub(view).load() for _ in range(4)][3]
        leaves = _leaves(_plain(loaded), path)
        tensors = {name: value for name, value in leaves if isinstance(value, TensorInfo)}
    if not tensors:
        raise FileProblem(f"{path}: holds no tensors; {AGAIN}")
    return Header(tensors)


class _Stub(pickle.Unpickler):
    """Reads a pickle with a TensorInfo for each tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INERT or name in ("Size", "device"):
            return _Inert
        if (module, name) not in _WEIGHTS:
            _forbid(module, name)
        if module == "collections":
            return super().find_class(module, name)
        if module == "torch":
            return _STORAGES.get(name) or _DTYPES[name]
        return {"_rebuild_parameter": _stub_parameter, "Parameter": _stub_parameter}.get(
            name, _stub_tensor if name != "UntypedStorage" else "U8"
        )

    def persistent_load(self, saved: Any) -> Any:
        return saved[1]  # ("storage", its dtype, key, device, element count)


def _stub_tensor(storage: Any, offset: object, size: Any, stride: object, *more: Any) -> TensorInfo:
    dtypes = [item for item in more if isinstance(item, str) and item in _DTYPES.values()]
    shape = tuple(size)
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"impossible shape {shape}")
    return TensorInfo(dtypes[0] if dtypes else str(storage), shape, 0, 0)


def _stub_parameter(data: Any, *_: object) -> Any:
    return data
