"""The source tree keeps to the arrows, and an include against them is found."""

import pathlib
import tempfile
import unittest

import harness
import include_direction


class SourceTree(unittest.TestCase):
    def test_every_include_follows_the_arrows(self):
        found, checked = include_direction.violations(harness.ROOT)
        self.assertEqual(found, [])
        self.assertGreater(checked, 500)

    def test_every_line_names_a_folder_that_is_there(self):
        for folder in include_direction.ALLOWED:
            self.assertTrue((harness.ROOT / folder).is_dir(), folder)


class MadeUpTree(unittest.TestCase):
    def found(self, path, include, others=()):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for other in others:
                (root / other).parent.mkdir(parents=True, exist_ok=True)
                (root / other).touch()
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(f"#pragma once\n#include {include}\n", encoding="utf-8")
            found, checked = include_direction.violations(root)
            self.assertEqual(checked, 1)
            return found

    def test_an_include_against_the_arrows_is_named_with_its_line(self):
        self.assertIn("worker/scheduler/scheduler.cc:2:",
                      self.found("worker/scheduler/scheduler.cc", '"worker/engine/engine.h"')[0])

    def test_refused(self):
        for path, include in (
            ("kernels/cpu/matmul.cc", '"worker/model/config.h"'),
            ("worker/scheduler/scheduler.h", '"kernels/tensor.h"'),
            ("worker/scheduler/scheduler.h", '"marcoro/worker/v1/worker.pb.h"'),
            ("worker/collective/gloo.cc", '"worker/group/group.h"'),
            ("worker/group/group.cc", '"worker/scheduler/scheduler.h"'),
            ("worker/model/transformer.cc", '"worker/engine/engine.h"'),
            ("worker/sampling/sampler.cc", '"worker/model/config.h"'),
            ("worker/engine/engine.cc", '"marcoro/worker/v1/worker.pb.h"'),
            ("worker/engine/engine.cc", '"worker/config.h"'),
            ("worker/service/convert.cc", '"worker/model/config.h"'),
            ("worker/service/convert.cc", '"marcoro/v1/inference.pb.h"'),
            ("worker/main.cc", '"coordinator/text/tokenizer.h"'),
            ("coordinator/text/tokenizer.cc", '"coordinator/routing/router.h"'),
            ("coordinator/admission/admission.cc", '"coordinator/text/tokenizer.h"'),
            ("coordinator/routing/router.cc", '"coordinator/admission/admission.h"'),
            ("coordinator/routing/router.cc", '"marcoro/v1/inference.pb.h"'),
            ("coordinator/api/server.cc", '"worker/config.h"'),
            ("coordinator/main.cc", '"worker/config.h"'),
            ("deploy/flags/flag_table.cc", '"kernels/check.h"'),
            ("deploy/cli/chat.cc", '"coordinator/routing/router.h"'),
            ("worker/main.cc", '"tests/worker/engine/test_group.h"'),
            ("worker/main.cc", "<tests/worker/engine/test_group.h>"),
            ("worker/new_folder/file.cc", '"coordinator/config.h"'),
            ("deploy/new_folder/file.cc", '"deploy/flags/flag_table.h"'),
        ):
            with self.subTest(path=path, include=include):
                self.assertEqual(len(self.found(path, include)), 1)

    def test_an_include_that_is_not_written_from_the_root_is_refused(self):
        self.assertEqual(len(self.found("worker/main.cc", '"config.h"', others=["worker/config.h"])), 1)
        self.assertEqual(len(self.found("worker/engine/engine.cc", '"../group/group.h"')), 1)

    def test_allowed(self):
        for path, include in (
            ("kernels/cpu/matmul.cc", '"kernels/tensor.h"'),
            ("worker/scheduler/scheduler.cc", '"kernels/check.h"'),
            ("worker/group/step_broadcast.cc", '"worker/scheduler/step_plan.h"'),
            ("worker/model/transformer.h", '"worker/collective/communicator.h"'),
            ("worker/engine/engine.h", '"worker/sampling/sampler.h"'),
            ("worker/process.cc", '"worker/weights/loader.h"'),
            ("coordinator/api/server.cc", '"marcoro/v1/inference.pb.h"'),
            ("coordinator/config.cc", '"coordinator/text/chat_template.h"'),
            ("tests/worker/group/group_test.cc", '"worker/group/group.h"'),
            ("worker/engine/engine.cc", '"absl/status/status.h"'),
            ("worker/engine/engine.cc", "<vector>"),
        ):
            with self.subTest(path=path, include=include):
                self.assertEqual(self.found(path, include), [])


if __name__ == "__main__":
    harness.main()
