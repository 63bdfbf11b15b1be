"""Tools whose bodies are commands of the package start from a checkout as they always did."""

from collections.abc import Callable
from pathlib import Path

Tool = Callable[..., str]


def test_predict_and_export_start_as_scripts(tiny_run: Path, tmp_path: Path, tool: Tool) -> None:
    file = tiny_run.parent / "images" / "val" / "class0" / "000.jpg"
    assert f"{file}: class" in tool("predict", tiny_run, file, "--top-k", "1")
    assert "timm: read back" in tool("export", tiny_run, "--to", "timm", "--out", tmp_path / "made")
    assert "no such file" in tool("predict", tiny_run, tmp_path / "gone.png", code=3)
