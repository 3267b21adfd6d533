// The real `marcoro merge` against what mergekit wrote for the same recipes.
#include <csignal>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cli/large_model.h"
#include "tests/e2e/process.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;
using Json = nlohmann::json;

std::string Recipe(const std::string& name) { return TestData("merge/recipes/" + name + ".yml"); }

Finished Merge(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {Program("marcoro"), "merge"});
  return RunToEnd(std::move(arguments), absl::Seconds(60));
}

// Bits of an element in an order in which neighbouring numbers are neighbours.
int64_t Ordered(const StoredTensor& tensor, size_t index) {
  const size_t size = tensor.dtype == "F32" ? 4 : 2;
  uint32_t bits = 0;
  std::memcpy(&bits, tensor.bytes.data() + index * size, size);
  const uint32_t sign = 1u << (size * 8 - 1);
  return (bits & sign) != 0 ? -int64_t{bits & (sign - 1)} : int64_t{bits};
}

class WrittenMerge : public ::testing::TestWithParam<const char*> {};
// Without ties, whose choice between equal magnitudes is an accident in mergekit: see
// tests/worker/weights/merge/golden_merge_test.cc.
class GoldenMerge : public WrittenMerge {};

TEST_P(GoldenMerge, IsMergekitsWithinOneUnitInTheLastPlace) {
  TempFolder folder;
  const std::string out = folder.File("out");
  const Finished run = Merge({"--shard-size=50KB", Recipe(GetParam()), out});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_TRUE(fs::exists(out + "/model.safetensors.index.json"));
  const StoredTensors ours = ReadTensors(out);
  const StoredTensors golden = ReadTensors(TestData("merge/merged"), GetParam() + std::string("."));
  ASSERT_FALSE(golden.empty());
  EXPECT_EQ(ours.size(), golden.size());
  for (const auto& [name, expected] : golden) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(ours.contains(name));
    const StoredTensor& tensor = ours.at(name);
    ASSERT_EQ(tensor.dtype, expected.dtype);
    ASSERT_EQ(tensor.shape, expected.shape);
    ASSERT_EQ(tensor.bytes.size(), expected.bytes.size());
    const size_t elements = tensor.bytes.size() / (tensor.dtype == "F32" ? 4 : 2);
    for (size_t i = 0; i < elements; ++i) {
      ASSERT_LE(std::abs(Ordered(tensor, i) - Ordered(expected, i)), 1) << "element " << i;
    }
  }
}

TEST_P(WrittenMerge, ReadAgainIsTheRecipeReadBitForBit) {
  TempFolder folder;
  const std::string out = folder.File("out");
  ASSERT_EQ(Merge({Recipe(GetParam()), out}).exit_code, 0);
  auto written = CheckpointSource::Open(out);
  ASSERT_TRUE(written.ok()) << written.status();
  auto plan = PlanMerge(Recipe(GetParam()));
  ASSERT_TRUE(plan.ok()) << plan.status();
  auto merged = MergeSource::Open(*std::move(plan));
  ASSERT_TRUE(merged.ok()) << merged.status();
  const auto one_thread = [](int64_t n, const std::function<void(int64_t)>& work) {
    for (int64_t i = 0; i < n; ++i) work(i);
  };
  for (const TensorInfo* tensor : (*merged)->Tensors()) {
    const TensorInfo* other = (*written)->Find(tensor->name);
    ASSERT_NE(other, nullptr) << tensor->name;
    std::vector<float> ours(static_cast<size_t>(tensor->rows() * tensor->columns()));
    std::vector<float> theirs(ours.size());
    ASSERT_TRUE((*merged)->Prepare(*tensor, one_thread).ok());
    ASSERT_TRUE((*merged)->ReadRows(*tensor, 0, tensor->rows(), ours.data()).ok());
    ASSERT_TRUE((*written)->ReadRows(*other, 0, other->rows(), theirs.data()).ok());
    EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(float)), 0)
        << tensor->name;
  }
}

std::string NameOf(const ::testing::TestParamInfo<const char*>& test) { return test.param; }

INSTANTIATE_TEST_SUITE_P(Recipes, GoldenMerge,
                         ::testing::Values("dare_linear_density_1", "dare_ties_density_1", "linear",
                                           "linear_not_normalized", "passthrough_scaled",
                                           "passthrough_stack", "slerp_base_listed_second",
                                           "slerp_gradient", "slerp_models_float16",
                                           "slerp_near_parallel", "slerp_out_dtype",
                                           "slerp_two_slices", "task_arithmetic"),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Recipes, WrittenMerge,
                         ::testing::Values("passthrough_stack", "slerp_gradient", "slerp_out_dtype",
                                           "ties"),
                         NameOf);

