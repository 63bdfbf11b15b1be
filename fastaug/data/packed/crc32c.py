"""CRC-32C (Castagnoli) of byte arrays, as TFRecord files have it, compiled by numba; Python's zlib has another."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # reflected


def masked_crc32c(data: npt.NDArray[np.uint8]) -> int:
    """The CRC of uint8 [N] as TFRecord files store it: turned right by 15 bits and added to a constant."""
    crc = int(_compiled()(data, _tables()))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _tables() -> npt.NDArray[np.uint32]:
    """[8, 256]: what a byte does to the remainder, 0 to 7 bytes before the end of eight that are taken at once."""
    remainder = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        remainder = np.where(remainder & 1, remainder >> 1 ^ np.uint32(_POLYNOMIAL), remainder >> 1)
    tables = [remainder]
    for _ in range(7):
        tables.append(remainder[tables[-1] & 0xFF] ^ tables[-1] >> 8)
    return np.stack(tables)


@cache
def _compiled() -> Callable[..., Any]:
    from numba import njit

    @njit("uint32(Array(uint8, 1, 'C', readonly=True), uint32[:,::1])", nogil=True)
    def crc32c(data, tables):  # type: ignore[no-untyped-def]
        crc = np.uint32(0xFFFFFFFF)
        eights = len(data) // 8 * 8
        for i in range(0, eights, 8):
            low = crc ^ (
                np.uint32(data[i])
                | np.uint32(data[i + 1]) << np.uint32(8)
                | np.uint32(data[i + 2]) << np.uint32(16)
                | np.uint32(data[i + 3]) << np.uint32(24)
            )
            crc = (
                tables[7, low & np.uint32(0xFF)]
                ^ tables[6, low >> np.uint32(8) & np.uint32(0xFF)]
                ^ tables[5, low >> np.uint32(16) & np.uint32(0xFF)]
                ^ tables[4, low >> np.uint32(24)]
                ^ tables[3, data[i + 4]]
                ^ tables[2, data[i + 5]]
                ^ tables[1, data[i + 6]]
                ^ tables[0, data[i + 7]]
            )
        for i in range(eights, len(data)):
            crc = tables[0, (crc ^ np.uint32(data[i])) & np.uint32(0xFF)] ^ crc >> np.uint32(8)
        return crc ^ np.uint32(0xFFFFFFFF)

    compiled: Callable[..., Any] = crc32c
    return compiled
