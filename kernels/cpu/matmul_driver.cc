#include "kernels/cpu/matmul_driver.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/check.h"

namespace marcoro::cpu {
namespace {

// Bounds the packed activations of one pass: they are read again for every few panels, so they have
// to stay in the cache that the cores share.
constexpr int64_t kPassActivationBytes = 4 << 20;
// How far ahead weights are fetched, over all panels of a tile: what memory delivers in its
// latency.
constexpr int64_t kPrefetchBytes = 8192;
// What a thread may use of its second-level cache.
constexpr int64_t kPrivateCacheBytes = 896 << 10;
// Panels that a task keeps in the second-level cache while it walks over the token groups.
constexpr int64_t kCachedWeightBytes = 512 << 10;
// Tasks for each thread, so that one that is held up does not hold up the rest.
constexpr int64_t kTasksPerThread = 8;

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

// Cuts [0, count) into ranges for dynamic handing out: large ones first, because hardware reads
// long contiguous stretches of memory fastest, small ones last, so that all threads end together.
std::vector<Range> GuidedRanges(int64_t count, int threads, int64_t granularity) {
  std::vector<Range> ranges;
  int64_t begin = 0;
  while (begin < count) {
    int64_t length = (count - begin) / (2 * threads);
    length = std::max(length / granularity, int64_t{1}) * granularity;
    const int64_t end = std::min(begin + length, count);
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

// BF16 of every E4M3 code.
struct DecodeTable {
  BFloat16 values[256];
};

constexpr DecodeTable MakeDecodeTable() {
  DecodeTable table = {};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15;
    const int mantissa = code & 7;
    float value = exponent == 0 ? static_cast<float>(mantissa) / 512
                                : static_cast<float>(8 + mantissa) / 1024;
    for (int i = 0; i < exponent; ++i) value *= 2;
    const uint32_t sign = static_cast<uint32_t>(code) << 8 & 0x8000u;
    const uint32_t bits = (code & 0x7f) == 0x7f ? 0x7fc0u : std::bit_cast<uint32_t>(value) >> 16;
    table.values[code].bits = static_cast<uint16_t>(sign | bits);
  }
  return table;
}

constexpr DecodeTable kDecodeTable = MakeDecodeTable();

// One pass: all rows times as many tokens as stay in cache. Activations are BF16, or E4M3 with
// scales.
class Pass {
 public:
  Pass(const MatmulKernel& kernel, ThreadPool& pool, const Tensor& x, const Tensor* token_scales,
       const PackedWeight& weight, const Tensor& out)
      : kernel_(kernel),
        pool_(pool),
        x_(x),
        token_scales_(token_scales),
        weight_(weight),
        out_(out),
        layout_(MakePanelLayout(weight.shape, kernel.step_columns)),
        groups_((x.rows + kernel.max_tokens - 1) / kernel.max_tokens),
        panel_step_bytes_(layout_.panel_bytes / layout_.steps),
        packed_token_bytes_(layout_.steps * kernel.step_columns * kernel.x_element_bytes),
        packed_(static_cast<char*>(pool.Scratch(x.rows * packed_token_bytes_ + DecodedBytes()))),
        decoded_(packed_ + x.rows * packed_token_bytes_, DType::kBF16, x.rows, x.columns) {}

  void Run() {
    PackTokens();
    const int64_t cached_bytes = 2 * layout_.panel_bytes + x_.rows * packed_token_bytes_;
    if (groups_ == 1) {
      RunOneGroup();
    } else if (cached_bytes <= kPrivateCacheBytes) {
      RunFewGroups();
    } else {
      RunGroups();
    }
  }

 private:
  int64_t FirstToken(int64_t group) const { return group * x_.rows / groups_; }

  int64_t DecodedBytes() const {
    return token_scales_ == nullptr ? 0 : x_.rows * x_.columns * int64_t{sizeof(BFloat16)};
  }

  void Decode(int64_t first, int64_t end) {
    for (int64_t token = first; token < end; ++token) {
      const uint8_t* codes = x_.Row<const uint8_t>(token);
      BFloat16* values = decoded_.Row<BFloat16>(token);
      for (int64_t i = 0; i < x_.columns; ++i) values[i] = kDecodeTable.values[codes[i]];
    }
  }

  void PackTokens() {
    const Tensor& x = token_scales_ == nullptr ? x_ : decoded_;
    auto pack = [this, &x](int64_t group) {
      const int64_t first = FirstToken(group);
      if (token_scales_ != nullptr) Decode(first, FirstToken(group + 1));
      const TokenGroup tokens{.x = x.Row<const BFloat16>(first),
                              .x_stride = x.stride,
                              .tokens = static_cast<int>(FirstToken(group + 1) - first),
                              .segments = weight_.shape.segments,
                              .segment_columns = layout_.segment_columns,
                              .segment_steps = layout_.segment_steps};
      kernel_.pack_tokens(tokens, packed_ + first * packed_token_bytes_);
    };
    pool_.Run(groups_, pack);
  }

  const char* WeightsOf(int64_t panel) const {
    return static_cast<const char*>(weight_.data) + panel * layout_.panel_bytes;
  }

  MatmulTile::Panel PanelOf(int64_t panel, int64_t first_token) const {
    const int64_t first_row = panel * kPanelRows;
    return {.weights = WeightsOf(panel),
            .scales = weight_.scales == nullptr ? nullptr : weight_.scales + first_row,
            .out = out_.Row<float>(first_token) + first_row,
            .rows = static_cast<int>(std::min<int64_t>(kPanelRows, weight_.shape.rows - first_row)),
            .prefetch = WeightsOf(panel) + kPrefetchBytes};
  }

  // A tile of one panel that fetches ahead in its own weights.
  MatmulTile TileOf(int64_t panel, int64_t group) const {
    const int64_t first_token = FirstToken(group);
    MatmulTile tile{.panels = {},
                    .panel_count = 1,
                    .x = packed_ + first_token * packed_token_bytes_,
                    .out_stride = out_.stride,
                    .tokens = static_cast<int>(FirstToken(group + 1) - first_token),
                    .segments = weight_.shape.segments,
                    .segment_steps = layout_.segment_steps,
                    .prefetch_step_bytes = panel_step_bytes_};
    tile.panels[0] = PanelOf(panel, first_token);
    if (token_scales_ != nullptr) {
      tile.token_scales = token_scales_->Row<const float>(first_token);
      tile.token_scale_stride = token_scales_->stride;
    }
    return tile;
  }

  void RunTile(int64_t panel, int64_t group) const {
    kernel_.tile(weight_.shape.dtype, TileOf(panel, group));
  }

  void RunPairTile(int64_t first_panel, int64_t second_panel) const {
    MatmulTile tile = TileOf(first_panel, 0);
    tile.panels[1] = PanelOf(second_panel, 0);
    tile.panel_count = 2;
    for (MatmulTile::Panel& panel : tile.panels) panel.prefetch -= kPrefetchBytes / 2;
    kernel_.tile(weight_.shape.dtype, tile);
  }

  // Few tokens: the time is that of reading the weights once, so each thread reads long contiguous
  // ranges. Tiles of two panels take one from each half of a range, which makes two streams of
  // memory, each without a gap.
  void RunOneGroup() {
    const bool pairs = x_.rows <= kernel_.max_pair_tokens;
    const std::vector<Range> ranges = GuidedRanges(layout_.panels, pool_.size(), pairs ? 2 : 1);
    auto body = [&](int64_t index) {
      const Range& range = ranges[index];
      const int64_t half = pairs ? (range.end - range.begin) / 2 : 0;
      for (int64_t i = 0; i < half; ++i) RunPairTile(range.begin + i, range.begin + half + i);
      for (int64_t i = range.begin + 2 * half; i < range.end; ++i) RunTile(i, 0);
    };
    pool_.Run(static_cast<int64_t>(ranges.size()), body);
  }

  // A few groups: reading the weights takes a good part of the time, so the next panel is fetched
  // while all groups compute on this one.
  void RunFewGroups() {
    const std::vector<Range> ranges = GuidedRanges(layout_.panels, pool_.size(), 1);
    auto body = [&](int64_t index) {
      const Range& range = ranges[index];
      for (int64_t panel = range.begin; panel < range.end; ++panel) {
        // Nobody has fetched the first panel: its first group reads it.
        const int64_t first_fetching_group = panel == range.begin ? 1 : 0;
        const int64_t parts = groups_ - first_fetching_group;
        for (int64_t group = 0; group < groups_; ++group) {
          MatmulTile tile = TileOf(panel, group);
          const int64_t part = group - first_fetching_group;
          if (part >= 0 && panel + 1 < range.end) {
            tile.panels[0].prefetch = WeightsOf(panel + 1) + part * layout_.panel_bytes / parts;
            tile.prefetch_step_bytes = panel_step_bytes_ / parts;
          }
          kernel_.tile(weight_.shape.dtype, tile);
        }
      }
    };
    pool_.Run(static_cast<int64_t>(ranges.size()), body);
  }

  // Many tokens: a task keeps its panels in cache for all groups of its share of the tokens.
  void RunGroups() {
    const int64_t wanted_tasks = pool_.size() * kTasksPerThread;
    int64_t task_panels = std::max<int64_t>(kCachedWeightBytes / layout_.panel_bytes, 1);
    task_panels =
        std::clamp<int64_t>(task_panels, 1, std::max<int64_t>(layout_.panels / wanted_tasks, 1));
    const int64_t row_tasks = (layout_.panels + task_panels - 1) / task_panels;
    const int64_t token_tasks =
        pool_.size() == 1 ? 1 : std::clamp<int64_t>(wanted_tasks / row_tasks, 1, groups_);
    auto body = [&](int64_t index) {
      const int64_t row_task = index / token_tasks;
      const int64_t token_task = index % token_tasks;
      const int64_t first_panel = row_task * task_panels;
      const int64_t end_panel = std::min(first_panel + task_panels, layout_.panels);
      const int64_t end_group = (token_task + 1) * groups_ / token_tasks;
      for (int64_t group = token_task * groups_ / token_tasks; group < end_group; ++group) {
        for (int64_t panel = first_panel; panel < end_panel; ++panel) RunTile(panel, group);
      }
    };
    pool_.Run(row_tasks * token_tasks, body);
  }

  const MatmulKernel& kernel_;
  ThreadPool& pool_;
  const Tensor x_;
  const Tensor* const token_scales_;  // (tokens, segments), null for BF16
  const PackedWeight weight_;
  const Tensor out_;
  const PanelLayout layout_;
  const int64_t groups_;
  const int64_t panel_step_bytes_;
  const int64_t packed_token_bytes_;
  char* const packed_;
  const Tensor decoded_;  // x as BF16, where it is not
};

void RunPasses(const MatmulKernel& kernel, ThreadPool& pool, const Tensor& x,
               const Tensor* token_scales, const PackedWeight& weight, const Tensor& out) {
  const WeightShape& shape = weight.shape;
  MARCORO_CHECK(out.dtype == DType::kF32);
  MARCORO_CHECK(x.columns == shape.columns && out.columns == shape.rows && x.rows == out.rows);
  MARCORO_CHECK(x.stride >= x.columns && out.stride >= out.columns);
  MARCORO_CHECK((weight.scales != nullptr) == (shape.dtype == DType::kF8E4M3));
  const PanelLayout layout = MakePanelLayout(shape, kernel.step_columns);
  const int64_t token_bytes = layout.steps * kernel.step_columns * kernel.x_element_bytes;
  const int64_t max_tiles = kPassActivationBytes / (token_bytes * kernel.max_tokens);
  const int64_t max_tokens = std::max<int64_t>(max_tiles, 1) * kernel.max_tokens;
  // Passes of equal size: a short last one would read all weights for few tokens.
  const int64_t passes = (x.rows + max_tokens - 1) / max_tokens;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t first = pass * x.rows / passes;
    const int64_t tokens = (pass + 1) * x.rows / passes - first;
    const Tensor scales = token_scales == nullptr ? Tensor() : token_scales->Rows(first, tokens);
    Pass(kernel, pool, x.Rows(first, tokens), token_scales == nullptr ? nullptr : &scales, weight,
         out.Rows(first, tokens))
        .Run();
  }
}

}  // namespace

PanelLayout MakePanelLayout(const WeightShape& shape, int step_columns) {
  MARCORO_CHECK(shape.dtype == DType::kF8E4M3 || shape.dtype == DType::kBF16);
  MARCORO_CHECK(shape.rows >= 1 && shape.columns >= 1);
  MARCORO_CHECK(shape.segments >= 1 && shape.segments <= 1 << kMaxTreeLevels &&
                (shape.segments & (shape.segments - 1)) == 0);
  MARCORO_CHECK(shape.columns % shape.segments == 0);
  PanelLayout layout;
  layout.segment_columns = shape.columns / shape.segments;
  layout.segment_steps = (layout.segment_columns + step_columns - 1) / step_columns;
  layout.steps = layout.segment_steps * shape.segments;
  layout.panels = (shape.rows + kPanelRows - 1) / kPanelRows;
  layout.panel_bytes =
      layout.steps * step_columns * kPanelRows * static_cast<int64_t>(SizeOf(shape.dtype));
  return layout;
}

void PackPanels(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source,
                int step_columns, PackRowFunction pack_row) {
  const WeightShape& shape = weight.shape;
  MARCORO_CHECK(first_row % (2 * kPanelRows) == 0 && first_row + count <= shape.rows);
  MARCORO_CHECK(count % (2 * kPanelRows) == 0 || first_row + count == shape.rows);
  const PanelLayout layout = MakePanelLayout(shape, step_columns);
  const size_t element_bytes = SizeOf(shape.dtype);
  const size_t row_bytes = shape.columns * element_bytes;
  const char* from = static_cast<const char*>(source);
  for (int64_t row = first_row; row < first_row + count; row += kPanelRows) {
    char* panel = static_cast<char*>(weight.data) + row / kPanelRows * layout.panel_bytes;
    const int rows = static_cast<int>(std::min<int64_t>(kPanelRows, first_row + count - row));
    if (rows < kPanelRows) std::memset(panel, 0, layout.panel_bytes);
    for (int i = 0; i < rows; ++i) {
      pack_row(layout, shape.segments, element_bytes, from, i, panel);
      from += row_bytes;
    }
  }
}

void RunMatmul(const MatmulKernel& kernel, ThreadPool& pool, const Tensor& x,
               const PackedWeight& weight, const Tensor& out) {
  MARCORO_CHECK(x.dtype == DType::kBF16);
  RunPasses(kernel, pool, x, nullptr, weight, out);
}

void RunQuantizedMatmul(const MatmulKernel& kernel, ThreadPool& pool, const QuantizedActivations& x,
                        const PackedWeight& weight, const Tensor& out) {
  MARCORO_CHECK(x.codes.dtype == DType::kF8E4M3 && weight.shape.dtype == DType::kF8E4M3);
  MARCORO_CHECK(x.scales.rows == x.codes.rows && x.scales.columns == weight.shape.segments);
  RunPasses(kernel, pool, x.codes, &x.scales, weight, out);
}

}  // namespace marcoro::cpu
