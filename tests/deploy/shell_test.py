"""Shell scripts parse, pass shellcheck, may be executed, and name nothing that only one machine has."""

import os
import re
import subprocess
import unittest

import harness

SCRIPTS = sorted([*harness.ROOT.glob("deploy/**/*.sh"), *harness.ROOT.glob("tests/**/*.sh"), harness.ROOT / ".ci/run"])


class Scripts(unittest.TestCase):
    def test_they_are_found(self):
        names = {s.relative_to(harness.ROOT).as_posix() for s in SCRIPTS}
        self.assertLessEqual({"deploy/install.sh", "deploy/quickstart.sh", "tests/run.sh", ".ci/run"}, names)

    def test_they_parse(self):
        for script in SCRIPTS:
            run = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual((run.returncode, run.stderr), (0, ""), script)

    def test_they_may_be_executed_and_stop_at_errors(self):
        for script in SCRIPTS:
            self.assertTrue(os.access(script, os.X_OK), script)
            self.assertRegex(script.read_text(encoding="utf-8"), r"(?m)^set -euo pipefail$", script)

    def test_they_name_no_folder_of_one_machine(self):
        for script in SCRIPTS:
            self.assertIsNone(re.search(r"/(home|work|Users)/", script.read_text(encoding="utf-8")), script)

    def test_unknown_options_are_a_usage_error(self):
        for name in ("deploy/install.sh", "deploy/quickstart.sh", "tests/run.sh"):
            run = subprocess.run([harness.ROOT / name, "--no-such-option"], capture_output=True, text=True, timeout=60, check=False)
            self.assertNotEqual(run.returncode, 0, name)
            self.assertIn("usage", run.stderr, name)


class ShellCheck(unittest.TestCase):
    def test_it_finds_nothing(self):
        run = subprocess.run([harness.program("shellcheck"), *SCRIPTS], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(run.returncode, 0, run.stdout)


if __name__ == "__main__":
    harness.main()
