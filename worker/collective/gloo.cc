#include "worker/collective/gloo.h"

#include <gloo/rendezvous/context.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/collective/gloo_key_store.h"
#include "worker/collective/tree_sum.h"

namespace marcoro {
namespace {

using Clock = std::chrono::steady_clock;
using gloo::transport::UnboundBuffer;

// From three ranks on, messages above this size are added by slices, each by one rank; below it
// every rank receives everything, which is more traffic but one round trip instead of two.
constexpr size_t kSliceThresholdBytes = 32 << 10;
constexpr size_t kSliceAlignment = 16;
// Bounds the memory for what is received.
constexpr size_t kMaxPieceElements = size_t{1} << 20;
// A broadcast begins with a frame of this size, length and the first bytes, so that a small message
// takes one round.
constexpr size_t kFrameBytes = 4096;
constexpr uint64_t kMaxBroadcastBytes = uint64_t{1} << 30;

class GlooCommunicator : public Communicator {
 public:
  GlooCommunicator(std::shared_ptr<gloo::rendezvous::Context> context, absl::Duration timeout)
      : context_(std::move(context)),
        rank_(context_->rank),
        size_(context_->size),
        timeout_(absl::ToChronoNanoseconds(timeout)),
        frame_(kFrameBytes) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  // Returns when all ranks have all their connections. One that left as soon as it had its own
  // would break those that others are still making with it.
  absl::Status MeetOthers(Clock::time_point deadline) {
    float nothing = 0;
    return RunUntil(deadline, "first meeting", [&] { ReduceWhole(absl::MakeSpan(&nothing, 1)); });
  }

  absl::Status AllReduceTree(absl::Span<float> data) override {
    const bool slices = size_ > 2 && data.size() * sizeof(float) > kSliceThresholdBytes;
    return Run("all-reduce", [&] {
      for (size_t begin = 0; begin < data.size(); begin += kMaxPieceElements) {
        const absl::Span<float> part = data.subspan(begin, kMaxPieceElements);
        slices ? ReduceBySlices(part) : ReduceWhole(part);
      }
    });
  }

  absl::Status GatherToRoot(absl::Span<const float> send, absl::Span<float> receive) override {
    MARCORO_CHECK(rank_ != 0 || receive.size() == send.size() * static_cast<size_t>(size_));
    if (send.empty()) return failure_;
    return Run("gather", [&] {
      const uint64_t slot = NextSlot();
      const size_t bytes = send.size() * sizeof(float);
      if (rank_ != 0) {
        auto buffer = Buffer(const_cast<float*>(send.data()), bytes);
        buffer->send(0, slot);
        WaitForSends(*buffer, 1);
        return;
      }
      auto buffer = Buffer(receive.data(), receive.size() * sizeof(float));
      for (int rank = 1; rank < size_; ++rank) {
        buffer->recv(rank, slot, static_cast<size_t>(rank) * bytes, bytes);
      }
      if (receive.data() != send.data()) std::memcpy(receive.data(), send.data(), bytes);
      WaitForReceives(*buffer, size_ - 1);
    });
  }

  absl::Status BroadcastFromRoot(std::string* message) override {
    return Run("broadcast", [&] { rank_ == 0 ? SendMessage(*message) : ReceiveMessage(message); });
  }

 private:
  // Everybody sends everything to everybody.
  void ReduceWhole(absl::Span<float> data) {
    const uint64_t slot = NextSlot();
    const size_t bytes = data.size() * sizeof(float);
    received_.resize(std::max(received_.size(), data.size() * static_cast<size_t>(size_)));
    auto out = Buffer(data.data(), bytes);
    auto in = Buffer(received_.data(), bytes * static_cast<size_t>(size_));
    for (int rank : Others()) {
      in->recv(rank, slot, static_cast<size_t>(rank) * bytes, bytes);
      out->send(rank, slot);
    }
    WaitForReceives(*in, size_ - 1);
    WaitForSends(*out, size_ - 1);
    TreeSum(Parts(data.data(), data.size()), data.size(), data.data());
  }

