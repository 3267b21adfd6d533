// Loading into a device's memory: what the device makes of stored rows is what the host makes of
// them, byte for byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/kernels/cuda/device_backends.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"
#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteTensors;

// A checkpoint that keeps to itself how it is stored: the host converts all of it.
class ConvertedSource final : public TensorSource {
 public:
  explicit ConvertedSource(TensorSource& inner) : inner_(inner) {}
  std::string Description() const override { return inner_.Description(); }
  const TensorInfo* Find(std::string_view name) const override { return inner_.Find(name); }
  std::vector<const TensorInfo*> Tensors() const override { return inner_.Tensors(); }
  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override {
    return inner_.ReadRows(tensor, first_row, count, out);
  }
  Fp8Form FormOf(const TensorInfo& tensor) const override { return inner_.FormOf(tensor); }
  absl::Status ReadCodes(const TensorInfo& tensor, int64_t first_row, int64_t count, uint8_t* codes,
                         float* scales) override {
    return inner_.ReadCodes(tensor, first_row, count, codes, scales);
  }
  absl::Status HashContents(const TensorInfo& tensor, Sha256& hash) override {
    return inner_.HashContents(tensor, hash);
  }

 private:
  TensorSource& inner_;
};

// A tensor in another type; its numbers are rounded, but for those that are not finite.
StoredTensor As(const std::string& dtype, const StoredTensor& tensor) {
  const std::vector<float> numbers = tensor.Floats();
  StoredTensor result{dtype, tensor.shape, {}};
  result.bytes.resize(numbers.size() * (dtype == "F32" ? 4 : 2));
  if (dtype == "F32") {
    std::memcpy(result.bytes.data(), numbers.data(), result.bytes.size());
    return result;
  }
  const RowKernels& kernels = GetRowKernels();
  (dtype == "F16" ? kernels.to_f16 : kernels.to_bf16)(
      numbers.data(), static_cast<int64_t>(numbers.size()),
      reinterpret_cast<uint16_t*>(result.bytes.data()));
  return result;
}

class DeviceLoaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto backend = MakeDeviceBackend(2);
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
  }

  // Every byte of the shard in the device's memory.
  absl::StatusOr<std::vector<std::string>> Load(TensorSource& source, const ModelConfig& config,
                                                const Shard& shard, DType linear,
                                                Backend& backend) {
    LoadOptions options;
    options.linear_dtype = linear;
    options.warn = [](const std::string&) {};
    auto loaded = LoadParameters(source, config, shard, options, backend);
    if (!loaded.ok()) return loaded.status();
    std::vector<std::string> buffers;
    for (const Buffer& buffer : loaded->storage) {
      std::string bytes(buffer.bytes(), '\0');
      absl::Status status = backend.Download(buffer.data(), bytes.data(), bytes.size());
      if (!status.ok()) return status;
      buffers.push_back(std::move(bytes));
    }
    return buffers;
  }

  absl::StatusOr<std::vector<std::string>> LoadTiny(const ModelConfig& config) {
    auto source = CheckpointSource::Open(TestData("tiny"));
    if (!source.ok()) return source.status();
    return Load(**source, config, {0, 1}, DType::kF8E4M3, *backend_);
  }

  void ExpectSameEitherWay(const std::string& folder, const ModelConfig& config, int world_size,
                           DType linear) {
    auto source = CheckpointSource::Open(folder);
    ASSERT_TRUE(source.ok()) << source.status();
    ConvertedSource converted(**source);
    for (int rank = 0; rank < world_size; ++rank) {
      const Shard shard{rank, world_size};
      const auto by_host = Load(converted, config, shard, linear, *backend_);
      ASSERT_TRUE(by_host.ok()) << by_host.status();
      const auto by_device = Load(**source, config, shard, linear, *backend_);
      ASSERT_TRUE(by_device.ok()) << by_device.status();
      ASSERT_EQ(by_host->size(), by_device->size());
      for (size_t i = 0; i < by_host->size(); ++i) {
        EXPECT_EQ((*by_host)[i] == (*by_device)[i], true) << "rank " << rank << ", buffer " << i;
      }
    }
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(DeviceLoaderTest, ShardsAreTheSameBytesWhoeverQuantizes) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  for (const int world_size : {1, 2}) {
    ExpectSameEitherWay(TestData("tiny"), config, world_size, DType::kF8E4M3);
    ExpectSameEitherWay(TestData("tiny"), config, world_size, DType::kBF16);
  }
}

