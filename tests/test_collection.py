"""Tests have the same names in every process: otherwise pytest-xdist runs none."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_another_process_collects_tests_of_the_same_names(request):
    """The process has another time of day and another hash seed."""
    environment = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"],
        env=environment | {"PYTHONHASHSEED": seed},
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    names = done.stdout.splitlines()
    assert sorted({item.nodeid for item in request.session.items} - set(names)) == []
