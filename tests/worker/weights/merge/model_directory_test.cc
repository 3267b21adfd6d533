#include "worker/weights/merge/model_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::TempFolder;
using testing::WriteFile;

// root/project/recipes/recipe.yml, and a working folder of its own.
class ModelDirectory : public ::testing::Test {
 protected:
  ModelDirectory() : before_(fs::current_path()) {
    fs::create_directories(Path("project/recipes"));
    fs::create_directories(Path("elsewhere"));
    fs::current_path(Path("elsewhere"));
  }
  ~ModelDirectory() override { fs::current_path(before_); }

  std::string Path(const std::string& name) const { return root_.File(name); }
  void AddModel(const std::string& name) const {
    fs::create_directories(Path(name));
    WriteFile(Path(name) + "/config.json", "{}");
  }
  std::string Find(const std::string& name, const HubLookup& hub = {}) const {
    auto found = FindModelDirectory(name, Path("project/recipes/recipe.yml"), hub);
    return found.ok() ? *found : std::string(found.status().message());
  }

 private:
  const fs::path before_;
  TempFolder root_;
};

TEST_F(ModelDirectory, IsLookedForBesideTheRecipeAboveItAndInTheWorkingFolder) {
  AddModel("elsewhere/org/m");
  EXPECT_EQ(Find("org/m"), Path("elsewhere/org/m"));
  AddModel("project/org/m");
  EXPECT_EQ(Find("org/m"), Path("project/org/m"));
  AddModel("project/recipes/org/m");
  EXPECT_EQ(Find("org/m"), Path("project/recipes/org/m"));
  EXPECT_EQ(Find("./org/../org/m/"), Path("project/recipes/org/m/"));
}

TEST_F(ModelDirectory, OfAnAbsoluteNameIsThat) {
  AddModel("elsewhere/m");
  EXPECT_EQ(Find(Path("elsewhere/m")), Path("elsewhere/m"));
  EXPECT_THAT(Find(Path("m")), HasSubstr("looked for " + Path("m")));
}

TEST_F(ModelDirectory, HasAConfig) {
  fs::create_directories(Path("project/recipes/m"));
  AddModel("elsewhere/m");
  EXPECT_EQ(Find("m"), Path("elsewhere/m"));
}

TEST_F(ModelDirectory, ComesFromTheHubWhereNoFolderHasIt) {
  const auto hub = [](const std::string& name) -> absl::StatusOr<std::string> {
    return "/cache/" + name;
  };
  EXPECT_EQ(Find("org/m", hub), "/cache/org/m");
  AddModel("elsewhere/org/m");
  EXPECT_EQ(Find("org/m", hub), Path("elsewhere/org/m"));
}

TEST_F(ModelDirectory, ThatIsNotThereIsNotFoundWithThePlaces) {
  const auto hub = [](const std::string&) -> absl::StatusOr<std::string> {
    return absl::NotFoundError("marcoro pull org/m gets it");
  };
  const auto found = FindModelDirectory("org/m", Path("project/recipes/recipe.yml"), hub);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kNotFound);
  const std::string message(found.status().message());
  for (const char* place : {"project/recipes/org/m", "project/org/m", "elsewhere/org/m"}) {
    EXPECT_THAT(message, HasSubstr(Path(place)));
  }
  EXPECT_THAT(message, HasSubstr("marcoro pull org/m gets it"));
}

TEST_F(ModelDirectory, ANameThatNoHubHasIsNotFoundEither) {
  const auto hub = [](const std::string&) -> absl::StatusOr<std::string> {
    return absl::InvalidArgumentError("no name of a hub");
  };
  EXPECT_THAT(Find("a/b/c", hub), HasSubstr("no name of a hub"));
}

TEST_F(ModelDirectory, OtherTroubleWithTheHubIsReported) {
  const auto hub = [](const std::string&) -> absl::StatusOr<std::string> {
    return absl::PermissionDeniedError("cannot read the cache");
  };
  const auto found = FindModelDirectory("org/m", Path("project/recipes/recipe.yml"), hub);
  EXPECT_EQ(found.status(), absl::PermissionDeniedError("cannot read the cache"));
}

TEST_F(ModelDirectory, OfASimilarNameIsSuggested) {
  AddModel("project/parents/marcoroni");
  EXPECT_THAT(Find("parents/marcorono"),
              HasSubstr("did you mean " + Path("project/parents/marcoroni") + "?"));
}

}  // namespace
}  // namespace marcoro
