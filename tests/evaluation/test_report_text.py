import math

import jinja2
import pytest

from hf_latent.evaluation.report_text import format_number, render_template


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (1.234, "{:.2f} dB", "1.23 dB"),
        (15000, "{:,}", "15,000"),
        (None, "{:.2f}", "-"),
        (math.nan, "{:.2f}", "-"),
        (-math.inf, "{:.2f}", "-"),
    ],
)
def test_a_number_that_is_not_finite_is_a_dash(value, form, text):
    assert format_number(value, form) == text


def test_template_blocks_leave_no_empty_lines(tmp_path):
    loop = "{% for x in report.fds %}\n- {{ x | number('{:.1f}') }}\n{% endfor %}\n"
    (tmp_path / "report.md").write_text("# {{ report.data }}\n" + loop)
    filled = render_template(tmp_path / "report.md", {"data": "a <b>", "fds": [1.25, None]})
    assert filled == "# a <b>\n- 1.2\n- -\n"


def test_a_missing_figure_is_an_error(tmp_path):
    (tmp_path / "report.md").write_text("{{ report.fd }}")
    with pytest.raises(jinja2.UndefinedError, match="fd"):
        render_template(tmp_path / "report.md", {})
