// Products of a warpgroup, by the fragment and shared memory layouts of the PTX ISA ("Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate"). A product reads B when somebody waits for it, as
// late as it can.
#include <bit>
#include <cmath>
#include <utility>

#include "tests/kernels/simt/scheduler.h"

namespace marcoro::simt {
namespace {

constexpr int kRows = 64;
constexpr int kMostDepth = 32;  // of codes; BF16 have half
constexpr int kChunks = 2;      // along the depth
constexpr int kMostColumns = 256;
constexpr int kChunkBytes = 16;  // what stays together in every layout
constexpr uint32_t kPoison = 0xffffffff;

int least_truncated_columns = kMostColumns + 1;

float Round(double sum, int columns) {
  const auto nearest = static_cast<float>(sum);
  const bool away = std::abs(double{nearest}) > std::abs(sum);
  return columns >= least_truncated_columns && away ? std::nextafter(nearest, 0.0f) : nearest;
}

// The fields of a matrix descriptor.
struct Descriptor {
  uint64_t start;
  uint64_t leading_bytes;
  uint64_t stride_bytes;
  uint64_t base_offset;
  int swizzled_row_bytes;  // 16: no swizzle
};

Descriptor Decode(uint64_t bits) {
  constexpr int kRowBytes[] = {16, 128, 64, 32};
  return {.start = (bits & 0x3fff) << 4,
          .leading_bytes = (bits >> 16 & 0x3fff) << 4,
          .stride_bytes = (bits >> 32 & 0x3fff) << 4,
          .base_offset = bits >> 49 & 7,
          .swizzled_row_bytes = kRowBytes[bits >> 62]};
}

// Where in the block's shared memory the `chunk`-th 16 bytes along K of a column lie.
uint64_t ChunkAddress(const Descriptor& b, int column, int chunk) {
  const auto row = static_cast<uint64_t>(column % 8);
  const uint64_t group = b.start + static_cast<uint64_t>(column / 8) * b.stride_bytes;
  const auto row_bytes = static_cast<uint64_t>(b.swizzled_row_bytes);
  if (row_bytes == kChunkBytes) {
    return group + static_cast<uint64_t>(chunk) * b.leading_bytes + row * row_bytes;
  }
  const uint64_t plain = group + row * row_bytes + static_cast<uint64_t>(chunk) * kChunkBytes;
  const uint64_t chunks = row_bytes / kChunkBytes;
  return plain ^ ((plain >> 7 & (chunks - 1)) << 4);
}

int WordElements(MatrixElement element) { return element == MatrixElement::kBf16 ? 2 : 4; }

double ElementOf(uint32_t word, int i, MatrixElement element) {
  if (element == MatrixElement::kE4M3) return CodeValue(word, i);
  return std::bit_cast<float>(i == 0 ? word << 16 : word & 0xffff0000u);
}

bool IsPoisoned(const float* d, int count) {
  for (int i = 0; i < count; ++i) {
    if (std::bit_cast<uint32_t>(d[i]) != kPoison) return false;
  }
  return true;
}

using Group = std::array<void*, kWarpgroupThreads>;

Thread& ThreadOf(const Group& group, size_t i) { return *static_cast<Thread*>(group[i]); }

// 16 bytes of B, read by each of the warps at its next moment.
void NoteRead(const Group& group, const PendingProduct& product, const char* chunk) {
  Block& block = *ThreadOf(group, 0).block;
  if (!block.shared->Holds(chunk, kChunkBytes)) {
    Fault("a matrix that goes beyond the block's shared memory", product.where);
  }
  const auto unfenced = block.shared->FindWrite(chunk, kChunkBytes, [&](const Moment& write) {
    return IsFenced(*block.cluster, write, product.issued);
  });
  if (unfenced) {
    Report("reads byte " + std::to_string(unfenced->byte) + " of shared memory, which " +
               block.cluster->Name(unfenced->other) + " wrote without a FenceAsyncProxy since",
           product.where);
  }
  for (size_t first = 0; first < kWarpgroupThreads; first += kWarpThreads) {
    Warp& warp = *ThreadOf(group, first).warp;
    const Moment at = {warp.products, warp.product_reads + 1};
    const auto race = block.shared->NoteRead(chunk, kChunkBytes, product.issued, at);
    if (race) return ReportRace(*race, /*writes=*/false, product.where);
  }
}

void LoadB(const Group& group, const PendingProduct& product,
           double (&b)[kMostDepth][kMostColumns]) {
  const Descriptor descriptor = Decode(product.descriptor);
  if (descriptor.base_offset != 0) {
    Fault("a matrix whose swizzle begins at no multiple of 1024", product.where);
  }
  const char* shared = ThreadOf(group, 0).block->shared->data();
  const int in_word = WordElements(product.element);
  const int chunk_elements = kChunkBytes / 4 * in_word;
  for (int column = 0; column < product.columns; ++column) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const char* from = shared + ChunkAddress(descriptor, column, chunk);
      NoteRead(group, product, from);
      uint32_t words[kChunkBytes / 4];
      std::memcpy(words, from, sizeof(words));
      for (int k = 0; k < chunk_elements; ++k) {
        b[chunk * chunk_elements + k][column] =
            ElementOf(words[k / in_word], k % in_word, product.element);
      }
    }
  }
}

