#include "worker/weights/merge/recipe_chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "coordinator/text/chat_template.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "tests/worker/weights/merge/parent_files.h"

namespace marcoro {
namespace {

using testing::RecipeFolder;
using ::testing::StartsWith;
using testing::WriteFile;

absl::StatusOr<std::string> Resolve(const std::string& text,
                                    const std::vector<std::string>& directories = {}) {
  Recipe recipe;
  recipe.file = "r.yml";
  recipe.chat_template = {.text = text, .position = {9, 16}};
  return RecipeChatTemplate(recipe, directories);
}

class NamedChatTemplate : public ::testing::TestWithParam<std::string> {};

// The text is one that a server recognises as the format of that name.
TEST_P(NamedChatTemplate, IsJinjaOfThatFormat) {
  const auto jinja = Resolve(GetParam());
  ASSERT_TRUE(jinja.ok()) << jinja.status();
  const auto recognised = ChatTemplate::Recognize(*jinja);
  ASSERT_TRUE(recognised.ok()) << recognised.status();
  EXPECT_EQ(recognised->style(), ChatTemplate::Named(GetParam())->style());
}

INSTANTIATE_TEST_SUITE_P(Names, NamedChatTemplate,
                         ::testing::Values("alpaca", "chatml", "mistral", "llama2"),
                         [](const auto& test) { return test.param; });

TEST(RecipeChatTemplate, IsEmptyWhereARecipeHasNone) {
  EXPECT_EQ(*RecipeChatTemplate(Recipe{}, {}), "");
}

TEST(RecipeChatTemplate, MayBeJinjaItself) {
  EXPECT_EQ(*Resolve("{{ messages[0]['content'] }}"), "{{ messages[0]['content'] }}");
}

TEST(RecipeChatTemplate, OfAnotherNameIsRefused) {
  const auto jinja = Resolve("chatlm");
  EXPECT_EQ(jinja.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(jinja.status().message()),
              StartsWith("r.yml:9:16: unknown chat_template 'chatlm', and no Jinja text (did you "
                         "mean chatml? known: auto, alpaca, chatml, llama2, mistral)"));
}

TEST(RecipeChatTemplate, AutoIsWhatMostModelsHave) {
  RecipeFolder folder;
  for (const char* name : {"a", "b", "c", "d"}) folder.AddParent(name, {.layers = 1});
  const auto write = [&folder](const std::string& name, const std::string& jinja) {
    const nlohmann::json config = {{"chat_template", jinja}};
    WriteFile(folder.File(name + "/tokenizer_config.json"), config.dump());
  };
  const std::string a = folder.File("a"), b = folder.File("b"), c = folder.File("c");
  write("a", "{{ 1 }}");
  write("b", "{{ 2 }}");
  write("c", "\n{{ 2 }} ");
  EXPECT_EQ(*Resolve("auto", {a, b, c}), "{{ 2 }}");
  EXPECT_EQ(*Resolve("auto", {a, b}), "{{ 1 }}");  // the first of equals
  EXPECT_EQ(*Resolve("auto", {folder.File("d")}), "");
}

}  // namespace
}  // namespace marcoro
