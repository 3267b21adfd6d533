#include "worker/weights/quantization_scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::ReadFile;
using testing::TestData;

constexpr char kUpProj[] = "model.layers.3.mlp.up_proj";

absl::StatusOr<std::optional<QuantizationScheme>> Parse(const std::string& quantization) {
  return QuantizationScheme::Parse(R"({"quantization_config": )" + quantization + "}", "", "DIR");
}

QuantizationScheme ParseOrDie(const std::string& quantization) {
  auto scheme = Parse(quantization);
  EXPECT_TRUE(scheme.ok()) << scheme.status();
  return scheme->value();
}

std::string CompressedTensors(const std::string& weights, const std::string& rest = "") {
  return R"({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups":
             {"group_0": {"targets": ["Linear"], "weights": )" +
         weights + "}}" + rest + "}";
}

constexpr char kChannel[] = R"({"num_bits": 8, "type": "float", "strategy": "channel"})";

struct Format {
  const char* folder;
  ScaleLayout layout;
  const char* scale;  // the tensor's name after the module's
  bool ignores_lm_head;
};

class Formats : public ::testing::TestWithParam<Format> {};

TEST_P(Formats, AreReadFromTheFilesOfACheckpoint) {
  auto scheme = QuantizationScheme::Load(TestData(std::string("quantized/") + GetParam().folder));
  ASSERT_TRUE(scheme.ok()) << scheme.status();
  ASSERT_TRUE(scheme->has_value());
  const QuantizationGroup* group = (*scheme)->GroupOf(kUpProj);
  ASSERT_NE(group, nullptr);
  EXPECT_EQ(group->layout, GetParam().layout);
  if (group->layout == ScaleLayout::kBlock) {
    EXPECT_EQ(group->block_rows, 128);
    EXPECT_EQ(group->block_columns, 128);
  }
  EXPECT_EQ((*scheme)->ScaleName(kUpProj), std::string(kUpProj) + GetParam().scale);
  EXPECT_EQ((*scheme)->GroupOf("lm_head") == nullptr, GetParam().ignores_lm_head);
}

INSTANTIATE_TEST_SUITE_P(
    All, Formats,
    ::testing::Values(
        Format{"autofp8_dynamic", ScaleLayout::kTensor, ".weight_scale", false},
        Format{"autofp8_static", ScaleLayout::kTensor, ".weight_scale", true},
        Format{"fp8_block", ScaleLayout::kBlock, ".weight_scale_inv", false},
        Format{"compressed_tensors_tensor", ScaleLayout::kTensor, ".weight_scale", true},
        Format{"compressed_tensors_channel", ScaleLayout::kRow, ".weight_scale", true},
        Format{"modelopt_fp8", ScaleLayout::kTensor, ".weight_scale", true},
        Format{"modelopt_hf_quant_config", ScaleLayout::kRow, ".weight_scale", true}),
    [](const auto& test) { return std::string(test.param.folder); });

TEST(QuantizationScheme, PlainCheckpointsHaveNone) {
  for (const char* folder : {"tiny", "small", "window", "quantized/bf16"}) {
    auto scheme = QuantizationScheme::Load(TestData(folder));
    ASSERT_TRUE(scheme.ok()) << scheme.status();
    EXPECT_FALSE(scheme->has_value()) << folder;
  }
  auto scheme = QuantizationScheme::Parse(R"({"quantization_config": null})", "", "DIR");
  ASSERT_TRUE(scheme.ok()) << scheme.status();
  EXPECT_FALSE(scheme->has_value());
}

TEST(QuantizationScheme, ConfigJsonCountsBeforeModeloptsOwnFile) {
  auto scheme = QuantizationScheme::Parse(R"({"quantization_config": {"quant_method": "fp8"}})",
                                          R"({"quantization": {"quant_algo": "NVFP4"}})", "DIR");
  ASSERT_TRUE(scheme.ok()) << scheme.status();
  EXPECT_EQ((*scheme)->Description(), "fp8 FP8, a scale per tensor");
}

TEST(QuantizationScheme, ModeloptMayNestItsKeysInConfigJsonToo) {
  const QuantizationScheme scheme = ParseOrDie(
      R"({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
          "exclude_modules": ["model.layers.1.*"]}})");
  EXPECT_EQ(scheme.GroupOf("model.layers.1.mlp.up_proj"), nullptr);
  ASSERT_NE(scheme.GroupOf(kUpProj), nullptr);
  EXPECT_EQ(scheme.GroupOf(kUpProj)->layout, ScaleLayout::kRow);
}