  // Rank r receives everybody's r-th slice, adds it, and sends the sum to everybody.
  void ReduceBySlices(absl::Span<float> data) {
    const size_t ranks = static_cast<size_t>(size_);
    const size_t slice =
        (data.size() + ranks * kSliceAlignment - 1) / (ranks * kSliceAlignment) * kSliceAlignment;
    const auto begin_of = [&](int rank) {
      return std::min(data.size(), static_cast<size_t>(rank) * slice);
    };
    const auto bytes_of = [&](int rank) {
      return (begin_of(rank + 1) - begin_of(rank)) * sizeof(float);
    };
    const size_t own_bytes = bytes_of(rank_);
    const uint64_t parts_slot = NextSlot();
    const uint64_t sums_slot = NextSlot();
    received_.resize(std::max(received_.size(), ranks * slice));
    auto all = Buffer(data.data(), data.size() * sizeof(float));
    auto parts = Buffer(received_.data(), own_bytes * ranks);
    int sends = 0;
    for (int rank : Others()) {
      if (own_bytes > 0) {
        parts->recv(rank, parts_slot, static_cast<size_t>(rank) * own_bytes, own_bytes);
      }
      if (bytes_of(rank) == 0) continue;
      all->send(rank, parts_slot, begin_of(rank) * sizeof(float), bytes_of(rank));
      ++sends;
    }
    if (own_bytes > 0) WaitForReceives(*parts, size_ - 1);
    WaitForSends(*all, sends);

    float* own = data.data() + begin_of(rank_);
    TreeSum(Parts(own, own_bytes / sizeof(float)), own_bytes / sizeof(float), own);
    for (int rank : Others()) {
      if (bytes_of(rank) > 0) {
        all->recv(rank, sums_slot, begin_of(rank) * sizeof(float), bytes_of(rank));
      }
      if (own_bytes > 0) all->send(rank, sums_slot, begin_of(rank_) * sizeof(float), own_bytes);
    }
    WaitForReceives(*all, sends);
    if (own_bytes > 0) WaitForSends(*all, size_ - 1);
  }

  void SendMessage(const std::string& message) {
    MARCORO_CHECK(message.size() <= kMaxBroadcastBytes);
    const uint64_t length = message.size();
    const size_t first = std::min(message.size(), kFrameBytes - sizeof(length));
    std::memcpy(frame_.data(), &length, sizeof(length));
    std::memcpy(frame_.data() + sizeof(length), message.data(), first);
    const uint64_t frame_slot = NextSlot();
    const uint64_t rest_slot = NextSlot();
    auto frame = Buffer(frame_.data(), kFrameBytes);
    auto rest = Buffer(const_cast<char*>(message.data()) + first, message.size() - first);
    for (int rank : Others()) {
      frame->send(rank, frame_slot);
      if (rest->size > 0) rest->send(rank, rest_slot);
    }
    WaitForSends(*frame, size_ - 1);
    if (rest->size > 0) WaitForSends(*rest, size_ - 1);
  }

  void ReceiveMessage(std::string* message) {
    const uint64_t frame_slot = NextSlot();
    const uint64_t rest_slot = NextSlot();
    auto frame = Buffer(frame_.data(), kFrameBytes);
    frame->recv(0, frame_slot);
    WaitForReceives(*frame, 1);
    uint64_t length = 0;
    std::memcpy(&length, frame_.data(), sizeof(length));
    if (length > kMaxBroadcastBytes) {
      throw gloo::IoException(absl::StrCat("a message of ", length, " bytes"));
    }
    const size_t first = std::min<size_t>(length, kFrameBytes - sizeof(length));
    message->assign(frame_.data() + sizeof(length), first);
    if (length == first) return;
    message->resize(length);
    auto rest = Buffer(message->data() + first, length - first);
    rest->recv(0, rest_slot);
    WaitForReceives(*rest, 1);
  }

  template <typename Body>
  absl::Status Run(const char* operation, Body body) {
    return RunUntil(Clock::now() + timeout_, operation, body);
  }

  // Gloo throws one kind of exception for whatever goes wrong; afterwards its connections are in an
  // unknown state.
  template <typename Body>
  absl::Status RunUntil(Clock::time_point deadline, const char* operation, Body body) {
    if (!failure_.ok()) return failure_;
    deadline_ = deadline;
    try {
      body();
    } catch (const std::exception& exception) {
      const std::string message =
          absl::StrCat("Gloo ", operation, " on rank ", rank_, ": ", exception.what());
      failure_ = Clock::now() >= deadline_ ? absl::DeadlineExceededError(message)
                                           : absl::UnavailableError(message);
    }
    return failure_;
  }

  std::unique_ptr<UnboundBuffer> Buffer(void* data, size_t bytes) {
    return context_->createUnboundBuffer(data, bytes);
  }

  // Operations come in the same order on all ranks, so their numbers agree.
  uint64_t NextSlot() { return ++slot_; }

