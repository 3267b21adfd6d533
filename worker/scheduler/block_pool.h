// KV blocks: who holds which, and which may be taken. Knows nothing of tokens or of memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

// Positions [16 b, 16 b + 16) of a sequence live in entry b of its block table.
inline constexpr int32_t kBlockTokens = 16;

constexpr int32_t BlocksFor(int32_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// Reference-counted blocks 0 … block_count - 1. A block is
//   held      by one or more block tables,
//   cached    by nobody, but its contents may be wanted again: it waits in an LRU list and is
//   evicted when no block is free, free      by nobody, contents worthless, tainted   by nobody,
//   and must be filled with zeros before anybody may have it.
// Every operation is O(1) and allocates no memory. Not thread-safe.
class BlockPool {
 public:
  // block_count >= 1.
  explicit BlockPool(int32_t block_count);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  int32_t block_count() const { return static_cast<int32_t>(blocks_.size()); }
  // Blocks that Allocate can hand out: free and cached ones.
  int32_t available() const { return static_cast<int32_t>(free_.size()) + lru_size_; }
  // Blocks that some table holds.
  int32_t held() const { return held_; }

  // Called with each cached block that is evicted, before it is handed out.
  void set_eviction_listener(std::function<void(BlockId)> listener) {
    on_eviction_ = std::move(listener);
  }

  // Whether the contents are worth keeping once nobody holds the block. Turning it off frees a
  // block that nobody holds.
  void SetCached(BlockId block, bool cached);
  // The block, which somebody must hold, goes to the tainted ones when its last holder lets go of
  // it.
  void Taint(BlockId block);
  // Appends the tainted blocks that nobody holds to *blocks, and makes them free: the caller
  // promises to zero them before their next use.
  void TakeTainted(std::vector<BlockId>* blocks);

 private:
  friend class BlockTable;

  static constexpr BlockId kNone = -1;

  struct Block {
    int32_t references = 0;
    bool cached = false;
    bool tainted = false;
    BlockId previous = kNone;  // in the LRU list
    BlockId next = kNone;
  };

  // kNone if no block is available. The result has one reference.
  BlockId Allocate();
  void Reference(BlockId block);
  void Release(BlockId block);
  void Unlink(BlockId block);
  void LinkLast(BlockId block);

  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
  std::vector<BlockId> tainted_;
  BlockId lru_first_ = kNone;  // evicted next
  BlockId lru_last_ = kNone;
  int32_t lru_size_ = 0;
  int32_t held_ = 0;
  std::function<void(BlockId)> on_eviction_;
};

// A sequence's blocks in the order of its positions. Owns one reference to each; lets go of them
// when it is destroyed, the last first, so that of a cached prefix the tail is evicted before what
// it continues.
class BlockTable {
 public:
  explicit BlockTable(BlockPool* pool) : pool_(pool) {}
  BlockTable(BlockTable&& other) noexcept : pool_(other.pool_), blocks_(std::move(other.blocks_)) {
    other.blocks_.clear();
  }
  BlockTable& operator=(BlockTable&&) = delete;
  ~BlockTable() { Clear(); }

  absl::Span<const BlockId> blocks() const { return blocks_; }
  int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  BlockId operator[](int32_t index) const { return blocks_[index]; }

  void Reserve(int32_t blocks) { blocks_.reserve(blocks); }
  // Takes a block from the pool. False, and nothing changed, if none is available.
  bool AppendNew();
  // Holds a block that is held elsewhere or cached.
  void AppendShared(BlockId block);
  // Exchanges one block for another that is held elsewhere or cached.
  void Replace(int32_t index, BlockId block);
  void Clear();

 private:
  BlockPool* pool_;
  std::vector<BlockId> blocks_;
};

}  // namespace marcoro
