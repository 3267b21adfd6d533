#include "worker/engine/step_sampler.h"

#include <string>
#include <utility>

#include "kernels/token_sampler.h"
#include "spdlog/spdlog.h"
#include "worker/engine/device_step_sampler.h"
#include "worker/engine/host_step_sampler.h"

namespace marcoro {

std::unique_ptr<StepSampler> MakeStepSampler(Backend& backend, const StepSamplerLimits& limits) {
  if (limits.vocabulary > 0) {
    auto sampler = backend.MakeTokenSampler(
        {.slots = limits.sequences, .rows = limits.logit_rows, .vocabulary = limits.vocabulary});
    if (sampler.ok() && *sampler != nullptr) {
      return std::make_unique<DeviceStepSampler>(backend, *std::move(sampler), limits.sequences);
    }
    if (!sampler.ok()) {  // the tokens are the same
      spdlog::warn("tokens are chosen by the processor, and later: {}",
                   std::string(sampler.status().message()));
    }
  }
  return std::make_unique<HostStepSampler>(backend);
}

}  // namespace marcoro