TEST(QuantizationScheme, BlocksOfCompressedTensorsAreAListOrAText) {
  for (const char* blocks : {"[64, 32]", "\"64x32\""}) {
    const QuantizationScheme scheme = ParseOrDie(CompressedTensors(
        std::string(
            R"({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": )") +
        blocks + "}"));
    EXPECT_EQ(scheme.GroupOf(kUpProj)->block_rows, 64);
    EXPECT_EQ(scheme.GroupOf(kUpProj)->block_columns, 32);
    EXPECT_EQ(scheme.ScaleName("m"), "m.weight_scale");
    EXPECT_EQ(scheme.Description(), "compressed-tensors FP8, a scale per block of 64x32");
  }
}

TEST(QuantizationScheme, GroupsHaveTheirOwnTargets) {
  const QuantizationScheme scheme = ParseOrDie(R"({"quant_method": "compressed-tensors",
      "config_groups": {
        "a": {"targets": ["re:.*self_attn.*"], "weights":
              {"num_bits": 8, "type": "float", "strategy": "tensor"}},
        "b": {"targets": ["model.layers.3.mlp.up_proj"], "weights":
              {"num_bits": 8, "type": "float", "strategy": "channel"}},
        "activations": {"targets": ["Linear"], "weights": null}}})");
  EXPECT_EQ(scheme.GroupOf("model.layers.0.self_attn.q_proj")->layout, ScaleLayout::kTensor);
  EXPECT_EQ(scheme.GroupOf(kUpProj)->layout, ScaleLayout::kRow);
  EXPECT_EQ(scheme.GroupOf("model.layers.4.mlp.up_proj"), nullptr);
  EXPECT_EQ(scheme.Description(), "compressed-tensors FP8, a scale per tensor or a scale per row");
}

