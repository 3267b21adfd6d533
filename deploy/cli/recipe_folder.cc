#include "deploy/cli/recipe_folder.h"

#include <stdlib.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "deploy/cli/model_input.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<RecipeFolder>> RecipeFolder::Create(const std::string& recipe) {
  absl::StatusOr<ModelInput> input = OpenModelInput(recipe);
  if (!input.ok()) return input.status();
  absl::StatusOr<std::vector<ModelFile>> files = ReadModelFiles(*input);
  if (!files.ok()) return files.status();
  files->push_back({"config.json", input->config_json});

  std::error_code error;
  std::string path =
      std::filesystem::temp_directory_path(error).append("marcoro-serve-XXXXXX").string();
  if (error || mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot make a temporary folder ", path, ": ",
                                               error ? error.message() : std::strerror(errno)));
  }
  std::unique_ptr<RecipeFolder> folder(new RecipeFolder(std::move(path)));
  for (const ModelFile& file : *files) {
    const std::string name = absl::StrCat(folder->path(), "/", file.name);
    std::ofstream out(name, std::ios::binary);
    out << file.contents;
    if (!out.flush()) return absl::UnavailableError(absl::StrCat("cannot write ", name));
  }
  return folder;
}

RecipeFolder::~RecipeFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace marcoro
