// A peer's side of group.proto.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/key_store.h"

namespace marcoro {

struct GroupClientOptions {
  std::string root_address;  // "host:port" of rank 0's GroupService
  int rank = 1;
  int world_size = 2;
  std::string fingerprint;
  std::string host;  // HostIdentity(); empty: no shared memory
};

// A joined peer. Its KeyStore is valid for the epoch it joined: keys fail with ABORTED once rank 0
// has restarted.
class GroupClient : public KeyStore {
 public:
  // Retries until rank 0 answers. DEADLINE_EXCEEDED if it does not within `timeout`; rank 0's
  // refusals as they come: FAILED_PRECONDITION, ALREADY_EXISTS, INVALID_ARGUMENT; UNIMPLEMENTED if
  // something else answers at the address.
  static absl::StatusOr<std::unique_ptr<GroupClient>> Join(const GroupClientOptions& options,
                                                           absl::Duration timeout);

  virtual const std::string& epoch() const = 0;
};

}  // namespace marcoro
