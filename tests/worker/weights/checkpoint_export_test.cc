#include "worker/weights/checkpoint_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/identity.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using testing::E4M3Value;
using testing::HalfValue;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteTensors;

constexpr uint64_t kNoLimit = uint64_t{1} << 60;

void OnOneThread(int64_t n, const std::function<void(int64_t)>& work) {
  for (int64_t i = 0; i < n; ++i) work(i);
}

void OnManyThreads(int64_t n, const std::function<void(int64_t)>& work) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < n; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

class Export : public ::testing::TestWithParam<const char*> {
 protected:
  // Writes the model in `in` to out_.
  absl::Status Write(const std::string& in, ExportFormat format, uint64_t shard_bytes = kNoLimit,
                     ExportOptions options = {}) {
    auto source = CheckpointSource::Open(in);
    if (!source.ok()) return source.status();
    const ModelConfig config = LoadModelConfig(in).value();
    auto plan = PlanExport(**source, config, format, shard_bytes);
    if (!plan.ok()) return plan.status();
    auto writer = CheckpointWriter::Begin({.directory = out_, .identity = "x"}, plan->shards);
    if (!writer.ok()) return writer.status();
    if (!options.parallel) options.parallel = OnOneThread;
    if (absl::Status status = ExportTensors(**source, *plan, options, **writer); !status.ok()) {
      return status;
    }
    auto json = Fp8ConfigJson(ReadFile(in + "/config.json"), in);
    if (!json.ok()) return json.status();
    const bool fp8 = format == ExportFormat::kFp8;
    absl::Status added =
        (*writer)->AddFile("config.json", fp8 ? *json : ReadFile(in + "/config.json"));
    return added.ok() ? (*writer)->Commit() : added;
  }

  void ExpectNothingWritten() const {
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(out_ + ".partial"));
  }

  TempFolder folder_;
  const std::string out_ = folder_.File("out");
};

bool IsLinear(const std::string& name) { return name.find("_proj.weight") != std::string::npos; }

void ExpectSame(const StoredTensor& written, const StoredTensor& original) {
  EXPECT_EQ(written.dtype, original.dtype);
  EXPECT_EQ(written.shape, original.shape);
  EXPECT_EQ(written.bytes, original.bytes);
}

// BF16 in one file, F16 in three, F32 with tied embeddings.
TEST_P(Export, PlainTensorsAreTheSourcesBitForBit) {
  ASSERT_TRUE(Write(TestData(GetParam()), ExportFormat::kPlain).ok());
  const StoredTensors original = ReadTensors(TestData(GetParam()));
  const StoredTensors written = ReadTensors(out_);
  EXPECT_EQ(written.size(), original.size());
  for (const auto& [name, tensor] : original) {
    SCOPED_TRACE(name);
    ExpectSame(written.at(name), tensor);
  }
}

// The number of a type that is nearest to a value, by trying those around it.
float NearestIn(const std::string& dtype, float value) {
  if (dtype == "F32") return value;
  if (dtype == "BF16") return ToFloat(ToBFloat16(value));
  float best = 0;
  for (uint16_t bits = 0; bits < 0x7c00; ++bits) {
    const double distance = std::fabs(double{HalfValue(bits)} - value);
    const double shortest = std::fabs(double{best} - value);
    if (distance < shortest || (distance == shortest && bits % 2 == 0)) best = HalfValue(bits);
  }
  return best;
}

