// Finds KV blocks whose contents a new sequence would otherwise compute again.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/scheduler/block_pool.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

// An index of full blocks by what was computed into them: a block's key is its 16 tokens, its salt
// and the published block before it, which makes the key stand for the whole prefix. Keys are
// compared whole, so hash collisions cost time and never a wrong answer. Published blocks that
// nobody holds stay in the pool's LRU list until they are evicted.
//
// Whoever holds a published block also holds all blocks before it (Publish sees to it by exchanging
// duplicates), and tables let go of their tail first. So a block is never evicted before its
// continuations.
class PrefixCache {
 public:
  // Registers itself with the pool, which must outlive it. `buckets` of the hash table: a power of
  // two; 0 chooses it by the size of the pool.
  explicit PrefixCache(BlockPool* pool, int32_t buckets = 0);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Appends to *table (empty) the published blocks that hold the longest prefix of `tokens`.
  // Returns its length in tokens, a multiple of 16.
  int32_t Match(uint64_t salt, absl::Span<const TokenId> tokens, BlockTable* table) const;

  // Publishes blocks [published, full) of a sequence, all of whose `tokens` (16 * full) are
  // computed, and returns how many blocks from the start are published now. A block that is
  // published already, by another sequence, takes the place of the table's own: their contents are
  // equal. Stops at a block whose predecessor has been withdrawn.
  int32_t Publish(uint64_t salt, absl::Span<const TokenId> tokens, int32_t published,
                  BlockTable* table);

  // The block is found no more. Does nothing if it is not published.
  void Withdraw(BlockId block);

 private:
  static constexpr BlockId kNone = -1;
  static constexpr uint64_t kNoParent = 0;

  using BlockTokens = std::array<TokenId, kBlockTokens>;

  struct Key {
    uint64_t parent = kNoParent;  // serial of the block before
    uint64_t salt = 0;
    BlockTokens tokens = {};

    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H state, const Key& key) {
      return H::combine(std::move(state), key.parent, key.salt, key.tokens);
    }
  };

  struct Entry {
    uint64_t serial = 0;  // never used twice; 0: not published
    Key key;
    BlockId next = kNone;  // in the same bucket
  };

  static Key MakeKey(uint64_t parent, uint64_t salt, absl::Span<const TokenId> tokens,
                     int32_t block);
  BlockId& Bucket(const Key& key);
  BlockId Find(const Key& key) const;
  void Insert(BlockId block, const Key& key);
  void Remove(BlockId block);

  BlockPool* pool_;
  std::vector<Entry> entries_;    // by block
  std::vector<BlockId> buckets_;  // first block of each
  uint64_t last_serial_ = kNoParent;
};

}  // namespace marcoro
