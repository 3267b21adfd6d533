// The ops of a backend at the shapes of a 7B Mistral model, ready to be run and timed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro {

// One op at one shape. The costs are what the op has to do at least: bytes that it must read and
// write, operations of its matrix products.
struct OpCase {
  std::string op;
  std::string shape;
  double bytes = 0;
  double flops = 0;
  // Runs the op once. Repetitions use different memory in turn, so that weights and KV blocks come
  // from memory, not from a cache, as in a model.
  std::function<void(int64_t repetition)> run;
};

class Workbench {
 public:
  // Quick: fewer shapes and less memory, for tests of the bench itself. The backend must outlive
  // the workbench. RESOURCE_EXHAUSTED without enough memory (1 GB, quick 0.2 GB).
  static absl::StatusOr<std::unique_ptr<Workbench>> Create(Backend& backend, bool quick);

  // All cases; they are valid as long as the workbench.
  std::vector<OpCase> Cases();

 private:
  Workbench(Backend& backend, bool quick);

  void AddMatmuls(std::vector<OpCase>& cases);
  void AddAttentionDecode(KvFormat format, std::vector<OpCase>& cases);
  void AddAttentionPrefill(KvFormat format, std::vector<OpCase>& cases);
  void AddRope(std::vector<OpCase>& cases);
  void AddNorms(std::vector<OpCase>& cases);
  void AddRowOps(std::vector<OpCase>& cases);

  Tensor Activations(int64_t rows, int64_t columns) const;
  Tensor Floats(int64_t rows, int64_t columns) const;
  Tensor OutputFloats(int64_t rows, int64_t columns) const;
  KvCacheLayer Cache(KvFormat format) const;

  Backend& backend_;
  const std::vector<int64_t> tokens_;
  std::vector<float> scales_;
  std::vector<int32_t> ids_;
  std::vector<LogitSummary> summaries_;
  Buffer weights_;  // random bytes that are small finite numbers in FP8 and BF16; weights and KV
                    // blocks
  Buffer activations_;  // BF16
  Buffer outputs_;      // BF16
  Buffer floats_;       // F32
  Buffer out_floats_;   // F32
};

}  // namespace marcoro
