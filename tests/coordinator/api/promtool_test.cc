// The metrics as Prometheus' own parser and linter see them. A machine without promtool or curl
// fails here.
#include <cstdio>

#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using PromtoolTest = ApiTest;

TEST_F(PromtoolTest, AcceptsWhatIsServed) {
  const auto server = MetricsServer::Start("127.0.0.1:0", *metrics_);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string command = "curl -sf http://127.0.0.1:" + std::to_string((*server)->port()) +
                              "/metrics | promtool check metrics 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0) << output;
  EXPECT_EQ(output, "");
}

}  // namespace
}  // namespace marcoro
