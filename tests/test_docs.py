"""Pages for people who change the code: what they point at exists, and a step is read in as few files as they say."""

import re
import subprocess
import sys
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


def test_the_list_of_commands_is_that_of_the_program() -> None:
    from fastaug.__main__ import commands, line

    text = (ROOT / "docs" / "commands.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \| (.+) \|$", text, flags=re.M) == [(name, line(name)) for name in commands()]


def test_every_page_has_a_place_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": ([\w/]+\.md)$", text.partition("\nnav:")[2], flags=re.M))
    own = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")}
    assert own <= listed
    assert listed - own == {"index.md", "contributing.md", "changelog.md", "security.md"}


def test_the_picture_of_the_first_screen_is_small() -> None:
    head = (ROOT / "README.md").read_text().partition("\n## ")[0]
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", head)
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).stat().st_size <= 150_000


@pytest.mark.slow
def test_the_site_builds_without_a_dead_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason='pip install -e ".[docs]"')
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page: page.read_text() for page in (tmp_path / "site").glob("**/*.html") if page.name != "404.html"}
    dead = [
        (str(page.relative_to(tmp_path)), link)
        for page, text in pages.items()
        for link in re.findall(r'(?:href|src)="([^"#?:]+)(?:[#?][^"]*)?"', text)
        if not (page.parent / link).exists()
    ]
    assert not dead
    unread = [str(page.name) for page, text in pages.items() if re.search(r"<p>(\||- |```|\d+\. )", text)]
    assert not unread  # tables and lists that were taken for text
