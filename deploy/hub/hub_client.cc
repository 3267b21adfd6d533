#include "deploy/hub/hub_client.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "deploy/hub/checksum.h"
#include "deploy/hub/retry.h"
#include "deploy/hub/url.h"

namespace marcoro {
namespace {

constexpr size_t kMaxListingBytes = 32 << 20;
constexpr size_t kMaxFiles = 100'000;
constexpr int kMaxRedirects = 10;

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool IsTransient(int status) {
  return status == 408 || status == 429 || status == 500 || (status >= 502 && status <= 504);
}

bool IsSafePath(const std::string& path) {
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  for (const char c : path) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '\\' || c == 0x7f) return false;
  }
  return true;
}

absl::StatusOr<HubListing> ParseListing(const std::string& text, const std::string& name) {
  const auto root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  HubListing listing;
  if (root.is_object() && root.contains("sha") && root["sha"].is_string()) {
    listing.commit = root["sha"].get<std::string>();
  }
  if (!IsHubCommit(listing.commit) || !root.contains("siblings") || !root["siblings"].is_array() ||
      root["siblings"].size() > kMaxFiles) {
    return absl::FailedPreconditionError(
        absl::StrCat("the hub's answer about ", name, " holds no commit and list of files"));
  }
  for (const auto& file : root["siblings"]) {
    const bool named =
        file.is_object() && file.contains("rfilename") && file["rfilename"].is_string();
    std::string path = named ? file["rfilename"].get<std::string>() : "";
    if (!IsSafePath(path)) {
      return absl::FailedPreconditionError(absl::StrCat(name, " lists a file of the name '", path,
                                                        "', which leads out of its folder"));
    }
    listing.files.push_back(std::move(path));
  }
  return listing;
}

// The value of the first response that has this header; empty if none has.
std::string FirstHeader(const std::vector<HttpResponse>& responses, const std::string& name) {
  for (const HttpResponse& response : responses) {
    if (!response.Header(name).empty()) return response.Header(name);
  }
  return "";
}

std::string FirstOf(std::string preferred, std::string other) {
  return preferred.empty() ? std::move(other) : std::move(preferred);
}

}  // namespace

HubClient::HubClient(const HubSettings& settings, HubName name, absl::Duration stall_timeout,
                     std::function<bool()> cancelled)
    : settings_(settings),
      name_(std::move(name)),
      stall_timeout_(stall_timeout),
      cancelled_(std::move(cancelled)) {}

std::string HubClient::FileUrl(const std::string& commit, const std::string& file) const {
  return absl::StrCat(settings_.endpoint, "/", name_.repository, "/resolve/", commit, "/",
                      PercentEncoded(file, /*keep_slashes=*/true));
}

absl::StatusOr<HttpResponse> HubClient::Perform(HttpRequest request, bool to_other_hosts,
                                                std::vector<HttpResponse>* redirects) {
  const absl::StatusOr<std::string> home = OriginOf(settings_.endpoint);
  if (!home.ok()) return home.status();
  request.stall_timeout = stall_timeout_;
  request.cancelled = cancelled_;
  // What a redirect says beside its Location is not for the one who asked.
  bool redirected = false;
  request.on_headers = [&redirected,
                        ask = std::move(request.on_headers)](const HttpResponse& response) {
    redirected = IsRedirect(response.status);
    return redirected || !ask ? absl::OkStatus() : ask(response);
  };
  request.on_body = [&redirected, take = std::move(request.on_body)](std::string_view bytes) {
    return redirected || !take ? absl::OkStatus() : take(bytes);
  };
  for (int hop = 0; hop <= kMaxRedirects; ++hop) {
    const absl::StatusOr<std::string> origin = OriginOf(request.url);
    if (!origin.ok()) return origin.status();
    request.token = *origin == *home ? settings_.token : "";
    absl::StatusOr<HttpResponse> response = http_.Perform(request);
    if (!response.ok() || !IsRedirect(response->status)) return response;
    absl::StatusOr<std::string> target = ResolveRedirect(request.url, response->Header("location"));
    if (!target.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat(HostForMessages(request.url), " ", target.status().message()));
    }
    const absl::StatusOr<std::string> next = OriginOf(*target);
    if (!to_other_hosts && next.ok() && *next != *home) return response;
    redirects->push_back(*std::move(response));
    request.url = *std::move(target);
  }
  return absl::FailedPreconditionError(
      absl::StrCat(HostForMessages(request.url), " redirects more than ", kMaxRedirects, " times"));
}

absl::Status HubClient::Refusal(const HttpResponse& response, const std::string& what) const {
  const std::string host = HostForMessages(settings_.endpoint);
  const std::string token =
      settings_.token.empty()
          ? "no token was sent; HF_TOKEN or a file `token` in $HF_HOME give one"
          : absl::StrCat("the token of ", settings_.token_source, " was sent, and is not enough");
  // The hub names its reason in a header: GatedRepo, RepoNotFound, RevisionNotFound, EntryNotFound.
  const std::string reason = response.Header("x-error-code");
  const std::string status =
      absl::StrCat(host, " answers ", response.status, reason.empty() ? "" : " ", reason);
  switch (response.status) {
    case 401:
      // This is also how the hub speaks of repositories that do not exist.
      return absl::UnauthenticatedError(absl::StrCat(
          what, ": ", status, ": there is none of that name, or it is private; ", token));
    case 403:
      return absl::PermissionDeniedError(absl::StrCat(what, ": ", status, ": ", token));
    case 404:
      return absl::NotFoundError(absl::StrCat(what, ": ", status, ": there is no such thing"));
    default:
      break;
  }
  if (IsTransient(response.status)) {
    return TransientError(absl::StrCat(what, ": ", status),
                          ParseRetryAfter(response.Header("retry-after"), absl::Now()));
  }
  return absl::FailedPreconditionError(absl::StrCat(what, ": ", status));
}

