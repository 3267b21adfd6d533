#include "kernels/cuda/matmul_probe.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_limits.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {
namespace {

constexpr int kMostDevices = 64;
// Bit i: device i was found to.
std::atomic<uint64_t> devices_with_warpgroups{0};

constexpr int64_t kRows = 256;
constexpr int64_t kColumns = 256;
constexpr int64_t kTokens = kWarpgroupTokens;

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32);
  }
  int Below(int limit) {
    return static_cast<int>(uint64_t{Bits()} * static_cast<uint64_t>(limit) >> 32);
  }

 private:
  uint64_t state_;
};

// BF16 of any sign and mantissa with exponents in [least, most].
struct Exponents {
  int least;
  int most;
};

uint16_t RandomBf16(const Exponents& exponents, Random& random) {
  const int exponent = exponents.least + random.Below(exponents.most - exponents.least + 1) + 127;
  return static_cast<uint16_t>((random.Bits() & 0x807fu) | static_cast<uint32_t>(exponent) << 7);
}

// A kind of matrices.
struct Case {
  const char* name;
  DType weight;
  Exponents weights;  // of BF16 weights; E4M3 has all codes
  Exponents activations;
  bool cancels;  // column 2 i + 1 takes away nearly all that column 2 i has added
};
constexpr Case kCases[] = {
    {"E4M3 weights, usual activations", DType::kF8E4M3, {}, {-6, 3}, false},
    {"E4M3 weights, activations of all sizes", DType::kF8E4M3, {}, {-40, 40}, false},
    {"E4M3 weights, sums that cancel", DType::kF8E4M3, {}, {-3, 3}, true},
    {"BF16 weights, usual sizes", DType::kBF16, {-6, 3}, {-6, 3}, false},
    {"BF16 weights of all sizes", DType::kBF16, {-40, 40}, {-16, 16}, false},
    {"BF16 weights, sums that cancel", DType::kBF16, {-3, 3}, {-3, 3}, true},
    {"BF16 weights, subnormal sums", DType::kBF16, {-78, -66}, {-72, -60}, false},
};

struct Matrices {
  std::vector<uint8_t> weight;  // as a checkpoint has it
  std::vector<uint16_t> x;
};

Matrices MakeMatrices(const Case& kind, Random& random) {
  Matrices matrices;
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    if (kind.weight == DType::kF8E4M3) {
      uint32_t code = random.Bits() & 0xffu;
      if ((code & 0x7fu) == 0x7fu) code ^= 1u;  // no NaN
      if (kind.cancels && i % 2 == 1) code = matrices.weight.back();
      matrices.weight.push_back(static_cast<uint8_t>(code));
    } else {
      uint16_t value = RandomBf16(kind.weights, random);
      if (kind.cancels && i % 2 == 1) {
        const auto* last = &matrices.weight[matrices.weight.size() - 2];
        value = static_cast<uint16_t>(last[0] | last[1] << 8);
      }
      matrices.weight.push_back(static_cast<uint8_t>(value & 0xffu));
      matrices.weight.push_back(static_cast<uint8_t>(value >> 8));
    }
  }
  for (int64_t i = 0; i < kTokens * kColumns; ++i) {
    uint16_t value = RandomBf16(kind.activations, random);
    // The last bits of the mantissa and the sign differ from what came before.
    if (kind.cancels && i % 2 == 1) {
      value = static_cast<uint16_t>(matrices.x.back() ^ (0x8000u | (random.Bits() & 3u)));
    }
    matrices.x.push_back(value);
  }
  return matrices;
}

// The device's memory that products of all cases use.
class Probe {
 public:
  explicit Probe(Stream stream) : stream_(stream) {}

  // Where the products differ, in words; nothing if they do not.
  absl::StatusOr<std::optional<std::string>> FindDifference(const Case& kind,
                                                            const Matrices& matrices);

 private:
  absl::Status Prepare(const Case& kind, const Matrices& matrices, PackedWeight* weight);
  // Of the first tokens.
  absl::StatusOr<std::vector<uint32_t>> Multiply(const MatmulPlan& plan, const PackedWeight& weight,
                                                 int64_t tokens);

  const Stream stream_;
  GrowingMemory source_{MemoryKind::kDevice};
  GrowingMemory weight_{MemoryKind::kDevice};
  GrowingMemory scales_{MemoryKind::kDevice};
  GrowingMemory x_{MemoryKind::kDevice};
  GrowingMemory out_{MemoryKind::kDevice};
};

