// The paged keys and values of all layers, as one rank holds them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"

namespace marcoro {

class KvCache {
 public:
  // `blocks` blocks of 16 positions, each holding kv_heads heads of every layer. RESOURCE_EXHAUSTED
  // if memory does not suffice.
  static absl::StatusOr<KvCache> Create(Backend& backend, int32_t layers, int32_t kv_heads,
                                        int32_t head_dim, int32_t blocks, KvFormat format);

  // Bytes of one block over all layers.
  static size_t BlockBytes(const Backend& backend, int32_t layers, int32_t kv_heads,
                           int32_t head_dim, KvFormat format) {
    return layers * backend.KvBlockBytes(kv_heads, head_dim, format);
  }

  const KvCacheLayer& layer(int index) const { return layers_[index]; }
  int32_t blocks() const { return layers_.empty() ? 0 : layers_[0].blocks; }

  // Fills the blocks with zeros in every layer.
  void Zero(Backend& backend, absl::Span<const int32_t> blocks) const;

 private:
  std::vector<KvCacheLayer> layers_;
  Buffer storage_;
};

}  // namespace marcoro
