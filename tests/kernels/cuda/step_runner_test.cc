// Steps that are repeated from captured graphs give the bits of the same steps run op by op.
#include "kernels/cuda/step_runner.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/device_backends.h"
#include "tests/kernels/cuda/step_machine.h"

namespace marcoro {
namespace {

// Sequences that come, grow and go over one pool of blocks, as a scheduler would have them.
class Traffic {
 public:
  explicit Traffic(uint64_t seed) : random_(seed) {
    for (int32_t block = 0; block < StepMachine::kBlocks; ++block) free_.push_back(block);
    std::shuffle(free_.begin(), free_.end(), random_);
  }

  // Mostly decode steps of some of the sequences; now and then prompts come in between.
  std::vector<MachineSequence> Next() {
    if (!running_.empty() && Draw(0, 9) == 0) EndOne();
    const bool prefill = running_.empty() || Draw(0, 5) == 0;
    std::vector<MachineSequence> step;
    if (prefill) {
      int budget = StepMachine::kMostTokens;
      for (int i = Draw(1, 3); i > 0 && running_.size() < StepMachine::kMostLogitRows; --i) {
        if (free_.size() < 2) break;
        running_.emplace_back();
        const int tokens = Draw(1, std::min(budget, 12));
        budget -= tokens;
        if (tokens > 0) step.push_back(Grow(running_.back(), tokens));
        if (budget == 0) break;
      }
    }
    if (!step.empty()) return step;
    std::shuffle(running_.begin(), running_.end(), random_);
    const int count = Draw(1, static_cast<int>(running_.size()));
    for (int i = 0; i < count; ++i) {
      MachineSequence& sequence = running_[static_cast<size_t>(i)];
      if (HasRoom(sequence)) step.push_back(Grow(sequence, 1));
    }
    return step.empty() ? Next() : step;
  }

 private:
  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  bool HasRoom(const MachineSequence& sequence) const {
    return sequence.position < StepMachine::kContext &&
           (!free_.empty() ||
            static_cast<size_t>(sequence.position) < sequence.blocks.size() * kKvBlockTokens);
  }

  // The sequence with its next tokens, which it has from then on.
  MachineSequence Grow(MachineSequence& sequence, int tokens) {
    MachineSequence grown = sequence;
    for (int i = 0; i < tokens; ++i) grown.ids.push_back(Draw(0, StepMachine::kVocabulary - 1));
    while (grown.blocks.size() * kKvBlockTokens < static_cast<size_t>(grown.position + tokens)) {
      grown.blocks.push_back(free_.back());
      free_.pop_back();
    }
    sequence = {.ids = {}, .position = grown.position + tokens, .blocks = grown.blocks};
    return grown;
  }

  void EndOne() {
    const auto which = static_cast<size_t>(Draw(0, static_cast<int>(running_.size()) - 1));
    free_.insert(free_.end(), running_[which].blocks.begin(), running_[which].blocks.end());
    std::shuffle(free_.begin(), free_.end(), random_);
    running_.erase(running_.begin() + static_cast<ptrdiff_t>(which));
  }

  std::mt19937_64 random_;
  std::vector<int32_t> free_;
  std::vector<MachineSequence> running_;
};

class StepRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (DeviceBackendNames().empty()) GTEST_SKIP() << "no device";
  }
};

// Sequences of one token each, with a block of their own, at one position.
std::vector<MachineSequence> Decode(int count, int32_t position) {
  std::vector<MachineSequence> step;
  for (int32_t s = 0; s < count; ++s) step.push_back({{s + 1}, position, {s}});
  return step;
}

// The bits, or what went wrong.
std::vector<uint32_t> Bits(const absl::StatusOr<std::vector<uint32_t>>& logits) {
  EXPECT_TRUE(logits.ok()) << logits.status();
  return logits.ok() ? *logits : std::vector<uint32_t>();
}

TEST(GraphRowsTest, DecodeStepsArePaddedToPowersOfTwoWithinTheLimit) {
  struct Case {
    int64_t rows, most_rows;
    int padded, graph;
  };
  for (const Case& c :
       {Case{1, 256, 1, 0}, Case{2, 256, 2, 1}, Case{3, 256, 4, 2}, Case{4, 256, 4, 2},
        Case{5, 256, 8, 3}, Case{33, 256, 64, 6}, Case{129, 256, 256, 8}, Case{256, 256, 256, 8},
        Case{17, 24, 24, 5}, Case{16, 24, 16, 4}, Case{1, 1, 1, 0}}) {
    const cuda::GraphRows rows = cuda::PadGraphRows(c.rows, c.most_rows);
    EXPECT_EQ(rows.rows, c.padded) << c.rows;
    EXPECT_EQ(rows.graph, c.graph) << c.rows;
    EXPECT_LT(rows.graph, cuda::kGraphs);
  }
}

