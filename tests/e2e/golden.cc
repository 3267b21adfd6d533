#include "tests/e2e/golden.h"

#include <fstream>

#include "nlohmann/json.hpp"

namespace marcoro {
namespace {

GoldenGreedy Read(const nlohmann::json& json) {
  return {json.at("ids").get<std::vector<uint32_t>>(), json.at("gaps").get<std::vector<double>>(),
          json.at("logprobs").get<std::vector<double>>()};
}

}  // namespace

std::vector<GoldenPrompt> LoadGolden(const std::string& model) {
  std::ifstream file(std::string(MARCORO_TEST_DATA) + "/" + model + "/golden.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  std::vector<GoldenPrompt> prompts;
  for (const nlohmann::json& prompt : json.at("prompts")) {
    prompts.push_back({prompt.at("text").get<std::string>(),
                       prompt.at("ids").get<std::vector<uint32_t>>(), Read(prompt.at("greedy")),
                       Read(prompt.at("greedy_fp8"))});
  }
  return prompts;
}

}  // namespace marcoro
