#include "worker/scheduler/block_pool.h"

#include "kernels/check.h"

namespace marcoro {

BlockPool::BlockPool(int32_t block_count) {
  MARCORO_CHECK(block_count >= 1);
  blocks_.resize(block_count);
  free_.reserve(block_count);
  tainted_.reserve(block_count);
  for (BlockId block = block_count - 1; block >= 0; --block) free_.push_back(block);
}

BlockId BlockPool::Allocate() {
  BlockId block = kNone;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (lru_first_ != kNone) {
    block = lru_first_;
    Unlink(block);
    blocks_[block].cached = false;
    if (on_eviction_) on_eviction_(block);
  } else {
    return kNone;
  }
  blocks_[block].references = 1;
  ++held_;
  return block;
}

void BlockPool::Reference(BlockId block) {
  Block& entry = blocks_[block];
  if (entry.references == 0) {
    MARCORO_CHECK(entry.cached);
    Unlink(block);
    ++held_;
  }
  ++entry.references;
}

void BlockPool::Release(BlockId block) {
  Block& entry = blocks_[block];
  MARCORO_CHECK(entry.references > 0);
  if (--entry.references > 0) return;
  --held_;
  if (entry.tainted) {
    tainted_.push_back(block);
  } else if (entry.cached) {
    LinkLast(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::SetCached(BlockId block, bool cached) {
  Block& entry = blocks_[block];
  MARCORO_CHECK(entry.references > 0 || entry.cached);
  MARCORO_CHECK(!(cached && entry.tainted));
  if (entry.references == 0 && !cached) {
    Unlink(block);
    free_.push_back(block);
  }
  entry.cached = cached;
}

void BlockPool::Taint(BlockId block) {
  MARCORO_CHECK(blocks_[block].references > 0);
  MARCORO_CHECK(!blocks_[block].cached);
  blocks_[block].tainted = true;
}

void BlockPool::TakeTainted(std::vector<BlockId>* blocks) {
  for (const BlockId block : tainted_) {
    blocks_[block].tainted = false;
    blocks->push_back(block);
    free_.push_back(block);
  }
  tainted_.clear();
}

void BlockPool::Unlink(BlockId block) {
  Block& entry = blocks_[block];
  (entry.previous == kNone ? lru_first_ : blocks_[entry.previous].next) = entry.next;
  (entry.next == kNone ? lru_last_ : blocks_[entry.next].previous) = entry.previous;
  entry.previous = entry.next = kNone;
  --lru_size_;
}

void BlockPool::LinkLast(BlockId block) {
  Block& entry = blocks_[block];
  entry.previous = lru_last_;
  entry.next = kNone;
  (lru_last_ == kNone ? lru_first_ : blocks_[lru_last_].next) = block;
  lru_last_ = block;
  ++lru_size_;
}

bool BlockTable::AppendNew() {
  const BlockId block = pool_->Allocate();
  if (block == BlockPool::kNone) return false;
  blocks_.push_back(block);
  return true;
}

void BlockTable::AppendShared(BlockId block) {
  pool_->Reference(block);
  blocks_.push_back(block);
}

void BlockTable::Replace(int32_t index, BlockId block) {
  pool_->Reference(block);
  pool_->Release(blocks_[index]);
  blocks_[index] = block;
}

void BlockTable::Clear() {
  while (!blocks_.empty()) {
    pool_->Release(blocks_.back());
    blocks_.pop_back();
  }
}

}  // namespace marcoro
