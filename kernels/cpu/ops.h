// The functions behind Kernels, for the sources that are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"

namespace marcoro::cpu::MARCORO_ISA {

void EmbedRow(const BFloat16* row, int64_t count, float* out);
void RmsNormRow(const float* x, const float* weight, float epsilon, int64_t count, BFloat16* out);
void AddRmsNormRow(float* residual, const float* delta, const float* weight, float epsilon,
                   int64_t count, BFloat16* out);
float QuantizeSegment(const BFloat16* x, int64_t count, uint8_t* codes);
void RopeAndStoreRow(const RopeRow& row);
void AttendTile(const AttentionTile& tile);
void SwiGluRow(const float* gate, const float* up, int64_t count, BFloat16* out);
RowSummary SummarizeRow(const float* logits, int64_t count);

}  // namespace marcoro::cpu::MARCORO_ISA
