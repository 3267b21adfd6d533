// Pre-quantized checkpoints as sources and as loaded shards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/describe.h"
#include "worker/weights/identity.h"
#include "worker/weights/loader.h"

namespace marcoro {
namespace {

using testing::E4M3Value;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;
using testing::WriteTensors;

constexpr char kUpProj[] = "model.layers.0.mlp.up_proj.weight";  // (336, 160)

// The scale of an element, from the shape of the scales: one, one for each row, or one for each
// 128 x 128 block.
float ScaleOf(const StoredTensors& tensors, const std::string& weight, int64_t row,
              int64_t column) {
  const auto inverse = tensors.find(weight + "_scale_inv");
  if (inverse != tensors.end()) {
    const int64_t blocks = inverse->second.shape[1];
    return inverse->second.Floats()[static_cast<size_t>(row / 128 * blocks + column / 128)];
  }
  const std::vector<float> scales = tensors.at(weight + "_scale").Floats();
  return scales.size() == 1 ? scales[0] : scales[static_cast<size_t>(row)];
}

// A code times its scale in float32, element by element.
std::vector<float> Dequantized(const StoredTensors& tensors, const std::string& weight) {
  const StoredTensor& stored = tensors.at(weight);
  std::vector<float> numbers;
  for (int64_t row = 0; row < stored.shape[0]; ++row) {
    for (int64_t column = 0; column < stored.shape[1]; ++column) {
      const char code = stored.bytes[static_cast<size_t>(row * stored.shape[1] + column)];
      numbers.push_back(E4M3Value(static_cast<uint8_t>(code)) *
                        ScaleOf(tensors, weight, row, column));
    }
  }
  return numbers;
}

class QuantizedSource : public ::testing::TestWithParam<const char*> {
 protected:
  std::string Folder() const { return TestData(std::string("quantized/") + GetParam()); }
};

TEST_P(QuantizedSource, RowsAreCodesTimesScales) {
  const StoredTensors tensors = ReadTensors(Folder());
  auto source = CheckpointSource::Open(Folder());
  ASSERT_TRUE(source.ok()) << source.status();
  int weights = 0;
  for (const auto& [name, stored] : tensors) {
    if (stored.dtype != "F8_E4M3") continue;
    ++weights;
    const TensorInfo& info = *(*source)->Find(name);
    std::vector<float> rows(static_cast<size_t>(info.rows() * info.columns()));
    for (int64_t row = 0; row < info.rows(); row += 7) {  // pieces that no block divides
      const int64_t count = std::min<int64_t>(7, info.rows() - row);
      ASSERT_TRUE((*source)->ReadRows(info, row, count, rows.data() + row * info.columns()).ok());
    }
    EXPECT_EQ(rows, Dequantized(tensors, name)) << name;
  }
  EXPECT_EQ(weights, 7);
}

TEST_P(QuantizedSource, RowScaledCodesAreGivenAsTheyAre) {
  const StoredTensors tensors = ReadTensors(Folder());
  auto source = CheckpointSource::Open(Folder());
  ASSERT_TRUE(source.ok()) << source.status();
  const TensorInfo& info = *(*source)->Find(kUpProj);
  if (tensors.contains(std::string(kUpProj) + "_scale_inv")) {
    EXPECT_EQ((*source)->FormOf(info), Fp8Form::kNone);
    return;
  }
  ASSERT_EQ((*source)->FormOf(info), Fp8Form::kStored);
  std::string codes(static_cast<size_t>(10 * info.columns()), '\0');
  std::vector<float> scales(10);
  ASSERT_TRUE(
      (*source)
          ->ReadCodes(info, 150, 10, reinterpret_cast<uint8_t*>(codes.data()), scales.data())
          .ok());
  EXPECT_EQ(codes, tensors.at(kUpProj).bytes.substr(150 * 160, 10 * 160));
  for (int64_t i = 0; i < 10; ++i) {
    EXPECT_EQ(scales[static_cast<size_t>(i)], ScaleOf(tensors, kUpProj, 150 + i, 0));
  }
}

// Numbers of a weight as a backend holds it, through products with one-hot rows.
std::vector<float> Unpack(Backend& backend, const PackedWeight& weight) {
  const int64_t rows = weight.shape.rows;
  const int64_t columns = weight.shape.columns;
  std::vector<float> ones(static_cast<size_t>(columns * columns));
  for (int64_t i = 0; i < columns; ++i) ones[static_cast<size_t>(i * columns + i)] = 1.0f;
  std::vector<float> transposed(static_cast<size_t>(columns * rows));
  backend.Matmul(Tensor(ones.data(), DType::kF32, columns, columns), weight,
                 Tensor(transposed.data(), DType::kF32, columns, rows));
  std::vector<float> numbers;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      numbers.push_back(transposed[static_cast<size_t>(column * rows + row)]);
    }
  }
  return numbers;
}

