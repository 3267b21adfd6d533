// A client as a process of its own, which tests stop, kill, or start in another network namespace.
// Prints "token ID LOGPROB" for each token, then the text. Exit code: 0, or 1 if the call fails.
#include <cinttypes>
#include <cstdio>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "tests/e2e/client.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  marcoro::v1::GenerateRequest request = marcoro::Sampled("Return", 16, 1);
  request.set_logprobs(0);
  for (int i = 2; i < argc; ++i) {
    absl::string_view argument = argv[i];
    uint32_t number = 0;
    if (absl::ConsumePrefix(&argument, "--n=") && absl::SimpleAtoi(argument, &number)) {
      request.set_n(number);
    } else if (absl::ConsumePrefix(&argument, "--max-tokens=") &&
               absl::SimpleAtoi(argument, &number)) {
      request.set_max_tokens(number);
    } else if (absl::ConsumePrefix(&argument, "--logprobs=") &&
               absl::SimpleAtoi(argument, &number)) {
      request.set_logprobs(number);
    } else {
      std::fprintf(stderr, "unknown argument %s\n", argv[i]);
      return 2;
    }
  }
  marcoro::Client client(argv[1]);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  marcoro::SetTimeout(&context, absl::Seconds(60));
  const auto reader = client.inference().GenerateStream(&context, request);
  marcoro::v1::GenerateStreamResponse news;
  std::string text;
  while (reader->Read(&news)) {
    for (const auto& choice : news.choices()) {
      for (const auto& token : choice.logprobs())
        std::printf("token %" PRIu32 " %a\n", token.token_id(), token.logprob());
      text += choice.text();
    }
    std::fflush(stdout);
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.error_message().c_str());
    return 1;
  }
  std::printf("text %s\n", text.c_str());
  return 0;
}
