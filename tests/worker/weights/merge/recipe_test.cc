#include "worker/weights/merge/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"
#include "tests/worker/weights/merge/parent_files.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Recipe Parse(const std::string& text) {
  auto recipe = ParseRecipe(text, "r.yml");
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  return recipe.ok() ? *std::move(recipe) : Recipe{};
}

// A recipe of two models with more lines after it.
std::string TwoModels(const std::string& more) {
  return "models:\n- model: a\n- model: b\nmerge_method: linear\n" + more;
}

TEST(Recipe, ReadsTheRecipeOfMarcoro14) {
  const Recipe recipe = Parse(testing::ReadFile(testing::TestData("merge/plans/marcoro14.yml")));
  EXPECT_EQ(recipe.merge_method.text, "slerp");
  EXPECT_EQ(recipe.base_model->text, "AIDC-ai-business/Marcoroni-7B-v3");
  EXPECT_EQ(recipe.dtype, "bfloat16");
  EXPECT_EQ(recipe.out_dtype, "");
  EXPECT_FALSE(recipe.tokenizer_source.has_value());
  ASSERT_EQ(recipe.slices.size(), 1u);
  ASSERT_EQ(recipe.slices[0].sources.size(), 2u);
  const RecipeSource& second = recipe.slices[0].sources[1];
  EXPECT_EQ(second.model.text, "EmbeddedLLM/Mistral-7B-Merge-14-v0.1");
  EXPECT_EQ(second.model.position.line, 5);
  EXPECT_EQ(second.model.position.column, 16);
  EXPECT_FALSE(second.all_layers);
  EXPECT_EQ(second.first_layer, 0);
  EXPECT_EQ(second.end_layer, 32);
  ASSERT_EQ(recipe.parameters.size(), 1u);
  EXPECT_EQ(recipe.parameters[0].name, "t");
  const std::vector<ParameterCase>& cases = recipe.parameters[0].cases;
  ASSERT_EQ(cases.size(), 3u);
  EXPECT_EQ(cases[0].filter, "self_attn");
  EXPECT_THAT(cases[0].values, ElementsAre(0, 0.5, 0.3, 0.7, 1));
  EXPECT_EQ(cases[1].filter, "mlp");
  EXPECT_EQ(cases[2].filter, "");
  EXPECT_THAT(cases[2].values, ElementsAre(0.5));
}

TEST(Recipe, ModelsAreOneSliceOfAllLayers) {
  const Recipe recipe = Parse(
      "models:\n"
      "- model: a\n"
      "- model: b\n"
      "  parameters: {weight: 0.5}\n"
      "merge_method: linear\n");
  ASSERT_EQ(recipe.slices.size(), 1u);
  ASSERT_EQ(recipe.slices[0].sources.size(), 2u);
  EXPECT_TRUE(recipe.slices[0].sources[0].all_layers);
  EXPECT_EQ(recipe.slices[0].sources[1].parameters[0].name, "weight");
}

TEST(Recipe, ReadsAModule) {
  const Recipe recipe = Parse(
      "modules:\n"
      "  default:\n"
      "    models: [{model: a}]\n"
      "    parameters: {scale: 2}\n"
      "merge_method: passthrough\n");
  ASSERT_EQ(recipe.slices.size(), 1u);
  EXPECT_EQ(recipe.module_parameters[0].name, "scale");
}

TEST(Recipe, ReadsWhatStandsBesideTheModels) {
  const Recipe recipe =
      Parse(TwoModels("dtype: torch.float16\nout_dtype: float32\nseed: 18446744073709551615\n"
                      "tokenizer_source: union\nchat_template: chatml\n"));
  EXPECT_EQ(recipe.dtype, "float16");
  EXPECT_EQ(recipe.out_dtype, "float32");
  EXPECT_EQ(recipe.seed, 18446744073709551615u);
  EXPECT_EQ(recipe.tokenizer_source->text, "union");
  EXPECT_EQ(recipe.chat_template->text, "chatml");
}

TEST(Recipe, TokenizerIsTheLongFormOfTokenizerSource) {
  EXPECT_EQ(Parse(TwoModels("tokenizer: {source: base}\n")).tokenizer_source->text, "base");
  EXPECT_EQ(Parse(TwoModels("tokenizer: {}\n")).tokenizer_source->text, "union");
}

TEST(Recipe, NullIsAsIfAbsent) {
  const Recipe recipe = Parse(TwoModels("base_model: null\ndtype: ~\ntokenizer_source:\n"));
  EXPECT_FALSE(recipe.base_model.has_value());
  EXPECT_EQ(recipe.dtype, "");
  EXPECT_FALSE(recipe.tokenizer_source.has_value());
}

