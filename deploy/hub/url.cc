#include "deploy/hub/url.h"

#include <curl/curl.h>

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace marcoro {
namespace {

using Url = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

Url Parse(const std::string& text) {
  Url url(curl_url(), &curl_url_cleanup);
  if (curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) url.reset();
  return url;
}

std::string Part(const Url& url, CURLUPart part, unsigned int flags = 0) {
  char* text = nullptr;
  if (curl_url_get(url.get(), part, &text, flags) != CURLUE_OK) return "";
  std::string copy = text;
  curl_free(text);
  return copy;
}

bool IsHttp(const Url& url) {
  const std::string scheme = Part(url, CURLUPART_SCHEME);
  return scheme == "http" || scheme == "https";
}

}  // namespace

absl::StatusOr<std::string> OriginOf(const std::string& text) {
  const Url url = Parse(text);
  if (url == nullptr || !IsHttp(url)) {
    return absl::InvalidArgumentError("is no http or https URL");
  }
  return absl::StrCat(Part(url, CURLUPART_SCHEME), "://",
                      absl::AsciiStrToLower(Part(url, CURLUPART_HOST)), ":",
                      Part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT));
}

absl::StatusOr<std::string> ResolveRedirect(const std::string& url, const std::string& location) {
  const Url parsed = Parse(url);
  if (parsed == nullptr ||
      curl_url_set(parsed.get(), CURLUPART_URL, location.c_str(), 0) != CURLUE_OK ||
      !IsHttp(parsed)) {
    return absl::InvalidArgumentError("redirects to what is no http or https URL");
  }
  if (absl::StartsWithIgnoreCase(url, "https:") && Part(parsed, CURLUPART_SCHEME) != "https") {
    return absl::InvalidArgumentError("redirects from https to http");
  }
  return Part(parsed, CURLUPART_URL);
}

std::string PercentEncoded(std::string_view text, bool keep_slashes) {
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = absl::ascii_isalnum(byte) || c == '-' || c == '.' || c == '_' || c == '~';
    if (plain || (c == '/' && keep_slashes)) {
      encoded.push_back(c);
    } else {
      absl::StrAppendFormat(&encoded, "%%%02X", byte);
    }
  }
  return encoded;
}

std::string HostForMessages(const std::string& text) {
  const Url url = Parse(text);
  if (url == nullptr) return "a server";
  const std::string port = Part(url, CURLUPART_PORT);
  return absl::StrCat(Part(url, CURLUPART_SCHEME), "://", Part(url, CURLUPART_HOST),
                      port.empty() ? "" : ":", port);
}

}  // namespace marcoro
