// Random weights of any shape, for measuring without a checkpoint. A number depends on the seed,
// its tensor's name, its row and its column only, so that any shard of any rank is cut from the
// same model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "worker/model/config.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

class RandomSource : public TensorSource {
 public:
  // Every tensor the model needs, stored in config.dtype. Norms are 1; the rest is uniform with a
  // standard deviation of 1/sqrt(columns), which keeps activations and logits near 1.
  RandomSource(const ModelConfig& config, uint64_t seed);

  std::string Description() const override;
  const TensorInfo* Find(std::string_view name) const override;
  std::vector<const TensorInfo*> Tensors() const override;
  absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                        float* out) override;
  // The seed: the numbers follow from it.
  absl::Status HashContents(const TensorInfo& tensor, Sha256& hash) override;

 private:
  const uint64_t seed_;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
};

}  // namespace marcoro
