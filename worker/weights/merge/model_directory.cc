#include "worker/weights/merge/model_directory.h"

#include <filesystem>
#include <string_view>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/model/text_file.h"
#include "worker/weights/merge/known_names.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxNeighbours = 1000;  // folders that are looked at for a similar name

bool IsModelDirectory(const fs::path& path) {
  return IsRegularFile((path / "config.json").string());
}

// In order, each once.
std::vector<fs::path> Candidates(const std::string& name, const std::string& recipe_path) {
  if (fs::path(name).is_absolute()) return {fs::path(name)};
  std::error_code error;
  const fs::path recipe = fs::absolute(recipe_path, error).lexically_normal();
  std::vector<fs::path> candidates;
  const fs::path folder = recipe.parent_path();
  for (const fs::path& root : {folder, folder.parent_path(), fs::current_path(error)}) {
    const fs::path candidate = (root / name).lexically_normal();
    bool known = candidate.empty();
    for (const fs::path& other : candidates) known = known || other == candidate;
    if (!known) candidates.push_back(candidate);
  }
  return candidates;
}

// Name of the model folder beside one of the candidates that looks most like it; may be empty.
std::string SimilarFolder(const std::vector<fs::path>& candidates) {
  for (const fs::path& candidate : candidates) {
    std::error_code error;
    std::vector<std::string> names;
    fs::directory_iterator folder(candidate.parent_path(), error);
    for (int i = 0; i < kMaxNeighbours && !error && folder != fs::directory_iterator(); ++i) {
      if (IsModelDirectory(folder->path())) names.push_back(folder->path().filename().string());
      folder.increment(error);
    }
    const std::string_view nearest =
        NearestName(candidate.filename().string(), {names.begin(), names.end()});
    if (!nearest.empty()) return (candidate.parent_path() / std::string(nearest)).string();
  }
  return "";
}

}  // namespace

absl::StatusOr<std::string> FindModelDirectory(const std::string& name,
                                               const std::string& recipe_path,
                                               const HubLookup& find_in_hub) {
  const std::vector<fs::path> candidates = Candidates(name, recipe_path);
  for (const fs::path& candidate : candidates) {
    if (IsModelDirectory(candidate)) return candidate.string();
  }
  std::string hub;
  if (find_in_hub) {
    absl::StatusOr<std::string> found = find_in_hub(name);
    // A path is no hub name: it is not there either.
    if (!absl::IsNotFound(found.status()) && !absl::IsInvalidArgument(found.status())) return found;
    hub = absl::StrCat("; and in the hub's cache: ", found.status().message());
  }
  std::vector<std::string> places;
  for (const fs::path& candidate : candidates) places.push_back(candidate.string());
  const std::string similar = SimilarFolder(candidates);
  return absl::NotFoundError(
      absl::StrCat("no folder with a config.json: looked for ", absl::StrJoin(places, ", "), hub,
                   similar.empty() ? "" : absl::StrCat("; did you mean ", similar, "?")));
}

}  // namespace marcoro
