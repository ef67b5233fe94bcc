"""Vector loops of the resampler and of what follows it, written as LLVM vector IR for numba.

LLVM's own vectoriser does not find 16-bit multiply-adds in the plain loops (measured 3 times
slower). The IR is generic (no instruction of one processor): on x86 the multiply-and-add of
neighbouring 16-bit lanes becomes `pmaddwd`, elsewhere whatever the target has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROWS = 4  # rows of one horizontal step
COLUMNS = 4  # output pixels of one horizontal step; a row of them is 16 bytes before X is dropped
TAPS = 4  # taps of one horizontal step; weight rows are padded with zeros to a multiple
CHUNK = 32  # bytes of one vertical step
FLOATS = 48  # values of one step of normalisation: whole pixels and whole cache lines
ALIGNMENT = 64  # bytes, of what it writes

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _vector(kind: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(kind, lanes)


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(_vector(_I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, mask)


def _permute(builder: Any, a: Any, lanes: Sequence[int]) -> Any:
    return _shuffle(builder, a, ir.Constant(a.type, ir.Undefined), lanes)


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    kind = _vector(scalar.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return _permute(builder, single, [0] * lanes)


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def _multiply_add_pairs(builder: Any, pixels: Any, weights: Any) -> Any:
    """uint8 [2n], int16 [2n] -> int32 [n]: p[0]*w[0] + p[1]*w[1], p[2]*w[2] + ..."""
    lanes = pixels.type.count
    wide = _vector(_I32, lanes)
    product = builder.mul(
        builder.sext(builder.zext(pixels, _vector(_I16, lanes)), wide),
        builder.sext(weights, wide),
        flags=("nsw",),
    )
    even = _permute(builder, product, range(0, lanes, 2))
    odd = _permute(builder, product, range(1, lanes, 2))
    return builder.add(even, odd)


def _to_bytes(builder: Any, total: Any, shift: Any) -> Any:
    """Arithmetic shift (the rounding half was added before), clip to 0..255, narrow."""
    kind = total.type
    value = builder.ashr(total, _splat(builder, shift, kind.count))
    low, high = ir.Constant(kind, [0] * kind.count), ir.Constant(kind, [255] * kind.count)
    value = builder.select(builder.icmp_signed("<", value, low), low, value)
    value = builder.select(builder.icmp_signed(">", value, high), high, value)
    return builder.trunc(value, _vector(_I8, kind.count))


def _rounding_half(builder: Any, shift: Any) -> Any:
    one = ir.Constant(_I32, 1)
    return builder.shl(one, builder.sub(shift, one))


def _as_word(builder: Any, value: Any, word: Any) -> Any:
    return builder.zext(value, word) if value.type.width < word.width else value


def _kernel(body: Callable[..., None], *parameters: Any) -> tuple[Any, Callable[..., Any]]:
    """What an intrinsic gives numba: a signature, and `body` as its code."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        body(builder, *values)
        return context.get_dummy_value()

    return types.void(*parameters), codegen


def _resized_pixel(
    builder: Any, src: Any, src_pitch: Any, weights: Any, steps: Any, shift: Any
) -> Any:
    """int32 [4 ROWS] sums of one output pixel of `ROWS` rows, four channels after four."""
    word = src.type
    # lanes 0 to 3 are R, G, B, X of taps 0 and 1, lanes 4 to 7 of taps 2 and 3
    start = _shuffle(
        builder, _splat(builder, _rounding_half(builder, shift), 4),
        ir.Constant(_vector(_I32, 4), [0] * 4), range(8),
    )  # fmt: skip
    totals = [cgutils.alloca_once_value(builder, start) for _ in range(ROWS)]
    rows = [src]
    for _ in range(ROWS - 1):
        rows.append(builder.add(rows[-1], src_pitch))
    with cgutils.for_range(builder, steps) as loop:
        index = builder.bitcast(loop.index, word)
        offset = builder.mul(index, ir.Constant(word, 4 * TAPS))
        taps = _load(
            builder,
            builder.add(weights, builder.mul(index, ir.Constant(word, 2 * TAPS))),
            _vector(_I16, TAPS),
        )
        lanes = _permute(builder, taps, [0, 1] * 4 + [2, 3] * 4)
        for row, total in zip(rows, totals, strict=True):
            pixels = _load(builder, builder.add(row, offset), _vector(_I8, 4 * TAPS))
            paired = _permute(
                builder, pixels, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
            )
            pairs = _multiply_add_pairs(builder, paired, lanes)
            builder.store(builder.add(builder.load(total), pairs), total)
    eights = [builder.load(total) for total in totals]
    fours = [
        builder.add(_permute(builder, one, range(4)), _permute(builder, one, range(4, 8)))
        for one in eights
    ]
    return _joined(builder, fours)