TEST(Recipe, ReadsValuesAsYamlAndPythonWriteThem) {
  const Recipe recipe = Parse(TwoModels(
      "parameters:\n  weight: [1, 0.5, -2e-1, '0.25', .5]\n  normalize: [yes, off, true]\n"));
  EXPECT_THAT(recipe.parameters[0].cases[0].values, ElementsAre(1, 0.5, -0.2, 0.25, 0.5));
  EXPECT_FALSE(recipe.parameters[0].cases[0].discrete);
  EXPECT_THAT(recipe.parameters[1].cases[0].values, ElementsAre(1, 0, 1));
  EXPECT_TRUE(recipe.parameters[1].cases[0].discrete);
}

TEST(Recipe, AliasesStandForWhatTheyName) {
  const Recipe recipe = Parse(
      "slices:\n"
      "- sources: &both [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n"
      "- sources: *both\n"
      "merge_method: linear\n");
  EXPECT_EQ(recipe.slices[1].sources[1].model.text, "b");
}

struct BadRecipe {
  const char* what;
  std::string text;
  std::string message;  // its beginning: the place
  std::string contains;
};

void PrintTo(const BadRecipe& bad, std::ostream* out) { *out << bad.what; }

class RefusedRecipe : public ::testing::TestWithParam<BadRecipe> {};

TEST_P(RefusedRecipe, NamesThePlaceAndWhatIsWrong) {
  const auto recipe = ParseRecipe(GetParam().text, "r.yml");
  ASSERT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(recipe.status().message());
  EXPECT_THAT(message, StartsWith(GetParam().message));
  EXPECT_THAT(message, HasSubstr(GetParam().contains));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, RefusedRecipe,
    ::testing::Values(
        BadRecipe{"UnknownKey", TwoModels("base_modell: a\n"), "r.yml:5:1: ",
                  "unknown key 'base_modell' in a recipe (did you mean base_model? known: slices"},
        BadRecipe{"UnknownKeyOfASource", "models:\n- model: a\n  weight: 1\nmerge_method: linear\n",
                  "r.yml:3:3: ", "unknown key 'weight' in a model (known: model, parameters)"},
        BadRecipe{"UnknownKeyOfASlice",
                  "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n  dtype: x\n"
                  "merge_method: linear\n",
                  "r.yml:3:3: ", "unknown key 'dtype' in a slice"},
        BadRecipe{"UnknownKeyOfACase", TwoModels("parameters:\n  t:\n  - {filters: a, value: 1}\n"),
                  "r.yml:7:6: ", "(did you mean filter? known: filter, value)"},
        BadRecipe{"UnknownModule", "modules: {vision: {models: [{model: a}]}}\nmerge_method: x\n",
                  "r.yml:1:11: ", "unknown key 'vision' in modules (known: default)"},
        BadRecipe{"KeyTwice", TwoModels("dtype: float16\ndtype: float32\n"),
                  "r.yml:6:1: ", "key 'dtype' stands here twice"},
        BadRecipe{"KeyThatIsNoWord", TwoModels("[a]: b\n"), "r.yml:5:1: ", "must be a word"},
        BadRecipe{"NothingToMerge", "merge_method: linear\n",
                  "r.yml:1:1: ", "slices, models or modules is missing"},
        BadRecipe{"ModelsAndSlices",
                  TwoModels("slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"),
                  "r.yml:5:1: ", "either models or slices"},
        BadRecipe{"NoMethod", "models: [{model: a}]\n", "r.yml:1:1: ", "merge_method is missing"},
        BadRecipe{"NoModel", "models:\n- {}\nmerge_method: linear\n",
                  "r.yml:2:3: ", "model is missing"},
        BadRecipe{"NoSources", "slices:\n- {parameters: {t: 1}}\nmerge_method: linear\n",
                  "r.yml:2:3: ", "sources is missing"},
        BadRecipe{"NoLayerRange", "slices:\n- sources:\n  - model: a\nmerge_method: linear\n",
                  "r.yml:3:5: ", "layer_range is missing"},
        BadRecipe{"TwoTokenizers", TwoModels("tokenizer_source: base\ntokenizer: {source: a}\n"),
                  "r.yml:6:1: ", "either tokenizer_source or tokenizer"}),
    [](const auto& test) { return test.param.what; });

