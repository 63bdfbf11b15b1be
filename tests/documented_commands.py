"""The commands that pages show: found in blocks of code and in prose, and reduced to what is run with which words."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```[\s\S]*?^```|(?:^ {4,}.*\n)+", re.MULTILINE)
PROSE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PYTHON = r"python (?:-m (?:benchmarks|attacks)\.|(?:tools|fastaug|examples|docs)/\S+\.py)"
BEGINS = re.compile(rf"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:srun )?(?:fastaug |accelerate launch |torchrun |{PYTHON})")
LEFT_OUT = {"...", "&", "$keys", "KEYS", "key.path=value", "section.key=value"}  # what stands for more words, or none
STANDS_FOR = {
    "SR": "0.5",
    "IR": "10",
    "NR": "0.1",
    "KIND": "uniform",
    "S": "1",
    "T": "1.5",
    "RUN...": "RUN",
    "RANK": "0",
}


class Command(NamedTuple):
    """What a page shows: `kind` fastaug, python or module; `name` of command, file or module; `words` behind it."""

    kind: str
    name: str
    words: list[str]
    launcher: list[str]  # accelerate launch or torchrun with its options, where there is one
    text: str


def commands(text: str, *, prose: bool = True) -> Iterator[Command]:
    """All commands of a page: those of its blocks of code and, if `prose`, of its text those with words behind them."""
    for block in BLOCK.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in re.split(r" && |; do |; then ", line.strip()):
                if BEGINS.match(part):
                    yield parsed(part)
    for inline in PROSE.findall(BLOCK.sub("\n", text)) if prose else ():
        part = " ".join(inline.split())
        if BEGINS.match(part) and "<" not in part and not re.search(r"COMMAND|NAME|script\.py|train\|| \.\.\.$", part):
            found = parsed(part)
            if found.words and found.name:
                yield found


def parsed(text: str) -> Command:
    """A line of a shell as a command."""
    line = re.split(r" [<>|] ", re.sub(r"^\$ ", "", text))[0]
    line = re.sub(r"\$s\b|\$\{s\}", "0", line)
    words = shlex.split(re.sub(r"^srun ", "", line), comments=True)
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word) or "/" in word.partition("=")[0]]
    usage = bool(re.search(r"\[(--|section)", line))
    cleaned = [STANDS_FOR.get(bare, bare) for word in words if (bare := word.strip("[]") if usage else word)]
    cleaned = [re.sub(r"=S$", "=1", word) for word in cleaned if word not in LEFT_OUT]
    return Command(*split_launcher(cleaned), text=text)


def split_launcher(words: list[str]) -> tuple[str, str, list[str], list[str]]:
    """Kind, name and words of what is run, and the launcher in front of it."""
    launcher: list[str] = []
    if words[0] in ("accelerate", "torchrun"):
        ends = [i for i, word in enumerate(words) if word == "-m" or word.endswith(".py")]
        if not ends:
            return "launcher", "", [], words
        launcher, words = words[: ends[0]], ["python", *words[ends[0] :]]
    if words[0] == "fastaug":
        return "fastaug", words[1], words[2:], launcher
    if words[1] == "-m":
        if words[2] == "fastaug":
            return "fastaug", words[3], words[4:], launcher
        return "module", words[2], words[3:], launcher
    place = Path(words[1])
    if words[1] == "fastaug/train.py":
        return "fastaug", "train", words[2:], launcher
    if place.parts[0] == "tools" and (ROOT / "fastaug" / "commands" / place.name).exists():
        return "fastaug", place.stem.replace("_", "-"), words[2:], launcher
    return "python", words[1], words[2:], launcher
