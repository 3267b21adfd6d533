#include "worker/model/kv_cache.h"

#include <utility>

namespace marcoro {

absl::StatusOr<KvCache> KvCache::Create(Backend& backend, int32_t layers, int32_t kv_heads,
                                        int32_t head_dim, int32_t blocks, KvFormat format) {
  const size_t layer_bytes = blocks * backend.KvBlockBytes(kv_heads, head_dim, format);
  auto storage = backend.Allocate(layers * layer_bytes);
  if (!storage.ok()) return storage.status();
  KvCache cache;
  cache.storage_ = *std::move(storage);
  cache.layers_.reserve(layers);
  for (int32_t layer = 0; layer < layers; ++layer) {
    cache.layers_.push_back(
        {.data = static_cast<char*>(cache.storage_.data()) + layer * layer_bytes,
         .blocks = blocks,
         .kv_heads = kv_heads,
         .head_dim = head_dim,
         .format = format});
  }
  return cache;
}

void KvCache::Zero(Backend& backend, absl::Span<const int32_t> blocks) const {
  if (blocks.empty()) return;
  for (const KvCacheLayer& layer : layers_) backend.ZeroKvBlocks(layer, blocks);
}

}  // namespace marcoro
