"""What the Python tests share: where things are, which programs there are, and an exit code for tests that were skipped."""

import os
import pathlib
import shutil
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The binaries under test; ctest sets it.
BIN = pathlib.Path(os.environ.get("MARCORO_BIN_DIR", ROOT / "build/cpu/bin"))
# Where install.sh --dev puts Python packages that are only needed to check the manifests.
TOOLS = ROOT / "build/tools"

SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def program(*names):
    """The path of the first of these programs that is installed; skips the test otherwise."""
    for name in names:
        path = shutil.which(name, path=f"{TOOLS}/bin:{TOOLS}/venv/bin:{os.environ.get('PATH', '')}")
        if path:
            return path
    raise unittest.SkipTest(f"{' or '.join(names)} is not installed; deploy/install.sh --dev installs it where it can")


def main():
    """Like unittest.main, but leaves with SKIPPED where a test was skipped and none failed."""
    run = unittest.main(exit=False, verbosity=2).result
    if not run.wasSuccessful() or run.testsRun + len(run.skipped) == 0:
        sys.exit(1)
    if run.skipped:
        for test, reason in run.skipped:
            print(f"SKIPPED {test}: {reason}")
        sys.exit(SKIPPED)
