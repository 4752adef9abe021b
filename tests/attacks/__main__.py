"""Attack the commands more often than the test suite does, and write what happened.

`python -m tests.attacks --output docs/reports/attacks.json`
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from tests import test_bad_input
from tests.attacks.attack import Attacks
from tests.attacks.kills import kill


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--corruptions", type=int, default=100)
    parser.add_argument("--plants", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of corruptions and plants")
    parser.add_argument("--output", type=Path, help="the report")
    given = parser.parse_args()
    kills, kill_failures = kill(given.kills)
    bad_input = [sys.executable, "-m", "pytest", "-q", "-n0", test_bad_input.__file__]
    report = {
        "seed": given.seed,
        "bad_inputs": len(test_bad_input.CASES),
        "bad_input_failures": subprocess.run(bad_input).returncode,
        "kills": kills,
        "kill_failures": kill_failures,
        **Attacks(given.seed).run(given.corruptions, given.plants),
    }
    text = json.dumps(report, indent=2) + "\n"
    if given.output:
        given.output.write_text(text)
    print(text, end="")
    return int(any(report[name] for name in report if name.endswith("failures")))


if __name__ == "__main__":
    sys.exit(main())
