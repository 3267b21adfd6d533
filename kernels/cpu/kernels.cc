#include "kernels/cpu/kernels.h"

#include "kernels/cpu/ops.h"

namespace marcoro::cpu::MARCORO_ISA {

const Kernels kKernels = {
    .embed_bf16 = EmbedRow,
    .rms_norm = RmsNormRow,
    .add_rms_norm = AddRmsNormRow,
    .quantize = QuantizeSegment,
    .rope = RopeAndStoreRow,
    .attention = AttendTile,
    .swiglu = SwiGluRow,
    .summarize = SummarizeRow,
};

}  // namespace marcoro::cpu::MARCORO_ISA
