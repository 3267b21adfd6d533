#include "deploy/cli/free_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"

namespace marcoro {

absl::StatusOr<FreePort> FreePort::Find() {
  FreePort port(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (port.socket_ < 0 || bind(port.socket_, generic, size) != 0 ||
      getsockname(port.socket_, generic, &size) != 0) {
    return absl::ErrnoToStatus(errno, "cannot find a free port");
  }
  port.number_ = ntohs(address.sin_port);
  return port;
}

FreePort::~FreePort() {
  if (socket_ >= 0) close(socket_);
}

}  // namespace marcoro
