import ast
from pathlib import Path

import pytest

from tests.measure.mutants import apply, draw_mutants, file_mutants, header

SOURCE = '''"""A module."""

LIMIT = 3


def choose(values: list[int], limit: int = 3) -> int:
    """Choose."""
    # ä counts as two bytes
    if len(values) > limit and "ä" in "äö": return max(limit, 1)
    total = sum(
        x for x in values if x
    )
    return total
'''


def mutants_of(line: str) -> dict[str, str]:
    """The changes of the first line of a function."""
    found = file_mutants(f"def f(a, b):\n    {line}\n", "f.py")
    return {mutant.change: mutant.text.strip() for mutant in found if mutant.line == 2}


@pytest.mark.parametrize(
    ("line", "change", "changed"),
    [
        ("return a == b", "flip comparison", "return (a != b)"),
        ("return a < b", "flip comparison", "return (a <= b)"),
        ("return a is None", "flip comparison", "return (a is not None)"),
        ("return a and b", "swap and/or", "return (a or b)"),
        ("return a - b", "swap operator", "return (a + b)"),
        ("return not a", "drop sign", "return (a)"),
        ("return True", "flip constant", "return (False)"),
        ("return a[1]", "number + 1", "return a[(2)]"),
        ("return a[1]", "number - 1", "return a[(0)]"),
        ("return a['x']", "change text", "return a[('x_')]"),
        ("return max(a, b)", "swap arguments", "return (max(b, a))"),
        ("return a if b else 0", "negate condition", "return a if (not b) else 0"),
        ("return [x for x in a if x]", "negate condition", "return [x for x in a if (not x)]"),
        ("return a", "return None", "return (None)"),
        ("a.clear()", "drop statement", "pass"),
        ("c: dict['a', 1] = a", "drop statement", "pass"),
    ],
)
def test_a_line_is_changed(line, change, changed):
    assert mutants_of(line)[change] == changed


@pytest.mark.parametrize("line", ["'''Text.'''", "c: dict['a', 1]", "return f'{a + 1}'"])
def test_docstrings_annotations_and_parts_of_f_strings_stay(line):
    assert set(mutants_of(line)) <= {"drop statement", "return None"}


def test_only_lines_inside_functions_are_changed_and_bytes_are_not_characters():
    found = list(file_mutants(SOURCE, "a.py"))
    assert {mutant.line for mutant in found} == {9, 11, 13}
    for mutant in found:
        assert ast.dump(ast.parse(apply(mutant, SOURCE))) != ast.dump(ast.parse(SOURCE))
    assert {mutant.statement for mutant in found} == {(9, 9), (10, 12), (13, 13)}


def test_the_header_of_a_compound_statement_ends_before_its_body():
    (statement,) = ast.parse("if (\n    a\n    and b\n):\n    c\n").body
    assert header(statement) == (1, 4)


def test_a_seed_draws_the_same_mutants_of_different_lines(tmp_path):
    package = tmp_path / "hf_latent"
    package.mkdir()
    (package / "a.py").write_text(SOURCE, encoding="utf-8")
    drawn = draw_mutants(package, seed=0, count=2)
    assert drawn == draw_mutants(package, seed=0, count=2)
    assert {Path(mutant.path) for mutant in drawn} == {Path("hf_latent/a.py")}
    assert len({mutant.line for mutant in drawn}) == 2
    assert len(draw_mutants(package, seed=0, count=9)) == 3
