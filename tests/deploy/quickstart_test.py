"""deploy/quickstart.sh does what it says, and leaves no process behind however it ends."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest

import harness

QUICKSTART = harness.ROOT / "deploy/quickstart.sh"


def free_ports():
    """Three neighbouring ports that are free."""
    while True:
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
                third.bind(("127.0.0.1", port + 2))
                return port, port + 1, port + 2
            except (OSError, OverflowError):
                continue


def processes_of(session):
    """Command lines of the processes of a session."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile
    return found


class Quickstart(unittest.TestCase):
    def setUp(self):
        if harness.BIN.resolve() != (harness.ROOT / "build/cpu/bin").resolve() or not (harness.BIN / "marcoro").exists():
            self.skipTest("it builds build/cpu, which is not what is tested here")
        self.listen, self.metrics, _ = (f"127.0.0.1:{p}" for p in free_ports())

    def start(self, *arguments):
        self.output = tempfile.TemporaryFile("w+")
        self.addCleanup(self.output.close)
        # Like a terminal: a session of its own, in which Ctrl-C is not ignored.
        return subprocess.Popen([QUICKSTART, "--no-install", "--listen", self.listen, "--metrics", self.metrics, *arguments], cwd="/",
                                stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def wait_for(self, condition, what):
        deadline = time.monotonic() + 120
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"{what}: {self.text()}")
            time.sleep(0.05)  # between two looks

    def assert_nothing_left(self, session):
        self.wait_for(lambda: not processes_of(session), f"processes are left: {processes_of(session)}")

    def up(self):
        process = self.start()
        self.wait_for(lambda: "Ctrl-C stops it" in self.text() or process.poll() is not None, "it does not come up")
        self.assertIsNone(process.poll(), self.text())
        self.assertGreaterEqual(len(processes_of(process.pid)), 5)  # the script, serve, the coordinator and two workers
        return process

    def test_once_streams_an_answer_and_leaves_with_0(self):
        process = self.start("--once")
        self.assertEqual(process.wait(timeout=240), 0, self.text())
        self.assertRegex(self.text(), re.compile(r"first prompt: '.+'\n.+\n.*: done", re.DOTALL))
        self.assert_nothing_left(process.pid)

    def test_it_stays_up_until_ctrl_c(self):
        process = self.up()
        self.assertIn(self.listen, self.text())
        self.assertIn(f"http://{self.metrics}/metrics", self.text())
        os.killpg(process.pid, signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), 0, self.text())
        self.assert_nothing_left(process.pid)

    def test_nothing_is_left_when_it_is_killed(self):
        process = self.up()
        process.kill()
        process.wait(timeout=60)
        self.assert_nothing_left(process.pid)

    def test_a_port_in_use_is_said(self):
        for flag, address in (("--listen", self.listen), ("--metrics", self.metrics)):
            host, port = address.split(":")
            with socket.create_server((host, int(port))):
                process = self.start()
                self.assertEqual(process.wait(timeout=60), 1)
                self.assertIn(f"{address} is in use; choose another with {flag}", self.text())
                self.assert_nothing_left(process.pid)

    def test_a_model_that_is_not_there_is_said(self):
        process = self.start("--once", "--model", "/no/such/folder")
        self.assertEqual(process.wait(timeout=240), 1, self.text())
        self.assertIn("/no/such/folder", self.text())
        self.assert_nothing_left(process.pid)


if __name__ == "__main__":
    harness.main()
