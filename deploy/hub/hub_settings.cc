#include "deploy/hub/hub_settings.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "deploy/hub/url.h"
#include "worker/model/text_file.h"
#include "worker/weights/hub_cache.h"

namespace marcoro {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : std::string(absl::StripAsciiWhitespace(value));
}

bool IsTrue(const std::string& text) {
  const std::string upper = absl::AsciiStrToUpper(text);
  return upper == "1" || upper == "TRUE" || upper == "YES" || upper == "ON";
}

absl::Status ReadTokenFile(HubSettings* settings) {
  std::string path = Environment("HF_TOKEN_PATH");
  if (path.empty()) {
    const absl::StatusOr<std::string> home = HubHome();
    if (!home.ok()) return absl::OkStatus();
    path = *home + "/token";
  }
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxTokenBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  settings->token = std::string(absl::StripAsciiWhitespace(*text));
  settings->token_source = path;
  return absl::OkStatus();
}

absl::Status FindToken(HubSettings* settings) {
  for (const char* variable : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    settings->token = Environment(variable);
    settings->token_source = variable;
    if (!settings->token.empty()) break;
  }
  if (settings->token.empty()) {
    settings->token_source.clear();
    if (absl::Status status = ReadTokenFile(settings); !status.ok()) return status;
  }
  const bool plain = std::all_of(settings->token.begin(), settings->token.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  if (plain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the token of ", settings->token_source, " holds spaces or control characters"));
}

}  // namespace

absl::StatusOr<HubSettings> HubSettingsFromEnvironment() {
  HubSettings settings;
  if (const std::string endpoint = Environment("HF_ENDPOINT"); !endpoint.empty()) {
    settings.endpoint = std::string(absl::StripSuffix(endpoint, "/"));
  }
  if (const auto origin = OriginOf(settings.endpoint); !origin.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("HF_ENDPOINT=", settings.endpoint, ": ", origin.status().message()));
  }
  absl::StatusOr<std::string> cache = HubCacheFolder();
  if (!cache.ok()) return cache.status();
  settings.cache = *std::move(cache);
  settings.offline =
      IsTrue(Environment("HF_HUB_OFFLINE")) || IsTrue(Environment("TRANSFORMERS_OFFLINE"));
  if (absl::Status status = FindToken(&settings); !status.ok()) return status;
  return settings;
}

}  // namespace marcoro
