"""Tests have the same names in every process: otherwise pytest-xdist runs none."""

import os
import sys

import pytest

from tests import forked


@pytest.mark.slow
def test_another_process_collects_tests_of_the_same_names(request):
    """The process has another time of day and another hash seed: the server's."""
    environment = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
    seeded = forked.run([sys.executable, "-c", "print(hash('a text'))"], env=environment)
    assert int(seeded.stdout) != hash("a text")
    done = forked.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"],
        env=environment,
        cwd=request.config.rootpath,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    names = done.stdout.splitlines()
    assert sorted({item.nodeid for item in request.session.items} - set(names)) == []
