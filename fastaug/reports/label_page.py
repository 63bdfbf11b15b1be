"""labels.html: the most suspicious labels of a run on one page, with pictures; ticked rows become a file of labels."""

import base64
import html
import json
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from fastaug.data.build import DataParts
from fastaug.data.index import Index
from fastaug.data.packed.index import PackedIndex
from fastaug.data.shards.layout import ShardIndex
from fastaug.data.splits import ROLES
from fastaug.evaluation.label_estimate import UNEXPLAINED, Interval
from fastaug.reports.label_table import LabelTable

SIDE, PAIRS, SHARES = 96, 30, (0.1, 0.25, 0.5, 1.0, 1.5)  # pixels of a picture; pairs shown; rows of the precision
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:24px auto;color:#1a1a1a}"
    "table{border-collapse:collapse}td,th{padding:3px 14px 3px 0;text-align:left;vertical-align:middle}"
    "td.n{text-align:right}img{display:block;max-width:96px;image-rendering:pixelated}"
    "code,pre{background:#f2f2f2;padding:2px 4px;white-space:pre-wrap}tr.pair{cursor:pointer}"
)
ROW_HEAD = "<tr><th></th><th>given</th><th>looks like</th><th>probability</th><th>score</th><th>id, path</th></tr>"
SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const rows = [...document.querySelectorAll('tr.row')];
const pick = name => document.getElementById(name);
function show() {
  const given = pick('given').value, looks = pick('looks').value, split = pick('split').value;
  let shown = 0;
  for (const row of rows) {
    const hidden = (given && row.dataset.given !== given) || (looks && row.dataset.looks !== looks)
      || row.dataset.split !== split;
    row.hidden = hidden;
    shown += !hidden;
  }
  pick('shown').textContent = shown;
}
function ticked() { return rows.filter(row => row.querySelector('input[type=checkbox]')?.checked); }
function lines() {
  const found = new Map(data.replaced);
  for (const row of ticked()) found.set(+row.dataset.id, row.querySelector('input.name').value);
  return [...found].map(([id, name]) => id + '\\t' + name + '\\n').join('');
}
function check() {
  const names = new Set(data.classes);
  const wrong = ticked().find(row => !names.has(row.querySelector('input.name').value));
  pick('count').textContent = ticked().length;
  pick('wrong').textContent = wrong ? 'no class: ' + wrong.querySelector('input.name').value : '';
  pick('save').disabled = Boolean(wrong);
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines()], {type: 'text/tab-separated-values'}));
  link.download = 'corrected.tsv';
  link.click();
}
for (const name of ['given', 'looks', 'split']) pick(name).addEventListener('change', show);
for (const row of rows) row.addEventListener('input', check);
for (const row of document.querySelectorAll('tr.pair')) row.addEventListener('click', () => {
  pick('given').value = row.dataset.given; pick('looks').value = row.dataset.looks;
  pick('split').value = row.dataset.split; show();
});
pick('all').addEventListener('click', () => {
  for (const row of rows.filter(row => !row.hidden))
    row.querySelectorAll('input[type=checkbox]').forEach(box => { box.checked = true; });
  check();
});
pick('save').addEventListener('click', save);
show(); check();
"""


def page(
    title: str,
    tables: Sequence[LabelTable],
    parts: DataParts,
    pictures: int,
    command: str,
    notes: Sequence[str],
    twins: Sequence[tuple[int, int, float]] = (),
) -> str:
    """The page: of each table its first `pictures` suspicious rows, and what is known of all of them.

    `twins`: images (one, two, how alike) that are nearly the same, of which as many are shown.
    """
    names = [_text(name) for name in parts.classes]
    body = [f"<h1>{_text(title)}</h1>", *(f"<p>{_text(note)}</p>" for note in notes)]
    for table in tables:
        body += [*_summary(table), *_pairs(table, names)]
    body += [_controls(tables, names, pictures), f"<table>{ROW_HEAD}"]
    for table in tables:
        body += [_row(table, i, parts, names) for i in range(min(pictures, table.flagged))]
    body += [
        "</table>",
        *_twins(twins[:pictures], parts, names),
        "<h2>Train with the corrections</h2>",
        f"<pre>{_text(command)}</pre>",
    ]
    data = {"classes": list(parts.classes), "replaced": _replaced(parts)}
    stored = json.dumps(data).replace("<", "\\u003c")
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
    script = f'<script type="application/json" id="data">{stored}</script><script>{SCRIPT}</script>'
    joined = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{joined}\n{script}</body></html>\n'


def _text(text: str) -> str:
    return html.escape(text.encode(errors="backslashreplace").decode(), quote=True)


def _share(interval: Interval) -> str:
    return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _summary(table: LabelTable) -> list[str]:
    """How many labels are wrong, and how many of the first n."""
    kind = "training" if table.split == "train" else table.split
    found = [f"<h2>{len(table)} {kind} images</h2>"]
    told = table.estimate
    if told is None:
        found.append(
            f"<p>{table.flagged} look wrongly labelled. How many are is not estimated: {table.not_estimated()}.</p>"
        )
        return found
    wrong = told.wrong
    planted = int(table.planted.sum())
    found.append(
        f"<p><b>{wrong.value:.0f} labels are wrong</b> (95 % interval {wrong.low:.0f} to {wrong.high:.0f}) of "
        f"{len(told.scores)}, calibrated by {planted} others that were planted wrong and are not listed.</p>"
    )
    if told.unexplained:
        found.append(f"<p><b>But {told.unexplained} look more like another class.</b> {UNEXPLAINED}.</p>")
    rows = []
    for n in sorted({max(1, round(share * wrong.value)) for share in SHARES}):
        if n <= len(told.scores):
            rows.append(f'<tr><td class="n">{n}</td><td>{_share(told.precision(n))}</td></tr>')
    found.append(f"<table><tr><th>of the first</th><th>are wrong (95 %)</th></tr>{''.join(rows)}</table>")
    return found


def _pairs(table: LabelTable, names: Sequence[str]) -> list[str]:
    pairs = table.pairs()
    rows = [
        f'<tr class="pair" data-split="{table.split}" data-given="{a}" data-looks="{b}"><td>{names[a]}</td>'
        f'<td>{names[b]}</td><td class="n">{n}</td></tr>'
        for a, b, n in pairs[:PAIRS]
    ]
    more = [f"<p>and {len(pairs) - PAIRS} further pairs</p>"] if len(pairs) > PAIRS else []
    if not rows:
        return []
    head = (
        "<details><summary>pairs of classes</summary><table><tr><th>given</th><th>looks like</th><th>images</th></tr>"
    )
    return [head, *rows, "</table>", *more, "</details>"]


def _controls(tables: Sequence[LabelTable], names: Sequence[str], pictures: int) -> str:
    options = "".join(f'<option value="{i}">{name}</option>' for i, name in enumerate(names))
    splits = "".join(f'<option value="{table.split}">{table.split}</option>' for table in tables)
    cut = [f"{pictures} of {t.flagged} of {t.split}" for t in tables if t.flagged > pictures]
    more = f"<p>The most suspicious are here: {', '.join(cut)}; labels.csv has all.</p>" if cut else ""
    known = "".join(f'<option value="{name}">' for name in names)
    given, looks = (
        f'<select id="{which}"><option value="">any</option>{options}</select>' for which in ("given", "looks")
    )
    return (
        f'<h2>Images</h2>{more}<p>split <select id="split">{splits}</select> given {given} looks like {looks} '
        '<span id="shown"></span> shown</p><p><button id="all">tick all shown</button> <button id="save">save the '
        f'<span id="count">0</span> ticked as corrected.tsv</button> <span id="wrong"></span></p>'
        f'<datalist id="names">{known}</datalist>'
    )


def _row(table: LabelTable, i: int, parts: DataParts, names: Sequence[str]) -> str:
    assert parts.index is not None
    own, looks = table.samples, int(table.predicted[i])
    given, image = int(own["given"][i]), int(own["id"][i])
    tick = (
        f'<input type="checkbox"> <input class="name" list="names" value="{names[looks]}">'
        if table.split == "train"
        else names[looks]
    )
    return (
        f'<tr class="row" data-split="{table.split}" data-id="{image}" data-given="{given}" data-looks="{looks}">'
        f"<td>{_picture(parts.index, image)}</td><td>{names[given]}</td><td>{tick}</td>"
        f'<td class="n">{float(own["other_probability"][i]):.2f}</td><td class="n">{table.scores[i]:.3f}</td>'
        f"<td>{image} {_text(parts.name_of(image))}</td></tr>"
    )


def _twins(twins: Sequence[tuple[int, int, float]], parts: DataParts, names: Sequence[str]) -> list[str]:
    """Pairs of images that are nearly the same."""
    if not twins:
        return []
    assert parts.index is not None
    rows, given = [], parts.given_labels()
    split = {i: role for role in ROLES for i in parts.splits.of(role).tolist()}
    for one, two, cosine in twins:
        cells = [
            f"<td>{_picture(parts.index, i)}</td><td>{names[given[i]]}</td><td>{split[i]}</td>"
            f"<td>{i} {_text(parts.name_of(i))}</td>"
            for i in (one, two)
        ]
        rows.append(f'<tr>{"".join(cells)}<td class="n">{cosine:.4f}</td></tr>')
    return ["<h2>Nearly the same</h2>", "<table>", *rows, "</table>"]


def _replaced(parts: DataParts) -> list[tuple[int, str]]:
    """What data.labels has replaced already: a new file has to say it again."""
    assert parts.index is not None
    if parts.folder_labels is None:
        return []
    given = parts.given_labels()
    changed = np.flatnonzero(given != parts.folder_labels)
    return [(int(i), parts.classes[given[i]]) for i in changed]


# ---- pictures ----


def _picture(index: Index, image: int) -> str:
    try:
        picture = opened(index, image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return _text(f"cannot be shown: {error}")
    small = picture.width < SIDE and picture.height < SIDE
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = BytesIO()
    kind = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    picture.resize(size, kind).save(file, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def opened(index: Index, image: int) -> Image.Image:
    """An image of the data as it is stored, in RGB."""
    if not isinstance(index, PackedIndex):
        with Image.open(os.path.join(os.fsencode(index.root), index.path(image))) as picture:
            return picture.convert("RGB")
    if isinstance(index, ShardIndex) and index.settings.format == "raw":
        height, width = int(index.heights[image]), int(index.widths[image])
        return Image.fromarray(np.ascontiguousarray(index.pixels(image, 0, 0, height, width)))
    with Image.open(BytesIO(index.encoded(image).tobytes())) as picture:
        return picture.convert("RGB")


def result(tables: Sequence[LabelTable]) -> dict[str, Any]:
    """The figures of the page, for --json."""
    return {table.split: _figures(table) for table in tables}


def _figures(table: LabelTable) -> dict[str, Any]:
    figures: dict[str, Any] = {"images": len(table), "flagged": table.flagged, "planted": int(table.planted.sum())}
    if (told := table.estimate) is not None:
        figures |= {"wrong": told.wrong._asdict(), "recall": told.recall._asdict(), "threshold": told.threshold}
        ns = sorted({min(len(told.scores), max(1, round(share * told.wrong.value))) for share in SHARES})
        figures["precision"] = [{"n": n, **told.precision(n)._asdict()} for n in ns]
    return figures
