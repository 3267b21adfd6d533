#!/usr/bin/env python3
"""Load on a running server, with ghz and marcoro bench, and a look at whether it stays sane.

  scenarios.py [--address HOST:PORT] [--scale X] [--bench FILE] [SCENARIO…]

  closed      ghz, Generate, 8 at once: no errors
  streams     ghz, GenerateStream, 32 at once over 4 connections: no errors
  duration    ghz for some seconds; calls that the end of the test cuts off are no errors
  burst       ghz, more at once than the server takes (--burst-concurrency): only OK and RESOURCE_EXHAUSTED, and both
  bench       marcoro bench, closed loop with lengths drawn at random: no errors
  poisson     marcoro bench, open loop: no errors, everything sent

Without SCENARIO all run. --scale multiplies the number of requests. After each the server must answer one more request. Exit code 1
if a scenario failed.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
GENERATE = "marcoro.v1.InferenceService/Generate"
STREAM = "marcoro.v1.InferenceService/GenerateStream"


class Failure(Exception):
    """What a scenario found."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


class Load:
    def __init__(self, arguments):
        self.arguments = arguments
        self.bench_program = arguments.bench
        self.ghz_program = shutil.which("ghz")

    def requests(self, number):
        return max(1, round(number * self.arguments.scale))

    def run(self, command):
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=self.arguments.timeout, check=False)
        if run.returncode:
            raise Failure(f"{command[0]} ended with {run.returncode}: {run.stderr.strip()}")
        return json.loads(run.stdout)

    def ghz(self, call, number, at_once, *extra, max_tokens=32):
        if self.ghz_program is None:
            raise Failure("ghz is not installed; deploy/install.sh --dev installs it where Go is")
        data = json.dumps({"prompt": "The quick brown", "max_tokens": max_tokens, "ignore_eos": True})
        how_many = [] if "--duration" in extra else ["--total", self.requests(number)]
        report = self.run([self.ghz_program, "--insecure", "--call", call, "--data", data, "--format", "json", "--timeout", "120s",
                           "--concurrency", at_once, *how_many, *extra, self.arguments.address])
        return report, report.get("statusCodeDistribution") or {}

    def bench(self, *flags):
        return self.run([self.bench_program, "bench", "--address", self.arguments.address, "--json", "-", *flags])

    def closed(self):
        report, codes = self.ghz(GENERATE, 200, 8)
        expect(codes == {"OK": report["count"]}, f"codes {codes}")
        return report

    def streams(self):
        report, codes = self.ghz(STREAM, 200, 32, "--connections", "4", max_tokens=64)
        expect(codes == {"OK": report["count"]}, f"codes {codes}")
        return report

    def duration(self):
        report, codes = self.ghz(STREAM, 0, 8, "--duration", "3s", "--duration-stop", "wait")
        expect(codes == {"OK": report["count"]} and report["count"] > 0, f"codes {codes}")
        return report

    def burst(self):
        at_once = self.arguments.burst_concurrency
        report, codes = self.ghz(GENERATE, 4 * at_once, at_once, "--connections", "4", max_tokens=64)
        expect(set(codes) == {"OK", "ResourceExhausted"}, f"codes {codes}; expected OK and ResourceExhausted")
        return report

    def bench_sane(self, report, requests):
        expect(report["failed"] == 0 and not report["errors"], f"{report['failed']} failed: {report['errors']}")
        expect(report["succeeded"] == requests, f"{report['succeeded']} of {requests} succeeded")
        expect(report["not_sent"] == 0, f"{report['not_sent']} were not sent")
        expect(0 < report["first_token_seconds"]["p50"] <= report["end_to_end_seconds"]["max"], "latencies contradict each other")
        return report

    def bench_closed(self):
        requests = self.requests(200)
        return self.bench_sane(self.bench("--concurrency", "16", "--requests", requests, "--warmup", "8", "--prompt-tokens",
                                          "uniform:4:64", "--output-tokens", "uniform:1:32"), requests)

    def poisson(self):
        requests = self.requests(200)
        return self.bench_sane(self.bench("--rate", "100", "--requests", requests, "--max-in-flight", "256", "--prompt-tokens", "16",
                                          "--output-tokens", "8"), requests)

    def still_answers(self):
        report = self.bench("--concurrency", "1", "--requests", "1", "--prompt-tokens", "4", "--output-tokens", "4")
        expect(report["succeeded"] == 1, f"afterwards the server does not answer: {report['errors']}")


def summary(report):
    if "rps" in report:
        return (f"{report['count']} calls, {report['rps']:.0f}/s, mean {report['average'] / 1e6:.1f} ms, "
                f"{report['statusCodeDistribution']}")
    return (f"{report['succeeded']} requests, {report['requests_per_second']:.0f}/s, {report['output_tokens_per_second']:.0f} tokens/s, "
            f"TTFT p50 {report['first_token_seconds']['p50'] * 1e3:.1f} ms")


def main():
    scenarios = {"closed": Load.closed, "streams": Load.streams, "duration": Load.duration, "burst": Load.burst,
                 "bench": Load.bench_closed, "poisson": Load.poisson}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--burst-concurrency", type=int, default=2000, help="more than the server's --max-requests")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that a scenario may take")
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/cpu/bin/marcoro", help="the program marcoro")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(scenarios))
    arguments = parser.parse_args()
    for name in arguments.scenarios:
        if name not in scenarios:
            parser.error(f"unknown scenario {name}; there are {', '.join(scenarios)}")
    load = Load(arguments)
    failed = 0
    for name in arguments.scenarios or scenarios:
        try:
            report = scenarios[name](load)
            load.still_answers()
            print(f"{name}: ok: {summary(report)}", flush=True)
        except (Failure, subprocess.TimeoutExpired, json.JSONDecodeError, KeyError) as problem:
            failed += 1
            print(f"{name}: FAILED: {type(problem).__name__}: {problem}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
