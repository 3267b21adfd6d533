// Which tokenizer a merged model takes, how many tokens it knows, and where the rows of its
// embedding and lm_head come from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_parents.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/recipe.h"
#include "worker/weights/merge/slice_plan.h"
#include "worker/weights/merge/vocabulary.h"
#include "worker/weights/merge/vocabulary_map.h"

namespace marcoro {

class VocabularyPlan {
 public:
  // Without tokenizer_source: the tokenizer of `main_model` (the base, or else the first model). If
  // the embeddings or lm_heads have different heights, their common rows, and the tokenizer of the
  // first model that has no more; with a warning. With it: the tokenizer of the base or of the
  // model it names; of a union, that of a model that has all tokens of all. INVALID_ARGUMENT naming
  // the place if there is no such model, or a tokenizer that cannot be read.
  static absl::StatusOr<VocabularyPlan> Make(const Recipe& recipe, int32_t main_model,
                                             const std::vector<MergeSlice>& slices,
                                             MergeParents& parents,
                                             std::vector<std::string>& warnings);

  int32_t tokenizer_model() const { return tokenizer_model_; }
  int32_t size() const { return size_; }

  // How the slice's tables come to size() rows; nothing if each has them as it is.
  std::optional<VocabularyMap> MapOf(const MergeSlice& slice) const;

 private:
  VocabularyPlan() = default;

  absl::Status TakeCommonRows(const std::vector<MergeSlice>& slices,
                              std::vector<std::string>& warnings);
  absl::Status TakeSource(const RecipeText& source, std::vector<std::string>& warnings);
  absl::Status LoadVocabularies(std::vector<std::string>& warnings);
  absl::StatusOr<int32_t> FindUnion(const RecipeText& source) const;
  std::vector<VocabularyTable> TablesOf(const MergeSlice& slice) const;

  const Recipe* recipe_ = nullptr;
  MergeParents* parents_ = nullptr;
  int32_t main_model_ = 0;
  int32_t tokenizer_model_ = 0;
  int32_t size_ = 0;
  // With tokenizer_source only.
  std::optional<Vocabulary> merged_;
  std::vector<Vocabulary> vocabularies_;  // by model
};

}  // namespace marcoro
