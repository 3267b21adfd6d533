// One HTTP exchange at a time, over libcurl.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace marcoro {

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // by name in lower case; the last of equal names

  // Empty if there is none of that (lower-case) name.
  const std::string& Header(const std::string& name) const;
};

struct HttpRequest {
  std::string url;
  bool head = false;
  std::string token;        // sent as a bearer token, to this URL's host alone; empty: none
  uint64_t first_byte = 0;  // > 0: asks for the range from there on
  // Without a byte of the body for so long the exchange fails; noticed within a second.
  absl::Duration stall_timeout = absl::Seconds(30);
  // Called once with status and headers before the body; an error ends the exchange.
  std::function<absl::Status(const HttpResponse&)> on_headers = nullptr;
  // Called with pieces of the body; an error ends the exchange. Null: the body is thrown away.
  std::function<absl::Status(std::string_view)> on_body = nullptr;
  // Asked at least once a second; true ends the exchange: CANCELLED.
  std::function<bool()> cancelled = nullptr;
};

// Keeps its connections open from one exchange to the next. Not thread-safe: one for each thread.
class HttpClient {
 public:
  HttpClient();
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Follows no redirect; any status of the server's is a response. UNAVAILABLE if there was no
  // whole exchange (nobody listens, the connection broke or stalled), otherwise the error that one
  // of the request's functions gave.
  absl::StatusOr<HttpResponse> Perform(const HttpRequest& request);

 private:
  struct Handle;
  const std::unique_ptr<Handle> handle_;
};

}  // namespace marcoro
