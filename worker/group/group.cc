#include "worker/group/group.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "worker/collective/gloo.h"
#include "worker/collective/shared_memory.h"
#include "worker/collective/single.h"
#include "worker/collective/tree_sum.h"
#include "worker/group/group_client.h"
#include "worker/group/group_service.h"
#include "worker/group/local_address.h"

namespace marcoro {
namespace {

// The key under which rank 0 says what all use.
constexpr char kTransportKey[] = "transport";
constexpr char kLoopback[] = "127.0.0.1";
// Plans are small, most of them a few hundred bytes.
constexpr size_t kControlSlotBytes = 64 << 10;

absl::string_view Name(Transport transport) {
  switch (transport) {
    case Transport::kAuto:
      return "auto";
    case Transport::kSharedMemory:
      return "shared-memory";
    case Transport::kGloo:
      return "gloo";
  }
  return "";
}

absl::Status CheckOptions(const GroupOptions& options, const GroupService* service) {
  if (!IsTreeSize(options.world_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group has 1, 2, 4 or 8 ranks, not ", options.world_size));
  }
  if (options.rank < 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " is not one of 0 to ", options.world_size - 1));
  }
  if (options.world_size == 1) return absl::OkStatus();
  if (options.rank == 0 && service == nullptr) {
    return absl::InvalidArgumentError("rank 0 needs a GroupService");
  }
  if (options.rank != 0 && options.root_address.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " needs the address of rank 0"));
  }
  return absl::OkStatus();
}

// Joins step by step; every step has what is left of join_timeout.
class Joining {
 public:
  explicit Joining(const GroupOptions& options)
      : options_(options), deadline_(absl::Now() + options.join_timeout) {}

  absl::StatusOr<std::unique_ptr<Group>> AsRoot(GroupService* service) {
    absl::StatusOr<std::vector<GroupService::Peer>> peers = service->WaitForPeers(TimeLeft());
    if (!peers.ok()) return peers.status();
    epoch_ = service->epoch();
    keys_ = &service->keys();
    absl::StatusOr<std::string> interface = RootInterface(*peers);
    if (!interface.ok()) return interface.status();
    interface_ = *std::move(interface);
    const Transport transport = Choose(*peers);
    if (absl::Status told = keys_->Set(kTransportKey, std::string(Name(transport))); !told.ok()) {
      return told;
    }
    return Connect(transport);
  }

  absl::StatusOr<std::unique_ptr<Group>> AsPeer() {
    GroupClientOptions client_options;
    client_options.root_address = options_.root_address;
    client_options.rank = options_.rank;
    client_options.world_size = options_.world_size;
    client_options.fingerprint = options_.fingerprint;
    // Who wants Gloo shares no memory; rank 0 then chooses Gloo for all.
    if (options_.transport != Transport::kGloo) client_options.host = options_.host;
    auto client = GroupClient::Join(client_options, TimeLeft());
    if (!client.ok()) return client.status();
    epoch_ = (*client)->epoch();
    keys_ = client->get();
    interface_ = options_.interface;
    if (interface_.empty()) {
      absl::StatusOr<std::string> address = LocalAddressTowards(options_.root_address);
      if (!address.ok()) return address.status();
      interface_ = *std::move(address);
    }
    absl::StatusOr<std::string> name = keys_->Get(kTransportKey, TimeLeft());
    if (!name.ok()) return name.status();
    absl::StatusOr<Transport> transport = ParseTransport(*name);
    if (!transport.ok()) return transport.status();
    return Connect(*transport);
  }

 private:
  absl::Duration TimeLeft() const {
    return std::max(absl::ZeroDuration(), deadline_ - absl::Now());
  }

  // Shared memory is worth trying only if all ranks say that they are in one place.
  Transport Choose(const std::vector<GroupService::Peer>& peers) const {
    if (options_.transport != Transport::kAuto) return options_.transport;
    const bool together =
        !options_.host.empty() &&
        std::all_of(peers.begin(), peers.end(),
                    [&](const GroupService::Peer& peer) { return peer.host == options_.host; });
    return together ? Transport::kAuto : Transport::kGloo;
  }

  // The address through which rank 0 sees its peers; one from another host tells more than one from
  // this.
  absl::StatusOr<std::string> RootInterface(const std::vector<GroupService::Peer>& peers) const {
    if (!options_.interface.empty()) return options_.interface;
    std::string result = kLoopback;
    for (const GroupService::Peer& peer : peers) {
      absl::StatusOr<std::string> address = AddressOfGrpcPeer(peer.address);
      if (!address.ok()) continue;  // a Unix socket: a peer on this host
      absl::StatusOr<std::string> own = LocalAddressTowards(*address);
      if (!own.ok()) return own.status();
      if (!absl::StartsWith(*own, "127.") && *own != "::1") return own;
      result = *std::move(own);
    }
    return result;
  }

