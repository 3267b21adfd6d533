// What is said of memory before a model is read.
#include "worker/kv_cache_size.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/kernels/cuda/device_backends.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

constexpr StepBounds kBounds = {.tokens = 32, .logit_rows = 8, .context_length = 512};

// A token takes keys and values of 2 layers, 2 heads and 16 elements in BF16: 256 bytes; half of
// that on each of two ranks.
constexpr int64_t kTokenBytes = 256;
ModelConfig Model() {
  ModelConfig model;
  model.hidden_size = 64;
  model.layers = 2;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 16;
  model.ffn_size = 176;
  model.vocabulary_size = 1024;
  model.rope_theta = 1e4f;
  return model;
}

class KvCacheSizeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (DeviceBackendNames().empty()) GTEST_SKIP() << "no device";
    device_ = *MakeDeviceBackend(/*threads=*/1);
    free_ = static_cast<int64_t>(device_->AvailableMemory());
  }
  absl::Status Check(const WorkerConfig& config) const {
    return CheckRoomForKvCache(config, Model(), kBounds, *device_);
  }

  std::unique_ptr<Backend> device_;
  int64_t free_ = 0;  // bytes
};

TEST_F(KvCacheSizeTest, AGivenNumberOfTokensFitsOrIsToldWithWhatIsMissing) {
  WorkerConfig config;
  config.kv_tokens = free_ / kTokenBytes / 2;
  EXPECT_TRUE(Check(config).ok());
  config.kv_tokens = 2 * free_ / kTokenBytes;
  const absl::Status status = Check(config);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(std::to_string(config.kv_tokens) + " tokens"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("missing"));
  config.kv_tokens = free_ / kTokenBytes;
  config.world_size = 2;
  EXPECT_TRUE(Check(config).ok()) << "a rank of two has one of the heads";
}

TEST_F(KvCacheSizeTest, TooSmallAShareOfTheMemoryIsRankZerosToTell) {
  WorkerConfig config;
  EXPECT_TRUE(Check(config).ok());
  config.world_size = 2;
  config.memory_fraction = 1e-12;
  const absl::Status status = Check(config);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--memory-fraction=1e-12"));
  config.rank = 1;
  EXPECT_TRUE(Check(config).ok());
}

// One context for each sequence that may run, where memory allows it.
TEST_F(KvCacheSizeTest, NoMoreThanCanBeUsedIsTaken) {
  WorkerConfig config;
  config.max_sequences = 3;
  config.memory_fraction = 0.9;
  const auto tokens = SizeKvCache(config, Model(), kBounds, *device_);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*tokens, 3 * 512);
}

TEST(KvCacheSizeOnTheHostTest, NothingIsToldWhereMemoryIsTakenAsItIsWritten) {
  const auto backend = CreateBackend({.name = "reference"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  WorkerConfig config;
  config.kv_tokens = int64_t{1} << 50;
  EXPECT_TRUE(CheckRoomForKvCache(config, Model(), kBounds, **backend).ok());
}

}  // namespace
}  // namespace marcoro
