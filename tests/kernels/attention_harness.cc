#include "tests/kernels/attention_harness.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/check.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/random_seed.h"

namespace marcoro {
namespace {

int64_t Total(const std::vector<int32_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

Matrix RopeTable(int32_t positions, int32_t head_dim) {
  Matrix table(DType::kF32, positions, head_dim);
  const int32_t half = head_dim / 2;
  for (int32_t p = 0; p < positions; ++p) {
    for (int32_t i = 0; i < half; ++i) {
      const double angle = p * std::pow(10000.0, -static_cast<double>(i) / half);
      table.Set(p, i, static_cast<float>(std::cos(angle)));
      table.Set(p, half + i, static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

// Blocks of a cache with some to spare, dealt to the sequences in random order.
std::vector<std::vector<int32_t>> DealBlocks(const AttentionInput& input, uint32_t seed,
                                             int32_t& cache_blocks) {
  std::vector<std::vector<int32_t>> tables(input.lengths.size());
  cache_blocks = 3;
  for (size_t s = 0; s < tables.size(); ++s) {
    tables[s].resize(static_cast<size_t>((input.lengths[s] + kKvBlockTokens - 1) / kKvBlockTokens));
    cache_blocks += static_cast<int32_t>(tables[s].size());
  }
  std::vector<int32_t> order(static_cast<size_t>(cache_blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  size_t next = 0;
  for (std::vector<int32_t>& table : tables) {
    for (int32_t& block : table) block = order[next++];
  }
  return tables;
}

double NearestE4M3(double number) {
  if (number == 0) return 0;
  const int exponent = std::max(std::ilogb(number), -6);
  const double unit = std::ldexp(1.0, exponent - 3);
  // The default rounding is to nearest even.
  return std::clamp(std::nearbyint(number / unit) * unit, -448.0, 448.0);
}

// A key or value as the cache holds it.
std::vector<double> Cached(std::vector<float> elements, KvFormat format) {
  std::vector<double> cached;
  float largest = 0;
  for (const float element : elements) largest = std::max(largest, std::abs(element));
  const float scale = largest == 0 ? 1.0f : largest / 448;
  for (const float element : elements) {
    cached.push_back(format == KvFormat::kFp8 ? NearestE4M3(element / scale) * scale
                                              : ToFloat(ToBFloat16(element)));
  }
  return cached;
}

}  // namespace

AttentionInput::AttentionInput(const AttentionShape& shape_in, std::vector<int32_t> lengths_in,
                               uint32_t seed)
    : shape(shape_in),
      lengths(std::move(lengths_in)),
      qkv(DType::kF32, Total(lengths), (shape.heads + 2 * shape.kv_heads) * shape.head_dim, 3),
      rope(RopeTable(*std::max_element(lengths.begin(), lengths.end()), shape.head_dim)) {
  int64_t row = 0;
  for (const int32_t length : lengths) {
    first_rows.push_back(row);
    row += length;
  }
  qkv.FillNormal(seed);
}

AttentionResult RunAttention(const AttentionInput& input, const AttentionRun& run) {
  const auto backend = MakeBackend(run.backend, run.threads, run.activations);
  const AttentionShape& shape = input.shape;
  int32_t cache_blocks = 0;
  const auto tables = DealBlocks(input, run.block_seed, cache_blocks);
  auto buffer =
      backend->Allocate(static_cast<size_t>(cache_blocks) *
                        backend->KvBlockBytes(shape.kv_heads, shape.head_dim, run.format));
  MARCORO_CHECK(buffer.ok());
  std::memset(buffer->data(), 0xff, buffer->bytes());
  const KvCacheLayer cache = {buffer->data(), cache_blocks, shape.kv_heads, shape.head_dim,
                              run.format};

  const int64_t width = int64_t{shape.heads} * shape.head_dim;
  AttentionResult result = {Matrix(run.activations, input.qkv.rows(), width),
                            Matrix(run.activations, input.qkv.rows(), width)};
  for (const Step& step : run.steps) {
    int32_t rows = 0;
    std::vector<SequenceSpan> spans;
    for (const Chunk& chunk : step) {
      const auto& table = tables[static_cast<size_t>(chunk.sequence)];
      spans.push_back(
          {rows, chunk.tokens, chunk.begin, table.data(), static_cast<int32_t>(table.size())});
      rows += chunk.tokens;
    }
    Matrix qkv(DType::kF32, rows, input.qkv.columns(), 5);
    Matrix q(run.activations, rows, width, 2);
    Matrix out(run.activations, rows, width, 4);
    for (size_t i = 0; i < step.size(); ++i) {
      for (int32_t t = 0; t < step[i].tokens; ++t) {
        qkv.CopyRow(spans[i].first_row + t, input.qkv,
                    input.RowOf(step[i].sequence, step[i].begin + t));
      }
    }
    backend->RopeAndStoreKv(qkv.view(), input.rope.view(), shape, spans, cache, q.view());
    backend->Attention(q.view(), shape, spans, cache, out.view());
    MARCORO_CHECK(q.PaddingIsIntact() && out.PaddingIsIntact());
    for (size_t i = 0; i < step.size(); ++i) {
      for (int32_t t = 0; t < step[i].tokens; ++t) {
        const int64_t row = input.RowOf(step[i].sequence, step[i].begin + t);
        result.q.CopyRow(row, q, spans[i].first_row + t);
        result.out.CopyRow(row, out, spans[i].first_row + t);
      }
    }
  }
  return result;
}

std::vector<Step> AllAtOnce(const AttentionInput& input) {
  Step step;
  for (int32_t s = 0; s < static_cast<int32_t>(input.lengths.size()); ++s) {
    step.push_back({s, 0, input.lengths[static_cast<size_t>(s)]});
  }
  return {step};
}

std::vector<Step> TokenByToken(const AttentionInput& input) {
  std::vector<Step> steps;
  for (int32_t s = 0; s < static_cast<int32_t>(input.lengths.size()); ++s) {
    for (int32_t p = 0; p < input.lengths[static_cast<size_t>(s)]; ++p) {
      steps.push_back({{s, p, 1}});
    }
  }
  return steps;
}

std::vector<Step> RandomChunks(const AttentionInput& input, uint32_t seed) {
  std::mt19937 random(RandomSeed(seed));
  std::vector<int32_t> done(input.lengths.size(), 0);
  std::vector<Step> steps;
  for (int64_t left = input.qkv.rows(); left > 0;) {
    Step step;
    for (size_t s = 0; s < done.size(); ++s) {
      const int32_t rest = input.lengths[s] - done[s];
      if (rest == 0 || random() % 3 == 0) continue;
      const int32_t tokens =
          random() % 2 == 0 ? 1 : 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(rest));
      step.push_back({static_cast<int32_t>(s), done[s], tokens});
      done[s] += tokens;
      left -= tokens;
    }
    std::shuffle(step.begin(), step.end(), random);
    if (!step.empty()) steps.push_back(step);
  }
  return steps;
}

Matrix ExactAttention(const AttentionInput& input, KvFormat format) {
  const AttentionShape& shape = input.shape;
  const int32_t dim = shape.head_dim;
  const int32_t half = dim / 2;
  const auto rotated = [&](int64_t row, int32_t position, int64_t column) {
    std::vector<float> elements;
    for (int32_t i = 0; i < dim; ++i) {
      const float sign = i < half ? -1.0f : 1.0f;
      const float self = input.qkv.At(row, column + i);
      const float other = input.qkv.At(row, column + (i + half) % dim);
      const float cosine = input.rope.At(position, i % half);
      const float sine = input.rope.At(position, half + i % half);
      elements.push_back(self * cosine + sign * (other * sine));
    }
    return elements;
  };
  const auto plain = [&](int64_t row, int64_t column) {
    std::vector<float> elements;
    for (int32_t i = 0; i < dim; ++i) elements.push_back(input.qkv.At(row, column + i));
    return elements;
  };
  Matrix out(DType::kF32, input.qkv.rows(), int64_t{shape.heads} * dim);
  for (int32_t s = 0; s < static_cast<int32_t>(input.lengths.size()); ++s) {
    for (int32_t p = 0; p < input.lengths[static_cast<size_t>(s)]; ++p) {
      const int32_t first = shape.window > 0 ? std::max(0, p - shape.window + 1) : 0;
      for (int32_t h = 0; h < shape.heads; ++h) {
        const int64_t kv_head = h / (shape.heads / shape.kv_heads);
        const int64_t key = (shape.heads + kv_head) * dim;
        const int64_t value = (shape.heads + shape.kv_heads + kv_head) * dim;
        const std::vector<double> query =
            Cached(rotated(input.RowOf(s, p), p, int64_t{h} * dim), KvFormat::kActivation);
        std::vector<double> sums(static_cast<size_t>(dim), 0.0);
        double total = 0;
        for (int32_t k = first; k <= p; ++k) {
          const int64_t row = input.RowOf(s, k);
          const std::vector<double> keys = Cached(rotated(row, k, key), format);
          const std::vector<double> values = Cached(plain(row, value), format);
          double dot = 0;
          for (int32_t i = 0; i < dim; ++i) {
            dot += query[static_cast<size_t>(i)] * keys[static_cast<size_t>(i)];
          }
          const double probability = std::exp(dot / std::sqrt(static_cast<double>(dim)));
          total += probability;
          for (int32_t i = 0; i < dim; ++i) {
            sums[static_cast<size_t>(i)] += probability * values[static_cast<size_t>(i)];
          }
        }
        for (int32_t i = 0; i < dim; ++i) {
          out.Set(input.RowOf(s, p), int64_t{h} * dim + i,
                  static_cast<float>(sums[static_cast<size_t>(i)] / total));
        }
      }
    }
  }
  return out;
}

}  // namespace marcoro