TEST(QuantizationScheme, EntriesMatchModulesByNameParentPatternAndRegex) {
  const auto matches = [](const std::string& entry) {
    return QuantizationScheme::Matches(entry, kUpProj);
  };
  EXPECT_TRUE(matches("Linear"));
  EXPECT_TRUE(matches("model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(matches("model.layers.3"));
  EXPECT_FALSE(matches("model.layers.30"));
  EXPECT_FALSE(matches("up_proj"));
  EXPECT_FALSE(matches(""));
  EXPECT_TRUE(matches("*up_proj"));
  EXPECT_TRUE(matches("model.layers.*.mlp*"));
  EXPECT_TRUE(matches("*"));
  EXPECT_FALSE(matches("*.gate_proj"));
  EXPECT_FALSE(matches("layers*"));
  EXPECT_TRUE(matches("re:.*up_proj$"));
  EXPECT_TRUE(matches(R"(re:model\.layers\.[0-9]+\.mlp)"));
  EXPECT_TRUE(matches("re:model.layers.(1|3)"));
  EXPECT_FALSE(matches("re:up_proj"));  // from the beginning, as compressed-tensors does
  EXPECT_FALSE(matches("re:.*gate"));
}

TEST(QuantizationScheme, PatternsOfManyStarsTakeNoTime) {
  std::string pattern, module(400, 'a');
  for (int i = 0; i < 100; ++i) pattern += "*a";
  EXPECT_FALSE(QuantizationScheme::Matches(pattern + "*b", module));
  EXPECT_TRUE(QuantizationScheme::Matches(pattern, module));
}

TEST(QuantizationScheme, WhatCannotBeReadIsNamedWithFileAndKey) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"7", "quantization_config must be an object"},
      {"{}", "quantization_config.quant_method is missing"},
      {R"({"quant_method": "awq"})", "quant_method is \"awq\""},
      {R"({"quant_method": 8})", "quant_method is missing"},
      {R"({"quant_method": "fp8", "weight_block_size": [128]})", "weight_block_size"},
      {R"({"quant_method": "fp8", "weight_block_size": [128, 0]})", "weight_block_size"},
      {R"({"quant_method": "fp8", "weight_block_size": [128, -1]})", "weight_block_size"},
      {R"({"quant_method": "fp8", "ignored_layers": "lm_head"})", "ignored_layers"},
      {R"({"quant_method": "fp8", "ignored_layers": [1]})", "ignored_layers"},
      {R"({"quant_method": "fp8", "ignored_layers": ["re:("]})", "regular expression"},
      {R"({"quant_method": "fp8", "ignored_layers": ["re:(a)\\1"]})", "regular expression"},
      {R"({"quant_method": "fp8", "ignored_layers": ["re:a{1000}"]})", "regular expression"},
      {R"({"quant_method": "compressed-tensors"})", "config_groups"},
      {R"({"quant_method": "compressed-tensors", "config_groups": {"g": 1}})", "config_groups.g"},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
           {"g": {"targets": ["Linear"], "weights": {}}}})",
       "\"pack-quantized\""},
      {CompressedTensors(R"({"num_bits": 4, "type": "int", "strategy": "channel"})"),
       "config_groups.group_0.weights must be 8 bits"},
      {CompressedTensors(R"({"num_bits": 8, "type": "float", "strategy": "group"})"),
       "config_groups.group_0.weights.strategy"},
      {CompressedTensors(
           R"({"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": false})"),
       "symmetric"},
      {CompressedTensors(kChannel, R"(, "sparsity_config": {"format": "sparse-24"})"),
       "sparsity_config.format"},
      {R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})", "quant_algo"}};
  for (const auto& [text, what] : cases) {
    const absl::Status status = Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("DIR/config.json: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what)) << text;
  }
  const absl::Status status =
      QuantizationScheme::Parse("{}", R"({"quantization": {"quant_algo": "W4A8"}})", "DIR")
          .status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("DIR/hf_quant_config.json: quantization.quant_algo"));
}

TEST(QuantizationScheme, EndlessListsAndNestingAreRefused) {
  std::string names = "\"a\"";
  for (int i = 0; i < 2000; ++i) names += ",\"a\"";
  EXPECT_FALSE(Parse(R"({"quant_method": "fp8", "ignored_layers": [)" + names + "]}").ok());
  const std::string depth(100'000, '[');
  EXPECT_FALSE(Parse(R"({"quant_method": "fp8", "weight_block_size": )" + depth +
                     std::string(depth.size(), ']') + "}")
                   .ok());
}

// Whatever the bytes: a scheme that keeps its promises, or an error that names the file.
TEST(QuantizationScheme, SurvivesMutations) {
  std::mt19937_64 random(1);
  int accepted = 0;
  for (const char* folder : {"fp8_block", "compressed_tensors_channel", "modelopt_fp8"}) {
    const std::string original =
        ReadFile(TestData(std::string("quantized/") + folder + "/config.json"));
    for (int round = 0; round < 3000; ++round) {
      std::string text = original;
      for (uint64_t edits = 1 + random() % 4; edits > 0; --edits) {
        const size_t at = text.size() / 2 + random() % (text.size() - text.size() / 2);
        switch (random() % 3) {
          case 0:
            text[at] = static_cast<char>(random());
            break;
          case 1:
            text.erase(at, 1 + random() % 8);
            break;
          default:
            text[at] = "0123456789-.eE\"[]{},:*"[random() % 22];
        }
      }
      const auto scheme = QuantizationScheme::Parse(text, "", "DIR");
      if (!scheme.ok()) {
        EXPECT_EQ(scheme.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(scheme.status().message()), HasSubstr("DIR/config.json"));
        continue;
      }
      ++accepted;
      if (!scheme->has_value()) continue;
      const QuantizationGroup* group = (*scheme)->GroupOf(kUpProj);
      if (group == nullptr || group->layout != ScaleLayout::kBlock) continue;
      ASSERT_GE(group->block_rows, 1) << text;
      ASSERT_GE(group->block_columns, 1) << text;
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace marcoro