def _joined(builder: Any, parts: Sequence[Any]) -> Any:
    """Vectors of equal width, a power of two of them, one after the other."""
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        parts = [_shuffle(builder, parts[i], parts[i + 1], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def _horizontal(
    builder: Any, src: Any, src_pitch: Any, first: Any, weights: Any, stride: Any, steps: Any,
    dst: Any, dst_pitch: Any, shift: Any,
) -> None:  # fmt: skip
    word = src.type
    pixels = []
    for column in range(COLUMNS):
        place = builder.add(first, ir.Constant(word, 8 * column))
        start = builder.mul(_load(builder, place, word), ir.Constant(word, 4))
        sums = _resized_pixel(builder, builder.add(src, start), src_pitch, weights, steps, shift)
        pixels.append(_to_bytes(builder, sums, shift))  # RGBX of each row
        weights = builder.add(weights, stride)
    block = _joined(builder, pixels)  # [COLUMNS, ROWS, RGBX]
    target = dst
    for row in range(ROWS):
        lanes = [
            4 * (ROWS * column + row) + channel for column in range(COLUMNS) for channel in range(3)
        ]
        _store(builder, _permute(builder, block, lanes + lanes[:4]), target)
        target = builder.add(target, dst_pitch)


def _vertical(
    builder: Any, src: Any, src_pitch: Any, weights: Any, pairs: Any, dst: Any, shift: Any
) -> None:
    word = src.type
    total = cgutils.alloca_once_value(
        builder, _splat(builder, _rounding_half(builder, shift), CHUNK)
    )
    with cgutils.for_range(builder, pairs) as loop:
        index = builder.bitcast(loop.index, word)
        row = builder.add(src, builder.mul(index, builder.mul(src_pitch, ir.Constant(word, 2))))
        first = _load(builder, row, _vector(_I8, CHUNK))
        second = _load(builder, builder.add(row, src_pitch), _vector(_I8, CHUNK))
        both = _shuffle(
            builder, first, second, [lane + side for lane in range(CHUNK) for side in (0, CHUNK)]
        )
        taps = _load(
            builder,
            builder.add(weights, builder.mul(index, ir.Constant(word, 4))),
            _vector(_I16, 2),
        )
        sums = _multiply_add_pairs(builder, both, _permute(builder, taps, [0, 1] * CHUNK))
        builder.store(builder.add(builder.load(total), sums), total)
    _store(builder, _to_bytes(builder, builder.load(total), shift), dst)


@intrinsic
def horizontal_step(  # type: ignore[no-untyped-def]
    typingctx, src, src_pitch, first, weights, stride, steps, dst, dst_pitch, shift
):
    """`COLUMNS` output pixels of `ROWS` rows.

    Addresses: `src` of the first row's RGBX pixels, `first` of int64 [COLUMNS], the pixel of each
    output's first tap, `weights` of its int16 [steps * TAPS], `stride` bytes from one to the
    next, `dst` of the first RGB output pixel; 16 bytes are stored there in every row, the last
    four are garbage that the next pixels overwrite.
    """
    addresses = [types.uintp] * 5
    return _kernel(_horizontal, *addresses, types.intp, types.uintp, types.uintp, types.int32)


@intrinsic
def vertical_step(typingctx, src, src_pitch, weights, pairs, dst, shift):  # type: ignore[no-untyped-def]
    """`CHUNK` bytes of one output row from `2 * pairs` rows of uint8.

    Addresses: `src` of the chunk in the first tap's row, `weights` of int16 [2 * pairs].
    """
    addresses = [types.uintp] * 3
    return _kernel(_vertical, *addresses, types.intp, types.uintp, types.int32)


_FLOATS_SIGNATURE = types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.intp)


def _float_loop(past_caches: bool) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        src, scale, shift, dst, steps = values
        kind, word = _vector(ir.FloatType(), FLOATS), src.type
        factor, offset = _load(builder, scale, kind), _load(builder, shift, kind)
        mark = builder.module.add_metadata([ir.Constant(_I32, 1)])
        with cgutils.for_range(builder, steps) as loop:
            done = builder.mul(builder.bitcast(loop.index, word), ir.Constant(word, FLOATS))
            pixels = _load(builder, builder.add(src, done), _vector(_I8, FLOATS))
            product = builder.fmul(builder.uitofp(pixels, kind), factor, flags=("contract",))
            value = builder.fadd(product, offset, flags=("contract",))
            place = builder.add(dst, builder.mul(done, ir.Constant(word, 4)))
            store = builder.store(value, builder.inttoptr(place, kind.as_pointer()))
            store.align = ALIGNMENT
            if past_caches:
                store.set_metadata("nontemporal", mark)
        return context.get_dummy_value()

    return codegen


@intrinsic
def to_floats(typingctx, src, scale, shift, dst, steps):  # type: ignore[no-untyped-def]
    """`FLOATS * steps` bytes -> float32 byte * scale + shift.

    Addresses: `src` of the bytes, `scale` and `shift` of float32 [FLOATS], `dst` of the floats,
    aligned to `ALIGNMENT`.
    """
    return _FLOATS_SIGNATURE, _float_loop(past_caches=False)


@intrinsic
def to_floats_past_caches(typingctx, src, scale, shift, dst, steps):  # type: ignore[no-untyped-def]
    """As `to_floats`, for more than the caches hold: memory is written without being read."""
    return _FLOATS_SIGNATURE, _float_loop(past_caches=True)


@intrinsic
def fetch_add(typingctx, address, amount):  # type: ignore[no-untyped-def]
    """Add to the int64 at an address, whichever threads do so at a time; its value before."""

    def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(values[0], values[1].type.as_pointer())
        return builder.atomic_rmw("add", pointer, values[1], "monotonic")

    return types.int64(types.uintp, types.int64), codegen
