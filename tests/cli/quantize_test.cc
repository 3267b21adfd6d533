// The real `marcoro quantize`, left alone and disturbed. What it writes for small checkpoints is
// compared number by number in tests/worker/weights/checkpoint_export_test.cc.
#include <algorithm>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cli/large_model.h"
#include "tests/e2e/process.h"
#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;
using Json = nlohmann::json;

class QuantizeTest : public ::testing::Test {
 protected:
  std::vector<std::string> Command(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {Program("marcoro"), "quantize"});
    return arguments;
  }
  Finished Quantize(const std::vector<std::string>& arguments) const {
    return RunToEnd(Command(arguments), absl::Seconds(60));
  }
  void ExpectNothingWritten() const {
    EXPECT_FALSE(fs::exists(out_));
    EXPECT_FALSE(fs::exists(out_ + ".partial"));
  }
  // Exit code 1, one line, and nothing left behind.
  void ExpectFailure(const std::vector<std::string>& arguments, const std::string& what) const {
    const Finished run = Quantize(arguments);
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_EQ(run.out, "");
    EXPECT_EQ(run.err.rfind("marcoro quantize: ", 0), 0u) << run.err;
    EXPECT_THAT(run.err, HasSubstr(what));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }

  TempFolder folder_;
  const std::string out_ = folder_.File("out");
};

TEST_F(QuantizeTest, WritesWeightsConfigAndTokenizerFiles) {
  const Finished run = Quantize({TestData("tiny"), out_});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr(out_ + ": 1 file of weights"));
  for (const char* name : {"tokenizer.model", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_EQ(ReadFile(out_ + "/" + name), ReadFile(TestData(std::string("tiny/") + name)));
  }
  Json config = Json::parse(ReadFile(out_ + "/config.json"));
  EXPECT_EQ(config["quantization_config"]["quant_method"], "compressed-tensors");
  config.erase("quantization_config");
  EXPECT_EQ(config, Json::parse(ReadFile(TestData("tiny/config.json"))));
  // 14 linear weights with their scales, two tables, five norms.
  EXPECT_EQ(ReadTensors(out_).size(), 14u * 2 + 2 + 5);
  EXPECT_FALSE(fs::exists(out_ + ".partial"));
}

TEST_F(QuantizeTest, WhatItWritesCanBeInspectedAndServed) {
  ASSERT_EQ(Quantize({TestData("small"), out_}).exit_code, 0);
  const Finished run = RunToEnd({Program("marcoro"), "inspect", "--json", out_});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const Json description = Json::parse(run.out);
  EXPECT_EQ(description["quantization"], "compressed-tensors FP8, a scale per row");
  EXPECT_EQ(description["servable"], true);
  EXPECT_EQ(description["chat_template"], "chatml");
}

TEST_F(QuantizeTest, TakesARecipe) {
  const std::string recipe = TestData("merge/recipes/slerp_gradient.yml");
  ASSERT_EQ(Quantize({recipe, out_}).exit_code, 0);
  const std::string merged = folder_.File("merged");
  ASSERT_EQ(RunToEnd({Program("marcoro"), "merge", recipe, merged}).exit_code, 0);
  const std::string again = folder_.File("again");
  ASSERT_EQ(Quantize({merged, again}).exit_code, 0);
  const auto tensors = ReadTensors(out_);
  EXPECT_EQ(tensors.size(), 35u * 2 + 2 + 11);
  for (const auto& [name, tensor] : ReadTensors(again)) {
    EXPECT_EQ(tensors.at(name).bytes, tensor.bytes) << name;
  }
}

TEST_F(QuantizeTest, WrongUseIsTold) {
  EXPECT_EQ(Quantize({TestData("tiny")}).exit_code, 2);
  EXPECT_EQ(Quantize({"a", "b", "c"}).exit_code, 2);
  ExpectFailure({"--shard-size=5", TestData("tiny"), out_}, "--shard-size: '5' is no size");
  ExpectFailure({TestData("none"), out_}, TestData("none") + "/config.json");
  ExpectFailure({TestData("quantized/fp8_block"), out_}, "quantized already");
  ExpectFailure({TestData("tiny"), folder_.File("no/out")}, folder_.File("no"));
  ExpectNothingWritten();
}

TEST_F(QuantizeTest, AFolderThatHoldsSomethingIsLeftAlone) {
  fs::create_directory(out_);
  WriteFile(out_ + "/precious", "data");
  ExpectFailure({TestData("tiny"), out_}, out_ + ": exists already");
  EXPECT_EQ(ReadFile(out_ + "/precious"), "data");
}

// A limit on file sizes stands for a disk that becomes full in the middle.
TEST_F(QuantizeTest, AFullDiskIsOneLineAndLeavesNothing) {
  const std::string in = folder_.File("in");
  WriteLargeModel(in, 1);
  const Finished run =
      RunToEnd({"/bin/sh", "-c", "ulimit -f 2000; exec \"$0\" quantize \"$1\" \"$2\"",
                Program("marcoro"), in, out_},
               absl::Seconds(60));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  EXPECT_THAT(run.err, HasSubstr("model.safetensors.tmp: cannot be written: File too large"));
  ExpectNothingWritten();
}

class DisturbedQuantizeTest : public QuantizeTest {
 protected:
  DisturbedQuantizeTest() { WriteLargeModel(in_, 1); }

  // Until the signal has found the program at work.
  int Disturb(int signal, std::string* err) const {
    const auto command = Command({"--shard-size=300KB", "--threads=1", in_, out_});
    int exit_code = 0;
    for (int attempt = 0; attempt < 20 && exit_code == 0; ++attempt) {
      fs::remove_all(out_);
      exit_code = SignalInTheMiddle(command, out_, signal, err);
    }
    return exit_code;
  }

  const std::string in_ = folder_.File("in");
};

TEST_F(DisturbedQuantizeTest, KilledAndRunAgainItGivesTheSameBytes) {
  std::string err;
  ASSERT_EQ(Disturb(SIGKILL, &err), 128 + SIGKILL);
  EXPECT_FALSE(fs::exists(out_));
  ASSERT_TRUE(fs::exists(out_ + ".partial"));

  const Finished second = Quantize({"--shard-size=300KB", in_, out_});
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.err, HasSubstr(" files are there from a run that was killed"));
  const std::string whole = folder_.File("whole");
  ASSERT_EQ(Quantize({"--shard-size=300KB", in_, whole}).exit_code, 0);
  ExpectSameFiles(out_, whole);
  EXPECT_FALSE(fs::exists(out_ + ".partial"));
}

TEST_F(DisturbedQuantizeTest, KilledAndRunWithOtherWeightsItStartsClean) {
  std::string err;
  ASSERT_EQ(Disturb(SIGKILL, &err), 128 + SIGKILL);
  fs::remove_all(in_);
  WriteLargeModel(in_, 2);
  const Finished second = Quantize({"--shard-size=300KB", in_, out_});
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.err, ::testing::Not(HasSubstr("killed")));
  const std::string whole = folder_.File("whole");
  ASSERT_EQ(Quantize({"--shard-size=300KB", in_, whole}).exit_code, 0);
  ExpectSameFiles(out_, whole);
}

TEST_F(DisturbedQuantizeTest, CtrlCLeavesNothing) {
  for (const int signal : {SIGINT, SIGTERM}) {
    std::string err;
    EXPECT_EQ(Disturb(signal, &err), 130);
    EXPECT_THAT(err, HasSubstr("marcoro quantize: interrupted\n"));
    ExpectNothingWritten();
  }
}

}  // namespace
}  // namespace marcoro
