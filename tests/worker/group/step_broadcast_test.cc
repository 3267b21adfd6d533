#include "worker/group/step_broadcast.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "marcoro/worker/v1/group.pb.h"
#include "tests/worker/collective/ranks.h"
#include "worker/collective/single.h"

namespace marcoro {
namespace {

using Kind = StepBroadcast::Kind;
using worker::v1::StepMessage;

StepPlan PlanOf(int sequences, int tokens_each, int blocks_each) {
  StepPlan plan;
  for (int i = 0; i < sequences; ++i) {
    SequenceStep step;
    step.id = static_cast<SequenceId>(1000 + i);
    step.position = 16 * blocks_each - tokens_each;
    step.token_count = tokens_each;
    step.block_count = blocks_each;
    step.logit_rows = i % (tokens_each + 1);
    plan.sequences.push_back(step);
    for (int token = 0; token < tokens_each; ++token) plan.tokens.push_back(32000 - i - token);
    for (int block = 0; block < blocks_each; ++block) {
      plan.blocks.push_back(i * blocks_each + block);
    }
  }
  plan.blocks_to_zero = {3, 0, 70000};
  return plan;
}

void ExpectEqual(const StepPlan& received, const StepPlan& sent) {
  ASSERT_EQ(received.sequences.size(), sent.sequences.size());
  for (size_t i = 0; i < sent.sequences.size(); ++i) {
    EXPECT_EQ(received.sequences[i].id, 0u);
    EXPECT_EQ(received.sequences[i].position, sent.sequences[i].position);
    EXPECT_EQ(received.sequences[i].token_count, sent.sequences[i].token_count);
    EXPECT_EQ(received.sequences[i].block_count, sent.sequences[i].block_count);
    EXPECT_EQ(received.sequences[i].logit_rows, sent.sequences[i].logit_rows);
  }
  EXPECT_EQ(received.tokens, sent.tokens);
  EXPECT_TRUE(received.late.empty()) << "rank 0's matter";
  EXPECT_EQ(received.blocks, sent.blocks);
  EXPECT_EQ(received.blocks_to_zero, sent.blocks_to_zero);
}

void WithRanks(int ranks, const std::string& transport, absl::Duration timeout,
               const std::function<void(Communicator&)>& body) {
  LocalKeyStore keys;
  RunInThreads(ranks, [&](int rank) {
    auto control = Connect(transport, rank, ranks, keys, timeout);
    ASSERT_TRUE(control.ok()) << control.status();
    body(**control);
  });
}

class StepBroadcastTest : public testing::TestWithParam<std::string> {};

TEST_P(StepBroadcastTest, PeersReceivePlansHeartbeatsAndShutdownInOrder) {
  const StepPlan empty;
  StepPlan only_zeroing;
  only_zeroing.blocks_to_zero = {5};
  StepPlan decode = PlanOf(3, 1, 4);
  decode.tokens[1] = 0;  // which stands for a token that rank 0's device alone knows
  decode.late = {{.index = 1, .id = 1001}};
  const StepPlan large = PlanOf(256, 1, 256);
  const StepPlan prefill = PlanOf(2, 512, 33);
  const StepPlan* const plans[] = {&empty, &only_zeroing, &decode, &large, &prefill};
  WithRanks(4, GetParam(), absl::Seconds(60), [&](Communicator& control) {
    StepBroadcast broadcast(&control);
    if (control.rank() == 0) {
      for (const StepPlan* plan : plans) {
        ASSERT_TRUE(broadcast.SendStep(*plan).ok());
        ASSERT_TRUE(broadcast.SendHeartbeat().ok());
      }
      ASSERT_TRUE(broadcast.SendShutdown().ok());
      return;
    }
    StepPlan received;
    for (const StepPlan* plan : plans) {
      ASSERT_EQ(*broadcast.Receive(&received), Kind::kStep);
      ExpectEqual(received, *plan);
      ASSERT_EQ(*broadcast.Receive(&received), Kind::kHeartbeat);
      EXPECT_TRUE(received.empty());
    }
    ASSERT_EQ(*broadcast.Receive(&received), Kind::kShutdown);
  });
}

TEST_P(StepBroadcastTest, HeartbeatNoticesAHungPeer) {
  std::unique_ptr<Communicator> ranks[2];
  LocalKeyStore keys;
  RunInThreads(2, [&](int rank) {
    auto control = Connect(GetParam(), rank, 2, keys, absl::Milliseconds(200));
    ASSERT_TRUE(control.ok()) << control.status();
    ranks[rank] = *std::move(control);
  });
  StepBroadcast broadcast(ranks[0].get());
  EXPECT_EQ(broadcast.SendHeartbeat().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(StepBroadcastTest, PeersNoticeThatNoHeartbeatComes) {
  std::unique_ptr<Communicator> ranks[2];
  LocalKeyStore keys;
  RunInThreads(2, [&](int rank) {
    auto control = Connect(GetParam(), rank, 2, keys, absl::Milliseconds(200));
    ASSERT_TRUE(control.ok()) << control.status();
    ranks[rank] = *std::move(control);
  });
  StepBroadcast broadcast(ranks[1].get());
  StepPlan plan;
  EXPECT_EQ(broadcast.Receive(&plan).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(StepBroadcastTest, PeersNoticeThatRankZeroIsGoneAndRankZeroThatAPeerIs) {
  for (const int survivor : {0, 1}) {
    WithRanks(2, GetParam(), absl::Seconds(60), [&](Communicator& control) {
      StepBroadcast broadcast(&control);
      StepPlan plan;
      if (control.rank() == 0) {
        ASSERT_TRUE(broadcast.SendHeartbeat().ok());
      } else {
        ASSERT_TRUE(broadcast.Receive(&plan).ok());
      }
      if (control.rank() != survivor) return;
      const absl::Status status =
          survivor == 0 ? broadcast.SendHeartbeat() : broadcast.Receive(&plan).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, StepBroadcastTest, testing::Values("gloo", "shared_memory"));

TEST(StepBroadcastAlone, NeedsNobody) {
  const std::unique_ptr<Communicator> control = MakeSingleCommunicator();
  StepBroadcast broadcast(control.get());
  EXPECT_TRUE(broadcast.SendStep(PlanOf(1, 1, 1)).ok());
  EXPECT_TRUE(broadcast.SendHeartbeat().ok());
  EXPECT_TRUE(broadcast.SendShutdown().ok());
}

// What a peer makes of one raw message.
absl::Status Receive(const std::string& bytes) {
  absl::Status status;
  WithRanks(2, "shared-memory", absl::Seconds(60), [&](Communicator& control) {
    if (control.rank() == 0) {
      std::string message = bytes;
      ASSERT_TRUE(control.BroadcastFromRoot(&message).ok());
    } else {
      StepPlan plan;
      status = StepBroadcast(&control).Receive(&plan).status();
    }
  });
  return status;
}

StepMessage ValidMessage() {
  StepMessage message;
  message.set_kind(StepMessage::KIND_STEP);
  message.set_step(1);
  auto* sequence = message.add_sequences();
  sequence->set_position(15);
  sequence->set_token_count(2);
  sequence->set_block_count(2);
  sequence->set_logit_rows(1);
  message.add_tokens(7);
  message.add_tokens(8);
  message.add_blocks(0);
  message.add_blocks(1);
  return message;
}

TEST(StepMessageValidation, AcceptsTheMessageThatTheOthersDepartFrom) {
  EXPECT_TRUE(Receive(ValidMessage().SerializeAsString()).ok());
}

TEST(StepMessageValidation, RefusesWhatContradictsItself) {
  const std::vector<std::function<void(StepMessage&)>> faults = {
      [](StepMessage& m) { m.set_kind(StepMessage::KIND_UNSPECIFIED); },
      [](StepMessage& m) { m.set_step(2); },
      [](StepMessage& m) { m.add_tokens(9); },
      [](StepMessage& m) { m.add_blocks(2); },
      [](StepMessage& m) { m.mutable_blocks()->RemoveLast(); },
      [](StepMessage& m) { m.set_tokens(0, -1); },
      [](StepMessage& m) { m.set_blocks(1, -1); },
      [](StepMessage& m) { m.add_blocks_to_zero(-4); },
      [](StepMessage& m) { m.mutable_sequences(0)->set_position(-1); },
      [](StepMessage& m) { m.mutable_sequences(0)->set_logit_rows(3); },
      [](StepMessage& m) { m.mutable_sequences(0)->set_logit_rows(-1); },
      [](StepMessage& m) {
        m.mutable_sequences(0)->set_token_count(0);
        m.mutable_sequences(0)->set_logit_rows(0);
        m.clear_tokens();
      },
      [](StepMessage& m) {
        m.mutable_sequences(0)->set_block_count(0);
        m.clear_blocks();
      },
      // Sums that would come out right in 32 bits.
      [](StepMessage& m) {
        m.add_sequences()->set_token_count(INT32_MAX);
        m.add_sequences()->set_token_count(INT32_MAX);
        m.mutable_sequences(0)->set_token_count(4);
      },
  };
  for (size_t i = 0; i < faults.size(); ++i) {
    StepMessage message = ValidMessage();
    faults[i](message);
    const absl::Status status = Receive(message.SerializeAsString());
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << "fault " << i << ": " << status;
  }
}

TEST(StepMessageValidation, RefusesWhatIsNoMessage) {
  EXPECT_EQ(Receive(std::string("\x08\x01\x22\xff", 4)).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace marcoro
