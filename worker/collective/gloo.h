// Collectives over TCP, by Gloo.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"

namespace marcoro {

struct GlooOptions {
  int rank = 0;
  int size = 1;  // a power of two, at most 8
  // What this rank listens on: the name of a network interface, a host name or an address of this
  // host.
  std::string interface = "127.0.0.1";
  // Keeps this communicator's keys apart from others in the same store.
  std::string key_prefix = "gloo";
  // Longest time that connecting may take, and then each operation. Rounded up to milliseconds.
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration timeout = absl::Seconds(60);
};

// Connects to all other ranks, whose addresses come through `keys`; returns when they too are
// connected with all. INVALID_ARGUMENT if the interface does not exist, UNAVAILABLE or
// DEADLINE_EXCEEDED if a rank cannot be reached.
absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(const GlooOptions& options,
                                                                   KeyStore& keys);

}  // namespace marcoro
