"""Pickles as data: an own small stack machine that builds values and can run nothing.

The opcodes are split by the standard library's `pickletools.genops`, which only reads; what they
do is written here. Numbers, text, bytes, lists, tuples and dicts are built, and from a fixed list
of names numpy arrays and torch tensors. Any other global, and every opcode that makes objects of
classes, is refused by name. No name is ever imported or called.

Memory and time are bounded by the size of the pickle: shapes are checked against the bytes that
are there before an array is made, opcodes are counted, and no value is copied more than once.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from storage.archives.arrays import ArrayMaker, Storage, Token
from storage.archives.errors import BadRecord

MAX_BYTES = 64 << 20  # of one pickle; the largest known file (dense FKD, M = 500) has 3 MB
MAX_OPCODES = 2_000_000
_KEYS = (str, int, float, bytes, bool, type(None))  # nested tuples would hash recursively

LoadStorage = Callable[[Any], Storage]
_PLAIN = (str, int, float, bytes, bool, np.ndarray)


class _Mark:
    """Where MARK stood on the stack."""


_MARK = _Mark()


def parse_pickle(data: bytes, load_storage: LoadStorage | None = None) -> Any:
    """The value that a pickle describes.

    Args:
        data: one pickle, from PROTO to STOP; nothing may follow.
        load_storage: gives the bytes of a torch storage for its persistent id.
    Returns:
        None, numbers, str, bytes, list, tuple, dict, numpy arrays of numbers.
    Raises:
        BadRecord: damaged, too large, or anything but plain values and arrays.
    """
    stream = io.BytesIO(data)
    value = parse_next_pickle(stream, load_storage)
    if stream.read(1):
        raise BadRecord("bytes follow the end of the pickle")
    return value


def parse_next_pickle(stream: io.BytesIO, load_storage: LoadStorage | None = None) -> Any:
    """As `parse_pickle`, leaving the stream behind the pickle (legacy torch files hold five)."""
    if len(stream.getbuffer()) > MAX_BYTES:
        raise BadRecord(f"a pickle of more than {MAX_BYTES >> 20} MiB")
    machine = _Machine(load_storage)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise BadRecord(f"a pickle of more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
        return machine.result()
    except BadRecord:
        raise
    except Exception as error:  # genops and damaged operands raise many types
        raise BadRecord(f"a damaged pickle: {type(error).__name__} {str(error)[:80]}") from error


class _Machine:
    """The stack and the memo. Every opcode is a method of its name, or in a table."""

    def __init__(self, load_storage: LoadStorage | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.make = ArrayMaker()
        self.load_storage = load_storage

    def result(self) -> Any:
        """What STOP left."""
        if len(self.stack) != 1:
            raise BadRecord(f"a pickle that leaves {len(self.stack)} values")
        value = self.make.finished(self.stack[0])
        _check_plain(value)
        return value

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[name]())
        elif name in _IGNORED:
            return
        elif name == "BYTEARRAY8":  # numpy arrays of protocol 5
            self.stack.append(bytes(argument))
        else:
            action = _ACTIONS.get(name)
            if action is None:
                raise BadRecord(f"opcode {name}, which makes objects: refused")
            action(self, argument)

    def pop_mark(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise BadRecord("a damaged pickle: no mark on the stack")

    def tuple_of(self, count: int) -> None:
        """Replace the last `count` values by their tuple."""
        if len(self.stack) < count or any(v is _MARK for v in self.stack[-count:]):
            raise BadRecord("a damaged pickle: a tuple of too few values")
        items = tuple(self.make.finished(v) for v in self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def pop(self) -> Any:
        """The last value, never a mark."""
        value = self.stack.pop()
        if value is _MARK:
            raise BadRecord("a damaged pickle: a mark where a value belongs")
        return value

    def op_tuple(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(self.make.finished(v) for v in items))

    def op_list(self, _: Any) -> None:
        self.stack.append([self.make.finished(v) for v in self.pop_mark()])

    def op_append(self, _: Any) -> None:
        item = self.pop()
        self._list().append(self.make.finished(item))

    def op_appends(self, _: Any) -> None:
        items = self.pop_mark()
        self._list().extend(self.make.finished(v) for v in items)

    def op_dict(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def op_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def op_setitems(self, _: Any) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BadRecord("a damaged pickle: items set on something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise BadRecord("a dict key that is neither text nor a number")
            target[key] = self.make.finished(value)

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if type(target) is not list:
            raise BadRecord("a damaged pickle: items added to something that is no list")
        return target

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def op_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def op_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def op_pop(self, _: Any) -> None:
        self.stack.pop()

    def op_pop_mark(self, _: Any) -> None:
        self.pop_mark()

    def op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.make.token(module, name))

    def op_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BadRecord("a damaged pickle: a global whose name is no text")
        self.stack.append(self.make.token(module, name))

    def op_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Token) or not isinstance(arguments, tuple):
            raise BadRecord("a call of something that is no known constructor: refused")
        self.stack.append(self.make.call(function, arguments))

    def op_build(self, _: Any) -> None:
        state = self.pop()
        self.make.build(self.stack[-1], state)

    def op_persistent(self, _: Any) -> None:
        identity = self.pop()
        if self.load_storage is None:
            raise BadRecord("a reference to a torch storage outside a torch file")
        self.stack.append(self.load_storage(identity))


def _check_plain(value: Any) -> None:
    """Nothing that only has a meaning inside the pickle (a name, a mark) is left in a value."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple | dict):
            if id(item) not in seen:
                seen.add(id(item))
                waiting.extend(item.values() if isinstance(item, dict) else item)
        elif item is not None and not isinstance(item, _PLAIN):
            raise BadRecord(f"a value that is no data ({type(item).__name__}): refused")


_PUSH_ARGUMENT = frozenset(
    ["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"]
)  # fmt: skip
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_IGNORED = frozenset(["PROTO", "FRAME", "STOP"])
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.op_mark,
    "POP": _Machine.op_pop,
    "POP_MARK": _Machine.op_pop_mark,
    "TUPLE": _Machine.op_tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.op_list,
    "APPEND": _Machine.op_append,
    "APPENDS": _Machine.op_appends,
    "DICT": _Machine.op_dict,
    "SETITEM": _Machine.op_setitem,
    "SETITEMS": _Machine.op_setitems,
    "MEMOIZE": _Machine.op_memoize,
    "PUT": _Machine.op_put,
    "BINPUT": _Machine.op_put,
    "LONG_BINPUT": _Machine.op_put,
    "GET": _Machine.op_get,
    "BINGET": _Machine.op_get,
    "LONG_BINGET": _Machine.op_get,
    "GLOBAL": _Machine.op_global,
    "STACK_GLOBAL": _Machine.op_stack_global,
    "REDUCE": _Machine.op_reduce,
    "BUILD": _Machine.op_build,
    "BINPERSID": _Machine.op_persistent,
}
