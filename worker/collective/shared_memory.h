// Collectives between ranks on one host, through a memory segment that all of them map: the CPU's
// twin of a one-shot all-reduce over the memory of neighbouring GPUs.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"

namespace marcoro {

struct SharedMemoryOptions {
  int rank = 0;
  int size = 1;  // a power of two, at most 8
  // Keeps this communicator's keys apart from others in the same store.
  std::string key_prefix = "shared_memory";
  // Bytes a rank passes on at once; a multiple of 4096. The segment has 2 * size slots.
  size_t slot_bytes = 256 << 10;
  absl::Duration connect_timeout = absl::Seconds(60);
  absl::Duration timeout = absl::Seconds(60);  // of each operation
  // How long a rank that waits keeps its core before it sleeps; 0 where the ranks outnumber the
  // cores.
  absl::Duration spin = absl::Microseconds(40);
};

// Rank 0 creates the segment, the others map it. The segment has no name, so it goes away with its
// last user however that ends. A rank that dies (or destroys its communicator) is noticed by those
// that wait for it within 100 ms: UNAVAILABLE. On any rank's failure all ranks fail, so that a
// group can fall back to another transport: FAILED_PRECONDITION if a rank cannot map the segment,
// DEADLINE_EXCEEDED if a rank does not come.
absl::StatusOr<std::unique_ptr<Communicator>> MakeSharedMemoryCommunicator(
    const SharedMemoryOptions& options, KeyStore& keys);

}  // namespace marcoro
