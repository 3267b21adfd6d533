// What a recipe is refused for once its models are looked at.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"
#include "tests/worker/weights/merge/parent_files.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::RecipeFolder;
using ::testing::StartsWith;
using testing::StoredTensors;
using testing::WriteFile;
using testing::WriteTensors;
using testing::ZeroTensors;

constexpr const char* kTwoModels =
    "models:\n"
    "- model: parents/a\n"
    "- model: parents/b\n"
    "merge_method: linear\n"
    "parameters: {weight: 1}\n";

// Parents a, b (2 layers) and deep (3 layers).
class RefusedPlan : public ::testing::Test {
 protected:
  RefusedPlan() {
    folder_.AddParent("parents/a");
    folder_.AddParent("parents/b");
    folder_.AddParent("parents/deep", {.layers = 3});
  }

  // The message without the recipe's folder.
  std::string Error(const std::string& recipe) const {
    const std::string path = folder_.Write(recipe);
    const auto plan = PlanMerge(path);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << plan.status();
    std::string message(plan.status().message());
    const std::string folder = folder_.File("");
    for (size_t at = message.find(folder); at != std::string::npos; at = message.find(folder)) {
      message.erase(at, folder.size());
    }
    return message;
  }

  void ChangeConfig(const std::string& parent, const std::string& key, const json& value) const {
    const std::string file = folder_.File("parents/" + parent + "/config.json");
    json config = json::parse(ReadFile(file));
    config[key] = value;
    WriteFile(file, config.dump());
  }

  void WriteB(const StoredTensors& tensors) const {
    WriteTensors(folder_.File("parents/b/model.safetensors"), tensors);
  }

  RecipeFolder folder_;
};

TEST_F(RefusedPlan, UnknownMethod) {
  EXPECT_THAT(
      Error("models: [{model: parents/a}]\nmerge_method: slurp\n"),
      AllOf(StartsWith("recipe.yml:2:15: unknown merge_method 'slurp' (did you mean slerp?"),
            HasSubstr("known: dare_linear, dare_ties, linear, passthrough, slerp, "
                      "task_arithmetic, ties)")));
}

TEST_F(RefusedPlan, UnknownModel) {
  EXPECT_THAT(
      Error("models:\n- model: parents/dep\nmerge_method: linear\n"),
      AllOf(StartsWith("recipe.yml:2:10: model 'parents/dep': no folder with a config.json: "
                       "looked for parents/dep, "),
            HasSubstr("did you mean parents/deep?")));
}

TEST_F(RefusedPlan, UnknownBase) {
  EXPECT_THAT(Error(std::string(kTwoModels) + "base_model: parents/x\n"),
              StartsWith("recipe.yml:6:13: model 'parents/x': no folder"));
}

TEST_F(RefusedPlan, UnknownParameter) {
  EXPECT_THAT(Error("models:\n- model: parents/a\n  parameters: {wait: 1}\nmerge_method: linear\n"),
              StartsWith("recipe.yml:3:16: unknown parameter 'wait' "));
}

TEST_F(RefusedPlan, ParameterWithoutValue) {
  EXPECT_THAT(Error("models:\n- model: parents/a\n- {model: parents/b, parameters: {weight: 1}}\n"
                    "merge_method: linear\n"),
              StartsWith("recipe.yml:2:10: linear needs the parameter weight, which has no value "
                         "for model.embed_tokens.weight"));
}

TEST_F(RefusedPlan, AnotherArchitecture) {
  ChangeConfig("b", "architectures", {"LlamaForCausalLM"});
  EXPECT_THAT(Error(kTwoModels), AllOf(StartsWith("recipe.yml:3:10: model 'parents/b': "),
                                       HasSubstr("MistralForCausalLM")));
}

TEST_F(RefusedPlan, AParentThatIsQuantizedInAWayThatIsNotRead) {
  ChangeConfig("b", "quantization_config", {{"quant_method", "gptq"}});
  EXPECT_THAT(Error(kTwoModels),
              AllOf(StartsWith("recipe.yml:3:10: model 'parents/b': "),
                    HasSubstr("\"gptq\": fp8, compressed-tensors and modelopt")));
}

TEST_F(RefusedPlan, ParentsOfOtherShapes) {
  folder_.AddParent("parents/b", {.ffn = 24});
  EXPECT_THAT(Error(kTwoModels), StartsWith("recipe.yml:3:10: intermediate_size of parents/b is "
                                            "24, of parents/a 16"));
  folder_.AddParent("parents/b", {.hidden = 16});
  EXPECT_THAT(Error(kTwoModels), StartsWith("recipe.yml:3:10: hidden_size of parents/b is 16, "));
  folder_.AddParent("parents/b", {.kv_heads = 2});
  EXPECT_THAT(Error(kTwoModels), StartsWith("recipe.yml:3:10: num_key_value_heads of parents/b "));
}

TEST_F(RefusedPlan, AMissingTensor) {
  StoredTensors tensors = ZeroTensors({});
  tensors.erase("model.layers.1.mlp.up_proj.weight");
  WriteB(tensors);
  EXPECT_THAT(Error(kTwoModels), StartsWith("recipe.yml:3:10: parents/b: tensor "
                                            "model.layers.1.mlp.up_proj.weight is missing"));
}