std::unique_ptr<Backend> MakeBackend() {
  auto backend = CreateBackend({.name = "reference", .threads = 2, .activations = DType::kF32});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

std::vector<float> RoundedToBf16(std::vector<float> numbers) {
  for (float& number : numbers) number = ToFloat(ToBFloat16(number));
  return numbers;
}

// Rows [row, row + rows) and columns [column, column + columns) of a matrix `width` wide.
std::vector<float> Cut(const std::vector<float>& matrix, int64_t width, int64_t row, int64_t rows,
                       int64_t column, int64_t columns) {
  std::vector<float> part;
  for (int64_t i = row; i < row + rows; ++i) {
    const auto begin = matrix.begin() + i * width + column;
    part.insert(part.end(), begin, begin + columns);
  }
  return part;
}

TEST_P(QuantizedSource, ShardsHoldTheStoredNumbersAtEveryDegree) {
  const ModelConfig config = LoadModelConfig(Folder()).value();  // 2 KV heads: tp 1 and 2
  const StoredTensors tensors = ReadTensors(Folder());
  const bool blocks = tensors.contains(std::string(kUpProj) + "_scale_inv");
  auto source = CheckpointSource::Open(Folder());
  ASSERT_TRUE(source.ok()) << source.status();
  auto backend = MakeBackend();
  std::vector<float> up = Dequantized(tensors, kUpProj);
  std::vector<float> down = Dequantized(tensors, "model.layers.0.mlp.down_proj.weight");
  if (blocks) {
    up = RoundedToBf16(up);
    down = RoundedToBf16(down);
  }
  for (const int world_size : {1, 2}) {
    for (int rank = 0; rank < world_size; ++rank) {
      std::vector<std::string> warnings;
      LoadOptions options;
      options.warn = [&warnings](const std::string& message) { warnings.push_back(message); };
      auto loaded = LoadParameters(**source, config, {rank, world_size}, options, *backend);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      const LayerParameters& layer = loaded->layers[0];
      EXPECT_EQ(layer.down.shape.dtype, blocks ? DType::kBF16 : DType::kF8E4M3);
      const int64_t ffn = 336 / world_size;
      EXPECT_EQ(Unpack(*backend, layer.down), Cut(down, 336, 0, 160, rank * ffn, ffn));
      const std::vector<float> gate_up = Unpack(*backend, layer.gate_up);
      EXPECT_EQ(Cut(gate_up, 160, ffn, ffn, 0, 160), Cut(up, 160, rank * ffn, ffn, 0, 160));
      if (!blocks) {
        EXPECT_THAT(warnings, ::testing::IsEmpty());  // scales are no unused tensors
        continue;
      }
      ASSERT_EQ(warnings.size(), 1u);
      EXPECT_THAT(warnings[0], HasSubstr("4 of 4 linear weights are held in BF16"));
    }
  }
}

TEST_P(QuantizedSource, AsBf16ItIsDequantizedAndRoundedOnce) {
  const ModelConfig config = LoadModelConfig(Folder()).value();
  auto source = CheckpointSource::Open(Folder());
  ASSERT_TRUE(source.ok()) << source.status();
  auto backend = MakeBackend();
  LoadOptions options;
  options.linear_dtype = DType::kBF16;
  auto loaded = LoadParameters(**source, config, {0, 1}, options, *backend);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(
      Unpack(*backend, loaded->layers[0].o_proj),
      RoundedToBf16(Dequantized(ReadTensors(Folder()), "model.layers.0.self_attn.o_proj.weight")));
}

TEST_P(QuantizedSource, IsDescribedAsServable) {
  const auto description = DescribeCheckpoint(Folder());
  ASSERT_TRUE(description.ok()) << description.status();
  EXPECT_TRUE(description->servable.ok()) << description->servable;
  EXPECT_THAT(description->quantization, HasSubstr("FP8, a scale per "));
  // 160·(160 + 80 + 80 + 160) + 3·160·336 linear numbers in 160 + 80 + 80 + 160 + 336 + 336 + 160
  // rows; two tables of 320·160; three norms.
  const uint64_t others = 2 * 320 * 160 * 2 + 3 * 160 * 4;
  const bool blocks = std::string(GetParam()) == "fp8_block";
  EXPECT_EQ(description->bf16_bytes, 238'080u * 2 + others);
  EXPECT_EQ(description->fp8_bytes,
            blocks ? description->bf16_bytes : 238'080u + 1312 * 4 + others);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedSource,
                         ::testing::Values("autofp8_dynamic", "autofp8_static", "fp8_block",
                                           "compressed_tensors_tensor",
                                           "compressed_tensors_channel", "modelopt_fp8",
                                           "modelopt_hf_quant_config"),
                         [](const auto& test) { return std::string(test.param); });

// Files of a golden checkpoint with changes.
class ChangedQuantized : public ::testing::Test {
 protected:
  explicit ChangedQuantized(const std::string& folder = "compressed_tensors_channel")
      : original_(TestData("quantized/" + folder)),
        config_text_(ReadFile(original_ + "/config.json")),
        tensors_(ReadTensors(original_)) {}

  absl::StatusOr<std::unique_ptr<CheckpointSource>> Open() {
    WriteFile(folder_.File("config.json"), config_text_);
    WriteTensors(folder_.File("model.safetensors"), tensors_);
    return CheckpointSource::Open(folder_.path());
  }

  void ExpectRefused(const std::string& tensor, const std::string& what) {
    const absl::Status status = Open().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path() + "/model.safetensors"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(tensor));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }

  // A scale of kUpProj in BF16.
  void SetScale(size_t index, uint16_t bits) {
    std::memcpy(tensors_.at(kScale).bytes.data() + 2 * index, &bits, 2);
  }

  static constexpr char kScale[] = "model.layers.0.mlp.up_proj.weight_scale";

  TempFolder folder_;
  const std::string original_;
  std::string config_text_;
  StoredTensors tensors_;
};

TEST_F(ChangedQuantized, UnchangedOpens) { EXPECT_TRUE(Open().ok()) << Open().status(); }

TEST_F(ChangedQuantized, AMissingScaleIsNamed) {
  tensors_.erase(kScale);
  ExpectRefused(kUpProj, std::string(kScale) + ", are missing");
}

TEST_F(ChangedQuantized, AScaleOfTheWrongShapeIsNamedWithBothShapes) {
  tensors_.at(kScale).shape = {1, 336};
  ExpectRefused(kScale, "has shape [1, 336]");
  ExpectRefused(kScale, "[336, 1] or [336]");
}

TEST_F(ChangedQuantized, AScaleOfATypeThatIsNoNumberIsNamed) {
  tensors_.at(kScale).dtype = "I16";
  ExpectRefused(kScale, "dtype I16");
}

TEST_F(ChangedQuantized, ScalesThatAreNotFiniteOrNotAboveZeroAreNamed) {
  // NaN, infinity, zero, minus zero, minus one, and what overflows when a code of 448 meets it.
  for (const uint16_t bits : {0x7fc0, 0x7f80, 0x0000, 0x8000, 0xbf80, 0x7f00}) {
    SetScale(335, bits);
    ExpectRefused(kScale, "scale 335 is ");
  }
}

TEST_F(ChangedQuantized, ACodeThatIsNaNIsNamedWithItsRow) {
  const ModelConfig config = LoadModelConfig(original_).value();
  auto backend = MakeBackend();
  for (const char code : {'\x7f', '\xff'}) {
    tensors_ = ReadTensors(original_);
    tensors_.at(kUpProj).bytes[37 * 160 + 159] = code;
    for (const DType linear : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
      auto source = Open();
      ASSERT_TRUE(source.ok()) << source.status();
      LoadOptions options;
      options.linear_dtype = linear;
      const absl::Status status =
          LoadParameters(**source, config, {0, 1}, options, *backend).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(kUpProj) + ": row 37"));
    }
  }
}

