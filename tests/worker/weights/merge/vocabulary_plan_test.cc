// How embeddings over different vocabularies are brought to one: tables whose numbers say where
// they come from, compared with what mergekit makes of them.
#include "worker/weights/merge/vocabulary_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "tests/worker/weights/merge/parent_files.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::ReadFile;
using testing::RecipeFolder;
using ::testing::StartsWith;
using testing::TestData;
using testing::WriteFile;

std::string LinearRecipe(const std::vector<std::string>& models, const std::string& more) {
  std::string recipe = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n";
  for (const std::string& model : models) recipe += "- model: " + model + "\n";
  return recipe + more;
}

// Models whose tokenizers are: x, 320 pieces; y, these with two added tokens, in a table of 324
// rows; z and w, another 1024 pieces.
class Vocabularies : public ::testing::Test {
 protected:
  Vocabularies() {
    AddModel("x", 320, "merge/parents/a/tokenizer.model");
    AddModel("y", 324, "merge/parents/a/tokenizer.model");
    WriteFile(folder_.File("y/added_tokens.json"), R"({"<|im_start|>": 320, "<|im_end|>": 321})");
    AddModel("z", 1024, "tokenizer/tokenizer.model");
    AddModel("w", 1024, "tokenizer/tokenizer.model");
  }

  void AddModel(const std::string& name, int64_t rows, const std::string& tokenizer) const {
    testing::WriteParent(folder_.File(name), {.layers = 1, .vocabulary = rows});
    WriteFile(folder_.File(name + "/tokenizer.model"), ReadFile(TestData(tokenizer)));
  }

  MergePlan Plan(const std::vector<std::string>& models, const std::string& more = "") const {
    auto plan = PlanMerge(folder_.Write(LinearRecipe(models, more)));
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *std::move(plan) : MergePlan{};
  }

  RecipeFolder folder_;
};

// Row r of input i is 10000 * (i + 1) + r.
double Marked(int32_t input, int32_t row) { return 10000.0 * (input + 1) + row; }

double MarkedRow(const VocabularyMap& map, int32_t input, size_t token) {
  const int32_t row = map.rows[input][token];
  if (row >= 0) return Marked(input, row);
  double sum = 0;
  const std::vector<VocabularyRow>& owners = map.substitutes[-1 - row];
  for (const VocabularyRow& owner : owners) sum += Marked(owner.input, owner.row);
  return owners.empty() ? 0 : sum / static_cast<double>(owners.size());
}

class MergekitVocabulary : public Vocabularies, public ::testing::WithParamInterface<int> {};

TEST_P(MergekitVocabulary, HasTheRowsThatMergekitGivesIt) {
  const json expected = json::parse(ReadFile(TestData("merge/vocabularies.json")))[GetParam()];
  const std::string source = expected["tokenizer_source"];
  std::string more = "tokenizer_source: " + source + "\n";
  if (!expected["base"].is_null()) more += "base_model: " + expected["base"].get<std::string>();
  const std::vector<std::string> models = expected["models"];
  const MergePlan plan = Plan(models, more);
  const std::string tokenizer = source == "base" ? "x" : source == "union" ? "y" : source;
  EXPECT_EQ(plan.models[plan.tokenizer_model].reference, tokenizer);
  ASSERT_EQ(plan.vocabularies.size(), 1u);  // of embedding and lm_head
  EXPECT_EQ(plan.tensors.front().vocabulary, 0);
  EXPECT_EQ(plan.tensors[1].vocabulary, -1);
  EXPECT_EQ(plan.tensors.back().vocabulary, 0);
  const VocabularyMap& map = plan.vocabularies[0];
  ASSERT_EQ(map.rows.size(), models.size());
  for (int32_t i = 0; i < static_cast<int32_t>(models.size()); ++i) {
    const json& rows = expected["rows"][models[i]];
    ASSERT_EQ(map.rows[i].size(), rows.size());
    EXPECT_EQ(plan.config.vocabulary_size, static_cast<int32_t>(rows.size()));
    for (size_t token = 0; token < rows.size(); ++token) {
      ASSERT_EQ(MarkedRow(map, i, token), rows[token].get<double>())
          << models[i] << ", token " << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, MergekitVocabulary, ::testing::Range(0, 8));

TEST_F(Vocabularies, ThatAreTheSameNeedNoMap) {
  const MergePlan plan = Plan({"z", "w"}, "tokenizer_source: union\n");
  EXPECT_THAT(plan.vocabularies, IsEmpty());
  EXPECT_EQ(plan.tensors.front().vocabulary, -1);
  EXPECT_EQ(plan.config.vocabulary_size, 1024);
}

TEST_F(Vocabularies, WithoutTokenizerSourceAreCutToTheirCommonRows) {
  const MergePlan plan = Plan({"z", "x"});
  EXPECT_EQ(plan.config.vocabulary_size, 320);
  EXPECT_EQ(json::parse(plan.config_json)["vocab_size"], 320);
  ASSERT_EQ(plan.vocabularies.size(), 1u);
  EXPECT_EQ(plan.tensors.front().vocabulary, 0);
  EXPECT_EQ(plan.tensors.back().vocabulary, 0);
  for (const std::vector<int32_t>& rows : plan.vocabularies[0].rows) {
    ASSERT_EQ(rows.size(), 320u);
    for (int32_t row = 0; row < 320; ++row) ASSERT_EQ(rows[row], row);
  }
  // z's tokenizer would give ids that have no row.
  EXPECT_EQ(plan.models[plan.tokenizer_model].reference, "x");
  ASSERT_EQ(plan.warnings.size(), 1u);
  EXPECT_THAT(plan.warnings[0],
              HasSubstr("vocabularies of 320 to 1024 tokens: only the first 320 are merged, with "
                        "the tokenizer of x"));
}

TEST_F(Vocabularies, OfTheFirstAndTheLastSliceAreCutAlike) {
  const auto plan =
      PlanMerge(folder_.Write("slices:\n"
                              "- sources: [{model: z, layer_range: [0, 1]}]\n"
                              "- sources: [{model: x, layer_range: [0, 1]}]\n"
                              "merge_method: passthrough\n"));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->config.vocabulary_size, 320);
  ASSERT_EQ(plan->vocabularies.size(), 1u);  // lm_head is x's as it is
  EXPECT_EQ(plan->tensors.front().vocabulary, 0);
  EXPECT_EQ(plan->tensors.back().vocabulary, -1);
}

TEST_F(Vocabularies, OfTokenizersThatAreMissingAreTakenForTheFirstModels) {
  testing::WriteParent(folder_.File("bare"), {.layers = 1, .vocabulary = 320});
  const MergePlan plan = Plan({"x", "bare"}, "tokenizer_source: base\n");
  EXPECT_THAT(plan.vocabularies, IsEmpty());
  ASSERT_EQ(plan.warnings.size(), 1u);
  EXPECT_THAT(plan.warnings[0], HasSubstr("its tokens are taken for x's"));
}

TEST_F(Vocabularies, NeedTheTokenizerThatIsTaken) {
  testing::WriteParent(folder_.File("bare"), {.layers = 1, .vocabulary = 320});
  const std::string recipe = folder_.Write(LinearRecipe({"x"}, "tokenizer_source: bare\n"));
  const auto plan = PlanMerge(recipe);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()),
              StartsWith(recipe + ":5:19: " + folder_.File("bare") + ": has neither"));
}

