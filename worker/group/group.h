// A tensor-parallel group as one of its ranks sees it: joining, and the communicators that carry
// its steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"

namespace marcoro {

class GroupService;

// What carries the group's collectives. Rank 0's choice counts for the whole group.
enum class Transport : uint8_t {
  kAuto,          // shared memory where all ranks can map one segment, else Gloo
  kSharedMemory,  // an error where they cannot
  kGloo,          // TCP
};

// "auto", "shared-memory" or "gloo".
absl::StatusOr<Transport> ParseTransport(absl::string_view name);

struct GroupOptions {
  int rank = 0;
  int world_size = 1;  // 1, 2, 4 or 8
  // Where rank 0 serves GroupService, "host:port". Not used on rank 0.
  std::string root_address;
  // Numerics fingerprint and model identity; a rank whose value differs from rank 0's is refused.
  std::string fingerprint;
  // HostIdentity(), or empty for a rank that shall not use shared memory.
  std::string host;
  // The network interface (or the address of one) that Gloo listens on. Empty: the one that leads
  // to the other ranks.
  std::string interface;
  Transport transport = Transport::kAuto;
  // How long ranks wait for each other at the start: the slowest rank's loading time must fit.
  absl::Duration join_timeout = absl::Minutes(10);
  // Longest time that one collective may take once the group runs.
  absl::Duration collective_timeout = absl::Seconds(60);
  // Makes what carries the model's data where that lies in a device's memory, once the host's
  // communicators are there: `host` is Group::data()'s, which outlives the result. Called on every
  // rank or on none. Null, or a null result: the host's carry the model's data too.
  std::function<absl::StatusOr<std::unique_ptr<Communicator>>(KeyStore& keys, Communicator& host,
                                                              absl::Duration time_left)>
      make_device_communicator = nullptr;
  // While idle, rank 0 sends a heartbeat at least this often (StepBroadcast::SendHeartbeat).
  absl::Duration heartbeat_interval = absl::Seconds(1);
};

class Group {
 public:
  // Returns when all ranks have joined and are connected. Rank 0 passes its GroupService, already
  // reachable for its peers; the others pass nullptr, and wait for rank 0 to come up. With
  // world_size 1 nothing is contacted and service may be nullptr. Errors: INVALID_ARGUMENT
  // (options), DEADLINE_EXCEEDED (names the ranks that are missing), FAILED_PRECONDITION (world
  // size or fingerprint differ; shared memory demanded but not possible), ALREADY_EXISTS (rank
  // taken), ABORTED (rank 0 restarted meanwhile).
  static absl::StatusOr<std::unique_ptr<Group>> Join(const GroupOptions& options,
                                                     GroupService* service);

  // Called by Join; all communicators non-null.
  Group(const GroupOptions& options, std::string epoch, Transport transport,
        std::unique_ptr<Communicator> control, std::unique_ptr<Communicator> data);

  int rank() const { return data_->rank(); }
  int size() const { return data_->size(); }
  // Identifies this incarnation of the group; the same on all ranks.
  const std::string& epoch() const { return epoch_; }
  // What was agreed on: kSharedMemory or kGloo; kAuto in a group of one, which needs neither.
  Transport transport() const { return transport_; }
  absl::Duration heartbeat_interval() const { return heartbeat_interval_; }

  // For StepBroadcast. An operation may take heartbeat_interval + collective_timeout, since peers
  // wait in it while idle.
  Communicator& control() { return *control_; }
  // For the model. An operation may take collective_timeout.
  Communicator& data() { return device_data_ != nullptr ? *device_data_ : *data_; }
  // Called by Join.
  void SetDeviceData(std::unique_ptr<Communicator> device_data) {
    device_data_ = std::move(device_data);
  }

 private:
  std::string epoch_;
  Transport transport_;
  absl::Duration heartbeat_interval_;
  std::unique_ptr<Communicator> control_;
  std::unique_ptr<Communicator> data_;
  std::unique_ptr<Communicator> device_data_;  // uses data_
};

}  // namespace marcoro
