#include "worker/weights/merge/merge_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::OneTensorMerge;
using testing::RandomNumbers;
using testing::Store;
using testing::StoredTensor;
using testing::Threads;

using Floats = std::vector<float>;

// Methods with parameters that make each of them look at the whole tensor.
struct MethodCase {
  std::string method;
  MergeParameters of_inputs;
  MergeParameters of_tensor;
};

void PrintTo(const MethodCase& method, std::ostream* out) { *out << method.method; }

std::vector<MethodCase> Methods() {
  return {
      {"slerp", {}, {{"t", 0.3}}},
      {"linear", {{"weight", 0.4}}, {}},
      {"task_arithmetic", {{"weight", 0.4}}, {{"lambda", 0.9}}},
      {"ties", {{"weight", 0.4}, {"density", 0.37}}, {}},
      {"dare_linear", {{"weight", 0.4}, {"density", 0.6}}, {}},
      {"dare_ties", {{"weight", 0.4}, {"density", 0.6}}, {}},
      {"passthrough", {{"scale", 0.7}}, {}},
  };
}

// Random parents of one shape, the last of them the base. Wide: their numbers stored as F32.
void AddParents(OneTensorMerge& merge, const MethodCase& method, int64_t rows, int64_t columns,
                const std::string& dtype = "BF16", bool wide = false) {
  const int parents = method.method == "passthrough" ? 1 : method.method == "slerp" ? 2 : 3;
  for (int i = 0; i < parents; ++i) {
    StoredTensor tensor =
        Store(dtype, {rows, columns}, RandomNumbers(rows * columns, static_cast<uint64_t>(i) + 1));
    if (wide) tensor = Store("F32", {rows, columns}, tensor.Floats());
    merge.AddParent(tensor, method.of_inputs);
  }
  merge.merge().base = parents - 1;
  merge.merge().parameters = method.of_tensor;
}

class EveryMethod : public ::testing::TestWithParam<MethodCase> {};
INSTANTIATE_TEST_SUITE_P(Methods, EveryMethod, ::testing::ValuesIn(Methods()),
                         [](const auto& test) { return test.param.method; });

TEST_P(EveryMethod, GivesTheSameBitsHoweverRowsAreRead) {
  constexpr int64_t kRows = 97;
  constexpr int64_t kColumns = 1000;
  for (const char* dtype : {"BF16", "F32"}) {
    OneTensorMerge merge(GetParam().method, dtype);
    AddParents(merge, GetParam(), kRows, kColumns);
    const Floats whole = merge.Merge().value();
    for (const int threads : {1, 2, 5}) {
      auto source = merge.Open().value();
      const TensorInfo* info = source->Find("w");
      ASSERT_TRUE(source->Prepare(*info, Threads(threads)).ok());
      // Random cuts, read in a random order by several threads.
      std::mt19937 generator(static_cast<unsigned>(threads));
      std::vector<std::pair<int64_t, int64_t>> cuts;
      for (int64_t row = 0; row < kRows;) {
        const int64_t count = std::min<int64_t>(1 + generator() % 30, kRows - row);
        cuts.emplace_back(row, count);
        row += count;
      }
      std::shuffle(cuts.begin(), cuts.end(), generator);
      Floats parts(whole.size());
      Threads(threads)(static_cast<int64_t>(cuts.size()), [&](int64_t i) {
        const auto [row, count] = cuts[static_cast<size_t>(i)];
        EXPECT_TRUE(source->ReadRows(*info, row, count, parts.data() + row * kColumns).ok());
      });
      EXPECT_EQ(parts, whole) << dtype << ", " << threads << " threads";
    }
  }
}

TEST_P(EveryMethod, ReadsVectorsToo) {
  OneTensorMerge merge(GetParam().method, "F32");
  const int parents = GetParam().method == "passthrough" ? 1 : 2;
  for (int i = 0; i < parents; ++i) {
    merge.AddParent(Store("F32", {64}, RandomNumbers(64, static_cast<uint64_t>(i) + 1)),
                    GetParam().of_inputs);
  }
  merge.merge().base = parents - 1;
  merge.merge().parameters = GetParam().of_tensor;
  EXPECT_EQ(merge.Merge().value().size(), 64u);
}

