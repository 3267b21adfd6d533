// marcoro eval: compares models by perplexity and by accuracy.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/eval_questions.h"
#include "deploy/cli/evaluation.h"
#include "deploy/cli/local_server.h"
#include "deploy/cli/model_output.h"
#include "deploy/cli/provide_model.h"
#include "deploy/cli/text_input.h"
#include "worker/weights/progress.h"

namespace marcoro {
namespace {

// A text is tokenized by one request, and a request has 4 MiB.
constexpr size_t kMaxTextBytes = 4'000'000;
constexpr absl::Duration kStartTimeout = absl::Hours(1);

struct EvalFlags {
  std::vector<std::string> addresses;  // several with commas
  std::vector<std::string> models;
  absl::Duration timeout = absl::Minutes(10);
  std::string text;
  std::string choices;
  int32_t context = 1024;
  int32_t stride = 0;
  int32_t concurrency = 8;
  std::optional<bool> add_bos;
  bool parse_special_tokens = false;
  bool json = false;
};

FlagTable Flags(EvalFlags* flags) {
  FlagTable table(
      "usage: marcoro eval --text=FILE|--choices=FILE [--address=HOST:PORT …] [--model=MODEL …] "
      "[flags] [-- SERVE_FLAGS]\n\n"
      "One line for each server and model: perplexity of the text, and accuracy on questions with "
      "choices.\nA model is served on a free port while it is evaluated; flags after -- are "
      "`marcoro serve`'s.\n\n"
      "The text is seen in windows of --context tokens, each --stride after the one before; a "
      "token "
      "counts once,\nin the first window that has it. Of a question, the choice with the largest "
      "sum of log-probabilities\nbehind the prompt is taken; normalised: the largest sum per "
      "byte.\nHow far it is, is told on standard error.");
  table.Add("text", &flags->text,
            {.value = "FILE", .help = "Text for the perplexity; -: standard input."});
  table.Add("choices", &flags->choices,
            {.value = "FILE",
             .help = "Questions, one a line: {\"prompt\": TEXT, \"choices\": [TEXT, …], "
                     "\"answer\": INDEX}."});
  table.Add("address", &flags->addresses,
            {.value = "HOST:PORT,…",
             .help = "Servers. Repeatable. Unset, and without --model: 127.0.0.1:50051."});
  table.Add("model", &flags->models,
            {.value = "MODEL", .help = "What `marcoro serve` takes as --model. Repeatable."});
  table.Add("timeout", &flags->timeout,
            {.value = "DURATION",
             .help = "Longest time of one request.",
             .minimum = 0.001,
             .maximum = 86400});
  table.Add("context", &flags->context,
            {.value = "N",
             .help = "Tokens of a window, the beginning-of-sequence token included.",
             .minimum = 2,
             .maximum = 1 << 20});
  table.Add("stride", &flags->stride,
            {.value = "N",
             .help = "Tokens from one window to the next; 0: half of --context.",
             .maximum = 1 << 20});
  table.Add("concurrency", &flags->concurrency,
            {.value = "N", .help = "Requests at a time.", .minimum = 1, .maximum = 256});
  table.Add("add-bos", &flags->add_bos,
            {.help = "Begin with the beginning-of-sequence token. Unset: as the tokenizer is "
                     "configured."});
  table.Add("parse-special-tokens", &flags->parse_special_tokens,
            {.help = "Recognise special tokens written in texts, prompts and choices."});
  table.Add("json", &flags->json, {.help = "Write JSON instead of the table."});
  return table;
}

// What is evaluated: of the files, what they hold.
struct Task {
  EvaluationOptions options;
  std::optional<std::string> text;
  std::vector<EvalQuestion> questions;
};

absl::StatusOr<Task> ReadTask(const EvalFlags& flags) {
  Task task;
  task.options.context = flags.context;
  task.options.stride = flags.stride > 0 ? flags.stride : flags.context / 2;
  task.options.concurrency = flags.concurrency;
  task.options.add_bos = flags.add_bos;
  task.options.parse_special_tokens = flags.parse_special_tokens;
  if (!flags.text.empty()) {
    auto text = ReadText(flags.text);
    if (!text.ok()) return text.status();
    if (text->size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          flags.text, " has ", text->size(), " bytes; at most ", kMaxTextBytes, " are evaluated"));
    }
    task.text = *std::move(text);
  }
  if (flags.choices.empty()) return task;
  const auto text = ReadText(flags.choices);
  if (!text.ok()) return text.status();
  auto questions = ParseQuestions(*text, flags.choices);
  if (!questions.ok()) return questions.status();
  task.questions = *std::move(questions);
  return task;
}

struct Row {
  std::string server;  // the address, or the model as it was given
  v1::Model model;
  std::optional<PerplexityResult> perplexity;
  std::optional<AccuracyResult> accuracy;
};

// Options that show how far one part of a server's evaluation is.
EvaluationOptions Showing(const EvaluationOptions& options, const std::string& server,
                          const std::string& unit) {
  EvaluationOptions showing = options;
  // Shared, because functions are copied; it begins to count when it is made.
  const auto reporter = std::make_shared<ProgressReporter>(
      ProgressOptions::ForStderr(absl::StrCat("evaluating ", server), unit));
  showing.progress = [reporter](uint64_t done, uint64_t total) { reporter->Update(done, total); };
  return showing;
}