class MergeTest : public ::testing::Test {
 protected:
  void ExpectNothingWritten() const {
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(out_ + ".partial"));
  }

  TempFolder folder_;
  const std::string out_ = folder_.File("out");
};

TEST_F(MergeTest, WritesConfigTokenizerRecipeAndCard) {
  const Finished run = Merge({Recipe("slerp_gradient"), out_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr(out_ + ": 1 file of weights"));
  EXPECT_EQ(ReadFile(out_ + "/mergekit_config.yml"), ReadFile(Recipe("slerp_gradient")));
  for (const char* name : {"tokenizer.model", "tokenizer_config.json"}) {
    EXPECT_EQ(ReadFile(out_ + "/" + name), ReadFile(TestData("merge/parents/a/") + name));
  }
  const Json config = Json::parse(ReadFile(out_ + "/config.json"));
  EXPECT_EQ(config["num_hidden_layers"], 5);
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  const std::string card = ReadFile(out_ + "/README.md");
  EXPECT_EQ(card.rfind("---\nlibrary_name: transformers\n", 0), 0u) << card;
  EXPECT_THAT(card, HasSubstr("base_model:\n- \"parents/a\"\n- \"parents/b\"\n---\n# out\n"));
  EXPECT_THAT(card, HasSubstr("Method: `slerp`, base: `parents/a`"));
  EXPECT_THAT(card, HasSubstr("```yaml\nslices:\n"));
}

TEST_F(MergeTest, OfFp8ParentsIsAPlainCheckpoint) {
  // Its base has an hf_quant_config.json.
  const std::string recipe = TestData("quantized/recipes/slerp_of_formats.yml");
  const Finished run = Merge({recipe, out_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_FALSE(fs::exists(out_ + "/hf_quant_config.json"));
  EXPECT_FALSE(Json::parse(ReadFile(out_ + "/config.json")).contains("quantization_config"));
  const StoredTensors plain = ReadTensors(TestData("quantized/bf16"));
  const StoredTensors merged = ReadTensors(out_);
  EXPECT_EQ(merged.size(), plain.size());
  for (const auto& [name, tensor] : plain) {
    ASSERT_TRUE(merged.contains(name)) << name;
    EXPECT_EQ(merged.at(name).dtype, tensor.dtype) << name;
    EXPECT_EQ(merged.at(name).shape, tensor.shape) << name;
  }
  // And it can be quantized, whatever its parents were.
  const Finished quantized =
      RunToEnd({Program("marcoro"), "quantize", recipe, folder_.File("fp8")}, absl::Seconds(60));
  EXPECT_EQ(quantized.exit_code, 0) << quantized.err;
}

TEST_F(MergeTest, TheRecipesChatTemplateIsWritten) {
  const std::string recipe = folder_.File("recipe.yml");
  WriteFile(recipe, "models:\n- model: " + TestData("merge/parents/a") +
                        "\nmerge_method: passthrough\ndtype: bfloat16\nchat_template: chatml\n");
  const Finished run = Merge({recipe, out_});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const Json tokenizer = Json::parse(ReadFile(out_ + "/tokenizer_config.json"));
  EXPECT_THAT(tokenizer["chat_template"].get<std::string>(), HasSubstr("<|im_start|>"));
  EXPECT_EQ(tokenizer["bos_token"], "<s>");  // the rest is the parent's
}

TEST_F(MergeTest, WhatIsNoRecipeIsTold) {
  EXPECT_THAT(Merge({TestData("tiny"), out_}).err, HasSubstr("is no recipe"));
  EXPECT_EQ(Merge({Recipe("linear")}).exit_code, 2);
  const Finished missing = Merge({folder_.File("none.yml"), out_});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, HasSubstr(folder_.File("none.yml")));
  ExpectNothingWritten();
}

// What is copied into the merge is parsed, and printed again.
TEST_F(MergeTest, FilesThatAreNestedWithoutEndAreRefused) {
  const std::string parent = folder_.File("parent");
  fs::copy(TestData("merge/parents/base"), parent);
  const std::string recipe = folder_.File("recipe.yml");
  WriteFile(recipe,
            "models: [{model: parent}]\nmerge_method: passthrough\nchat_template: chatml\n");
  ASSERT_EQ(Merge({recipe, out_}).exit_code, 0);
  fs::remove_all(out_);
  for (const char* name : {"tokenizer_config.json", "config.json"}) {
    std::string text = ReadFile(parent + "/" + name);
    text.insert(text.rfind('}'),
                ", \"x\": " + std::string(500'000, '[') + std::string(500'000, ']'));
    WriteFile(parent + "/" + name, text);
    const Finished run = Merge({recipe, out_});
    EXPECT_EQ(run.exit_code, 1) << run.err;
    EXPECT_THAT(run.err, HasSubstr(std::string(name) + ": nested more than"));
    ExpectNothingWritten();
  }
}

TEST_F(MergeTest, AFolderWithoutANameIsRefusedBeforeTheWork) {
  const Finished run = Merge({Recipe("slerp_gradient"), ""});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.err, "marcoro merge: the folder to write has no name\n");
}

TEST_F(MergeTest, AModelThatIsNowhereIsToldWhereTheRecipeNamesIt) {
  const std::string recipe = folder_.File("recipe.yml");
  fs::copy(TestData("merge/parents/base"), folder_.File("parent"));
  WriteFile(recipe, "models:\n- model: parentt\nmerge_method: passthrough\n");
  Finished run = Merge({recipe, out_});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("recipe.yml:2:10: model 'parentt': no folder"));
  EXPECT_THAT(run.err, HasSubstr("did you mean " + folder_.File("parent") + "?"));
  // What could be a model of a hub is looked for there, but may be a slip as well.
  setenv("HF_HUB_OFFLINE", "1", 1);
  WriteFile(recipe, "models:\n- model: ./parent\n- model: x/parent\nmerge_method: linear\n");
  run = Merge({recipe, out_});
  unsetenv("HF_HUB_OFFLINE");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("recipe.yml:3:10: model 'x/parent': no folder"));
  EXPECT_THAT(run.err, HasSubstr("; and on the hub: HF_HUB_OFFLINE"));
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
}

