// What each method makes of a few numbers, worked out by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::OneTensorMerge;
using testing::RandomNumbers;
using testing::Store;

using Floats = std::vector<float>;

testing::StoredTensor Vector(const Floats& numbers) {
  return Store("F32", {static_cast<int64_t>(numbers.size())}, numbers);
}

// The merge of vectors, the last of which is the base.
Floats MergeWithBase(const std::string& method,
                     const std::vector<std::pair<Floats, MergeParameters>>& models,
                     const Floats& base, const MergeParameters& parameters = {}) {
  OneTensorMerge merge(method);
  for (const auto& [numbers, of_model] : models) merge.AddParent(Vector(numbers), of_model);
  merge.AddParent(Vector(base));
  merge.merge().base = static_cast<int32_t>(models.size());
  merge.merge().parameters = parameters;
  auto merged = merge.Merge();
  EXPECT_TRUE(merged.ok()) << merged.status();
  return merged.ok() ? *merged : Floats();
}

Floats Slerp(const Floats& base, const Floats& other, double t) {
  return MergeWithBase("slerp", {{other, {}}}, base, {{"t", t}});
}

TEST(MergeMethods, AreFoundByName) {
  EXPECT_THAT(MergeMethodNames(),
              ::testing::UnorderedElementsAre("slerp", "linear", "task_arithmetic", "ties",
                                              "dare_linear", "dare_ties", "passthrough"));
  for (const std::string_view name : MergeMethodNames()) {
    ASSERT_NE(FindMergeMethod(name), nullptr);
    EXPECT_EQ(FindMergeMethod(name)->name(), name);
  }
  EXPECT_EQ(FindMergeMethod("nearswap"), nullptr);
}

TEST(Slerp, TurnsFromTheBaseToTheOther) {
  // At a right angle: cos and sin of t·90°.
  const Floats merged = Slerp({1, 0}, {0, 1}, 1.0 / 3);
  EXPECT_NEAR(merged[0], std::sqrt(3) / 2, 1e-7);
  EXPECT_NEAR(merged[1], 0.5, 1e-7);
}

TEST(Slerp, WeighsTheTensorsAsTheyAre) {
  // At 60° and t = 1/2 each counts sin 30° / sin 60°; lengths are not made equal.
  const Floats merged = Slerp({3, 0}, {1, std::sqrt(3.0f)}, 0.5);
  EXPECT_NEAR(merged[0], 4 / std::sqrt(3), 1e-6);
  EXPECT_NEAR(merged[1], 1, 1e-6);
}

TEST(Slerp, IsLinearWhereTensorsAreNearlyParallel) {
  EXPECT_EQ(Slerp({1, 2, 4}, {2, 4, 8}, 0.25), (Floats{1.25, 2.5, 5}));
  EXPECT_EQ(Slerp({1, 2, 4}, {-1, -2, -4}, 0.75), (Floats{-0.5, -1, -2}));
}

TEST(Slerp, TakesTheArcUpToACosineOf0p9995) {
  // At cosine 0.9994 the arc's weights at t = 1/2 add up to 1/cos(θ/2), at 0.9996 to 1.
  const auto sum = [](double cosine) {
    const float sine = static_cast<float>(std::sqrt(1 - cosine * cosine));
    return Slerp({1, 0}, {static_cast<float>(cosine), sine}, 0.5)[1] / sine * 2;
  };
  EXPECT_NEAR(sum(0.9994), 1 / std::cos(std::acos(0.9994) / 2), 1e-6);
  EXPECT_GT(sum(0.9994), 1.0001);
  EXPECT_NEAR(sum(0.9996), 1, 1e-6);
}

TEST(Slerp, OfZerosIsLinearInTheOther) {
  // A vector of no length has no angle: its product counts as 0, a right angle.
  const Floats merged = Slerp({0, 0}, {0, 2}, 0.5);
  EXPECT_EQ(merged[0], 0);
  EXPECT_NEAR(merged[1], std::sqrt(2), 1e-6);
}

TEST(Slerp, OfOneTensorIsIt) {
  OneTensorMerge merge("slerp");
  merge.AddParent(Vector({1, 2, 3}));
  merge.merge().base = 0;
  merge.merge().parameters = {{"t", 0.5}};
  EXPECT_EQ(merge.Merge().value(), (Floats{1, 2, 3}));
}

TEST(Linear, IsTheWeightedMean) {
  OneTensorMerge merge("linear");
  merge.AddParent(Vector({1, 10}), {{"weight", 1}});
  merge.AddParent(Vector({5, -6}), {{"weight", 3}});
  EXPECT_EQ(merge.Merge().value(), (Floats{4, -2}));
  merge.merge().parameters = {{"normalize", 0}};
  EXPECT_EQ(merge.Merge().value(), (Floats{16, -8}));
}

