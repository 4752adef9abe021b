"""Draw attacks, and try each on a fresh copy of the folders that commands read."""

import os
import random
import shutil
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from tests import small
from tests.attacks.corruptions import corrupt, is_survived
from tests.attacks.plants import plants_of
from tests.attacks.subjects import SUBJECTS, Outcome, run_command_line, write_subjects


class Attacks:
    """Attacks on all subjects, drawn from a seed."""

    def __init__(self, seed: int):
        self._draw = random.Random(seed)

    def run(self, corruptions: int, plants: int) -> dict[str, Any]:
        """Try as many attacks; return counts, and a line on each that failed."""
        with tempfile.TemporaryDirectory() as temporary, small.small_trainings():
            self._base, self._copy = Path(temporary, "base"), Path(temporary, "copy")
            self._base.mkdir()
            with chdir(self._base):
                write_subjects(self._base, lambda line: run_command_line(line, Path("out")))
            whole = {name: self._try(name) for name in SUBJECTS}
            for name, outcome in whole.items():
                assert outcome.status == 0 and outcome.result, (name, outcome)
            return {
                "corruptions": corruptions,
                "corruption_failures": self._corrupt(corruptions, whole),
                "plants": plants,
                "plant_failures": self._plant(plants),
            }

    def _try(self, name: str) -> Outcome:
        """Run a subject's command in the copy, which is made anew first if it is untouched."""
        if not self._copy.exists():
            shutil.copytree(self._base, self._copy, symlinks=True)
        subject = SUBJECTS[name]
        with chdir(self._copy):
            outcome = run_command_line(subject.command, Path(subject.result), subject.pattern)
        shutil.rmtree(self._copy)
        return outcome

    def _corrupt(self, count: int, whole: dict[str, Outcome]) -> list[str]:
        failures = []
        for number in range(count):
            name = list(SUBJECTS)[number % len(SUBJECTS)]
            shutil.copytree(self._base, self._copy)
            what = corrupt(self._copy, name, self._draw)
            outcome = self._try(name)
            if not is_survived(outcome, whole[name]):
                failures.append(f"{what}: status {outcome.status}, {outcome.errors[-300:]!r}")
        return failures

    def _plant(self, count: int) -> list[str]:
        failures = []
        order = [(name, what) for name in SUBJECTS for what in plants_of(name)]
        for name, what in self._draw.sample(order, count):
            shutil.copytree(self._base, self._copy)
            mark = self._copy.with_name("mark")
            plants_of(name)[what](self._copy / SUBJECTS[name].folder, mark)
            outcome = self._try(name)
            if mark.exists():
                failures.append(f"{name}: {what} ran")
                os.rmdir(mark)
            elif not outcome.is_refusal and outcome.status != 0:
                failures.append(f"{name}: {what}: {outcome.errors[-300:]!r}")
        return failures
