"""What mkdocs is told beside mkdocs.yml: pages and sources outside of docs/ get a place in the site, links follow them.

The pages of this folder are read on a code host and as a site. On the host a link is a path in the repository; here a
link that leaves docs/ leads to a page of the site with the file's text, and one to nothing is a warning, which
`mkdocs build --strict` ends with.
"""

import os
import re
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {  # pages at the top of the repository, and where they stand in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "AGENTS.md": "agents.md",
}
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)#:\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"^(?:```[\s\S]*?^```|(?: {4}.*\n)+)", re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".html": "html"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the top, and a page for every file that a page links to outside of docs/."""
    from mkdocs.structure.files import File

    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    pages = [*(ROOT / name for name in PAGES), *DOCS.glob("**/*.md")]
    for path in sorted({linked for page in pages for linked in outside(page)}):
        files.append(File.generated(config, f"source/{path}.md", content=source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page with links that lead to where things stand in the site."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    named = {place: name for name, place in PAGES.items()}
    place = ROOT / named[uri] if uri in named else DOCS / uri
    here = os.path.dirname(uri)

    def moved(match: re.Match[str]) -> str:
        found = in_site(place.parent, match[2])
        return match[0] if found is None else f"{match[1]}{os.path.relpath(found, here or '.')}{match[3] or ''})"

    return outside_of_code(markdown, moved)


def outside_of_code(markdown: str, moved: Any) -> str:
    """`markdown` with links replaced, but for those in blocks of code."""
    texts, end = [], 0
    for block in CODE.finditer(markdown):
        texts += [LINK.sub(moved, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*texts, LINK.sub(moved, markdown[end:])])


def in_site(folder: Path, link: str) -> str | None:
    """The place in the site of what a page in `folder` links to; None for nothing in this repository."""
    path = Path(os.path.normpath(folder / link.replace("\\", "")))
    if not path.is_relative_to(ROOT) or not path.exists():
        return None
    if path.is_relative_to(DOCS) and path.is_file():
        return str(path.relative_to(DOCS))
    name = str(path.relative_to(ROOT))
    return PAGES.get(name, f"source/{name}.md")


def outside(page: Path) -> list[str]:
    """What a page links to outside of docs/, as paths in the repository."""
    found: list[str] = []
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        place = in_site(page.parent, match[2])
        if place is not None and place.startswith("source/"):
            found.append(place.removeprefix("source/").removesuffix(".md"))
    return found


def source_page(name: str) -> str:
    """A page with the text of a file, or with the names of the files of a folder."""
    path = ROOT / name
    head = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {escape(name)}\n\n"
    if path.is_dir():
        inside = sorted(each.name for each in path.iterdir() if not each.name.startswith("__"))
        return head + "".join(f"- `{each}`\n" for each in inside)
    fence = "~" * 8
    return f"{head}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n{fence}\n"
