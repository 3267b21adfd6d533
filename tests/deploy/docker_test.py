"""The Dockerfile parses, copies what is there, builds targets that exist, and its images hold every library that the binaries load."""

import fnmatch
import json
import re
import shutil
import subprocess
import tempfile
import unittest

import harness

DOCKERFILE = harness.ROOT / "deploy/docker/Dockerfile"
TARGETS = ("coordinator", "worker", "all", "ghz")


def instructions():
    """(stage, instruction, rest) of the Dockerfile; the stage is the name that its FROM gives."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M)
    stage = None
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(None, 1)
        if word == "FROM":
            stage = re.fullmatch(r"\S+ AS (\w+)", rest)[1]
        yield stage, word, rest


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


class Dockerfile(unittest.TestCase):
    def setUp(self):
        self.instructions = list(instructions())
        self.stages = [stage for stage, word, _ in self.instructions if word == "FROM"]

    def of_stage(self, stage, word):
        return [rest for s, w, rest in self.instructions if s == stage and w == word]

    def lineage(self, stage):
        """The stage and those that it is built on."""
        base = self.of_stage(stage, "FROM")[0].split()[0]
        return [stage] + (self.lineage(base) if base in self.stages else [])

    def test_another_parser_reads_the_same(self):
        python = harness.TOOLS / "venv/bin/python"
        if not python.exists():
            self.skipTest("dockerfile-parse is not installed; deploy/install.sh --dev installs it")
        # It writes to the path it is given only when asked to, but a copy is safer.
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(DOCKERFILE, f"{folder}/Dockerfile")
            program = ("import json, sys, dockerfile_parse as d; "
                       "print(json.dumps([[i['instruction'], i['value']] for i in d.DockerfileParser(sys.argv[1]).structure"
                       " if i['instruction'] != 'COMMENT']))")
            theirs = json.loads(output_of(python, "-c", program, folder))
        words = [[w, " ".join(r.split())] for _, w, r in self.instructions]
        self.assertEqual([[w, " ".join(r.split())] for w, r in theirs], words)

    def test_targets_are_there(self):
        self.assertLessEqual(set(TARGETS), set(self.stages))

    def test_what_is_copied_is_in_the_repository_and_not_ignored(self):
        ignore = (harness.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        for stage, word, rest in self.instructions:
            if word != "COPY" or rest.startswith("--from="):
                continue
            for source in rest.split()[:-1]:
                self.assertTrue((harness.ROOT / source).exists(), f"{stage}: {source}")
                self.assertIn("!" + source.split("/")[0], ignore)

    def test_a_build_needs_nothing_that_is_not_copied(self):
        copied = {s for rest in self.of_stage("build", "COPY") for s in rest.split()[:-1]}
        lists = (harness.ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        for folder in re.findall(r"add_subdirectory\(([\w/]+)\)", lists):
            self.assertIn(folder.split("/")[0], copied)

    def test_targets_of_the_build_exist(self):
        lists = "\n".join(f.read_text(encoding="utf-8") for f in harness.ROOT.glob("*/**/CMakeLists.txt") if "build" not in f.parts)
        (command,) = [rest for rest in self.of_stage("build", "RUN") if "cmake --build" in rest]
        named = re.search(r"--target ([\w -]+?) &&", command)[1].split()
        presets = json.loads((harness.ROOT / "CMakePresets.json").read_text(encoding="utf-8"))
        self.assertIn(re.search(r"--preset (\w+)", command)[1], [p["name"] for p in presets["configurePresets"]])
        for target in named:
            self.assertRegex(lists, rf"add_executable\({target}\s")
        for stage, word, rest in self.instructions:
            if word == "COPY" and rest.startswith("--from=build"):
                for source in rest.split()[1:-1]:
                    self.assertEqual(source.rsplit("/", 1)[0], "/src/build/cpu/bin")
                    self.assertIn(source.rsplit("/", 1)[1], named, stage)

    def test_images_run_what_they_hold_as_a_numbered_user(self):
        for target in TARGETS:
            users = [u for stage in self.lineage(target) for u in self.of_stage(stage, "USER")]
            self.assertRegex(users[0], r"^[1-9]\d*:[1-9]\d*$", target)
            (entry,) = self.of_stage(target, "ENTRYPOINT")
            (program,) = json.loads(entry)
            copied = [s.rsplit("/", 1)[1] for rest in self.of_stage(target, "COPY") for s in rest.split()[1:-1]]
            self.assertIn(program.rsplit("/", 1)[1], copied)

    def test_ghz_is_the_one_that_the_tests_use(self):
        install = (harness.ROOT / "deploy/install.sh").read_text(encoding="utf-8")
        (command,) = self.of_stage("go", "RUN")
        self.assertIn(re.search(r"\S+/cmd/ghz@\S+", command)[0], install)

    def test_the_ignore_file_keeps_out_what_is_large(self):
        ignore = (harness.ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        self.assertEqual(ignore[1], "*")
        self.assertTrue(any(fnmatch.fnmatch("tests/data", line) for line in ignore))


class RuntimePackages(unittest.TestCase):
    def test_they_hold_every_library_that_the_binaries_load(self):
        if not shutil.which("dpkg-query") or not shutil.which("apt-cache"):
            self.skipTest("not a Debian or Ubuntu")
        binaries = [harness.BIN / name for name in ("marcoro", "marcoro-coordinator", "marcoro-worker")]
        if not all(b.exists() for b in binaries):
            self.skipTest(f"the binaries are not in {harness.BIN}")
        listed = output_of(harness.ROOT / "deploy/install.sh", "--list-runtime").split()
        installed = set(listed)
        for line in output_of("apt-cache", "depends", "--recurse", "--important", "--installed", *listed).splitlines():
            installed.add(re.sub(r"^[ |]*(Depends|PreDepends): ", "", line).strip())
        paths = {path for binary in binaries for path in re.findall(r"=> (/\S+)", output_of("ldd", binary))
                 if not re.search(r"/lib(asan|ubsan|tsan)\.", path)}  # sanitized builds are not put into images
        self.assertGreater(len(paths), 10)
        # The same file is known by its path in /lib or in /usr/lib.
        names = {path: {path.removeprefix("/usr"), "/usr" + path.removeprefix("/usr")} for path in paths}
        found = subprocess.run(["dpkg-query", "-S", *set().union(*names.values())], capture_output=True, text=True, timeout=120,
                               check=False).stdout
        package_of = {line.split(": ")[1]: line.split(":")[0] for line in found.splitlines()}
        for path in paths:
            packages = {package_of[name] for name in names[path] if name in package_of}
            self.assertTrue(packages & installed, f"{path} is in {packages or 'no package'}, which --runtime does not install")


if __name__ == "__main__":
    harness.main()
