// What an instruction set brings besides its matmul: one function for each op, on plain pointers.
// They do one row, or one tile, on the calling thread; cpu_backend.cc checks shapes and shares the
// rows out among threads.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace marcoro::cpu {

// What SummarizeLogits needs of one row.
struct RowSummary {
  int32_t best;    // the first index of the largest logit
  bool has_nan;    // then the other fields are unspecified
  double exp_sum;  // Σ exp(logit - largest); unspecified where the largest is infinite
};

// One token's query, key and value.
struct RopeRow {
  const float* qkv;    // ((heads + 2 kv_heads) head_dim)
  const float* table;  // head_dim / 2 cosines, then as many sines
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  BFloat16* q;   // (heads head_dim)
  char* block;   // the KV block of this token, as kv_layout.h describes it
  int32_t slot;  // the token's place in the block, in [0, 16)
  KvFormat format;
};

// The largest tile that AttendTile takes.
inline constexpr int32_t kAttentionTileTokens = 16;
inline constexpr int32_t kAttentionTileHeads = 16;
inline constexpr int32_t kAttentionTileElements =
    16384;  // tokens · heads · PaddedHeadDim(head_dim)

// Neighbouring tokens of one sequence, and neighbouring query heads that read the same KV head.
struct AttentionTile {
  const BFloat16* q;  // of the first token and head; heads are head_dim apart
  int64_t q_stride;   // elements from one token to the next
  BFloat16* out;      // likewise
  int64_t out_stride;
  const char* head;       // this KV head's part of block 0 of the cache
  int64_t block_stride;   // bytes from one block of the cache to the next
  const int32_t* blocks;  // the sequence's block table
  int32_t tokens;
  int32_t position;  // of the first token
  int32_t heads;
  int32_t head_dim;
  int32_t window;  // as in AttentionShape
  float scale;     // of the scores
  KvFormat format;
};

struct Kernels {
  void (*embed_bf16)(const BFloat16* row, int64_t count, float* out);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count,
                   BFloat16* out);
  void (*add_rms_norm)(float* residual, const float* delta, const float* weight, float epsilon,
                       int64_t count, BFloat16* out);
  // One segment of a token, as QuantizedActivations says; returns its scale.
  float (*quantize)(const BFloat16* x, int64_t count, uint8_t* codes);
  void (*rope)(const RopeRow& row);
  void (*attention)(const AttentionTile& tile);
  void (*swiglu)(const float* gate, const float* up, int64_t count, BFloat16* out);
  RowSummary (*summarize)(const float* logits, int64_t count);
};

// Each may only be called where the processor has the instructions (features.h).
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

}  // namespace marcoro::cpu
