"""Measure how many mutants the tests catch.

    python tests/measure/mutations.py --coverage FILE [--durations FILE] [--seed 0] [--count 40]
                                      [--only NUMBER ...] [--tree DIR] [--jobs 1]
                                      [--seconds 60] [--output FILE]

`--coverage` is a data file of `pytest --cov --cov-context=test`, `--durations` the `--junitxml` of
such a run. For each mutant, see `mutants.py`, the tests that cover its statement are run on a copy
of the checkout, the shortest first, for about `--seconds` by their durations; at least one is run.

    caught        a test fails that passes without the change
    timed out     the tests did not end; counted as caught
    survived      no test fails
    not covered   no test runs the statement; counted as not caught
    not judged    the tests fail without the change too, or only processes started by tests run
                  the statement, so the data has no test's name; not counted
"""

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.measure.covering_tests import (
    choose_tests,
    durations_key,
    is_run,
    read_contexts,
    read_durations,
)
from tests.measure.mutants import Mutant, apply, draw_mutants

OWN_TREE = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("pytest", "torch", "accelerate", "datasets", "jsonargparse", "matplotlib.pyplot"),
    *("torchmetrics", "transformers", "diffusers.training_utils"),
    *("diffusers.pipelines.pipeline_utils", "diffusers.models.unets.unet_2d"),
]
MARGIN_SECONDS = 120  # to import torch, on a busy machine
TIMES_SLOWER = 10


@dataclass(frozen=True)
class Result:
    """The verdict on a mutant.

    Attributes:
        verdict: see above.
        tests: number of tests that were run.
        caught_by: the test that failed.
        seconds: of wall-clock time.
    """

    verdict: str
    tests: int = 0
    caught_by: str = ""
    seconds: float = 0.0

    @property
    def is_caught(self) -> bool:
        """Return whether the tests fail because of the change."""
        return self.verdict in ("caught", "timed out")


def run_pytest(folder: Path, options: list[str]) -> None:
    """Run pytest in a new process, which has imported large packages and no module of a tree."""
    os.setsid()
    os.chdir(folder)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    multiprocessing.set_start_method(None, force=True)  # replace the server's method
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # caches confuse files of equal size and second
    sys.path[:] = [str(folder), *(path for path in sys.path if path != str(OWN_TREE))]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # the copy has modules of the same names
    os._exit(pytest.main(options))


@dataclass
class Copy:
    """A copy of a checkout, to change and to test.

    Attributes:
        folder: of the copy; `of` makes it.
    """

    folder: Path
    _passing: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tree: Path, folder: Path) -> "Copy":
        """Copy the files of a checkout that git does not ignore."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
        for name in names.split("\0"):
            if (tree / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((tree / name).read_bytes())
        return cls(folder)

    def run(self, tests: list[str], limit: float) -> list[str] | None:
        """Run tests until one fails.

        Args:
            tests: their names.
            limit: seconds after which they are killed.

        Returns:
            The tests that failed; all, if pytest itself failed; None after the time limit.
        """
        names, report = self.folder / "tests.txt", self.folder / "report.xml"
        names.write_text("\n".join(tests), encoding="utf-8")
        report.unlink(missing_ok=True)
        options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}"]
        options += [f"--basetemp={self.folder}.tmp", f"@{names}"]
        process = FORKS.Process(target=run_pytest, args=(self.folder, options))
        process.start()
        process.join(limit)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return None
        if process.exitcode == 0:
            return []
        failed = set()
        if report.is_file():
            for case in ElementTree.parse(report).iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    failed.add(f"{case.get('classname')}.{case.get('name')}")
        return [test for test in tests if durations_key(test) in failed] or tests

    def try_mutant(self, mutant: Mutant, tests: list[str], expected: float) -> Result:
        """Return whether tests catch a mutant.

        Args:
            mutant: the changed line.
            tests: to run, in this order.
            expected: their seconds without the change.
        """
        path, start = self.folder / mutant.path, time.perf_counter()
        source, count = path.read_text(encoding="utf-8"), len(tests)
        limit = MARGIN_SECONDS + TIMES_SLOWER * expected
        while tests:
            path.write_text(apply(mutant, source), encoding="utf-8")
            failed = self.run(tests, limit)
            path.write_text(source, encoding="utf-8")
            seconds = time.perf_counter() - start
            if failed is None:
                return Result("timed out", count, "", seconds)
            if not failed:
                return Result("survived", count, "", seconds)
            if self._passing.issuperset(failed) or self.run(failed, limit) == []:
                self._passing.update(failed)
                return Result("caught", count, failed[0], seconds)
            tests = [
                test for test in tests if test not in failed
            ]  # these fail without the change too
        return Result("not judged", count, "", time.perf_counter() - start)


def row(number: int, mutant: Mutant, result: Result) -> str:
    """Return a mutant's row of the table."""
    place = f"{mutant.path}:{mutant.line}"
    text = mutant.text.strip().replace("|", "\\|")
    figures = f"{result.tests} | {result.seconds:.0f}"
    return f"| {number} | {place} | {mutant.change}: `{text}` | {result.verdict} | {figures} |"


def describe_results(results: Iterable[Result]) -> str:
    """Return one line with the share of the judged mutants that were caught."""
    caught = [result.is_caught for result in results if result.verdict != "not judged"]
    return f"caught {sum(caught)} of {len(caught)}: {100 * sum(caught) / len(caught):.0f}%"


def main() -> None:
    """Draw mutants of a checkout, and run its tests on each."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--coverage", type=Path, required=True)
    parser.add_argument("--durations", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the mutants to try")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    FORKS.set_forkserver_preload(PRELOADED)
    contexts = read_contexts(arguments.coverage)
    durations = read_durations(arguments.durations) if arguments.durations else {}
    drawn = draw_mutants(arguments.tree.resolve() / "hf_latent", arguments.seed, arguments.count)
    numbers = arguments.only or range(len(drawn))
    results: list[dict] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        copies: Queue[Copy] = Queue()
        for job in range(arguments.jobs):
            copies.put(Copy.of(arguments.tree, Path(name, str(job))))

        def work(mutant: Mutant) -> Result:
            tests = choose_tests(mutant, contexts, durations, arguments.seconds)
            if not tests:
                return Result("not judged" if is_run(mutant, contexts) else "not covered")
            expected = sum(durations.get(durations_key(test), 1.0) for test in tests)
            copy = copies.get()
            try:
                return copy.try_mutant(mutant, tests, expected)
            finally:
                copies.put(copy)

        print("| | line | change | verdict | tests | seconds |\n|---|---|---|---|---|---|")
        done: list[Result] = []
        chosen = [drawn[number] for number in numbers]
        for number, mutant, result in zip(numbers, chosen, pool.map(work, chosen), strict=True):
            print(row(number, mutant, result), flush=True)
            done.append(result)
            results.append({"number": number} | asdict(mutant) | asdict(result))
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{describe_results(done)}")


if __name__ == "__main__":
    main()
