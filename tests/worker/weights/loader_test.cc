#include "worker/weights/loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/random_source.h"

namespace marcoro {
namespace {

using testing::E4M3Value;
using ::testing::HasSubstr;
using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TestData;

std::unique_ptr<Backend> MakeBackend(DType activations, const std::string& name = "reference") {
  BackendOptions options;
  options.name = name;
  options.threads = 2;
  options.activations = activations;
  auto backend = CreateBackend(options);
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

// A matrix in float.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> values;

  bool operator==(const Matrix&) const = default;
};

// What a packed weight holds, asked for through the product with one-hot rows: each element times 1
// plus zeros.
Matrix Unpack(Backend& backend, const PackedWeight& weight) {
  const int64_t rows = weight.shape.rows;
  const int64_t columns = weight.shape.columns;
  const bool f32 = backend.activation_dtype() == DType::kF32;
  std::vector<float> ones(static_cast<size_t>(columns * columns));
  std::vector<BFloat16> short_ones(ones.size());
  for (int64_t i = 0; i < columns; ++i) {
    ones[static_cast<size_t>(i * columns + i)] = 1.0f;
    short_ones[static_cast<size_t>(i * columns + i)] = ToBFloat16(1.0f);
  }
  void* data = f32 ? static_cast<void*>(ones.data()) : static_cast<void*>(short_ones.data());
  std::vector<float> transposed(static_cast<size_t>(columns * rows));
  backend.Matmul(Tensor(data, backend.activation_dtype(), columns, columns), weight,
                 Tensor(transposed.data(), DType::kF32, columns, rows));
  Matrix result{rows, columns, std::vector<float>(transposed.size())};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      result.values[static_cast<size_t>(row * columns + column)] =
          transposed[static_cast<size_t>(column * rows + row)];
    }
  }
  return result;
}

Matrix AsMatrix(const StoredTensor& tensor) {
  return {tensor.shape[0], tensor.shape[1], tensor.Floats()};
}

Matrix Rows(const Matrix& matrix, int64_t first, int64_t count) {
  const auto begin = matrix.values.begin() + first * matrix.columns;
  return {count, matrix.columns, {begin, begin + count * matrix.columns}};
}

Matrix Columns(const Matrix& matrix, int64_t first, int64_t count) {
  Matrix result{matrix.rows, count, {}};
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const auto begin = matrix.values.begin() + row * matrix.columns + first;
    result.values.insert(result.values.end(), begin, begin + count);
  }
  return result;
}

Matrix Stack(const std::vector<Matrix>& parts) {
  Matrix result{0, parts[0].columns, {}};
  for (const Matrix& part : parts) {
    result.rows += part.rows;
    result.values.insert(result.values.end(), part.values.begin(), part.values.end());
  }
  return result;
}

// The E4M3FN value nearest to a quotient: the one with the even code on ties.
float NearestE4M3(float quotient) {
  static const std::vector<float> values = [] {
    std::vector<float> all;
    for (int code = 0; code <= 0x7e; ++code) all.push_back(E4M3Value(static_cast<uint8_t>(code)));
    return all;
  }();
  const double magnitude = std::min(std::fabs(quotient), 448.0f);
  const size_t above = static_cast<size_t>(
      std::lower_bound(values.begin(), values.end(), magnitude) - values.begin());
  const size_t below = above == 0 ? 0 : above - 1;
  const double to_above = values[above] - magnitude;
  const double to_below = magnitude - values[below];
  const bool take_above = to_above < to_below || (to_above == to_below && above % 2 == 0);
  return std::copysign(values[take_above ? above : below], quotient);
}

// The numbers that stand for a matrix in a linear format: a row's codes times its scale.
Matrix Rounded(Matrix matrix, DType dtype) {
  for (int64_t row = 0; row < matrix.rows; ++row) {
    float* numbers = matrix.values.data() + row * matrix.columns;
    float largest = 0;
    for (int64_t i = 0; i < matrix.columns; ++i) largest = std::max(largest, std::fabs(numbers[i]));
    const float scale = largest == 0 ? 1.0f : largest / 448.0f;
    for (int64_t i = 0; i < matrix.columns; ++i) {
      if (dtype == DType::kF8E4M3) numbers[i] = NearestE4M3(numbers[i] / scale) * scale;
      if (dtype == DType::kBF16) numbers[i] = ToFloat(ToBFloat16(numbers[i]));
    }
  }
  return matrix;
}

// What rank `shard` must hold of a checkpoint, cut by the rules of parameters.h from tensors that
// were read independently.
class Expectation {
 public:
  Expectation(const ModelConfig& config, const StoredTensors& tensors, const Shard& shard)
      : config_(config), tensors_(tensors), shard_(shard) {}