TEST_P(EveryMethod, NamesParentTensorAndRowOfANumberThatIsNotFinite) {
  const int parents = GetParam().method == "passthrough" ? 1 : 2;
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      for (int guilty = 0; guilty < parents; ++guilty) {
        SCOPED_TRACE(::testing::Message() << dtype << " " << bad << " in parent " << guilty);
        OneTensorMerge merge(GetParam().method, dtype);
        for (int i = 0; i < parents; ++i) {
          Floats numbers = RandomNumbers(50 * 400, static_cast<uint64_t>(i) + 1);
          if (i == guilty) numbers[43 * 400 + 399] = bad;
          merge.AddParent(Store(dtype, {50, 400}, numbers), GetParam().of_inputs);
        }
        merge.merge().base = parents - 1;
        merge.merge().parameters = GetParam().of_tensor;
        const absl::Status status = merge.Merge(2).status();
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
        EXPECT_THAT(std::string(status.message()),
                    AllOf(HasSubstr("recipe.yml"), HasSubstr("parent" + std::to_string(guilty)),
                          HasSubstr("tensor w"), HasSubstr("row 43 holds"), HasSubstr("NaN")));
      }
    }
  }
}

// Parents in float32 hold the same numbers, but are read in another way. The long rows are more
// than is read at once.
TEST_P(EveryMethod, GivesTheSameBitsHoweverParentsAreStored) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{97, 1000}, {3, 40'000}}) {
    for (const std::string dtype : {"BF16", "F16"}) {
      Floats merged[2];
      for (const bool wide : {false, true}) {
        OneTensorMerge merge(GetParam().method, dtype);
        AddParents(merge, GetParam(), rows, columns, dtype, wide);
        merged[wide ? 1 : 0] = merge.Merge().value();
      }
      EXPECT_EQ(merged[0], merged[1]) << dtype << " " << rows << " rows";
    }
  }
}

TEST(MergeSource, DescribesTheWrittenMerge) {
  OneTensorMerge merge("linear", "BF16");
  merge.AddParent(Store("F32", {3, 4}, RandomNumbers(12, 1)), {{"weight", 1}});
  merge.AddParent(Store("F16", {3, 4}, RandomNumbers(12, 2)), {{"weight", 1}});
  const auto source = merge.Open().value();
  const TensorInfo* info = source->Find("w");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->dtype, "BF16");
  EXPECT_EQ(info->shape, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(info->bytes, 24u);
  EXPECT_EQ(info->origin, merge.plan().recipe);
  EXPECT_EQ(source->Tensors(), std::vector<const TensorInfo*>{info});
  EXPECT_EQ(source->Find("v"), nullptr);
  EXPECT_THAT(source->Description(),
              AllOf(HasSubstr("recipe.yml"), HasSubstr("linear"), HasSubstr("parent0, parent1")));
}

TEST(MergeSource, HasTheBytesOfAllParents) {
  OneTensorMerge merge("linear");
  merge.AddParent(Store("BF16", {2, 3}, Floats(6)), {{"weight", 1}});
  merge.AddParent(Store("F32", {2, 3}, Floats(6)), {{"weight", 1}});
  auto source = merge.Open();
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->StoredBytes(), 6u * 2 + 6u * 4);
  (*source)->Discard(*(*source)->Find("w"));
  EXPECT_EQ(testing::ReadWhole(**source, "w").value(), Floats(6));
}

TEST(MergeSource, RoundsParentsBeforeAndTheMergeAfter) {
  // 1 + 2^-9 is 1 in BF16.
  OneTensorMerge merge("linear", "BF16");
  merge.AddParent(Store("F32", {1}, {1 + 0x1p-9f}), {{"weight", 1}});
  merge.merge().parameters = {{"normalize", 0}};
  EXPECT_EQ(merge.Merge().value(), Floats{1});
  merge.plan().dtype = "F32";
  EXPECT_EQ(merge.Merge().value(), Floats{1 + 0x1p-9f});
  merge.plan().out_dtype = "BF16";
  EXPECT_EQ(merge.Merge().value(), Floats{1});
  EXPECT_EQ(merge.Open().value()->Find("w")->dtype, "BF16");
}

TEST(MergeSource, WithoutADTypeTakesOneThatHoldsTheParents) {
  const auto dtype = [](const std::string& first, const std::string& second) {
    OneTensorMerge merge("linear", "");
    merge.AddParent(Store(first, {1}, {1}), {{"weight", 1}});
    merge.AddParent(Store(second, {1}, {1}), {{"weight", 1}});
    return merge.Open().value()->Find("w")->dtype;
  };
  EXPECT_EQ(dtype("BF16", "BF16"), "BF16");
  EXPECT_EQ(dtype("F16", "F16"), "F16");
  EXPECT_EQ(dtype("F16", "BF16"), "F32");
  EXPECT_EQ(dtype("BF16", "F32"), "F32");
}

TEST(MergeSource, RefusesNumbersTooLargeForTheRecipesType) {
  OneTensorMerge merge("passthrough", "F16");
  merge.AddParent(Store("F32", {2, 1}, {1, 70000}));
  EXPECT_THAT(std::string(merge.Merge().status().message()),
              AllOf(HasSubstr("parent0"), HasSubstr("row 1"), HasSubstr("too large for F16")));
}

