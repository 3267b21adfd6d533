// Rank 0's side of group.proto: admits the peers and keeps the rendezvous keys of their
// collectives.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/key_store.h"

namespace grpc {
class Service;
}

namespace marcoro {

struct GroupServiceOptions {
  int world_size = 1;
  std::string fingerprint;
};

// Thread-safe. Outlives the gRPC server it is registered on.
class GroupService {
 public:
  explicit GroupService(const GroupServiceOptions& options);
  ~GroupService();

  // To register on rank 0's gRPC server.
  grpc::Service* service();

  // Identifies this incarnation of the group: a random number, in hex.
  const std::string& epoch() const;

  // Rank 0's own way to the keys.
  KeyStore& keys();

  // A rank that has joined.
  struct Peer {
    std::string host;     // its HostIdentity()
    std::string address;  // as gRPC sees it: "ipv4:10.0.0.7:40312"
  };

  // Waits until ranks 1 … world_size - 1 have joined and returns them in this order.
  // DEADLINE_EXCEEDED names the missing ones.
  absl::StatusOr<std::vector<Peer>> WaitForPeers(absl::Duration timeout);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace marcoro
