#include "worker/weights/merge/merge_parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

ParameterSettings Setting(const std::string& name, std::vector<ParameterCase> cases) {
  return {{.name = name, .position = {1, 1}, .cases = std::move(cases)}};
}

ParameterCase Values(std::vector<double> values, const std::string& filter = "") {
  return {.filter = filter, .values = std::move(values), .discrete = false};
}

double Evaluate(const ParameterSettings& settings, const std::string& tensor, double place) {
  const auto value = EvaluateParameter({&settings}, settings[0].name, tensor, place);
  return value.has_value() ? *value : std::nan("");
}

// The gradients of Marcoro14-7B-slerp over its 32 layers, worked out by hand.
TEST(Gradient, IsLinearBetweenValuesAtEqualDistances) {
  const ParameterSettings attention = Setting("t", {Values({0, 0.5, 0.3, 0.7, 1})});
  const ParameterSettings mlp = Setting("t", {Values({1, 0.5, 0.7, 0.3, 0})});
  const auto at = [](int layer) { return layer / 31.0; };
  EXPECT_EQ(Evaluate(attention, "self_attn", at(0)), 0);
  EXPECT_NEAR(Evaluate(attention, "self_attn", at(1)), .064516, 5e-7);
  EXPECT_NEAR(Evaluate(attention, "self_attn", at(8)), .493548, 5e-7);
  EXPECT_NEAR(Evaluate(attention, "self_attn", at(15)), .312903, 5e-7);
  EXPECT_NEAR(Evaluate(attention, "self_attn", at(16)), .325806, 5e-7);
  EXPECT_NEAR(Evaluate(attention, "self_attn", at(24)), .729032, 5e-7);
  EXPECT_EQ(Evaluate(attention, "self_attn", at(31)), 1);
  for (int layer = 0; layer < 32; ++layer) {
    EXPECT_NEAR(Evaluate(mlp, "mlp", at(layer)), 1 - Evaluate(attention, "mlp", at(layer)), 1e-15);
  }
}

TEST(Gradient, OfOneValueIsThatValue) {
  EXPECT_EQ(Evaluate(Setting("t", {Values({0.4})}), "w", 0), 0.4);
  EXPECT_EQ(Evaluate(Setting("t", {Values({0.4})}), "w", 1), 0.4);
}

TEST(Gradient, OfTrueAndFalseHasNoValuesBetween) {
  ParameterCase flags = Values({1, 0, 1});
  flags.discrete = true;
  const ParameterSettings settings = Setting("normalize", {flags});
  EXPECT_EQ(Evaluate(settings, "w", 0.49), 1);
  EXPECT_EQ(Evaluate(settings, "w", 0.5), 0);
  EXPECT_EQ(Evaluate(settings, "w", 0.99), 0);
  EXPECT_EQ(Evaluate(settings, "w", 1), 1);
}

TEST(Filter, IsAPartOfTheTensorsName) {
  const ParameterSettings settings =
      Setting("t", {Values({1}, "self_attn"), Values({2}, "attn.q"), Values({3}, "*")});
  EXPECT_EQ(Evaluate(settings, "model.layers.0.self_attn.q_proj.weight", 0), 1);  // the first
  EXPECT_EQ(Evaluate(settings, "model.layers.0.mlp.up_proj.weight", 0), 3);
}

TEST(Filter, NoneMatchesEveryTensor) {
  EXPECT_EQ(Evaluate(Setting("t", {Values({1}, "mlp"), Values({2})}), "lm_head.weight", 0), 2);
}

TEST(Precedence, IsThatOfTheClosestScopeWithAMatchingCase) {
  const ParameterSettings source = Setting("t", {Values({1}, "q_proj")});
  const ParameterSettings slice = Setting("t", {Values({2}, "proj")});
  const ParameterSettings module = Setting("u", {Values({3})});
  const ParameterSettings global = Setting("t", {Values({4})});
  const ParameterScopes scopes = {&source, &slice, &module, &global};
  EXPECT_EQ(EvaluateParameter(scopes, "t", "q_proj", 0), 1);
  EXPECT_EQ(EvaluateParameter(scopes, "t", "k_proj", 0), 2);
  EXPECT_EQ(EvaluateParameter(scopes, "t", "norm", 0), 4);
  EXPECT_EQ(EvaluateParameter(scopes, "u", "norm", 0), 3);
  EXPECT_EQ(EvaluateParameter(scopes, "v", "norm", 0), std::nullopt);
}

TEST(Parameters, HaveTheMethodsDefaults) {
  const MergeMethod* linear = FindMergeMethod("linear");
  ASSERT_NE(linear, nullptr);
  const ParameterSettings weight = Setting("weight", {Values({0.25})});
  const auto shared = EvaluateParameters(*linear, /*per_input=*/false, {&weight}, "w", 0);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(*shared, (MergeParameters{{"normalize", 1}}));
  const auto own = EvaluateParameters(*linear, /*per_input=*/true, {&weight}, "w", 0);
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(*own, (MergeParameters{{"weight", 0.25}}));
}

TEST(Parameters, WithoutDefaultMustHaveAValueForEveryTensor) {
  const MergeMethod* slerp = FindMergeMethod("slerp");
  ASSERT_NE(slerp, nullptr);
  const ParameterSettings t = Setting("t", {Values({0.5}, "mlp")});
  const auto parameters =
      EvaluateParameters(*slerp, /*per_input=*/false, {&t}, "model.norm.weight", 0);
  EXPECT_EQ(parameters.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parameters.status().message()),
              HasSubstr("slerp needs the parameter t, which has no value for model.norm.weight"));
}

Recipe RecipeWith(const std::string& parameter) {
  Recipe recipe;
  recipe.file = "r.yml";
  recipe.slices.emplace_back();
  recipe.slices[0].parameters = Setting(parameter, {Values({1})});
  recipe.slices[0].parameters[0].position = {7, 5};
  return recipe;
}

TEST(ParameterNames, OfNoMethodAreRefused) {
  std::vector<std::string> warnings;
  const absl::Status status =
      CheckParameterNames(RecipeWith("wieght"), *FindMergeMethod("linear"), warnings);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              StartsWith("r.yml:7:5: unknown parameter 'wieght' (did you mean weight? known: "));
}

TEST(ParameterNames, OfOtherMethodsAreWarnedOf) {
  std::vector<std::string> warnings;
  EXPECT_TRUE(CheckParameterNames(RecipeWith("t"), *FindMergeMethod("linear"), warnings).ok());
  EXPECT_THAT(warnings, ElementsAre("r.yml:7: parameter t has no effect in linear"));
}

TEST(ParameterNames, OfMergekitsMemoryAreLetPass) {
  std::vector<std::string> warnings;
  EXPECT_TRUE(
      CheckParameterNames(RecipeWith("int8_mask"), *FindMergeMethod("linear"), warnings).ok());
  EXPECT_TRUE(warnings.empty());
}

}  // namespace
}  // namespace marcoro
