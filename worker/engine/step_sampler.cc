#include "worker/engine/step_sampler.h"

#include <utility>

#include "kernels/token_sampler.h"
#include "worker/engine/device_step_sampler.h"
#include "worker/engine/host_step_sampler.h"

namespace marcoro {

std::unique_ptr<StepSampler> MakeStepSampler(Backend& backend, const StepSamplerLimits& limits) {
  if (limits.vocabulary > 0) {
    auto sampler = backend.MakeTokenSampler(
        {.slots = limits.sequences, .rows = limits.logit_rows, .vocabulary = limits.vocabulary});
    // Without memory for it the tokens are the same, only later.
    if (sampler.ok() && *sampler != nullptr) {
      return std::make_unique<DeviceStepSampler>(backend, *std::move(sampler), limits.sequences);
    }
  }
  return std::make_unique<HostStepSampler>(backend);
}

}  // namespace marcoro
