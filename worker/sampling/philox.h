// Counter-based random numbers: a function of seed and position, with no state to lose.
#pragma once

#include <array>
#include <cstdint>

namespace marcoro {

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11).
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// 53 random bits for one position of the stream that a seed names.
uint64_t RandomBits53(uint64_t seed, uint64_t position);

// The same bits as a number in [0, 1).
double UniformDraw(uint64_t seed, uint64_t position);

}  // namespace marcoro