TEST_F(ChangedQuantized, AnIgnoredLayerStaysAsItIsStored) {
  const StoredTensors plain = ReadTensors(TestData("quantized/bf16"));
  const std::string name = "model.layers.0.self_attn.k_proj.weight";
  tensors_[name] = plain.at(name);
  tensors_.erase(name + "_scale");
  const std::string list = "\"lm_head\"";
  config_text_.replace(config_text_.find(list), list.size(),
                       list + ", \"model.layers.0.self_attn.k_proj\"");
  auto source = Open();
  ASSERT_TRUE(source.ok()) << source.status();
  auto backend = MakeBackend();
  LoadOptions options;
  std::vector<std::string> warnings;
  options.warn = [&warnings](const std::string& message) { warnings.push_back(message); };
  auto loaded =
      LoadParameters(**source, LoadModelConfig(original_).value(), {0, 1}, options, *backend);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  // q, k and v are one weight, so it is BF16; the others are FP8 as before.
  const LayerParameters& layer = loaded->layers[0];
  EXPECT_EQ(layer.qkv.shape.dtype, DType::kBF16);
  EXPECT_EQ(layer.o_proj.shape.dtype, DType::kF8E4M3);
  EXPECT_EQ(layer.gate_up.shape.dtype, DType::kF8E4M3);
  EXPECT_EQ(layer.down.shape.dtype, DType::kF8E4M3);
  EXPECT_EQ(Cut(Unpack(*backend, layer.qkv), 160, 160, 80, 0, 160), plain.at(name).Floats());
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr("1 of 4 linear weights"));
}

