// A checkpoint of tests/data as a transformer of one rank, driven by hand: no scheduler, one
// sequence, blocks in order.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/collective/single.h"
#include "worker/model/transformer.h"

namespace marcoro {

struct TestModelOptions {
  std::string checkpoint = "tiny";  // folder of tests/data, or an absolute path
  std::string backend = "reference";
  DType activations = DType::kBF16;
  DType linear = DType::kF8E4M3;
  int threads = 1;
  KvFormat kv = KvFormat::kActivation;
};

class TestModel {
 public:
  // Aborts the test program if the model cannot be loaded.
  explicit TestModel(const TestModelOptions& options);

  // Computes the next ids of the sequence as one step and returns the logits of all of them, one
  // row each.
  std::vector<std::vector<float>> Step(absl::Span<const TokenId> ids);
  // Starts a new sequence.
  void Restart() { position_ = 0; }

  const ModelConfig& config() const { return config_; }

 private:
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Transformer> transformer_;
  int32_t position_ = 0;
};

// Kernel families that this machine runs, of "reference", "avx2", "avx512" and "cuda".
std::vector<std::string> AvailableBackends();

}  // namespace marcoro
