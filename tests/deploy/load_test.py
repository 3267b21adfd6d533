"""The load scenarios pass against a server with a small limit, and fail where they should."""

import subprocess
import sys
import tempfile
import time
import unittest

import harness
from quickstart_test import free_ports

SCENARIOS = harness.ROOT / "tests/load/scenarios.py"


class Scenarios(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not (harness.BIN / "marcoro").exists():
            raise unittest.SkipTest(f"the binaries are not in {harness.BIN}")
        cls.ghz = harness.program("ghz")
        cls.address = f"127.0.0.1:{free_ports()[0]}"
        cls.log = tempfile.TemporaryFile("w+")
        cls.addClassCleanup(cls.log.close)
        cls.server = subprocess.Popen([harness.BIN / "marcoro", "serve", "--model", harness.ROOT / "tests/data/tiny", "--tp", "2", "--listen",
                                       cls.address, "--metrics=", "--max-requests", "64"], stdout=cls.log, stderr=subprocess.STDOUT)
        cls.addClassCleanup(cls.stop)
        deadline = time.monotonic() + 120
        while "ready: " not in cls.output():
            if cls.server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(cls.output())
            time.sleep(0.05)  # between two looks

    @classmethod
    def output(cls):
        cls.log.seek(0)
        return cls.log.read()

    @classmethod
    def stop(cls):
        cls.server.terminate()
        cls.server.wait(timeout=60)

    def run_scenarios(self, *arguments):
        return subprocess.run([sys.executable, SCENARIOS, "--address", self.address, "--bench", harness.BIN / "marcoro", *arguments],
                              capture_output=True, text=True, timeout=240, check=False)

    def test_all_pass(self):
        run = self.run_scenarios("--burst-concurrency", "256")
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual(run.stdout.count(": ok: "), 6)

    def test_a_burst_that_the_server_takes_whole_is_no_burst(self):
        run = self.run_scenarios("--burst-concurrency", "4", "burst")
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertIn("burst: FAILED: Failure: codes {'OK':", run.stdout)

    def test_a_server_that_is_not_there_fails_every_scenario(self):
        run = subprocess.run([sys.executable, SCENARIOS, "--address", f"127.0.0.1:{free_ports()[0]}", "--bench", harness.BIN / "marcoro",
                              "--scale", "0.05", "--timeout", "60", "closed", "bench"], capture_output=True, text=True, timeout=240, check=False)
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertEqual(run.stdout.count("FAILED"), 2)


if __name__ == "__main__":
    harness.main()