TEST(MergeSource, RefusesMergedNumbersTooLargeForTheirType) {
  OneTensorMerge merge("passthrough", "F16");
  merge.AddParent(Store("F16", {2, 1}, {1, 60000}), {{"scale", 2}});
  EXPECT_THAT(std::string(merge.Merge().status().message()),
              AllOf(HasSubstr("recipe.yml"), HasSubstr("tensor w"), HasSubstr("row 1 of the merge"),
                    HasSubstr("too large for F16")));
}

TEST(MergeSource, RefusesShapesThatDiffer) {
  OneTensorMerge merge("linear");
  merge.AddParent(Store("F32", {2, 3}, Floats(6)), {{"weight", 1}});
  merge.AddParent(Store("F32", {3, 2}, Floats(6)), {{"weight", 1}});
  const absl::Status status = merge.Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("recipe.yml"), HasSubstr("parent0"), HasSubstr("[2, 3]"),
                    HasSubstr("parent1"), HasSubstr("[3, 2]")));
}

TEST(MergeSource, RefusesAMissingTensor) {
  OneTensorMerge merge("linear");
  merge.AddParent(Store("F32", {1}, {1}), {{"weight", 1}});
  merge.merge().inputs[0].tensor = "v";
  EXPECT_THAT(std::string(merge.Open().status().message()),
              AllOf(HasSubstr("recipe.yml"), HasSubstr("tensor w"), HasSubstr("parent0"),
                    HasSubstr("no tensor v")));
}

TEST(MergeSource, RefusesWhatAMethodCannotMerge) {
  OneTensorMerge unknown("magic");
  EXPECT_THAT(std::string(unknown.Open().status().message()),
              AllOf(HasSubstr("magic"), HasSubstr("slerp")));
  OneTensorMerge three("slerp");
  for (int i = 0; i < 3; ++i) three.AddParent(Store("F32", {1}, {1}));
  three.merge().base = 0;
  EXPECT_THAT(std::string(three.Open().status().message()), HasSubstr("1 to 2 models, not 3"));
  OneTensorMerge no_base("ties");
  no_base.AddParent(Store("F32", {1}, {1}), {{"weight", 1}});
  EXPECT_THAT(std::string(no_base.Open().status().message()), HasSubstr("base_model"));
}

TEST(MergeSource, RefusesAParentWithoutWeights) {
  OneTensorMerge merge("linear");
  merge.AddParent(Store("F32", {1}, {1}), {{"weight", 1}});
  merge.plan().models[0].directory += "/nowhere";
  EXPECT_THAT(std::string(merge.Open().status().message()),
              AllOf(HasSubstr("recipe.yml"), HasSubstr("nowhere")));
}

// Tables of two columns over vocabularies that differ.
class VocabularyMerge : public ::testing::Test {
 protected:
  VocabularyMerge() : merge_("linear", "BF16") {
    merge_.AddParent(Store("F32", {3, 2}, {1, 2, 3, 4, 5, 6}), {{"weight", 1}});
    merge_.AddParent(Store("F32", {2, 2}, {10, 20, 30, 40}), {{"weight", 1}});
    merge_.merge().vocabulary = 0;
  }

  OneTensorMerge merge_;
};

TEST_F(VocabularyMerge, ReadsEachTokensRowOfEachParent) {
  // Runs of neighbours, and rows out of order.
  merge_.plan().vocabularies = {{.rows = {{0, 1, 2, 0}, {1, 0, 1, 1}}, .substitutes = {}}};
  EXPECT_EQ(merge_.Open().value()->Find("w")->shape, (std::vector<int64_t>{4, 2}));
  EXPECT_EQ(merge_.Merge().value(), (Floats{15.5, 21, 6.5, 12, 17.5, 23, 15.5, 21}));
}

TEST_F(VocabularyMerge, ReadsRowsFromTheMiddle) {
  merge_.plan().vocabularies = {{.rows = {{0, 1, 2, 0}, {1, 0, 1, 1}}, .substitutes = {}}};
  const auto source = merge_.Open().value();
  const TensorInfo* info = source->Find("w");
  ASSERT_TRUE(source->Prepare(*info, Threads(1)).ok());
  Floats rows(4);
  ASSERT_TRUE(source->ReadRows(*info, 1, 2, rows.data()).ok());
  EXPECT_EQ(rows, (Floats{6.5, 12, 17.5, 23}));
}

TEST_F(VocabularyMerge, TakesAnotherParentsRowForATokenThatOneLacks) {
  merge_.plan().vocabularies = {
      {.rows = {{0, 2}, {0, -1}}, .substitutes = {{{.input = 0, .row = 2}}}}};
  EXPECT_EQ(merge_.Merge().value(), (Floats{5.5, 11, 5, 6}));
}