// The product that is the `index`-th of every thread's oldest group.
void Compute(const Group& group, size_t index) {
  const auto product_of = [&](size_t i) -> const PendingProduct& {
    return ThreadOf(group, i).products.groups.front()[index];
  };
  static double a[kRows][kMostDepth];
  static double b[kMostDepth][kMostColumns];
  const MatrixElement element = product_of(0).element;
  const auto in_word = static_cast<size_t>(WordElements(element));
  const size_t depth = in_word * 8;
  for (size_t i = 0; i < kWarpgroupThreads; ++i) {
    const size_t row = i / kWarpThreads * 16 + i % kWarpThreads / 4;
    for (size_t r = 0; r < 4; ++r) {
      for (size_t e = 0; e < in_word; ++e) {
        a[row + r % 2 * 8][i % 4 * in_word + e + r / 2 * depth / 2] =
            ElementOf(product_of(i).a[r], static_cast<int>(e), element);
      }
    }
  }
  LoadB(group, product_of(0), b);
  for (size_t i = 0; i < kWarpgroupThreads; ++i) {
    const PendingProduct& product = product_of(i);
    std::vector<float>& d = ThreadOf(group, i).products.accumulators[product.d];
    for (size_t j = 0; j < d.size(); ++j) {
      const size_t row = i / kWarpThreads * 16 + i % kWarpThreads / 4 + j % 4 / 2 * 8;
      const size_t column = j / 4 * 8 + i % 4 * 2 + j % 2;
      double sum = product.accumulate ? d[j] : 0;
      for (size_t k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      d[j] = Round(sum, product.columns);
    }
  }
}

void CheckSameGroups(const Group& group, SourceLocation here) {
  const auto& first = ThreadOf(group, 0).products.groups;
  for (size_t i = 1; i < kWarpgroupThreads; ++i) {
    const auto& other = ThreadOf(group, i).products.groups;
    bool same = other.size() == first.size();
    for (size_t g = 0; same && g < first.size(); ++g) same = other[g].size() == first[g].size();
    if (!same) Fault("the threads of a warpgroup committed different products", here);
  }
}

// Ends the oldest groups of all threads of the warpgroup, but for the newest few.
void EndGroups(const Group& group, size_t newest) {
  auto groups_of = [&](size_t i) -> auto& { return ThreadOf(group, i).products.groups; };
  while (groups_of(0).size() > newest) {
    for (size_t index = 0; index < groups_of(0).front().size(); ++index) Compute(group, index);
    for (size_t i = 0; i < kWarpgroupThreads; ++i) groups_of(i).pop_front();
  }
  for (size_t i = 0; i < kWarpgroupThreads; i += kWarpThreads) {
    ++ThreadOf(group, i).warp->product_reads;
  }
}

bool IsUsed(const Products& products, const float* d) {
  const auto uses = [d](const std::vector<PendingProduct>& group) {
    for (const PendingProduct& product : group) {
      if (product.d == d) return true;
    }
    return false;
  };
  for (const auto& group : products.groups) {
    if (uses(group)) return true;
  }
  return uses(products.uncommitted);
}

void CheckUntouched(const float* d, size_t count, SourceLocation here) {
  if (!IsPoisoned(d, static_cast<int>(count))) {
    Report("accumulators were touched while a product was under way", here);
  }
}

}  // namespace

