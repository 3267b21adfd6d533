// FP8 checkpoints as parents of a recipe, in every format that is read: their weights are
// dequantized and merged like any other's, against what PyTorch makes of them
// (tests/data/quantized/make_merged.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::ReadWhole;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::UlpDistance;
using testing::WriteFile;

constexpr int64_t kStride = 29;  // of the rows that merged.safetensors holds

std::string Checkpoint(const std::string& name) { return TestData("quantized/" + name); }

std::string Recipe(const std::string& name) {
  return TestData("quantized/recipes/" + name + ".yml");
}

std::unique_ptr<MergeSource> Open(const std::string& recipe) {
  auto plan = PlanMerge(recipe);
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return nullptr;
  auto source = MergeSource::Open(*std::move(plan));
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *std::move(source) : nullptr;
}

// Every tensor of merged.safetensors whose name begins with `prefix`, without it.
StoredTensors Golden(const std::string& prefix) {
  static const StoredTensors all = ReadTensors(TestData("quantized"), "merged");
  StoredTensors tensors;
  for (const auto& [name, tensor] : all) {
    if (name.rfind(prefix, 0) == 0) tensors[name.substr(prefix.size())] = tensor;
  }
  return tensors;
}

// Compares the rows that the golden has with the merge's. How far a number may be is said in units
// in the last place.
void ExpectGolden(MergeSource& source, const std::string& prefix, int64_t most) {
  const StoredTensors golden = Golden(prefix);
  ASSERT_EQ(golden.size(), 7u) << "the linear weights of one layer";
  for (const auto& [name, expected] : golden) {
    auto merged = ReadWhole(source, name, 2);
    ASSERT_TRUE(merged.ok()) << merged.status();
    EXPECT_EQ(source.Find(name)->dtype, "BF16") << name;
    const size_t columns = static_cast<size_t>(source.Find(name)->columns());
    const std::vector<float> numbers = expected.Floats();
    for (size_t i = 0; i < numbers.size(); ++i) {
      const float number = (*merged)[i / columns * kStride * columns + i % columns];
      ASSERT_LE(UlpDistance("BF16", number, numbers[i]), most)
          << name << " row " << i / columns * kStride << " column " << i % columns << ": " << number
          << ", not " << numbers[i];
    }
  }
}

class QuantizedParent : public ::testing::TestWithParam<const char*> {
 protected:
  // A recipe whose first model is the checkpoint of the format.
  std::string Write(const std::string& text) const {
    std::string recipe = text;
    recipe.replace(recipe.find("FORMAT"), 6, Checkpoint(GetParam()));
    WriteFile(folder_.File("recipe.yml"), recipe);
    return folder_.File("recipe.yml");
  }

  std::string WriteSlerp(const std::string& other) const {
    return Write("models: [{model: &base FORMAT}, {model: " + other +
                 "}]\nmerge_method: slerp\nbase_model: *base\nparameters: {t: 0.35}\n"
                 "dtype: bfloat16\n");
  }

  std::string Prefix(const std::string& merge) const {
    return std::string(GetParam()) + "/" + merge + "/";
  }

  TempFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedParent,
                         ::testing::Values("autofp8_dynamic", "autofp8_static",
                                           "compressed_tensors_channel",
                                           "compressed_tensors_tensor", "fp8_block", "modelopt_fp8",
                                           "modelopt_hf_quant_config"),
                         [](const auto& format) { return std::string(format.param); });

TEST_P(QuantizedParent, PassedThroughIsItsCodesTimesTheirScales) {
  auto source = Open(Write("models: [{model: FORMAT}]\nmerge_method: passthrough\n"));
  ASSERT_NE(source, nullptr);
  ExpectGolden(*source, Prefix("passthrough"), 0);
}

