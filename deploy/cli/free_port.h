// A TCP port of the loopback interface that nobody uses.
#pragma once

#include <utility>

#include "absl/status/statusor.h"

namespace marcoro {

// Held as long as this lives, so that the next one found is another.
class FreePort {
 public:
  static absl::StatusOr<FreePort> Find();
  ~FreePort();
  FreePort(FreePort&& other) noexcept
      : socket_(std::exchange(other.socket_, -1)), number_(other.number_) {}
  FreePort& operator=(FreePort&&) = delete;

  int number() const { return number_; }

 private:
  FreePort(int socket, int number) : socket_(socket), number_(number) {}

  int socket_;
  int number_;
};

}  // namespace marcoro
