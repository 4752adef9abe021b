"""Kill trainings and encodings at random moments, more often than the test suite does.

`python -m tests.kills --count 40`
"""

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

VARIABLE = "HF_LATENT_TEST_KILLS"
KILLS = int(os.environ.get(VARIABLE, 2))  # per run, before it is left to finish
KILLS_PER_RUN = 5
NAMES = "killed_at_random_moments or killed_denoiser or killed_in_between"


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="kills of each kind")
    environment = os.environ | {VARIABLE: str(KILLS_PER_RUN)}
    folder = str(Path(__file__).parent / "training")
    command = [sys.executable, "-m", "pytest", "-n0", folder, "-k", NAMES]
    for _ in range(0, parser.parse_args().count, KILLS_PER_RUN):
        if status := subprocess.run(command, env=environment).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
