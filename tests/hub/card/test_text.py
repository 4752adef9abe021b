import math
import os

import pytest

from hf_latent.hub.card.text import (
    code_block,
    counted,
    duration_text,
    number,
    one_line,
    plain,
    python_string,
    whole,
)


def test_a_text_is_escaped():
    assert plain("a|b`<script>\n# *x* [y](z) \\") == (
        "a\\|b\\`&lt;script&gt; # \\*x\\* \\[y\\](z) \\\\"
    )
    assert plain(None) == ""
    assert plain(0.5) == "0.5"


def test_a_name_that_is_not_utf8_can_be_written():
    name = os.fsdecode(b"caf\xe9\n\xff")
    assert one_line(name) == plain(name) == "caf? ?"
    assert one_line("café \U0001f600") == "café \U0001f600"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1234.567, ".2f", "1234.57"),
        (1234, ",", "1,234"),
        (7, "d", "7"),
        (0, "d", "0"),
        (7.5, "d", None),
        (math.nan, ".2f", None),
        (math.inf, ".2f", None),
        ("7", ".2f", None),
        (True, "d", None),
        (None, ".2f", None),
        ([1], ".2f", None),
    ],
)
def test_only_a_finite_number_is_a_figure(value, form, text):
    assert number(value, form) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 second"),
        (1.4, "1 second"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (7200, "2.0 hours"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_counts():
    assert [counted(x, "image") for x in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]
    assert [counted(x, "image") for x in (None, "1", 1.0, True)] == [None] * 4


def test_nothing_inside_closes_a_block_of_code():
    assert code_block("a: 1\n\n", "yaml") == "```yaml\na: 1\n```"
    assert code_block("a: `x`", "yaml").startswith("```yaml\n")
    assert code_block("a\n```\n# title\n````", "yaml") == "`````yaml\na\n```\n# title\n````\n`````"


def test_what_a_template_wrote_is_not_escaped_again():
    text = plain("a*b")
    assert plain(text) is text
    assert plain(code_block("*", "yaml")) == "```yaml\n*\n```"


def test_a_python_string_keeps_within_its_quotes():
    assert python_string('a"\\') == '"a\\"\\\\"'
    assert python_string("\u202ex") == '"\\u202ex"'


def test_only_a_positive_whole_number_counts():
    assert [whole(x) for x in (3, 0, -1, 2.0, "3", True, None)] == [3, 0, 0, 0, 0, 0, 0]
