"""numpy arrays and torch tensors as pickles describe them, made without either's constructors.

Known names are inert tokens; `call` and `build` know what numpy and torch mean by each. Every
array is checked against the bytes it is made of, so no shape costs more memory than the file has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.errors import BadRecord

Array = npt.NDArray[Any]

MAX_MADE = 256 << 20  # bytes of all arrays and byte strings that one pickle may make
MAX_AXES = 8
_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
_STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "bf",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "b1",
}  # fmt: skip
_NUMPY_CORE = ("numpy.core.", "numpy._core.")  # before and since numpy 2
_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("collections", "OrderedDict"): "dict",
    ("_codecs", "encode"): "encode",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
    ("torch._utils", "_rebuild_tensor_v2"): "tensor",
    ("torch._utils", "_rebuild_tensor"): "tensor",
    **{(core + "multiarray", "_reconstruct"): "reconstruct" for core in _NUMPY_CORE},
    **{(core + "multiarray", "scalar"): "scalar" for core in _NUMPY_CORE},
    **{(core + "numeric", "_frombuffer"): "frombuffer" for core in _NUMPY_CORE},
    **{("torch", name): f"storage:{code}" for name, code in _STORAGES.items()},
}


@dataclass(frozen=True)
class Token:
    """A known name of a pickle. It stands for a meaning of ours, never for an object."""

    meaning: str


@dataclass(frozen=True)
class Storage:
    """Bytes behind torch tensors. dtype: a numpy code, or "bf" for bfloat16."""

    dtype: str
    data: bytes
    numel: int
    big_endian: bool = False


@dataclass
class _Dtype:
    """numpy.dtype(code), whose byte order comes with BUILD."""

    code: str
    order: str = "<"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class _Pending:
    """numpy's _reconstruct(...), an array only after BUILD."""

    array: Any = None


