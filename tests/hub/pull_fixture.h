// A hub, a cache, and what a test asks about both.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "deploy/hub/pull.h"
#include "gtest/gtest.h"
#include "tests/hub/fake_hub.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

class PullTest : public testing::Test {
 protected:
  PullTest() : hub_(NoiseRepository()) {
    settings_.endpoint = hub_.url();
    settings_.cache = cache_.path();
    settings_.token = "hf_secret";
    settings_.token_source = "HF_TOKEN";
    options_.retry.first_delay = absl::Milliseconds(1);
  }

  absl::StatusOr<std::string> Pull(const std::string& name = "org/model") {
    return PullFrom(hub_, name);
  }
  absl::StatusOr<std::string> PullFrom(const FakeHub& hub, const std::string& name = "org/model") {
    settings_.endpoint = hub.url();
    return PullModel(settings_, *ParseHubName(name), options_);
  }
  // That a pull fails so, and leaves nothing that looks whole.
  absl::Status Failure(const FakeHub& hub) {
    const absl::StatusOr<std::string> pulled = PullFrom(hub);
    EXPECT_FALSE(pulled.ok());
    EXPECT_FALSE(absl::StrContains(pulled.status().message(), "hf_secret")) << pulled.status();
    EXPECT_FALSE(absl::StrContains(pulled.status().message(), "signature")) << pulled.status();
    ExpectNothingLooksWhole();
    return pulled.status();
  }
  void ExpectNothingLooksWhole() const {
    EXPECT_FALSE(FindInHubCache(cache_.path(), *ParseHubName("org/model")).ok());
    EXPECT_FALSE(std::filesystem::exists(Folder() / "snapshots" / Repository().commit));
    EXPECT_FALSE(std::filesystem::exists(Folder() / "refs/main"));
  }

  const FakeRepository& Repository() const { return hub_.repository(); }
  std::filesystem::path Folder() const {
    return std::filesystem::path(cache_.path()) / "models--org--model";
  }
  const std::string& Weights() const { return Repository().large.at("model.safetensors"); }
  std::filesystem::path WeightsBlob() const { return Folder() / "blobs" / Sha256Hex(Weights()); }

  // The Range headers with which the weights were asked for, "" where there was none.
  std::vector<std::string> WeightsRanges() const {
    std::vector<std::string> ranges;
    for (const HttpCall& call : hub_.storage_calls()) {
      if (absl::StrContains(call.target, Sha256Hex(Weights())))
        ranges.push_back(call.Header("range"));
    }
    return ranges;
  }
  bool IsForWeights(const HttpCall& call) const {
    return absl::StrContains(call.target, Sha256Hex(Weights()));
  }
  // Breaks the first `times` answers with the weights after so many bytes.
  void CutWeights(int times, size_t bytes) {
    hub_.SetStorageFault([this, times, bytes](const HttpCall& call, HttpAnswer* answer) mutable {
      if (IsForWeights(call) && times-- > 0) answer->cut_after = bytes;
    });
  }

  const TemporaryFolder cache_;
  FakeHub hub_;
  HubSettings settings_;
  PullOptions options_;
};

}  // namespace marcoro
