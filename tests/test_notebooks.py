"""Notebooks of docs/: every cell runs, in order, in an empty folder; none is kept with outputs."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs").glob("**/*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert notebook.stat().st_size < 100_000
    assert any(cell["cell_type"] == "code" for cell in cells)
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # the kernel's and its client's own
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason='pip install -e ".[notebook]"')
    client = pytest.importorskip("nbclient", reason='pip install -e ".[notebook]"')
    specs = tmp_path / "jupyter" / "kernels" / "python3"  # the interpreter of the tests, whatever else is installed
    specs.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (specs / "kernel.json").write_text(json.dumps({"argv": start, "display_name": "tests", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    read = nbformat.read(notebook, as_version=4)
    client.NotebookClient(read, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        (cell.source, kind) for cell in read.cells for out in cell.get("outputs", []) for kind in out.get("data", {})
    ]
    assert any("show-batch" in source and kind == "image/png" for source, kind in shown)
    assert sum("show-policy" in source and kind == "image/png" for source, kind in shown) >= 2
    assert any("labels.html" in source and kind == "text/html" for source, kind in shown)
    for page in ("both.html", "runs/digits/labels.html"):
        assert (tmp_path / page).stat().st_size > 10_000
