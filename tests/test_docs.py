"""Pages for people who change the code: what they point at exists, and a step is read in as few files as they say."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [str(page.relative_to(ROOT)) for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])]
FOLDERS = "fastaug|benchmarks|tools|tests|recipes|docs"


def pointed_at(page: str) -> list[Path]:
    """What a page links to, or names as a path from the top."""
    text, here = (ROOT / page).read_text(), (ROOT / page).parent
    links = [here / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    return [*links, *(ROOT / path for path in re.findall(rf"[`( ]((?:{FOLDERS})/[\w./-]*[\w/])[`) ]", text))]


def test_links_and_paths_are_found() -> None:
    assert {ROOT / "docs/glossary.md", ROOT / "fastaug/training/loop.py"} <= set(pointed_at("AGENTS.md"))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    assert not sorted({str(path) for path in pointed_at(page) if not path.exists()})
    assert all(find_spec(module) for module in re.findall(r"python -m (benchmarks\.\w+)", text))


def test_a_step_is_read_in_few_files() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, plain, meta = re.split(r"^From the loader to the optimizer.*$|^With a meta step, further:$", text, flags=re.M)
    counts = [len(set(re.findall(r"^\d+\. \[.+?\]\((fastaug/.+?\.py)\)", part, flags=re.M))) for part in (plain, meta)]
    assert 5 < counts[0] <= 12
    assert counts[0] < sum(counts) <= 18
