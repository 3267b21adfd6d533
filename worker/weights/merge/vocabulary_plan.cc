#include "worker/weights/merge/vocabulary_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

// Models of the two slices that tables are taken from: the first one's embedding, the last one's
// lm_head.
std::set<int32_t> TableModels(const std::vector<MergeSlice>& slices) {
  std::set<int32_t> models;
  for (const MergeSlice* slice : {&slices.front(), &slices.back()}) {
    for (const SliceInput& input : slice->inputs) models.insert(input.model);
  }
  return models;
}

// A token of `other` that `vocabulary` lacks; empty if it has them all.
std::string MissingToken(const Vocabulary& vocabulary, const Vocabulary& other) {
  for (const std::string& token : other.tokens()) {
    if (vocabulary.Find(token) < 0) return token;
  }
  return "";
}

}  // namespace

absl::StatusOr<VocabularyPlan> VocabularyPlan::Make(const Recipe& recipe, int32_t main_model,
                                                    const std::vector<MergeSlice>& slices,
                                                    MergeParents& parents,
                                                    std::vector<std::string>& warnings) {
  VocabularyPlan plan;
  plan.recipe_ = &recipe;
  plan.parents_ = &parents;
  plan.main_model_ = main_model;
  absl::Status status = recipe.tokenizer_source.has_value()
                            ? plan.TakeSource(*recipe.tokenizer_source, warnings)
                            : plan.TakeCommonRows(slices, warnings);
  if (!status.ok()) return status;
  return plan;
}

absl::Status VocabularyPlan::TakeCommonRows(const std::vector<MergeSlice>& slices,
                                            std::vector<std::string>& warnings) {
  const auto size_of = [this](int32_t model) { return parents_->at(model).config.vocabulary_size; };
  const std::set<int32_t> models = TableModels(slices);
  size_ = size_of(*models.begin());
  int32_t largest = size_;
  for (const int32_t model : models) {
    size_ = std::min(size_, size_of(model));
    largest = std::max(largest, size_of(model));
  }
  tokenizer_model_ = main_model_;
  if (size_of(main_model_) != size_) {
    tokenizer_model_ = *std::find_if(models.begin(), models.end(),
                                     [&](int32_t model) { return size_of(model) == size_; });
  }
  if (largest != size_) {
    warnings.push_back(absl::StrCat(recipe_->file, ": vocabularies of ", size_, " to ", largest,
                                    " tokens: only the first ", size_,
                                    " are merged, with the tokenizer of ",
                                    parents_->at(tokenizer_model_).model.reference,
                                    " (tokenizer_source brings them together)"));
  }
  return absl::OkStatus();
}

absl::Status VocabularyPlan::TakeSource(const RecipeText& source,
                                        std::vector<std::string>& warnings) {
  const bool is_model = source.text != "base" && source.text != "union";
  tokenizer_model_ = main_model_;
  if (is_model) {
    absl::StatusOr<int32_t> model = parents_->Find(source);
    if (!model.ok()) return model.status();
    tokenizer_model_ = *model;
  }
  absl::Status status = LoadVocabularies(warnings);
  if (!status.ok()) return status;
  if (source.text == "union") {
    absl::StatusOr<int32_t> model = FindUnion(source);
    if (!model.ok()) return model.status();
    tokenizer_model_ = *model;
  }
  merged_ = vocabularies_[tokenizer_model_];
  size_ = static_cast<int32_t>(merged_->tokens().size());
  return absl::OkStatus();
}

absl::Status VocabularyPlan::LoadVocabularies(std::vector<std::string>& warnings) {
  std::vector<std::optional<Vocabulary>> loaded;
  for (int32_t i = 0; i < parents_->size(); ++i) {
    const MergeParent& parent = parents_->at(i);
    absl::StatusOr<Vocabulary> vocabulary = LoadVocabulary(parent.model.directory);
    const bool needed = i == main_model_ || i == tokenizer_model_;
    if (absl::IsNotFound(vocabulary.status()) && !needed) {
      warnings.push_back(absl::StrCat(vocabulary.status().message(), ": its tokens are taken for ",
                                      parents_->at(main_model_).model.reference, "'s"));
      loaded.emplace_back();
      continue;
    }
    if (!vocabulary.ok()) {
      return ErrorAt(recipe_->file, parent.position, vocabulary.status().message());
    }
    loaded.push_back(vocabulary->FirstTokens(parent.config.vocabulary_size));
  }
  for (const std::optional<Vocabulary>& vocabulary : loaded) {
    vocabularies_.push_back(vocabulary.has_value() ? *vocabulary : *loaded[main_model_]);
  }
  return absl::OkStatus();
}

// A sentencepiece model of several cannot be written; but often one has added tokens to the
// others'.
absl::StatusOr<int32_t> VocabularyPlan::FindUnion(const RecipeText& source) const {
  std::vector<int32_t> order = {main_model_};
  for (int32_t i = 0; i < parents_->size(); ++i) {
    if (i != main_model_) order.push_back(i);
  }
  std::string example;
  for (const int32_t model : order) {
    std::string missing;
    for (size_t other = 0; other < vocabularies_.size() && missing.empty(); ++other) {
      missing = MissingToken(vocabularies_[model], vocabularies_[other]);
      if (missing.empty() || !example.empty()) continue;
      example = absl::StrCat(parents_->at(model).model.reference, " lacks ", Quoted(missing),
                             " of ", parents_->at(static_cast<int32_t>(other)).model.reference);
    }
    if (missing.empty()) return model;
  }
  return ErrorAt(recipe_->file, source.position,
                 absl::StrCat("no model has all tokens of the others (", example,
                              "), and a tokenizer that does cannot be written: take base, or the "
                              "name of a model"));
}

std::vector<VocabularyTable> VocabularyPlan::TablesOf(const MergeSlice& slice) const {
  std::vector<VocabularyTable> tables;
  for (const SliceInput& input : slice.inputs) {
    const Vocabulary* vocabulary = merged_.has_value() ? &vocabularies_[input.model] : nullptr;
    tables.push_back({vocabulary, parents_->at(input.model).config.vocabulary_size});
  }
  return tables;
}

std::optional<VocabularyMap> VocabularyPlan::MapOf(const MergeSlice& slice) const {
  const std::vector<VocabularyTable> tables = TablesOf(slice);
  VocabularyMap map = merged_.has_value() ? AlignVocabularies(*merged_, tables, slice.base)
                                          : CommonRows(tables.size(), size_);
  if (IsIdentity(map, tables)) return std::nullopt;
  return map;
}

}  // namespace marcoro
