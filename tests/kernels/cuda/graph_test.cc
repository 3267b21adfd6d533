// Captured work: nothing of it runs in the capture, all of it at each launch, with what memory
// holds then.
#include "kernels/cuda/graph.h"

#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

using Values = std::vector<int32_t>;

// to = from, later.
void QueueCopy(const DeviceArray<int32_t>& from, const DeviceArray<int32_t>& to) {
  CopyRowsOnDevice(TestStream(), to.data(), to.bytes(), from.data(), from.bytes(), from.bytes(), 1);
}

TEST(GraphTest, EachLaunchRunsWhatTheCaptureRecorded) {
  const Matrix from = Matrix(DType::kBF16, 20, 72).FillNormal(1);
  const DeviceMatrix device_from(from);
  DeviceArray<int32_t> rows(2);
  const DeviceMatrix to(Matrix(DType::kBF16, 2, 72));
  const auto graph = CaptureGraph(TestStream(), [&] {
    GatherRows(TestStream(), device_from.view(), rows.data(), to.view());
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_TRUE(BitwiseEqual(Matrix(DType::kBF16, 2, 72), to.ToHost())) << "nothing has run yet";
  for (const Values& chosen : {Values{3, 19}, Values{0, 0}, Values{7, 4}}) {
    rows.CopyFrom(chosen);
    graph->Launch(TestStream());
    Matrix expected(DType::kBF16, 2, 72);
    for (int64_t r = 0; r < 2; ++r) expected.CopyRow(r, from, chosen[static_cast<size_t>(r)]);
    EXPECT_TRUE(BitwiseEqual(expected, to.ToHost()));
  }
}

TEST(GraphTest, CopiesAndFillsRunInTheirOrder) {
  DeviceArray<int32_t> a(3);
  const DeviceArray<int32_t> b(3);
  const auto graph = CaptureGraph(TestStream(), [&] {
    QueueCopy(a, b);
    Fill(TestStream(), a.data(), 0, a.bytes());
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(b.ToHost(), Values({-1, -1, -1})) << "poison: nothing has run yet";
  for (const Values& values : {Values{1, 2, 3}, Values{4, 5, 6}}) {
    a.CopyFrom(values);
    graph->Launch(TestStream());
    EXPECT_EQ(b.ToHost(), values);
    EXPECT_EQ(a.ToHost(), Values({0, 0, 0}));
  }
}

// What a capture may not do fails, also if body does not look.
TEST(GraphTest, WaitingAndAllocatingCannotBeCaptured) {
  const DeviceArray<int32_t> memory(3);
  const std::vector<std::function<void()>> misuses = {
      [] { EXPECT_FALSE(Synchronize(TestStream()).ok()); },
      [] { EXPECT_FALSE(AllocateDevice(16).ok()); },
      [] { EXPECT_FALSE(AllocatePinned(16).ok()); },
  };
  for (const auto& misuse : misuses) {
    const auto graph = CaptureGraph(TestStream(), [&] {
      Fill(TestStream(), memory.data(), 0, memory.bytes());
      misuse();
      return absl::OkStatus();
    });
    EXPECT_EQ(graph.status().code(), absl::StatusCode::kInternal) << graph.status();
    EXPECT_EQ(memory.ToHost(), Values({-1, -1, -1})) << "the stream works, and nothing ran";
  }
}

TEST(GraphTest, AFailingBodyLeavesNoGraph) {
  const DeviceArray<int32_t> memory(3);
  const auto graph = CaptureGraph(TestStream(), [&] {
    Fill(TestStream(), memory.data(), 0, memory.bytes());
    return absl::UnavailableError("a peer is gone");
  });
  EXPECT_EQ(graph.status(), absl::UnavailableError("a peer is gone"));
  EXPECT_EQ(memory.ToHost(), Values({-1, -1, -1}));
  Fill(TestStream(), memory.data(), 0, memory.bytes());
  EXPECT_EQ(memory.ToHost(), Values({0, 0, 0}));
}

// As loading does, for example.
TEST(GraphTest, OtherThreadsUseTheDeviceMeanwhile) {
  const DeviceArray<int32_t> memory(3);
  std::optional<Values> loaded;
  const auto graph = CaptureGraph(TestStream(), [&] {
    std::thread([&] {
      EnterDevice(0);
      const auto stream = CreateStream();
      CheckDevice(stream.status());
      const auto own = AllocateDevice(sizeof(int32_t));
      CheckDevice(own.status());
      const int32_t sent = 42;
      loaded.emplace(1);
      CopyToDevice(*stream, *own, &sent, sizeof(sent));
      CopyToHost(*stream, loaded->data(), *own, sizeof(sent));
      CheckDevice(Synchronize(*stream));
      FreeDevice(*own);
      DestroyStream(*stream);
    }).join();
    Fill(TestStream(), memory.data(), 0, memory.bytes());
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(loaded, Values({42}));
  graph->Launch(TestStream());
  EXPECT_EQ(memory.ToHost(), Values({0, 0, 0}));
}

}  // namespace
}  // namespace marcoro::cuda
