#include "kernels/cuda/matmul_codes_probe.h"

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/matmul_limits.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/matmul_probe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {
namespace {

constexpr int kMostDevices = 64;
#ifdef MARCORO_SIMT
constexpr uint64_t kKnownDevices = 1;  // the emulator's one needs no probe
#else
constexpr uint64_t kKnownDevices = 0;
#endif
// Bit i: device i was found to.
std::atomic<uint64_t> devices_with_code_warpgroups{kKnownDevices};

constexpr int64_t kTokens = 128;
constexpr int64_t kRows = 128;
constexpr int64_t kColumns = 4 * 80;
constexpr int kMostSegments = 4;

constexpr WeightShape ShapeOf(int segments) {
  return {.dtype = DType::kF8E4M3, .rows = kRows, .columns = kColumns, .segments = segments};
}

// A kind of matrices.
enum class Codes {
  kExact,    // 0, ±1 and ±2: sums are the same in every order and precision
  kAll,      // but NaN
  kCancels,  // column 2 i + 1 takes away what column 2 i has added
};
constexpr std::pair<Codes, const char*> kKinds[] = {{Codes::kExact, "small whole numbers"},
                                                    {Codes::kAll, "all codes"},
                                                    {Codes::kCancels, "sums that cancel"}};

uint8_t RandomCode(Codes kind, std::mt19937& random) {
  const auto bits = static_cast<uint32_t>(random());
  if (kind == Codes::kExact) {
    constexpr uint8_t kWhole[] = {0x00, 0x38, 0xb8, 0x40, 0xc0};
    return kWhole[bits % 5];
  }
  const auto code = static_cast<uint8_t>(bits);
  return (code & 0x7f) == 0x7f ? static_cast<uint8_t>(code ^ 1) : code;
}

struct Matrices {
  std::vector<uint8_t> weight;  // as a checkpoint has it
  std::vector<uint8_t> x;
};

Matrices MakeMatrices(Codes kind, std::mt19937& random) {
  Matrices matrices;
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    const bool repeats = kind == Codes::kCancels && i % 2 == 1;
    matrices.weight.push_back(repeats ? matrices.weight.back() : RandomCode(kind, random));
  }
  for (int64_t i = 0; i < kTokens * kColumns; ++i) {
    const bool repeats = kind == Codes::kCancels && i % 2 == 1;
    const uint8_t code = repeats ? matrices.x.back() ^ 0x80 : RandomCode(kind, random);
    // The last bit of the mantissa differs, but in what would become NaN.
    const bool keeps = !repeats || (code & 0x7f) >= 0x7e;
    matrices.x.push_back(keeps ? code : static_cast<uint8_t>(code ^ (random() & 1u)));
  }
  return matrices;
}

// The device's memory that products of all kinds use.
class Probe {
 public:
  explicit Probe(Stream stream) : stream_(stream) {}

  absl::Status Prepare();
  // What is wrong with the warpgroups' products, in words; nothing if nothing is.
  absl::StatusOr<std::optional<std::string>> FindFault(Codes kind, int segments,
                                                       const Matrices& matrices);

 private:
  using Bits = std::vector<uint32_t>;

  // The product of all tokens, so many at a time.
  absl::StatusOr<Bits> Multiply(const PackedWeight& weight, const MatmulLimits& limits,
                                int64_t tokens);

  const Stream stream_;
  GrowingMemory source_{MemoryKind::kDevice};
  GrowingMemory packed_{MemoryKind::kDevice};
  GrowingMemory ones_{MemoryKind::kDevice};  // scales of rows and of tokens
  GrowingMemory x_{MemoryKind::kDevice};
  GrowingMemory out_{MemoryKind::kDevice};
  GrowingMemory scratch_{MemoryKind::kDevice};
};

absl::Status Probe::Prepare() {
  const std::vector<float> ones(kTokens * kMostSegments, 1.0f);
  static_assert(kTokens * kMostSegments >= kRows);
  const WeightShape largest = ShapeOf(kMostSegments);
  absl::Status status = source_.Reserve(stream_, kRows * kColumns);
  if (status.ok()) status = packed_.Reserve(stream_, WeightBytes(largest));
  if (status.ok()) status = ones_.Reserve(stream_, ones.size() * sizeof(float));
  if (status.ok()) status = x_.Reserve(stream_, kTokens * kColumns);
  if (status.ok()) status = out_.Reserve(stream_, kTokens * kRows * sizeof(float));
  if (status.ok()) {
    status = scratch_.Reserve(stream_, MatmulScratchBytes(largest, kTokens, DType::kF8E4M3));
  }
  if (!status.ok()) return status;
  CopyToDevice(stream_, ones_.data(), ones.data(), ones.size() * sizeof(float));
  return Synchronize(stream_);
}

absl::StatusOr<Probe::Bits> Probe::Multiply(const PackedWeight& weight, const MatmulLimits& limits,
                                            int64_t tokens) {
  const Tensor x(x_.data(), DType::kF8E4M3, kTokens, kColumns);
  const Tensor scales(ones_.data(), DType::kF32, kTokens, weight.shape.segments);
  const Tensor out(out_.data(), DType::kF32, kTokens, kRows);
  Bits bits(kTokens * kRows);
  Fill(stream_, out_.data(), 0xff, bits.size() * sizeof(uint32_t));
  for (int64_t first = 0; first < kTokens; first += tokens) {
    const MatmulPlan plan = PlanMatmul(weight.shape, tokens, limits, DType::kF8E4M3);
    MARCORO_CHECK(plan.code_warpgroups == limits.code_warpgroups);
    RunMatmul(stream_, plan, x.Rows(first, tokens), weight, out.Rows(first, tokens),
              scratch_.data(), &scales);
  }
  CopyToHost(stream_, bits.data(), out_.data(), bits.size() * sizeof(uint32_t));
  absl::Status status = Synchronize(stream_);
  if (!status.ok()) return status;
  return bits;
}

absl::StatusOr<std::optional<std::string>> Probe::FindFault(Codes kind, int segments,
                                                            const Matrices& matrices) {
  const PackedWeight weight = {ShapeOf(segments), packed_.data(),
                               static_cast<float*>(ones_.data())};
  CopyToDevice(stream_, source_.data(), matrices.weight.data(), matrices.weight.size());
  PackWeight(stream_, weight, 0, kRows, source_.data(), DType::kF8E4M3);
  CopyToDevice(stream_, x_.data(), matrices.x.data(), matrices.x.size());
  MatmulLimits limits = DeviceMatmulLimits();
  const auto warps = Multiply(weight, limits, kTokens);
  if (!warps.ok()) return warps.status();
  limits.code_warpgroups = true;
  const int all = limits.multiprocessors;
  std::optional<Bits> first;
  // On one multiprocessor many tokens have large blocks.
  for (const auto& [multiprocessors, tokens] : std::initializer_list<std::pair<int, int64_t>>{
           {all, 128}, {1, 128}, {all, 64}, {all, 32}, {all, 16}, {all, 8}}) {
    limits.multiprocessors = multiprocessors;
    auto bits = Multiply(weight, limits, tokens);
    if (!bits.ok()) return bits.status();
    if (!first.has_value()) first = *bits;
    if (*bits != *first) return absl::StrCat(tokens, " tokens have bits of their own");
    if (kind == Codes::kExact && *bits != *warps) {
      return absl::StrCat(tokens, " tokens have other sums");
    }
  }
  return std::nullopt;
}

}  // namespace