TEST(Linear, RefusesToDivideByWeightsThatSumToZero) {
  OneTensorMerge merge("linear");
  merge.AddParent(Vector({1}), {{"weight", 1}});
  merge.AddParent(Vector({2}), {{"weight", -1}});
  const absl::Status status = merge.Merge().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("recipe.yml: tensor w: the weights sum to 0"));
  merge.merge().parameters = {{"normalize", 0}};
  EXPECT_EQ(merge.Merge().value(), (Floats{-1}));
}

TEST(Passthrough, CopiesOrScales) {
  OneTensorMerge copy("passthrough");
  copy.AddParent(Vector({1, -0.0f, 3}));
  EXPECT_EQ(copy.Merge().value(), (Floats{1, -0.0f, 3}));
  OneTensorMerge scaled("passthrough");
  scaled.AddParent(Vector({1, 2, 3}), {{"scale", -0.5}});
  EXPECT_EQ(scaled.Merge().value(), (Floats{-0.5, -1, -1.5}));
}

TEST(TaskArithmetic, AddsWeighedDifferencesToTheBase) {
  const std::vector<std::pair<Floats, MergeParameters>> models = {{{3, 1}, {{"weight", 0.5}}},
                                                                  {{1, 9}, {{"weight", 0.25}}}};
  // differences (2, 0) and (0, 8)
  EXPECT_EQ(MergeWithBase("task_arithmetic", models, {1, 1}), (Floats{2, 3}));
  EXPECT_EQ(MergeWithBase("task_arithmetic", models, {1, 1}, {{"lambda", 2}}), (Floats{3, 5}));
  EXPECT_EQ(MergeWithBase("task_arithmetic", models, {1, 1}, {{"lambda", 3}, {"normalize", 1}}),
            (Floats{5, 9}));
}

TEST(TaskArithmetic, RoundsEveryStepToTheTensorsType) {
  // In BF16, whose numbers near 1 are 2^-7 apart: the weight 0.7 is 179/256; the difference 3 times
  // it, 2.09765625, is 2.09375; and added to 1 that is 3.09375.
  OneTensorMerge merge("task_arithmetic", "BF16");
  merge.AddParent(Store("BF16", {1}, {4}), {{"weight", 0.7}});
  merge.AddParent(Store("BF16", {1}, {1}));
  merge.merge().base = 1;
  EXPECT_EQ(merge.Merge().value(), (Floats{3.09375}));
}

TEST(TaskVectors, OfTheBaseAloneAreTheBase) {
  for (const char* method : {"task_arithmetic", "ties", "dare_linear", "dare_ties"}) {
    EXPECT_EQ(MergeWithBase(method, {}, {1, -0.0f, 3}), (Floats{1, -0.0f, 3})) << method;
  }
}

TEST(Ties, KeepsTheLargestPartOfEachDifference) {
  // int(0.6 · 5) = 3 of these stay; the weight divides out.
  EXPECT_EQ(MergeWithBase("ties", {{{11, 8, 14, 15, 10}, {{"weight", 2}, {"density", 0.6}}}},
                          {10, 10, 10, 10, 10}),
            (Floats{10, 8, 14, 15, 10}));
}

TEST(Ties, KeepsTheFirstOfEquals) {
  EXPECT_EQ(MergeWithBase("ties", {{{1, -1, 1, -1, 1}, {{"weight", 1}, {"density", 0.4}}}},
                          {0, 0, 0, 0, 0}),
            (Floats{1, -1, 0, 0, 0}));
}

TEST(Ties, KeepsAtLeastOneElementUnlessNothingIsToStay) {
  EXPECT_EQ(MergeWithBase("ties", {{{1, 3, 2}, {{"weight", 1}, {"density", 0.01}}}}, {0, 0, 0}),
            (Floats{0, 3, 0}));
  EXPECT_EQ(MergeWithBase("ties", {{{1, 3, 2}, {{"weight", 1}, {"density", 0}}}}, {0, 0, 0}),
            (Floats{0, 0, 0}));
}

TEST(Ties, TakesTheMeanOfThoseWithTheMajoritysSign) {
  const std::vector<std::pair<Floats, MergeParameters>> models = {
      {{4, -4, 4, 0, 1}, {{"weight", 1}}},
      {{2, 2, -6, 0, -1}, {{"weight", 3}}},
  };
  // Weighed: (4, -4, 4, 0, 1) and (6, 6, -18, 0, -3); a sum of zero counts as positive.
  EXPECT_EQ(MergeWithBase("ties", models, {0, 0, 0, 0, 0}), (Floats{2.5, 2, -6, 0, -1}));
  EXPECT_EQ(MergeWithBase("ties", models, {0, 0, 0, 0, 0}, {{"normalize", 0}}),
            (Floats{10, 6, -18, 0, -3}));
}

TEST(Ties, ScalesToTheWholeDifferencesNormWhereAsked) {
  // Of |1| + |2| + |3| + |6| = 12 stay 9.
  EXPECT_EQ(MergeWithBase("ties", {{{1, -2, 3, 6}, {{"weight", 1}, {"density", 0.5}}}},
                          {0, 0, 0, 0}, {{"rescale", 1}}),
            (Floats{0, 0, 4, 8}));
}

