"""tests/gpu/run.sh: its one line without a GPU, and its table and JSON over programs that pass, fail, hang or cannot start."""

import fnmatch
import json
import os
import pathlib
import shutil
import tempfile

import gpu_proof
from gpu_proof import OP_TESTS, PROGRAMS, harness

PASSES = 'echo "[==========] 3 tests from 1 test suite ran."; echo "[  PASSED  ] 3 tests."'
FAILS = """echo '[  FAILED  ] Ropes.AreLong, where GetParam() = "cuda" (3 ms)'; echo ' 1 FAILED TEST'; exit 1"""
HANGS = "exec sleep 300"
DEVICE = '{"name": "Test GPU", "capability": "9.0", "driver": "13.0"}'
NO_DEVICE = "kernels_bench: no GPU: this machine has no NVIDIA driver, or a container hides it (--gpus=all)"
BENCH = f"""case "$*" in
  *--device*) echo '{DEVICE}' ;;
  *) for a in "$@"; do case $a in --json_file=*) echo '{{"backend": "cuda-sm_90a"}}' >"${{a#*=}}" ;; esac; done; echo 'op shape ratio' ;;
esac"""
# With PyTorch and transformers.
PYTHON = """case $1 in
  -c) ;;
  *) echo '{"ratio": 1.9}' >"$4"; echo "$1 of $(cat "$3")" ;;
esac"""
CONFIG = """{
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "num_key_value_heads": 2,
  "vocab_size": 40
}
"""
# Keeps the checkpoint that is made for it.
SERVER = """case $1 in
  serve) case "$*" in *zeros-7b*) cp "${2#--model=}/model.safetensors" results/first_token_7b.safetensors ;; esac
    echo 'ready: 127.0.0.1'; exec sleep 300 ;;
  bench) for a in "$@"; do case $a in --json=*) echo '{"itl": 2}' >"${a#*=}" ;; esac; done ;;
esac"""


