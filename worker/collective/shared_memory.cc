#include "worker/collective/shared_memory.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/check.h"
#include "worker/collective/shared_flags.h"
#include "worker/collective/shared_segment.h"
#include "worker/collective/tree_sum.h"

namespace marcoro {
namespace {

// From three ranks on, messages above this size are added by slices, each by one rank; below it
// each rank adds everything, which reads more but waits once instead of twice.
constexpr size_t kSliceThresholdBytes = 32 << 10;
// Slices begin at cache lines.
constexpr size_t kSliceAlignment = 16;
constexpr uint64_t kMaxBroadcastBytes = uint64_t{1} << 30;

enum Operation : uint64_t { kAllReduce = 1, kSlices = 2, kGather = 3, kBroadcast = 4 };

// What each exchange belongs to, so that ranks that went apart fail instead of mixing their data
// up.
uint64_t Describe(Operation operation, uint64_t elements) {
  return (static_cast<uint64_t>(operation) << 56) | elements;
}

// All data moves in exchanges, numbered alike on all ranks. In exchange n a rank writes its slot of
// parity n % 2, publishes n, waits for those it needs, and reads their slots of the same parity. It
// may write for n + 1 only when all have published n, which they do after they have read what they
// need of n - 1: the slots of the other parity are free again.
class SharedMemoryCommunicator : public Communicator {
 public:
  SharedMemoryCommunicator(const SharedMemoryOptions& options,
                           std::unique_ptr<SharedSegment> segment)
      : rank_(options.rank),
        size_(options.size),
        slot_bytes_(options.slot_bytes),
        timeout_(absl::ToChronoNanoseconds(options.timeout)),
        segment_(std::move(segment)) {
    // Spinning pays when every rank has a core, and takes the others' time when not.
    if (size_ <= sysconf(_SC_NPROCESSORS_ONLN)) spin_ = absl::ToChronoMicroseconds(options.spin);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  absl::Status CheckPeers() const override {
    for (int rank = 0; rank < size_; ++rank) {
      if (rank != rank_ && !segment_->IsAlive(rank)) {
        return absl::UnavailableError(absl::StrCat("rank ", rank, " is gone"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AllReduceTree(absl::Span<float> data) override {
    if (!failure_.ok()) return failure_;
    StartClock();
    const bool slices = size_ > 2 && data.size() * sizeof(float) > kSliceThresholdBytes;
    const size_t piece = slot_bytes_ / sizeof(float);
    for (size_t begin = 0; begin < data.size() && failure_.ok(); begin += piece) {
      const absl::Span<float> part = data.subspan(begin, piece);
      failure_ = slices ? ReduceBySlices(part) : ReduceWhole(part);
    }
    return failure_;
  }

  absl::Status GatherToRoot(absl::Span<const float> send, absl::Span<float> receive) override {
    if (!failure_.ok()) return failure_;
    MARCORO_CHECK(rank_ != 0 || receive.size() == send.size() * static_cast<size_t>(size_));
    StartClock();
    const size_t piece = slot_bytes_ / sizeof(float);
    for (size_t begin = 0; begin < send.size() && failure_.ok(); begin += piece) {
      failure_ = GatherPiece(send, begin, std::min(piece, send.size() - begin), receive);
    }
    if (rank_ == 0 && failure_.ok() && !send.empty() && receive.data() != send.data()) {
      std::memcpy(receive.data(), send.data(), send.size() * sizeof(float));
    }
    return failure_;
  }

  absl::Status BroadcastFromRoot(std::string* message) override {
    if (!failure_.ok()) return failure_;
    StartClock();
    failure_ = rank_ == 0 ? SendMessage(*message) : ReceiveMessage(message);
    return failure_;
  }

 private:
  absl::Status ReduceWhole(absl::Span<float> data) {
    const size_t bytes = data.size() * sizeof(float);
    if (absl::Status status = BeginExchange(); !status.ok()) return status;
    std::memcpy(slot(rank_), data.data(), bytes);
    Publish(Describe(kAllReduce, data.size()));
    if (absl::Status status = WaitForAll(); !status.ok()) return status;
    TreeSum(Parts(data.data(), 0), data.size(), data.data());
    return absl::OkStatus();
  }

  // Rank r adds the r-th slice for all.
  absl::Status ReduceBySlices(absl::Span<float> data) {
    const size_t ranks = static_cast<size_t>(size_);
    const size_t slice =
        (data.size() + ranks * kSliceAlignment - 1) / (ranks * kSliceAlignment) * kSliceAlignment;
    const auto slice_of = [&](int rank) {
      return data.subspan(std::min(data.size(), static_cast<size_t>(rank) * slice), slice);
    };
    const absl::Span<float> own = slice_of(rank_);
    const size_t own_begin = static_cast<size_t>(own.data() - data.data());

    if (absl::Status status = BeginExchange(); !status.ok()) return status;
    std::memcpy(slot(rank_), data.data(), data.size() * sizeof(float));
    Publish(Describe(kAllReduce, data.size()));
    if (absl::Status status = WaitForAll(); !status.ok()) return status;
    const auto parts = Parts(own.data(), own_begin);

    if (absl::Status status = BeginExchange(); !status.ok()) return status;
    TreeSum(parts, own.size(), reinterpret_cast<float*>(slot(rank_)));
    Publish(Describe(kSlices, data.size()));
    if (absl::Status status = WaitForAll(); !status.ok()) return status;
    for (int rank = 0; rank < size_; ++rank) {
      const absl::Span<float> part = slice_of(rank);
      if (!part.empty()) std::memcpy(part.data(), slot(rank), part.size() * sizeof(float));
    }
    return absl::OkStatus();
  }

  // Root reads each rank's piece as it comes; the others go on at once.
  absl::Status GatherPiece(absl::Span<const float> send, size_t begin, size_t count,
                           absl::Span<float> receive) {
    if (absl::Status status = BeginExchange(); !status.ok()) return status;
    if (rank_ != 0) std::memcpy(slot(rank_), &send[begin], count * sizeof(float));
    Publish(Describe(kGather, send.size()));
    if (rank_ != 0) return absl::OkStatus();
    for (int rank = 1; rank < size_; ++rank) {
      if (absl::Status status = WaitFor(rank); !status.ok()) return status;
      std::memcpy(&receive[static_cast<size_t>(rank) * send.size() + begin], slot(rank),
                  count * sizeof(float));
    }
    return absl::OkStatus();
  }

  // The first slot begins with the length of the whole message.
  absl::Status SendMessage(absl::string_view message) {
    MARCORO_CHECK(message.size() <= kMaxBroadcastBytes);
    const uint64_t length = message.size();
    size_t header = sizeof(length);
    do {
      if (absl::Status status = BeginExchange(); !status.ok()) return status;
      if (header > 0) std::memcpy(slot(0), &length, sizeof(length));
      const absl::string_view part = message.substr(0, slot_bytes_ - header);
      std::memcpy(slot(0) + header, part.data(), part.size());
      Publish(Describe(kBroadcast, 0));
      message.remove_prefix(part.size());
      header = 0;
    } while (!message.empty());
    return absl::OkStatus();
  }

  absl::Status ReceiveMessage(std::string* message) {
    message->clear();
    uint64_t length = 0;
    size_t header = sizeof(length);
    do {
      if (absl::Status status = BeginExchange(); !status.ok()) return status;
      Publish(Describe(kBroadcast, 0));
      if (absl::Status status = WaitFor(0); !status.ok()) return status;
      if (header > 0) std::memcpy(&length, slot(0), sizeof(length));
      if (length > kMaxBroadcastBytes) {
        return absl::InternalError(absl::StrCat("a message of ", length, " bytes"));
      }
      message->append(slot(0) + header,
                      std::min<uint64_t>(slot_bytes_ - header, length - message->size()));
      header = 0;
    } while (message->size() < length);
    return absl::OkStatus();
  }

  void StartClock() { deadline_ = std::chrono::steady_clock::now() + timeout_; }

  absl::Status BeginExchange() {
    ++exchange_;
    for (int rank = 0; rank < size_; ++rank) {
      if (absl::Status status = WaitUntilReached(rank, exchange_ - 1); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Publish(uint64_t operation) {
    RankFlags& flags = segment_->flags(rank_);
    flags.operation[exchange_ % 2] = operation;
    PublishSequence(flags, exchange_);
  }

  absl::Status WaitForAll() {
    for (int rank = 0; rank < size_; ++rank) {
      if (absl::Status status = WaitFor(rank); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // Until the rank's slot of this exchange can be read.
  absl::Status WaitFor(int rank) {
    if (absl::Status status = WaitUntilReached(rank, exchange_); !status.ok()) return status;
    const uint64_t theirs = segment_->flags(rank).operation[exchange_ % 2];
    const uint64_t ours = segment_->flags(rank_).operation[exchange_ % 2];
    if (theirs != ours) {
      return absl::InternalError(absl::StrCat("rank ", rank, " is in operation ", absl::Hex(theirs),
                                              ", rank ", rank_, " in ", absl::Hex(ours),
                                              " of exchange ", exchange_));
    }
    return absl::OkStatus();
  }

  absl::Status WaitUntilReached(int rank, uint32_t exchange) {
    if (rank == rank_) return absl::OkStatus();
    return WaitForSequence(*segment_, rank, exchange, spin_, deadline_);
  }

  char* slot(int rank) const { return segment_->slot(rank, exchange_ % 2); }

  // Where each rank's part of the sum is, from element `begin` of the slots on; one's own is still
  // at hand.
  absl::Span<const float* const> Parts(const float* own, size_t begin) {
    for (int rank = 0; rank < size_; ++rank) {
      parts_[static_cast<size_t>(rank)] =
          rank == rank_ ? own : reinterpret_cast<const float*>(slot(rank)) + begin;
    }
    return absl::MakeConstSpan(parts_.data(), static_cast<size_t>(size_));
  }

  const int rank_;
  const int size_;
  const size_t slot_bytes_;
  const std::chrono::nanoseconds timeout_;
  std::chrono::microseconds spin_{0};
  const std::unique_ptr<SharedSegment> segment_;
  std::array<const float*, SharedSegment::kMaxRanks> parts_ = {};
  uint32_t exchange_ = 0;
  SteadyTime deadline_;
  absl::Status failure_;  // of an earlier operation: the ranks may have gone apart
};

constexpr absl::string_view kFailed = "failed: ";

// Rank 0 creates the segment and says where; the others open it.
absl::StatusOr<std::unique_ptr<SharedSegment>> CreateOrOpen(const SharedMemoryOptions& options,
                                                            KeyStore& keys) {
  const std::string key = absl::StrCat(options.key_prefix, "/segment");
  if (options.rank == 0) {
    auto segment = SharedSegment::Create(options.size, options.slot_bytes);
    const absl::Status told =
        keys.Set(key, segment.ok() ? (*segment)->handle()
                                   : absl::StrCat(kFailed, segment.status().message()));
    if (!told.ok()) return told;
    return segment;
  }
  absl::StatusOr<std::string> handle = keys.Get(key, options.connect_timeout);
  if (!handle.ok()) return handle.status();
  absl::string_view failure = *handle;
  if (absl::ConsumePrefix(&failure, kFailed)) return absl::FailedPreconditionError(failure);
  return SharedSegment::Open(*handle, options.rank, options.size, options.slot_bytes);
}

// Tells the others whether this rank has the segment, and fails if any has not.
absl::Status AgreeThatAllMapped(const SharedMemoryOptions& options, const absl::Status& own,
                                KeyStore& keys) {
  const auto key = [&](int rank) { return absl::StrCat(options.key_prefix, "/mapped/", rank); };
  const absl::Status told =
      keys.Set(key(options.rank), own.ok() ? "yes" : absl::StrCat(kFailed, own.message()));
  if (!told.ok()) return told;
  if (!own.ok()) return own;
  for (int rank = 0; rank < options.size; ++rank) {
    if (rank == options.rank) continue;
    absl::StatusOr<std::string> answer = keys.Get(key(rank), options.connect_timeout);
    if (!answer.ok()) return answer.status();
    absl::string_view failure = *answer;
    if (absl::ConsumePrefix(&failure, kFailed)) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", rank, ": ", failure));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeSharedMemoryCommunicator(
    const SharedMemoryOptions& options, KeyStore& keys) {
  MARCORO_CHECK(IsTreeSize(options.size) && options.rank >= 0 && options.rank < options.size);
  absl::StatusOr<std::unique_ptr<SharedSegment>> segment = CreateOrOpen(options, keys);
  const absl::Status agreed = AgreeThatAllMapped(options, segment.status(), keys);
  if (!agreed.ok()) return agreed;
  return std::make_unique<SharedMemoryCommunicator>(options, *std::move(segment));
}

}  // namespace marcoro
