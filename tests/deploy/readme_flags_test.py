"""The README's tables of flags are the programs' own."""

import subprocess
import sys
import unittest

import harness
import readme_flags


class Readme(unittest.TestCase):
    def test_tables_are_the_programs_own(self):
        if not all((harness.BIN / name).exists() for name in ("marcoro", "marcoro-coordinator", "marcoro-worker")):
            self.skipTest(f"the binaries are not in {harness.BIN}")
        run = subprocess.run([sys.executable, harness.ROOT / "tests/deploy/readme_flags.py", "--bin", harness.BIN], capture_output=True,
                             text=True, timeout=120, check=False)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


class Comparison(unittest.TestCase):
    TABLES = {"marcoro-worker": "\n| new |\n\n", "marcoro serve": "\n| serve |\n\n"}

    def test_a_table_is_replaced_and_what_stands_around_it_stays(self):
        text, problems = readme_flags.updated(
            "a\n<!-- flags:marcoro-worker -->\n| old |\n<!-- /flags -->\nb\n<!-- flags:marcoro serve -->\n<!-- /flags -->\nc\n", self.TABLES)
        self.assertEqual(text, "a\n<!-- flags:marcoro-worker -->\n\n| new |\n\n<!-- /flags -->\nb\n"
                               "<!-- flags:marcoro serve -->\n\n| serve |\n\n<!-- /flags -->\nc\n")
        self.assertEqual(problems, [])
        self.assertEqual(readme_flags.updated(text, self.TABLES), (text, []))

    def test_a_missing_a_double_and_a_foreign_table_are_named(self):
        table = "<!-- flags:{} -->\n<!-- /flags -->\n"
        _, problems = readme_flags.updated(table.format("marcoro-worker") * 2 + table.format("marcoro fly"), self.TABLES)
        self.assertEqual(len(problems), 3)
        self.assertIn("no table for marcoro serve", problems[0])
        self.assertIn("marcoro fly, which is no program", problems[1])
        self.assertIn("2 tables for marcoro-worker", problems[2])


if __name__ == "__main__":
    harness.main()