  Matrix Qkv(int layer, DType dtype) const {
    return Stack({RankRows(Linear(layer, "self_attn.q_proj", dtype)),
                  RankRows(Linear(layer, "self_attn.k_proj", dtype)),
                  RankRows(Linear(layer, "self_attn.v_proj", dtype))});
  }
  Matrix GateUp(int layer, DType dtype) const {
    return Stack({RankRows(Linear(layer, "mlp.gate_proj", dtype)),
                  RankRows(Linear(layer, "mlp.up_proj", dtype))});
  }
  // Rounded whole, then cut: the scale is the whole row's.
  Matrix RowParallel(int layer, const std::string& part, DType dtype) const {
    const Matrix whole = Linear(layer, part, dtype);
    const int64_t count = whole.columns / shard_.world_size;
    return Columns(whole, shard_.rank * count, count);
  }
  Matrix LmHead(DType dtype) const {
    const Matrix whole =
        Rounded(AsMatrix(tensors_.at(config_.tied_embeddings ? "model.embed_tokens.weight"
                                                             : "lm_head.weight")),
                dtype);
    const int64_t rows = LogitShardRows(config_, shard_.world_size);
    const int64_t first = std::min(shard_.rank * rows, whole.rows);
    Matrix part = Rows(whole, first, std::min(rows, whole.rows - first));
    part.rows = rows;
    part.values.resize(static_cast<size_t>(rows * part.columns));
    return part;
  }
  std::vector<float> Norm(int layer, const std::string& part) const {
    return tensors_.at(Name(layer, part)).Floats();
  }

 private:
  static std::string Name(int layer, const std::string& part) {
    return "model.layers." + std::to_string(layer) + "." + part + ".weight";
  }
  Matrix Linear(int layer, const std::string& part, DType dtype) const {
    return Rounded(AsMatrix(tensors_.at(Name(layer, part))), dtype);
  }
  Matrix RankRows(const Matrix& whole) const {
    const int64_t count = whole.rows / shard_.world_size;
    return Rows(whole, shard_.rank * count, count);
  }

  const ModelConfig& config_;
  const StoredTensors& tensors_;
  const Shard shard_;
};

struct Case {
  const char* checkpoint;
  DType linear;
  DType activations;
  int world_size;
};

std::string Name(const Case& test) {
  const std::string weights = test.linear == DType::kF8E4M3 ? "Fp8"
                              : test.linear == DType::kBF16 ? "Bf16"
                                                            : "F32";
  return std::string(test.checkpoint) + weights +
         (test.activations == DType::kF32 ? "ActF32" : "ActBf16") + "Tp" +
         std::to_string(test.world_size);
}

void PrintTo(const Case& test, std::ostream* out) { *out << Name(test); }

class LoadedShards : public ::testing::TestWithParam<Case> {};

