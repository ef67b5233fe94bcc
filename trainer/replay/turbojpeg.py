"""libjpeg-turbo's TurboJPEG C API through ctypes: accurate DCT, errors told from warnings.

Pillow decodes with the slow integer DCT and fancy chroma upsampling; TurboJPEG does the same
when asked (`TJFLAG_ACCURATEDCT`, no fast upsampling). FFCV's own call asks for the fast DCT and
ignores the return code. The functions are ctypes objects with declared types, so that numba can
call them as well. This module imports neither numba nor torch: packing workers start fast.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_ulong, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from storage.errors import BadImage, UsageError

LIBRARY = "libturbojpeg.so.0"
FLAG_ACCURATE_DCT = 4096
FORMAT_RGB = 0
FORMAT_RGBX = 2
ERROR_WARNING = 0  # tjGetErrorCode: the image was decoded, the data was odd
ERROR_FATAL = 1


class TurboJPEG:
    """The C functions used, with types as in turbojpeg.h (2.0 and newer)."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY)
            self.init = library.tjInitDecompress
            self.header = library.tjDecompressHeader3
            self.decompress = library.tjDecompress2
            self.error_code = library.tjGetErrorCode
            self.destroy = library.tjDestroy
        except (OSError, AttributeError) as error:
            raise UsageError(
                f"{LIBRARY} can't be used ({error}): install the system package libturbojpeg0 "
                "(2.0 or newer), or train with the loader that needs none (torch)"
            ) from error
        address = c_size_t  # plain integers, as numba passes addresses
        self.init.argtypes, self.init.restype = [], c_void_p
        self.header.argtypes = [c_void_p, address, c_ulong] + [address] * 4
        self.decompress.argtypes = [
            c_void_p, address, c_ulong, address, c_int, c_int, c_int, c_int, c_int,
        ]  # fmt: skip
        self.error_code.argtypes = [c_void_p]
        self.destroy.argtypes = [c_void_p]
        for function in (self.header, self.decompress, self.error_code, self.destroy):
            function.restype = c_int


@cache
def load() -> TurboJPEG:
    """The library, loaded once.

    Raises:
        UsageError: it isn't installed or is older than 2.0.
    """
    return TurboJPEG()


def decode(data: bytes, height: int, width: int) -> tuple[npt.NDArray[np.uint8], bool]:
    """Decode a JPEG of known size.

    Returns:
        (uint8 [height, width, 3], whether libjpeg warned about the data).
    Raises:
        BadImage: not decodable, or not of that size.
    """
    library = load()
    source = np.frombuffer(data, np.uint8)
    pixels = np.empty((height, width, 3), np.uint8)
    found = np.zeros(4, np.int32)
    handle = library.init()
    if not handle:
        raise MemoryError("libjpeg-turbo could not make a decoder")
    try:
        status = library.header(
            handle, source.ctypes.data, source.size, *(found.ctypes.data + 4 * i for i in range(4))
        )
        if status != 0 and library.error_code(handle) != ERROR_WARNING:
            raise BadImage("libjpeg-turbo can't read the JPEG header")
        if (found[1], found[0]) != (height, width):
            raise BadImage(f"the JPEG header says {found[0]}x{found[1]}, not {width}x{height}")
        status = library.decompress(
            handle, source.ctypes.data, source.size, pixels.ctypes.data,
            width, 0, height, FORMAT_RGB, FLAG_ACCURATE_DCT,
        )  # fmt: skip
        warned = status != 0
        if warned and library.error_code(handle) != ERROR_WARNING:
            raise BadImage("libjpeg-turbo can't decode the JPEG data")
    finally:
        library.destroy(handle)
    return pixels, warned