absl::StatusOr<Row> Evaluate(const std::string& server, const std::string& address,
                             const Task& task, const EvalFlags& flags) {
  Client client({.address = address, .timeout = flags.timeout});
  Row row;
  row.server = server;
  absl::StatusOr<v1::Model> model = client.GetModel();
  if (!model.ok()) return model.status();
  row.model = *std::move(model);
  if (task.text) {
    auto perplexity =
        EvaluatePerplexity(client, *task.text, Showing(task.options, server, "tokens"));
    if (!perplexity.ok()) return perplexity.status();
    row.perplexity = *perplexity;
  }
  if (!task.questions.empty()) {
    auto accuracy =
        EvaluateChoices(client, task.questions, Showing(task.options, server, "questions"));
    if (!accuracy.ok()) return accuracy.status();
    row.accuracy = *accuracy;
  }
  return row;
}

absl::StatusOr<Row> EvaluateModel(const std::string& model, const Task& task,
                                  const EvalFlags& flags, std::vector<std::string> serve_flags) {
  const absl::StatusOr<ProvidedModel> provided = ProvideModel(model, PullSettings());
  if (!provided.ok()) return provided.status();
  if (!provided->name.empty()) {
    serve_flags.insert(serve_flags.begin(), "--model-name=" + provided->name);
  }
  const auto server = LocalServer::Start(provided->path, serve_flags, kStartTimeout);
  if (!server.ok()) return server.status();
  return Evaluate(model, (*server)->address(), task, flags);
}

absl::StatusOr<std::vector<Row>> EvaluateAll(const EvalFlags& flags, const Task& task,
                                             const std::vector<std::string>& serve_flags) {
  std::vector<std::string> addresses;
  for (const std::string& list : flags.addresses) {
    for (const absl::string_view address : absl::StrSplit(list, ',', absl::SkipEmpty())) {
      addresses.emplace_back(address);
    }
  }
  if (addresses.empty() && flags.models.empty()) addresses = {ClientOptions().address};
  std::vector<Row> rows;
  for (const std::string& address : addresses) {
    auto row = Evaluate(address, address, task, flags);
    if (!row.ok()) {
      return absl::Status(row.status().code(), absl::StrCat(address, ": ", row.status().message()));
    }
    rows.push_back(*std::move(row));
  }
  for (const std::string& model : flags.models) {
    auto row = EvaluateModel(model, task, flags, serve_flags);
    if (!row.ok()) {
      return absl::Status(row.status().code(), absl::StrCat(model, ": ", row.status().message()));
    }
    rows.push_back(*std::move(row));
  }
  return rows;
}

std::string AsTable(const std::vector<Row>& rows, const Task& task) {
  size_t width = 6;
  for (const Row& row : rows) width = std::max(width, row.server.size());
  const auto server = [&](const std::string& text) {
    return text + std::string(width - text.size(), ' ');
  };
  std::string table = server("server");
  if (task.text)
    absl::StrAppendFormat(&table, " %9s %11s %10s", "tokens", "perplexity", "bits/byte");
  if (!task.questions.empty()) {
    absl::StrAppendFormat(&table, " %10s %9s %11s", "questions", "accuracy", "normalised");
  }
  for (const Row& row : rows) {
    absl::StrAppend(&table, "\n", server(row.server));
    if (row.perplexity) {
      absl::StrAppendFormat(&table, " %9u %11.4f %10.4f", row.perplexity->tokens,
                            row.perplexity->perplexity(), row.perplexity->bits_per_byte());
    }
    if (row.accuracy) {
      absl::StrAppendFormat(&table, " %10u %7.2f %% %9.2f %%", row.accuracy->questions,
                            100 * row.accuracy->accuracy(), 100 * row.accuracy->normalized());
    }
  }
  return table + "\n";
}

std::string AsJson(const std::vector<Row>& rows, const Task& task) {
  nlohmann::ordered_json root;
  if (task.text) {
    root["context"] = task.options.context;
    root["stride"] = task.options.stride;
  }
  root["servers"] = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    nlohmann::ordered_json entry = {{"server", row.server},
                                    {"model", row.model.name()},
                                    {"quantization", row.model.quantization()},
                                    {"numerics_fingerprint", row.model.numerics_fingerprint()}};
    if (row.perplexity) {
      entry["text"] = {{"tokens", row.perplexity->tokens},
                       {"bytes", row.perplexity->bytes},
                       {"logprob_sum", row.perplexity->logprob_sum},
                       {"perplexity", row.perplexity->perplexity()},
                       {"bits_per_byte", row.perplexity->bits_per_byte()}};
    }
    if (row.accuracy) {
      entry["choices"] = {{"questions", row.accuracy->questions},
                          {"right", row.accuracy->right},
                          {"accuracy", row.accuracy->accuracy()},
                          {"standard_error", row.accuracy->standard_error()},
                          {"right_normalised", row.accuracy->right_normalized},
                          {"accuracy_normalised", row.accuracy->normalized()}};
    }
    root["servers"].push_back(std::move(entry));
  }
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

int EvalCommand(const std::vector<std::string>& arguments) {
  EvalFlags flags;
  const CommandArguments parsed = ParseCommand("eval", Flags(&flags), arguments, arguments.size());
  if (parsed.exit_code) return *parsed.exit_code;
  for (const std::string& argument : parsed.positional) {
    if (absl::StartsWith(argument, "--") && !flags.models.empty()) continue;
    return UsageError("eval", absl::StrCat("unexpected argument '", argument,
                                           "'; what follows -- are flags for --model's servers"));
  }
  if (flags.text.empty() && flags.choices.empty()) {
    return UsageError("eval", "what shall be evaluated? give --text=FILE or --choices=FILE");
  }
  const auto task = ReadTask(flags);
  if (!task.ok()) return UsageError("eval", task.status().message());
  LogToStderr("eval");
  const auto rows = EvaluateAll(flags, *task, parsed.positional);
  if (!rows.ok()) return Failure("eval", rows.status());
  const std::string text = flags.json ? AsJson(*rows, *task) : AsTable(*rows, *task);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace marcoro
