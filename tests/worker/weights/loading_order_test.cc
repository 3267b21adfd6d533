// In which order a rank asks for rows and reads them. What it reads is loader_test.cc's matter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

  absl::Status Prepare(const TensorInfo& tensor, const ParallelFor& parallel) override {
    std::vector<int64_t>& order = prepared[tensor.name];
    if (order.empty()) parallel(8, [&order](int64_t piece) { order.push_back(piece); });
    return absl::OkStatus();
  }

  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override {
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

 private:
  std::map<std::string, std::vector<int>> asked_;
};

class LoadingOrder : public ::testing::Test {
 protected:
  std::unique_ptr<RecordingSource> Load(const Shard& shard) {
    auto source = std::make_unique<RecordingSource>(Config());
    BackendOptions options;
    options.name = "reference";
    options.threads = 1;
    auto backend = CreateBackend(options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    const auto loaded = LoadParameters(*source, Config(), shard, {}, **backend);
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

}  // namespace
}  // namespace marcoro