  // kAuto here means: shared memory, and Gloo if some rank cannot map it. All ranks come to the
  // same result, since MakeSharedMemoryCommunicator fails on all if on one.
  absl::StatusOr<std::unique_ptr<Group>> Connect(Transport transport) {
    absl::StatusOr<std::unique_ptr<Group>> group = ConnectHosts(transport);
    if (!group.ok() || !options_.make_device_communicator) return group;
    auto device = options_.make_device_communicator(*keys_, (*group)->data(), TimeLeft());
    if (!device.ok()) return device.status();
    (*group)->SetDeviceData(*std::move(device));
    return group;
  }

  absl::StatusOr<std::unique_ptr<Group>> ConnectHosts(Transport transport) {
    if (transport != Transport::kGloo) {
      absl::StatusOr<std::unique_ptr<Group>> group = ConnectSharedMemory();
      if (transport == Transport::kSharedMemory || !absl::IsFailedPrecondition(group.status())) {
        return group;
      }
    }
    return ConnectGloo();
  }

  absl::Duration ControlTimeout() const {
    return options_.heartbeat_interval + options_.collective_timeout;
  }

  absl::StatusOr<std::unique_ptr<Group>> ConnectSharedMemory() {
    SharedMemoryOptions options;
    options.rank = options_.rank;
    options.size = options_.world_size;
    options.key_prefix = "data/shared-memory";
    options.connect_timeout = TimeLeft();
    options.timeout = options_.collective_timeout;
    auto data = MakeSharedMemoryCommunicator(options, *keys_);
    if (!data.ok()) return data.status();
    options.key_prefix = "control/shared-memory";
    options.slot_bytes = kControlSlotBytes;
    options.connect_timeout = TimeLeft();
    options.timeout = ControlTimeout();
    auto control = MakeSharedMemoryCommunicator(options, *keys_);
    if (!control.ok()) return control.status();
    return std::make_unique<Group>(options_, epoch_, Transport::kSharedMemory, *std::move(control),
                                   *std::move(data));
  }

  absl::StatusOr<std::unique_ptr<Group>> ConnectGloo() {
    GlooOptions options;
    options.rank = options_.rank;
    options.size = options_.world_size;
    options.interface = interface_;
    options.key_prefix = "data/gloo";
    options.connect_timeout = TimeLeft();
    options.timeout = options_.collective_timeout;
    auto data = MakeGlooCommunicator(options, *keys_);
    if (!data.ok()) return data.status();
    options.key_prefix = "control/gloo";
    options.connect_timeout = TimeLeft();
    options.timeout = ControlTimeout();
    auto control = MakeGlooCommunicator(options, *keys_);
    if (!control.ok()) return control.status();
    return std::make_unique<Group>(options_, epoch_, Transport::kGloo, *std::move(control),
                                   *std::move(data));
  }

  const GroupOptions& options_;
  const absl::Time deadline_;
  std::string epoch_;
  std::string interface_;
  KeyStore* keys_ = nullptr;
};

}  // namespace

absl::StatusOr<Transport> ParseTransport(absl::string_view name) {
  for (const Transport transport : {Transport::kAuto, Transport::kSharedMemory, Transport::kGloo}) {
    if (name == Name(transport)) return transport;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is none of auto, shared-memory, gloo"));
}

absl::StatusOr<std::unique_ptr<Group>> Group::Join(const GroupOptions& options,
                                                   GroupService* service) {
  if (absl::Status status = CheckOptions(options, service); !status.ok()) return status;
  if (options.world_size == 1) {
    return std::make_unique<Group>(options, service != nullptr ? service->epoch() : "",
                                   Transport::kAuto, MakeSingleCommunicator(),
                                   MakeSingleCommunicator());
  }
  Joining joining(options);
  return options.rank == 0 ? joining.AsRoot(service) : joining.AsPeer();
}

Group::Group(const GroupOptions& options, std::string epoch, Transport transport,
             std::unique_ptr<Communicator> control, std::unique_ptr<Communicator> data)
    : epoch_(std::move(epoch)),
      transport_(transport),
      heartbeat_interval_(options.heartbeat_interval),
      control_(std::move(control)),
      data_(std::move(data)) {}

}  // namespace marcoro