TEST_P(LoadedShards, HoldWhatTheCheckpointHolds) {
  const Case& test = GetParam();
  const std::string folder = TestData(test.checkpoint);
  const ModelConfig config = LoadModelConfig(folder).value();
  const StoredTensors tensors = ReadTensors(folder);
  auto backend = MakeBackend(test.activations);
  auto source = CheckpointSource::Open(folder);
  ASSERT_TRUE(source.ok()) << source.status();
  for (int rank = 0; rank < test.world_size; ++rank) {
    SCOPED_TRACE(rank);
    const Shard shard{rank, test.world_size};
    LoadOptions options;
    options.linear_dtype = test.linear;
    auto loaded = LoadParameters(**source, config, shard, options, *backend);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    const Expectation expected(config, tensors, shard);

    const Matrix table = AsMatrix(tensors.at("model.embed_tokens.weight"));
    ASSERT_EQ(loaded->embedding.dtype, test.activations);
    std::vector<int32_t> ids(static_cast<size_t>(table.rows));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    Matrix embedded = table;
    backend->Embed(ids, loaded->embedding,
                   Tensor(embedded.values.data(), DType::kF32, table.rows, table.columns));
    EXPECT_EQ(embedded, Rounded(table, test.activations));
    EXPECT_EQ(Unpack(*backend, loaded->lm_head), expected.LmHead(test.activations));
    EXPECT_EQ(loaded->final_norm, tensors.at("model.norm.weight").Floats());

    for (int i = 0; i < config.layers; ++i) {
      SCOPED_TRACE(i);
      const LayerParameters& layer = loaded->layers[static_cast<size_t>(i)];
      EXPECT_EQ(layer.attention_norm, expected.Norm(i, "input_layernorm"));
      EXPECT_EQ(layer.ffn_norm, expected.Norm(i, "post_attention_layernorm"));
      EXPECT_EQ(Unpack(*backend, layer.qkv), expected.Qkv(i, test.linear));
      EXPECT_EQ(Unpack(*backend, layer.gate_up), expected.GateUp(i, test.linear));
      EXPECT_EQ(Unpack(*backend, layer.o_proj),
                expected.RowParallel(i, "self_attn.o_proj", test.linear));
      EXPECT_EQ(Unpack(*backend, layer.down),
                expected.RowParallel(i, "mlp.down_proj", test.linear));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LoadedShards,
                         ::testing::Values(Case{"tiny", DType::kF8E4M3, DType::kF32, 1},
                                           Case{"tiny", DType::kF8E4M3, DType::kF32, 2},
                                           Case{"tiny", DType::kBF16, DType::kBF16, 2},
                                           Case{"small", DType::kF8E4M3, DType::kF32, 1},
                                           Case{"small", DType::kF8E4M3, DType::kF32, 2},
                                           Case{"small", DType::kF8E4M3, DType::kF32, 4},
                                           Case{"small", DType::kF8E4M3, DType::kF32, 8},
                                           Case{"small", DType::kBF16, DType::kBF16, 1},
                                           Case{"small", DType::kBF16, DType::kBF16, 8},
                                           Case{"small", DType::kF32, DType::kF32, 4},
                                           Case{"window", DType::kF8E4M3, DType::kF32, 1},
                                           Case{"window", DType::kF8E4M3, DType::kF32, 2},
                                           Case{"window", DType::kBF16, DType::kBF16, 2},
                                           Case{"window", DType::kF32, DType::kF32, 1}),
                         [](const auto& test) { return Name(test.param); });

TEST(Loader, GivesTheSameScalesAtEveryDegree) {
  const ModelConfig config = LoadModelConfig(TestData("small")).value();
  auto source = CheckpointSource::Open(TestData("small"));
  auto backend = MakeBackend(DType::kF32);
  const auto whole = LoadParameters(**source, config, {0, 1}, {}, *backend);
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (int rank = 0; rank < 8; ++rank) {
    const auto part = LoadParameters(**source, config, {rank, 8}, {}, *backend);
    ASSERT_TRUE(part.ok()) << part.status();
    for (size_t i = 0; i < whole->layers.size(); ++i) {
      const PackedWeight& expected = whole->layers[i].down;
      const PackedWeight& actual = part->layers[i].down;
      for (int64_t row = 0; row < expected.shape.rows; ++row) {
        ASSERT_EQ(actual.scales[row], expected.scales[row]) << "layer " << i << " row " << row;
      }
    }
  }
}

// A vocabulary that the degree does not divide: 10 rows over 4 ranks are 3, 3, 3 and 1.
TEST(Loader, PadsTheLastVocabularyRowsWithZeros) {
  ModelConfig config = LoadModelConfig(TestData("small")).value();
  config.vocabulary_size = 10;
  RandomSource source(config, 7);
  auto backend = MakeBackend(DType::kF32);
  Matrix joined{0, config.hidden_size, {}};
  for (int rank = 0; rank < 4; ++rank) {
    const auto part = LoadParameters(source, config, {rank, 4}, {}, *backend);
    ASSERT_TRUE(part.ok()) << part.status();
    ASSERT_EQ(part->lm_head.shape.rows, 3);
    joined = joined.rows == 0 ? Unpack(*backend, part->lm_head)
                              : Stack({joined, Unpack(*backend, part->lm_head)});
  }
  Matrix expected{12, config.hidden_size, std::vector<float>(12u * 256u)};
  ASSERT_TRUE(source.ReadRows(*source.Find("lm_head.weight"), 0, 10, expected.values.data()).ok());
  EXPECT_EQ(joined, expected);
}

TEST(Loader, TellsProgressUpToEveryByteItReads) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  auto source = CheckpointSource::Open(TestData("tiny"));
  auto backend = MakeBackend(DType::kF32);
  std::vector<std::pair<uint64_t, uint64_t>> calls;
  LoadOptions options;
  options.progress = [&calls](uint64_t done, uint64_t total) { calls.emplace_back(done, total); };
  ASSERT_TRUE(LoadParameters(**source, config, {0, 1}, options, *backend).ok());
  // 223,552 parameters in BF16 (the data of the one file, all of which one rank reads).
  const uint64_t total = 447'104;
  uint64_t before = 0;
  for (const auto& [done, of] : calls) {
    EXPECT_EQ(of, total);
    EXPECT_GT(done, before);
    before = done;
  }
  EXPECT_EQ(before, total);
}

TEST(Loader, RefusesDegreesThatTheModelDoesNotAllow) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();  // 2 KV heads
  RandomSource source(config, 1);
  auto backend = MakeBackend(DType::kF32);
  const auto loaded = LoadParameters(source, config, {0, 4}, {}, *backend);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("1, 2"));
}

}  // namespace
}  // namespace marcoro
