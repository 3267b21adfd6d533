// The little of URLs that talking to a hub needs.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace marcoro {

// Scheme, host and port, in lower case and with the port written out: "https://huggingface.co:443".
// INVALID_ARGUMENT for anything but an absolute http or https URL.
absl::StatusOr<std::string> OriginOf(const std::string& url);

// Where a Location header leads from the URL that answered with it. INVALID_ARGUMENT if it is no
// http or https URL, or leads from https to http.
absl::StatusOr<std::string> ResolveRedirect(const std::string& url, const std::string& location);

// Everything but letters, digits and "-._~" as %XX. Slashes are kept only where asked for.
std::string PercentEncoded(std::string_view text, bool keep_slashes);

// Scheme and host, for messages: the rest of a redirect's URL may be a secret.
std::string HostForMessages(const std::string& url);

}  // namespace marcoro
