"""What ptxas makes of every kernel stays within bounds: no spills, no stack, and no more registers than ptxas.json says.

  ptxas_test.py                          Parsing and Comparison, which need no compiler
  ptxas_test.py Kernels                  compiles the kernels with $MARCORO_NVCC, through ccache where it is
  ptxas_test.py --update LOG             writes ptxas.json from what 'nvcc -Xptxas=-v' printed

ptxas.json: for each architecture and each kernel, the most registers of its instances, in steps of 8: so many a multiprocessor hands out
at a time, fewer make no difference.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/deploy"))
import harness  # pylint: disable=wrong-import-position
from harness import unittest

BOUNDS = pathlib.Path(__file__).with_name("ptxas.json")
ARCHITECTURES = ("sm_80", "sm_90a")
MOST_REGISTERS = 255  # what a thread can have

ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def name_of(symbol):
    """RmsNormKernel of _ZN7marcoro4cuda44_GLOBAL__N__80f5eac8_11_rms_norm_cu_bc0efc2213RmsNormKernelILi4EEEvNS1_11RmsNormRowsE."""
    rest = symbol.removeprefix("_ZN")
    while match := re.match(r"\d+", rest):
        name, rest = rest[match.end():match.end() + int(match[0])], rest[match.end() + int(match[0]):]
        if name not in ("marcoro", "cuda") and not name.startswith("_GLOBAL__N_"):
            return name
    return symbol


def figures(log):
    """(architecture, kernel, registers, stack and spilled bytes) of every instance in what nvcc -Xptxas=-v printed."""
    found, current = [], None
    for line in log.splitlines():
        if match := ENTRY.search(line):
            current = [match[2], name_of(match[1]), None, None]
        elif current and (match := STACK.search(line)):
            current[3] = sum(map(int, match.groups()))
        elif current and (match := USED.search(line)):
            current[2] = int(match[1])
            found.append(tuple(current))
            current = None
    return found


def most_registers(found):
    """{architecture: {kernel: registers}}"""
    most = {}
    for architecture, kernel, registers, _ in found:
        kernels = most.setdefault(architecture, {})
        kernels[kernel] = max(registers, kernels.get(kernel, 0))
    return most


def complaints(found, bounds):
    """A line for each kernel that is out of its bounds."""
    lines = [f"{kernel} for {architecture} spills or has a stack: {bytes_} bytes" for architecture, kernel, _, bytes_ in found if bytes_ != 0]
    most = most_registers(found)
    for architecture, kernels in sorted(bounds.items()):
        have = most.get(architecture, {})
        lines += [f"{kernel} for {architecture} is bounded, but there is no such kernel" for kernel in sorted(kernels.keys() - have.keys())]
        lines += [f"{kernel} for {architecture} has {have[kernel]} registers and no bound" for kernel in sorted(have.keys() - kernels.keys())]
        for kernel in sorted(kernels.keys() & have.keys()):
            if have[kernel] > min(kernels[kernel], MOST_REGISTERS):
                lines.append(f"{kernel} for {architecture} has {have[kernel]} registers, at most {kernels[kernel]} are allowed")
    return lines


def bounds_for(kernels):
    return {kernel: min(-(-registers // 8) * 8, MOST_REGISTERS) for kernel, registers in sorted(kernels.items())}


def kernel_sources():
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").glob("*/*.cu"))


def compile_log(nvcc, sources):
    """What ptxas says of the sources, for all architectures."""
    command = [*([shutil.which("ccache")] if shutil.which("ccache") else []), nvcc, "-std=c++20", "--expt-relaxed-constexpr", "-O3", "-DNDEBUG",
               f"-I{ROOT}", "-Xptxas=-v"]
    for architecture in ARCHITECTURES:
        command.append(f"-gencode=arch={architecture.replace('sm', 'compute')},code={architecture}")
    def compile_one(source):
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run([*command, "-c", source, "-o", f"{folder}/object.o"], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
                                 env={**os.environ, "CCACHE_BASEDIR": str(ROOT), "CCACHE_NOHASHDIR": "1"})
        if run.returncode != 0:
            raise AssertionError(f"{source}: {run.stderr}")
        return run.stdout + run.stderr

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(compile_one, sources))


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7marcoro4cuda44_GLOBAL__N__80f5eac8_11_rms_norm_cu_bc0efc2213RmsNormKernelILi4EEEvNS1_11RmsNormRowsE' for 'sm_80'
ptxas info    : Function properties for _ZN7marcoro4cuda44_GLOBAL__N__80f5eac8_11_rms_norm_cu_bc0efc2213RmsNormKernelILi4EEEvNS1_11RmsNormRowsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 432 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN7marcoro4cuda44_GLOBAL__N__80f5eac8_11_rms_norm_cu_bc0efc2213RmsNormKernelILi8EEEvNS1_11RmsNormRowsE' for 'sm_80'
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers
ptxas info    : Compiling entry function '_ZN7marcoro4cuda9GapKernelEi' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


class Parsing(unittest.TestCase):
    def test_every_instance_is_found(self):
        self.assertEqual(figures(LOG), [("sm_80", "RmsNormKernel", 56, 0), ("sm_80", "RmsNormKernel", 96, 28), ("sm_90a", "GapKernel", 8, 0)])

    def test_the_largest_instance_counts(self):
        self.assertEqual(most_registers(figures(LOG)), {"sm_80": {"RmsNormKernel": 96}, "sm_90a": {"GapKernel": 8}})


class Comparison(unittest.TestCase):
    def test_spills_are_never_allowed(self):
        self.assertEqual(complaints(figures(LOG), most_registers(figures(LOG))), ["RmsNormKernel for sm_80 spills or has a stack: 28 bytes"])

    def test_every_kernel_has_a_bound_and_stays_within_it(self):
        found = [("sm_80", "A", 40, 0), ("sm_80", "B", 41, 0), ("sm_80", "D", 43, 0)]
        bounds = {"sm_80": {"A": 40, "B": 40, "E": 8}}
        self.assertEqual(complaints(found, bounds), [
            "E for sm_80 is bounded, but there is no such kernel", "D for sm_80 has 43 registers and no bound",
            "B for sm_80 has 41 registers, at most 40 are allowed"])

    def test_bounds_are_made_in_the_steps_that_registers_are_given_in(self):
        self.assertEqual(bounds_for({"A": 40, "B": 41, "C": 250, "D": 8}), {"A": 40, "B": 48, "C": 255, "D": 8})

    def test_the_file_has_every_architecture_and_no_impossible_bound(self):
        bounds = json.loads(BOUNDS.read_text(encoding="utf-8"))
        self.assertEqual(tuple(sorted(bounds)), ARCHITECTURES)
        for kernels in bounds.values():
            self.assertGreater(len(kernels), 15)
            self.assertLessEqual(max(kernels.values()), MOST_REGISTERS)


class Kernels(unittest.TestCase):
    def test_they_stay_within_their_bounds(self):
        nvcc = os.environ.get("MARCORO_NVCC") or shutil.which("nvcc")
        if not nvcc:
            self.skipTest("no nvcc: MARCORO_NVCC names none")
        found = figures(compile_log(nvcc, kernel_sources()))
        self.assertEqual(complaints(found, json.loads(BOUNDS.read_text(encoding="utf-8"))), [])


def update(log):
    most = most_registers(figures(log))
    ordered = {architecture: bounds_for(most[architecture]) for architecture in ARCHITECTURES}
    BOUNDS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--update":
        update(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
    else:
        harness.main()