TEST_F(MergeTest, ANumberThatIsNotFiniteInAParentLeavesNothing) {
  const std::string parent = folder_.File("parent");
  fs::copy(TestData("merge/parents/base"), parent);
  StoredTensors tensors = ReadTensors(parent);
  const std::string name = "model.layers.4.mlp.down_proj.weight";
  ASSERT_EQ(tensors.at(name).dtype, "BF16");
  const uint16_t nan = 0x7fc0;
  std::memcpy(tensors.at(name).bytes.data(), &nan, 2);
  fs::remove(parent + "/model.safetensors");
  testing::WriteTensors(parent + "/model.safetensors", tensors);
  WriteFile(folder_.File("recipe.yml"),
            "models:\n- model: parent\n- model: " + TestData("merge/parents/a") +
                "\nmerge_method: slerp\nbase_model: parent\nparameters: {t: 0.5}\n"
                "dtype: bfloat16\n");
  const Finished run = Merge({folder_.File("recipe.yml"), out_});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr(name));
  ExpectNothingWritten();
}

TEST_F(MergeTest, KilledAndRunAgainItGivesTheSameBytes) {
  WriteLargeModel(folder_.File("a"), 1);
  WriteLargeModel(folder_.File("b"), 2);
  const std::string recipe = folder_.File("recipe.yml");
  WriteFile(recipe,
            "models:\n- model: a\n- model: b\nmerge_method: slerp\nbase_model: a\n"
            "parameters: {t: 0.3}\ndtype: bfloat16\n");
  const std::vector<std::string> command = {Program("marcoro"), "merge", "--shard-size=300KB",
                                            "--threads=1",      recipe,  out_};
  std::string err;
  int exit_code = 0;
  for (int attempt = 0; attempt < 20 && exit_code == 0; ++attempt) {
    fs::remove_all(out_);
    exit_code = SignalInTheMiddle(command, out_, SIGKILL, &err);
  }
  ASSERT_EQ(exit_code, 128 + SIGKILL);
  EXPECT_FALSE(fs::exists(out_));
  const Finished second = Merge({"--shard-size=300KB", recipe, out_});
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.err, HasSubstr(" files are there from a run that was killed"));
  fs::create_directory(folder_.File("elsewhere"));
  const std::string other = folder_.File("elsewhere/out");  // the card's title is the same
  ASSERT_EQ(Merge({"--shard-size=300KB", recipe, other}).exit_code, 0);
  ExpectSameFiles(out_, other);
}

}  // namespace
}  // namespace marcoro