  // Every other rank, beginning with the next, so that not all send to the same one first.
  std::vector<int> Others() const {
    std::vector<int> others;
    for (int distance = 1; distance < size_; ++distance) {
      others.push_back((rank_ + distance) % size_);
    }
    return others;
  }

  // What is left, at least 1 ms: for Gloo 0 means for ever.
  std::chrono::milliseconds TimeLeft() const {
    return std::max(std::chrono::milliseconds(1),
                    std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now()));
  }
  void WaitForReceives(UnboundBuffer& buffer, int count) {
    for (int i = 0; i < count; ++i) buffer.waitRecv(TimeLeft());
  }
  void WaitForSends(UnboundBuffer& buffer, int count) {
    for (int i = 0; i < count; ++i) buffer.waitSend(TimeLeft());
  }

  // Each rank's `count` elements in received_, one's own where they are.
  absl::Span<const float* const> Parts(const float* own, size_t count) {
    for (int rank = 0; rank < size_; ++rank) {
      const size_t index = static_cast<size_t>(rank);
      parts_[index] = rank == rank_ ? own : received_.data() + index * count;
    }
    return absl::MakeConstSpan(parts_.data(), static_cast<size_t>(size_));
  }

  const std::shared_ptr<gloo::rendezvous::Context> context_;
  const int rank_;
  const int size_;
  const std::chrono::nanoseconds timeout_;
  Clock::time_point deadline_;
  uint64_t slot_ = 0;
  std::vector<char> frame_;
  std::vector<float> received_;
  std::array<const float*, 8> parts_ = {};
  absl::Status failure_;  // of an earlier operation
};

absl::Status CannotListen(const std::string& interface, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on \"", interface,
                   "\", which should name a network interface or an address of this host: ", why));
}

// A host name's first address, in figures. Gloo would look names up itself, but where that fails it
// goes on with a list of addresses that nobody has set.
absl::StatusOr<std::string> AddressOf(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (failed != 0) return CannotListen(host, gai_strerror(failed));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  char address[NI_MAXHOST];
  const int unnamed = getnameinfo(addresses->ai_addr, addresses->ai_addrlen, address,
                                  sizeof(address), nullptr, 0, NI_NUMERICHOST);
  if (unnamed != 0) return CannotListen(host, gai_strerror(unnamed));
  return address;
}

absl::StatusOr<std::shared_ptr<gloo::transport::Device>> Listen(const std::string& interface) {
  gloo::transport::tcp::attr attributes;
  if (if_nametoindex(interface.c_str()) != 0) {
    attributes.iface = interface;
  } else {
    absl::StatusOr<std::string> address = AddressOf(interface);
    if (!address.ok()) return address.status();
    attributes.hostname = *std::move(address);
  }
  try {
    return gloo::transport::tcp::CreateDevice(attributes);
  } catch (const std::exception& exception) {
    return CannotListen(interface, exception.what());
  }
}

// A write to a connection that the peer has closed raises SIGPIPE, which would end the process
// before the error can be reported.
void IgnoreBrokenPipes() {
  struct sigaction current = {};
  if (sigaction(SIGPIPE, nullptr, &current) == 0 && current.sa_handler == SIG_DFL) {
    std::signal(SIGPIPE, SIG_IGN);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeGlooCommunicator(const GlooOptions& options,
                                                                   KeyStore& keys) {
  MARCORO_CHECK(IsTreeSize(options.size) && options.rank >= 0 && options.rank < options.size);
  IgnoreBrokenPipes();
  auto device = Listen(options.interface);
  if (!device.ok()) return device.status();
  const auto started = Clock::now();
  const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(
      absl::ToChronoNanoseconds(options.connect_timeout));
  GlooKeyStore store(&keys, options.key_prefix, options.connect_timeout);
  try {
    auto context = std::make_shared<gloo::rendezvous::Context>(options.rank, options.size);
    context->setTimeout(std::max(timeout, std::chrono::milliseconds(1)));
    context->connectFullMesh(store, *device);
    auto communicator = std::make_unique<GlooCommunicator>(std::move(context), options.timeout);
    const absl::Status met = communicator->MeetOthers(started + timeout);
    if (!met.ok()) return met;
    return communicator;
  } catch (const std::exception& exception) {
    if (!store.status().ok()) return store.status();
    const std::string message = absl::StrCat("Gloo cannot connect rank ", options.rank,
                                             " with its peers: ", exception.what());
    return Clock::now() - started >= timeout ? absl::DeadlineExceededError(message)
                                             : absl::UnavailableError(message);
  }
}

}  // namespace marcoro
