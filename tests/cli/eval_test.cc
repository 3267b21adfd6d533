// `marcoro eval`, the real program with real servers.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Json = nlohmann::json;

class EvalTest : public testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = absl::StrCat(folder_.path(), "/", name);
    std::ofstream(path) << text;
    return path;
  }
  static Finished Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {Program("marcoro"), "eval"});
    return RunToEnd(std::move(arguments), absl::Minutes(2));
  }
  static Json Parsed(const Finished& run) {
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return Json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  }

  const TemporaryFolder folder_;
};

// The sum is that of golden.safetensors' logits.3 (tests/data/README.md), through a log-softmax in
// double precision.
TEST_F(EvalTest, PerplexityIsThatOfAnIndependentImplementation) {
  const std::string text = Write("text", "If the file does not exist, raise");
  const Json report = Parsed(
      Run({"--text=" + text, "--model=" + ModelFolder("tiny"), "--model=" + ModelFolder("small"),
           "--json", "--", "--backend=reference", "--weights=f32", "--activations=f32"}));
  ASSERT_EQ(report["servers"].size(), 2u);
  const Json& tiny = report["servers"][0];
  EXPECT_EQ(tiny["server"], ModelFolder("tiny"));
  EXPECT_EQ(tiny["quantization"], "f32");
  EXPECT_EQ(tiny["text"]["tokens"], 9);
  EXPECT_EQ(tiny["text"]["bytes"], 33);
  EXPECT_NEAR(tiny["text"]["logprob_sum"].get<double>(), -32.314529, 2e-3);
  EXPECT_NEAR(tiny["text"]["perplexity"].get<double>(), 36.2523, 0.01);
  EXPECT_NEAR(tiny["text"]["bits_per_byte"].get<double>(), 1.412728, 1e-4);
  const Json& small = report["servers"][1];
  EXPECT_NEAR(small["text"]["logprob_sum"].get<double>(), -41.925563, 2e-3);
}

TEST_F(EvalTest, ServersAndModelsAreLinesOfOneTable) {
  Cluster cluster({.model = "tiny"});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const std::string text = Write("text", "Returns the value of the key.");
  const std::string questions =
      Write("questions", R"({"prompt":"Return","choices":[" the","zqzqzq"],"answer":0})");
  const Finished run = Run({"--text=" + text, "--choices=" + questions, "--context=64",
                            "--address=" + cluster.address(), "--model=" + ModelFolder("tiny")});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  // Nothing but how far each part of each line is: all is well.
  const std::string label = "marcoro eval: evaluating ";
  EXPECT_THAT(
      std::vector<std::string>(absl::StrSplit(run.err, '\n')),
      ElementsAre(StartsWith(label + cluster.address()), StartsWith(label + cluster.address()),
                  StartsWith(label + ModelFolder("tiny")), StartsWith(label + ModelFolder("tiny")),
                  ""));
  EXPECT_THAT(run.out,
              AllOf(HasSubstr("perplexity"), HasSubstr("normalised"), HasSubstr(cluster.address()),
                    HasSubstr(ModelFolder("tiny")), HasSubstr("100.00 %")));
  const auto line = [&](const std::string& name) {
    const size_t begin = run.out.find(name) + name.size();
    return run.out.substr(begin, run.out.find('\n', begin) - begin);
  };
  const std::string served = line(cluster.address());
  EXPECT_EQ(served.substr(served.find_first_not_of(' ')),
            line(ModelFolder("tiny")).substr(line(ModelFolder("tiny")).find_first_not_of(' ')));
}

// Without a terminal: lines on standard error, the last of each part among them.
TEST_F(EvalTest, HowFarItIsIsToldBesideTheTable) {
  Cluster cluster({.model = "tiny"});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const std::string text = Write("text", "If the file does not exist, raise");  // 9 tokens
  const std::string questions =
      Write("questions",
            "{\"prompt\":\"Return\",\"choices\":[\" the\",\" a\"],\"answer\":0}\n"
            "{\"prompt\":\"If\",\"choices\":[\" the\",\" a\"],\"answer\":0}\n");
  const Finished run =
      Run({"--text=" + text, "--choices=" + questions, "--address=" + cluster.address()});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 2) << run.out;
  const std::string label = "marcoro eval: evaluating " + cluster.address();
  EXPECT_THAT(run.err, AllOf(HasSubstr(label + " 100 %, 9 of 9 tokens, "),
                             HasSubstr(label + " 100 %, 2 of 2 questions, ")));
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 2) << run.err;
}

TEST_F(EvalTest, AModelThatCannotBeServedIsOneLineBesideItsOwnLastWords) {
  const std::string text = Write("text", "hello");
  const Finished run = Run({"--text=" + text, "--model=" + folder_.path()});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("marcoro eval: " + folder_.path() + ": marcoro serve"));
  EXPECT_EQ(run.out, "");
}

TEST_F(EvalTest, WrongUsageIsOneLine) {
  const std::string text = Write("text", "hello");
  const std::string bad = Write("bad", "{\"prompt\":1}");
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "give --text=FILE or --choices=FILE"},
      {{"--text=" + text, "extra"}, "'extra'"},
      {{"--text=" + text, "--", "--tp=2"}, "'--tp=2'"},
      {{"--text=/no/such/file"}, "/no/such/file"},
      {{"--choices=" + bad}, "bad:1: needs a text \"prompt\""}};
  for (const auto& [arguments, problem] : cases) {
    const Finished run = Run(arguments);
    EXPECT_EQ(run.exit_code, 2) << run.err;
    EXPECT_THAT(run.err, HasSubstr(problem));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
}

TEST_F(EvalTest, TooMuchTextIsRefused) {
  const std::string text = Write("text", std::string(4'000'001, 'x'));
  EXPECT_THAT(Run({"--text=" + text}).err, HasSubstr("at most 4000000"));
}

TEST_F(EvalTest, AServerThatIsNotThereIsNamed) {
  const std::string text = Write("text", "hello");
  const Finished run = Run({"--text=" + text, "--address=127.0.0.1:9"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("127.0.0.1:9: UNAVAILABLE"));
}

TEST_F(EvalTest, KilledItLeavesNoServer) {
  const std::string text = Write("text", "hello");
  Process eval({Program("marcoro"), "eval", "--text=" + text, "--model=" + ModelFolder("tiny")});
  ASSERT_TRUE(Eventually([&] { return !ChildrenOf(eval.pid()).empty(); })) << eval.err();
  eval.Signal(SIGKILL);
  EXPECT_EQ(eval.AwaitExit(absl::Seconds(5)), 128 + SIGKILL);
  EXPECT_TRUE(eval.AwaitTreeGone(absl::Seconds(5)));
}

}  // namespace
}  // namespace marcoro