TEST_F(VocabularyMerge, TakesTheMeanOfSeveral) {
  // (1 + 3 + 10) / 3 is 4.6875 in BF16, (2 + 4 + 20) / 3 is 8.6875.
  merge_.plan().vocabularies = {{.rows = {{-1}, {-1}}, .substitutes = {{{0, 0}, {0, 1}, {1, 0}}}}};
  EXPECT_EQ(merge_.Merge().value(), (Floats{4.65625, 8.6875}));
}

TEST_F(VocabularyMerge, TakesZerosWhereNothingStandsForAToken) {
  merge_.plan().vocabularies = {{.rows = {{0}, {-1}}, .substitutes = {{}}}};
  EXPECT_EQ(merge_.Merge().value(), (Floats{0.5, 1}));
}

TEST_F(VocabularyMerge, RefusesRowsThatAreNotThere) {
  for (const VocabularyMap& map :
       {VocabularyMap{{{0}, {2}}, {}}, VocabularyMap{{{0}, {-1}}, {}},
        VocabularyMap{{{0}, {-1}}, {{{0, 3}}}}, VocabularyMap{{{0}, {-1}}, {{{2, 0}}}},
        VocabularyMap{{{0}}, {}}, VocabularyMap{{{0}, {0, 1}}, {}}}) {
    merge_.plan().vocabularies = {map};
    EXPECT_EQ(merge_.Open().status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(VocabularyMerge, NamesTheStoredRowOfANumberThatIsNotFinite) {
  OneTensorMerge merge("passthrough");
  merge.AddParent(Store("F32", {3, 1}, {1, NAN, 3}));
  merge.merge().vocabulary = 0;
  merge.plan().vocabularies = {{.rows = {{2, 1}}, .substitutes = {}}};
  EXPECT_THAT(std::string(merge.Merge().status().message()), HasSubstr("row 1 holds"));
}

// What tells merges apart.
class MergeIdentity : public ::testing::Test {
 protected:
  MergeIdentity() : merge_("linear", "BF16") { AddParents(); }

  void AddParents() {
    merge_.AddParent(Store("F32", {2, 2}, {1, 2, 3, 4}), {{"weight", 0.5}});
    merge_.AddParent(Store("F32", {2, 2}, {5, 6, 7, 8}), {{"weight", 0.25}});
  }

  static std::string Of(const OneTensorMerge& merge) {
    const auto source = merge.Open().value();
    Sha256 hash;
    EXPECT_TRUE(source->HashContents(*source->Find("w"), hash).ok());
    return hash.HexDigest();
  }

  OneTensorMerge merge_;
};

TEST_F(MergeIdentity, IsThatOfAnEqualRecipeWithEqualParentsElsewhere) {
  OneTensorMerge other("linear", "BF16");
  other.AddParent(Store("F32", {2, 2}, {1, 2, 3, 4}), {{"weight", 0.5}});
  other.AddParent(Store("F32", {2, 2}, {5, 6, 7, 8}), {{"weight", 0.25}});
  EXPECT_EQ(Of(merge_), Of(other));
}

TEST_F(MergeIdentity, ChangesWithEveryNumberOfTheMerge) {
  const MergePlan original = merge_.plan();
  std::vector<std::string> identities = {Of(merge_)};
  const auto change = [&](auto&& edit) {
    edit(merge_.plan());
    identities.push_back(Of(merge_));
    merge_.plan() = original;
  };
  change([](MergePlan& plan) { plan.method = "task_arithmetic", plan.tensors[0].base = 1; });
  change([](MergePlan& plan) { plan.tensors[0].base = 0; });
  change([](MergePlan& plan) { plan.dtype = "F16"; });
  change([](MergePlan& plan) { plan.out_dtype = "F32"; });
  change([](MergePlan& plan) { plan.seed = 1; });
  change([](MergePlan& plan) { plan.tensors[0].parameters["normalize"] = 0; });
  change([](MergePlan& plan) { plan.tensors[0].inputs[1].parameters["weight"] = 0.26; });
  change([](MergePlan& plan) { std::swap(plan.tensors[0].inputs[0], plan.tensors[0].inputs[1]); });
  change([](MergePlan& plan) { plan.tensors[0].inputs.pop_back(); });
  change([](MergePlan& plan) {
    plan.vocabularies = {{.rows = {{0, 1}, {1, 0}}, .substitutes = {}}};
    plan.tensors[0].vocabulary = 0;
  });
  std::sort(identities.begin(), identities.end());
  EXPECT_EQ(std::adjacent_find(identities.begin(), identities.end()), identities.end());
}

TEST_F(MergeIdentity, ChangesWithAParentsContents) {
  const std::string before = Of(merge_);
  testing::WriteTensors(merge_.directory(1) + "/model.safetensors",
                        {{"w", Store("F32", {2, 2}, {5, 6, 7, 9})}});
  EXPECT_NE(Of(merge_), before);
}

}  // namespace
}  // namespace marcoro
