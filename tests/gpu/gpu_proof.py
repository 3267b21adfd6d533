"""What the tests of pack.sh and run.sh share: where they are, and how they are run."""

import pathlib
import subprocess
import sys
import unittest

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT / "tests/deploy"))
import harness  # pylint: disable=wrong-import-position,unused-import

OPS = ("attention", "embed", "gather_rows", "logits", "matmul", "matmul_clusters", "matmul_codes", "matmul_quantized", "matmul_warpgroups", "quantize", "rms_norm", "rope", "row_stage", "sampling",
       "swiglu")
OP_TESTS = sorted(f"cuda_{op}_gpu_test" for op in OPS)
PROGRAMS = [*OP_TESTS, "gpu_determinism_test", "gpu_model_test", "gpu_serve_test", "kernels_bench", "kernels_test", "marcoro", "marcoro-coordinator",
            "marcoro-worker", "matmul_test"]


class ScriptTest(unittest.TestCase):
    def call(self, script, *arguments, **options):
        return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False, stdin=subprocess.DEVNULL,
                              **options)

    def assert_refuses(self, run, *words):
        self.assertNotEqual(run.returncode, 0, run.stdout)
        for word in words:
            self.assertIn(word, run.stderr)
