"""How long each file of tests takes: `python -m tests.seconds JUNIT_XML` writes the table.

`pytest --junitxml JUNIT_XML` measures it. The longest files are given to pytest-xdist's workers
first: else one of them may begin with the longest when the others have nothing left to do.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

TABLE = Path(__file__).with_name("seconds.json")
WORTH_A_LINE = 5  # seconds


def longest_first(items: list) -> None:
    """Put the tests of the files that take longest first, and leave the order within a file."""
    seconds = json.loads(TABLE.read_text())
    root = TABLE.parent.parent
    items.sort(key=lambda item: -seconds.get(item.path.relative_to(root).as_posix(), 0))


def main() -> None:
    total: Counter[str] = Counter()
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        total[case.get("classname", "").replace(".", "/") + ".py"] += float(case.get("time", 0))
    table = {name: round(x) for name, x in total.most_common() if x >= WORTH_A_LINE}
    TABLE.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
