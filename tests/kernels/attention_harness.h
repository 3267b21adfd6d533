// Sequences whose queries, keys and values are known in full, computed in steps of any shape
// through a paged cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/matrix.h"

namespace marcoro {

// What attention is asked: row s of `lengths` is a sequence of so many tokens, their rows of qkv
// one after the other.
struct AttentionInput {
  AttentionInput(const AttentionShape& shape, std::vector<int32_t> lengths, uint32_t seed = 1);

  // Row in qkv, and in results, of a sequence's position.
  int64_t RowOf(int32_t sequence, int32_t position) const {
    return first_rows[static_cast<size_t>(sequence)] + position;
  }

  AttentionShape shape;
  std::vector<int32_t> lengths;
  std::vector<int64_t> first_rows;
  Matrix qkv;   // (Σ lengths, (A + 2 C) D)
  Matrix rope;  // (positions, D)
};

// Positions [begin, begin + tokens) of one sequence, computed in one step together with others.
struct Chunk {
  int32_t sequence;
  int32_t begin;
  int32_t tokens;
};
using Step = std::vector<Chunk>;

struct AttentionRun {
  std::string backend;
  int threads = 1;
  DType activations = DType::kBF16;
  std::vector<Step> steps;  // every position of every sequence once
  uint32_t block_seed = 1;  // which blocks of the cache the sequences get
  KvFormat format = KvFormat::kActivation;
};

struct AttentionResult {
  Matrix q;    // (Σ lengths, A D), rotated
  Matrix out;  // (Σ lengths, A D)
};

// Runs RopeAndStoreKv and Attention for each step. The cache starts as NaN everywhere.
AttentionResult RunAttention(const AttentionInput& input, const AttentionRun& run);

// One step with everything; one sequence after the other, a token a step; steps of random chunks of
// random sequences.
std::vector<Step> AllAtOnce(const AttentionInput& input);
std::vector<Step> TokenByToken(const AttentionInput& input);
std::vector<Step> RandomChunks(const AttentionInput& input, uint32_t seed);

// softmax(q kᵀ / sqrt(D)) v in double over the rotated queries, rounded to BF16, and the keys and
// values as a cache of that format holds them.
Matrix ExactAttention(const AttentionInput& input, KvFormat format = KvFormat::kActivation);

}  // namespace marcoro