// A dare merge of a random difference from a base of zeros.
Floats Dare(const std::string& method, uint64_t seed, double density,
            const MergeParameters& parameters = {}, const std::string& tensor = "w") {
  OneTensorMerge merge(method);
  merge.AddParent(Store("F32", {100, 500}, RandomNumbers(50'000, 9)),
                  {{"weight", 1}, {"density", density}});
  merge.AddParent(Store("F32", {100, 500}, Floats(50'000)));
  merge.merge().base = 1;
  merge.merge().parameters = parameters;
  merge.merge().name = tensor;
  merge.plan().seed = seed;
  auto source = merge.Open();
  EXPECT_TRUE(source.ok()) << source.status();
  return testing::ReadWhole(**source, tensor).value();
}

std::vector<bool> Kept(const Floats& merged) {
  std::vector<bool> kept;
  for (const float number : merged) kept.push_back(number != 0);
  return kept;
}

double Equal(const std::vector<bool>& a, const std::vector<bool>& b) {
  size_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(a.size());
}

class DareMethods : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Dare, DareMethods, ::testing::Values("dare_linear", "dare_ties"),
                         [](const auto& method) { return std::string(method.param); });

TEST_P(DareMethods, KeepARandomPartOfTheGivenDensity) {
  for (const double density : {0.1, 0.5, 0.9}) {
    const std::vector<bool> kept = Kept(Dare(GetParam(), 1, density));
    const double share = static_cast<double>(std::count(kept.begin(), kept.end(), true)) / 50'000;
    EXPECT_NEAR(share, density, 5 * std::sqrt(density * (1 - density) / 50'000));
  }
}

TEST_P(DareMethods, ScaleWhatStaysToTheWholeDifferencesNorm) {
  const Floats difference = RandomNumbers(50'000, 9);
  const Floats merged = Dare(GetParam(), 1, 0.25);
  double all = 0;
  double kept = 0;
  for (size_t i = 0; i < merged.size(); ++i) {
    all += std::fabs(difference[i]);
    kept += std::fabs(merged[i]);
  }
  EXPECT_NEAR(kept / all, 1, 1e-6);
}

TEST_P(DareMethods, LeaveWhatStaysAsItIsWithoutRescale) {
  const Floats difference = RandomNumbers(50'000, 9);
  const Floats merged = Dare(GetParam(), 1, 0.25, {{"rescale", 0}});
  for (size_t i = 0; i < merged.size(); ++i) {
    if (merged[i] == 0) continue;
    EXPECT_EQ(merged[i], difference[i]) << i;
  }
}

TEST_P(DareMethods, DrawAgainTheSameOnlyForTheSameSeedAndTensor) {
  const std::vector<bool> kept = Kept(Dare(GetParam(), 1, 0.5));
  EXPECT_EQ(Kept(Dare(GetParam(), 1, 0.5)), kept);
  EXPECT_NEAR(Equal(Kept(Dare(GetParam(), 2, 0.5)), kept), 0.5, 0.02);
  EXPECT_NEAR(Equal(Kept(Dare(GetParam(), 1, 0.5, {}, "v")), kept), 0.5, 0.02);
}

TEST_P(DareMethods, DrawForEachParentAnew) {
  // Differences 1 and 2: sums tell which of them stayed.
  OneTensorMerge merge(GetParam());
  for (const float number : {1.0f, 2.0f}) {
    merge.AddParent(Vector(Floats(50'000, number)), {{"weight", 1}, {"density", 0.5}});
  }
  merge.AddParent(Vector(Floats(50'000)));
  merge.merge().base = 2;
  merge.merge().parameters = {{"rescale", 0}};
  const Floats merged = merge.Merge().value();
  for (const float sum : {0.0f, 1.0f, 2.0f, 3.0f}) {
    EXPECT_NEAR(std::count(merged.begin(), merged.end(), sum) / 50'000.0, 0.25, 0.01) << sum;
  }
}

TEST_P(DareMethods, KeepAllAtDensityOneAndNothingAtZero) {
  EXPECT_EQ(Dare(GetParam(), 1, 1), RandomNumbers(50'000, 9));
  EXPECT_EQ(Dare(GetParam(), 1, 0), Floats(50'000));
}

TEST(DareTies, TakesOnlyThoseWithTheMajoritysSign) {
  EXPECT_EQ(
      MergeWithBase("dare_ties", {{{4, -1}, {{"weight", 1}}}, {{-1, -1}, {{"weight", 1}}}}, {0, 0}),
      (Floats{4, -2}));
  EXPECT_EQ(MergeWithBase("dare_linear", {{{4, -1}, {{"weight", 1}}}, {{-1, -1}, {{"weight", 1}}}},
                          {0, 0}),
            (Floats{3, -2}));
}

}  // namespace
}  // namespace marcoro
