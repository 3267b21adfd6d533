"""The programs that people reach for first, ghz and grpcurl, work on a fresh server without any file of ours."""

import json
import subprocess
import unittest

from serving import TINY, Server, harness, main

STREAM = "marcoro.v1.InferenceService/GenerateStream"


class ToolTest(unittest.TestCase):
    name = None  # of the program

    @classmethod
    def setUpClass(cls):
        cls.program = harness.program(cls.name)
        cls.server = Server(TINY, "--tp", "2")
        cls.addClassCleanup(cls.server.stop)

    def call(self, *arguments):
        return subprocess.run([self.program, *arguments], capture_output=True, text=True, timeout=120, check=False)

    def output(self, *arguments):
        run = self.call(*arguments)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        return run.stdout


class Ghz(ToolTest):
    name = "ghz"

    def report(self, *arguments):
        return json.loads(self.output("--insecure", "--call", STREAM, "-d", '{"prompt":"hi"}', "-c", "8", "-O", "json", *arguments,
                                      self.server.address))

    def test_the_readmes_line_prints_a_summary_of_good_answers(self):
        printed = self.output("--insecure", "--call", STREAM, "-d", '{"prompt":"hi"}', "-n", "50", "-c", "8", self.server.address)
        self.assertRegex(printed, r"Count:\s+50\n")
        self.assertRegex(printed, r"\[OK\]\s+50 responses")
        self.assertNotIn("Error distribution", printed)

    def test_every_one_of_fifty_streams_is_ok(self):
        report = self.report("-n", "50")
        self.assertEqual(report["statusCodeDistribution"], {"OK": 50})
        self.assertEqual(report["errorDistribution"], {})

    def test_two_seconds_that_end_with_the_last_answers_have_no_errors(self):
        report = self.report("-z", "2s", "--duration-stop", "wait")
        self.assertEqual(set(report["statusCodeDistribution"]), {"OK"}, report["errorDistribution"])
        self.assertGreater(report["count"], 8)

    def test_two_seconds_that_end_in_mid_stream_have_no_errors_but_the_clients_own(self):
        report = self.report("-z", "2s")
        codes = report["statusCodeDistribution"]
        self.assertGreater(codes.pop("OK"), 8)
        # ghz closes its connection under the (at most 8) calls that it has still open, and counts what it did to itself.
        self.assertLessEqual(sum(codes.values()), 8, report["errorDistribution"])
        for error in report["errorDistribution"]:
            self.assertRegex(error, "the client connection is closing|use of closed network connection|context canceled")
        self.assertEqual(self.report("-n", "8")["statusCodeDistribution"], {"OK": 8})


class Grpcurl(ToolTest):
    name = "grpcurl"

    def test_list_names_every_service(self):
        self.assertEqual(self.output("-plaintext", self.server.address, "list").split(),
                         ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "marcoro.v1.InferenceService",
                          "marcoro.v1.ModelService"])

    def test_describe_shows_calls_and_their_messages(self):
        service = self.output("-plaintext", self.server.address, "describe", "marcoro.v1.InferenceService")
        for call in ("Generate", "GenerateStream", "Score", "Tokenize", "Detokenize"):
            self.assertIn(f"rpc {call} (", service)
        self.assertIn("string prompt = 1;", self.output("-plaintext", self.server.address, "describe", "marcoro.v1.GenerateRequest"))

    def test_generate_answers(self):
        answer = json.loads(self.output("-plaintext", "-d", '{"prompt":"hi","max_tokens":5,"ignore_eos":true}', self.server.address,
                                        "marcoro.v1.InferenceService/Generate"))
        self.assertEqual(len(answer["choices"][0]["token_ids"]), 5)
        self.assertEqual(answer["choices"][0]["finish_reason"], "FINISH_REASON_LENGTH")
        self.assertEqual(answer["usage"]["generated_tokens"], 5)

    def test_a_refusal_is_shown_with_its_details(self):
        run = self.call("-plaintext", "-d", '{"prompt":"hi","temperature":-1}', self.server.address, "marcoro.v1.InferenceService/Generate")
        self.assertNotEqual(run.returncode, 0, run.stdout)
        for part in ("InvalidArgument", "google.rpc.BadRequest", '"field": "temperature"', "google.rpc.ErrorInfo"):
            self.assertIn(part, run.stderr)


if __name__ == "__main__":
    main()
