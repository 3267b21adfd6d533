#include "worker/weights/merge/largest_elements.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "kernels/check.h"
#include "worker/weights/merge/whole_tensor.h"
#include "worker/weights/parallel_state.h"

namespace marcoro {
namespace {

// A magnitude's 31 bits are counted in two parts: the upper half of a float32, which is all of a
// BF16, and the lower half among those whose upper half is the threshold's.
constexpr int kLowerBits = 16;
constexpr uint32_t kLowerMask = (1u << kLowerBits) - 1;
constexpr size_t kUpperBins = size_t{1} << (31 - kLowerBits);
constexpr size_t kLowerBins = size_t{1} << kLowerBits;
constexpr int64_t kAllEqual = std::numeric_limits<int64_t>::max();

using Histogram = std::vector<int64_t>;

// What is known so far about the answer to a request.
struct Search {
  int32_t input = 0;
  int64_t wanted = 0;  // of the magnitudes in the bin that is looked into
  int64_t equal = 0;   // magnitudes of exactly the threshold
  LargestElements found = {};
};

class LargestSearch {
 public:
  LargestSearch(const MergeInputs& inputs, int32_t base, std::span<const LargestRequest> requests,
                const ParallelFor& parallel)
      : inputs_(inputs), parallel_(parallel), indices_{base} {
    for (const LargestRequest& request : requests) {
      MARCORO_CHECK(request.count >= 1 && request.count <= inputs.rows() * inputs.columns());
      searches_.push_back({.input = request.input, .wanted = request.count});
      indices_.push_back(request.input);
    }
  }

  absl::StatusOr<std::vector<LargestElements>> Run() {
    absl::Status status = Count(kUpperBins, [](const Search&, uint32_t magnitude, Histogram& bins) {
      ++bins[magnitude >> kLowerBits];
    });
    if (!status.ok()) return status;
    for (Search& search : searches_) search.found.threshold <<= kLowerBits;
    if (inputs_.dtype() != DType::kBF16) {
      status = Count(kLowerBins, [](const Search& search, uint32_t magnitude, Histogram& bins) {
        bins[magnitude & kLowerMask] +=
            magnitude >> kLowerBits == search.found.threshold >> kLowerBits ? 1 : 0;
      });
      if (!status.ok()) return status;
    }
    status = CutEqual();
    if (!status.ok()) return status;
    std::vector<LargestElements> found;
    for (const Search& search : searches_) found.push_back(search.found);
    return found;
  }

 private:
  // Calls visit(request, magnitudes' bits) for the differences of a piece.
  template <typename Visit>
  void VisitMagnitudes(const TensorPiece& piece, const Visit& visit) const {
    uint32_t magnitudes[kMergeBlock];
    float difference[kMergeBlock];
    for (size_t i = 0; i < searches_.size(); ++i) {
      for (int64_t begin = 0; begin < piece.count; begin += kMergeBlock) {
        const int64_t n = std::min(kMergeBlock, piece.count - begin);
        GetMergeKernels()
            .rounded(inputs_.dtype())
            .subtract(piece.inputs[i + 1] + begin, piece.inputs[0] + begin, n, difference);
        for (int64_t k = 0; k < n; ++k) {
          magnitudes[k] = std::bit_cast<uint32_t>(difference[k]) & 0x7fffffffu;
        }
        visit(i, piece.first + begin,
              std::span<const uint32_t>(magnitudes, static_cast<size_t>(n)));
      }
    }
  }

  // Fills a histogram for each request, and adds the bin in which its smallest wanted magnitude
  // lies to its threshold.
  template <typename Add>
  absl::Status Count(size_t bins, const Add& add) {
    Pool<std::vector<Histogram>> pool;  // of one thread each: whole numbers add up in any order
    absl::Status status = ForEachPiece(inputs_, indices_, parallel_, [&](const TensorPiece& piece) {
      std::unique_ptr<std::vector<Histogram>> histograms = pool.Take();
      histograms->resize(searches_.size(), Histogram(bins));
      VisitMagnitudes(piece, [&](size_t i, int64_t, std::span<const uint32_t> magnitudes) {
        for (const uint32_t bits : magnitudes) add(searches_[i], bits, (*histograms)[i]);
      });
      pool.Return(std::move(histograms));
    });
    if (!status.ok()) return status;
    std::vector<Histogram> sums(searches_.size(), Histogram(bins));
    for (const auto& histograms : pool.TakeAll()) {
      for (size_t i = 0; i < sums.size(); ++i) {
        for (size_t bin = 0; bin < bins; ++bin) sums[i][bin] += (*histograms)[i][bin];
      }
    }
    for (size_t i = 0; i < sums.size(); ++i) EnterBin(sums[i], searches_[i]);
    return absl::OkStatus();
  }

  static void EnterBin(const Histogram& bins, Search& search) {
    size_t bin = bins.size() - 1;
    while (bins[bin] < search.wanted) {
      search.wanted -= bins[bin];
      MARCORO_CHECK(bin > 0);
      --bin;
    }
    search.equal = bins[bin];
    search.found.threshold |= static_cast<uint32_t>(bin);
  }

  // Where not all magnitudes of exactly the threshold are wanted: the index behind the last one.
  absl::Status CutEqual() {
    for (Search& search : searches_) search.found.equal_before = kAllEqual;
    if (std::all_of(searches_.begin(), searches_.end(),
                    [](const Search& search) { return search.wanted == search.equal; })) {
      return absl::OkStatus();
    }
    std::vector<std::vector<int64_t>> equal(  // of each request, by piece
        searches_.size(), std::vector<int64_t>(static_cast<size_t>(CountPieces(inputs_))));
    absl::Status status = ForEachPiece(inputs_, indices_, parallel_, [&](const TensorPiece& piece) {
      VisitMagnitudes(piece, [&](size_t i, int64_t, std::span<const uint32_t> magnitudes) {
        equal[i][static_cast<size_t>(piece.index)] +=
            std::count(magnitudes.begin(), magnitudes.end(), searches_[i].found.threshold);
      });
    });
    for (size_t i = 0; i < searches_.size() && status.ok(); ++i) status = CutEqualOf(i, equal[i]);
    return status;
  }

  absl::Status CutEqualOf(size_t request, const std::vector<int64_t>& equal) {
    Search& search = searches_[request];
    int64_t left = search.wanted;
    int64_t piece = 0;
    for (; left > equal[static_cast<size_t>(piece)]; ++piece) {
      left -= equal[static_cast<size_t>(piece)];
    }
    return VisitPiece(inputs_, indices_, piece, [&](const TensorPiece& contents) {
      VisitMagnitudes(contents, [&](size_t i, int64_t first, std::span<const uint32_t> magnitudes) {
        if (i != request) return;
        for (size_t k = 0; k < magnitudes.size() && left > 0; ++k) {
          if (magnitudes[k] != search.found.threshold) continue;
          --left;
          search.found.equal_before = first + static_cast<int64_t>(k) + 1;
        }
      });
    });
  }

  const MergeInputs& inputs_;
  const ParallelFor& parallel_;
  std::vector<int32_t> indices_;  // the base, then each request's
  std::vector<Search> searches_;
};

}  // namespace

absl::StatusOr<std::vector<LargestElements>> FindLargest(const MergeInputs& inputs, int32_t base,
                                                         std::span<const LargestRequest> requests,
                                                         const ParallelFor& parallel) {
  if (requests.empty()) return std::vector<LargestElements>();
  return LargestSearch(inputs, base, requests, parallel).Run();
}

}  // namespace marcoro
