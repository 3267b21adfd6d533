// What the backend of a device adds to the ops: memory that is not the program's, steps that are
// announced, and failures that are told later.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/cuda/device_backends.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

class CudaBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = MakeDeviceBackend(2);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
  }

  // Device memory that holds the values.
  template <typename T>
  Buffer OnDevice(const std::vector<T>& values) {
    auto buffer = backend_->Allocate(values.size() * sizeof(T));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(backend_->Upload(values.data(), buffer->data(), buffer->bytes()).ok());
    return *std::move(buffer);
  }
  template <typename T>
  std::vector<T> OnHost(const Buffer& buffer) {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    EXPECT_TRUE(backend_->Download(buffer.data(), values.data(), buffer.bytes()).ok());
    return values;
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaBackendTest, SaysWhatItIs) {
  EXPECT_EQ(backend_->name().substr(0, 5), "cuda-");
  EXPECT_EQ(backend_->activation_dtype(), DType::kBF16);
  EXPECT_EQ(backend_->threads(), 2);
  EXPECT_FALSE(backend_->host_memory());
  EXPECT_GT(backend_->AvailableMemory(), 0u);
}

TEST_F(CudaBackendTest, MemoryBeginsAsZeros) {
  for (const size_t bytes : {1u, 255u, 1u << 20}) {
    auto buffer = backend_->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    ASSERT_EQ(buffer->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 256, 0u);
    EXPECT_EQ(OnHost<uint8_t>(*buffer), std::vector<uint8_t>(bytes, 0));
  }
}

TEST_F(CudaBackendTest, MemoryThatIsNotThereIsRefused) {
  for (const size_t bytes : {SIZE_MAX, SIZE_MAX / 2}) {
    EXPECT_EQ(backend_->Allocate(bytes).status().code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST_F(CudaBackendTest, WhatIsUploadedIsDownloaded) {
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Buffer buffer = OnDevice(values);
  EXPECT_EQ(OnHost<float>(buffer), values);
  EXPECT_TRUE(backend_->Upload(nullptr, nullptr, 0).ok());
  EXPECT_TRUE(backend_->Download(nullptr, nullptr, 0).ok());
  EXPECT_TRUE(backend_->Synchronize().ok());
}

TEST_F(CudaBackendTest, MatricesAreCopiedRowByRow) {
  const Buffer from = OnDevice<float>({1, 2, -1, 3, 4, -1});
  const Buffer to = OnDevice(std::vector<float>(8, 0));
  Tensor source(from.data(), DType::kF32, 2, 2);
  source.stride = 3;
  Tensor target(static_cast<float*>(to.data()) + 1, DType::kF32, 2, 2);
  target.stride = 4;
  backend_->CopyMatrix(source, target);
  EXPECT_EQ(OnHost<float>(to), (std::vector<float>{0, 1, 2, 0, 0, 3, 4, 0}));
}

TEST_F(CudaBackendTest, AStepsRowsAreGathered) {
  std::vector<uint16_t> values(5 * 8);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  const Buffer from = OnDevice(values);
  const Buffer to = OnDevice(std::vector<uint16_t>(2 * 8, 0));
  const std::vector<int32_t> rows = {1, 4};
  // Steps follow each other without a wait between them.
  for (int step = 0; step < 3; ++step) {
    backend_->BeginStep({.ids = {}, .sequences = {}, .logit_rows = rows});
    backend_->GatherRows(Tensor(from.data(), DType::kBF16, 5, 8), rows,
                         Tensor(to.data(), DType::kBF16, 2, 8));
  }
  std::vector<uint16_t> expected(values.begin() + 8, values.begin() + 16);
  expected.insert(expected.end(), values.begin() + 32, values.end());
  EXPECT_EQ(OnHost<uint16_t>(to), expected);
}

TEST_F(CudaBackendTest, AnOpOutsideOfItsStepIsABug) {
  const Buffer table = OnDevice(std::vector<float>(4 * 8, 0));
  const Buffer out = OnDevice(std::vector<float>(8, 0));
  const std::vector<int32_t> announced = {1};
  const std::vector<int32_t> other = {1};
  backend_->BeginStep({.ids = announced, .sequences = {}, .logit_rows = {}});
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(backend_->Embed(other, Tensor(table.data(), DType::kF32, 4, 8),
                               Tensor(out.data(), DType::kF32, 1, 8)),
               "check failed: IsSame");
}

TEST_F(CudaBackendTest, RoomForTheLargestStepIsMadeOnce) {
  const StepLimits limits = {.tokens = 64,
                             .logit_rows = 8,
                             .vocabulary = 320,
                             .context_length = 256,
                             .attention = {4, 2, 64, 0},
                             .weights = {{DType::kF8E4M3, 256, 512, 4}}};
  // Tables of blocks alone: 16 for each of 64 sequences.
  EXPECT_GE(backend_->ReservedBytes(limits), 64u * 16 * sizeof(int32_t));
  EXPECT_TRUE(backend_->Reserve(limits).ok());
  EXPECT_TRUE(backend_->Reserve(limits).ok());
}

TEST_F(CudaBackendTest, AHeadDimensionWithoutKernelsIsRefused) {
  const StepLimits limits = {.tokens = 1, .attention = {2, 1, 320, 0}, .weights = {}};
  const absl::Status status = backend_->Reserve(limits);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("heads of 320 elements"));
}

}  // namespace
}  // namespace marcoro
