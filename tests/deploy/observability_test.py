"""Rules and dashboard parse, do what they say, and ask for metrics that the binaries have."""

import json
import re
import socket
import subprocess
import time
import unittest
import urllib.request

import harness

OBSERVABILITY = harness.ROOT / "deploy/observability"
MODEL = harness.ROOT / "tests/data/tiny"
# What dashboards and gateways made for vLLM ask for.
EXPECTED_ALIASES = """
num_requests_running num_requests_waiting kv_cache_usage_perc gpu_cache_usage_perc num_preemptions_total prefix_cache_queries_total
prefix_cache_hits_total prompt_tokens_total generation_tokens_total request_success_total time_to_first_token_seconds_bucket
inter_token_latency_seconds_bucket time_per_output_token_seconds_bucket e2e_request_latency_seconds_bucket
request_queue_time_seconds_bucket request_prefill_time_seconds_bucket request_decode_time_seconds_bucket
""".split()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scrape(program, *arguments):
    """The first answer of a program's metrics endpoint."""
    address = f"127.0.0.1:{free_port()}"
    command = [harness.BIN / program, f"--model={MODEL}", f"--metrics={address}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                        return answer.read().decode()
                except OSError:
                    if process.poll() is not None:
                        raise AssertionError(f"{program}: {process.stderr.read()}") from None
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)  # between two attempts to connect
        finally:
            process.kill()


def names_in(expression):
    return set(re.findall(r"\bmarcoro_[a-z0-9_]+", expression))


class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        run = subprocess.run([harness.program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_rules_are_rules(self):
        self.promtool("check", "rules", OBSERVABILITY / "recording_rules.yml", OBSERVABILITY / "alerts.yml")

    def test_the_configuration_is_one(self):
        self.promtool("check", "config", OBSERVABILITY / "prometheus.yml")

    def test_rules_do_what_they_say(self):
        self.promtool("test", "rules", harness.ROOT / "tests/deploy/rules_test.yml")

    def test_every_alert_is_tested(self):
        alerts = re.findall(r"- alert: (\w+)", (OBSERVABILITY / "alerts.yml").read_text(encoding="utf-8"))
        tested = re.findall(r"alertname: (\w+)", (harness.ROOT / "tests/deploy/rules_test.yml").read_text(encoding="utf-8"))
        self.assertEqual(set(alerts), set(tested))

    def test_the_names_that_dashboards_expect_are_there(self):
        recorded = re.findall(r"- record: vllm:(\w+)", (OBSERVABILITY / "recording_rules.yml").read_text(encoding="utf-8"))
        self.assertEqual(set(EXPECTED_ALIASES) - set(recorded), set())


class Metrics(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not (harness.BIN / "marcoro-worker").exists():
            raise unittest.SkipTest(f"the binaries are not in {harness.BIN}")
        cls.scrapes = [scrape("marcoro-worker", "--listen=127.0.0.1:0"),
                       scrape("marcoro-coordinator", "--listen=127.0.0.1:0", f"--workers=127.0.0.1:{free_port()}")]
        cls.known = set()
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", "\n".join(cls.scrapes), re.M):
            cls.known |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}

    def test_a_first_scrape_is_in_the_exposition_format(self):
        for text in self.scrapes:
            run = subprocess.run([harness.program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True,
                                 timeout=60, check=False)
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_rules_ask_for_metrics_of_the_first_scrape(self):
        for file in ("recording_rules.yml", "alerts.yml"):
            text = (OBSERVABILITY / file).read_text(encoding="utf-8")
            used = names_in("\n".join(line for line in text.splitlines() if not re.match(r"\s*(#|- name:)", line)))
            self.assertTrue(used)
            self.assertEqual(used - self.known, set(), file)

    def test_the_dashboard_asks_for_metrics_of_the_first_scrape(self):
        dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text(encoding="utf-8"))
        expressions = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
        self.assertGreater(len(expressions), 20)
        self.assertEqual(names_in("\n".join(expressions)) - self.known, set())


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text(encoding="utf-8"))

    def test_panels_do_not_overlap(self):
        taken = set()
        for panel in self.dashboard["panels"]:
            grid = panel["gridPos"]
            cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(grid["x"] + grid["w"], 24)
            taken |= cells

    def test_expressions_parse(self):
        promtool = harness.program("promtool")
        expressions = [t["expr"] for panel in self.dashboard["panels"] for t in panel.get("targets", [])]
        rules = {"groups": [{"name": "panels", "rules": [
            {"record": f"panel:{i}", "expr": e.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$job", ".*")}
            for i, e in enumerate(expressions)]}]}
        # JSON is YAML.
        run = subprocess.run([promtool, "check", "rules", "/dev/stdin"], input=json.dumps(rules), capture_output=True, text=True,
                             timeout=60, check=False)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


if __name__ == "__main__":
    harness.main()
