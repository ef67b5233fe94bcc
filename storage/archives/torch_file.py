"""Files of torch.save, read and written without torch and without running anything.

Two containers: a zip archive with `data.pkl` and `data/<key>` (torch >= 1.6), and five pickles
followed by the raw storages (older). Which one is told by the first bytes, not by the name: the
label files of FKD end in `.tar` and are neither tar files.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.archives.arrays import Storage, itemsize, storage_of
from storage.archives.errors import BadRecord
from storage.archives.safe_pickle import MAX_BYTES, parse_next_pickle, parse_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_FILE = 256 << 20
MAX_MEMBERS = 1024
_STORAGE_NAMES = {"f4": "FloatStorage", "b1": "BoolStorage", "i8": "LongStorage"}


def read_torch_file(data: bytes) -> Any:
    """The value in a file of torch.save, tensors and arrays as numpy arrays.

    Raises:
        BadRecord: empty, damaged, hostile, or not a file of torch.save.
    """
    if not data:
        raise BadRecord("the file is empty (0 bytes)")
    if len(data) > MAX_FILE:
        raise BadRecord(f"the file has {len(data)} bytes; labels have at most {MAX_FILE}")
    if data[:2] == b"PK":
        return _read_zip(data)
    if data[:1] == b"\x80":
        return _read_legacy(data)
    raise BadRecord(f"begins with {data[:4]!r}; expected a file of torch.save")


def _read_zip(data: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _ZipReader(archive).read()
    except BadRecord:
        raise
    except Exception as error:  # zipfile raises many types on damaged and hostile archives
        raise BadRecord(f"a damaged zip container: {str(error)[:120]}") from error


class _ZipReader:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(members) > MAX_MEMBERS or len(set(names)) < len(names):
            raise BadRecord("a zip container with repeated or too many members: refused")
        if sum(member.file_size for member in members) > MAX_FILE:
            raise BadRecord(f"a zip container that unpacks to more than {MAX_FILE} bytes: refused")
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise BadRecord("a zip container without one data.pkl; expected a file of torch.save")
        self.archive, self.names, self.root = archive, set(names), roots[0]
        self.storages: dict[str, bytes] = {}

    def read(self) -> Any:
        order = b"little"
        if self.root + "byteorder" in self.names:
            order = self._member("byteorder", 16)
        if order not in (b"little", b"big"):
            raise BadRecord(f"byte order {order!r}; expected little or big")
        big = order == b"big"

        def load(identity: Any) -> Storage:
            code, key, numel, _ = storage_of(identity)
            if key not in self.storages:
                self.storages[key] = self._member(f"data/{key}", MAX_FILE)
            return Storage(code, self.storages[key], numel, big)

        return parse_pickle(self._member("data.pkl", MAX_BYTES), load)

    def _member(self, name: str, limit: int) -> bytes:
        name = self.root + name
        if name not in self.names:
            raise BadRecord(f"no member {name[:60]!r} in the zip container")
        info = self.archive.getinfo(name)
        if info.file_size > limit or info.compress_type not in (
            zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED,
        ):  # fmt: skip
            raise BadRecord(f"member {name[:60]!r} is too large or oddly packed: refused")
        with self.archive.open(info) as file:
            data = file.read(limit + 1)
        if len(data) != info.file_size:
            raise BadRecord(f"member {name[:60]!r} has another size than stated")
        return data


def _read_legacy(data: bytes) -> Any:
    stream = io.BytesIO(data)
    if parse_next_pickle(stream) != LEGACY_MAGIC:
        raise BadRecord("a bare pickle; expected a file of torch.save")
    if parse_next_pickle(stream) != LEGACY_PROTOCOL:
        raise BadRecord("a torch file of an unknown old protocol")
    system = parse_next_pickle(stream)
    big = isinstance(system, dict) and system.get("little_endian") is False
    value_start = stream.tell()
    # storages come after the value that refers to them: read once for where it ends ...
    wanted: dict[str, tuple[str, int]] = {}
    zeros = bytes(len(data))

    def note(identity: Any) -> Storage:
        code, key, numel, view = storage_of(identity)
        if wanted.setdefault(key, (code, numel)) != (code, numel):
            raise BadRecord("one storage of two types or sizes: refused")
        if view is not None or sum(n * itemsize(c) for c, n in wanted.values()) > len(data):
            raise BadRecord("a view, or storages larger than the file: refused")
        return Storage(code, zeros[: numel * itemsize(code)], numel)

    parse_next_pickle(stream, note)
    keys = parse_next_pickle(stream)
    if not isinstance(keys, list) or any(not isinstance(key, str) for key in keys):
        raise BadRecord("a damaged torch file: no list of storages")
    found: dict[str, Storage] = {}
    for key in keys:
        if key not in wanted or key in found:
            raise BadRecord("a damaged torch file: a storage that nothing refers to")
        code, numel = wanted[key]
        head, body = stream.read(8), stream.read(numel * itemsize(code))
        if len(head) < 8 or struct.unpack("<q", head)[0] != numel:
            raise BadRecord("a damaged or truncated torch file: a storage of another size")
        found[key] = Storage(code, body, numel, big)
    if len(found) != len(wanted) or stream.read(1):
        raise BadRecord("a damaged or truncated torch file")
    # ... and once more with them
    stream.seek(value_start)
    return parse_next_pickle(stream, lambda identity: found[storage_of(identity)[1]])


def write_torch_file(arrays: Sequence[npt.NDArray[Any]], name: str = "archive") -> bytes:
    """A list of tensors as torch.save writes it; `torch.load(weights_only=True)` reads it.

    Args:
        arrays: float32, bool or int64, any shape.
    """
    pickle, members = [b"\x80\x02]("], []
    for key, array in enumerate(arrays):
        array = np.ascontiguousarray(array)
        code = array.dtype.str[1:]
        strides = [stride // array.itemsize for stride in array.strides]
        pickle += [
            b"ctorch._utils\n_rebuild_tensor_v2\n((", _text("storage"),
            f"ctorch\n{_STORAGE_NAMES[code]}\n".encode(), _text(str(key)), _text("cpu"),
            _number(array.size), b"tQ", _number(0), _tuple(array.shape), _tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]  # fmt: skip
        members.append((f"data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes()))
    pickle.append(b"e.")
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for member, content in [
            ("data.pkl", b"".join(pickle)), ("byteorder", b"little"), *members, ("version", b"3\n"),
        ]:  # fmt: skip
            # a fixed date, so that equal labels give equal files
            archive.writestr(zipfile.ZipInfo(f"{name}/{member}", (1980, 1, 1, 0, 0, 0)), content)
    return output.getvalue()


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"