// Op by op without padding is what the op tests know to be right.
TEST_F(StepRunnerTest, AnyTrafficGivesTheBitsOfStepsRunOpByOp) {
  constexpr int kSteps = 40;
  for (const auto& [seed, graphs] : {std::pair(1, true), std::pair(2, true), std::pair(3, false)}) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed << (graphs ? ", graphs" : ", padded"));
    StepMachine repeating({.graphs = graphs});
    StepMachine plain({.repeatable = false});
    Traffic traffic(static_cast<uint64_t>(seed));
    for (int i = 0; i < kSteps; ++i) {
      const std::vector<MachineSequence> step = traffic.Next();
      const std::vector<uint32_t> expected = Bits(plain.Step(step));
      ASSERT_EQ(Bits(repeating.Step(step)), expected) << "step " << i;
      ASSERT_EQ(repeating.Cache(), plain.Cache()) << "step " << i;
    }
    EXPECT_EQ(plain.bodies(), kSteps);
    EXPECT_TRUE(graphs ? repeating.bodies() < kSteps : repeating.bodies() == kSteps);
  }
}

// Once op by op and once for the capture, whatever follows.
TEST_F(StepRunnerTest, ABodyIsCalledTwiceForEachNumberOfRows) {
  StepMachine machine({});
  for (int round = 0; round < 3; ++round) {
    for (int rows = 1; rows <= 20; ++rows) Bits(machine.Step(Decode(rows, round)));
  }
  EXPECT_EQ(machine.bodies(), 2 * 6) << "of 1, 2, 4, 8, 16, and of 24 for more";
}

// Captured with the shortest contexts. The sequences share their blocks, as those of one prompt do.
TEST_F(StepRunnerTest, ARepeatedStepReadsContextsOfAnyLength) {
  StepMachine repeating({});
  StepMachine plain({.repeatable = false});
  std::vector<int32_t> blocks;
  for (int32_t block = 0; block * kKvBlockTokens < StepMachine::kContext; ++block) {
    blocks.push_back(block);
  }
  const auto expect_equal = [&](const std::vector<MachineSequence>& step) {
    EXPECT_EQ(Bits(repeating.Step(step)), Bits(plain.Step(step)));
  };
  for (int32_t position = 0; position < StepMachine::kContext; position += 20) {
    expect_equal({{std::vector<int32_t>(20, position % 7), position, blocks}});
  }
  for (const std::vector<int32_t>& positions : std::vector<std::vector<int32_t>>{
           {0, 1, 2}, {1, 2, 3}, {599, 15, 16}, {255, 599, 256}, {3, 257, 598}, {511, 512, 10}}) {
    SCOPED_TRACE(::testing::PrintToString(positions));
    std::vector<MachineSequence> step;
    for (const int32_t position : positions) step.push_back({{5}, position, blocks});
    expect_equal(step);
  }
}

TEST_F(StepRunnerTest, AFailingBodyLeavesNothingToRepeat) {
  StepMachine machine({});
  StepMachine plain({.repeatable = false});
  for (int32_t position = 0; position < 4; ++position) {
    const std::vector<MachineSequence> step = Decode(3, position);
    if (position == 1) {
      const absl::Status lost = absl::UnavailableError("a peer is gone");
      machine.in_body = [&] { return lost; };
      EXPECT_EQ(machine.Step(step).status(), lost);
      machine.in_body = [] { return absl::OkStatus(); };
    }
    EXPECT_EQ(Bits(machine.Step(step)), Bits(plain.Step(step)));
  }
  EXPECT_EQ(machine.bodies(), 3) << "op by op, in vain, and for the capture";
}

TEST_F(StepRunnerTest, ABodyThatWaitsCannotBeRepeated) {
  StepMachine machine({});
  machine.in_body = [&] { return machine.backend().Synchronize(); };
  EXPECT_TRUE(machine.Step(Decode(3, 0)).ok());
  EXPECT_EQ(machine.Step(Decode(3, 1)).status().code(), absl::StatusCode::kInternal);
}

TEST_F(StepRunnerTest, MemoryThatMovedIsCapturedAgain) {
  StepMachine machine({});
  StepMachine plain({.repeatable = false});
  const auto run = [&](int32_t position) {
    const std::vector<MachineSequence> step = Decode(3, position);
    EXPECT_EQ(Bits(machine.Step(step)), Bits(plain.Step(step)));
  };
  for (int32_t position = 0; position < 3; ++position) run(position);
  EXPECT_EQ(machine.bodies(), 2);
  machine.MoveScratch();
  for (int32_t position = 3; position < 6; ++position) run(position);
  EXPECT_EQ(machine.bodies(), 3);
}

TEST_F(StepRunnerTest, AStepThatTheOpsWouldNotTakeIsABugWhenRepeatedToo) {
  StepMachine machine({});
  for (int32_t position = 0; position < 3; ++position) Bits(machine.Step(Decode(2, position)));
  ASSERT_EQ(machine.bodies(), 2);
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::vector<MachineSequence> step = Decode(2, 3);
  step[1].ids = {StepMachine::kVocabulary};
  EXPECT_DEATH(machine.Step(step).IgnoreError(), "check failed: id");
  step = Decode(2, 3);
  step[0].blocks = {StepMachine::kBlocks};
  EXPECT_DEATH(machine.Step(step).IgnoreError(), "check failed: block");
}

}  // namespace
}  // namespace marcoro
