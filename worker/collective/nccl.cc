#include "worker/collective/nccl.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/runtime.h"
#include "worker/collective/nccl_group.h"
#include "worker/collective/nccl_peer_memory.h"
#include "worker/collective/nccl_plan.h"
#include "worker/collective/nccl_watchdog.h"
#include "worker/collective/tree_sum.h"

namespace marcoro {
namespace {

// A kernel that gave up names the rank it waited for: its word should come first.
constexpr absl::Duration kMargin = absl::Seconds(1);

std::string CudaErrorText(cudaError_t error) {
  return absl::StrCat(cudaGetErrorName(error), " (", cudaGetErrorString(error), ")");
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(const NcclOptions& options, int device, Communicator& host, cudaEvent_t mark)
      : options_(options),
        device_(device),
        host_(host),
        stream_(static_cast<cudaStream_t>(options.stream)),
        mark_(mark),
        queued_(options.timeout + kMargin) {}
  ~NcclCommunicator() override {
    watchdog_.reset();
    nccl_.reset();
    if (scratch_ != nullptr) cuda::FreeDevice(scratch_);
    cudaEventDestroy(mark_);
  }

  // At least one of both.
  absl::Status Start(std::unique_ptr<NcclGroup> nccl, std::unique_ptr<MappedPeerMemory> memory);

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  bool host_memory() const override { return false; }

  absl::Status NoteRepeated() override {
    absl::Status status = watchdog_->status();
    if (status.ok()) NoteQueued();
    return status;
  }

  absl::Status AllReduceTree(absl::Span<float> data) override {
    if (absl::Status status = watchdog_->status(); !status.ok()) return status;
    absl::Status status = AllReduce(data.data(), data.size(), IsOneShot(data.size()));
    NoteQueued();
    return status;
  }

  absl::StatusOr<bool> AllReduceAddRmsNorm(const Tensor& residual, const Tensor& delta,
                                           const float* weight, float epsilon,
                                           const Tensor& out) override {
    if (absl::Status status = watchdog_->status(); !status.ok()) return status;
    MARCORO_CHECK(delta.stride == delta.columns);
    if (!IsOneShot(static_cast<size_t>(delta.rows * delta.columns))) return false;
    cuda::AllReduceAddRmsNorm(stream_, memory_->peers(), residual, delta, weight, epsilon, out);
    NoteQueued();
    return true;
  }

  absl::Status GatherToRoot(absl::Span<const float> send, absl::Span<float> receive) override {
    if (absl::Status status = watchdog_->status(); !status.ok()) return status;
    MARCORO_CHECK(rank() != 0 || receive.size() == send.size() * static_cast<size_t>(size()));
    if (send.empty()) return absl::OkStatus();
    absl::Status status;
    if (memory_ != nullptr) {
      // No more bytes than NCCL would move.
      cuda::GatherToRoot(stream_, memory_->peers(), send.data(), static_cast<int64_t>(send.size()),
                         receive.data());
    } else {
      status = nccl_->Gather(stream_, send.data(), send.size(), receive.data());
    }
    NoteQueued();
    return status;
  }

  absl::Status BroadcastIds(absl::Span<int32_t> ids) override {
    if (absl::Status status = watchdog_->status(); !status.ok()) return status;
    if (ids.empty()) return absl::OkStatus();
    absl::Status status = Broadcast(ids, memory_ != nullptr);
    NoteQueued();
    return status;
  }

  absl::Status BroadcastFromRoot(std::string* message) override {
    return host_.BroadcastFromRoot(message);
  }

 private:
  bool IsOneShot(size_t count) const {
    return memory_ != nullptr && (nccl_ == nullptr || IsOneShotSize(count, options_.size));
  }
  absl::Status AllReduce(float* data, size_t count, bool one_shot);
  absl::Status Broadcast(absl::Span<int32_t> ids, bool one_shot);
  void NoteQueued();
  absl::Status Probe();
  absl::StatusOr<bool> IsMarkPassed() const;
  absl::Status CheckItself();
  absl::Status CheckItself(size_t count, bool one_shot);
  absl::Status CheckBroadcast(bool one_shot);

  const NcclOptions options_;
  const int device_;
  Communicator& host_;
  const cudaStream_t stream_;
  const cudaEvent_t mark_;  // behind the newest operation
  QueuedWork queued_;
  std::unique_ptr<NcclGroup> nccl_;
  std::unique_ptr<MappedPeerMemory> memory_;
  float* scratch_ = nullptr;
  std::unique_ptr<NcclWatchdog> watchdog_;
};

absl::Status NcclCommunicator::Start(std::unique_ptr<NcclGroup> nccl,
                                     std::unique_ptr<MappedPeerMemory> memory) {
  nccl_ = std::move(nccl);
  memory_ = std::move(memory);
  if (nccl_ != nullptr) {
    auto scratch = cuda::AllocateDevice(kReduceScratchElements * sizeof(float));
    if (!scratch.ok()) return scratch.status();
    scratch_ = static_cast<float*>(*scratch);
  }
  NcclWatchdog::Options watch;
  watch.probe = [this] { return Probe(); };
  if (options_.on_failure) watch.on_failure = options_.on_failure;
  watch.abort = [this] {
    if (nccl_ != nullptr) nccl_->Abort();
  };
  watchdog_ = std::make_unique<NcclWatchdog>(std::move(watch));
  return CheckItself();
}

absl::Status NcclCommunicator::AllReduce(float* data, size_t count, bool one_shot) {
  if (!one_shot) return nccl_->AllReduce(stream_, data, count, scratch_);
  cuda::AllReduceTree(stream_, memory_->peers(), data, static_cast<int64_t>(count));
  return absl::OkStatus();
}

absl::Status NcclCommunicator::Broadcast(absl::Span<int32_t> ids, bool one_shot) {
  if (!one_shot) return nccl_->Broadcast(stream_, ids.data(), ids.size());
  cuda::BroadcastIds(stream_, memory_->peers(), ids.data(), static_cast<int64_t>(ids.size()));
  return absl::OkStatus();
}

// A mark within a capture would belong to the graph: repetitions are marked by NoteRepeated.
void NcclCommunicator::NoteQueued() {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(stream_, &capture);
  if (capture != cudaStreamCaptureStatusNone) return;
  queued_.Note(absl::Now(), [this] { cudaEventRecord(mark_, stream_); });
}

absl::StatusOr<bool> NcclCommunicator::IsMarkPassed() const {
  const cudaError_t error = cudaEventQuery(mark_);
  if (error == cudaSuccess) return true;
  if (error == cudaErrorNotReady) return false;
  return absl::InternalError(absl::StrCat("GPU: ", CudaErrorText(error)));
}

// On the watchdog's thread.
absl::Status NcclCommunicator::Probe() {
  cuda::EnterDevice(device_);
  // What this thread asks must not disturb a capture that another one has begun.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  absl::Status status;
  if (memory_ != nullptr) status = memory_->Check();
  if (status.ok() && nccl_ != nullptr) status = nccl_->Check();
  if (status.ok()) {
    status = queued_.Check(
        absl::Now(), [this] { return IsMarkPassed(); }, [this] { return host_.CheckPeers(); });
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  return status;
}

// Sums a vector and passes ids on each way: what a broken link or driver does shows here, and no
// connection is left to be made in a step.
absl::Status NcclCommunicator::CheckItself() {
  absl::Status status;
  if (memory_ != nullptr) {
    status = CheckItself(100'003, true);
    if (status.ok()) status = CheckBroadcast(true);
  }
  if (status.ok() && nccl_ != nullptr) {
    status = CheckItself(1'003, false);                       // whole
    if (status.ok()) status = CheckItself(3'000'003, false);  // by slices, the rest whole
    if (status.ok()) status = CheckBroadcast(false);
  }
  return status;
}

absl::Status NcclCommunicator::CheckBroadcast(bool one_shot) {
  std::vector<int32_t> ids(1'003);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i) + rank();
  const size_t bytes = ids.size() * sizeof(int32_t);
  auto memory = cuda::AllocateDevice(bytes);
  if (!memory.ok()) return memory.status();
  auto* data = static_cast<int32_t*>(*memory);
  cuda::CopyToDevice(stream_, data, ids.data(), bytes);
  absl::Status status = Broadcast(absl::MakeSpan(data, ids.size()), one_shot);
  NoteQueued();
  cuda::CopyToHost(stream_, ids.data(), data, bytes);
  status.Update(cuda::Synchronize(stream_));
  status.Update(watchdog_->status());
  cuda::FreeDevice(data);
  if (!status.ok()) return status;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != static_cast<int32_t>(i)) {
      return absl::InternalError(absl::StrCat(
          one_shot ? "peer memory" : "NCCL", ": test ids came out wrong on rank ", rank(),
          ": number ", i, " is ", ids[i], "; are the links between the GPUs sound?"));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::CheckItself(size_t count, bool one_shot) {
  std::vector<float> values(count);
  const auto part = [](int rank, size_t i) {
    return static_cast<float>((i + 1) % 1000 * (static_cast<size_t>(rank) + 1)) * 0.37f;
  };
  for (size_t i = 0; i < count; ++i) values[i] = part(rank(), i);
  auto memory = cuda::AllocateDevice(count * sizeof(float));
  if (!memory.ok()) return memory.status();
  auto* data = static_cast<float*>(*memory);
  cuda::CopyToDevice(stream_, data, values.data(), count * sizeof(float));
  absl::Status status = AllReduce(data, count, one_shot);
  NoteQueued();
  cuda::CopyToHost(stream_, values.data(), data, count * sizeof(float));
  status.Update(cuda::Synchronize(stream_));
  status.Update(watchdog_->status());
  cuda::FreeDevice(data);
  if (!status.ok()) return status;
  for (size_t i = 0; i < count; ++i) {
    float parts[cuda::kMostRanks];
    const float* pointers[cuda::kMostRanks];
    for (int other = 0; other < size(); ++other) {
      parts[other] = part(other, i);
      pointers[other] = &parts[other];
    }
    float sum = 0;
    TreeSum(absl::MakeConstSpan(pointers, static_cast<size_t>(size())), 1, &sum);
    if (sum != values[i]) {
      return absl::InternalError(absl::StrCat(one_shot ? "peer memory" : "NCCL",
                                              ": a test sum came out wrong on rank ", rank(),
                                              ": element ", i, " is ", values[i], " and should be ",
                                              sum, "; are the links between the GPUs sound?"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GpuIdentity(int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    return absl::InternalError(absl::StrCat("GPU: ", CudaErrorText(error)));
  }
  char bus[16];
  std::snprintf(bus, sizeof(bus), "%08x:%02x:%02x", properties.pciDomainID, properties.pciBusID,
                properties.pciDeviceID);
  return std::string(bus);
}

absl::StatusOr<DevicePath> AgreeOnPath(const NcclOptions& options, int device,
                                       Rendezvous& rendezvous) {
  auto gpu = GpuIdentity(device);
  if (absl::Status agreed = rendezvous.Agree("gpu", gpu.status()); !agreed.ok()) return agreed;
  const auto told = rendezvous.Exchange(
      "device",
      EncodeRankDevice({.choice = options.collective, .host = options.host, .gpu = *gpu}));
  if (!told.ok()) return told.status();
  std::vector<RankDevice> devices;
  for (const std::string& text : *told) {
    auto decoded = DecodeRankDevice(text);
    if (!decoded.ok()) return decoded.status();
    devices.push_back(*std::move(decoded));
  }
  return ChooseDevicePath(devices);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclOptions& options,
                                                                   KeyStore& keys,
                                                                   Communicator& host) {
  MARCORO_CHECK(IsTreeSize(options.size) && options.size > 1 && options.rank >= 0 &&
                options.rank < options.size && options.stream != nullptr);
  Rendezvous rendezvous(keys, options.key_prefix, options.rank, options.size,
                        options.connect_timeout);
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return absl::InternalError(absl::StrCat("GPU: ", CudaErrorText(error)));
  }
  const auto path = AgreeOnPath(options, device, rendezvous);
  if (!path.ok()) return path.status();
  if (!path->nccl && !path->peer_memory) return nullptr;

  std::unique_ptr<MappedPeerMemory> memory;
  if (path->peer_memory) {
    auto mapped = MappedPeerMemory::Connect({.rank = options.rank,
                                             .size = options.size,
                                             .slot_elements = SlotElements(options.hidden_size),
                                             .patience = options.timeout},
                                            rendezvous);
    if (!mapped.ok() && !(path->may_do_without && absl::IsFailedPrecondition(mapped.status()))) {
      return mapped.status();
    }
    if (mapped.ok()) memory = *std::move(mapped);
  }
  std::unique_ptr<NcclGroup> nccl;
  if (path->nccl) {
    auto connected = NcclGroup::Connect(
        {.rank = options.rank, .size = options.size, .timeout = options.timeout}, rendezvous);
    if (!connected.ok()) return connected.status();
    nccl = *std::move(connected);
  }
  if (memory == nullptr && nccl == nullptr) return nullptr;
  cudaEvent_t mark = nullptr;
  if (const cudaError_t error = cudaEventCreateWithFlags(&mark, cudaEventDisableTiming);
      error != cudaSuccess) {
    return absl::InternalError(absl::StrCat("GPU: ", CudaErrorText(error)));
  }
  auto communicator = std::make_unique<NcclCommunicator>(options, device, host, mark);
  absl::Status started = communicator->Start(std::move(nccl), std::move(memory));
  if (absl::Status agreed = rendezvous.Agree("started", started); !agreed.ok()) return agreed;
  return communicator;
}

}  // namespace marcoro
