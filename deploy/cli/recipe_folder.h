// The folder of a recipe's model without its weights: config.json, tokenizer and generation files.
// The coordinator, which knows nothing of recipes, is started on it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

class RecipeFolder {
 public:
  // Writes a private temporary folder ($TMPDIR, else /tmp). Errors as OpenModelInput gives them;
  // UNAVAILABLE if nothing can be written there.
  static absl::StatusOr<std::unique_ptr<RecipeFolder>> Create(const std::string& recipe);
  // Removes it.
  ~RecipeFolder();
  RecipeFolder(const RecipeFolder&) = delete;
  RecipeFolder& operator=(const RecipeFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit RecipeFolder(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

}  // namespace marcoro
