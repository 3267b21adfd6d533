#!/usr/bin/env python3
"""Compares the README's tables of flags with the programs' own.

  readme_flags.py [--update] [--readme FILE] [--bin FOLDER]

A table stands between the lines <!-- flags:PROGRAM --> and <!-- /flags -->, PROGRAM being marcoro-coordinator, marcoro-worker or
"marcoro COMMAND". Every program must have one. --update writes the tables; otherwise differences are printed, and the exit code is 1.
"""

import argparse
import difflib
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = re.compile(r"(<!-- flags:([\w -]+?) -->\n)(.*?)(<!-- /flags -->)", re.DOTALL)


def output_of(binaries, words):
    command = [str(binaries / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def programs(binaries):
    """Every program that takes flags: the daemons, and the commands that `marcoro help` lists."""
    commands = re.findall(r"^  ([a-z]+) ", output_of(binaries, ["marcoro", "help"]), re.M)
    return ["marcoro-coordinator", "marcoro-worker"] + [f"marcoro {c}" for c in commands if c != "help"]


def table_of(binaries, program):
    return "\n" + output_of(binaries, [*program.split(), "--help-markdown"]).strip() + "\n\n"


def updated(readme, tables):
    """The README with these tables, and what is wrong with its markers."""
    found = [match[1] for match in (m.groups() for m in TABLE.finditer(readme))]
    problems = [f"the README has no table for {p}: put <!-- flags:{p} --> and <!-- /flags --> where it shall stand, then run --update"
                for p in tables if p not in found]
    problems += [f"the README has a table for {p}, which is no program" for p in found if p not in tables]
    problems += [f"the README has {found.count(p)} tables for {p}" for p in sorted(set(found)) if found.count(p) > 1]
    text = TABLE.sub(lambda m: m[1] + tables.get(m[2], m[3]) + m[4], readme)
    return text, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/cpu/bin")
    arguments = parser.parse_args()
    tables = {program: table_of(arguments.bin, program) for program in programs(arguments.bin)}
    before = arguments.readme.read_text(encoding="utf-8")
    after, problems = updated(before, tables)
    if arguments.update:
        arguments.readme.write_text(after, encoding="utf-8")
    elif after != before:
        sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "README.md", "the programs' flags"))
        problems.append("the README's tables differ from the programs' flags: tests/deploy/readme_flags.py --update writes them")
    print("\n".join(problems))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
