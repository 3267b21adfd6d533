#include "worker/weights/hub_cache.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "worker/model/text_file.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxRepositoryLength = 96;  // the hub's own limit
constexpr size_t kMaxRevisionLength = 200;
constexpr size_t kCommitLength = 40;
constexpr size_t kMaxRefBytes = 256;
constexpr size_t kMaxIndexBytes = 32u << 20;
constexpr size_t kMaxSnapshotEntries = 100'000;

bool IsNameCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
}

// Organisation or model: the hub's own rules, which also keep paths of the cache unambiguous.
bool IsNamePart(absl::string_view part) {
  if (part.empty() || !std::all_of(part.begin(), part.end(), IsNameCharacter)) return false;
  for (const char edge : {part.front(), part.back()}) {
    if (edge == '.' || edge == '-') return false;
  }
  return part.find("..") == absl::string_view::npos && part.find("--") == absl::string_view::npos;
}

bool IsRevision(absl::string_view revision) {
  if (revision.size() > kMaxRevisionLength) return false;
  for (const absl::string_view part : absl::StrSplit(revision, '/')) {
    if (part.empty() || part.front() == '.' || part.front() == '-') return false;
    if (!std::all_of(part.begin(), part.end(), IsNameCharacter)) return false;
    if (absl::StrContains(part, "..") || absl::EndsWith(part, ".lock")) return false;
  }
  return true;
}

// Empty if the variable is not set.
std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

absl::Status NotInCache(const HubName& name, const std::string& why) {
  return absl::NotFoundError(
      absl::StrCat(name.ToString(), " ", why, "; `marcoro pull ", name.ToString(), "` fetches it"));
}

// The commit that the cache has for a revision.
absl::StatusOr<std::string> CachedCommit(const HubRepositoryPaths& paths, const HubName& name) {
  if (IsHubCommit(name.revision)) return name.revision;
  const std::string path = paths.Ref(name.revision);
  if (absl::Status status = CheckInsideHubCache(paths.cache, path); !status.ok()) return status;
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxRefBytes);
  if (absl::IsNotFound(text.status())) {
    return NotInCache(name, absl::StrCat("is not in the hub cache ", paths.cache));
  }
  if (!text.ok()) return text.status();
  std::string commit(absl::StripAsciiWhitespace(*text));
  if (!IsHubCommit(commit)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": does not hold a commit"));
  }
  return commit;
}

absl::Status CheckLinks(const HubRepositoryPaths& paths, const std::string& snapshot) {
  if (absl::Status status = CheckInsideHubCache(paths.cache, snapshot); !status.ok()) {
    return status;
  }
  std::error_code error;
  size_t entries = 0;
  fs::recursive_directory_iterator entry(snapshot, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (++entries > kMaxSnapshotEntries) {
      return absl::InvalidArgumentError(absl::StrCat(snapshot, ": holds too many files"));
    }
    std::error_code ignored;  // what cannot be looked at is no link that could be followed
    if (!entry->is_symlink(ignored)) continue;
    const absl::Status status = CheckInsideHubCache(paths.cache, entry->path().string());
    if (!status.ok()) return status;
  }
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(snapshot, ": ", error.message()));
}

// The first file that a whole snapshot would have and this one has not; empty if it is whole.
absl::StatusOr<std::string> MissingFile(const std::string& snapshot) {
  const auto has = [&snapshot](const std::string& file) {
    return IsRegularFile(absl::StrCat(snapshot, "/", file));
  };
  if (!has("config.json")) return "config.json";
  if (has("model.safetensors")) return "";
  if (!has("model.safetensors.index.json")) return "model.safetensors";
  const auto files =
      FilesOfSafetensorsIndex(absl::StrCat(snapshot, "/model.safetensors.index.json"));
  if (!files.ok()) return files.status();
  for (const std::string& file : *files) {
    if (!has(file)) return file;
  }
  return "";
}

}  // namespace

std::string HubName::ToString() const {
  return revision == "main" ? repository : absl::StrCat(repository, "@", revision);
}

