// Where the hub is and who asks it, from the variables that Hugging Face's tools use.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

struct HubSettings {
  std::string endpoint = "https://huggingface.co";  // without a slash at its end
  std::string cache;                                // folder of the cache
  std::string token;                                // empty: none
  std::string token_source;  // for messages, which never hold the token: "HF_TOKEN", or a path
  bool offline = false;      // the hub is not to be asked
};

// $HF_ENDPOINT; the cache as worker/weights/hub_cache.h finds it; the token of $HF_TOKEN, else of
// the file $HF_TOKEN_PATH or $HF_HOME/token; $HF_HUB_OFFLINE. INVALID_ARGUMENT for an endpoint that
// is no URL, and for a token with other characters than a header can carry.
absl::StatusOr<HubSettings> HubSettingsFromEnvironment();

}  // namespace marcoro
