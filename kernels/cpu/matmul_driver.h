// What the matmuls of all instruction sets share: the geometry of packed weights and the division
// of the work. This header is included by files compiled for newer processors than the program may
// run on, so it defines no functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace marcoro::cpu {

// Weights are packed in panels of 32 rows, each contiguous: for every step of `step_columns`
// columns, first the elements of rows 0-15, then those of rows 16-31, in an order of the
// instruction set's own. Every segment is padded with zeros to whole steps, the last panel to 32
// rows.
inline constexpr int kBlockRows = 16;
inline constexpr int kPanelRows = 32;
// The deepest tree of segments.
inline constexpr int kMaxTreeLevels = 10;

struct PanelLayout {
  int64_t segment_columns = 0;
  int64_t segment_steps = 0;
  int64_t steps = 0;  // of all segments
  int64_t panels = 0;
  int64_t panel_bytes = 0;
};
PanelLayout MakePanelLayout(const WeightShape& shape, int step_columns);

// A tile: one or two panels times the tokens of one group.
struct MatmulTile {
  struct Panel {
    const void* weights = nullptr;
    const float* scales = nullptr;   // (rows), null without scales
    float* out = nullptr;            // out[token * out_stride + row]
    int rows = 0;                    // to be written, from 1 to 32
    const char* prefetch = nullptr;  // where to fetch ahead during the first step
  };
  Panel panels[2];
  int panel_count = 0;
  const void* x = nullptr;  // the group's packed activations
  int64_t out_stride = 0;
  int tokens = 0;
  int segments = 0;
  int64_t segment_steps = 0;
  int64_t prefetch_step_bytes = 0;  // how far `prefetch` moves with each step
  // Of quantized activations: token_scales[token * token_scale_stride + segment]; otherwise null.
  const float* token_scales = nullptr;
  int64_t token_scale_stride = 0;
};

// Tokens that are packed together for a tile.
struct TokenGroup {
  const BFloat16* x = nullptr;
  int64_t x_stride = 0;
  int tokens = 0;
  int segments = 0;
  int64_t segment_columns = 0;
  int64_t segment_steps = 0;
};

// The parts of a matmul that an instruction set brings.
struct MatmulKernel {
  int step_columns = 0;
  int x_element_bytes = 0;  // of packed activations
  int max_tokens = 0;       // in a tile of one panel
  int max_pair_tokens = 0;  // in a tile of two panels
  // Writes the group's activations as the tiles read them: tokens * segments * segment_steps *
  // step_columns elements, zeros beyond the end of a segment.
  void (*pack_tokens)(const TokenGroup& group, void* packed) = nullptr;
  // Computes a tile of kF8E4M3 or kBF16 weights.
  void (*tile)(DType dtype, const MatmulTile& tile) = nullptr;
};

// Packs one row of a panel: writes the row's elements, and zeros beyond the end of each segment, to
// their places.
using PackRowFunction = void (*)(const PanelLayout& layout, int segments, size_t element_bytes,
                                 const char* source, int row_in_panel, char* panel);

// Backend::PackWeight by means of pack_row; rows beyond the last one become zero.
void PackPanels(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source,
                int step_columns, PackRowFunction pack_row);

// Backend::Matmul by means of the kernel.
void RunMatmul(const MatmulKernel& kernel, ThreadPool& pool, const Tensor& x,
               const PackedWeight& weight, const Tensor& out);

// Backend::MultiplyQuantized by means of the kernel: every code is a BF16 number, so that the tiles
// are the same.
void RunQuantizedMatmul(const MatmulKernel& kernel, ThreadPool& pool, const QuantizedActivations& x,
                        const PackedWeight& weight, const Tensor& out);

}  // namespace marcoro::cpu