absl::StatusOr<HubListing> HubClient::List() {
  const std::string what = name_.ToString();
  HttpRequest request;
  request.url = absl::StrCat(settings_.endpoint, "/api/models/", name_.repository, "/revision/",
                             PercentEncoded(name_.revision, /*keep_slashes=*/false));
  request.on_headers = [&](const HttpResponse& response) {
    return response.status == 200 ? absl::OkStatus() : Refusal(response, what);
  };
  std::string body;
  request.on_body = [&](std::string_view bytes) {
    body.append(bytes);
    return body.size() <= kMaxListingBytes
               ? absl::OkStatus()
               : absl::FailedPreconditionError(
                     absl::StrCat(what, ": the hub's answer is longer than ", kMaxListingBytes));
  };
  std::vector<HttpResponse> redirects;
  const auto response = Perform(std::move(request), /*to_other_hosts=*/false, &redirects);
  if (!response.ok()) return response.status();
  if (response->status != 200) return Refusal(*response, what);
  return ParseListing(body, what);
}

absl::StatusOr<HubFile> HubClient::Describe(const std::string& commit, const std::string& file) {
  const std::string what = absl::StrCat(name_.repository, "/", file);
  HttpRequest request;
  request.url = FileUrl(commit, file);
  request.head = true;
  std::vector<HttpResponse> responses;
  auto last = Perform(std::move(request), /*to_other_hosts=*/false, &responses);
  if (!last.ok()) return last.status();
  // A redirect to another host is an answer too: it tells of the file, whose bytes lie there.
  if (last->status != 200 && !IsRedirect(last->status)) return Refusal(*last, what);
  responses.push_back(*std::move(last));
  const HttpResponse& answer = responses.back();
  if (const std::string found = FirstHeader(responses, "x-repo-commit");
      !found.empty() && found != commit) {
    return absl::FailedPreconditionError(absl::StrCat(what, ": the hub tells of commit ", found,
                                                      " where ", commit, " was asked for"));
  }
  HubFile description = {.name = file, .hash = {}};
  description.hash =
      StrippedEtag(FirstOf(FirstHeader(responses, "x-linked-etag"), answer.Header("etag")));
  const bool elsewhere = IsRedirect(answer.status);  // then its length is that of the redirect
  const std::string size = FirstOf(FirstHeader(responses, "x-linked-size"),
                                   elsewhere ? "" : answer.Header("content-length"));
  if (!absl::SimpleAtoi(size, &description.size)) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": the hub does not say how long it is"));
  }
  const auto checksum = Checksum::Create(description.hash, description.size);
  if (!checksum.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(what, ": the hub ", checksum.status().message()));
  }
  return description;
}

absl::Status HubClient::CheckRange(const HttpResponse& response, const HubFile& file,
                                   uint64_t first_byte) const {
  const std::string what = absl::StrCat(name_.repository, "/", file.name);
  const uint64_t begin = response.status == 206 ? first_byte : 0;
  if (response.status == 206) {
    const std::string expected =
        absl::StrCat("bytes ", first_byte, "-", file.size - 1, "/", file.size);
    if (response.Header("content-range") != expected) {
      return absl::DataLossError(absl::StrCat(what, ": the server sends '",
                                              response.Header("content-range"), "' where '",
                                              expected, "' was asked for"));
    }
  }
  uint64_t length = 0;
  const std::string header = response.Header("content-length");
  if (header.empty()) return absl::OkStatus();  // chunked: counted as it comes
  if (absl::SimpleAtoi(header, &length) && length == file.size - begin) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(what, ": the server sends ", header,
                                          " bytes, but the hub says ", file.size - begin));
}

absl::Status HubClient::Download(const std::string& commit, const HubFile& file,
                                 uint64_t first_byte, Sink* sink) {
  const std::string what = absl::StrCat(name_.repository, "/", file.name);
  uint64_t received = first_byte;
  HttpRequest request;
  request.url = FileUrl(commit, file.name);
  request.first_byte = first_byte;
  request.on_headers = [&](const HttpResponse& response) {
    if (response.status != 200 && response.status != 206) return Refusal(response, what);
    absl::Status status = CheckRange(response, file, first_byte);
    if (!status.ok() || response.status == 206) return status;
    received = 0;
    return first_byte > 0 ? sink->Restart() : absl::OkStatus();
  };
  request.on_body = [&](std::string_view bytes) {
    if (bytes.size() > file.size - received) {
      return absl::DataLossError(absl::StrCat(what, ": the server sends more than the ", file.size,
                                              " bytes that the hub says"));
    }
    received += bytes.size();
    return sink->Write(bytes);
  };
  std::vector<HttpResponse> redirects;
  const auto response = Perform(std::move(request), /*to_other_hosts=*/true, &redirects);
  if (!response.ok()) return response.status();
  if (received == file.size) return absl::OkStatus();
  return TransientError(
      absl::StrCat(what, ": the server sent ", received, " of ", file.size, " bytes"));
}

}  // namespace marcoro
