// The calls of a hub's API that downloading needs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/hub/http.h"
#include "deploy/hub/hub_settings.h"
#include "worker/weights/hub_cache.h"

namespace marcoro {

// A revision of a repository.
struct HubListing {
  std::string commit;
  std::vector<std::string> files;  // paths in the repository; no absolute ones, no ".."
};

// What the hub says of a file's contents.
struct HubFile {
  std::string name;
  std::string hash;  // its ETag: what its blob is called, and its checksum
  uint64_t size = 0;
};

// Not thread-safe: one for each thread. Errors are UNAVAILABLE where another attempt may help,
// UNAUTHENTICATED or PERMISSION_DENIED for a token that is missing or not enough, NOT_FOUND, and
// FAILED_PRECONDITION or DATA_LOSS for a hub that does not do what it says. The token goes to the
// endpoint's own scheme, host and port alone, and into no message.
class HubClient {
 public:
  // `cancelled` is asked while a call is under way; it may be null.
  HubClient(const HubSettings& settings, HubName name, absl::Duration stall_timeout,
            std::function<bool()> cancelled);

  absl::StatusOr<HubListing> List();
  absl::StatusOr<HubFile> Describe(const std::string& commit, const std::string& file);

  // Where the bytes of a file go.
  class Sink {
   public:
    virtual ~Sink() = default;
    // The server sends the whole file although it was asked for a part.
    virtual absl::Status Restart() = 0;
    virtual absl::Status Write(std::string_view bytes) = 0;
  };
  // The file's bytes from first_byte (< its size) on. All of them arrived if it is OK; what arrived
  // before an error was written.
  absl::Status Download(const std::string& commit, const HubFile& file, uint64_t first_byte,
                        Sink* sink);

 private:
  std::string FileUrl(const std::string& commit, const std::string& file) const;
  // Follows redirects: to other hosts too, or only as far as they stay at the endpoint's.
  absl::StatusOr<HttpResponse> Perform(HttpRequest request, bool to_other_hosts,
                                       std::vector<HttpResponse>* redirects);
  // The error of a response whose status is none of success.
  absl::Status Refusal(const HttpResponse& response, const std::string& what) const;
  absl::Status CheckRange(const HttpResponse& response, const HubFile& file,
                          uint64_t first_byte) const;

  const HubSettings settings_;
  const HubName name_;
  const absl::Duration stall_timeout_;
  const std::function<bool()> cancelled_;
  HttpClient http_;
};

}  // namespace marcoro