TEST_P(QuantizedParent, IsMergedWithAPlainOne) {
  // The plain checkpoint with the rows of its linear weights moved on by one.
  fs::create_directory(folder_.File("moved"));
  StoredTensors tensors = ReadTensors(Checkpoint("bf16"));
  for (auto& [name, tensor] : tensors) {
    if (name.find("_proj.") == std::string::npos) continue;
    const size_t row = static_cast<size_t>(tensor.shape[1]) * 2;
    tensor.bytes = tensor.bytes.substr(tensor.bytes.size() - row) +
                   tensor.bytes.substr(0, tensor.bytes.size() - row);
  }
  testing::WriteTensors(folder_.File("moved/model.safetensors"), tensors);
  fs::copy_file(Checkpoint("bf16/config.json"), folder_.File("moved/config.json"));
  auto source = Open(WriteSlerp("moved"));
  ASSERT_NE(source, nullptr);
  ExpectGolden(*source, Prefix("slerp"), 1);
}

TEST_P(QuantizedParent, IsMergedWithOneThatIsNearlyParallel) {
  auto source = Open(WriteSlerp(Checkpoint("bf16")));
  ASSERT_NE(source, nullptr);
  ExpectGolden(*source, Prefix("nearly_parallel"), 1);
}

TEST_P(QuantizedParent, LeavesNothingOfItsQuantizationInTheMerge) {
  const auto plan = PlanMerge(Write("models: [{model: FORMAT}]\nmerge_method: passthrough\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->config.quantization.empty());
  const auto config = nlohmann::json::parse(plan->config_json);
  EXPECT_FALSE(config.contains("quantization_config")) << config;
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  EXPECT_TRUE(plan->warnings.empty()) << plan->warnings[0];
  auto source = MergeSource::Open(*plan);
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<std::string> names;
  for (const auto& [name, tensor] : ReadTensors(Checkpoint("bf16"))) names.push_back(name);
  std::vector<std::string> merged;
  for (const TensorInfo* tensor : (*source)->Tensors()) {
    merged.push_back(tensor->name);
    EXPECT_EQ((*source)->FormOf(*tensor), Fp8Form::kQuantize) << "as of a plain checkpoint";
  }
  EXPECT_EQ(merged, names) << "the plain checkpoint's tensors and no scales";
}

TEST(QuantizedParents, OfEveryFormatAreMergedAtOnce) {
  auto source = Open(Recipe("linear_of_all"));
  ASSERT_NE(source, nullptr);
  ExpectGolden(*source, "all/linear/", 1);
}

TEST(QuantizedParents, AreStackedWithPlainOnes) {
  auto source = Open(Recipe("passthrough_stack"));
  ASSERT_NE(source, nullptr);
  const StoredTensors first = Golden("modelopt_fp8/passthrough/");
  const StoredTensors last = Golden("fp8_block/passthrough/");
  const StoredTensors plain = ReadTensors(Checkpoint("bf16"));
  const auto row_of = [&](const std::string& name) {
    std::vector<float> numbers = ReadWhole(*source, name).value();
    numbers.resize(static_cast<size_t>(source->Find(name)->columns()));
    return numbers;
  };
  const auto first_row = [](const StoredTensor& tensor) {
    std::vector<float> numbers = tensor.Floats();
    numbers.resize(static_cast<size_t>(tensor.shape[1]));
    return numbers;
  };
  const std::string part = ".mlp.down_proj.weight";
  const std::string stored = "model.layers.0" + part;
  EXPECT_EQ(row_of("model.layers.0" + part), first_row(first.at(stored)));
  EXPECT_EQ(row_of("model.layers.1" + part), first_row(plain.at(stored)));
  EXPECT_EQ(row_of("model.layers.2" + part), first_row(last.at(stored)));
}

// A parent of a test's own: the FP8 checkpoint with a change.
class ChangedParent : public ::testing::Test {
 protected:
  ChangedParent() {
    fs::create_directory(folder_.File("fp8"));
    fs::copy_file(Checkpoint("modelopt_fp8/config.json"), folder_.File("fp8/config.json"));
    tensors_ = ReadTensors(Checkpoint("modelopt_fp8"));
  }

  std::string Write(const std::string& recipe) const {
    testing::WriteTensors(folder_.File("fp8/model.safetensors"), tensors_);
    WriteFile(folder_.File("recipe.yml"), recipe);
    return folder_.File("recipe.yml");
  }

  std::string Passthrough() const {
    return Write("models:\n- model: fp8\nmerge_method: passthrough\n");
  }

  static constexpr const char* kWeight = "model.layers.0.mlp.up_proj.weight";

  TempFolder folder_;
  StoredTensors tensors_;
};

TEST_F(ChangedParent, ScalesOfItsCacheAreNoTensorsOfTheMerge) {
  const StoredTensor scale = testing::Store("F32", {}, {0.5f});
  for (const char* name :
       {"model.layers.0.self_attn.k_proj.k_scale", "model.layers.0.self_attn.v_scale",
        "model.layers.0.self_attn.kv_scale", "model.layers.0.self_attn.q_proj.output_scale"}) {
    tensors_[name] = scale;
  }
  auto source = Open(Passthrough());
  ASSERT_NE(source, nullptr);
  ExpectGolden(*source, "modelopt_fp8/passthrough/", 0);
  EXPECT_EQ(source->Tensors().size(), ReadTensors(Checkpoint("bf16")).size());
}

TEST_F(ChangedParent, CountsAsOfTheTypeThatItsCheckpointHasForPlainNumbers) {
  for (const std::string type : {"F16", "F32"}) {
    for (auto& [name, tensor] : tensors_) {
      if (tensor.dtype == "F8_E4M3" || name.find("_scale") != std::string::npos) continue;
      tensor = testing::Store(type, tensor.shape, tensor.Floats());
    }
    auto source = Open(Passthrough());
    ASSERT_NE(source, nullptr);
    EXPECT_EQ(source->Find(kWeight)->dtype, type);
    // With one of another type: the smallest that holds both.
    auto mixed = Open(Write("models: [{model: fp8}, {model: " + Checkpoint("fp8_block") +
                            "}]\nmerge_method: linear\nparameters: {weight: 1}\n"));
    ASSERT_NE(mixed, nullptr);
    EXPECT_EQ(mixed->Find(kWeight)->dtype, "F32");
  }
}

TEST_F(ChangedParent, TheRecipesTypesCount) {
  auto source =
      Open(Write("models: [{model: fp8}]\nmerge_method: passthrough\n"
                 "dtype: float32\nout_dtype: float16\n"));
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->Find(kWeight)->dtype, "F16");
}

TEST_F(ChangedParent, ACodeThatIsNoNumberIsAnErrorThatNamesTheRow) {
  StoredTensor& weight = tensors_.at(kWeight);
  weight.bytes[static_cast<size_t>(3 * weight.shape[1] + 5)] = 0x7f;
  auto source = Open(Passthrough());
  ASSERT_NE(source, nullptr);
  EXPECT_THAT(std::string(ReadWhole(*source, kWeight).status().message()),
              AllOf(HasSubstr("fp8/model.safetensors"), HasSubstr(kWeight), HasSubstr("row 3 ")));
}

TEST_F(ChangedParent, ThatCannotBeReadIsRefusedWhereTheRecipeNamesIt) {
  const auto error = [&] { return std::string(PlanMerge(Passthrough()).status().message()); };
  StoredTensors whole = tensors_;
  tensors_.erase(std::string(kWeight) + "_scale");
  EXPECT_THAT(error(), AllOf(HasSubstr("recipe.yml:2:10: model 'fp8': "),
                             HasSubstr(std::string(kWeight) + "_scale, are missing")));
  tensors_ = whole;
  tensors_[std::string(kWeight) + "_scale"] = testing::Store("F32", {}, {-1.0f});
  EXPECT_THAT(error(), AllOf(HasSubstr("recipe.yml:2:10: "), HasSubstr("above zero")));
  tensors_ = whole;
  fs::copy_file(Checkpoint("bf16/config.json"), folder_.File("fp8/config.json"),
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(error(), AllOf(HasSubstr("recipe.yml:2:10: "), HasSubstr("is F8_E4M3")));
  WriteFile(folder_.File("fp8/config.json"),
            std::string("{\"quantization_config\": {\"quant_method\": \"gptq\"}, ") +
                ReadFile(Checkpoint("bf16/config.json")).substr(1));
  EXPECT_THAT(error(), AllOf(HasSubstr("recipe.yml:2:10: "), HasSubstr("gptq")));
}

}  // namespace
}  // namespace marcoro