TruncatedWarpgroupProducts::TruncatedWarpgroupProducts(int least_columns) {
  least_truncated_columns = least_columns;
}
TruncatedWarpgroupProducts::~TruncatedWarpgroupProducts() {
  least_truncated_columns = kMostColumns + 1;
}

void FenceWarpgroupMatrix(float*, SourceLocation) { run->current->products.fenced = true; }

void MultiplyWarpgroupMatrix(float* d, int columns, MatrixElement element, const uint32_t (&a)[4],
                             uint64_t descriptor, bool accumulate, SourceLocation here) {
  Thread& thread = *run->current;
  Products& products = thread.products;
  if (columns < 8 || columns > kMostColumns || (columns & (columns - 1)) != 0) {
    Fault("a product of " + std::to_string(columns) + " columns", here);
  }
  if (!products.fenced) Report("no FenceWarpgroupMatrix since the last commit", here);
  PendingProduct product = {d,          columns,    element,      {a[0], a[1], a[2], a[3]},
                            descriptor, accumulate, thread.clock, here};
  MeetInWarpgroup(&product, here, [here](const Group& group) {
    const auto& first = *static_cast<PendingProduct*>(group[0]);
    for (void* other : group) {
      const auto& it = *static_cast<PendingProduct*>(other);
      if (it.descriptor != first.descriptor || it.columns != first.columns ||
          it.element != first.element || it.accumulate != first.accumulate) {
        Fault("the threads of a warpgroup ask for different products", here);
      }
    }
  });
  const auto count = static_cast<size_t>(columns / 2);
  const auto found = products.accumulators.find(d);
  if (found == products.accumulators.end()) {
    products.accumulators.emplace(d, std::vector<float>(d, d + count));
    std::memset(d, 0xff, count * sizeof(float));
  } else {
    if (found->second.size() != count) Fault("accumulators of products of other shapes", here);
    CheckUntouched(d, count, here);
  }
  products.uncommitted.push_back(std::move(product));
}

void CommitWarpgroupMatrix(SourceLocation) {
  Products& products = run->current->products;
  products.groups.push_back(std::exchange(products.uncommitted, {}));
  products.fenced = false;
}

void WaitWarpgroupMatrix(int groups, const float*, SourceLocation here) {
  Thread& thread = *run->current;
  if (thread.warp->products < 0) thread.warp->products = thread.block->cluster->AddOther();
  MeetInWarpgroup(&thread, here, [groups, here](const Group& group) {
    CheckSameGroups(group, here);
    EndGroups(group, static_cast<size_t>(groups));
  });
  // The warp's reads of B are behind it now.
  thread.clock.Learn(Moment{thread.warp->products, thread.warp->product_reads},
                     thread.warp->lesson);
  Products& products = thread.products;
  std::erase_if(products.accumulators, [&](const auto& entry) {
    const auto& [d, values] = entry;
    if (IsUsed(products, d)) return false;
    CheckUntouched(d, values.size(), here);
    std::copy(values.begin(), values.end(), d);
    return true;
  });
}

}  // namespace marcoro::simt
