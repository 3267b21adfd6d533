#include "worker/kv_cache_size.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "worker/model/kv_cache.h"

namespace marcoro {
namespace {

constexpr double kMegabyte = 1e6;

// Of a rank, over all layers.
double BlockBytes(const WorkerConfig& config, const ModelConfig& model, const Backend& backend) {
  return static_cast<double>(KvCache::BlockBytes(backend, model.layers,
                                                 model.kv_heads / config.world_size, model.head_dim,
                                                 config.kv_format()));
}

double ActivationBytes(const WorkerConfig& config, const ModelConfig& model,
                       const StepBounds& bounds, const Backend& backend) {
  return static_cast<double>(Transformer::ActivationBytes(
      model, {.rank = config.rank, .world_size = config.world_size}, bounds, backend));
}

}  // namespace

absl::StatusOr<int64_t> SizeKvCache(const WorkerConfig& config, const ModelConfig& model,
                                    const StepBounds& bounds, const Backend& backend) {
  // Ranks of one host share its memory; a GPU's is taken for one rank's alone.
  const double sharing = backend.host_memory() ? config.world_size : 1;
  const double block_bytes = BlockBytes(config, model, backend);
  const double activations = ActivationBytes(config, model, bounds, backend);
  const double free = static_cast<double>(backend.AvailableMemory()) / sharing;
  const double share = std::max(0.0, free - activations) * config.memory_fraction;
  constexpr int kContexts = 16;
  const int contexts = backend.host_memory() ? kContexts : config.max_sequences;
  const auto tokens = static_cast<int64_t>(std::min(
      share / block_bytes * kKvBlockTokens, static_cast<double>(contexts) * bounds.context_length));
  const int64_t least = std::min<int64_t>(bounds.context_length, 256);
  if (tokens >= least) return tokens;
  const double needed = static_cast<double>(least) / kKvBlockTokens * block_bytes;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "a KV cache of %d tokens needs %.0f MB, and --memory-fraction=%g of what is left after "
      "loading is %.0f MB: missing %.0f MB",
      least, needed / kMegabyte, config.memory_fraction, share / kMegabyte,
      (needed - share) / kMegabyte));
}

absl::Status CheckRoomForKvCache(const WorkerConfig& config, const ModelConfig& model,
                                 const StepBounds& bounds, const Backend& backend) {
  if (backend.host_memory()) return absl::OkStatus();
  if (config.kv_tokens == 0) {  // rank 0 decides
    if (config.rank > 0) return absl::OkStatus();
    return SizeKvCache(config, model, bounds, backend).status();
  }
  const double needed =
      static_cast<double>(config.kv_tokens) / kKvBlockTokens * BlockBytes(config, model, backend) +
      ActivationBytes(config, model, bounds, backend);
  const auto free = static_cast<double>(backend.AvailableMemory());
  if (needed <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat(
      "a KV cache of %d tokens and what a step computes need %.0f MB, and the weights leave "
      "%.0f MB: missing %.0f MB",
      config.kv_tokens, needed / kMegabyte, free / kMegabyte, (needed - free) / kMegabyte));
}

}  // namespace marcoro
