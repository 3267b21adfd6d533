"""The manifests build, fit the API's schemas, and agree with themselves and with the binaries."""

import pathlib
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import harness

try:
    import yaml
except ImportError:
    yaml = None

KUBERNETES = harness.ROOT / "deploy/kubernetes"
# One overlay that has all components.
EVERYTHING = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [deploy/kubernetes/overlays/cpu]
components: [deploy/kubernetes/components/proxy, deploy/observability]
"""
# Kinds that an operator brings: the API's own schemas do not have them.
OPERATOR_KINDS = {"PodMonitor"}
PROGRAMS = {"marcoro/coordinator": "marcoro-coordinator", "marcoro/worker": "marcoro-worker"}


def build(folder):
    """The objects that a folder or its overlay consists of, as YAML text."""
    kustomize = shutil.which("kustomize", path=f"{harness.TOOLS}/bin") or shutil.which("kustomize")
    command = [kustomize, "build"] if kustomize else [harness.program("kubectl", "kustomize"), "kustomize"]
    run = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    if run.returncode:
        raise AssertionError(f"{' '.join(command)} {folder}: {run.stderr}")
    return run.stdout


def build_everything():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for part in ("kubernetes", "observability"):
            shutil.copytree(harness.ROOT / "deploy" / part, root / "deploy" / part)
        (root / "kustomization.yaml").write_text(EVERYTHING, encoding="utf-8")
        return build(root)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


class Schemas(unittest.TestCase):
    def check(self, text):
        validate = harness.program("kubernetes-validate")
        if yaml is None:
            self.skipTest("python3-yaml is not installed")
        objects = [o for o in yaml.safe_load_all(text) if o["kind"] not in OPERATOR_KINDS]
        self.assertTrue(objects)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all(objects, file)
            file.flush()
            for version in ("1.28", "1.32"):
                run = subprocess.run([validate, "--strict", "-k", version, file.name], capture_output=True, text=True, timeout=120,
                                     check=False)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_base(self):
        self.check(build(KUBERNETES / "base"))

    def test_cpu_overlay_with_all_components(self):
        self.check(build_everything())

    def test_load_job(self):
        self.check(build(KUBERNETES / "load"))

    def test_a_misspelt_field_is_found(self):
        text = build(KUBERNETES / "base").replace("terminationGracePeriodSeconds", "terminationGraceSeconds")
        with self.assertRaises(AssertionError):
            self.check(text)


class Agreement(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if yaml is None:
            raise unittest.SkipTest("python3-yaml is not installed; deploy/install.sh --dev installs it")
        cls.objects = list(yaml.safe_load_all(build_everything()))

    def of_kind(self, *kinds):
        return [o for o in self.objects if o["kind"] in kinds]

    def named(self, kind, name):
        (found,) = [o for o in self.of_kind(kind) if o["metadata"]["name"] == name]
        return found

    def workloads(self):
        """(name, pod specification) of every Deployment and Job."""
        return [(o["metadata"]["name"], o["spec"]["template"]["spec"]) for o in self.of_kind("Deployment", "Job")]

    def ours(self):
        """(pod specification, container) of the containers that run our binaries."""
        return [(pod, c) for _, pod in self.workloads() for c in pod["containers"] if c["image"].split(":")[0] in PROGRAMS]

    def flags_map(self):
        (found,) = [o for o in self.of_kind("ConfigMap") if o["metadata"]["name"].startswith("marcoro-flags-")]
        return found["data"]

    def arguments(self, container):
        values = self.flags_map()
        return [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], a) for a in container["args"]]

    def flag(self, container, name):
        (value,) = [a.split("=", 1)[1] for a in self.arguments(container) if a.startswith(f"--{name}=")]
        return value

    def test_the_binaries_take_the_flags(self):
        for _, container in self.ours():
            program = harness.BIN / PROGRAMS[container["image"].split(":")[0]]
            if not program.exists():
                self.skipTest(f"{program} is not built")
            # What stands before --help is parsed first, so a name or value that does not fit is an error.
            run = subprocess.run([program, *self.arguments(container), "--help"], capture_output=True, text=True, timeout=60,
                                 check=False)
            self.assertEqual(run.returncode, 0, run.stderr)

    def test_every_value_of_the_config_map_is_used(self):
        used = {name for _, c in self.ours() for a in c["args"] for name in re.findall(r"\$\((\w+)\)", a)}
        self.assertEqual(used, set(self.flags_map()))

    def test_containers_take_their_values_from_the_same_config_map(self):
        (name,) = [o["metadata"]["name"] for o in self.of_kind("ConfigMap") if o["metadata"]["name"].startswith("marcoro-flags-")]
        for _, container in self.ours():
            self.assertEqual(container["envFrom"], [{"configMapRef": {"name": name}}])

    def test_ports_are_those_that_the_programs_listen_on(self):
        for _, container in self.ours():
            flags = [a.split("=", 1) for a in self.arguments(container)]
            listening = {int(v.rsplit(":", 1)[1]) for name, v in flags if name in ("--listen", "--metrics")}
            self.assertEqual({p["containerPort"] for p in container["ports"]}, listening, container["name"])

    def test_containers_of_a_pod_do_not_share_ports(self):
        for name, pod in self.workloads():
            ports = [p["containerPort"] for c in pod["containers"] for p in c.get("ports", [])]
            self.assertEqual(len(ports), len(set(ports)), name)

    def test_probes_ask_ports_and_services_that_exist(self):
        known = {"coordinator": {"", "marcoro.v1.InferenceService", "marcoro.v1.ModelService"},
                 "rank-0": {"", "marcoro.worker.v1.WorkerService"}}
        for _, container in self.ours():
            ports = {p["containerPort"] for p in container["ports"]} | {p["name"] for p in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if "grpc" in container.get(probe, {}):
                    self.assertIn(container[probe]["grpc"]["port"], ports)
                    self.assertIn(container[probe]["grpc"].get("service", ""), known[container["name"]])
                if "tcpSocket" in container.get(probe, {}):
                    self.assertIn(container[probe]["tcpSocket"]["port"], ports)
            self.assertIn("livenessProbe", container)
            self.assertEqual(container["livenessProbe"].get("grpc", {}).get("service", ""), "", "liveness must not fail from load")

    def test_readiness_knows_the_model(self):
        for _, container in self.ours():
            if container["name"] in ("coordinator", "rank-0"):
                self.assertTrue(container["readinessProbe"]["grpc"]["service"])

    def test_services_select_ready_pods_with_the_port_they_name(self):
        pods = [o["spec"]["template"] for o in self.of_kind("Deployment")]
        for service in self.of_kind("Service"):
            chosen = [p for p in pods if service["spec"]["selector"].items() <= p["metadata"]["labels"].items()]
            self.assertEqual(len(chosen), 1, service["metadata"]["name"])
            names = {p["name"] for c in chosen[0]["spec"]["containers"] for p in c["ports"]}
            for port in service["spec"]["ports"]:
                self.assertIn(port["targetPort"], names)

    def test_coordinators_find_the_workers_by_their_headless_service(self):
        for _, container in self.ours():
            if container["name"] != "coordinator":
                continue
            host, port = re.fullmatch(r"dns:///([\w-]+):(\d+)", self.flag(container, "workers")).groups()
            service = self.named("Service", host)
            self.assertEqual(service["spec"]["clusterIP"], "None")
            self.assertIn(int(port), [p["port"] for p in service["spec"]["ports"]])
            # A headless service maps no ports: clients connect to the pod's own.
            self.assertEqual(service["spec"]["selector"]["app.kubernetes.io/component"], "worker")

    def test_ranks_form_one_group(self):
        pod = self.named("Deployment", "marcoro-worker")["spec"]["template"]["spec"]
        ranks = [int(self.flag(c, "rank")) for c in pod["containers"]]
        self.assertEqual(ranks, list(range(len(ranks))))
        self.assertEqual({self.flag(c, "world-size") for c in pod["containers"]}, {str(len(ranks))})
        listen = self.flag(pod["containers"][0], "listen")
        for container in pod["containers"][1:]:
            self.assertEqual(self.flag(container, "root"), "127.0.0.1:" + listen.rsplit(":", 1)[1])
        self.assertTrue(pod["shareProcessNamespace"])
        volumes = {v["name"]: v for v in pod["volumes"]}
        for container in pod["containers"]:
            (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
            self.assertEqual(volumes[mount["name"]]["emptyDir"]["medium"], "Memory")

    def test_the_grace_period_holds_pre_stop_and_drain(self):
        for pod, container in self.ours():
            pre_stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            self.assertEqual(pre_stop[0], "sleep")
            needed = int(pre_stop[1]) + seconds(self.flag(container, "drain-timeout"))
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], needed + 5, container["name"])

    def test_the_startup_probe_outlasts_the_join_timeout(self):
        for _, container in self.ours():
            if container["name"] == "rank-0":
                probe = container["startupProbe"]
                self.assertGreater(probe["periodSeconds"] * probe["failureThreshold"], seconds(self.flag(container, "join-timeout")))

    def test_pods_are_locked_down(self):
        for name, pod in self.workloads():
            self.assertTrue(pod["securityContext"]["runAsNonRoot"], name)
            self.assertGreater(pod["securityContext"]["runAsUser"], 0)
            self.assertEqual(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
            self.assertFalse(pod["automountServiceAccountToken"])
            for container in pod["containers"]:
                context = container["securityContext"]
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                self.assertTrue(context["readOnlyRootFilesystem"])
                self.assertFalse(context["allowPrivilegeEscalation"])
                self.assertIn("memory", container["resources"]["limits"])
                self.assertTrue({"cpu", "memory"} <= set(container["resources"]["requests"]))

    def test_only_coordinators_reach_the_workers_port(self):
        policy = self.named("NetworkPolicy", "marcoro-workers")["spec"]
        sources = [r["from"] for r in policy["ingress"] if {"port": 50061} in r["ports"]]
        self.assertEqual(len(sources), 1)
        self.assertEqual(sources[0], [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "marcoro",
                                                                       "app.kubernetes.io/component": "coordinator"}}}])
        self.assertIn("Egress", policy["policyTypes"])

    def test_policies_and_disruption_budgets_select_pods_that_exist(self):
        pods = [o["spec"]["template"]["metadata"]["labels"] for o in self.of_kind("Deployment")]
        for o in self.of_kind("NetworkPolicy", "PodDisruptionBudget"):
            selector = (o["spec"].get("selector") or o["spec"]["podSelector"])["matchLabels"]
            self.assertTrue(any(selector.items() <= labels.items() for labels in pods), o["metadata"]["name"])
        for deployment in self.of_kind("Deployment"):
            self.assertGreaterEqual(deployment["spec"]["replicas"], 2)

    def test_pod_monitors_name_ports_that_exist(self):
        pods = [o["spec"]["template"] for o in self.of_kind("Deployment")]
        monitors = self.of_kind("PodMonitor")
        self.assertEqual(len(monitors), 2)
        for monitor in monitors:
            selector = monitor["spec"]["selector"]["matchLabels"]
            (pod,) = [p for p in pods if selector.items() <= p["metadata"]["labels"].items()]
            ports = {p["name"] for c in pod["spec"]["containers"] for p in c["ports"]}
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                self.assertIn(endpoint["port"], ports)

    def test_objects_have_no_namespace(self):
        for o in self.objects:
            self.assertNotIn("namespace", o["metadata"])

    def test_images_are_pinned_and_built_by_the_dockerfile(self):
        targets = re.findall(r"^FROM .* AS (\w+)$", (harness.ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8"), re.M)
        version = re.search(r"project\(marcoro VERSION (\S+)", (harness.ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))[1]
        load = next(yaml.safe_load_all(build(KUBERNETES / "load")))["spec"]["template"]["spec"]
        for pod in [pod for _, pod in self.workloads()] + [load]:
            for container in pod["containers"]:
                name, tag = container["image"].rsplit(":", 1)
                if name.startswith("marcoro/"):
                    self.assertEqual(tag, version)
                    self.assertIn(name.split("/")[1], targets)
                else:
                    self.assertNotEqual(tag, "latest")


def http2_frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Proxy(unittest.TestCase):
    CONFIGURATION = KUBERNETES / "components/proxy/haproxy.cfg"

    def setUp(self):
        self.haproxy = harness.program("haproxy")

    def start(self):
        """Runs the proxy on this host, without a cluster's DNS and with nobody behind it; returns its port."""
        with socket.socket() as grpc, socket.socket() as health:
            for listener in (grpc, health):
                listener.bind(("127.0.0.1", 0))
            ports = {"50052": grpc.getsockname()[1], "50053": health.getsockname()[1]}
        text = re.sub(r"bind :(\d+)", lambda m: f"bind 127.0.0.1:{ports[m[1]]}", self.CONFIGURATION.read_text(encoding="utf-8"))
        text = re.sub(r"server-template \S+ \d+ \S+ (.*) resolvers.*", r"server coordinator 127.0.0.1:1 \1", text)
        text = re.sub(r"resolvers cluster\n(?:    .*\n)+", "", text)
        file = tempfile.NamedTemporaryFile("w", suffix=".cfg")
        self.addCleanup(file.close)
        file.write(text)
        file.flush()
        process = subprocess.Popen([self.haproxy, "-db", "-f", file.name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait, timeout=60)
        self.addCleanup(process.kill)
        return ports["50052"]

    def connect(self, port):
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0))  # preface and SETTINGS
                return connection
            except ConnectionRefusedError:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)  # between two attempts to connect

    def test_the_configuration_is_one(self):
        run = subprocess.run([self.haproxy, "-c", "-f", self.CONFIGURATION], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_a_connection_that_behaves_stays_open(self):
        with self.connect(self.start()) as connection:
            connection.sendall(http2_frame(6, 0, 0, b"01234567"))  # PING
            received = b""
            while http2_frame(6, 1, 0, b"01234567") not in received:  # its acknowledgement
                part = connection.recv(4096)
                self.assertTrue(part, received)
                received += part

    def test_a_header_block_that_never_ends_closes_the_connection(self):
        with self.connect(self.start()) as connection:
            # A literal header field, ":path" (index 4) with a value of 8 KiB of which the rest comes in CONTINUATION frames without end.
            connection.sendall(http2_frame(1, 0, 1, b"\x04\x7f\x81\x3f" + b"x" * 8192))
            sent = 0
            with self.assertRaises(OSError):
                while sent < 4 << 20:
                    connection.sendall(http2_frame(9, 0, 1, b"\x04\x7f\x81\x3f" + b"x" * 8192))
                    sent += 8192
            self.assertLess(sent, 4 << 20)


if __name__ == "__main__":
    harness.main()
