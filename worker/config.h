// What the worker's command line says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/flags/flag_table.h"
#include "kernels/tensor.h"

namespace marcoro {

struct WorkerConfig {
  std::string model;  // folder of the checkpoint
  std::string load_format = "safetensors";
  uint64_t random_seed = 0;
  std::string weights = "fp8";   // format of the linear weights
  std::string backend = "auto";  // kernel family
  int32_t device = -1;           // GPU of the backend cuda; -1: by rank
  bool cuda_graphs = true;       // capture decode steps on a GPU
  std::string activations = "bf16";
  int32_t threads = 0;  // 0: the processors this process may use

  int32_t rank = 0;
  int32_t world_size = 1;
  std::string listen = "127.0.0.1:50061";  // rank 0's worker and group services
  std::string root;                        // rank 0's address, for its peers
  std::string collective = "auto";
  std::string interface;  // network interface of the collectives
  absl::Duration join_timeout = absl::Minutes(10);
  absl::Duration collective_timeout = absl::Seconds(60);
  absl::Duration heartbeat_interval = absl::Seconds(1);

  int32_t context_length = 4096;  // cut to what the checkpoint allows
  int32_t max_sequences = 256;
  int32_t max_step_tokens = 512;
  int32_t max_logit_rows = 256;
  int32_t max_waiting = 1024;
  std::string kv = "bf16";  // format of the KV cache
  int64_t kv_tokens = 0;    // 0: from free memory
  double memory_fraction = 0.5;
  bool prefix_cache = true;

  std::string metrics;  // host:port; empty: none
  absl::Duration drain_timeout = absl::Seconds(30);
  std::string log_level = "info";

  DType linear_dtype() const;
  DType activation_dtype() const;  // as BackendOptions has it
  KvFormat kv_format() const;
};

// The flags, with their defaults in *config, which they fill.
FlagTable WorkerFlags(WorkerConfig* config);

// What no single flag can check: INVALID_ARGUMENT naming the flags.
absl::Status CheckWorkerConfig(const WorkerConfig& config);

}  // namespace marcoro
