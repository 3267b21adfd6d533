#include "worker/group/group_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "marcoro/worker/v1/group.grpc.pb.h"

namespace marcoro {
namespace {

namespace v1 = ::marcoro::worker::v1;

constexpr size_t kMaxInstanceBytes = 64;
constexpr size_t kMaxHostBytes = 256;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

std::string RandomEpoch() {
  absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

// A call that waits for a key without holding a thread. It ends when the key comes or the caller
// gives up, whichever wins the race for the watcher.
class KeyWait : public grpc::ServerUnaryReactor {
 public:
  KeyWait(LocalKeyStore* keys, const std::string& key, v1::GetKeyResponse* response) : keys_(keys) {
    absl::StatusOr<uint64_t> watcher =
        keys_->Watch(key, [this, response](const std::string& value) {
          response->set_value(value);
          Finish(grpc::Status::OK);
        });
    if (!watcher.ok()) {
      Finish(ToGrpc(watcher.status()));
    } else if (*watcher != 0) {
      watcher_.store(*watcher);
      // The caller may have given up before the number was known.
      if (cancelled_.load()) GiveUp();
    }
  }

  void OnCancel() override {
    cancelled_.store(true);
    GiveUp();
  }
  void OnDone() override { delete this; }

 private:
  void GiveUp() {
    const uint64_t watcher = watcher_.load();
    if (watcher != 0 && keys_->Unwatch(watcher)) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the caller gave up"));
    }
  }

  LocalKeyStore* const keys_;
  std::atomic<uint64_t> watcher_{0};
  std::atomic<bool> cancelled_{false};
};

}  // namespace

class GroupService::Impl : public v1::GroupService::CallbackService {
 public:
  explicit Impl(const GroupServiceOptions& options) : options_(options), epoch_(RandomEpoch()) {}

  grpc::ServerUnaryReactor* Join(grpc::CallbackServerContext* context,
                                 const v1::JoinRequest* request,
                                 v1::JoinResponse* response) override {
    const absl::Status status = Admit(*request, context->peer());
    if (status.ok()) response->set_epoch(epoch_);
    return FinishNow(context, status);
  }

  grpc::ServerUnaryReactor* SetKey(grpc::CallbackServerContext* context,
                                   const v1::SetKeyRequest* request,
                                   v1::SetKeyResponse* response) override {
    absl::Status status = CheckEpoch(request->epoch());
    if (status.ok()) status = keys_.Set(request->key(), request->value());
    return FinishNow(context, status);
  }

  grpc::ServerUnaryReactor* GetKey(grpc::CallbackServerContext* context,
                                   const v1::GetKeyRequest* request,
                                   v1::GetKeyResponse* response) override {
    const absl::Status status = CheckEpoch(request->epoch());
    if (!status.ok()) return FinishNow(context, status);
    return new KeyWait(&keys_, request->key(), response);
  }

  const std::string& epoch() const { return epoch_; }
  KeyStore& keys() { return keys_; }

  absl::StatusOr<std::vector<Peer>> WaitForPeers(absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const auto all_joined = [this] {
      mutex_.AssertReaderHeld();
      return members_.size() + 1 == static_cast<size_t>(options_.world_size);
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&all_joined), timeout)) {
      std::vector<int> missing;
      for (int rank = 1; rank < options_.world_size; ++rank) {
        if (!members_.contains(rank)) missing.push_back(rank);
      }
      return absl::DeadlineExceededError(
          absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "),
                       " did not join within ", absl::FormatDuration(timeout)));
    }
    std::vector<Peer> peers;
    for (const auto& [rank, member] : members_) peers.push_back(member.peer);
    return peers;
  }

 private:
  struct Member {
    std::string instance;
    Peer peer;
  };

  static grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context,
                                             const absl::Status& status) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }

  absl::Status CheckEpoch(const std::string& epoch) const {
    if (epoch == epoch_) return absl::OkStatus();
    return absl::AbortedError(absl::StrCat(
        "epoch ", epoch.substr(0, 64), " has ended: the group has restarted as epoch ", epoch_));
  }

  absl::Status Admit(const v1::JoinRequest& request, const std::string& address)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    if (request.world_size() != static_cast<uint32_t>(options_.world_size)) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", request.rank(), " was started for a group of ",
                       request.world_size(), ", rank 0 for a group of ", options_.world_size));
    }
    if (request.rank() == 0 || request.rank() >= request.world_size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", request.rank(), " cannot join: peers are ranks 1 to ", options_.world_size - 1));
    }
    if (request.numerics_fingerprint() != options_.fingerprint) {
      return absl::FailedPreconditionError(absl::StrCat(
          "rank ", request.rank(), " would compute other numbers than rank 0 (fingerprint ",
          request.numerics_fingerprint().substr(0, 256), ", rank 0 has ", options_.fingerprint,
          "): weights, options and processor family must be the same on all ranks"));
    }
    if (request.instance().size() > kMaxInstanceBytes || request.host().size() > kMaxHostBytes) {
      return absl::InvalidArgumentError("instance or host is too long");
    }
    absl::MutexLock lock(&mutex_);
    const auto [member, is_new] = members_.try_emplace(
        static_cast<int>(request.rank()), Member{request.instance(), {request.host(), address}});
    if (!is_new && (request.instance().empty() || member->second.instance != request.instance())) {
      return absl::AlreadyExistsError(
          absl::StrCat("rank ", request.rank(), " is taken by ", member->second.peer.address));
    }
    return absl::OkStatus();
  }

  const GroupServiceOptions options_;
  const std::string epoch_;
  LocalKeyStore keys_;
  absl::Mutex mutex_;
  std::map<int, Member> members_ ABSL_GUARDED_BY(mutex_);
};

GroupService::GroupService(const GroupServiceOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}
GroupService::~GroupService() = default;

grpc::Service* GroupService::service() { return impl_.get(); }
const std::string& GroupService::epoch() const { return impl_->epoch(); }
KeyStore& GroupService::keys() { return impl_->keys(); }

absl::StatusOr<std::vector<GroupService::Peer>> GroupService::WaitForPeers(absl::Duration timeout) {
  return impl_->WaitForPeers(timeout);
}

}  // namespace marcoro
