#include "deploy/hub/http.h"

#include <gtest/gtest.h>

namespace marcoro {
namespace {

TEST(HttpClient, AHostThatNobodyKnowsIsUnavailableEachTimeItIsAsked) {
  HttpClient client;
  HttpRequest request;
  request.url = "http://no-such-host.invalid/";
  for (int attempt = 0; attempt < 3; ++attempt) {
    const absl::Status status = client.Perform(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
}

}  // namespace
}  // namespace marcoro
