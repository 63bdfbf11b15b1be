"""The lines of starts.jsonl as they are read back."""

from pathlib import Path

from accelerate import Accelerator

from fastaug.training.starts import FILE, read_starts, start_of, this_start


def test_the_last_start_before_an_update_trained_it(tmp_path: Path) -> None:
    lines = ['{"step": 0, "processes": 2}', '{"step": 4, "processes": 1}', "[]", '{"step": 4, "processes": 3}', '{"st']
    (tmp_path / FILE).write_text("\n".join(lines))
    starts = read_starts(tmp_path)
    assert [start["processes"] for start in starts] == [2, 1, 3]
    found = [start_of(starts, step) for step in (0, 3, 4, 9)]
    assert [start and start["processes"] for start in found] == [2, 2, 3, 3]
    assert start_of(starts[1:], 3) is None
    assert read_starts(tmp_path / "gone") == []


def test_a_start_says_what_it_runs_on() -> None:
    start = this_start(Accelerator(cpu=True), 7)
    assert (start["step"], start["processes"], start["precision"]) == (7, 1, "no")
    assert start["device"].startswith("cpu ")
    assert {"torch", "timm"} <= start["versions"].keys()
