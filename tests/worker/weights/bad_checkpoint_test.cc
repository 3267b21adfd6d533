// Checkpoints that cannot be loaded: what is wrong is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::ReadTensors;
using testing::StoredTensor;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;
using testing::WriteTensors;

std::unique_ptr<Backend> CreateReference() {
  auto backend = CreateBackend({.name = "reference", .threads = 2, .activations = DType::kF32});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

// Files of the tiny checkpoint with changes.
class BadCheckpoint : public ::testing::Test {
 protected:
  BadCheckpoint()
      : config_(LoadModelConfig(TestData("tiny")).value()),
        tensors_(ReadTensors(TestData("tiny"))) {}

  absl::Status Load(DType linear = DType::kF8E4M3) {
    WriteTensors(folder_.File("model.safetensors"), tensors_);
    auto source = CheckpointSource::Open(folder_.path());
    if (!source.ok()) return source.status();
    auto backend = CreateReference();
    LoadOptions options;
    options.linear_dtype = linear;
    options.warn = [this](const std::string& message) { warnings_.push_back(message); };
    return LoadParameters(**source, config_, {0, 1}, options, *backend).status();
  }

  void ExpectRefused(const absl::Status& status, const std::string& tensor,
                     const std::string& what) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
    EXPECT_THAT(std::string(status.message()), HasSubstr(tensor));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }

  TempFolder folder_;
  ModelConfig config_;
  StoredTensors tensors_;
  std::vector<std::string> warnings_;
};

TEST_F(BadCheckpoint, UnchangedLoadsWithoutWarning) {
  EXPECT_TRUE(Load().ok());
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(BadCheckpoint, MissingTensorIsNamed) {
  tensors_.erase("model.layers.1.mlp.up_proj.weight");
  ExpectRefused(Load(), "model.layers.1.mlp.up_proj.weight", "missing");
}

TEST_F(BadCheckpoint, WrongShapeIsNamedWithBothShapes) {
  tensors_["model.layers.0.self_attn.k_proj.weight"].shape = {64, 32};
  ExpectRefused(Load(), "model.layers.0.self_attn.k_proj.weight", "[64, 32]");
  ExpectRefused(Load(), "model.layers.0.self_attn.k_proj.weight", "[32, 64]");
}

TEST_F(BadCheckpoint, BiasIsRefused) {
  tensors_["model.layers.0.self_attn.q_proj.bias"] = {"BF16", {64}, std::string(128, '\0')};
  ExpectRefused(Load(), "model.layers.0.self_attn.q_proj.bias", "bias");
}

TEST_F(BadCheckpoint, TypeThatCannotBeReadIsNamed) {
  StoredTensor& tensor = tensors_["model.layers.0.self_attn.q_proj.weight"];
  tensor.dtype = "F8_E4M3";
  tensor.bytes.resize(64 * 64);
  ExpectRefused(Load(), "model.layers.0.self_attn.q_proj.weight", "F8_E4M3");
}

TEST_F(BadCheckpoint, UnusedTensorsAreWarnedOfByName) {
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"I64", {1}, std::string(8, '\1')};
  EXPECT_TRUE(Load().ok());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("model.layers.0.self_attn.rotary_emb.inv_freq"));
}

TEST_F(BadCheckpoint, NumbersThatAreNotFiniteAreNamedWithTheirRow) {
  const std::string name = "model.layers.1.mlp.down_proj.weight";  // (64, 176) BF16
  std::string& bytes = tensors_[name].bytes;
  const std::string before = bytes;
  for (const uint16_t bad : {0x7fc0, 0x7f80, 0xff80}) {
    bytes = before;
    std::memcpy(bytes.data() + (37 * 176 + 175) * 2, &bad, 2);
    for (const DType linear : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
      ExpectRefused(Load(linear), name, "row 37");
    }
  }
}

TEST_F(BadCheckpoint, NormThatIsNotFiniteIsNamed) {
  tensors_["model.norm.weight"].bytes[1] = '\x7f';
  tensors_["model.norm.weight"].bytes[0] = '\xc0';
  ExpectRefused(Load(), "model.norm.weight", "not finite");
}

TEST_F(BadCheckpoint, FileThatShrinksWhileItIsReadIsDataLoss) {
  WriteTensors(folder_.File("model.safetensors"), tensors_);
  auto source = CheckpointSource::Open(folder_.path());
  ASSERT_TRUE(source.ok()) << source.status();
  const std::string whole = testing::ReadFile(folder_.File("model.safetensors"));
  WriteFile(folder_.File("model.safetensors"), std::string_view(whole).substr(0, whole.size() / 2));
  auto backend = CreateReference();
  const auto loaded = LoadParameters(**source, config_, {0, 1}, {}, *backend);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss) << loaded.status();
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("tensor model."));
}

TEST_F(BadCheckpoint, FileThatIsWrittenToWhileItIsReadIsDataLoss) {
  const std::string file = folder_.File("model.safetensors");
  WriteTensors(file, tensors_);
  auto source = CheckpointSource::Open(folder_.path());
  ASSERT_TRUE(source.ok()) << source.status();
  std::filesystem::last_write_time(
      file, std::filesystem::last_write_time(file) + std::chrono::seconds(1));
  auto backend = CreateReference();
  const auto loaded = LoadParameters(**source, config_, {0, 1}, {}, *backend);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss) << loaded.status();
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr("was changed while it was read"));
}

}  // namespace
}  // namespace marcoro
