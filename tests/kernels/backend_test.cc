#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_choice.h"
#include "tests/kernels/backends.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr cpu::CpuFeatures kEverything = {.avx2 = true,
                                          .fma = true,
                                          .f16c = true,
                                          .avx512f = true,
                                          .avx512bw = true,
                                          .avx512vl = true,
                                          .avx512vbmi = true,
                                          .avx512bf16 = true};
constexpr cpu::CpuFeatures kHaswell = {.avx2 = true, .fma = true, .f16c = true};

BackendChoice ChoiceOf(const std::string& name, const cpu::CpuFeatures& features) {
  const auto choice = ChooseBackend({.name = name}, features);
  EXPECT_TRUE(choice.ok()) << choice.status();
  return choice.value_or(BackendChoice::kReference);
}

void ExpectError(const BackendOptions& options, const cpu::CpuFeatures& features,
                 absl::StatusCode code, const std::string& message) {
  const auto choice = ChooseBackend(options, features);
  EXPECT_EQ(choice.status().code(), code);
  EXPECT_THAT(std::string(choice.status().message()), HasSubstr(message));
}

TEST(ChooseBackendTest, AutoIsTheBestThatTheProcessorRuns) {
  EXPECT_EQ(ChoiceOf("auto", kEverything), BackendChoice::kAvx512);
  EXPECT_EQ(ChoiceOf("auto", kHaswell), BackendChoice::kAvx2);
  EXPECT_EQ(ChoiceOf("auto", {}), BackendChoice::kReference);
  cpu::CpuFeatures skylake = kEverything;
  skylake.avx512vbmi = skylake.avx512bf16 = false;
  EXPECT_EQ(ChoiceOf("auto", skylake), BackendChoice::kAvx2);
}

TEST(ChooseBackendTest, ANamedBackendIsTaken) {
  EXPECT_EQ(ChoiceOf("avx512", kEverything), BackendChoice::kAvx512);
  EXPECT_EQ(ChoiceOf("avx2", kEverything), BackendChoice::kAvx2);
  EXPECT_EQ(ChoiceOf("reference", kEverything), BackendChoice::kReference);
  EXPECT_EQ(ChoiceOf("cuda", {}), BackendChoice::kCuda);
}

TEST(ChooseBackendTest, AMissingFeatureIsNamed) {
  ExpectError({.name = "avx512"}, kHaswell, absl::StatusCode::kFailedPrecondition,
              "backend 'avx512': this processor lacks AVX512F, AVX512BW, AVX512VL, AVX512VBMI, "
              "AVX512_BF16");
  cpu::CpuFeatures ice_lake = kEverything;
  ice_lake.avx512bf16 = false;
  ExpectError({.name = "avx512"}, ice_lake, absl::StatusCode::kFailedPrecondition,
              "lacks AVX512_BF16");
  ExpectError({.name = "avx2"}, {.avx2 = true, .fma = true}, absl::StatusCode::kFailedPrecondition,
              "backend 'avx2': this processor lacks F16C");
}

TEST(ChooseBackendTest, UnknownNamesAndCombinationsAreRefused) {
  ExpectError({.name = "sse9"}, kEverything, absl::StatusCode::kInvalidArgument,
              "unknown backend 'sse9': one of auto, avx512, avx2, reference, cuda");
  ExpectError({.name = ""}, kEverything, absl::StatusCode::kInvalidArgument, "unknown backend ''");
  for (const char* name : {"auto", "avx2", "avx512", "cuda"}) {
    ExpectError({.name = name, .activations = DType::kF32}, kEverything,
                absl::StatusCode::kInvalidArgument,
                "float32 activations need the backend 'reference'");
  }
  ExpectError({.name = "reference", .activations = DType::kF16}, kEverything,
              absl::StatusCode::kInvalidArgument, "activations must be bfloat16, float32 or E4M3");
}

TEST(ChooseBackendTest, ThreadsHaveBounds) {
  for (const int threads : {0, -1, 1025}) {
    ExpectError({.name = "reference", .threads = threads}, kEverything,
                absl::StatusCode::kInvalidArgument, "backend threads must be 1 to 1024");
  }
  EXPECT_TRUE(ChooseBackend({.threads = 1024}, kEverything).ok());
}

TEST(CreateBackendTest, ErrorsComeThrough) {
  EXPECT_EQ(CreateBackend({.name = "abacus"}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CreateBackendTest, BackendsSayWhatTheyAre) {
  for (const std::string& name : AllBackendNames()) {
    const auto backend = MakeBackend(name);
    EXPECT_THAT(std::string(backend->name()), StartsWith(name));  // "cuda-sm_90a" is a "cuda"
    EXPECT_EQ(backend->activation_dtype(), DType::kBF16);
  }
  const auto float32 = MakeBackend("reference", 1, DType::kF32);
  EXPECT_EQ(float32->name(), "reference-f32");
  EXPECT_EQ(float32->activation_dtype(), DType::kF32);
  for (const std::string& name : CpuBackendNames()) {
    EXPECT_EQ(MakeBackend(name, 3)->threads(), 3);
  }
}

class BackendTest : public ::testing::TestWithParam<std::string> {};

TEST_P(BackendTest, AllocatedMemoryIsZeroAndAligned) {
  const auto backend = MakeBackend(GetParam());
  for (const size_t bytes : {1u, 63u, 4096u, 3u << 20}) {
    const auto buffer = backend->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    ASSERT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    const char* data = static_cast<const char*>(buffer->data());
    EXPECT_TRUE(std::all_of(data, data + bytes, [](char c) { return c == 0; }));
  }
}

TEST_P(BackendTest, MemoryThatIsNotThereIsRefused) {
  const auto backend = MakeBackend(GetParam());
  for (const size_t bytes : {SIZE_MAX, SIZE_MAX / 2}) {
    EXPECT_EQ(backend->Allocate(bytes).status().code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST_P(BackendTest, ParallelForRunsEachIndexOnce) {
  for (int threads = 1; threads <= 4; ++threads) {
    const auto backend = MakeBackend(GetParam(), threads);
    for (const int64_t count : {0, 1, 3, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      backend->ParallelFor(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      EXPECT_TRUE(std::all_of(runs.begin(), runs.end(), [](const auto& n) { return n == 1; }));
    }
  }
}

TEST_P(BackendTest, ABlockHoldsKeysAndValues) {
  const auto backend = MakeBackend(GetParam());
  EXPECT_EQ(backend->KvBlockBytes(8, 128, KvFormat::kActivation), 2u * 16 * 8 * 128 * 2);
  EXPECT_GE(backend->KvBlockBytes(1, 2, KvFormat::kActivation), 2u * 16 * 2 * 2);
  EXPECT_EQ(backend->KvBlockBytes(8, 128, KvFormat::kFp8), 2u * 16 * 8 * (128 + sizeof(float)));
  EXPECT_GE(backend->KvBlockBytes(1, 2, KvFormat::kFp8), 2u * 16 * (2 + sizeof(float)));
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
