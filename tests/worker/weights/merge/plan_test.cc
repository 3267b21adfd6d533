// Plans of recipes, compared with what mergekit plans for the same recipes.
#include "worker/weights/merge/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"
#include "tests/worker/weights/merge/parent_files.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::ReadFile;
using testing::RecipeFolder;
using testing::TestData;
using testing::WriteFile;

MergePlan Plan(const std::string& recipe_path) {
  auto plan = PlanMerge(recipe_path);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *std::move(plan) : MergePlan{};
}

// mergekit's parameters, but for those of its memory; null is a method's own default.
void ExpectParameters(const MergeMethod& method, bool per_input, const MergeParameters& ours,
                      const json& expected, const std::string& where) {
  size_t compared = 0;
  for (const MergeMethodParameter& parameter : method.parameters()) {
    const std::string name(parameter.name);
    if (parameter.per_input != per_input || !expected.contains(name)) continue;
    const json& value = expected[name];
    const double number = value.is_null() ? parameter.fallback.value() : value.get<double>();
    ASSERT_TRUE(ours.contains(name)) << where << " " << name;
    EXPECT_EQ(ours.at(name), number) << where << " " << name;
    ++compared;
  }
  EXPECT_EQ(ours.size(), compared) << where;
}

void ExpectMergekitsPlan(const MergePlan& plan, const std::string& name) {
  const json expected = json::parse(ReadFile(TestData("merge/plans/" + name + ".json")));
  EXPECT_EQ(plan.config.layers, expected["layers"].get<int>());
  std::map<std::string, const TensorMerge*> ours;
  for (const TensorMerge& merge : plan.tensors) ours[merge.name] = &merge;
  EXPECT_EQ(ours.size(), plan.tensors.size());
  EXPECT_EQ(ours.size(), expected["tensors"].size());
  const MergeMethod& method = *FindMergeMethod(plan.method);
  for (const json& tensor : expected["tensors"]) {
    const std::string output = tensor[0];
    ASSERT_TRUE(ours.contains(output)) << output;
    const TensorMerge& merge = *ours[output];
    EXPECT_EQ(merge.base, tensor[1].get<int>()) << output;
    EXPECT_EQ(merge.vocabulary, -1) << output;
    ExpectParameters(method, false, merge.parameters, tensor[2], output);
    ASSERT_EQ(merge.inputs.size(), tensor[3].size()) << output;
    for (size_t i = 0; i < merge.inputs.size(); ++i) {
      const MergeInput& input = merge.inputs[i];
      EXPECT_EQ(plan.models[input.model].reference, tensor[3][i][0].get<std::string>()) << output;
      EXPECT_EQ(input.tensor, tensor[3][i][1].get<std::string>()) << output;
      ExpectParameters(method, true, input.parameters, tensor[3][i][2], output);
    }
  }
}

class MergekitPlan : public ::testing::TestWithParam<std::string> {};

