from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.seeding import Key, Stream, copies_of, integers, permuted, philox, scalar_seed, uniform, words

KEY = Key(seed=0x1234_5678_9ABC, epoch=3, stream=Stream.SHIFT)

# Known answers for philox4x32-10 published with Random123 (kat_vectors): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    got = philox(np.array(counter, dtype=np.uint64)[:, None], key)
    assert tuple(int(w) for w in got[:, 0]) == expected


def test_a_draw_depends_on_key_and_id_alone():
    together = uniform(KEY, [5, 9, 1000], 3)
    alone = uniform(KEY, [9], 3)
    assert (together[1] == alone[0]).all()
    assert (uniform(KEY, [9], 7)[0, :3] == alone[0]).all()
    for other in (KEY.on(Stream.FLIP), KEY._replace(epoch=4), KEY._replace(seed=1)):
        assert (uniform(other, [9], 3) != alone).all()


def test_seeds_differ_in_their_high_bits():
    assert (words(Key(1, 0, 0), [0], 1) != words(Key(1 + (1 << 32), 0, 0), [0], 1)).all()


def test_uniform_is_uniform():
    u = uniform(KEY, np.arange(20_000), 4)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    expected = u.size / 64
    chi2 = ((counts - expected) ** 2 / expected).sum()  # 63 degrees of freedom: mean 63, sd 11.2
    assert chi2 < 63 + 5 * 11.2
    assert abs(np.corrcoef(u.T)[np.triu_indices(4, 1)]).max() < 0.05


def test_integers_cover_their_range():
    drawn = integers(KEY, np.arange(5_000), np.where(np.arange(5_000) % 2, 3, 7)[:, None])
    assert set(drawn[1::2, 0]) == {0, 1, 2}
    assert set(drawn[::2, 0]) == set(range(7))


def test_permuted_is_a_permutation_stable_under_removal():
    ids = np.arange(1000)
    order = permuted(KEY, ids)
    assert sorted(order) == list(ids)
    assert (order != ids).any()
    kept = permuted(KEY, ids[ids % 3 != 0])
    assert (kept == order[order % 3 != 0]).all()
    assert abs(np.corrcoef(order, permuted(KEY._replace(epoch=4), ids))[0, 1]) < 0.15


@settings(max_examples=200)
@given(
    ids=st.lists(st.integers(0, 2**48 - 1) | st.integers(0, 300), max_size=300),
    ascending=st.booleans(),
    kept=st.sampled_from([2**64 - 1, 0xFF, 0xFF << 56, 0xF << 40, 0]),
)
def test_permuted_sorts_by_whole_words_and_then_by_place(ids, ascending, kept):
    ids = np.array(sorted(set(ids)) if ascending else ids, np.int64)

    def few(*args):  # as if the words had no other bits: equal ones, and equal high ones, are common
        return words(*args) & np.uint64(kept)

    with mock.patch("fastaug.seeding.words", few), mock.patch("fastaug.seeding._BLOCK", 4):
        found = permuted(KEY, ids)
    np.testing.assert_array_equal(found, ids[np.argsort(few(KEY, ids, 1)[:, 0], kind="stable")])


@pytest.mark.parametrize("ascending", [True, False])
def test_permuted_sorts_many_as_few(ascending):
    ids = np.flatnonzero(words(KEY.on(Stream.SPLIT), np.arange(100_000), 1)[:, 0] % np.uint64(3))
    ids = ids if ascending else ids[::-1]
    np.testing.assert_array_equal(permuted(KEY, ids), ids[np.argsort(words(KEY, ids, 1)[:, 0], kind="stable")])


def test_scalar_seed_fits_torch():
    seeds = {scalar_seed(KEY, n) for n in range(100)}
    assert len(seeds) == 100
    assert all(0 <= s < 2**63 for s in seeds)


def test_copies_of_an_image_draw_apart_and_the_first_as_the_image_itself():
    ids = np.array([7, 7, 7])
    drawn = uniform(KEY, copies_of(ids, np.arange(3)), 4)
    assert (drawn[0] == uniform(KEY, [7], 4)[0]).all()
    assert len(np.unique(drawn)) == 12
    assert (drawn[1] != uniform(KEY.on(Stream.FILL), [7], 4)[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 2**32}, r"epoch of a key must be an integer in \[0, 4294967296\), found 4294967296"),
        ({"epoch": -1}, "epoch of a key .* found -1"),
        ({"epoch": 1.0}, r"epoch of a key .* found 1\.0"),
        ({"stream": 2**16}, "stream of a key .* found 65536"),
        ({"seed": 2**64}, "seed of a key .* found 18446744073709551616"),
    ],
)
def test_a_key_that_would_draw_what_another_does_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        words(KEY._replace(**change), [1], 1)
    edge = {name: type(value)(value - 1) for name, value in change.items() if value in (2**32, 2**16, 2**64)}
    assert (words(KEY._replace(**edge), [1], 1) == words(KEY._replace(**edge), np.array([1], np.uint8), 1)).all()


@pytest.mark.parametrize("ids", [[0.5], [1.0], [[1, 2]], 3, [True], [-1], [2**48], np.array([2**63], np.uint64)])
def test_what_is_no_row_of_ids_is_refused(ids):
    for draw in (lambda: words(KEY, ids, 1), lambda: uniform(KEY, ids, 2), lambda: permuted(KEY, ids)):
        with pytest.raises(ValueError, match=r"ids must be .*number the samples from 0"):
            draw()


def test_no_ids_draw_nothing():
    assert words(KEY, [], 3).shape == (0, 3)
    assert permuted(KEY, np.array([], np.int32)).shape == (0,)