absl::Status Probe::Prepare(const Case& kind, const Matrices& matrices, PackedWeight* weight) {
  const WeightShape shape = {kind.weight, kRows, kColumns, 1};
  const std::vector<float> ones(kRows, 1.0f);
  absl::Status status = source_.Reserve(stream_, matrices.weight.size());
  if (status.ok()) status = weight_.Reserve(stream_, WeightBytes(shape));
  if (status.ok()) status = scales_.Reserve(stream_, kRows * sizeof(float));
  if (status.ok()) status = x_.Reserve(stream_, matrices.x.size() * sizeof(uint16_t));
  if (status.ok()) status = out_.Reserve(stream_, kTokens * kRows * sizeof(float));
  if (!status.ok()) return status;
  CopyToDevice(stream_, source_.data(), matrices.weight.data(), matrices.weight.size());
  CopyToDevice(stream_, scales_.data(), ones.data(), kRows * sizeof(float));
  CopyToDevice(stream_, x_.data(), matrices.x.data(), matrices.x.size() * sizeof(uint16_t));
  *weight = {shape, weight_.data(),
             kind.weight == DType::kF8E4M3 ? static_cast<float*>(scales_.data()) : nullptr};
  PackWeight(stream_, *weight, 0, kRows, source_.data());
  return Synchronize(stream_);
}

absl::StatusOr<std::vector<uint32_t>> Probe::Multiply(const MatmulPlan& plan,
                                                      const PackedWeight& weight, int64_t tokens) {
  MARCORO_CHECK(plan.parts == 1);
  std::vector<uint32_t> bits(static_cast<size_t>(tokens * kRows));
  Fill(stream_, out_.data(), 0xff, bits.size() * sizeof(uint32_t));
  RunMatmul(stream_, plan, Tensor(x_.data(), DType::kBF16, tokens, kColumns), weight,
            Tensor(out_.data(), DType::kF32, tokens, kRows), /*scratch=*/nullptr);
  CopyToHost(stream_, bits.data(), out_.data(), bits.size() * sizeof(uint32_t));
  absl::Status status = Synchronize(stream_);
  if (!status.ok()) return status;
  return bits;
}

absl::StatusOr<std::optional<std::string>> Probe::FindDifference(const Case& kind,
                                                                 const Matrices& matrices) {
  PackedWeight weight;
  if (absl::Status status = Prepare(kind, matrices, &weight); !status.ok()) return status;
  MatmulLimits limits = DeviceMatmulLimits();
  const auto warps = Multiply(PlanMatmul(weight.shape, kTokens, limits), weight, kTokens);
  if (!warps.ok()) return warps.status();
  limits.warpgroups = true;
  for (const int multiprocessors : {1, limits.multiprocessors}) {  // large and small blocks
    limits.multiprocessors = multiprocessors;
    for (const int64_t tokens : {int64_t{16}, int64_t{32}, int64_t{64}, kTokens}) {  // all widths
      const auto warpgroups = Multiply(PlanMatmul(weight.shape, tokens, limits), weight, tokens);
      if (!warpgroups.ok()) return warpgroups.status();
      for (size_t i = 0; i < warpgroups->size(); ++i) {
        if ((*warps)[i] == (*warpgroups)[i]) continue;
        return absl::StrCat(kind.name, ": ", tokens, " tokens, token ", i / kRows, ", row ",
                            i % kRows, ": ", absl::Hex((*warpgroups)[i], absl::kZeroPad8),
                            " instead of ", absl::Hex((*warps)[i], absl::kZeroPad8));
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<bool> HasWarpgroups(Stream stream) {
  GrowingMemory memory(MemoryKind::kDevice);
  absl::Status status = memory.Reserve(stream, sizeof(int));
  if (!status.ok()) return status;
  FindWarpgroups(stream, static_cast<int*>(memory.data()));
  int there = 0;
  CopyToHost(stream, &there, memory.data(), sizeof(there));
  status = Synchronize(stream);
  if (!status.ok()) return status;
  return there == 1;
}

bool MultipliesByWarpgroups(int device) {
  return device < kMostDevices && (devices_with_warpgroups.load() >> device & 1u) != 0;
}

absl::StatusOr<std::string> ProbeMatmul(Stream stream, int rounds) {
  const int device = CurrentDevice();
  if (device >= kMostDevices) return "matmul of many tokens: mma.sync (too many devices to probe)";
  const uint64_t mine = uint64_t{1} << device;
  devices_with_warpgroups.fetch_and(~mine);
  const auto has_warpgroups = HasWarpgroups(stream);
  if (!has_warpgroups.ok()) return has_warpgroups.status();
  if (!*has_warpgroups) return "matmul of many tokens: mma.sync (no wgmma for this GPU)";
  Probe probe(stream);
  Random random(1);
  for (int round = 0; round < rounds; ++round) {
    for (const Case& kind : kCases) {
      const auto difference = probe.FindDifference(kind, MakeMatrices(kind, random));
      if (!difference.ok()) return difference.status();
      if (difference->has_value()) {
        return absl::StrCat("matmul of many tokens: mma.sync (wgmma has other bits here; ",
                            **difference, ")");
      }
    }
  }
  devices_with_warpgroups.fetch_or(mine);
  return "matmul of many tokens: wgmma (it has the bits of mma.sync here)";
}

}  // namespace marcoro::cuda
