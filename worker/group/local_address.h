// Which of this host's addresses its peers can reach.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// The numeric address from which this host would speak to `target` ("host:port" or "[ipv6]:port"):
// asks the routing table, sends nothing. INVALID_ARGUMENT if target is no address or no host of
// that name is known, UNAVAILABLE if there is no route.
absl::StatusOr<std::string> LocalAddressTowards(absl::string_view target);

// "ipv4:10.0.0.7:40312" or "ipv6:[fd00::1]:40312" (also percent-encoded), as gRPC names a peer →
// "10.0.0.7:40312".
absl::StatusOr<std::string> AddressOfGrpcPeer(absl::string_view peer);

}  // namespace marcoro
