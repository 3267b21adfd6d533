// Where weights come from, seen as named tensors whose rows can be read as float32. A checkpoint,
// random numbers or a merge recipe: the loader does not know the difference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace marcoro {

class Sha256;

// parallel(n, work): calls work(i) for every i in [0, n), on several threads, and waits for all.
using ParallelFor = std::function<void(int64_t n, const std::function<void(int64_t i)>& work)>;

struct TensorInfo {
  std::string name;            // Hugging Face's: "model.layers.0.mlp.up_proj.weight"
  std::string dtype;           // safetensors' name of the stored type: "BF16", "F16", "F32", …
  std::vector<int64_t> shape;  // as stored
  std::string origin;          // what messages name: the file, "random weights", …
  uint64_t bytes = 0;          // as stored

  // A tensor as a matrix: (shape[0], product of the rest); a vector is one row, as is a scalar.
  int64_t rows() const { return shape.size() < 2 ? 1 : shape[0]; }
  int64_t columns() const;
};

// How a linear weight can be held where FP8 is asked for.
enum class Fp8Form : uint8_t {
  kQuantize,  // its numbers are quantized while they are loaded
  kStored,    // it is stored as codes with one scale for each row, which ReadCodes gives
  // It stays as precise as it is: somebody left it unquantized on purpose, or its scales are finer
  // than rows, so that another rounding would be needed.
  kNone,
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  // One line for logs.
  virtual std::string Description() const = 0;

  // Null if there is no such tensor. The pointer lives as long as the source.
  virtual const TensorInfo* Find(std::string_view name) const = 0;

  // Every tensor, by name.
  virtual std::vector<const TensorInfo*> Tensors() const = 0;

  // A hint that these rows are read soon; what it takes must not wait for the disk.
  virtual void Prefetch(const TensorInfo& tensor, int64_t first_row, int64_t count) {}

  // A hint that the tensor is not read again: what the system holds of its file may give place.
  virtual void Discard(const TensorInfo& tensor) {}

  // Bytes of the files that the tensors are read from, all together; 0 where there are none.
  virtual uint64_t StoredBytes() const { return 0; }

  // Called once before the tensor's first ReadRows, never concurrently with another call: the
  // place for what depends on the whole tensor (a merge's norms). `parallel(n, work)` runs work(i)
  // for i in [0, n) on the caller's threads. Errors as of ReadRows.
  virtual absl::Status Prepare(const TensorInfo& tensor, const ParallelFor& parallel) {
    return absl::OkStatus();
  }

  // out (count, columns) = rows [first_row, first_row + count) in float32. Every value of the
  // stored type is kept exactly, NaN and infinities included. Calls may run concurrently.
  // Pre-quantized weights are dequantized: a code times its scale, rounded to float32.
  // INVALID_ARGUMENT for a type that is none of BF16, F16, F32 and FP8 with scales; DATA_LOSS if
  // the file ended or could not be read. Messages name origin and tensor.
  virtual absl::Status ReadRows(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                float* out) = 0;

  // The type that a tensor's numbers are stored as, in which ReadStored gives them: kBF16, kF16 or
  // kF32. Nothing where they are computed, or dequantized.
  virtual std::optional<DType> StoredDType(const TensorInfo& tensor) const { return std::nullopt; }

  // out (count, columns) = rows [first_row, first_row + count) as they are stored. Only for tensors
  // with a StoredDType. Calls may run concurrently. Errors as of ReadRows.
  virtual absl::Status ReadStored(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                  void* out);

  virtual Fp8Form FormOf(const TensorInfo& tensor) const { return Fp8Form::kQuantize; }

  // codes (count, columns) = the E4M3FN codes of rows [first_row, first_row + count), NaN included,
  // and scales (count) = the scales of these rows, finite and above zero. Only for tensors of the
  // form kStored. Calls may run concurrently. Errors as of ReadRows.
  virtual absl::Status ReadCodes(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                 uint8_t* codes, float* scales);

  // To be asked when all is read: DATA_LOSS, naming the file, if one of those that were read has
  // changed since the source was opened.
  virtual absl::Status CheckUnchanged() const { return absl::OkStatus(); }

  // Adds what tells this tensor's contents from others' to the hash. Equal for equal contents,
  // whatever files they lie in.
  virtual absl::Status HashContents(const TensorInfo& tensor, Sha256& hash) = 0;
};

// "[4096, 14336]"
std::string FormatShape(const std::vector<int64_t>& shape);

}  // namespace marcoro
