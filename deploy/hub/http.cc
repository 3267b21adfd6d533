#include "deploy/hub/http.h"

#include <curl/curl.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "deploy/hub/url.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

constexpr long kConnectTimeoutSeconds = 30;
constexpr size_t kMaxHeaders = 200;
constexpr long kBufferBytes = 256 << 10;

void InitializeOnce() {
  static const CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT);
  MARCORO_CHECK(code == CURLE_OK);
}

// What curl's callbacks work on.
struct Exchange {
  explicit Exchange(const HttpRequest& what) : request(what) {}

  const HttpRequest& request;
  HttpResponse response;
  bool headers_told = false;
  curl_off_t received = 0;
  absl::Time received_at = absl::Now();
  bool stalled = false;
  absl::Status status;  // an error of one of the request's functions

  bool TellHeaders() {
    if (headers_told) return status.ok();
    headers_told = true;
    if (request.on_headers) status = request.on_headers(response);
    return status.ok();
  }
};

// "HTTP/1.1 206 Partial Content" begins a response, and another one after a 100 Continue.
void StartResponse(absl::string_view line, HttpResponse* response) {
  response->headers.clear();
  response->status = 0;
  const size_t space = line.find(' ');
  if (space == absl::string_view::npos) return;
  if (!absl::SimpleAtoi(line.substr(space + 1, 3), &response->status)) response->status = 0;
}

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  auto* const exchange = static_cast<Exchange*>(user);
  const absl::string_view line = absl::StripAsciiWhitespace(absl::string_view(data, size * count));
  HttpResponse& response = exchange->response;
  const size_t colon = line.find(':');
  if (absl::StartsWith(line, "HTTP/")) {
    StartResponse(line, &response);
  } else if (colon != absl::string_view::npos && response.headers.size() < kMaxHeaders) {
    response.headers[absl::AsciiStrToLower(line.substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return size * count;
}

size_t OnBody(char* data, size_t size, size_t count, void* user) {
  auto* const exchange = static_cast<Exchange*>(user);
  const size_t bytes = size * count;
  if (!exchange->TellHeaders()) return 0;
  if (exchange->request.on_body) {
    exchange->status = exchange->request.on_body(std::string_view(data, bytes));
  }
  return exchange->status.ok() ? bytes : 0;
}

// Called once a second or more often.
int OnProgress(void* user, curl_off_t, curl_off_t received, curl_off_t, curl_off_t) {
  auto* const exchange = static_cast<Exchange*>(user);
  if (received != exchange->received) {
    exchange->received = received;
    exchange->received_at = absl::Now();
  }
  exchange->stalled = absl::Now() - exchange->received_at >= exchange->request.stall_timeout;
  const bool cancelled = exchange->request.cancelled && exchange->request.cancelled();
  return exchange->stalled || cancelled ? 1 : 0;
}

}  // namespace

struct HttpClient::Handle {
  CURL* curl = nullptr;

  template <typename Value>
  void Set(CURLoption option, Value value) {
    MARCORO_CHECK(curl_easy_setopt(curl, option, value) == CURLE_OK);
  }
  void Configure(const HttpRequest& request, Exchange* exchange, curl_slist* headers);
  absl::Status ToStatus(CURLcode code, const char* detail, const Exchange& exchange) const;
};

void HttpClient::Handle::Configure(const HttpRequest& request, Exchange* exchange,
                                   curl_slist* headers) {
  curl_easy_reset(curl);  // keeps connections
  Set(CURLOPT_URL, request.url.c_str());
  Set(CURLOPT_PROTOCOLS_STR, "http,https");
  Set(CURLOPT_USERAGENT, "marcoro/" MARCORO_VERSION);
  Set(CURLOPT_HTTPHEADER, headers);
  Set(CURLOPT_NOSIGNAL, 1L);
  Set(CURLOPT_NOBODY, request.head ? 1L : 0L);
  // A wish: refused behind an exchange that found no host, where the buffer is still that of
  // before.
  curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, kBufferBytes);
  Set(CURLOPT_CONNECTTIMEOUT, kConnectTimeoutSeconds);
  // Not curl's own resuming: that fails where a server sends the whole file instead.
  const std::string range = absl::StrCat(request.first_byte, "-");
  if (request.first_byte > 0) Set(CURLOPT_RANGE, range.c_str());
  Set(CURLOPT_HEADERFUNCTION, &OnHeader);
  Set(CURLOPT_HEADERDATA, exchange);
  Set(CURLOPT_WRITEFUNCTION, &OnBody);
  Set(CURLOPT_WRITEDATA, exchange);
  Set(CURLOPT_NOPROGRESS, 0L);
  Set(CURLOPT_XFERINFOFUNCTION, &OnProgress);
  Set(CURLOPT_XFERINFODATA, exchange);
}

absl::Status HttpClient::Handle::ToStatus(CURLcode code, const char* detail,
                                          const Exchange& exchange) const {
  if (!exchange.status.ok()) return exchange.status;
  const std::string host = HostForMessages(exchange.request.url);
  if (code == CURLE_ABORTED_BY_CALLBACK && !exchange.stalled) {
    return absl::CancelledError("given up");
  }
  if (code == CURLE_ABORTED_BY_CALLBACK) {
    return absl::UnavailableError(absl::StrCat(
        host, ": nothing came for ", absl::FormatDuration(exchange.request.stall_timeout)));
  }
  if (code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL) {
    return absl::InvalidArgumentError(absl::StrCat(host, ": ", curl_easy_strerror(code)));
  }
  // A certificate that does not fit will not fit the next time.
  if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE) {
    return absl::FailedPreconditionError(absl::StrCat(host, ": ", curl_easy_strerror(code)));
  }
  return absl::UnavailableError(
      absl::StrCat(host, ": ", detail[0] != '\0' ? detail : curl_easy_strerror(code)));
}

const std::string& HttpResponse::Header(const std::string& name) const {
  static const std::string none;
  const auto found = headers.find(name);
  return found == headers.end() ? none : found->second;
}

HttpClient::HttpClient() : handle_(std::make_unique<Handle>()) {
  InitializeOnce();
  handle_->curl = curl_easy_init();
  MARCORO_CHECK(handle_->curl != nullptr);
}

HttpClient::~HttpClient() { curl_easy_cleanup(handle_->curl); }

absl::StatusOr<HttpResponse> HttpClient::Perform(const HttpRequest& request) {
  Exchange exchange(request);
  // Bytes are counted and hashed as they are stored: the server must not pack them.
  curl_slist* headers = curl_slist_append(nullptr, "Accept-Encoding: identity");
  const absl::Cleanup free_headers = [&headers] { curl_slist_free_all(headers); };
  if (!request.token.empty()) {
    headers =
        curl_slist_append(headers, absl::StrCat("Authorization: Bearer ", request.token).c_str());
  }
  handle_->Configure(request, &exchange, headers);
  char detail[CURL_ERROR_SIZE] = "";
  handle_->Set(CURLOPT_ERRORBUFFER, detail);
  const CURLcode code = curl_easy_perform(handle_->curl);
  handle_->Set(CURLOPT_ERRORBUFFER, static_cast<char*>(nullptr));
  if (code != CURLE_OK) return handle_->ToStatus(code, detail, exchange);
  if (!exchange.TellHeaders()) return exchange.status;  // a response without a body
  return std::move(exchange.response);
}

}  // namespace marcoro