TEST_P(Export, Fp8WeightsAreTheNearestCodesToTheScaleAsItIsStored) {
  ASSERT_TRUE(Write(TestData(GetParam()), ExportFormat::kFp8).ok());
  const StoredTensors original = ReadTensors(TestData(GetParam()));
  const StoredTensors written = ReadTensors(out_);
  for (const auto& [name, tensor] : original) {
    SCOPED_TRACE(name);
    if (!IsLinear(name)) {
      ExpectSame(written.at(name), tensor);
      continue;
    }
    const int64_t rows = tensor.shape[0];
    const int64_t columns = tensor.shape[1];
    const StoredTensor& scale = written.at(name + "_scale");
    EXPECT_EQ(written.at(name).dtype, "F8_E4M3");
    EXPECT_EQ(written.at(name).shape, tensor.shape);
    EXPECT_EQ(scale.dtype, tensor.dtype);
    EXPECT_EQ(scale.shape, (std::vector<int64_t>{rows, 1}));
    const std::vector<float> numbers = tensor.Floats();
    const std::vector<float> scales = scale.Floats();
    const std::string& codes = written.at(name).bytes;
    for (int64_t row = 0; row < rows; row += 13) {
      const float* begin = numbers.data() + row * columns;
      float largest = 0;
      for (int64_t i = 0; i < columns; ++i) largest = std::max(largest, std::fabs(begin[i]));
      const float expected_scale = scales[static_cast<size_t>(row)];
      ASSERT_EQ(expected_scale, NearestIn(tensor.dtype, largest / 448.0f)) << row;
      for (int64_t i = 0; i < columns; i += 7) {
        const auto code = static_cast<uint8_t>(codes[static_cast<size_t>(row * columns + i)]);
        const float quotient = begin[i] / expected_scale;
        const float error = std::fabs(E4M3Value(code) - quotient);
        // No neighbour is nearer; beyond 448 there is none.
        for (const int step : {-1, 1}) {
          const auto neighbour = static_cast<uint8_t>(code + step);
          if (((code ^ neighbour) & 0x80) != 0 || std::isnan(E4M3Value(neighbour))) continue;
          ASSERT_LE(error, std::fabs(E4M3Value(neighbour) - quotient)) << row << ", " << i;
        }
      }
    }
  }
  auto source = CheckpointSource::Open(out_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->quantization()->Description(), "compressed-tensors FP8, a scale per row");
}