INSTANTIATE_TEST_SUITE_P(
    Values, RefusedRecipe,
    ::testing::Values(
        BadRecipe{"UnknownDType", TwoModels("dtype: bfloat6\n"), "r.yml:5:8: ",
                  "unknown dtype 'bfloat6' (did you mean bfloat16? known: bfloat16, float16"},
        BadRecipe{"TextForANumber", TwoModels("parameters: {weight: much}\n"),
                  "r.yml:5:22: ", "weight must be a finite number, is 'much'"},
        BadRecipe{"NotANumber", TwoModels("parameters: {weight: nan}\n"),
                  "r.yml:5:22: ", "must be a finite number"},
        BadRecipe{"EmptyGradient", TwoModels("parameters: {weight: []}\n"),
                  "r.yml:5:22: ", "weight must be a list, is an empty one"},
        BadRecipe{"CaseWithoutValue", TwoModels("parameters: {weight: [{filter: a}]}\n"),
                  "r.yml:5:23: ", "value is missing"},
        BadRecipe{"CasesAndNumbers", TwoModels("parameters: {weight: [{value: 1}, 2]}\n"),
                  "r.yml:5:35: ", "a case of weight must be a mapping, is '2'"},
        BadRecipe{"ListForAMapping", TwoModels("parameters: [1]\n"),
                  "r.yml:5:13: ", "parameters must be a mapping, is a list"},
        BadRecipe{"MappingForAText", TwoModels("base_model: {path: a}\n"),
                  "r.yml:5:13: ", "base_model must be a text, is a mapping"},
        BadRecipe{"NegativeSeed", TwoModels("seed: -1\n"), "r.yml:5:7: ", "must be an integer"},
        BadRecipe{"RangeOfThree",
                  "slices:\n- sources: [{model: a, layer_range: [0, 1, 2]}]\nmerge_method: x\n",
                  "r.yml:2:37: ", "layer_range has 3 items, at most 2"},
        BadRecipe{"EmptyRange",
                  "slices:\n- sources: [{model: a, layer_range: [2, 2]}]\nmerge_method: x\n",
                  "r.yml:2:37: ", "[2, 2] has no layers"},
        BadRecipe{"FractionOfALayer",
                  "slices:\n- sources: [{model: a, layer_range: [0, 1.5]}]\nmerge_method: x\n",
                  "r.yml:2:41: ", "must be an integer from 0 to 1024, is '1.5'"}),
    [](const auto& test) { return test.param.what; });

std::string Repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    Documents, RefusedRecipe,
    ::testing::Values(
        BadRecipe{"NoYaml", "models: [a\n", "r.yml:", "not valid YAML"},
        BadRecipe{"Empty", "", "r.yml:1:1: ", "empty"},
        BadRecipe{"AWord", "slerp\n", "r.yml:1:1: ", "a recipe must be a mapping, is 'slerp'"},
        BadRecipe{"TwoDocuments", TwoModels("---\nmerge_method: slerp\n"),
                  "r.yml:5:1: ", "one document is expected"},
        BadRecipe{"StrayComma", ", merge_method: slerp\n",
                  "r.yml:1:1: ", "one document is expected"},
        BadRecipe{"NotUtf8", TwoModels("dtype: \xff\n"), "r.yml:5:8: ", "not valid UTF-8"},
        BadRecipe{"TooLong", TwoModels(std::string(kMaxRecipeBytes, '#')),
                  "r.yml: ", "longer than 524288 bytes"},
        BadRecipe{"TooDeep", TwoModels("base_model: " + std::string(100'000, '[')),
                  "r.yml:", "nested too deeply"},
        BadRecipe{"TooDeepByIndentation", Repeated("- ", 3000) + "a\n",
                  "r.yml:1:", "nested too deeply"},
        BadRecipe{"Utf16", std::string("m\0o\0", 4) + "\xff\xfe", "r.yml:1:5: ", "not valid UTF-8"},
        BadRecipe{"TooManyModels", "merge_method: linear\nmodels:\n" + Repeated("- model: a\n", 33),
                  "r.yml:3:1: ", "models has 33 items, at most 32 are allowed"},
        BadRecipe{"AliasesOfAliases",
                  TwoModels("parameters:\n  a: &a [" + Repeated("1,", 4000) + "1]\n" + "  b: &b [" +
                            Repeated("{value: *a},", 1000) + "{value: *a}]\n"),
                  "r.yml:6:", "the document is too long"},
        BadRecipe{"AliasOfItself", TwoModels("parameters: &p {weight: *p}\n"),
                  "r.yml:", "unknown key 'weight' in a case of weight"}),
    [](const auto& test) { return test.param.what; });

// What editors of other systems write.
TEST(Recipe, AByteOrderMarkAndOtherLineEndsMakeNoDifference) {
  std::string text = "\xef\xbb\xbf" + TwoModels("parameters:\n  t:\n  - value: 0.5\n");
  for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 2) {
    text.replace(at, 1, "\r\n");
  }
  const auto recipe = ParseRecipe(text, "r.yml");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->merge_method.text, "linear");
  EXPECT_EQ(recipe->parameters[0].cases[0].values, std::vector<double>{0.5});
}

TEST(Recipe, AMissingFileIsNotFound) {
  EXPECT_EQ(LoadRecipe("/nowhere/recipe.yml").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace marcoro
