// A thread takes an entry: a few hundred at most, a trip to memory and back.
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/late_ids.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 128;

struct LateRows {
  const LateId* late;
  int count;
  const SampledSequence* sequences;
  int32_t* ids;
};

MARCORO_KERNEL(kThreads, 1) LateIdsKernel(LateRows rows) {
  const int i = BlockIndexX() * kThreads + ThreadIndex();
  if (i >= rows.count) return;
  const LateId late = rows.late[i];
  const int32_t token = rows.sequences[late.slot].last_token;
  rows.ids[late.row] = token < 0 ? 0 : token;
}

}  // namespace

void WriteLateIds(Stream stream, const LateId* late, int count, const SampledSequence* sequences,
                  int32_t* ids) {
  Launch(stream, {.grid_x = (count + kThreads - 1) / kThreads, .threads = kThreads}, LateIdsKernel,
         LateRows{.late = late, .count = count, .sequences = sequences, .ids = ids});
}

}  // namespace marcoro::cuda
