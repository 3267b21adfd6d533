// The parameters of a case of tests/data/sampling_cases.json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "worker/sampling/sampling_params.h"

namespace marcoro {

inline SamplingParams ParseParams(const nlohmann::json& values) {
  SamplingParams params;
  params.temperature = values.value("temperature", 1.0f);
  params.top_k = values.value("top_k", 0);
  params.top_p = values.value("top_p", 1.0f);
  params.min_p = values.value("min_p", 0.0f);
  params.typical_p = values.value("typical_p", 1.0f);
  params.repetition_penalty = values.value("repetition_penalty", 1.0f);
  params.presence_penalty = values.value("presence_penalty", 0.0f);
  params.frequency_penalty = values.value("frequency_penalty", 0.0f);
  if (values.contains("logit_bias")) {
    for (const auto& [id, bias] : values["logit_bias"].items()) {
      params.logit_bias.emplace_back(std::stoi(id), bias.get<float>());
    }
  }
  return params;
}

}  // namespace marcoro
