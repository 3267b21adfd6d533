#include "worker/scheduler/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "absl/hash/hash.h"
#include "kernels/check.h"

namespace marcoro {

PrefixCache::PrefixCache(BlockPool* pool, int32_t buckets)
    : pool_(pool), entries_(pool->block_count()) {
  const size_t size = buckets > 0 ? buckets : std::bit_ceil(entries_.size()) * 2;
  MARCORO_CHECK(std::has_single_bit(size));
  buckets_.assign(size, kNone);
  pool_->set_eviction_listener([this](BlockId block) { Remove(block); });
}

int32_t PrefixCache::Match(uint64_t salt, absl::Span<const TokenId> tokens,
                           BlockTable* table) const {
  const int32_t full = static_cast<int32_t>(tokens.size()) / kBlockTokens;
  uint64_t parent = kNoParent;
  for (int32_t index = 0; index < full; ++index) {
    const BlockId block = Find(MakeKey(parent, salt, tokens, index));
    if (block == kNone) break;
    table->AppendShared(block);
    parent = entries_[block].serial;
  }
  return table->size() * kBlockTokens;
}

int32_t PrefixCache::Publish(uint64_t salt, absl::Span<const TokenId> tokens, int32_t published,
                             BlockTable* table) {
  const int32_t full = static_cast<int32_t>(tokens.size()) / kBlockTokens;
  for (int32_t index = published; index < full; ++index) {
    uint64_t parent = kNoParent;
    if (index > 0) {
      parent = entries_[(*table)[index - 1]].serial;
      if (parent == kNoParent) return index;
    }
    const Key key = MakeKey(parent, salt, tokens, index);
    const BlockId twin = Find(key);
    if (twin == kNone) {
      Insert((*table)[index], key);
    } else {
      table->Replace(index, twin);
    }
  }
  return std::max(published, full);
}

void PrefixCache::Withdraw(BlockId block) {
  if (entries_[block].serial == kNoParent) return;
  Remove(block);
  pool_->SetCached(block, false);
}

PrefixCache::Key PrefixCache::MakeKey(uint64_t parent, uint64_t salt,
                                      absl::Span<const TokenId> tokens, int32_t block) {
  Key key;
  key.parent = parent;
  key.salt = salt;
  const auto first = tokens.begin() + block * kBlockTokens;
  std::copy(first, first + kBlockTokens, key.tokens.begin());
  return key;
}

BlockId& PrefixCache::Bucket(const Key& key) {
  return buckets_[absl::HashOf(key) & (buckets_.size() - 1)];
}

BlockId PrefixCache::Find(const Key& key) const {
  BlockId block = buckets_[absl::HashOf(key) & (buckets_.size() - 1)];
  while (block != kNone && entries_[block].key != key) block = entries_[block].next;
  return block;
}

void PrefixCache::Insert(BlockId block, const Key& key) {
  Entry& entry = entries_[block];
  MARCORO_CHECK(entry.serial == kNoParent);
  BlockId& bucket = Bucket(key);
  entry = {.serial = ++last_serial_, .key = key, .next = bucket};
  bucket = block;
  pool_->SetCached(block, true);
}

void PrefixCache::Remove(BlockId block) {
  BlockId* link = &Bucket(entries_[block].key);
  while (*link != block) link = &entries_[*link].next;
  *link = entries_[block].next;
  entries_[block] = {};
}

}  // namespace marcoro
