// Merges of tiny parents, compared with what mergekit wrote for the same recipes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

using testing::ReadTensors;
using testing::ReadWhole;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TestData;
using testing::UlpDistance;

std::unique_ptr<MergeSource> OpenRecipe(const std::string& name) {
  auto plan = PlanMerge(TestData("merge/recipes/" + name + ".yml"));
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return nullptr;
  auto source = MergeSource::Open(*std::move(plan));
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *std::move(source) : nullptr;
}

StoredTensors Golden(const std::string& name) {
  return ReadTensors(TestData("merge/merged"), name + ".safetensors");
}

std::vector<std::string> Recipes() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(TestData("merge/recipes"))) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Magnitudes of an input's difference from the base, rounded to BF16 as the input is.
std::vector<float> Magnitudes(const std::string& parent, const std::string& name) {
  const auto rounded = [&name](const std::string& model) {
    const StoredTensor tensor = ReadTensors(TestData("merge/parents/" + model)).at(name);
    return testing::Store("BF16", tensor.shape, tensor.Floats()).Floats();
  };
  std::vector<float> numbers = rounded(parent);
  const std::vector<float> base = rounded("base");
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] -= base[i];
  numbers = testing::Store("BF16", {}, numbers).Floats();
  for (float& number : numbers) number = std::fabs(number);
  return numbers;
}

// Elements of a ties merge for which mergekit's choice is an accident: it sorts magnitudes with an
// unstable sort and keeps the first k, so that of those equal to the k-th any may be among them.
// (The densities are ties.yml's; a tensor outside of the layers has the gradient's first value.)
std::vector<bool> OpenChoices(const std::string& recipe, const std::string& name) {
  if (recipe != "ties") return {};
  const size_t elements = ReadTensors(TestData("merge/parents/base")).at(name).Floats().size();
  std::vector<bool> open(elements);
  const std::string prefix = "model.layers.";
  const double depth = name.rfind(prefix, 0) == 0 ? (name[prefix.size()] - '0') / 4.0 : 0.0;
  const std::pair<const char*, double> densities[] = {
      {"a", 0.5}, {"b", 1 + depth * (0.3 - 1)}, {"c", 0.7}};
  for (const auto& [parent, density] : densities) {
    const size_t kept = static_cast<size_t>(density * static_cast<double>(elements));
    if (kept == elements) continue;
    const std::vector<float> magnitudes = Magnitudes(parent, name);
    std::vector<float> sorted = magnitudes;
    std::sort(sorted.rbegin(), sorted.rend());
    if (sorted[kept - 1] != sorted[kept]) continue;
    for (size_t i = 0; i < elements; ++i) {
      if (magnitudes[i] == sorted[kept]) open[i] = true;
    }
  }
  return open;
}

class GoldenMerge : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenMerge, HasTheTensorsThatMergekitWrote) {
  auto source = OpenRecipe(GetParam());
  ASSERT_NE(source, nullptr);
  const StoredTensors golden = Golden(GetParam());
  EXPECT_EQ(source->Tensors().size(), golden.size());
  for (const auto& [name, expected] : golden) {
    const TensorInfo* info = source->Find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->dtype, expected.dtype) << name;
    EXPECT_EQ(info->shape, expected.shape) << name;
    EXPECT_EQ(info->bytes, expected.bytes.size()) << name;
  }
}

TEST_P(GoldenMerge, EqualsMergekitToOneUnitInTheLastPlace) {
  auto source = OpenRecipe(GetParam());
  ASSERT_NE(source, nullptr);
  int64_t elements = 0;
  int64_t different = 0;
  for (const auto& [name, expected] : Golden(GetParam())) {
    auto merged = ReadWhole(*source, name, 2);
    ASSERT_TRUE(merged.ok()) << merged.status();
    const std::vector<float> golden = expected.Floats();
    ASSERT_EQ(merged->size(), golden.size()) << name;
    const std::vector<bool> open = OpenChoices(GetParam(), name);
    for (size_t i = 0; i < golden.size(); ++i) {
      if (!open.empty() && open[i]) continue;
      const int64_t distance = UlpDistance(expected.dtype, (*merged)[i], golden[i]);
      ASSERT_LE(distance, 1) << name << " element " << i << ": " << (*merged)[i] << ", not "
                             << golden[i];
      different += distance;
    }
    elements += static_cast<int64_t>(golden.size());
  }
  // Nearly all are equal: a wrong rounding on the way would move far more of them.
  EXPECT_LE(different, elements / 1000);
}

INSTANTIATE_TEST_SUITE_P(Recipes, GoldenMerge, ::testing::ValuesIn(Recipes()),
                         [](const auto& recipe) { return recipe.param; });

// Where t is 0 or 1 in slerp_gradient, and which parent is left.
struct End {
  const char* tensor;
  const char* parent;
};

void PrintTo(const End& end, std::ostream* out) { *out << end.tensor; }

class SlerpEnd : public ::testing::TestWithParam<End> {};

TEST_P(SlerpEnd, IsTheParentBitForBit) {
  auto source = OpenRecipe("slerp_gradient");
  ASSERT_NE(source, nullptr);
  auto merged = ReadWhole(*source, GetParam().tensor);
  ASSERT_TRUE(merged.ok()) << merged.status();
  const StoredTensor parent =
      ReadTensors(TestData(std::string("merge/parents/") + GetParam().parent))
          .at(GetParam().tensor);
  const StoredTensor rounded = testing::Store("BF16", parent.shape, parent.Floats());
  EXPECT_EQ(*merged, rounded.Floats());
  EXPECT_EQ(testing::Store("BF16", parent.shape, *merged).bytes,
            Golden("slerp_gradient").at(GetParam().tensor).bytes);
}

INSTANTIATE_TEST_SUITE_P(Gradient, SlerpEnd,
                         ::testing::Values(End{"model.layers.0.self_attn.q_proj.weight", "a"},
                                           End{"model.layers.0.self_attn.o_proj.weight", "a"},
                                           End{"model.layers.4.mlp.gate_proj.weight", "a"},
                                           End{"model.layers.4.mlp.down_proj.weight", "a"},
                                           End{"model.layers.0.mlp.gate_proj.weight", "b"},
                                           End{"model.layers.0.mlp.up_proj.weight", "b"},
                                           End{"model.layers.4.self_attn.k_proj.weight", "b"},
                                           End{"model.layers.4.self_attn.v_proj.weight", "b"}));

TEST(SlerpGolden, TheBaseIsWhereTIsZeroWhateverTheOrder) {
  auto first = OpenRecipe("slerp_gradient");
  auto second = OpenRecipe("slerp_base_listed_second");
  ASSERT_NE(first, nullptr);
  ASSERT_NE(second, nullptr);
  for (const TensorInfo* info : first->Tensors()) {
    EXPECT_EQ(ReadWhole(*first, info->name).value(), ReadWhole(*second, info->name).value())
        << info->name;
  }
}

}  // namespace
}  // namespace marcoro
