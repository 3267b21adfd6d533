#include <cstdlib>
#include <fstream>

#include "deploy/hub/hub_settings.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class HubSettingsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE",
          "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
      unsetenv(name);
    }
    setenv("HF_HOME", home_.path().c_str(), 1);
  }
  const TemporaryFolder home_;
};

TEST_F(HubSettingsTest, UnsetItIsThePublicHubWithoutToken) {
  const auto settings = HubSettingsFromEnvironment();
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->endpoint, "https://huggingface.co");
  EXPECT_EQ(settings->cache, home_.path() + "/hub");
  EXPECT_EQ(settings->token, "");
  EXPECT_FALSE(settings->offline);
}

TEST_F(HubSettingsTest, TheTokenIsTheVariablesBeforeTheFiles) {
  std::ofstream(home_.path() + "/token") << "hf_file\n";
  EXPECT_EQ(HubSettingsFromEnvironment()->token, "hf_file");
  EXPECT_EQ(HubSettingsFromEnvironment()->token_source, home_.path() + "/token");
  setenv("HF_TOKEN", " hf_variable ", 1);
  EXPECT_EQ(HubSettingsFromEnvironment()->token, "hf_variable");
  EXPECT_EQ(HubSettingsFromEnvironment()->token_source, "HF_TOKEN");
}

TEST_F(HubSettingsTest, ATokenThatAHeaderCannotCarryIsRefusedWithoutShowingIt) {
  setenv("HF_TOKEN", "hf_bad\r\nX-Header: 1", 1);
  const absl::Status status = HubSettingsFromEnvironment().status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.message(), HasSubstr("HF_TOKEN"));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("hf_bad")));
}

TEST_F(HubSettingsTest, TheEndpointIsAUrl) {
  setenv("HF_ENDPOINT", "http://127.0.0.1:8080/", 1);
  EXPECT_EQ(HubSettingsFromEnvironment()->endpoint, "http://127.0.0.1:8080");
  setenv("HF_ENDPOINT", "file:///tmp", 1);
  EXPECT_THAT(HubSettingsFromEnvironment().status().message(),
              HasSubstr("HF_ENDPOINT=file:///tmp"));
}

TEST_F(HubSettingsTest, OfflineIsWhatOtherToolsTakeForTrue) {
  for (const char* value : {"1", "true", "YES", "on"}) {
    setenv("HF_HUB_OFFLINE", value, 1);
    EXPECT_TRUE(HubSettingsFromEnvironment()->offline) << value;
  }
  for (const char* value : {"0", "", "no"}) {
    setenv("HF_HUB_OFFLINE", value, 1);
    EXPECT_FALSE(HubSettingsFromEnvironment()->offline) << value;
  }
}

}  // namespace
}  // namespace marcoro
