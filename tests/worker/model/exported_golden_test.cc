// A checkpoint that is quantized in a file against the same quantized while it is loaded.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/kernels/cuda/device_backends.h"
#include "tests/worker/model/golden_logits.h"
#include "tests/worker/model/test_model.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_export.h"
#include "worker/weights/checkpoint_source.h"

namespace marcoro {
namespace {

using Logits = std::vector<std::vector<float>>;

// Writes the checkpoint in FP8 to the folder.
absl::Status Export(const std::string& in, const std::string& out) {
  auto source = CheckpointSource::Open(in);
  if (!source.ok()) return source.status();
  const ModelConfig config = LoadModelConfig(in).value();
  auto plan = PlanExport(**source, config, ExportFormat::kFp8, 5'000'000'000);
  if (!plan.ok()) return plan.status();
  auto writer = CheckpointWriter::Begin({.directory = out, .identity = ""}, plan->shards);
  if (!writer.ok()) return writer.status();
  ExportOptions options;
  options.parallel = [](int64_t n, const std::function<void(int64_t)>& work) {
    for (int64_t i = 0; i < n; ++i) work(i);
  };
  absl::Status status = ExportTensors(**source, *plan, options, **writer);
  if (!status.ok()) return status;
  auto json = Fp8ConfigJson(testing::ReadFile(in + "/config.json"), in);
  if (!json.ok()) return json.status();
  status = (*writer)->AddFile("config.json", *json);
  return status.ok() ? (*writer)->Commit() : status;
}

class ExportedGoldenTest : public ::testing::TestWithParam<const char*> {
 protected:
  ExportedGoldenTest() {
    const absl::Status status = Export(testing::TestData(GetParam()), exported_);
    EXPECT_TRUE(status.ok()) << status;
  }

  testing::TempFolder folder_;
  const std::string exported_ = folder_.File("exported");
};

TEST_P(ExportedGoldenTest, StaysWithinTheDivergenceBoundOfQuantizingWhileLoading) {
  for (const std::string& backend : AvailableBackends()) {
    // Where a device computes but one prompt of "tiny", that is above the bound of the mean.
    if (backend == "cuda" && !DeviceRunsModels()) continue;
    TestModel loaded({.checkpoint = GetParam(), .backend = backend});
    TestModel exported({.checkpoint = exported_, .backend = backend});
    double from_loaded = 0;
    double from_golden = 0;
    int count = 0;
    for (const GoldenPrompt& prompt : ReadGolden(GetParam(), "_fp8", backend)) {
      loaded.Restart();
      exported.Restart();
      const Logits expected = loaded.Step(prompt.ids);
      const Logits logits = exported.Step(prompt.ids);
      for (int position = prompt.first; position < prompt.last; ++position) {
        from_loaded += Divergence(expected[position], logits[position]);
        from_golden += Divergence(prompt.logits[position - prompt.first], logits[position]);
        ++count;
      }
    }
    std::printf("%s %s: mean KL from loading %.2e, from the reference %.2e\n", GetParam(),
                backend.c_str(), from_loaded / count, from_golden / count);
    EXPECT_LE(from_loaded / count, 1.5e-4) << backend;
    EXPECT_LE(from_golden / count, 1.5e-4) << backend;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, ExportedGoldenTest,
                         ::testing::Values("tiny", "small", "window"),
                         [](const auto& test) { return std::string(test.param); });

// A float32 checkpoint has float32 scales, which nothing is rounded of.
TEST(ExportedTest, WithScalesInFloat32TheLogitsAreTheSameBits) {
  testing::TempFolder folder;
  const std::string exported = folder.File("exported");
  ASSERT_TRUE(Export(testing::TestData("window"), exported).ok());
  for (const std::string& backend : AvailableBackends()) {
    TestModel from_plain({.checkpoint = "window", .backend = backend});
    TestModel from_fp8({.checkpoint = exported, .backend = backend});
    for (const GoldenPrompt& prompt : ReadGolden("window", "_fp8", backend)) {
      from_plain.Restart();
      from_fp8.Restart();
      EXPECT_EQ(from_plain.Step(prompt.ids), from_fp8.Step(prompt.ids)) << backend;
    }
  }
}

}  // namespace
}  // namespace marcoro