absl::StatusOr<HubName> ParseHubName(absl::string_view text) {
  HubName name;
  const size_t at = text.find('@');
  name.repository = std::string(text.substr(0, at));
  if (at != absl::string_view::npos) name.revision = std::string(text.substr(at + 1));
  const std::vector<std::string> parts = absl::StrSplit(name.repository, '/');
  const std::string quoted = absl::StrCat("'", text.substr(0, 2 * kMaxRevisionLength), "'");
  if (parts.size() != 2 || !IsNamePart(parts[0]) || !IsNamePart(parts[1]) ||
      absl::EndsWith(parts[1], ".git") || name.repository.size() > kMaxRepositoryLength) {
    return absl::InvalidArgumentError(
        absl::StrCat(quoted, " is no name of a model on a hub, ORG/NAME[@REVISION]"));
  }
  if (!IsRevision(name.revision)) {
    return absl::InvalidArgumentError(
        absl::StrCat(quoted, ": what stands after '@' is no branch, tag or commit"));
  }
  return name;
}

bool IsHubCommit(absl::string_view text) {
  return text.size() == kCommitLength && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<std::string> HubHome() {
  if (std::string home = Environment("HF_HOME"); !home.empty()) return home;
  if (const std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/huggingface";
  }
  if (const std::string home = Environment("HOME"); !home.empty()) {
    return home + "/.cache/huggingface";
  }
  return absl::FailedPreconditionError(
      "there is no place for a hub cache: neither HF_HUB_CACHE nor HF_HOME nor HOME is set");
}

absl::StatusOr<std::string> HubCacheFolder() {
  for (const char* variable : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (std::string cache = Environment(variable); !cache.empty()) return cache;
  }
  absl::StatusOr<std::string> home = HubHome();
  if (!home.ok()) return home.status();
  return *home + "/hub";
}

HubRepositoryPaths::HubRepositoryPaths(std::string cache_folder, const std::string& repository)
    : cache(std::move(cache_folder)) {
  const std::string name = "models--" + absl::StrReplaceAll(repository, {{"/", "--"}});
  folder = absl::StrCat(cache, "/", name);
  locks = absl::StrCat(cache, "/.locks/", name);
}

absl::StatusOr<std::string> FindInHubCache(const std::string& name) {
  const absl::StatusOr<HubName> parsed = ParseHubName(name);
  if (!parsed.ok()) return parsed.status();
  const absl::StatusOr<std::string> cache = HubCacheFolder();
  if (!cache.ok()) return cache.status();
  return FindInHubCache(*cache, *parsed);
}

absl::StatusOr<std::string> FindInHubCache(const std::string& cache, const HubName& name) {
  const HubRepositoryPaths paths(cache, name.repository);
  const absl::StatusOr<std::string> commit = CachedCommit(paths, name);
  if (!commit.ok()) return commit.status();
  std::string snapshot = paths.Snapshot(*commit);
  std::error_code error;
  if (!fs::is_directory(snapshot, error)) {
    return NotInCache(name, absl::StrCat("is not in the hub cache ", cache));
  }
  if (absl::Status status = CheckLinks(paths, snapshot); !status.ok()) return status;
  const absl::StatusOr<std::string> missing = MissingFile(snapshot);
  if (!missing.ok()) return missing.status();
  if (missing->empty()) return snapshot;
  return NotInCache(
      name, absl::StrCat("is not whole in the hub cache: ", snapshot, " has no ", *missing));
}

absl::StatusOr<std::set<std::string>> FilesOfSafetensorsIndex(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxIndexBytes);
  if (!text.ok()) return text.status();
  const auto root = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  std::set<std::string> files;
  if (root.is_object() && root.contains("weight_map") && root["weight_map"].is_object()) {
    for (const auto& [tensor, file] : root["weight_map"].items()) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      if (!absl::EndsWith(name, ".safetensors") || absl::StrContains(name, '/') ||
          absl::StrContains(name, '\0')) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": tensor ", tensor, ": must name a safetensors file in the same folder"));
      }
      files.insert(name);
    }
  }
  if (!files.empty()) return files;
  return absl::InvalidArgumentError(absl::StrCat(path, ": names no files"));
}

absl::Status CheckInsideHubCache(const std::string& cache, const std::string& path) {
  std::error_code error;
  const fs::path root = fs::canonical(cache, error);
  if (error) return absl::OkStatus();  // there is no cache, and nothing in it
  const fs::path target = fs::weakly_canonical(path, error);
  if (!error) {
    const fs::path relative = target.lexically_relative(root);
    if (!relative.empty() && *relative.begin() != "..") return absl::OkStatus();
  }
  const std::string where = error ? error.message() : target.string();
  return absl::InvalidArgumentError(absl::StrCat(path, ": leads out of the hub cache, to ", where));
}

}  // namespace marcoro
