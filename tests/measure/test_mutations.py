import pytest
from coverage import CoverageData

from tests.measure.covering_tests import (
    choose_tests,
    durations_key,
    is_run,
    read_contexts,
    read_durations,
)
from tests.measure.mutants import Mutant
from tests.measure.mutations import Copy, Result, describe_results, row

MUTANT = Mutant("hf_latent/a.py", 2, "number + 1", "    return (2)", (2, 2))
HEAD = """
import multiprocessing
from hf_latent.a import one

DEFAULT = multiprocessing.get_all_start_methods()[0]
"""
TESTS = {
    "strict": "assert one() == 1",
    "lenient": "assert one() > 0",
    "broken": "assert one() == 3",
    "stuck": "while one() == 2: pass",
    "forking": "assert multiprocessing.get_start_method() == DEFAULT and one() == 1",
}


@pytest.fixture
def copy(tmp_path) -> Copy:
    """A checkout of one function, and a test for each verdict."""
    (tmp_path / "hf_latent").mkdir()
    (tmp_path / "hf_latent" / "a.py").write_text("def one():\n    return 1\n")
    for name, line in TESTS.items():
        text = f"{HEAD}\n\ndef test_it():\n    {line}\n"
        (tmp_path / f"test_{name}.py").write_text(text)
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("names", "verdict", "caught_by"),
    [
        (["lenient", "strict"], "caught", "test_strict.py::test_it"),
        (["lenient"], "survived", ""),
        (["forking"], "caught", "test_forking.py::test_it"),
        (["broken", "strict"], "caught", "test_strict.py::test_it"),
        (["broken"], "not judged", ""),
    ],
)
def test_a_mutant_is_caught_by_a_test_that_passes_without_it(copy, names, verdict, caught_by):
    result = copy.try_mutant(MUTANT, [f"test_{name}.py::test_it" for name in names], 1)
    assert (result.verdict, result.caught_by) == (verdict, caught_by)
    assert (copy.folder / MUTANT.path).read_text() == "def one():\n    return 1\n"


def test_tests_over_the_time_limit_are_killed(copy, monkeypatch):
    monkeypatch.setattr("tests.measure.mutations.MARGIN_SECONDS", 2)
    assert copy.try_mutant(MUTANT, ["test_stuck.py::test_it"], 0).verdict == "timed out"


def test_the_contexts_of_lines_are_the_names_of_tests(tmp_path):
    data = CoverageData(str(tmp_path / "data"))
    for context, lines in {"tests/test_a.py::test_it[a|b]|run": [2, 3], "": [3, 4]}.items():
        data.set_context(context)
        data.add_lines({"/elsewhere/hf_latent/a.py": lines})
    data.write()
    test = "tests/test_a.py::test_it[a|b]"
    assert read_contexts(tmp_path / "data") == {"hf_latent/a.py": {2: {test}, 3: {test}, 4: set()}}


def test_durations_are_found_by_the_name_of_a_test(tmp_path):
    (tmp_path / "report.xml").write_text(
        '<testsuite><testcase classname="tests.b.test_a.TestIt" name="test_it[x.py::y]" '
        'time="1.5"/></testsuite>'
    )
    key = durations_key("tests/b/test_a.py::TestIt::test_it[x.py::y]")
    assert read_durations(tmp_path / "report.xml") == {key: 1.5}


def test_the_shortest_tests_that_cover_a_statement_are_chosen():
    durations = {durations_key(f"t.py::{name}"): seconds for seconds, name in enumerate("abcd")}
    tests = {name: f"t.py::{name}" for name in "abcd"}
    contexts = {"hf_latent/a.py": {1: {tests["d"]}, 2: {tests["c"], tests["b"]}, 3: {tests["a"]}}}
    statement = Mutant("hf_latent/a.py", 2, "", "", (2, 3))
    assert choose_tests(statement, contexts, durations, 9) == [tests[x] for x in "abc"]
    assert choose_tests(statement, contexts, durations, 1) == [tests[x] for x in "ab"]
    assert choose_tests(MUTANT, contexts, durations, 0) == [tests["b"]]
    assert choose_tests(MUTANT, {"hf_latent/a.py": {1: {tests["a"]}}}, {}, 9) == []
    assert choose_tests(MUTANT, {}, {}, 9) == []


def test_a_statement_is_run_if_any_process_ran_one_of_its_lines():
    statement = Mutant("hf_latent/a.py", 2, "", "", (2, 3))
    assert is_run(statement, {"hf_latent/a.py": {3: set()}})
    assert not is_run(statement, {"hf_latent/a.py": {1: {"t.py::a"}, 4: set()}})
    assert not is_run(statement, {})


def test_the_report_counts_the_caught_mutants():
    verdicts = ("caught", "timed out", "survived", "not covered", "not judged")
    assert describe_results(map(Result, verdicts)) == "caught 2 of 4: 50%"
    assert row(1, MUTANT, Result("survived", 3, "", 4.2)) == (
        "| 1 | hf_latent/a.py:2 | number + 1: `return (2)` | survived | 3 | 4 |"
    )