// Products with E4M3 activations have a layout of their own.
TEST_F(DeviceLoaderTest, SoAreThoseThatArePackedForQuantizedActivations) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  const auto for_bf16 = LoadTiny(config);
  backend_ = MakeDeviceBackend(2, DType::kF8E4M3).value();
  ExpectSameEitherWay(TestData("tiny"), config, 1, DType::kF8E4M3);
  EXPECT_NE(LoadTiny(config).value(), for_bf16.value());
}

TEST_F(DeviceLoaderTest, SoAreThoseOfEveryStoredType) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  for (const char* dtype : {"F16", "F32"}) {
    SCOPED_TRACE(dtype);
    TempFolder folder;
    StoredTensors tensors = ReadTensors(TestData("tiny"));
    for (auto& [name, tensor] : tensors) tensor = As(dtype, tensor);
    WriteTensors(folder.File("model.safetensors"), tensors);
    ExpectSameEitherWay(folder.path(), config, 1, DType::kF8E4M3);
  }
}

TEST_F(DeviceLoaderTest, AWeightOfTensorsOfDifferentTypesIsLoadedToo) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  TempFolder folder;
  StoredTensors tensors = ReadTensors(TestData("tiny"));
  StoredTensor& key = tensors.at("model.layers.0.self_attn.k_proj.weight");
  key = As("F32", key);
  WriteTensors(folder.File("model.safetensors"), tensors);
  ExpectSameEitherWay(folder.path(), config, 1, DType::kF8E4M3);
}

TEST_F(DeviceLoaderTest, QuantizedCheckpointsKeepTheirCodesAndScales) {
  for (const char* name : {"compressed_tensors_channel", "fp8_block"}) {
    SCOPED_TRACE(name);
    const std::string folder = TestData(std::string("quantized/") + name);
    ExpectSameEitherWay(folder, LoadModelConfig(folder).value(), 1, DType::kF8E4M3);
  }
}

// As the reference backend's loader says it (loader_test.cc).
TEST_F(DeviceLoaderTest, NumbersThatAreNotFiniteAreNamedAsOnTheHost) {
  const ModelConfig config = LoadModelConfig(TestData("tiny")).value();
  auto reference = CreateBackend({.name = "reference", .activations = DType::kBF16});
  ASSERT_TRUE(reference.ok());
  struct Bad {
    const char* tensor;
    size_t element;
  };
  for (const Bad& bad :
       {Bad{"model.layers.1.mlp.down_proj.weight", 37 * 176 + 175},
        Bad{"model.layers.0.self_attn.v_proj.weight", 5 * 64}, Bad{"lm_head.weight", 64 * 100 + 1},
        Bad{"model.embed_tokens.weight", 64 * 300}}) {
    SCOPED_TRACE(bad.tensor);
    TempFolder folder;
    StoredTensors tensors = ReadTensors(TestData("tiny"));
    const uint16_t nan = 0x7fc0;
    std::memcpy(tensors.at(bad.tensor).bytes.data() + bad.element * 2, &nan, 2);
    WriteTensors(folder.File("model.safetensors"), tensors);
    auto source = CheckpointSource::Open(folder.path());
    ASSERT_TRUE(source.ok()) << source.status();
    const auto expected = Load(**source, config, {0, 1}, DType::kF8E4M3, **reference).status();
    const auto actual = Load(**source, config, {0, 1}, DType::kF8E4M3, *backend_).status();
    EXPECT_EQ(actual.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(actual, expected);
  }
}

}  // namespace
}  // namespace marcoro
