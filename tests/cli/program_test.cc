// The real `marcoro`, as far as it needs no server.
#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/process.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

constexpr const char* kCommands[] = {"serve",   "generate", "chat", "score", "bench",
                                     "inspect", "eval",     "pull", "merge", "quantize"};

Finished Marcoro(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), Program("marcoro"));
  return RunToEnd(std::move(arguments));
}

void ExpectOneLine(const std::string& text, const std::string& beginning) {
  EXPECT_EQ(text.rfind(beginning, 0), 0u) << text;
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
}

TEST(ProgramTest, HelpListsEveryCommand) {
  for (const char* word : {"help", "--help", "-h"}) {
    const Finished run = Marcoro({word});
    EXPECT_EQ(run.exit_code, 0);
    for (const char* command : kCommands) EXPECT_THAT(run.out, HasSubstr(command));
  }
}

TEST(ProgramTest, WithoutACommandItTellsHowToUseIt) {
  const Finished run = Marcoro({});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("usage: marcoro COMMAND"));
}

TEST(ProgramTest, AnUnknownCommandIsOneLine) {
  const Finished run = Marcoro({"frobnicate"});
  EXPECT_EQ(run.exit_code, 2);
  ExpectOneLine(run.err, "marcoro: unknown command 'frobnicate'");
}

TEST(ProgramTest, EveryCommandHasHelpAndATableForTheReadme) {
  for (const char* command : kCommands) {
    const Finished help = Marcoro({command, "--help"});
    EXPECT_EQ(help.exit_code, 0) << command;
    EXPECT_EQ(help.out.rfind(std::string("usage: marcoro ") + command, 0), 0u) << help.out;
    const Finished markdown = Marcoro({command, "--help-markdown"});
    EXPECT_EQ(markdown.exit_code, 0) << command;
    EXPECT_EQ(markdown.out.rfind("| flag | default | meaning |\n", 0), 0u) << markdown.out;
  }
}

TEST(ProgramTest, EveryCommandSaysItsVersion) {
  EXPECT_THAT(Marcoro({"--version"}).out, HasSubstr("marcoro "));
  for (const char* command : kCommands) {
    EXPECT_EQ(Marcoro({command, "--version"}).out, Marcoro({"--version"}).out) << command;
  }
}

TEST(ProgramTest, AnUnknownFlagIsOneLineInEveryCommand) {
  for (const char* command : kCommands) {
    const Finished run = Marcoro({command, "--bogus=1"});
    EXPECT_EQ(run.exit_code, 2) << command;
    ExpectOneLine(run.err, std::string("marcoro ") + command + ": ");
    EXPECT_THAT(run.err, HasSubstr("--bogus"));
  }
}

TEST(ProgramTest, AServerThatIsNotThereIsOneLine) {
  // Nobody listens on the discard port.
  const std::vector<std::vector<std::string>> commands = {
      {"generate", "--address=127.0.0.1:9", "hi"},
      {"chat", "--address=127.0.0.1:9"},
      {"score", "--address=127.0.0.1:9", "hi"},
      {"bench", "--address=127.0.0.1:9"}};
  for (const auto& command : commands) {
    const Finished run = Marcoro(command);
    EXPECT_EQ(run.exit_code, 1) << command[0];
    ExpectOneLine(run.err, "marcoro " + command[0] + ": UNAVAILABLE: ");
    EXPECT_EQ(run.out, "") << command[0];
  }
}

TEST(ProgramTest, WrongUseOfCommandsIsTold) {
  EXPECT_THAT(Marcoro({"inspect"}).err, HasSubstr("which checkpoint?"));
  EXPECT_THAT(Marcoro({"generate", "a", "b"}).err, HasSubstr("unexpected argument 'b'"));
  EXPECT_THAT(Marcoro({"generate", "--token-ids=1,x"}).err, HasSubstr("--token-ids=1,x"));
  EXPECT_THAT(Marcoro({"generate", "--token-ids=1", "text"}).err, HasSubstr("give one of them"));
  EXPECT_THAT(Marcoro({"score", "--file=a", "text"}).err, HasSubstr("give one of"));
  EXPECT_THAT(Marcoro({"score", "--file=/does/not/exist"}).err, HasSubstr("/does/not/exist"));
  EXPECT_THAT(Marcoro({"bench", "--prompt-tokens=gamma:1"}).err, HasSubstr("--prompt-tokens"));
  EXPECT_THAT(Marcoro({"bench", "--roofline", "--rate=1"}).err, HasSubstr("closed loop"));
  EXPECT_THAT(Marcoro({"chat", "--n=2"}).err, HasSubstr("--n"));
}

TEST(ProgramTest, TextThatIsNotUtf8IsToldBeforeAnythingIsSent) {
  const Finished run = Marcoro({"generate", "--address=127.0.0.1:9", "ab\xff"});
  EXPECT_EQ(run.exit_code, 2);
  ExpectOneLine(run.err, "marcoro generate: PROMPT is not UTF-8: byte 2");
}

}  // namespace
}  // namespace marcoro
