"""Coordinator and workers started by hand on hosts that share nothing but a network: each has a network namespace of its own.

The test runs itself again in namespaces for networks, mounts and processes. The names of its hosts, the links between them and every
process that it starts are in these, so the kernel takes all of it down with the test, however that ends, and the machine's own network
is not touched.
"""

import json
import os
import struct
import subprocess
import sys
import unittest

from serving import PATIENCE_SECONDS, SMALL, Client, Program, Server, Stubs, binary, main, wait_until

try:
    import grpc
except ImportError:
    grpc = None

INSIDE = "MARCORO_INSIDE_NAMESPACES"  # in the environment: empty inside, otherwise the reason why there is no inside
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
SETUP = "mount -t tmpfs tmpfs /run && ip link set lo up && ip link add bridge0 type bridge && ip link set bridge0 up"
# Kept for documentation, RFC 5737.
NETWORK = "192.0.2"


def run(*command):
    """Runs a command; its output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def enter_namespaces():
    """Becomes the same test inside namespaces, or notes why they cannot be made."""
    unshare = UNSHARE + ([] if os.geteuid() == 0 else ["--map-root-user"])
    script = f"{SETUP} && ip netns add trial && ip link add trial0 type veth peer name eth0 netns trial"
    try:
        trial = subprocess.run([*unshare, "sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        reason = trial.stderr.strip() if trial.returncode != 0 else ""
    except OSError as error:
        reason = str(error)
    if reason:
        os.environ[INSIDE] = f"network namespaces cannot be made here: {' '.join(reason.split())}"
        return
    os.environ[INSIDE] = ""
    os.execvp(unshare[0], [*unshare, "sh", "-c", f'{SETUP} && exec "$@"', "sh", sys.executable, *sys.argv])


class Host:
    """A network namespace whose only way out is eth0, a virtual cable to the bridge."""

    def __init__(self, name, number):
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.cable = f"{name}0"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", self.cable, "master", "bridge0", "up")
        run("ip", "-n", name, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")

    def start(self, *command):
        return Program("ip", "netns", "exec", self.name, *command)

    def pull_cable(self):
        run("ip", "link", "set", self.cable, "down")

    def plug_cable(self):
        run("ip", "link", "set", self.cable, "up")

    def traffic(self):
        """Bytes that came from the host and went to it."""
        counters = json.loads(run("ip", "-json", "-statistics", "link", "show", "dev", self.cable))[0]["stats64"]
        return counters["rx"]["bytes"], counters["tx"]["bytes"]

    def remove(self):
        run("ip", "link", "delete", self.cable)
        run("ip", "netns", "delete", self.name)


class SeparateHosts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.environ[INSIDE]:
            raise unittest.SkipTest(os.environ[INSIDE])
        if grpc is None:
            raise unittest.SkipTest("Python's grpcio is not installed; deploy/install.sh --dev installs it")
        binary("marcoro-worker")
        cls.stubs = Stubs()
        run("ip", "address", "add", f"{NETWORK}.254/24", "dev", "bridge0")
        cls.expected = cls.answers_of_one_rank()

    @classmethod
    def answers_of_one_rank(cls):
        server = Server(SMALL, "--tp", "1")
        try:
            client = Client(server.address, cls.stubs)
            try:
                return [cls.bits(client.generate(request, timeout=PATIENCE_SECONDS)) for request in cls.requests()]
            finally:
                client.close()
        finally:
            server.stop()

    @classmethod
    def requests(cls):
        """Greedy and sampled, of one chunk and of several steps."""
        common = {"max_tokens": 48, "ignore_eos": True, "logprobs": 3}
        request = cls.stubs.inference.GenerateRequest
        return [request(prompt="Return the", temperature=0, **common),
                request(prompt="The quick brown fox", seed=11, n=2, **common),
                request(prompt="def add(a, b):\n" * 20, temperature=0.7, top_p=0.9, seed=12, **common)]

    @staticmethod
    def bits(response):
        """What must not differ: ids, texts, and the very bits of log-probabilities."""
        return [(list(choice.token_ids), choice.text,
                 [(struct.pack("<f", entry.logprob), [(other.token_id, struct.pack("<f", other.logprob)) for other in entry.top])
                  for entry in choice.logprobs]) for choice in response.choices]

    def setUp(self):
        self.hosts = [self.host(name, number) for number, name in enumerate(("front", "rank0", "rank1"), start=1)]
        self.front, self.rank0, self.rank1 = self.hosts
        self.ranks = []

    def host(self, name, number):
        made = Host(name, number)
        self.addCleanup(made.remove)
        return made

    def program(self, host, *command):
        started = host.start(*command)
        self.addCleanup(started.kill)
        return started

    def start_ranks(self, *flags):
        root = f"{self.rank0.address}:50061"
        common = (binary("marcoro-worker"), "--model", SMALL, "--world-size=2", "--collective=gloo", "--interface=eth0", "--threads=1",
                  *flags)
        self.ranks = [self.program(self.rank0, *common, "--rank=0", f"--listen={root}"),
                      self.program(self.rank1, *common, "--rank=1", f"--root={root}")]

    def start_cluster(self, *flags):
        self.start_ranks(*flags)
        address = f"{self.front.address}:50051"
        self.coordinator = self.program(self.front, binary("marcoro-coordinator"), "--model", SMALL,
                                        f"--workers={self.rank0.address}:50061", f"--listen={address}")
        self.coordinator.await_log("replicas ready: 1 of 1")
        client = Client(address, self.stubs)
        self.addCleanup(client.close)
        return client

    def test_two_ranks_over_gloo_give_the_bits_of_one(self):
        client = self.start_cluster()
        model = client.get_model(self.stubs.model.GetModelRequest(), timeout=PATIENCE_SECONDS).model
        self.assertEqual((model.tensor_parallel, model.replicas_ready), (2, 1))
        before = self.rank1.traffic()
        answers = [self.bits(client.generate(request, timeout=PATIENCE_SECONDS)) for request in self.requests()]
        self.assertEqual(answers, self.expected)
        self.assertEqual([len(ids) for answer in answers for ids, _, _ in answer], [48] * 4)
        # At least half an activation of 2 bytes an element crosses the cable both ways, once for each layer and token: no other road was
        # taken.
        config = json.loads((SMALL / "config.json").read_text(encoding="utf-8"))
        least = 4 * 48 * config["num_hidden_layers"] * config["hidden_size"]
        for sent_before, sent in zip(before, self.rank1.traffic()):
            self.assertGreater(sent - sent_before, least)
        self.coordinator.stop()
        for rank in self.ranks:  # rank 0 first: it ends the group
            rank.stop()

    def test_a_stream_outlives_a_pulled_cable(self):
        client = self.start_cluster("--collective-timeout=3s")
        request = self.requests()[0]
        request.max_tokens = 2000  # some seconds
        undisturbed = self.bits(client.generate(request, timeout=PATIENCE_SECONDS))
        stream = client.generate_stream(request, timeout=PATIENCE_SECONDS)
        pieces = [next(stream) for _ in range(20)]
        self.rank1.pull_cable()
        for rank in self.ranks:
            wait_until(lambda rank=rank: rank.process.poll() is not None, rank.log)
            self.assertNotEqual(rank.process.returncode, 0)  # so that what supervises them starts them again
        self.rank1.plug_cable()
        self.start_ranks()
        choices = [choice for piece in (*pieces, *stream) for choice in piece.choices]
        whole = self.stubs.inference.GenerateResponse(choices=[self.stubs.inference.Choice(
            text="".join(choice.text for choice in choices), token_ids=[token for choice in choices for token in choice.token_ids],
            logprobs=[entry for choice in choices for entry in choice.logprobs])])
        self.assertEqual(self.bits(whole), undisturbed)
        self.assertIn(f"worker {self.rank0.address}:50061 lost", self.coordinator.log())


if __name__ == "__main__":
    if INSIDE not in os.environ:
        enter_namespaces()
    main()
