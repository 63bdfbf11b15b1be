"""Paths in one block: lists of byte strings, joined, chosen from, and found in each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastaug.data import path_table
from fastaug.data.path_table import Chosen, PathTable, Places, places_in

NAMES = st.lists(st.binary(max_size=5), max_size=12)


@given(NAMES)
def test_a_path_table_is_a_list_of_byte_strings(names: list[bytes]) -> None:
    table = PathTable.of(names)
    assert (len(table), list(table), list(table[1:])) == (len(names), names, names[1:])
    assert [table[i] for i in range(len(table))] == names
    for wrong in (-1, len(names)):
        with pytest.raises(IndexError):
            table[wrong]


def test_a_long_table_is_gone_through_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_table, "_STRETCH", 3)
    for count in (0, 1, 3, 4, 6, 7):
        names = [b"x" * i for i in range(count)]
        assert list(PathTable.of(names)) == names


@given(st.lists(NAMES, max_size=4))
def test_tables_are_joined(parts: list[list[bytes]]) -> None:
    joined = PathTable.joined([PathTable.of(names) for names in parts])
    assert joined.sound()
    assert list(joined) == [name for names in parts for name in names]


@given(NAMES.filter(bool), st.data())
def test_chosen_strings_are_those_of_their_ids(names: list[bytes], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(names) - 1), max_size=9))
    chosen = Chosen(PathTable.of(names), np.array(ids, np.int64))
    assert list(chosen) == [names[i] for i in ids]
    assert list(chosen[1:3]) == [names[i] for i in ids[1:3]]


@pytest.mark.parametrize("same_hash", [False, True])
@given(known=st.sets(st.binary(max_size=2), max_size=30), wanted=st.lists(st.binary(max_size=2), max_size=30))
def test_strings_are_found_as_in_a_dictionary(same_hash: bool, known: set[bytes], wanted: list[bytes]) -> None:
    names = list(known)
    place = {name: i for i, name in enumerate(names)}
    with pytest.MonkeyPatch.context() as patch:
        if same_hash:
            patch.setattr(path_table, "hash", lambda name: len(name) % 2, raising=False)
        found = Places(PathTable.of(names)).of(wanted)
    assert found.tolist() == [place.get(name, -1) for name in wanted]


@given(st.sets(st.binary(max_size=2), max_size=12), st.sets(st.binary(max_size=2), max_size=12))
def test_places_are_those_of_a_dictionary(known: set[bytes], wanted: set[bytes]) -> None:
    place = {name: i for i, name in enumerate(sorted(known))}
    found = places_in(PathTable.of(sorted(known)), PathTable.of(sorted(wanted)))
    assert found.tolist() == [place.get(name, -1) for name in sorted(wanted)]
