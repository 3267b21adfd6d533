// The cases of the GPU's bench, in the emulator at a small model's shapes: that each of them runs,
// and what it is said to cost, which is arithmetic by hand.
#include <map>
#include <string>

#include "gtest/gtest.h"
#include "kernels/bench/cuda_limits.h"
#include "kernels/bench/cuda_workbench.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {
namespace {

CudaWorkbenchOptions SmallOptions() {
  return {.shapes = {.hidden = 256,
                     .feed_forward = 512,
                     .vocabulary = 1000,
                     .context = 320,
                     .attention = {.heads = 4, .kv_heads = 2, .head_dim = 64, .window = 0}},
          .cold_bytes = size_t{4} << 20,
          .tokens = {1, 8, 40},
          .batches = {1, 3}};
}

class CudaWorkbenchTest : public testing::Test {
 protected:
  CudaWorkbenchTest() : stream_(*CreateStream()) {}
  ~CudaWorkbenchTest() override { DestroyStream(stream_); }

  const Stream stream_;
};

TEST_F(CudaWorkbenchTest, EveryCaseRunsAgainAndAgain) {
  const auto bench = CudaWorkbench::Create(stream_, SmallOptions());
  ASSERT_TRUE(bench.ok()) << bench.status();
  const auto cases = (*bench)->Cases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  EXPECT_EQ(cases->size(), 53u);
  for (const OpCase& op_case : *cases) {
    SCOPED_TRACE(op_case.op + " " + op_case.shape);
    for (int64_t repetition = 0; repetition < 3; ++repetition) op_case.run(repetition);
    EXPECT_TRUE(Synchronize(stream_).ok());
  }
}

TEST_F(CudaWorkbenchTest, CostsAreWhatTheOpMustReadWriteAndMultiply) {
  const auto bench = CudaWorkbench::Create(stream_, SmallOptions());
  ASSERT_TRUE(bench.ok()) << bench.status();
  const auto cases = (*bench)->Cases();
  ASSERT_TRUE(cases.ok()) << cases.status();
  std::map<std::string, std::pair<double, double>> costs;
  for (const OpCase& op_case : *cases) {
    costs[op_case.op + " " + op_case.shape] = {op_case.bytes, op_case.flops};
  }
  const std::map<std::string, std::pair<double, double>> expected = {
      // (4 + 2 · 2) · 64 rows of 256 codes; two operations for each weight and token.
      {"matmul qkv T=8 512x256 fp8", {512 * 256, 2.0 * 512 * 256 * 8}},
      {"matmul qkv T=8 512x256 fp8 x fp8", {512 * 256, 2.0 * 512 * 256 * 8}},
      {"matmul lm_head T=1 1000x256 bf16", {1000 * 256 * 2, 2.0 * 1000 * 256}},
      // Keys and values of two heads of 64 in BF16; two products of 64 for each of four heads.
      {"attention decode batch=3 context=320", {3.0 * 320 * 512, 3.0 * 320 * 4 * 256}},
      // A token at p sees p + 1 positions.
      {"attention prefill T=40 position=280",
       {320.0 * 512, (40.0 * 280 + 40.0 * 41 / 2) * 4 * 256}},
      {"add_rms_norm T=40 H=256", {40.0 * 256 * (4 + 4 + 4 + 2), 0}},
      {"quantize T=40 H=256", {40.0 * 256 * (2 + 1), 0}},
      {"swiglu T=1", {512 * 10, 0}},
      // On each of two ranks: its part, to the peer and from it, residual twice, the norm in BF16.
      {"all_reduce_rms_norm T=8 H=256, 2 ranks on this GPU",
       {2.0 * 8 * 256 * (4 + 4 + 4 + 4 + 4 + 2), 0}}};
  for (const auto& [name, cost] : expected) {
    ASSERT_TRUE(costs.contains(name)) << name;
    EXPECT_EQ(costs[name], cost) << name;
  }
}

TEST_F(CudaWorkbenchTest, LimitLoopsRunAndCountTheirOperations) {
  const auto memory = AllocateDevice(1 << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  Pause(stream_, 1000);
  ReadOnce(stream_, /*multiprocessors=*/2, *memory, 1 << 20, static_cast<uint32_t*>(*memory));
  auto* sink = static_cast<float*>(*memory);
  // Two blocks of 8 warps on each of 2 multiprocessors, 3 rounds of 8 products of 16 x 8 x 16.
  EXPECT_EQ(MultiplyLoop(stream_, 2, /*warpgroups=*/false, 3, sink),
            2.0 * 2 * 8 * 3 * 8 * 2 * 16 * 8 * 16);
  // A block of 2 warpgroups on each, 3 rounds of 64 x 256 x 64.
  EXPECT_EQ(MultiplyLoop(stream_, 2, /*warpgroups=*/true, 3, sink),
            2.0 * 2 * 3 * 2 * 64 * 256 * 64);
  EXPECT_TRUE(Synchronize(stream_).ok());
  FreeDevice(*memory);
}

}  // namespace
}  // namespace marcoro::cuda
