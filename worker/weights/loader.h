// From a tensor source to one rank's parameters: rows as float32, quantized with the scale of the
// whole row, cut to the rank's shard, packed into the backend's layout. One streaming pass; besides
// the shard it holds a few MB per thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/model/config.h"
#include "worker/model/parameters.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

struct LoadOptions {
  // Format of the seven linear weights of each layer: kF8E4M3 (E4M3FN codes and a float scale per
  // row), kBF16 (rounded to nearest even) or kF32 (reference backend only). Embedding and lm_head
  // are BF16, or F32 where the backend's activations are. Where kF8E4M3 is asked for, a
  // pre-quantized tensor keeps its codes and scales if it has one for each row; a weight made of
  // other tensors of a pre-quantized checkpoint is held as BF16 instead, and warned of.
  DType linear_dtype = DType::kF8E4M3;

  // Called once, when there is memory for all of the shard and nothing has been read: a failure is
  // the load's. May be empty.
  std::function<absl::Status()> allocated;

  // Bytes of tensors that are left in the page cache behind the last one loaded where the source's
  // files are more than memory has room for: for ranks of the same host that are not as far yet,
  // which else would read them from the disk again. Empty: what half of the memory that is free
  // beside the shard takes. Where the files fit, all stay for the next start.
  std::optional<uint64_t> kept_bytes;

  // Called as loading goes on, one call at a time, from any of the backend's threads: stored bytes
  // read so far, and how many will be. The last call has done == total. May be empty.
  std::function<void(uint64_t done, uint64_t total)> progress;

  // Called for what is odd but no error, for example a tensor that the model does not use. Empty:
  // spdlog::warn.
  std::function<void(const std::string& message)> warn;
};

// Fills a new shard. INVALID_ARGUMENT for a missing or wrongly shaped tensor, a bias, a type that
// cannot be read, a number that is not finite, or a tensor-parallel degree the model does not
// allow; RESOURCE_EXHAUSTED without the memory; DATA_LOSS for a file that
// ends early, or is written to while it is read. Messages name origin and tensor.
absl::StatusOr<ModelParameters> LoadParameters(TensorSource& source, const ModelConfig& config,
                                               const Shard& shard, const LoadOptions& options,
                                               Backend& backend);

}  // namespace marcoro