TEST_P(Export, ShardsAndThreadsMakeNoDifferenceToTheTensors) {
  for (const ExportFormat format : {ExportFormat::kPlain, ExportFormat::kFp8}) {
    ASSERT_TRUE(Write(TestData(GetParam()), format).ok());
    const StoredTensors whole = ReadTensors(out_);
    fs::remove_all(out_);
    ExportOptions options;
    options.parallel = OnManyThreads;
    ASSERT_TRUE(Write(TestData(GetParam()), format, 100'000, options).ok());
    EXPECT_TRUE(fs::exists(out_ + "/model.safetensors.index.json"));
    const StoredTensors cut = ReadTensors(out_);
    ASSERT_EQ(cut.size(), whole.size());
    for (const auto& [name, tensor] : whole) ExpectSame(cut.at(name), tensor);
    fs::remove_all(out_);
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Export, ::testing::Values("tiny", "small", "window"));

using ExportTiny = Export;

TEST_F(ExportTiny, ShardsAreFilledUpToTheirSize) {
  auto source = CheckpointSource::Open(TestData("tiny"));
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  // Embedding and head are 131,072 bytes each, a layer's linear weights 92,160.
  auto plan = PlanExport(**source, config, ExportFormat::kPlain, 140'000);
  ASSERT_TRUE(plan.ok()) << plan.status();
  uint64_t total = 0;
  for (const CheckpointShard& shard : plan->shards) {
    uint64_t bytes = 0;
    for (const OutputTensor& tensor : shard) bytes += tensor.bytes();
    EXPECT_LE(bytes, 140'000u);
    total += bytes;
  }
  EXPECT_EQ(total, 447'104u);
  EXPECT_EQ(plan->shards.size(), 4u);
  // One byte a shard: each tensor alone, a weight with its scale.
  auto alone = PlanExport(**source, config, ExportFormat::kFp8, 1);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->shards.size(), 21u);
  EXPECT_EQ(alone->shards[2].size(), 2u);
  EXPECT_EQ(alone->shards[2][1].name, "model.layers.0.self_attn.q_proj.weight_scale");
}

TEST_F(ExportTiny, QuantizedOnceIsNotQuantizedAgain) {
  for (const ExportFormat format : {ExportFormat::kFp8, ExportFormat::kPlain}) {
    const absl::Status status = Write(TestData("quantized/fp8_block"), format);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("quantized already"));
    ExpectNothingWritten();
  }
}

TEST_F(ExportTiny, ANumberThatIsNotFiniteIsNamedAndLeavesNothing) {
  TempFolder bad;
  StoredTensors tensors = ReadTensors(TestData("tiny"));
  const std::string name = "model.layers.1.mlp.down_proj.weight";  // (64, 176) BF16
  const uint16_t nan = 0x7fc0;
  std::memcpy(tensors.at(name).bytes.data() + (37 * 176 + 5) * 2, &nan, 2);
  WriteTensors(bad.File("model.safetensors"), tensors);
  fs::copy_file(TestData("tiny/config.json"), bad.File("config.json"));
  for (const ExportFormat format : {ExportFormat::kPlain, ExportFormat::kFp8}) {
    const absl::Status status = Write(bad.path(), format);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name + ": row 37"));
    ExpectNothingWritten();
  }
}

TEST_F(ExportTiny, CancelledInTheMiddleItLeavesNothing) {
  std::atomic<bool> cancelled = false;
  ExportOptions options;
  options.cancelled = &cancelled;
  options.progress = [&cancelled](uint64_t done, uint64_t total) {
    if (done * 2 > total) cancelled = true;
  };
  const absl::Status status = Write(TestData("tiny"), ExportFormat::kPlain, 100'000, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  ExpectNothingWritten();
}

TEST_F(ExportTiny, ProgressEndsWithEveryByte) {
  uint64_t last = 0;
  ExportOptions options;
  options.progress = [&last](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    EXPECT_EQ(total, 447'104u);
    last = done;
  };
  ASSERT_TRUE(Write(TestData("tiny"), ExportFormat::kFp8, kNoLimit, options).ok());
  EXPECT_EQ(last, 447'104u);
}

TEST_F(ExportTiny, FinishedShardsAreNotWrittenAgain) {
  auto source = CheckpointSource::Open(TestData("tiny"));
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  auto plan = PlanExport(**source, config, ExportFormat::kPlain, 140'000);
  ASSERT_TRUE(plan.ok()) << plan.status();
  auto writer = CheckpointWriter::Begin({.directory = out_, .identity = "x"}, plan->shards);
  ASSERT_TRUE(writer.ok()) << writer.status();
  auto first = (*writer)->OpenShard(0);
  ASSERT_TRUE(first.ok()) << first.status();
  for (size_t i = 0; i < plan->shards[0].size(); ++i) {
    const std::string zeros(plan->shards[0][i].bytes(), '\0');
    ASSERT_TRUE((*first)->Write(i, 0, zeros.data(), zeros.size()).ok());
  }
  ASSERT_TRUE((*writer)->FinishShard(0, *std::move(first)).ok());
  uint64_t announced = 0;
  ExportOptions options;
  options.parallel = OnOneThread;
  options.progress = [&announced](uint64_t, uint64_t total) { announced = total; };
  ASSERT_TRUE(ExportTensors(**source, *plan, options, **writer).ok());
  ASSERT_TRUE((*writer)->Commit().ok());
  EXPECT_LT(announced, 447'104u);
  const StoredTensors written = ReadTensors(out_);
  const std::string kept = plan->shards[0][0].name;
  EXPECT_EQ(written.at(kept).bytes, std::string(written.at(kept).bytes.size(), '\0'));
}

TEST(Fp8ConfigJson, KeepsTheConfigAndSaysHowItIsQuantized) {
  auto text = Fp8ConfigJson(R"({"z": 1, "a": [2]})", "config.json");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->find("\"z\"") < text->find("\"a\""), true);
  const auto json = nlohmann::json::parse(*text);
  EXPECT_EQ(json["z"], 1);
  // As tests/data/quantized/compressed_tensors_channel has it.
  const auto golden =
      nlohmann::json::parse(ReadFile(TestData("quantized/compressed_tensors_channel/config.json")));
  EXPECT_EQ(json["quantization_config"], golden["quantization_config"]);
  EXPECT_FALSE(Fp8ConfigJson("[]", "config.json").ok());
}

// Of two contents, that is of neither.
TEST_F(ExportTiny, AFileThatIsWrittenToMeanwhileLeavesNothing) {
  const std::string in = folder_.File("in");
  fs::copy(TestData("small"), in);
  ExportOptions options;
  bool touched = false;
  options.progress = [&](uint64_t, uint64_t) {
    if (std::exchange(touched, true)) return;
    const std::string file = in + "/model-00002-of-00003.safetensors";
    fs::last_write_time(file, fs::last_write_time(file) + std::chrono::seconds(1));
  };
  const absl::Status status = Write(in, ExportFormat::kPlain, kNoLimit, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("model-00002-of-00003.safetensors: was changed while it was read"));
  ExpectNothingWritten();
}

}  // namespace
}  // namespace marcoro
