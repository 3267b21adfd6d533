// The matmul of each instruction set: packing and product. See Backend for the contract;
// activations are BF16, or E4M3 (MultiplyQuantized).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace marcoro::cpu {

namespace avx2 {
size_t WeightBytes(const WeightShape& shape);
void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source);
void Matmul(ThreadPool& pool, const Tensor& x, const PackedWeight& weight, const Tensor& out);
void MultiplyQuantized(ThreadPool& pool, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out);
}  // namespace avx2

namespace avx512 {
size_t WeightBytes(const WeightShape& shape);
void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source);
void Matmul(ThreadPool& pool, const Tensor& x, const PackedWeight& weight, const Tensor& out);
void MultiplyQuantized(ThreadPool& pool, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out);
}  // namespace avx512

}  // namespace marcoro::cpu
