// Seeded mutations of recipes: whatever the bytes, a recipe within its limits, or a clean error.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/plan.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {
namespace {

using testing::ReadFile;
using testing::TestData;

void Mutate(std::string& text, std::mt19937_64& random) {
  constexpr std::string_view kMarks = "-:[]{},&*!|>'\"#%@ \n\t~?0.e";
  const size_t at = random() % text.size();
  switch (random() % 6) {
    case 0:
      text[at] = static_cast<char>(random());
      break;
    case 1:
      text.erase(at, 1 + random() % 40);
      break;
    case 2:
      text.insert(at, text.substr(random() % text.size(), random() % 100));
      break;
    case 3:
      text[at] = kMarks[random() % kMarks.size()];
      break;
    case 4:
      text.insert(at, std::to_string(random() >> (random() % 64)));
      break;
    default:
      text.resize(at);
  }
  if (text.empty()) text.assign(1, '{');
}

void ExpectFinite(const ParameterSettings& settings) {
  for (const ParameterSetting& setting : settings) {
    ASSERT_FALSE(setting.cases.empty());
    for (const ParameterCase& one : setting.cases) {
      ASSERT_FALSE(one.values.empty());
      for (const double value : one.values) ASSERT_TRUE(std::isfinite(value));
    }
  }
}

void ExpectPromisesKept(const Recipe& recipe) {
  ASSERT_FALSE(recipe.merge_method.text.empty());
  ASSERT_FALSE(recipe.slices.empty());
  ASSERT_LE(recipe.slices.size(), kMaxRecipeSlices);
  ExpectFinite(recipe.parameters);
  ExpectFinite(recipe.module_parameters);
  for (const RecipeSlice& slice : recipe.slices) {
    ASSERT_FALSE(slice.sources.empty());
    ASSERT_LE(slice.sources.size(), kMaxSliceSources);
    ExpectFinite(slice.parameters);
    for (const RecipeSource& source : slice.sources) {
      ASSERT_FALSE(source.model.text.empty());
      ASSERT_GE(source.model.position.line, 1);
      ASSERT_TRUE(source.all_layers || source.first_layer < source.end_layer);
      ASSERT_GE(source.first_layer, 0);
      ASSERT_LE(source.end_layer, kMaxMergedLayers);
      ExpectFinite(source.parameters);
    }
  }
}

class MutatedRecipe : public ::testing::TestWithParam<std::string> {};

TEST_P(MutatedRecipe, IsReadOrRefused) {
  std::mt19937_64 random(6);
  const std::string original = ReadFile(TestData("merge/plans/" + GetParam() + ".yml"));
  int accepted = 0;
  for (int round = 0; round < 2'000; ++round) {
    std::string text = original;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) Mutate(text, random);
    const auto recipe = ParseRecipe(text, "r.yml");
    if (!recipe.ok()) {
      ASSERT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument) << text;
      continue;
    }
    ++accepted;
    ExpectPromisesKept(*recipe);
  }
  // Names and numbers can be changed without harm; most else cannot.
  EXPECT_GT(accepted, 20);
  EXPECT_LT(accepted, 1'500);
}

INSTANTIATE_TEST_SUITE_P(Recipes, MutatedRecipe,
                         ::testing::Values("precedence", "backwards_stack", "marcoro14"),
                         [](const auto& test) { return test.param; });

// A plan keeps its promises too: of every tensor the inputs and numbers that its method needs.
void ExpectPlanned(const MergePlan& plan) {
  const MergeMethod* method = FindMergeMethod(plan.method);
  ASSERT_NE(method, nullptr);
  ASSERT_GE(plan.config.layers, 1);
  ASSERT_EQ(plan.tensors.size(), static_cast<size_t>(plan.config.layers) * 9 + 3);
  for (const TensorMerge& merge : plan.tensors) {
    ASSERT_GE(static_cast<int32_t>(merge.inputs.size()), method->min_inputs());
    ASSERT_LE(static_cast<int32_t>(merge.inputs.size()), method->max_inputs());
    ASSERT_LT(merge.base, static_cast<int32_t>(merge.inputs.size()));
    for (const MergeInput& input : merge.inputs) {
      ASSERT_GE(input.model, 0);
      ASSERT_LT(static_cast<size_t>(input.model), plan.models.size());
    }
    for (const auto& [name, value] : merge.parameters) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_P(MutatedRecipe, IsPlannedOrRefused) {
  std::mt19937_64 random(9);
  const testing::TempFolder folder;
  std::filesystem::create_directory_symlink(TestData("merge/parents"), folder.File("parents"));
  const std::string original = ReadFile(TestData("merge/plans/" + GetParam() + ".yml"));
  for (int round = 0; round < 300; ++round) {
    std::string text = original;
    Mutate(text, random);
    testing::WriteFile(folder.File("r.yml"), text);
    const auto plan = PlanMerge(folder.File("r.yml"));
    if (plan.ok()) {
      ExpectPlanned(*plan);
    } else {
      ASSERT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument) << text;
    }
  }
}

TEST(RecipeFuzz, SurvivesBytesFromNowhere) {
  constexpr std::string_view kLetters = "-:[]{},&*!|>'\"#%@ \n\n\n  ab01~?<=.\xc3\xa9";
  std::mt19937_64 random(7);
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (uint64_t length = random() % 80; length > 0; --length) {
      text.push_back(kLetters[random() % kLetters.size()]);
    }
    ASSERT_EQ(ParseRecipe(text, "r.yml").status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace marcoro
