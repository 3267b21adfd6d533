// What the ranks of a group tell each other before their GPUs exchange anything, through the key
// store that they met in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "worker/collective/key_store.h"

namespace marcoro {

// What carries the sums of a model in device memory. Rank 0's choice counts for the whole group.
enum class DeviceCollective : uint8_t {
  // NCCL where each rank has a GPU of its own, with peer memory for small messages where all ranks
  // are on one host; peer memory alone where ranks share a GPU; else staged.
  kAuto,
  kNccl,        // an error where ranks share a GPU
  kPeerMemory,  // an error across hosts
  kStaged,      // the host's collectives, through the program's memory
};

// "auto", "nccl", "peer-memory"; the host's transports "shared-memory" and "gloo" are staged.
absl::StatusOr<DeviceCollective> ParseDeviceCollective(absl::string_view name);

// Where a rank's memory is.
struct RankDevice {
  DeviceCollective choice = DeviceCollective::kAuto;
  std::string host;  // empty: a host of its own
  std::string gpu;   // unique on its host

  friend bool operator==(const RankDevice&, const RankDevice&) = default;
};

// A line of text, for the key store. Decode: INVALID_ARGUMENT for what Encode cannot have written.
std::string EncodeRankDevice(const RankDevice& device);
absl::StatusOr<RankDevice> DecodeRankDevice(absl::string_view text);

struct DevicePath {
  bool nccl = false;
  bool peer_memory = false;
  bool may_do_without = false;  // if peer memory turns out not to be possible: NCCL, or staged
};

// From all ranks' devices, rank 0's first; the same on all ranks. Neither: staged.
// FAILED_PRECONDITION, naming the ranks that stand in the way, if rank 0's choice is not possible.
absl::StatusOr<DevicePath> ChooseDevicePath(const std::vector<RankDevice>& devices);

// A rank's place in a key store.
class Rendezvous {
 public:
  // Whatever is waited for comes within `timeout` from now.
  Rendezvous(KeyStore& keys, std::string prefix, int rank, int size, absl::Duration timeout);

  // Every rank's value, rank 0's first. `what` is different in each call. DEADLINE_EXCEEDED if a
  // rank's does not come. Values may hold any bytes.
  absl::StatusOr<std::vector<std::string>> Exchange(absl::string_view what,
                                                    absl::string_view value);
  // Rank 0's value, which the others' is ignored for.
  absl::StatusOr<std::string> FromRoot(absl::string_view what, absl::string_view value);
  // Fails on all ranks if it did on one: with the own failure there, elsewhere FAILED_PRECONDITION,
  // which names a rank and its reason.
  absl::Status Agree(absl::string_view what, const absl::Status& own);

  absl::Duration TimeLeft() const;

 private:
  std::string Key(absl::string_view what, int rank) const;

  KeyStore& keys_;
  const std::string prefix_;
  const int rank_;
  const int size_;
  const absl::Time deadline_;
};

}  // namespace marcoro
