// In which order a rank asks for rows and reads them. What it reads is loader_test.cc's matter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "worker/weights/loader.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/random_source.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;

// Large enough that a table is read in several chunks.
ModelConfig Config() {
  ModelConfig config;
  config.architecture = "MistralForCausalLM";
  config.hidden_size = 512;
  config.layers = 2;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.ffn_size = 1024;
  config.vocabulary_size = 8192;
  config.max_positions = 128;
  config.rope_theta = 1e4f;
  config.rms_norm_epsilon = 1e-5f;
  return config;
}

// Random weights that remember what was wanted of them. For one thread.
class RecordingSource : public RandomSource {
 public:
  explicit RecordingSource(const ModelConfig& config) : RandomSource(config, 1) {}

  void Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) override {
    std::vector<int>& asked = asked_[tensor.name];
    asked.resize(static_cast<size_t>(tensor.rows()));
    if (!first_asked.contains(tensor.name)) first_asked[tensor.name] = first_row;
    for (int64_t row = first_row; row < first_row + count; ++row) {
      ++asked[static_cast<size_t>(row)];
    }
  }

  void Discard(const TensorInfo& tensor) override { discarded.push_back(tensor.name); }
  uint64_t StoredBytes() const override { return stored_bytes; }

  absl::Status Prepare(const TensorInfo& tensor, const ParallelFor& parallel) override {
    std::vector<int64_t>& order = prepared[tensor.name];
    if (order.empty()) parallel(8, [&order](int64_t piece) { order.push_back(piece); });
    return absl::OkStatus();
  }

  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override {
    if (std::count(discarded.begin(), discarded.end(), tensor.name) > 0) {
      read_too_late.push_back(tensor.name);
    }
    std::vector<int64_t>& rows = read[tensor.name];
    for (int64_t row = first_row; row < first_row + count; ++row) {
      rows.push_back(row);
      const std::vector<int>& asked = asked_[tensor.name];
      if (asked.empty() || asked[static_cast<size_t>(row)] == 0) unasked.push_back(tensor.name);
    }
    return RandomSource::ReadRows(tensor, first_row, count, out);
  }

  std::map<std::string, std::vector<int64_t>> prepared;  // pieces, in their order
  std::map<std::string, std::vector<int64_t>> read;      // rows, in their order
  std::map<std::string, int64_t> first_asked;            // the first row that was prefetched
  std::vector<std::string> unasked;                      // read without a prefetch before
  uint64_t stored_bytes = 0;                             // what the source says its files have
  std::vector<std::string> discarded;                    // in their order
  std::vector<std::string> read_too_late;                // after they were discarded

 private:
  std::map<std::string, std::vector<int>> asked_;
};

class LoadingOrder : public ::testing::Test {
 protected:
  std::unique_ptr<RecordingSource> Load(const Shard& shard, uint64_t stored_bytes = 0,
                                        uint64_t kept_bytes = 0) {
    auto source = std::make_unique<RecordingSource>(Config());
    source->stored_bytes = stored_bytes;
    LoadOptions load;
    load.kept_bytes = kept_bytes;
    BackendOptions options;
    options.name = "reference";
    options.threads = 1;
    auto backend = CreateBackend(options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    const auto loaded = LoadParameters(*source, Config(), shard, load, **backend);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return source;
  }
};

TEST_F(LoadingOrder, RanksTakeThePiecesOfATensorFromDifferentOnesOn) {
  const std::string tensor = LayerTensorName(1, "mlp.gate_proj");
  EXPECT_THAT(Load({0, 1})->prepared[tensor], ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Load({0, 2})->prepared[tensor], ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Load({1, 2})->prepared[tensor], ElementsAre(4, 5, 6, 7, 0, 1, 2, 3));
  EXPECT_THAT(Load({3, 4})->prepared[tensor], ElementsAre(6, 7, 0, 1, 2, 3, 4, 5));
}

TEST_F(LoadingOrder, RanksReadTheRowsOfASharedTableFromDifferentOnesOn) {
  const std::string table(kEmbeddingName);
  for (const Shard& shard : {Shard{0, 1}, Shard{0, 4}, Shard{1, 4}, Shard{3, 4}}) {
    const auto source = Load(shard);
    const std::vector<int64_t>& rows = source->read[table];
    // 8 chunks of 1024 rows: the rank's own quarter begins with a chunk.
    const int64_t begin = int64_t{8192} / shard.world_size * shard.rank;
    ASSERT_EQ(rows.size(), 8192u);
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i], (begin + static_cast<int64_t>(i)) % 8192) << "rank " << shard.rank;
    }
  }
}

TEST_F(LoadingOrder, EveryRowOfAWeightIsAskedForBeforeItIsRead) {
  for (const Shard& shard : {Shard{0, 1}, Shard{1, 2}}) {
    const auto source = Load(shard);
    EXPECT_EQ(source->read[LayerTensorName(1, "mlp.down_proj")].size(), 512u);
    EXPECT_THAT(source->unasked, ElementsAre()) << "rank " << shard.rank;
  }
}

// What will not fit beside a shard need not wait for it.
TEST(LoadingAllocated, IsAskedOnceWhenNothingHasBeenReadAndItsFailureIsTheLoads) {
  const auto backend = CreateBackend({.name = "reference"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  RecordingSource source(Config());
  int calls = 0;
  LoadOptions options;
  options.allocated = [&] {
    ++calls;
    return absl::ResourceExhaustedError("missing 1 MB");
  };
  EXPECT_EQ(LoadParameters(source, Config(), {}, options, **backend).status(),
            absl::ResourceExhaustedError("missing 1 MB"));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(source.read.empty());
}

constexpr uint64_t kMoreThanAnyMemory = uint64_t{1} << 60;

TEST_F(LoadingOrder, WhatMemoryHasRoomForIsNotDiscarded) {
  EXPECT_THAT(Load({0, 1}, uint64_t{1} << 20)->discarded, ElementsAre());
}

TEST_F(LoadingOrder, WhatMemoryHasNoRoomForIsDiscardedOnceItIsLoaded) {
  for (const Shard& shard : {Shard{0, 1}, Shard{1, 2}}) {
    const auto source = Load(shard, kMoreThanAnyMemory);
    std::vector<std::string> expected = {std::string(kEmbeddingName)};
    for (int layer = 0; layer < 2; ++layer) {
      for (const char* name :
           {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
        expected.push_back(LayerTensorName(layer, name));
      }
    }
    expected.push_back(std::string(kLmHeadName));
    EXPECT_EQ(source->discarded, expected) << "rank " << shard.rank;
    EXPECT_THAT(source->read_too_late, ElementsAre()) << "rank " << shard.rank;
  }
}

// The last two tensors are down_proj and lm_head: 512 · 1024 and 8192 · 512 numbers of BF16.
TEST_F(LoadingOrder, WhatWasLoadedLastStaysForOtherRanks) {
  constexpr uint64_t kDownProj = 1 << 20;
  constexpr uint64_t kLmHead = 8 << 20;
  const auto all_but_two = Load({0, 1}, kMoreThanAnyMemory, kDownProj + kLmHead);
  EXPECT_EQ(all_but_two->discarded.back(), LayerTensorName(1, "mlp.up_proj"));
  const auto all_but_one = Load({0, 1}, kMoreThanAnyMemory, kLmHead);
  EXPECT_EQ(all_but_one->discarded.back(), LayerTensorName(1, "mlp.down_proj"));
}

}  // namespace
}  // namespace marcoro
