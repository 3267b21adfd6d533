// What the coordinator's command line says.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "deploy/flags/flag_table.h"

namespace marcoro {

struct CoordinatorConfig {
  // Folder of the checkpoint: config.json, tokenizer.model, tokenizer_config.json,
  // generation_config.json. No weights are read. Required. Without tokenizer.model only token ids
  // are served.
  std::string model;

  // Name that clients give and GetModel reports. Default: the folder's name.
  std::string model_name;

  // What GetModel reports as the checkpoint. Default: `model`. Of a recipe's model, whose files lie
  // in a folder of the launcher, the recipe.
  std::string checkpoint_name;

  // host:port of the public gRPC API. Port 0 picks a free one. Default: loopback only, because
  // nothing here asks clients who they are.
  std::string listen = "127.0.0.1:50051";

  // Where the workers are: host:port and dns:///name:port of a headless service, separated by
  // commas. Required.
  std::string workers;

  // host:port of the Prometheus endpoint, http://…/metrics. Default: none.
  std::string metrics;

  // How a replica is chosen for a request. Default: the least loaded of those that know the
  // prompt's beginning.
  std::string policy = "prefix_affinity";

  // Chat template by name. Default: recognised from tokenizer_config.json; one that is there but
  // not known stops the start.
  std::string chat_template;

  // Most requests in flight; one more is refused with RESOURCE_EXHAUSTED.
  uint64_t max_requests = 1024;

  // How long a request may wait for its prefill before it fails with DEADLINE_EXCEEDED. A client's
  // earlier deadline counts first.
  absl::Duration queue_timeout = absl::Seconds(60);

  // How long a request whose replica was lost waits for another one before it fails with
  // UNAVAILABLE.
  absl::Duration replay_timeout = absl::Seconds(60);

  // How long a request waits for a first ready replica before it fails with UNAVAILABLE.
  absl::Duration start_timeout = absl::Seconds(30);

  // After SIGTERM: how long running requests may go on. Those left then end with finish reason
  // CANCELLED.
  absl::Duration drain_timeout = absl::Seconds(30);

  // Largest request in bytes; a larger one is refused with RESOURCE_EXHAUSTED.
  int32_t max_message_bytes = 4 << 20;

  // How long one message to a client may be stuck before its stream is cancelled.
  absl::Duration write_timeout = absl::Seconds(30);

  // Units of a key's allowance that one running choice takes; GetModel reports it.
  int32_t concurrency_cost = 1;

  // Least severe line that is logged. Prompts and answers never are.
  std::string log_level = "info";
};

// The table of all flags, which sets *config. The config must outlive it.
FlagTable CoordinatorFlags(CoordinatorConfig* config);

// What no single flag can check: INVALID_ARGUMENT naming the flag.
absl::Status CheckConfig(const CoordinatorConfig& config);

}  // namespace marcoro