class ArrayMaker:
    """Carries out the few calls that known names stand for; one for each pickle."""

    def __init__(self) -> None:
        self._made = 0

    def token(self, module: str, name: str) -> Token:
        """The token of a global.

        Raises:
            BadRecord: any name that isn't on the list.
        """
        meaning = _NAMES.get((module, name))
        if meaning is None:
            raise BadRecord(f"asks for {module[:60]}.{name[:60]}, which is no plain data: refused")
        return Token(meaning)

    def finished(self, value: Any) -> Any:
        """The array in the place of its construction; anything else as it is."""
        if isinstance(value, _Pending):
            if value.array is None:
                raise BadRecord("a damaged pickle: an array that is never filled")
            return value.array
        return value

    def call(self, function: Token, arguments: tuple[Any, ...]) -> Any:
        """What a known constructor makes of its arguments."""
        match function.meaning, arguments:
            case "dict", ():
                return {}
            case "bytes", ():
                return b""
            case "encode", (str() as text, "latin1" | "latin-1"):
                self._spend(len(text))
                return text.encode("latin-1")
            case "dtype", (str() as code, *_):
                return _dtype(code)
            case "reconstruct", (Token("ndarray"), tuple(), _):
                return _Pending()
            case "scalar", (_Dtype() as dtype, bytes() as data) if dtype.code != "O8":
                value: int | float = self._array((), dtype, data, False).item()
                return value
            case "frombuffer", (bytes() as data, _Dtype() as dtype, tuple() as shape, str(order)):
                return self._array(shape, dtype, data, order == "F")
            case "tensor", (Storage() as storage, int(offset), tuple(size), tuple(stride), *_):
                return self._tensor(storage, offset, size, stride)
        raise BadRecord(f"a call of {function.meaning!r} with arguments it doesn't take: refused")

    def build(self, target: Any, state: Any) -> None:
        """Fill in what BUILD gives: a dtype's byte order, an array's shape and bytes."""
        match target, state:
            case dict(), dict() if not state:
                return
            case _Dtype(), (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                target.order = {"|": "<", "=": "<"}.get(order, order)
            case _Pending(), (int(), tuple() as shape, _Dtype() as dtype, bool(fortran), data):
                if isinstance(data, str):  # Python 2 wrote its byte strings as such
                    self._spend(len(data))
                    data = data.encode("latin-1")
                if dtype.code == "O8" and isinstance(data, list):
                    target.array = list(data)
                elif isinstance(data, bytes):
                    target.array = self._array(shape, dtype, data, fortran)
                else:
                    raise BadRecord("an array without bytes: refused")
            case _:
                raise BadRecord("state for something that takes none: refused")

    def _array(self, shape: tuple[Any, ...], dtype: _Dtype, data: bytes, fortran: bool) -> Array:
        count = _count(shape)
        if dtype.code == "O8" or count * dtype.numpy().itemsize != len(data):
            raise BadRecord(f"an array of shape {_short(shape)} made of {len(data)} bytes: refused")
        self._spend(len(data))
        values = np.frombuffer(data, dtype.numpy())
        values = values.reshape(shape, order="F" if fortran else "C")
        return np.asarray(values, dtype.numpy().newbyteorder("="))

    def _tensor(
        self, storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]
    ) -> Array:
        count = _count(size)
        plain = all(type(step) is int and step >= 0 for step in stride)
        if not plain or len(stride) != len(size) or offset < 0 or count > storage.numel:
            raise BadRecord(f"a tensor of shape {_short(size)} that its storage doesn't hold")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if count and last >= storage.numel:
            raise BadRecord(f"a tensor of shape {_short(size)} that its storage doesn't hold")
        bfloat = storage.dtype == "bf"
        order = ">" if storage.big_endian else "<"
        dtype = np.dtype(order + ("u2" if bfloat else storage.dtype))
        if len(storage.data) != storage.numel * dtype.itemsize:
            raise BadRecord(f"a storage of {len(storage.data)} bytes for {storage.numel} numbers")
        self._spend(count * 4 if bfloat else count * dtype.itemsize)
        if not count:
            return np.zeros(size, np.float32 if bfloat else dtype.newbyteorder("="))
        flat = np.frombuffer(storage.data, dtype)[offset : last + 1]
        view = np.lib.stride_tricks.as_strided(
            flat, size, [step * dtype.itemsize for step in stride], writeable=False
        )
        values: Array = np.array(view, dtype.newbyteorder("="))
        return np.asarray((values.astype(np.uint32) << 16).view(np.float32)) if bfloat else values

    def _spend(self, size: int) -> None:
        self._made += size
        if self._made > MAX_MADE:
            raise BadRecord(f"a pickle that makes more than {MAX_MADE >> 20} MiB: refused")


def storage_of(identity: Any) -> tuple[str, str, int, Any]:
    """(dtype code, key, numbers, view) of a torch persistent id.

    Raises:
        BadRecord: not a torch storage of a known element type.
    """
    match identity:
        case ("storage", Token(meaning), str(key), str(), int(numel), *rest) if (
            meaning.startswith("storage:") and numel >= 0
        ):
            return meaning.removeprefix("storage:"), key, numel, rest[0] if rest else None
    raise BadRecord("a reference to something that is no torch storage: refused")


def itemsize(code: str) -> int:
    """Bytes of one number of a storage."""
    return 2 if code == "bf" else np.dtype(code).itemsize


def _dtype(code: str) -> _Dtype:
    code = {"?": "b1", "bool": "b1"}.get(code, code).lstrip("<>|=")
    if code not in _DTYPES and code != "O8":
        raise BadRecord(f"an array of type {code[:20]!r}; expected plain numbers")
    return _Dtype(code)


def _count(shape: tuple[Any, ...]) -> int:
    if len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise BadRecord(f"an array of shape {_short(shape)}: refused")
    return math.prod(shape)


def _short(shape: tuple[Any, ...]) -> str:
    return str([n if type(n) is int else "?" for n in shape[:MAX_AXES]])[:80]
