"""tests/gpu/pack.sh: what it refuses, and what it makes of a build whose programs stand for the real ones."""

import pathlib
import shutil
import tempfile

import gpu_proof
from gpu_proof import PROGRAMS, harness

PACK = gpu_proof.FOLDER / "pack.sh"


class Pack(gpu_proof.ScriptTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.build = pathlib.Path(folder.name) / "build"
        self.output = pathlib.Path(folder.name) / "packed"
        (self.build / "bin").mkdir(parents=True)
        self.configure("ON")

    def configure(self, cuda):
        (self.build / "CMakeCache.txt").write_text(f"MARCORO_CUDA:BOOL={cuda}\nCMAKE_CUDA_ARCHITECTURES:STRING=80;90a-real\n", encoding="utf-8")

    def build_programs(self):
        """Real executables, since pack.sh looks into them: copies of a small one of this system."""
        for name in PROGRAMS:
            shutil.copy(shutil.which("true"), self.build / "bin" / name)

    def pack(self, *more):
        return self.call(PACK, "--build", self.build, "--output", self.output, *more)

    def test_unknown_options_are_a_usage_error(self):
        for arguments in (["--no-such-option"], ["--build"], ["--limit", "much"], ["more"]):
            run = self.call(PACK, *arguments)
            self.assertEqual(run.returncode, 2)
            self.assertIn("usage", run.stderr)

    def test_refuses_what_is_no_build(self):
        (self.build / "CMakeCache.txt").unlink()
        self.assert_refuses(self.pack(), "no build", "cmake --preset cuda")
        self.assertFalse(self.output.exists())

    def test_refuses_a_build_without_cuda(self):
        self.configure("OFF")
        self.assert_refuses(self.pack(), "without CUDA")

    def test_names_the_programs_that_are_missing(self):
        self.build_programs()
        for name in ("kernels_bench", "cuda_rope_gpu_test"):
            (self.build / "bin" / name).unlink()
        self.assert_refuses(self.pack(), "kernels_bench", "cuda_rope_gpu_test")
        self.assertFalse(self.output.exists())

    def test_leaves_a_folder_alone_that_it_did_not_make(self):
        self.build_programs()
        self.output.mkdir()
        (self.output / "letter").write_text("dear", encoding="utf-8")
        self.assert_refuses(self.pack(), "not made by this script")
        self.assertEqual((self.output / "letter").read_text(encoding="utf-8"), "dear")

    def test_the_folder_has_all_that_the_programs_need(self):
        self.build_programs()
        shutil.copy(shutil.which("bash"), self.build / "bin" / "marcoro")  # has a library beside glibc
        shutil.copy(shutil.which("true"), self.build / "bin" / "cuda_later_gpu_test")
        run = self.pack()
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn(f"{len(PROGRAMS) + 1} programs", run.stdout)
        self.assertEqual({p.name for p in (self.output / "bin").iterdir()}, {*PROGRAMS, "cuda_later_gpu_test"})
        self.assertTrue(list((self.output / "lib").glob("libtinfo.so*")))
        self.assertFalse(list((self.output / "lib").glob("libc.so*")))
        self.assertTrue((self.output / "old/libc.so.6").exists())
        for name in ("tiny/model.safetensors", "small/golden.json", "sampling_cases.json", "mistral-7b/config.json", "mistral-7b/tokenizer.model"):
            self.assertTrue((self.output / "tests/data" / name).exists(), name)
        self.assertRegex((self.output / "pack.txt").read_text(encoding="utf-8"), r"(?s)commit=.+\narchitectures=80;90a-real\nglibc=2\.\d+\n")
        self.assertLess(pathlib.Path(f"{self.output}.tar.xz").stat().st_size, 50_000_000)
        listed = self.call("tar", "-tf", f"{self.output}.tar.xz").stdout.splitlines()
        self.assertLessEqual({"packed/run.sh", "packed/transformers_speed.py", "packed/bin/marcoro", "packed/old/libc.so.6"}, set(listed))
        self.assertEqual(self.pack().returncode, 0, "a folder of its own is made anew")

    def test_programs_run_with_the_glibc_that_was_packed(self):
        self.build_programs()
        shutil.copy(shutil.which("bash"), self.build / "bin" / "marcoro")
        self.assertEqual(self.pack().returncode, 0)
        run = self.call(self.output / "old/marcoro", "-c", 'cat /proc/$$/maps; readlink /proc/$$/exe; true')
        self.assertIn(str(self.output / "old/libc.so.6"), run.stdout.replace("/old/../", "/"), run.stderr)
        # Where a program looks for those that it starts, their scripts lie.
        self.assertEqual(pathlib.Path(run.stdout.splitlines()[-1]).parent, self.output / "old")
        self.assertTrue((self.output / "old/marcoro-worker").exists())

    def test_refuses_more_than_the_limit_and_names_what_takes_it(self):
        self.build_programs()
        shutil.copy(shutil.which("bash"), self.build / "bin/matmul_test")
        self.assert_refuses(self.pack("--limit", 1_000_000), "more than 1000000", "bin/matmul_test")
        self.assertFalse(pathlib.Path(f"{self.output}.tar.xz").exists())


if __name__ == "__main__":
    harness.main()
