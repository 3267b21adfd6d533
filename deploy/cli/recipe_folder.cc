#include "deploy/cli/recipe_folder.h"

#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "deploy/cli/model_input.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<ScratchFolder>> MakeRecipeFolder(const std::string& recipe) {
  absl::StatusOr<ModelInput> input = OpenModelInput(recipe);
  if (!input.ok()) return input.status();
  absl::StatusOr<std::vector<ModelFile>> files = ReadModelFiles(*input);
  if (!files.ok()) return files.status();
  files->push_back({"config.json", input->config_json});

  absl::StatusOr<std::unique_ptr<ScratchFolder>> folder = ScratchFolder::Create();
  if (!folder.ok()) return folder.status();
  for (const ModelFile& file : *files) {
    const std::string name = absl::StrCat((*folder)->path(), "/", file.name);
    std::ofstream out(name, std::ios::binary);
    out << file.contents;
    if (!out.flush()) return absl::UnavailableError(absl::StrCat("cannot write ", name));
  }
  return folder;
}

}  // namespace marcoro