TEST_F(RefusedPlan, AMissingLmHeadOfAnUntiedParent) {
  WriteB(ZeroTensors({.tied = true}));
  EXPECT_THAT(Error(kTwoModels),
              StartsWith("recipe.yml:3:10: parents/b: tensor lm_head.weight is missing"));
}

TEST_F(RefusedPlan, ATensorThatIsNotOfItsConfigsShape) {
  StoredTensors tensors = ZeroTensors({});
  tensors["model.layers.0.mlp.up_proj.weight"].shape = {8, 16};
  WriteB(tensors);
  EXPECT_THAT(Error(kTwoModels), HasSubstr("parents/b: tensor model.layers.0.mlp.up_proj.weight "
                                           "is [8, 16], must be [16, 8]"));
  WriteB(ZeroTensors({.vocabulary = 13}));
  EXPECT_THAT(Error(kTwoModels),
              HasSubstr("tensor model.embed_tokens.weight is [13, 8], must be [12, 8]"));
}

TEST_F(RefusedPlan, ATypeThatCannotBeMerged) {
  StoredTensors tensors = ZeroTensors({});
  tensors["model.norm.weight"].dtype = "I16";
  WriteB(tensors);
  EXPECT_THAT(Error(kTwoModels),
              HasSubstr("tensor model.norm.weight is I16: BF16, F16, F32 and FP8"));
}

TEST_F(RefusedPlan, ATruncatedFile) {
  const std::string file = folder_.File("parents/b/model.safetensors");
  WriteFile(file, ReadFile(file).substr(0, 100));
  EXPECT_THAT(Error(kTwoModels), StartsWith("recipe.yml:3:10: model 'parents/b': "));
}

TEST_F(RefusedPlan, LayersThatAModelDoesNotHave) {
  EXPECT_THAT(Error("slices:\n- sources:\n  - {model: parents/a, layer_range: [1, 3]}\n"
                    "merge_method: passthrough\n"),
              StartsWith("recipe.yml:3:37: layer_range [1, 3] goes beyond the 2 layers of "
                         "parents/a"));
}

TEST_F(RefusedPlan, SourcesOfDifferentLength) {
  EXPECT_THAT(Error("models:\n- model: parents/a\n- model: parents/deep\nmerge_method: linear\n"),
              StartsWith("recipe.yml:3:3: parents/deep gives 3 layers, parents/a gives 2: "));
}

TEST_F(RefusedPlan, ABaseOfOtherLength) {
  EXPECT_THAT(Error("models: [{model: parents/a}]\nmerge_method: task_arithmetic\n"
                    "base_model: parents/deep\nparameters: {weight: 1}\n"),
              StartsWith("recipe.yml:3:13: the base 'parents/deep' has 3 layers"));
}

TEST_F(RefusedPlan, AModelTwiceInASlice) {
  EXPECT_THAT(Error("models:\n- model: parents/a\n- model: ./parents/a\nmerge_method: linear\n"),
              StartsWith("recipe.yml:3:10: model './parents/a' is in this slice twice"));
}

TEST_F(RefusedPlan, MoreModelsThanTheMethodMerges) {
  folder_.AddParent("parents/c");
  EXPECT_THAT(Error("models:\n- model: parents/a\n- model: parents/b\n- model: parents/c\n"
                    "merge_method: slerp\nbase_model: parents/a\n"),
              StartsWith("recipe.yml:2:1: slerp merges at most 2 models, here are 3"));
  EXPECT_THAT(Error("models:\n- model: parents/a\n- model: parents/b\n"
                    "merge_method: passthrough\n"),
              StartsWith("recipe.yml:2:1: passthrough merges exactly 1 model, here are 2"));
}

TEST_F(RefusedPlan, AMissingBase) {
  EXPECT_THAT(Error("models:\n- model: parents/a\n- model: parents/b\nmerge_method: slerp\n"),
              StartsWith("recipe.yml:4:15: slerp needs a base_model"));
  EXPECT_THAT(Error("slices:\n- sources: [{model: parents/a, layer_range: [0, 2]}]\n"
                    "merge_method: ties\nbase_model: parents/b\n"),
              StartsWith("recipe.yml:2:3: the base 'parents/b' is not among the sources"));
}

TEST_F(RefusedPlan, MoreLayersThanAModelMayHave) {
  std::string recipe = "merge_method: passthrough\nslices:\n";
  for (int i = 0; i < 513; ++i) {
    recipe += "- sources: [{model: parents/a, layer_range: [0, 2]}]\n";
  }
  EXPECT_THAT(Error(recipe), StartsWith("recipe.yml:515:3: more than 1024 layers in all"));
}

TEST_F(RefusedPlan, MoreModelsThanARecipeMayHave) {
  std::string recipe = "merge_method: passthrough\nslices:\n";
  for (int i = 0; i < 65; ++i) {
    const std::string name = "parents/m" + std::to_string(i);
    testing::WriteParentConfig(folder_.File(name), {});
    recipe += "- sources: [{model: " + name + ", layer_range: [0, 1]}]\n";
  }
  EXPECT_THAT(Error(recipe), StartsWith("recipe.yml:67:21: more than 64 models"));
}

TEST_F(RefusedPlan, AMissingRecipeIsNotFound) {
  EXPECT_EQ(PlanMerge(folder_.File("none.yml")).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace marcoro
