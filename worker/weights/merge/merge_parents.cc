#include "worker/weights/merge/merge_parents.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

// What is wrong with a model is wrong with the recipe that names it, unless a disk failed.
absl::Status NamedAt(const std::string& recipe, const RecipeText& reference,
                     const absl::Status& status) {
  const std::string message =
      absl::StrCat("model ", Quoted(reference.text), ": ", status.message());
  const absl::Status error = ErrorAt(recipe, reference.position, message);
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status)) return error;
  return absl::Status(status.code(), error.message());
}

}  // namespace

absl::StatusOr<int32_t> MergeParents::Find(const RecipeText& reference) {
  for (int32_t i = 0; i < size(); ++i) {
    if (at(i).model.reference == reference.text) return i;
  }
  absl::StatusOr<std::string> directory =
      FindModelDirectory(reference.text, recipe_path_, find_in_hub_);
  if (!directory.ok()) return NamedAt(recipe_path_, reference, directory.status());
  for (int32_t i = 0; i < size(); ++i) {
    if (at(i).model.directory == *directory) return i;
  }
  if (parents_.size() >= kMax) {
    return ErrorAt(recipe_path_, reference.position, absl::StrCat("more than ", kMax, " models"));
  }
  absl::StatusOr<ModelConfig> config = LoadModelConfig(*directory);
  if (!config.ok()) return NamedAt(recipe_path_, reference, config.status());
  parents_.push_back({.model = {.reference = reference.text, .directory = *std::move(directory)},
                      .position = reference.position,
                      .config = *std::move(config),
                      .tensors = nullptr});
  return size() - 1;
}

absl::Status MergeParents::OpenTensors(int32_t index) {
  MergeParent& parent = parents_[static_cast<size_t>(index)];
  if (parent.tensors != nullptr) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<CheckpointSource>> tensors =
      CheckpointSource::Open(parent.model.directory);
  if (!tensors.ok()) {
    return NamedAt(recipe_path_, {parent.model.reference, parent.position}, tensors.status());
  }
  parent.tensors = *std::move(tensors);
  return absl::OkStatus();
}

}  // namespace marcoro
