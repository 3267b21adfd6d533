#include "worker/group/local_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace marcoro {
namespace {

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

absl::StatusOr<Addresses> Resolve(absl::string_view target) {
  const size_t colon = target.rfind(':');
  if (colon == absl::string_view::npos || colon == 0 || colon + 1 == target.size()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", target, "\" is not host:port"));
  }
  absl::string_view host = target.substr(0, colon);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  }
  const std::string port(target.substr(colon + 1));
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(std::string(host).c_str(), port.c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot resolve \"", target, "\": ", gai_strerror(error)));
  }
  return Addresses(found);
}

// Connecting a datagram socket only chooses the route.
absl::StatusOr<std::string> SourceAddress(const addrinfo& target) {
  const int file = socket(target.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (file < 0) return absl::UnavailableError(std::strerror(errno));
  sockaddr_storage source = {};
  socklen_t length = sizeof(source);
  char name[NI_MAXHOST];
  const bool known = connect(file, target.ai_addr, target.ai_addrlen) == 0 &&
                     getsockname(file, reinterpret_cast<sockaddr*>(&source), &length) == 0;
  const int error = errno;
  close(file);
  if (!known) return absl::UnavailableError(std::strerror(error));
  if (getnameinfo(reinterpret_cast<sockaddr*>(&source), length, name, sizeof(name), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return absl::UnavailableError("an address without a name");
  }
  return std::string(name);
}

}  // namespace

absl::StatusOr<std::string> LocalAddressTowards(absl::string_view target) {
  absl::StatusOr<Addresses> addresses = Resolve(target);
  if (!addresses.ok()) return addresses.status();
  absl::Status status = absl::UnavailableError("no address");
  for (const addrinfo* address = addresses->get(); address != nullptr; address = address->ai_next) {
    absl::StatusOr<std::string> source = SourceAddress(*address);
    if (source.ok()) return source;
    status = source.status();
  }
  return absl::UnavailableError(absl::StrCat("no route to \"", target, "\": ", status.message()));
}

absl::StatusOr<std::string> AddressOfGrpcPeer(absl::string_view peer) {
  absl::string_view address = peer;
  if (!absl::ConsumePrefix(&address, "ipv4:") && !absl::ConsumePrefix(&address, "ipv6:")) {
    return absl::InvalidArgumentError(absl::StrCat("\"", peer, "\" is no network address"));
  }
  return absl::StrReplaceAll(address, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}});
}

}  // namespace marcoro
