"""Choose the tests to run for a mutant, from the coverage data and the durations of a run."""

from pathlib import Path
from xml.etree import ElementTree

from tests.measure.mutants import Mutant

Contexts = dict[str, dict[int, set[str]]]


def read_contexts(path: Path) -> Contexts:
    """Return the tests that cover each line of each file, by the file's path in the package.

    Lines that ran without a test's name, for example in another process, have an empty set.
    """
    from coverage import CoverageData

    data = CoverageData(str(path))
    data.read()
    contexts: Contexts = {}
    for name in data.measured_files():
        file = name[name.rindex("hf_latent/") :]
        contexts[file] = {
            line: {test for test, _, _ in (x.rpartition("|") for x in found) if test}
            for line, found in data.contexts_by_lineno(name).items()
        }
    return contexts


def read_durations(path: Path) -> dict[str, float]:
    """Return the seconds of each test of a `--junitxml` file, by `durations_key`."""
    return {
        f"{case.get('classname')}.{case.get('name')}": float(case.get("time", 0))
        for case in ElementTree.parse(path).iter("testcase")
    }


def durations_key(test: str) -> str:
    """Return a test's name as junit writes it."""
    path, _, name = test.partition("::")
    head, bracket, parameters = name.partition("[")
    return f"{path.removesuffix('.py')}.{head}".replace("/", ".").replace("::", ".") + (
        bracket + parameters
    )


def choose_tests(
    mutant: Mutant, contexts: Contexts, durations: dict[str, float], seconds: float
) -> list[str]:
    """Return the tests to run for a mutant, the shortest first.

    Args:
        mutant: the changed line.
        contexts: of `read_contexts`.
        durations: of `read_durations`; other tests count as one second.
        seconds: limit for the sum of the durations; the shortest test is always chosen.
    """
    of_file = contexts.get(mutant.path, {})
    first, last = mutant.statement
    covering = set().union(*(of_file.get(line, set()) for line in range(first, last + 1)))
    timed = sorted((durations.get(durations_key(test), 1.0), test) for test in covering)
    chosen: list[str] = []
    for duration, test in timed:
        seconds -= duration
        if chosen and seconds < 0:
            break
        chosen.append(test)
    return chosen


def is_run(mutant: Mutant, contexts: Contexts) -> bool:
    """Return whether any process ran a mutant's statement."""
    first, last = mutant.statement
    return not contexts.get(mutant.path, {}).keys().isdisjoint(range(first, last + 1))
