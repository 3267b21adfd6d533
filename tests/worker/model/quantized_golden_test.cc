// Pre-quantized checkpoints in every format against an independent implementation: the logits of
// the dequantized weights in float32.
#include <gtest/gtest.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

#include "tests/worker/model/golden_logits.h"
#include "tests/worker/model/test_model.h"

namespace marcoro {
namespace {

struct Golden {
  std::vector<TokenId> ids;
  std::vector<std::vector<float>> logits;  // a row for each id
};

Golden ReadGolden(const std::string& checkpoint) {
  auto file = SafetensorsFile::Open(std::string(MARCORO_TEST_DATA) + "/" + checkpoint +
                                    "/golden.safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  Golden golden;
  golden.logits = ReadMatrix(**file, "logits");
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    if (entry.info.name != "ids") continue;
    std::vector<int64_t> ids(entry.info.bytes / sizeof(int64_t));
    EXPECT_TRUE((*file)->Read(entry, 0, entry.info.bytes, ids.data()).ok());
    golden.ids.assign(ids.begin(), ids.end());
  }
  EXPECT_EQ(golden.ids.size(), golden.logits.size());
  return golden;
}

struct Format {
  const char* folder;
  // Mean KL of the reference implementation's own BF16 run from its float32 run.
  double bf16_run;
};

void PrintTo(const Format& format, std::ostream* out) { *out << format.folder; }

class QuantizedGoldenTest : public testing::TestWithParam<Format> {
 protected:
  std::string Checkpoint() const { return std::string("quantized/") + GetParam().folder; }

  double MeanDivergence(const TestModelOptions& options) const {
    const Golden golden = ReadGolden(options.checkpoint);
    TestModel model(options);
    const auto logits = model.Step(golden.ids);
    double sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) sum += Divergence(golden.logits[i], logits[i]);
    return sum / static_cast<double>(logits.size());
  }
};

TEST_P(QuantizedGoldenTest, Float32ReferenceGivesTheLogitsWithin2e3) {
  const Golden golden = ReadGolden(Checkpoint());
  TestModel model({.checkpoint = Checkpoint(),
                   .backend = "reference",
                   .activations = DType::kF32,
                   .linear = DType::kF32});
  const auto logits = model.Step(golden.ids);
  ASSERT_EQ(logits.size(), golden.logits.size());
  for (size_t row = 0; row < logits.size(); ++row) {
    ASSERT_EQ(logits[row].size(), golden.logits[row].size());
    for (size_t i = 0; i < logits[row].size(); ++i) {
      ASSERT_NEAR(logits[row][i], golden.logits[row][i], 2e-3)
          << "position " << row << ", token " << i;
    }
  }
}

// With float32 activations nothing is left but the weights: codes as they are stored, or, where
// blocks do not allow that, BF16. (Quantizing blocks again by rows would give 2.8e-2.)
TEST_P(QuantizedGoldenTest, WeightsStayWithinTheDivergenceBound) {
  for (const DType linear : {DType::kF8E4M3, DType::kBF16}) {
    const double divergence = MeanDivergence({.checkpoint = Checkpoint(),
                                              .backend = "reference",
                                              .activations = DType::kF32,
                                              .linear = linear});
    EXPECT_LE(divergence, 1.5e-4) << (linear == DType::kBF16 ? "bf16" : "fp8");
  }
}

// This model, which nobody has trained, amplifies what BF16 activations lose.
TEST_P(QuantizedGoldenTest, Bf16ActivationsLoseNoMoreThanTheReferencesOwn) {
  for (const std::string& backend : AvailableBackends()) {
    for (const DType linear : {DType::kF8E4M3, DType::kBF16}) {
      const double divergence =
          MeanDivergence({.checkpoint = Checkpoint(), .backend = backend, .linear = linear});
      std::printf("%s as %s, %s: mean KL %.2e\n", GetParam().folder,
                  linear == DType::kBF16 ? "bf16" : "fp8", backend.c_str(), divergence);
      EXPECT_LE(divergence, GetParam().bf16_run) << backend;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, QuantizedGoldenTest,
    testing::Values(Format{"autofp8_dynamic", 6.3e-4}, Format{"autofp8_static", 6.3e-4},
                    Format{"fp8_block", 6.9e-4}, Format{"compressed_tensors_tensor", 5.8e-4},
                    Format{"compressed_tensors_channel", 6.3e-4}, Format{"modelopt_fp8", 6.3e-4},
                    Format{"modelopt_hf_quant_config", 7.4e-4}),
    [](const auto& test) { return std::string(test.param.folder); });

}  // namespace
}  // namespace marcoro
