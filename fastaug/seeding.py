"""Randomness as a pure function of (seed, epoch, stream, id): no generator state, nothing to save or restore.

Every draw comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a
counter-based generator: 64 bits of seed are its key; id, epoch, stream and draw number are its counter. A sample
therefore draws the same numbers whatever the batch it is in, the worker that loads it or the rank that trains on it.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IdArray = npt.ArrayLike  # [N] integers in [0, 2**32), see `copies_of`: NumPy array, CPU tensor or list

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers and Weyl constants of the paper
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_BLOCK = 2**14  # ids whose words are drawn at once: the intermediate arrays stay in the processor's cache


class Stream(IntEnum):
    """What a draw is for. Two purposes never share a stream; numbers are part of the reproducibility contract."""

    ORDER = 0
    WINDOW = 1
    FLIP = 2
    SHIFT = 3
    FILL = 4
    MIX = 5
    BOX = 6
    PARTNER = 7
    POLICY = 8
    ERASE = 9
    SPLIT = 10
    MODEL = 11
    CUTOUT = 12
    LEARNED = 13
    META = 14
    NOISE = 15
    AUGMENTER = 20
    PLAIN_STEP = 21
    GATED_AFFINE = 24
    DISTORTION = 30
    PLANT = 40
    SAMPLING = 45
    CORRUPTION = 60
    OCCLUDING_SHIFT = 61
    OCCLUDING_BOX = 62
    TEMPERATURE = 63
    MATCH = 64


class Key(NamedTuple):
    """Names one family of draws: `seed` any 64-bit integer, `epoch` in [0, 2**32), `stream` in [0, 2**16)."""

    seed: int
    epoch: int
    stream: int

    def on(self, stream: int) -> "Key":
        """The same seed and epoch on another stream."""
        return self._replace(stream=int(stream))


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> npt.NDArray[np.uint64]:
    """Philox4x32-10 of `counter` [4, N] (32-bit words held in uint64) under a key of two 32-bit words: words [4, N]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def check_key(key: Key) -> None:
    """ValueError for a key whose numbers have more bits than the generator has for them."""
    bounds = {"seed": (-(2**63), 2**64), "epoch": (0, 2**32), "stream": (0, 2**16)}
    for (name, (low, high)), value in zip(bounds.items(), key, strict=True):
        if not isinstance(value, (int, np.integer)) or not low <= value < high:
            raise ValueError(f"the {name} of a key must be an integer in [{low}, {high}), found {value!r}")


def checked_ids(ids: IdArray) -> npt.NDArray[np.int64]:
    """`ids` as an array [N] int64; ValueError unless they are integers in [0, 2**48) in one row."""
    found = np.asarray(ids)
    if found.size == 0 and found.ndim == 1:  # an empty list is one of floats to NumPy
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"ids must be integers in one row [N], found {found.dtype} {list(found.shape)}; number the samples from 0"
        )
    if found.min() < 0 or found.max() >= 2**48:
        raise ValueError(f"ids must be in [0, 2**48), found {found.min()} to {found.max()}; number the samples from 0")
    return found.astype(np.int64, copy=False)


def words(key: Key, ids: IdArray, draws: int) -> npt.NDArray[np.uint64]:
    """64 random bits for each id and draw: [N, draws] uint64. Draw d of an id does not depend on `draws`.

    ValueError for a key or ids that would draw what others do: see `check_key` and `checked_ids`.
    """
    check_key(key)
    ids = checked_ids(ids).astype(np.uint64)
    low, high = ids & _LOW, ids >> _SHIFT
    calls = -(-draws // 2)  # one call gives 128 bits: two draws
    counter = np.empty((4, len(ids), calls), dtype=np.uint64)
    counter[0] = low[:, None]
    counter[1] = np.uint64(key.epoch)
    counter[2] = np.uint64(int(key.stream)) | (high[:, None] << np.uint64(16))
    counter[3] = np.arange(calls, dtype=np.uint64)
    w = philox(counter.reshape(4, -1), (key.seed & 0xFFFFFFFF, (key.seed >> 32) & 0xFFFFFFFF))
    pairs = np.stack([(w[0] << _SHIFT) | w[1], (w[2] << _SHIFT) | w[3]], axis=-1)
    return pairs.reshape(len(ids), 2 * calls)[:, :draws]


def uniform(key: Key, ids: IdArray, draws: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), 53 bits each: [N, draws] float64, for `key`, `ids` [N] and so many `draws`."""
    return (words(key, ids, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: Key, ids: IdArray, high: npt.ArrayLike, draws: int = 1) -> npt.NDArray[np.int64]:
    """Integers uniform in [0, high): [N, draws] int64; `high` broadcasts (bias below high / 2**53).

    For `key`, `ids` [N] and so many `draws`.
    """
    return np.floor(uniform(key, ids, draws) * np.asarray(high)).astype(np.int64)


def permuted(key: Key, ids: IdArray) -> npt.NDArray[np.int64]:
    """`ids` [N] in the order of a random word each of `key`: [N] int64. The order of two depends on no other.

    Equal words, which 64 bits hardly ever give, keep the order of `ids`. What is sorted is one number each, the word's
    high bits and the id below them, or its place where ids do not ascend: to sort places by words, and to gather ids
    by places, reads memory all over, and left the cache at millions of ids. Equal high bits are told apart afterwards.
    """
    ids = checked_ids(ids)
    ascending = bool((ids[1:] > ids[:-1]).all())
    below = (ids if ascending else np.arange(len(ids))).view(np.uint64)
    low = np.uint64((1 << int(below.max(initial=0)).bit_length()) - 1)
    packed = np.empty_like(below)
    for block in (slice(i, i + _BLOCK) for i in range(0, len(ids), _BLOCK)):
        packed[block] = words(key, ids[block], 1)[:, 0] & ~low | below[block]
    packed.sort()
    runs = ((i, packed[i : i + _BLOCK + 1]) for i in range(0, max(len(ids), 1), _BLOCK))
    equal = np.concatenate([i + np.flatnonzero((run[1:] ^ run[:-1]) <= low) for i, run in runs])
    packed &= low
    order = packed.view(np.int64)
    if len(equal):
        spots = np.union1d(equal, equal + 1)
        tied = order[spots]
        drawn = words(key, tied if ascending else ids[tied], 1)[:, 0]
        order[spots] = tied[np.argsort(drawn, kind="stable")]
    return order if ascending else ids[order]


def copies_of(ids: npt.NDArray[np.int64], copies: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ids to draw for the copies [N] (each in [0, 2**16)) of images `ids` [N]; copy 0 draws what its image draws."""
    return ids | (copies << 32)


def parts_of(draws: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids [N] and copies [N] that `copies_of` made `draws` [N] of."""
    return draws & 0xFFFFFFFF, draws >> 32


def are_first(draws: IdArray) -> npt.NDArray[np.bool_]:
    """Which of `draws` [N] are of copy 0 of their image: [N] bool."""
    return np.asarray(draws) >> 32 == 0


def scalar_seed(key: Key, number: int) -> int:
    """A 63-bit seed for a library that wants one (torch.manual_seed), unique to (key, number)."""
    return int(words(key, [number], 1)[0, 0] >> np.uint64(1))
