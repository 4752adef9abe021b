"""Kill trainings and encodings at random moments; each is left to finish at last, and compared."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

VARIABLE = "HF_LATENT_TEST_KILLS"
KILLS = int(os.environ.get(VARIABLE, 2))  # per run, before it is left to finish
KILLS_PER_RUN = 5
NAMES = "killed_at_random_moments or killed_denoiser"


def kill(count: int) -> tuple[int, list[str]]:
    """Kill runs at least `count` times; return how often, and the names of failed tests."""
    environment = os.environ | {VARIABLE: str(KILLS_PER_RUN)}
    folder = str(Path(__file__).parents[1] / "training")
    kills, failures = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "junit.xml")
        command = [sys.executable, "-m", "pytest", "-n0", "-q", folder, "-k", NAMES]
        while kills < count:
            subprocess.run([*command, f"--junitxml={report}"], env=environment)
            cases = list(ElementTree.parse(report).iter("testcase"))
            kills += KILLS_PER_RUN * len(cases)
            failures += [case.get("name", "") for case in cases if len(case)]
    return kills, failures