TEST_F(ChangedQuantized, AnIgnoredLayerThatIsFp8AllTheSameIsRefused) {
  const std::string list = "\"lm_head\"";
  config_text_.replace(config_text_.find(list), list.size(), "\"re:.*up_proj\"");
  ExpectRefused(kUpProj, "says that it is not quantized");
}

TEST_F(ChangedQuantized, AScaleBesideAPlainWeightIsRefused) {
  tensors_[kUpProj] = ReadTensors(TestData("quantized/bf16")).at(kUpProj);
  ExpectRefused(kScale, "belongs to a weight of type BF16");
}

TEST_F(ChangedQuantized, WithoutAnyFp8WeightTheConfigIsWrong) {
  tensors_ = ReadTensors(TestData("quantized/bf16"));
  const absl::Status status = Open().status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("no weight is of type F8_E4M3"));
}

TEST_F(ChangedQuantized, AQuantizedHeadIsDequantized) {
  // 320 x 160 codes of 1.5 with the scale 2: 3 everywhere.
  tensors_["lm_head.weight"] = {"F8_E4M3", {320, 160}, std::string(320 * 160, '\x3c')};
  StoredTensor scale{"BF16", {320, 1}, ""};
  for (int i = 0; i < 320; ++i) scale.bytes += std::string("\x00\x40", 2);
  tensors_["lm_head.weight_scale"] = scale;
  const std::string list = "\"lm_head\"";
  config_text_.erase(config_text_.find(list), list.size());
  auto source = Open();
  ASSERT_TRUE(source.ok()) << source.status();
  auto backend = MakeBackend();
  auto loaded = LoadParameters(**source, LoadModelConfig(original_).value(), {0, 1}, {}, *backend);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Unpack(*backend, loaded->lm_head), std::vector<float>(320 * 160, 3.0f));
}

TEST_F(ChangedQuantized, TheScalesArePartOfTheIdentity) {
  const ModelConfig config = LoadModelConfig(original_).value();
  auto before = Open();
  ASSERT_TRUE(before.ok()) << before.status();
  const std::string identity = WeightsIdentity(**before, config).value();
  SetScale(7, 0x3c00);
  auto after = Open();
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_NE(WeightsIdentity(**after, config).value(), identity);
}

TEST_F(ChangedQuantized, AnUnknownFormatIsDescribedButNotServable) {
  const std::string format = "float-quantized";
  config_text_.replace(config_text_.find(format), format.size(), "pack-quantized");
  EXPECT_FALSE(Open().ok());
  const auto description = DescribeCheckpoint(folder_.path());
  ASSERT_TRUE(description.ok()) << description.status();
  EXPECT_THAT(description->quantization, HasSubstr("pack-quantized"));
  EXPECT_THAT(std::string(description->servable.message()), HasSubstr("pack-quantized"));
}

class ChangedBlocks : public ChangedQuantized {
 protected:
  ChangedBlocks() : ChangedQuantized("fp8_block") {}
};

TEST_F(ChangedBlocks, RaggedBlocksMustAllBeThere) {
  const std::string name = std::string(kUpProj) + "_scale_inv";  // 336 x 160: 3 x 2 blocks
  tensors_.at(name).shape = {2, 2};
  tensors_.at(name).bytes.resize(16);
  ExpectRefused(name, "need [3, 2]");
}

}  // namespace
}  // namespace marcoro
