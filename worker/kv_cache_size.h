// How many tokens of KV cache a rank has memory for.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/config.h"
#include "worker/model/config.h"
#include "worker/model/transformer.h"

namespace marcoro {

// Tokens of KV cache that rank 0's free memory has room for, once it has that of its shard and
// beside what a step computes. RESOURCE_EXHAUSTED, saying how much is missing, if these are too few
// to serve.
absl::StatusOr<int64_t> SizeKvCache(const WorkerConfig& config, const ModelConfig& model,
                                    const StepBounds& bounds, const Backend& backend);

// Whether the KV cache will find room beside the shard: to be asked when that has its memory and
// before it is read, which takes longer. The errors of SizeKvCache, and the same for --kv-tokens;
// OK where memory is taken only when it is written to, as the host's is.
absl::Status CheckRoomForKvCache(const WorkerConfig& config, const ModelConfig& model,
                                 const StepBounds& bounds, const Backend& backend);

}  // namespace marcoro
