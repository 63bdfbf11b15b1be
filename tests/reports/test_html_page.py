"""Numbers in words, and the frame that lets no other script run."""

import base64
import hashlib
import re

import pytest

from fastaug.reports.html_page import as_number, as_percent, as_seconds, rendered


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.123456, "0.1235"), (-0.5, "−0.5"), (float("nan"), "NaN"), (None, "–"), ("<", "–")],
)
def test_numbers(value, text):
    assert as_number(value) == text


def test_shares_and_times():
    assert as_percent(0.51968) == "51.97 %"
    assert as_percent(-0.05) == "−5.00 %"
    assert as_percent(float("nan")) == "NaN"
    assert as_percent([]) == "–"
    assert [as_seconds(s) for s in (5, 600, 86_400, None)] == ["5.0 s", "10.0 min", "24.0 h", "–"]


def test_everything_is_escaped_and_no_text_too():
    name = '<script>alert(1)</script>\udcff&"'
    page = rendered(
        "policy.html", title=name, notes=[name], pictures=[(name, "data:,")], summaries=[(name, [(name, 1.0)])]
    )
    assert b"<script" not in page
    assert b"\\udcff&amp;&#34;" in page
    page.decode()


def test_the_policy_allows_the_own_script_alone():
    page = rendered("policy.html", script="sort.js", title="", notes=[], pictures=[], summaries=[]).decode()
    script = re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page
    assert "default-src &#39;none&#39;" in page