TEST_F(Vocabularies, OfWhichNoneHasAllTokensHaveNoUnion) {
  const std::string recipe = folder_.Write(LinearRecipe({"y", "z"}, "tokenizer_source: union\n"));
  const auto plan = PlanMerge(recipe);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()),
              StartsWith(recipe + ":6:19: no model has all tokens of the others (y lacks "));
}

TEST_F(Vocabularies, WithoutTheSpecialTokensOfTheirModelAreRefused) {
  // In the part of y's table for which its tokenizer has no tokens.
  WriteFile(folder_.File("y/generation_config.json"), R"({"eos_token_id": [2, 323]})");
  const auto plan = PlanMerge(folder_.Write(LinearRecipe({"y"}, "tokenizer_source: base\n")));
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("/y: special token 323 lies beyond the merged vocabulary of 322"));
}

TEST_F(Vocabularies, CutToFewerRowsTakeATokenizerThatHasNoMore) {
  WriteFile(folder_.File("z/generation_config.json"), R"({"eos_token_id": 1000})");
  const MergePlan plan = Plan({"z", "x"});
  EXPECT_EQ(plan.models[plan.tokenizer_model].reference, "x");
  EXPECT_THAT(plan.config.eos_token_ids, ElementsAre(2));
}

TEST_F(Vocabularies, MayComeFromAModelWithoutWeights) {
  testing::WriteParentConfig(folder_.File("tokens"), {.layers = 9, .vocabulary = 1024});
  WriteFile(folder_.File("tokens/tokenizer.model"),
            ReadFile(TestData("tokenizer/tokenizer.model")));
  const MergePlan plan = Plan({"x", "z"}, "tokenizer_source: tokens\n");
  EXPECT_EQ(plan.models[plan.tokenizer_model].reference, "tokens");
  EXPECT_EQ(plan.config.vocabulary_size, 1024);
  EXPECT_EQ(plan.config.layers, 1);
}

TEST_F(Vocabularies, BringTheirSpecialTokens) {
  json config = json::parse(ReadFile(folder_.File("z/config.json")));
  config["eos_token_id"] = {2, 1000};
  config["pad_token_id"] = 0;
  WriteFile(folder_.File("z/config.json"), config.dump());
  const MergePlan plan = Plan({"x"}, "tokenizer_source: z\n");
  EXPECT_THAT(plan.config.eos_token_ids, ElementsAre(2, 1000));
  const json merged = json::parse(plan.config_json);
  EXPECT_EQ(merged["eos_token_id"], config["eos_token_id"]);
  EXPECT_EQ(merged["pad_token_id"], 0);
}

}  // namespace
}  // namespace marcoro
