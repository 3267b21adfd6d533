#include "worker/weights/identity.h"

#include <bit>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

void HashConfig(const ModelConfig& config, Sha256& hash) {
  hash.Text(config.architecture);
  for (const int32_t value :
       {config.hidden_size, config.layers, config.heads, config.kv_heads, config.head_dim,
        config.ffn_size, config.vocabulary_size, config.sliding_window}) {
    hash.Number(static_cast<uint64_t>(value));
  }
  hash.Number(std::bit_cast<uint32_t>(config.rope_theta));
  hash.Number(std::bit_cast<uint32_t>(config.rms_norm_epsilon));
  hash.Number(config.tied_embeddings ? 1 : 0);
}

}  // namespace

absl::StatusOr<std::string> WeightsIdentity(TensorSource& source, const ModelConfig& config) {
  Sha256 hash;
  hash.Text("marcoro weights 1");
  HashConfig(config, hash);
  for (const ModelTensor& expected : ModelTensors(config)) {
    const TensorInfo* tensor = source.Find(expected.name);
    if (tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(source.Description(), ": tensor ", expected.name, " is missing"));
    }
    hash.Text(tensor->name);
    hash.Text(tensor->dtype);
    hash.Number(tensor->shape.size());
    for (const int64_t dimension : tensor->shape) hash.Number(static_cast<uint64_t>(dimension));
    if (absl::Status status = source.HashContents(*tensor, hash); !status.ok()) return status;
  }
  return hash.HexDigest();
}

}  // namespace marcoro
