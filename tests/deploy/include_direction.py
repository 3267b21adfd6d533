#!/usr/bin/env python3
"""Checks every include of ours against the direction in which the folders depend on each other.

  include_direction.py ROOT

A folder may include itself, what its line of ALLOWED names, and nothing else of ours. Prints one line for each
include against the arrows and leaves with 1 if there was one.
"""

import pathlib
import re
import sys

WORKER_PROTO = "marcoro/worker/v1"
PUBLIC_PROTO = ("marcoro/v1", "google/rpc", "grpc/health/v1")

# Folder -> folders (with all that is below them) or single headers. The longest folder that holds a file decides.
ALLOWED = {
    "kernels": (),
    # Where no GPU is, kernels stand on the emulator.
    "kernels/cuda": ("kernels", "tests/kernels/simt"),
    "kernels/bench": ("kernels", "deploy/flags"),
    "worker/scheduler": ("kernels/check.h",),
    "worker/collective": ("kernels",),
    "worker/group": (WORKER_PROTO, "worker/scheduler/step_plan.h", "worker/collective", "kernels/check.h"),
    "worker/model": ("kernels", "worker/collective", "worker/scheduler/step_plan.h"),
    "worker/weights": ("kernels", "worker/model"),
    "worker/sampling": ("kernels", "worker/scheduler"),
    "worker/engine": ("kernels", "worker/scheduler", "worker/group", "worker/model", "worker/sampling"),
    # Requests of the engine are made of sampling parameters and of what the scheduler calls a sequence.
    "worker/service": (WORKER_PROTO, "worker/engine", "worker/sampling", "worker/scheduler", "kernels/check.h"),
    # main and process put the parts together.
    "worker": ("kernels", "deploy/flags", WORKER_PROTO),
    "coordinator/text": (),
    "coordinator/admission": (),
    "coordinator/routing": (WORKER_PROTO,),
    # The only user of the public protos. A router's requests and updates are messages of the worker's.
    "coordinator/api": (*PUBLIC_PROTO, WORKER_PROTO, "coordinator/text", "coordinator/admission", "coordinator/routing"),
    "coordinator": ("deploy/flags",),
    "deploy/flags": (),
    # Fills the cache that worker/weights finds models in.
    "deploy/hub": ("worker/weights/hub_cache.h", "worker/model/text_file.h", "kernels/check.h"),
    # A client of both; it passes flags on to both, and looks into checkpoints and at this machine's limits itself.
    "deploy/cli": (*PUBLIC_PROTO, WORKER_PROTO, "deploy/flags", "deploy/hub", "coordinator/config.h", "coordinator/text",
                   "worker/config.h", "worker/weights", "worker/model", "kernels"),
    "tests": ("coordinator", "worker", "kernels", "deploy", *PUBLIC_PROTO, WORKER_PROTO),
}
# A parent's own files may use all its folders; the folders do not inherit this.
COMPOSERS = ("kernels", "worker", "coordinator", "tests")

SOURCE_SUFFIXES = (".cc", ".h", ".cu", ".cuh", ".inc")
OURS = ("proto", "coordinator", "worker", "kernels", "deploy", "tests", *PUBLIC_PROTO, WORKER_PROTO)
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def is_below(path, folder):
    return path == folder or path.startswith(folder + "/")


def folder_of(path):
    """The folder whose line decides about a file."""
    return max((folder for folder in ALLOWED if is_below(path, folder)), key=len, default=None)


def problem_of(root, path, quote, included):
    """Why `path` must not include `included`; None where it may."""
    if ".." in included.split("/") or included.startswith("/"):
        return "is not written from the repository root"
    if not any(is_below(included, top) for top in OURS):
        if quote == '"' and (root / path).parent.joinpath(included).is_file():
            return "is not written from the repository root"
        return None  # another project's
    folder = folder_of(path)
    if folder is None:
        return "stands in a folder that has no line in include_direction.py"
    if folder_of(included) == folder or (folder in COMPOSERS and is_below(included, folder)):
        return None
    if any(is_below(included, allowed) for allowed in ALLOWED[folder]):
        return None
    return f"{folder} may include itself and: {', '.join(ALLOWED[folder]) or 'nothing else'}"


def source_files(root):
    for top in ("coordinator", "worker", "kernels", "deploy", "tests"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix in SOURCE_SUFFIXES:
                yield file.relative_to(root).as_posix()


def violations(root):
    """Lines 'file:line: include "x": why', and the number of includes that were looked at."""
    found, checked = [], 0
    for path in source_files(root):
        for number, line in enumerate((root / path).read_text(encoding="utf-8").splitlines(), start=1):
            match = INCLUDE.match(line)
            if not match:
                continue
            checked += 1
            problem = problem_of(root, path, *match.groups())
            if problem:
                found.append(f"{path}:{number}: #include {match.group(2)}: {problem}")
    return found, checked


def main():
    found, checked = violations(pathlib.Path(sys.argv[1]))
    print("\n".join(found + [f"{checked} includes, {len(found)} against the arrows"]))
    sys.exit(1 if found or checked == 0 else 0)


if __name__ == "__main__":
    main()
