#include "tests/worker/weights/merge/merge_testing.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>
#include <utility>

namespace marcoro::testing {
namespace {

int MantissaBits(const std::string& dtype) {
  return dtype == "BF16" ? 7 : dtype == "F16" ? 10 : 23;
}

// The nearest number with so many bits behind the point of its mantissa, whose units are never
// smaller than 2^least.
double Nearest(double value, int mantissa, int least) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int unit = std::max(std::ilogb(value) - mantissa, least);
  return std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
}

uint16_t HalfBits(double value) {
  if (std::isnan(value)) return 0x7e00;
  const double magnitude = std::fabs(Nearest(value, 10, -24));
  uint16_t bits = 0;
  if (magnitude >= 65536) {
    bits = 0x7c00;
  } else if (magnitude < std::ldexp(1, -14)) {
    bits = static_cast<uint16_t>(std::ldexp(magnitude, 24));
  } else {
    const int exponent = std::ilogb(magnitude);
    bits = static_cast<uint16_t>(((exponent + 15) << 10) +
                                 static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024);
  }
  return static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0));
}

// The numbers of the type in order, zeros in the middle.
int64_t Position(const std::string& dtype, float value) {
  int64_t magnitude = std::bit_cast<uint32_t>(value) & 0x7fffffffu;
  if (dtype == "BF16") magnitude >>= 16;
  if (dtype == "F16") magnitude = HalfBits(std::fabs(value));
  return std::signbit(value) ? -magnitude : magnitude;
}

}  // namespace

ParallelFor Threads(int count) {
  return [count](int64_t n, const std::function<void(int64_t)>& work) {
    std::atomic<int64_t> next = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
      threads.emplace_back([&] {
        for (int64_t k = next++; k < n; k = next++) work(k);
      });
    }
    for (std::thread& thread : threads) thread.join();
  };
}

StoredTensor Store(const std::string& dtype, std::vector<int64_t> shape,
                   const std::vector<float>& numbers) {
  std::string bytes;
  for (const float number : numbers) {
    if (dtype == "F32") {
      bytes.append(reinterpret_cast<const char*>(&number), 4);
    } else if (dtype == "F16") {
      const uint16_t half = HalfBits(number);
      bytes.append(reinterpret_cast<const char*>(&half), 2);
    } else {
      const float rounded = static_cast<float>(Nearest(number, MantissaBits(dtype), -133));
      bytes.append(reinterpret_cast<const char*>(&rounded) + 2, 2);
    }
  }
  return {dtype, std::move(shape), std::move(bytes)};
}

std::vector<float> RandomNumbers(int64_t count, uint64_t seed, double deviation) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> distribution(0, deviation);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = static_cast<float>(distribution(generator));
  return numbers;
}

int64_t UlpDistance(const std::string& dtype, float a, float b) {
  return std::llabs(Position(dtype, a) - Position(dtype, b));
}

OneTensorMerge::OneTensorMerge(const std::string& method, const std::string& dtype) {
  plan_.recipe = folder_.File("recipe.yml");
  plan_.method = method;
  plan_.dtype = dtype;
  plan_.tensors.emplace_back().name = "w";
}

void OneTensorMerge::AddParent(const StoredTensor& tensor, const MergeParameters& parameters) {
  const int32_t model = static_cast<int32_t>(plan_.models.size());
  const std::string name = "parent" + std::to_string(model);
  std::filesystem::create_directory(folder_.File(name));
  WriteFile(folder_.File(name) + "/config.json", "{}");
  WriteTensors(folder_.File(name) + "/model.safetensors", {{"w", tensor}});
  plan_.models.push_back({.reference = name, .directory = folder_.File(name)});
  merge().inputs.push_back({.model = model, .tensor = "w", .parameters = parameters});
}

absl::StatusOr<std::vector<float>> OneTensorMerge::Merge(int threads) const {
  auto source = Open();
  if (!source.ok()) return source.status();
  return ReadWhole(**source, "w", threads);
}

absl::StatusOr<std::vector<float>> ReadWhole(TensorSource& source, const std::string& name,
                                             int threads) {
  const TensorInfo* info = source.Find(name);
  if (info == nullptr) return absl::NotFoundError(name);
  absl::Status status = source.Prepare(*info, Threads(threads));
  if (!status.ok()) return status;
  std::vector<float> numbers(static_cast<size_t>(info->rows() * info->columns()));
  status = source.ReadRows(*info, 0, info->rows(), numbers.data());
  if (!status.ok()) return status;
  return numbers;
}

StoredTensors WrittenMerge(TensorSource& source) {
  StoredTensors tensors;
  for (const TensorInfo* info : source.Tensors()) {
    auto numbers = ReadWhole(source, info->name);
    EXPECT_TRUE(numbers.ok()) << numbers.status();
    if (numbers.ok()) tensors[info->name] = Store(info->dtype, info->shape, *numbers);
  }
  return tensors;
}

}  // namespace marcoro::testing
