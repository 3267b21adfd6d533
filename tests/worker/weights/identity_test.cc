#include "worker/weights/identity.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/random_source.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

using testing::ReadTensors;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteTensors;

TEST(Sha256, IsTheStandards) {
  Sha256 hash;
  hash.Bytes("ab", 2);
  hash.Bytes("c", 1);
  EXPECT_EQ(hash.HexDigest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256().HexDigest(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(Sha256, FieldsDoNotRunIntoEachOther) {
  Sha256 one;
  one.Text("ab");
  one.Text("c");
  Sha256 other;
  other.Text("a");
  other.Text("bc");
  EXPECT_NE(one.HexDigest(), other.HexDigest());
}

class Identity : public ::testing::Test {
 protected:
  Identity()
      : config_(LoadModelConfig(TestData("small")).value()),
        tensors_(ReadTensors(TestData("small"))) {}

  std::string OfFolder(const std::string& folder) {
    auto source = CheckpointSource::Open(folder);
    EXPECT_TRUE(source.ok()) << source.status();
    auto identity = WeightsIdentity(**source, config_);
    EXPECT_TRUE(identity.ok()) << identity.status();
    return *identity;
  }

  // Of the tensors as they now are, in one file.
  std::string OfTensors() {
    TempFolder folder;
    WriteTensors(folder.File("model.safetensors"), tensors_);
    return OfFolder(folder.path());
  }

  ModelConfig config_;
  StoredTensors tensors_;
};

TEST_F(Identity, IsAHashThatStays) {
  const std::string identity = OfFolder(TestData("small"));
  EXPECT_EQ(identity.size(), 64u);
  EXPECT_EQ(identity, OfFolder(TestData("small")));
}

TEST_F(Identity, DoesNotDependOnTheSplitIntoFiles) {
  EXPECT_EQ(OfFolder(TestData("small")), OfTensors());
}

TEST_F(Identity, DoesNotDependOnTensorsTheModelDoesNotUse) {
  const std::string before = OfTensors();
  tensors_["rotary.inv_freq"] = {"F32", {1}, std::string(4, 'x')};
  EXPECT_EQ(OfTensors(), before);
}

TEST_F(Identity, ChangesWithEveryTensor) {
  const std::string before = OfTensors();
  for (auto& [name, tensor] : tensors_) {
    for (const size_t at : {size_t{0}, tensor.bytes.size() - 1}) {
      tensor.bytes[at] ^= 1;
      EXPECT_NE(OfTensors(), before) << name << " byte " << at;
      tensor.bytes[at] ^= 1;
    }
  }
  EXPECT_EQ(OfTensors(), before);
}

TEST_F(Identity, ChangesWhenSmallTensorsChangeAnywhere) {
  const std::string before = OfTensors();
  std::string& bytes = tensors_["model.layers.0.self_attn.k_proj.weight"].bytes;  // 64 KiB
  for (size_t at = 0; at < bytes.size(); at += 4099) {
    bytes[at] ^= 1;
    EXPECT_NE(OfTensors(), before) << at;
    bytes[at] ^= 1;
  }
}

TEST_F(Identity, ChangesWithTheStoredType) {
  const std::string before = OfTensors();
  tensors_["model.norm.weight"].dtype = "BF16";
  EXPECT_NE(OfTensors(), before);
}

TEST_F(Identity, ChangesWithConfigValuesThatEnterTheArithmetic) {
  const std::string before = OfTensors();
  const ModelConfig original = config_;
  config_.rope_theta = 1e6f;
  EXPECT_NE(OfTensors(), before);
  config_ = original;
  config_.rms_norm_epsilon = 1e-6f;
  EXPECT_NE(OfTensors(), before);
  config_ = original;
  config_.sliding_window = 16;
  EXPECT_NE(OfTensors(), before);
  config_ = original;
  config_.eos_token_ids = {5};
  EXPECT_EQ(OfTensors(), before) << "stopping is no arithmetic";
}

TEST_F(Identity, OfRandomWeightsIsTheSeedsAndShapes) {
  const auto of = [](const ModelConfig& config, uint64_t seed) {
    RandomSource source(config, seed);
    return WeightsIdentity(source, config).value();
  };
  EXPECT_EQ(of(config_, 1), of(config_, 1));
  EXPECT_NE(of(config_, 1), of(config_, 2));
  ModelConfig wider = config_;
  wider.ffn_size *= 2;
  EXPECT_NE(of(config_, 1), of(wider, 1));
  EXPECT_NE(of(config_, 1), OfTensors());
}

TEST_F(Identity, MissingTensorIsAnError) {
  tensors_.erase("lm_head.weight");
  TempFolder folder;
  WriteTensors(folder.File("model.safetensors"), tensors_);
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(WeightsIdentity(**source, config_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace marcoro
