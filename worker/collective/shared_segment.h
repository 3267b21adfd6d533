// A memory segment that the ranks of one host map, with a flag for each rank and a way to see that
// a rank is gone.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// What one rank tells the others. The sequence number is a futex: who waits for it may sleep on it.
struct alignas(128) RankFlags {
  std::atomic<uint32_t> sequence;  // number of exchanges this rank has published
  std::atomic<uint32_t> sleepers;  // ranks that (are about to) sleep until it grows
  std::atomic<int32_t> core;       // where it ran when it published last
  uint64_t operation[2];           // what the exchanges of even and odd number belong to
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// The segment is a memory file without a name: rank 0 creates it, the others open it through rank
// 0's /proc entry, and the kernel frees it with its last user, however that one ends. Each rank
// holds a lock on one byte of the file for as long as it lives; the kernel releases the lock with
// the rank's last descriptor, which is what the others look at.
class SharedSegment {
 public:
  static constexpr int kMaxRanks = 8;

  // Rank 0's. `slot_bytes` is a multiple of 4096.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Create(int ranks, size_t slot_bytes);
  // The other ranks'; `handle` is what rank 0's handle() returned.
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Open(absl::string_view handle, int rank,
                                                             int ranks, size_t slot_bytes);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  // Says to other processes of this host where the segment is; contains a random number by which
  // they recognise it.
  const std::string& handle() const { return handle_; }

  RankFlags& flags(int rank) const;
  // One of the rank's two slots.
  char* slot(int rank, uint32_t parity) const;

  // Whether the rank still holds its lock. Not for one's own rank.
  bool IsAlive(int rank) const;

 private:
  struct Header;

  SharedSegment(int file, int ranks, size_t slot_bytes);
  absl::Status Map();
  absl::Status LockAlive(int rank);
  size_t TotalBytes() const;

  const int file_;
  const int ranks_;
  const size_t slot_bytes_;
  char* base_ = nullptr;
  std::string handle_;
};

}  // namespace marcoro
