#include "coordinator/config.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "coordinator/routing/policy.h"
#include "coordinator/text/chat_template.h"

namespace marcoro {
namespace {

constexpr double kDaySeconds = 86'400;

FlagTable::Spec Text(std::string value, std::string help, bool required = false) {
  FlagTable::Spec spec;
  spec.value = std::move(value);
  spec.help = std::move(help);
  spec.required = required;
  return spec;
}

template <typename Names>
FlagTable::Spec OneOf(const Names& names, std::string help) {
  FlagTable::Spec spec = Text(absl::StrJoin(names, "|"), std::move(help));
  for (const auto& name : names) spec.choices.emplace_back(name);
  return spec;
}

FlagTable::Spec Number(double minimum, double maximum, std::string help) {
  FlagTable::Spec spec = Text("N", std::move(help));
  spec.minimum = minimum;
  spec.maximum = maximum;
  return spec;
}

FlagTable::Spec Time(std::string help) {
  FlagTable::Spec spec = Number(0, kDaySeconds, std::move(help));
  spec.value = "DURATION";
  return spec;
}

absl::Status CheckHostPort(absl::string_view flag, absl::string_view address) {
  const size_t colon = address.rfind(':');
  int32_t port = 0;
  if (colon != absl::string_view::npos && colon > 0 &&
      absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "=", address, ": must be host:port, for example 127.0.0.1:50051"));
}

void AddServingFlags(CoordinatorConfig* config, FlagTable* table) {
  table->Add("model", &config->model,
             Text("DIR",
                  "Folder of the checkpoint; its configuration and tokenizer are read, never its "
                  "weights.",
                  /*required=*/true));
  table->Add("workers", &config->workers,
             Text("LIST",
                  "Where the workers are: host:port and dns:///name:port of a headless service, "
                  "separated by commas.",
                  /*required=*/true));
  table->Add("model-name", &config->model_name,
             Text("NAME", "Name that clients give. Unset: the folder's name."));
  table->Add("checkpoint-name", &config->checkpoint_name,
             Text("NAME", "What GetModel tells as the checkpoint. Unset: the folder."));
  table->Add("listen", &config->listen,
             Text("HOST:PORT", "Address of the public gRPC API; port 0 picks a free one."));
  table->Add("metrics", &config->metrics,
             Text("HOST:PORT", "Address of the Prometheus endpoint. Unset: none."));
  table->Add("policy", &config->policy,
             OneOf(PolicyNames(), "How a replica is chosen for a request."));
  table->Add(
      "chat-template", &config->chat_template,
      OneOf(ChatTemplate::Names(), "Chat template. Unset: recognised from tokenizer_config.json."));
  table->Add("concurrency-cost", &config->concurrency_cost,
             Number(1, 1000, "Units of a key's allowance that one running choice takes."));
  table->Add("log-level", &config->log_level,
             OneOf(std::vector<std::string>{"trace", "debug", "info", "warn", "error", "off"},
                   "Least severe line that is logged. Prompts and answers never are."));
}

void AddLimitFlags(CoordinatorConfig* config, FlagTable* table) {
  table->Add("max-requests", &config->max_requests,
             Number(1, 1e6, "Most requests in flight; one more is refused: RESOURCE_EXHAUSTED."));
  table->Add("max-message-bytes", &config->max_message_bytes,
             Number(1024, 256 << 20,
                    "Largest request; a larger one is refused: "
                    "RESOURCE_EXHAUSTED."));
  table->Add("queue-timeout", &config->queue_timeout,
             Time("How long a request may wait for its prefill; then it fails: "
                  "DEADLINE_EXCEEDED."));
  table->Add("start-timeout", &config->start_timeout,
             Time("How long a request waits for a first ready replica; then it fails: "
                  "UNAVAILABLE."));
  table->Add("replay-timeout", &config->replay_timeout,
             Time("How long a request whose replica was lost waits for another; then it fails: "
                  "UNAVAILABLE."));
  table->Add("write-timeout", &config->write_timeout,
             Time("How long one message to a client may be stuck; then its stream is "
                  "cancelled."));
  table->Add("drain-timeout", &config->drain_timeout,
             Time("How long running requests may go on after SIGTERM; then they end with finish "
                  "reason CANCELLED."));
}

}  // namespace

FlagTable CoordinatorFlags(CoordinatorConfig* config) {
  FlagTable table("usage: marcoro-coordinator --model=DIR --workers=LIST [flags]");
  AddServingFlags(config, &table);
  AddLimitFlags(config, &table);
  return table;
}

absl::Status CheckConfig(const CoordinatorConfig& config) {
  if (absl::Status status = CheckHostPort("listen", config.listen); !status.ok()) return status;
  return config.metrics.empty() ? absl::OkStatus() : CheckHostPort("metrics", config.metrics);
}

}  // namespace marcoro
