"""The frame of all HTML pages: one file that works from the disk, light and dark, on a phone, by keyboard.

A page is a template of templates/ that extends frame.html; everything put into it is escaped. Nothing is fetched, and
a content security policy lets the page's own script run and no other.
"""

import base64
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

NOTHING = "–"  # in place of a number that is not known


def rendered(template: str, **values: Any) -> bytes:
    """The page of `template` with `values`, in UTF-8; bytes of file names that are no text stand as escapes.

    `script`, of `values`: the name of the file of templates/ with the page's script, "" for none.
    """
    script = _script(values.get("script", ""))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {allowed}"
    text = _ENVIRONMENT.get_template(template).render(values | {"script": Markup(script), "policy": policy})
    return text.encode(errors="backslashreplace")


def _script(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8") if name else ""


def finite(value: Any) -> float | None:
    """A number as such; None of what is none, NaN and the infinite among it: files may hold anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def as_number(value: Any, form: str = ".4g") -> str:
    """A number in the format `form`; whole ones with their thousands apart."""
    if (found := finite(value)) is None:
        return "NaN" if isinstance(value, float) else NOTHING
    text = f"{value:,}" if isinstance(value, int) else f"{found:{form}}"
    return f"−{text[1:]}" if text.startswith("-") else text


def as_percent(value: Any) -> str:
    """A share in percent."""
    found = finite(value)
    return as_number(value if found is None else 100 * found, ".2f") + ("" if found is None else " %")


def as_seconds(value: Any) -> str:
    """A time in the units that it is thought in."""
    if (found := finite(value)) is None:
        return as_number(value)
    if found < 120:
        return f"{found:.1f} s"
    return f"{found / 60:.1f} min" if found < 7200 else f"{found / 3600:.1f} h"


def _for_script(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    text = json.dumps(value)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


_TEMPLATES = Path(__file__).resolve().parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "number": as_number,
    "percent": as_percent,
    "seconds": as_seconds,
    "for_script": _for_script,
}