class Run(gpu_proof.ScriptTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        (self.folder / "bin").mkdir()
        (self.folder / "tools").mkdir()
        (self.folder / "tests/data/mistral-7b").mkdir(parents=True)
        (self.folder / "tests/data/mistral-7b/config.json").write_text(CONFIG, encoding="utf-8")
        shutil.copy(gpu_proof.FOLDER / "run.sh", self.folder)
        (self.folder / "pack.txt").write_text('commit=abc-"dirty"\narchitectures=80;90a-real\nglibc=2.17\n', encoding="utf-8")
        for name in PROGRAMS:
            self.program(name, PASSES)
        self.program("kernels_bench", BENCH)
        self.program("marcoro", SERVER)
        self.program("python3", PYTHON, "tools")
        self.sanitizer('echo "========= ERROR SUMMARY: 0 errors"')

    def program(self, name, text, folder="bin"):
        path = self.folder / folder / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    def sanitizer(self, text):
        self.program("compute-sanitizer", text, "tools")

    def prove(self, *arguments, seconds=60):
        run = self.call(self.folder / "run.sh", *arguments, cwd="/",
                        env={**os.environ, "MARCORO_PROOF_SECONDS": str(seconds), "PATH": f"{self.folder}/tools:{os.environ['PATH']}"})
        results = self.folder / "results/results.json"
        return run, json.loads(results.read_text(encoding="utf-8")) if results.exists() else None

    def results_of(self, report):
        return {part["part"]: part["result"] for part in report["parts"]}

    def test_wrong_arguments_are_a_usage_error(self):
        for arguments in (["--no-such-option"], ["--parts", "i"], ["--parts"], ["--seed", "x"]):
            run, report = self.prove(*arguments)
            self.assertEqual(run.returncode, 2, arguments)
            self.assertIn("usage", run.stderr)
            self.assertIsNone(report)

    def test_where_no_gpu_is_it_says_so_in_one_line(self):
        self.program("kernels_bench", f"echo '{NO_DEVICE}' >&2; exit 1")
        run, report = self.prove()
        self.assertEqual(run.returncode, 3)
        self.assertEqual(run.stdout, f"run.sh: nothing can be proved here: {NO_DEVICE}\n")
        self.assertIsNone(report)

    def test_everything_passes(self):
        run, report = self.prove("--seed", "42")
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        self.assertEqual(self.results_of(report), {part: "passed" for part in "abcdefgh"})
        self.assertEqual((report["device"], report["commit"], report["seed"]), (json.loads(DEVICE), 'abc-"dirty"', 42))
        self.assertRegex(report["date"], r"^\d{4}-\d\d-\d\dT")
        ops = report["parts"][0]["steps"]
        self.assertEqual([step["name"] for step in ops], [*OP_TESTS, "kernels_test", "matmul_test"])
        self.assertEqual({(step["result"], step["detail"]) for step in ops}, {("passed", "3 tests")})
        self.assertEqual([step["name"] for step in report["parts"][6]["steps"]],
                         ["kernels_bench", "serve_7b", "decode_batch_1", "decode_batch_8", "decode_batch_32", "prefill_2048", "first_token_7b"])
        self.assertEqual(report["measurements"]["kernels_bench"], {"backend": "cuda-sm_90a"})
        self.assertEqual(report["measurements"]["decode_batch_8"], {"itl": 2})
        self.assertLess(0, report["measurements"]["first_token_7b"]["milliseconds"])
        self.assertEqual(report["measurements"]["transformers"], {"ratio": 1.9})
        self.assertIn('transformers_speed.py of {"itl": 2}', run.stdout)
        for part in report["parts"]:
            self.assertRegex(run.stdout, rf"(?m)^{part['part']}  {part['name']} +passed ")
        self.assertIn("op shape ratio", run.stdout)

    def test_the_first_token_is_of_a_checkpoint_of_zeros(self):
        self.prove("--parts", "g")
        data = (self.folder / "results/first_token_7b.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + length])
        end = 0
        for tensor in header.values():
            count = 1
            for size in tensor["shape"]:
                count *= size
            self.assertEqual(tensor["data_offsets"], [end, end + 2 * count])
            end += 2 * count
        self.assertEqual(data[8 + length:], bytes(end))
        self.assertEqual(len(header), 3 + 2 * 9)
        self.assertEqual(header["model.layers.1.self_attn.k_proj.weight"]["shape"], [32, 64])
        self.assertEqual(header["model.norm.weight"]["shape"], [64])
        self.assertFalse((self.folder / "results/zeros-7b").exists())

    def test_each_number_of_ranks_is_some_parts(self):
        """Of the names that the determinism tests have on a GPU, each is run, by one part."""
        lone = ["Ranks/DeterminismTest.X/cuda_tp1", *(f"Ranks/DeviceSamplingTest.X/tp{ranks}" for ranks in (1, 2, 4)),
                "Ranks/DeviceSamplingGroupTest.X/tp4"]
        groups = ["Ranks/DeterminismTest.X/cuda_tp2", "Ranks/DeterminismTest.X/cuda_tp2_quantized_activations_kv_fp8",
                  "Ranks/DeterminismTest.X/cuda_tp4"]
        self.program("gpu_determinism_test", f"echo \"filter $1\"; {PASSES}")
        self.prove("--parts", "cd")

        def runs(log, name):
            line = (self.folder / f"results/{log}.log").read_text(encoding="utf-8").splitlines()[0]
            wanted, _, unwanted = line.removeprefix("filter --gtest_filter=").partition("-")
            return any(fnmatch.fnmatchcase(name, one) for one in wanted.split(":")) and not any(
                fnmatch.fnmatchcase(name, one) for one in unwanted.split(":"))

        for name in [*lone, *groups]:
            self.assertEqual(runs("gpu_determinism_test", name), name in lone, name)
            self.assertEqual(runs("gpu_determinism_test_ranks", name), name in groups, name)

    def test_a_failure_is_named_and_hides_nothing(self):
        self.program("cuda_rope_gpu_test", FAILS)
        self.program("gpu_serve_test", "echo 'terminate called'; exit 134")
        run, report = self.prove()
        self.assertEqual(run.returncode, 1)
        self.assertEqual(self.results_of(report), {"a": "failed", "b": "passed", "c": "passed", "d": "failed", "e": "failed", "f": "passed", "g": "passed",
                                                   "h": "passed"})
        steps = {step["name"]: step for step in report["parts"][0]["steps"]}
        self.assertEqual((steps["cuda_rope_gpu_test"]["result"], steps["cuda_rope_gpu_test"]["detail"]), ("failed", "Ropes.AreLong"))
        self.assertEqual(steps["cuda_swiglu_gpu_test"]["result"], "passed")
        self.assertRegex(run.stdout, r"(?m)^a  .*failed .*cuda_rope_gpu_test: failed \(Ropes\.AreLong\)")
        self.assertRegex(run.stdout, r"(?m)^e  .*failed .*terminate called")
        self.assertIn("Ropes.AreLong", (self.folder / "results/cuda_rope_gpu_test.log").read_text(encoding="utf-8"))

    def test_a_program_without_tests_has_failed(self):
        self.program("kernels_test", 'echo "[  PASSED  ] 0 tests."')
        _, report = self.prove("--parts", "a")
        self.assertEqual(self.results_of(report), {"a": "failed"})

    def test_what_hangs_is_ended_when_the_time_is_over(self):
        self.program("gpu_determinism_test", HANGS)
        run, report = self.prove("--parts", "bcd", seconds=2)
        self.assertEqual(run.returncode, 1)
        self.assertEqual(self.results_of(report), {"b": "passed", "c": "out of time", "d": "not run"})
        self.assertEqual(report["parts"][2]["steps"][0]["detail"], "no time left")
        self.assertLess(report["seconds"], 10)

    def test_what_the_box_lacks_is_said_and_is_no_failure(self):
        if list(pathlib.Path("/usr/local").glob("cuda*/bin/compute-sanitizer")) or shutil.which("compute-sanitizer"):
            self.skipTest("this machine has compute-sanitizer")
        (self.folder / "tools/compute-sanitizer").unlink()
        self.program("gpu_serve_test", "echo 'x: error while loading shared libraries: libnccl.so.2: cannot open shared object file' >&2; exit 127")
        run, report = self.prove("--parts", "ef")
        self.assertEqual(run.returncode, 0, run.stdout)
        self.assertEqual(self.results_of(report), {"e": "not run", "f": "not run"})
        self.assertIn("libnccl.so.2", run.stdout)
        self.assertIn("no compute-sanitizer", run.stdout)

    def test_transformers_are_compared_with_where_they_are(self):
        run, report = self.prove("--parts", "h")
        self.assertEqual(self.results_of(report), {"h": "not run"})
        self.assertIn("part g measured no batch of 1", run.stdout)
        self.program("python3", "echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1", "tools")
        run, report = self.prove("--parts", "gh")
        self.assertEqual(run.returncode, 0, run.stdout)
        self.assertEqual(self.results_of(report), {"g": "passed", "h": "not run"})
        self.assertIn("no PyTorch", run.stdout)

    def test_what_the_sanitizer_finds_is_a_failure(self):
        self.sanitizer('case "$*" in *memcheck*logits*) echo "========= ERROR SUMMARY: 2 errors"; exit 86 ;; esac')
        run, report = self.prove("--parts", "f")
        self.assertEqual(run.returncode, 1)
        self.assertEqual([step["name"] for step in report["parts"][0]["steps"] if step["result"] == "failed"], ["memcheck_cuda_logits_gpu_test"])
        self.assertIn("2 errors", run.stdout)

    def test_a_server_that_does_not_start_is_a_failure(self):
        self.program("marcoro", "echo 'GPU memory: needs 7.24 GiB, 1.00 GiB free: missing 6.24 GiB'; exit 1")
        run, report = self.prove("--parts", "g")
        self.assertEqual(run.returncode, 1)
        self.assertEqual([(s["name"], s["result"]) for s in report["parts"][0]["steps"]], [("kernels_bench", "passed"), ("serve_7b", "failed")])
        self.assertIn("missing 6.24 GiB", run.stdout)
        self.assertEqual(list(report["measurements"]), ["kernels_bench"])


if __name__ == "__main__":
    harness.main()