TEST_P(MergekitPlan, IsOurs) {
  ExpectMergekitsPlan(Plan(TestData("merge/plans/" + GetParam() + ".yml")), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Recipes, MergekitPlan,
                         ::testing::Values("appended_base", "backwards_stack", "linear_three",
                                           "precedence", "slice_bases"),
                         [](const auto& test) { return test.param; });

const TensorMerge& Tensor(const MergePlan& plan, const std::string& name) {
  for (const TensorMerge& merge : plan.tensors) {
    if (merge.name == name) return merge;
  }
  ADD_FAILURE() << "no tensor " << name;
  return plan.tensors.front();
}

TEST(Marcoro14, OfThirtyTwoLayersIsMergekitsPlan) {
  RecipeFolder folder;
  folder.AddParent("AIDC-ai-business/Marcoroni-7B-v3", {.layers = 32});
  folder.AddParent("EmbeddedLLM/Mistral-7B-Merge-14-v0.1", {.layers = 32});
  const MergePlan plan = Plan(folder.Write(ReadFile(TestData("merge/plans/marcoro14.yml"))));
  ExpectMergekitsPlan(plan, "marcoro14");
  const auto t = [&plan](int layer, const std::string& part) {
    return Tensor(plan, "model.layers." + std::to_string(layer) + "." + part + ".weight")
        .parameters.at("t");
  };
  EXPECT_NEAR(t(1, "self_attn.q_proj"), .064516, 5e-7);
  EXPECT_NEAR(t(8, "self_attn.k_proj"), .493548, 5e-7);
  EXPECT_NEAR(t(15, "self_attn.v_proj"), .312903, 5e-7);
  EXPECT_NEAR(t(16, "self_attn.o_proj"), .325806, 5e-7);
  EXPECT_NEAR(t(24, "self_attn.q_proj"), .729032, 5e-7);
  EXPECT_NEAR(t(24, "mlp.up_proj"), 1 - .729032, 5e-7);
  EXPECT_EQ(t(0, "self_attn.q_proj"), 0);
  EXPECT_EQ(t(31, "mlp.down_proj"), 0);
  EXPECT_EQ(t(31, "self_attn.q_proj"), 1);
  EXPECT_EQ(t(0, "mlp.gate_proj"), 1);
  EXPECT_EQ(t(7, "input_layernorm"), 0.5);
  EXPECT_EQ(Tensor(plan, "lm_head.weight").parameters.at("t"), 0.5);
}

TEST(Plan, NamesModelsMethodAndTypes) {
  const std::string path = TestData("merge/recipes/slerp_out_dtype.yml");
  const MergePlan plan = Plan(path);
  EXPECT_EQ(plan.recipe, path);
  EXPECT_EQ(plan.method, "slerp");
  ASSERT_EQ(plan.models.size(), 2u);
  EXPECT_EQ(plan.models[0].reference, "parents/a");
  EXPECT_EQ(plan.models[0].directory, TestData("merge/parents/a"));
  EXPECT_EQ(plan.models[1].reference, "parents/c");
  EXPECT_EQ(plan.base_model, 0);
  EXPECT_EQ(plan.dtype, "F32");
  EXPECT_EQ(plan.out_dtype, "BF16");
  EXPECT_EQ(plan.seed, 0u);
  EXPECT_EQ(plan.tokenizer_model, 0);
  EXPECT_EQ(plan.chat_template, "");
  EXPECT_THAT(plan.warnings, IsEmpty());
}

TEST(Plan, HasTheTensorsInTheOrderOfUse) {
  const MergePlan plan = Plan(TestData("merge/recipes/passthrough_stack.yml"));
  EXPECT_EQ(plan.tensors.front().name, "model.embed_tokens.weight");
  EXPECT_EQ(plan.tensors[1].name, "model.layers.0.input_layernorm.weight");
  EXPECT_EQ(plan.tensors.back().name, "lm_head.weight");
}

// merged/*.json: values of the config.json that mergekit wrote.
class MergekitConfig : public ::testing::TestWithParam<std::string> {};

TEST_P(MergekitConfig, IsOurs) {
  const MergePlan plan = Plan(TestData("merge/recipes/" + GetParam() + ".yml"));
  const json expected = json::parse(ReadFile(TestData("merge/merged/" + GetParam() + ".json")));
  const json ours = json::parse(plan.config_json);
  EXPECT_EQ(ours["num_hidden_layers"], expected["num_hidden_layers"]);
  EXPECT_EQ(ours["vocab_size"], expected["vocab_size"]);
  EXPECT_EQ(ours["architectures"], expected["architectures"]);
  EXPECT_EQ(ours["torch_dtype"], expected["dtype"]);  // its name for older readers
  EXPECT_EQ(plan.config.layers, expected["num_hidden_layers"].get<int>());
}

INSTANTIATE_TEST_SUITE_P(Recipes, MergekitConfig,
                         ::testing::Values("linear_not_normalized", "passthrough_stack",
                                           "slerp_models_float16", "slerp_out_dtype",
                                           "slerp_two_slices", "ties"),
                         [](const auto& test) { return test.param; });

TEST(PlannedConfig, KeepsWhatElseTheBaseSays) {
  const MergePlan plan = Plan(TestData("merge/recipes/slerp_near_parallel.yml"));
  json expected = json::parse(ReadFile(TestData("merge/parents/base/config.json")));
  expected["torch_dtype"] = "bfloat16";
  EXPECT_EQ(json::parse(plan.config_json), expected);
}

TEST(PlannedConfig, WithoutDTypeIsStoredAsTheFirstModelIs) {
  RecipeFolder folder;
  folder.AddParent("a");
  const MergePlan plan = Plan(folder.Write("models: [{model: a}]\nmerge_method: passthrough\n"));
  EXPECT_EQ(plan.dtype, "");
  EXPECT_EQ(plan.out_dtype, "");
  EXPECT_EQ(plan.base_model, -1);
  EXPECT_FALSE(json::parse(plan.config_json).contains("torch_dtype"));
}

TEST(PlannedConfig, HasSpecialTokensOfTheTokenizersModel) {
  RecipeFolder folder;
  folder.AddParent("a");
  WriteFile(folder.File("a/generation_config.json"), R"({"eos_token_id": [2, 7]})");
  const MergePlan plan = Plan(folder.Write("models: [{model: a}]\nmerge_method: passthrough\n"));
  EXPECT_EQ(plan.config.bos_token_id, 1);
  EXPECT_THAT(plan.config.eos_token_ids, ElementsAre(2, 7));
  EXPECT_EQ(json::parse(plan.config_json)["eos_token_id"], 2);
}

TEST(TiedParents, GiveATiedModel) {
  RecipeFolder folder;
  folder.AddParent("a", {.tied = true});
  folder.AddParent("b", {.tied = true});
  const MergePlan plan = Plan(folder.Write(
      "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"));
  EXPECT_TRUE(plan.config.tied_embeddings);
  EXPECT_EQ(plan.tensors.back().name, "model.norm.weight");
}

TEST(TiedParents, LendTheirEmbeddingToAnUntiedModelsLmHead) {
  RecipeFolder folder;
  folder.AddParent("a", {.tied = true});
  folder.AddParent("b");
  const MergePlan plan = Plan(folder.Write(
      "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}\n"));
  EXPECT_FALSE(plan.config.tied_embeddings);
  EXPECT_FALSE(json::parse(plan.config_json)["tie_word_embeddings"].get<bool>());
  const TensorMerge& head = Tensor(plan, "lm_head.weight");
  EXPECT_EQ(head.inputs[0].tensor, "model.embed_tokens.weight");
  EXPECT_EQ(head.inputs[1].tensor, "lm_head.weight");
}

TEST(TiedParents, HaveAnLmHeadForFilters) {
  RecipeFolder folder;
  folder.AddParent("a", {.tied = true});
  folder.AddParent("b");
  const MergePlan plan =
      Plan(folder.Write("models: [{model: a}, {model: b}]\nmerge_method: linear\n"
                        "parameters: {weight: [{filter: lm_head, value: 2}, {value: 1}]}\n"));
  EXPECT_EQ(Tensor(plan, "lm_head.weight").inputs[0].parameters.at("weight"), 2);
  EXPECT_EQ(Tensor(plan, "model.embed_tokens.weight").inputs[0].parameters.at("weight"), 1);
}

TEST(Plan, WarnsOfArithmeticThatDiffers) {
  RecipeFolder folder;
  folder.AddParent("a");
  folder.AddParent("b");
  json config = json::parse(ReadFile(folder.File("b/config.json")));
  config["rope_theta"] = 1e6;
  WriteFile(folder.File("b/config.json"), config.dump());
  const std::string recipe = folder.Write(
      "models:\n- model: a\n- model: b\nmerge_method: linear\nparameters: {weight: 1}\n");
  EXPECT_THAT(Plan(recipe).warnings,
              ElementsAre(recipe + ":3: rope_theta of b is 1e+06, of a 10000 (taken)"));
}

TEST(Plan, FindsModelsInTheHubsCache) {
  RecipeFolder folder;
  folder.AddParent("cache/snapshot");
  const auto plan = PlanMerge(folder.Write("models: [{model: org/m}]\nmerge_method: passthrough\n"),
                              [&](const std::string& name) -> absl::StatusOr<std::string> {
                                EXPECT_EQ(name, "org/m");
                                return folder.File("cache/snapshot");
                              });
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->models[0].directory, folder.File("cache/snapshot"));
}

TEST(Plan, TwoNamesOfOneFolderAreOneModel) {
  RecipeFolder folder;
  folder.AddParent("a");
  folder.AddParent("b");
  const MergePlan plan =
      Plan(folder.Write("models: [{model: a}, {model: b}]\nmerge_method: slerp\nbase_model: ./a\n"
                        "parameters: {t: 0.5}\n"));
  EXPECT_EQ(plan.models.size(), 2u);
  EXPECT_EQ(plan.tensors[0].base, 0);
}

}  // namespace
}  // namespace marcoro
