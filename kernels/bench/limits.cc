#include "kernels/bench/limits.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/bench/limit_loops.h"
#include "kernels/cpu/features.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace marcoro {
namespace {

constexpr size_t kMinBufferBytes = size_t{256} << 20;
constexpr size_t kMaxBufferBytes = size_t{1} << 30;
// Handed out dynamically, so that a thread that is held up does not count twice.
constexpr int kChunksPerThread = 8;
constexpr int64_t kMultiplyAddIterations = 1 << 14;
constexpr int kMultiplyAddRepeats = 8;

// For processors without AVX2.
void PlainRead(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    uint64_t value;
    std::memcpy(&value, from + i, sizeof(value));
    sum ^= value;
  }
  volatile uint64_t keep = sum;
  static_cast<void>(keep);
}

double PlainMultiplyAdd(int64_t iterations) {
  constexpr int kChains = 16;
  volatile float one = 1.0f;
  const float a = one;
  float sum[kChains] = {};
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    for (float& chain : sum) chain += a * a;
  }
  for (float chain : sum) one = chain;
  return static_cast<double>(iterations) * kChains * 2;
}

LimitLoops ChooseLoops() {
  const cpu::CpuFeatures features = cpu::DetectCpuFeatures();
  if (cpu::MissingForAvx512(features).empty()) return Avx512LimitLoops();
  if (cpu::MissingForAvx2(features).empty()) return Avx2LimitLoops();
  return {PlainRead, PlainMultiplyAdd};
}

size_t BufferBytes() {
  const int64_t cache = std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 0);
  return std::clamp(static_cast<size_t>(cache) * 12, kMinBufferBytes, kMaxBufferBytes);
}

template <typename Function>
double SecondsOf(const Function& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double Middle(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

struct LimitMeter::State {
  State(int threads, Buffer buffer_in)
      : loops(ChooseLoops()), pool(threads), buffer(std::move(buffer_in)) {}

  double ReadBytesPerSecond() {
    const int64_t chunks = pool.size() * kChunksPerThread;
    const size_t chunk_bytes = buffer.bytes() / chunks / 256 * 256;
    const char* data = static_cast<const char*>(buffer.data());
    const double seconds = SecondsOf([&] {
      pool.Run(chunks, [&](int64_t i) { loops.read(data + i * chunk_bytes, chunk_bytes); });
    });
    return static_cast<double>(chunks * chunk_bytes) / seconds;
  }

  double FlopsPerSecond() {
    const int64_t chunks = pool.size() * kChunksPerThread;
    double flops = 0;
    const double seconds = SecondsOf([&] {
      pool.Run(chunks, [&](int64_t i) {
        const double done = loops.multiply_add(kMultiplyAddIterations);
        if (i == 0) flops = done * static_cast<double>(chunks);
      });
    });
    return flops / seconds;
  }

  const LimitLoops loops;
  cpu::ThreadPool pool;
  const Buffer buffer;
};

double MachineLimits::Seconds(double bytes, double flops) const {
  return std::max(bytes / read_bytes_per_second, flops / bf16_flops);
}

MachineLimits Best(const MachineLimits& a, const MachineLimits& b) {
  return {std::max(a.read_bytes_per_second, b.read_bytes_per_second),
          std::max(a.bf16_flops, b.bf16_flops)};
}

absl::StatusOr<LimitMeter> LimitMeter::Create(int threads) {
  absl::StatusOr<Buffer> buffer = cpu::AllocateMemory(BufferBytes());
  if (!buffer.ok()) return buffer.status();
  return LimitMeter(std::make_unique<State>(threads, *std::move(buffer)));
}

LimitMeter::LimitMeter(std::unique_ptr<State> state) : state_(std::move(state)) {}
LimitMeter::LimitMeter(LimitMeter&&) noexcept = default;
LimitMeter& LimitMeter::operator=(LimitMeter&&) noexcept = default;
LimitMeter::~LimitMeter() = default;

MachineLimits LimitMeter::MeasureUsual(int rounds) {
  std::vector<double> rates, flops;
  for (int round = 0; round < rounds; ++round) {
    rates.push_back(state_->ReadBytesPerSecond());
    for (int i = 0; i < kMultiplyAddRepeats; ++i) flops.push_back(state_->FlopsPerSecond());
  }
  return {Middle(std::move(rates)), Middle(std::move(flops))};
}

MachineLimits LimitMeter::Measure(int rounds) {
  MachineLimits limits;
  for (int round = 0; round < rounds; ++round) {
    limits = Best(limits, {state_->ReadBytesPerSecond(), 0});
    for (int i = 0; i < kMultiplyAddRepeats; ++i) {
      limits = Best(limits, {0, state_->FlopsPerSecond()});
    }
  }
  return limits;
}

}  // namespace marcoro