bool MultipliesCodesByWarpgroups(int device) {
  return device < kMostDevices && (devices_with_code_warpgroups.load() >> device & 1u) != 0;
}

absl::StatusOr<std::string> ProbeCodes(Stream stream, int rounds) {
  const int device = CurrentDevice();
  if (device >= kMostDevices) return "matmul of codes: mma.sync (too many devices to probe)";
  const uint64_t mine = uint64_t{1} << device;
  devices_with_code_warpgroups.fetch_and(~mine);
  const auto has_warpgroups = HasWarpgroups(stream);
  if (!has_warpgroups.ok()) return has_warpgroups.status();
  if (!*has_warpgroups) return "matmul of codes: mma.sync (no wgmma for this GPU)";
  Probe probe(stream);
  if (absl::Status status = probe.Prepare(); !status.ok()) return status;
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    for (const auto& [kind, name] : kKinds) {
      const Matrices matrices = MakeMatrices(kind, random);
      for (const int segments : {1, kMostSegments}) {
        const auto fault = probe.FindFault(kind, segments, matrices);
        if (!fault.ok()) return fault.status();
        if (fault->has_value()) {
          return absl::StrCat("matmul of codes: mma.sync (wgmma: ", name, ": ", **fault, ")");
        }
      }
    }
  }
  devices_with_code_warpgroups.fetch_or(mine);
  return "matmul of codes: wgmma";
}

}  // namespace marcoro::cuda
