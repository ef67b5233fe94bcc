"""Whether a JPEG is of the ordinary kind, by its markers alone: microseconds, nothing is decoded.

Ordinary is a whole baseline file of one scan (ITU-T T.81): 8-bit samples, gray or YCbCr with the
usual subsampling, no bytes where none belong. libjpeg-turbo and Pillow decode these with the same
code to the same pixels, so that decoding each of them to compare is not needed. Damage inside the
entropy-coded data that makes no marker is not seen here.
"""

from __future__ import annotations

import numpy as np

_SOI, _EOI, _SOS, _SOF0, _DRI = 0xD8, 0xD9, 0xDA, 0xC0, 0xDD
_DQT, _DHT, _COM, _APP0, _APP14 = 0xDB, 0xC4, 0xFE, 0xE0, 0xEE
_APP_LAST = 0xEF
_LUMA = ((1, 1), (2, 1), (2, 2))  # sampling factors beside chroma of (1, 1)


def ordinary_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an ordinary JPEG; None for every other file, damaged ones included."""
    if data[:2] != bytes((0xFF, _SOI)) or data[-2:] != bytes((0xFF, _EOI)):
        return None
    position, size, jfif, adobe = 2, None, False, None
    components: list[tuple[int, int, int]] = []
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        position += 2 + length
        if marker == _SOS:
            whole = len(body) == 4 + 2 * len(components) and body[0] == len(components)
            if not (size and whole and _is_entropy_coded(data, position)):
                return None
            return size if _is_gray_or_ycbcr(components, jfif, adobe) else None
        if marker == _SOF0:
            if size or len(body) < 6 or body[0] != 8 or len(body) != 6 + 3 * body[5]:
                return None
            size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            components = [
                (body[i], body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, len(body), 3)
            ]
            if 0 in size:
                return None
        elif marker == _APP0:
            jfif = jfif or body[:5] == b"JFIF\0"
        elif marker == _APP14:
            if body[:5] == b"Adobe" and len(body) >= 12:
                adobe = body[11]
        elif not (marker in (_DQT, _DHT, _COM, _DRI) or _APP0 < marker <= _APP_LAST):
            return None
    return None


def _is_gray_or_ycbcr(
    components: list[tuple[int, int, int]], jfif: bool, adobe: int | None
) -> bool:
    """As libjpeg's `default_decompress_parms` guesses the colours, where all signs agree."""
    if len(components) == 1:
        return True
    if len(components) != 3 or adobe not in (None, 1):
        return False
    named = [identity for identity, _, _ in components] == [1, 2, 3]
    sampling = [(across, down) for _, across, down in components]
    return named and (jfif or adobe == 1) and sampling[0] in _LUMA and sampling[1:] == [(1, 1)] * 2


def _is_entropy_coded(data: bytes, start: int) -> bool:
    """Whether nothing but coded data and restart markers lies between `start` and the last EOI."""
    coded = np.frombuffer(data, np.uint8, offset=start)[:-2]
    after = coded[np.flatnonzero(coded[:-1] == 0xFF) + 1]
    return bool(
        coded.size
        and coded[-1] != 0xFF
        and ((after == 0) | ((after >= 0xD0) & (after <= 0xD7))).all()
    )
