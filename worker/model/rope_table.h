// Rotary position embedding (arXiv 2104.09864) in the Hugging Face form.
#pragma once

#include <cstdint>
#include <vector>

namespace marcoro {

// (positions, head_dim): for each position p and pair i, cos(p θ^(−2i/D)) at [p][i] and the sine at
// [p][D/2 + i]. Angles are float32 products of float32 factors, as the reference implementation
// makes them: at large positions the rounding of the angle is part of the model.
std::vector<float> MakeRopeTable(int32_t positions, int32_t head_dim, float theta);

}  // namespace marcoro
