// How tiles of 64 keys or values come to shared memory.
//
// Rows of shared memory are padded by 16 bytes: an odd number of 16-byte units, so the eight rows
// of a matrix load lie in different banks.
#pragma once

#include <type_traits>

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/async_copy.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/kv_layout.h"

namespace marcoro::cuda {

// Elements of 16 bytes.
template <typename Element>
inline constexpr int kChunkElements = 16 / static_cast<int>(sizeof(Element));

template <typename Element>
constexpr int RowElements(int dims) {
  return dims + kChunkElements<Element>;
}
template <typename Element>
constexpr int TileElements(int dims) {
  return kTilePositions * RowElements<Element>(dims);
}
template <typename Element>
constexpr int TileBytes(int dims) {
  return TileElements<Element>(dims) * static_cast<int>(sizeof(Element));
}

template <typename Element>
inline constexpr KvFormat kFormatOf = kIsCode<Element> ? KvFormat::kFp8 : KvFormat::kActivation;

// The keys or values of a tile, `dims` of a head's dimensions from an offset into the KV block on.
struct TileSource {
  int64_t offset;  // in bytes, of the first position's first element in a KV block
  int dims;        // that exist; the rest of a row is cleared
};

template <typename Element>
MARCORO_DEVICE TileSource KeysOf(const AttentionTask& task, int kv_head) {
  return {kv_head * HeadBytes(task.head_dim, kFormatOf<Element>), task.head_dim};
}
template <typename Element>
MARCORO_DEVICE TileSource ValuesOf(const AttentionTask& task, int kv_head, int first_dim) {
  const int64_t elements = KeyElements(task.head_dim) + first_dim;
  return {kv_head * HeadBytes(task.head_dim, kFormatOf<Element>) +
              elements * static_cast<int64_t>(sizeof(Element)),
          task.head_dim - first_dim};
}

inline constexpr int kTileBlocks = kTilePositions / kBlockTokens;

// Where what is `offset` bytes into a KV block lies in the b-th of the tile at position `begin`;
// any address where that block holds nothing of `loaded` (the block table may end before).
template <typename Element>
MARCORO_DEVICE const Element* TileBlock(const AttentionTask& task, const int32_t* blocks,
                                        int64_t offset, int begin, int b, Visible loaded) {
  const int first = begin + b * kBlockTokens;
  const bool read = Overlap({first, first + kBlockTokens - 1}, loaded);
  const int64_t block = read ? blocks[first / kBlockTokens] : 0;
  return reinterpret_cast<const Element*>(
      task.cache + offset + block * BlockBytes(task.kv_heads, task.head_dim, kFormatOf<Element>));
}

// Threads 0 … kThreads - 1 ask for the tile at position `begin`, which others may read after a wait
// and a barrier. What is not in `loaded` is not read but cleared. head_dim is a multiple of kChunk.
template <int kDims, int kThreads, typename Element>
MARCORO_DEVICE void CopyTile(const AttentionTask& task, const int32_t* blocks, TileSource source,
                             int begin, Visible loaded, int thread,
                             const SharedArray<Element>& tile) {
  constexpr int kChunk = kChunkElements<Element>;
  constexpr int kRowChunks = kDims / kChunk;
  constexpr int kBlockChunks = kBlockTokens * kRowChunks;
  const Element* from[kTileBlocks];
  MARCORO_UNROLL_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    from[b] = TileBlock<Element>(task, blocks, source.offset, begin, b, loaded);
  }
  MARCORO_UNROLL_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    MARCORO_UNROLL_LOOP
    for (int c = 0; c < kBlockChunks; c += kThreads) {
      const int chunk = c + thread;
      if (kBlockChunks % kThreads != 0 && chunk >= kBlockChunks) break;
      const int row = chunk / kRowChunks;
      const int dim = chunk % kRowChunks * kChunk;
      const int position = begin + b * kBlockTokens + row;
      const bool valid = position >= loaded.low && position <= loaded.high && dim < source.dims;
      const void* global = from[b] + row * task.head_dim + dim;
      CopyAsync16(tile.Address((b * kBlockTokens + row) * RowElements<Element>(kDims) + dim),
                  valid ? global : task.cache, valid);
    }
  }
}

// The same for any even head_dim, two elements at a time; the thread waits for them.
template <int kDims, int kThreads, typename Element>
MARCORO_DEVICE void CopyTilePairs(const AttentionTask& task, const int32_t* blocks,
                                  TileSource source, int begin, Visible loaded, int thread,
                                  const SharedArray<Element>& tile) {
  using Pair = std::conditional_t<kIsCode<Element>, uint16_t, uint32_t>;
  MARCORO_KEEP_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    const Element* from = TileBlock<Element>(task, blocks, source.offset, begin, b, loaded);
    MARCORO_KEEP_LOOP
    for (int pair = thread; pair < kBlockTokens * kDims / 2; pair += kThreads) {
      const int row = pair / (kDims / 2);
      const int dim = pair % (kDims / 2) * 2;
      const int position = begin + b * kBlockTokens + row;
      const bool valid = position >= loaded.low && position <= loaded.high && dim < source.dims;
      const Element* global = from + row * task.head_dim + dim;
      tile.template StoreAs<Pair>((b * kBlockTokens + row) * RowElements<Element>(kDims) + dim,
                                  valid ? *reinterpret_cast<const Pair*>(global) : Pair{0});
    }
  }
}

// Where the scales of a KV head's keys and values are in a KV block.
MARCORO_DEVICE int64_t KeyScalesOf(const AttentionTask& task, int kv_head) {
  return kv_head * HeadBytes(task.head_dim, KvFormat::kFp8) + KeyScales(task.head_dim);
}
MARCORO_DEVICE int64_t ValueScalesOf(const AttentionTask& task, int kv_head) {
  return kv_head * HeadBytes(task.head_dim, KvFormat::kFp8) + ValueScales(task.head_dim);
}

inline constexpr int kScaleThreads = kTilePositions / 4;

// Threads 0 … kScaleThreads - 1, of any, ask for the scales of the tile at position `begin`, which
// are `offset` bytes into a KV block. Those of positions that are not in `loaded` may be anything.
MARCORO_DEVICE void CopyScales(const AttentionTask& task, const int32_t* blocks, int64_t offset,
                               int begin, Visible loaded, int thread,
                               const SharedArray<float>& scales) {
  constexpr int kBlockThreads = kBlockTokens / 4;
  if (thread < 0 || thread >= kScaleThreads) return;
  const int b = thread / kBlockThreads;
  const int first = begin + b * kBlockTokens;
  const bool valid = Overlap({first, first + kBlockTokens - 1}, loaded);
  const uint8_t* from = TileBlock<uint8_t>(task, blocks, offset, begin, b, loaded);
  CopyAsync16(
      scales.Address(thread * 4),
      valid ? from + thread % kBlockThreads * 16 : reinterpret_cast<const uint8_t*>(task.cache),
      valid);
}

}  // namespace marcoro::cuda
