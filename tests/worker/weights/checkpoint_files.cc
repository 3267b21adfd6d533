#include "tests/worker/weights/checkpoint_files.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

namespace marcoro::testing {

TempFolder::TempFolder() {
  std::string name = ::testing::TempDir() + "marcoro_weights_XXXXXX";
  if (mkdtemp(name.data()) == nullptr) std::abort();
  path_ = name;
}

TempFolder::~TempFolder() { std::filesystem::remove_all(path_); }

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    ADD_FAILURE() << "cannot read " << path;
    return "";
  }
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) ADD_FAILURE() << "cannot write " << path;
}

std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  return bytes + header + data;
}

float HalfValue(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  double value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity()
                          : std::numeric_limits<double>::quiet_NaN();
  }
  return static_cast<float>((bits & 0x8000) != 0 ? -value : value);
}

float E4M3Value(uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>((code & 0x80) != 0 ? -value : value);
}

std::vector<float> StoredTensor::Floats() const {
  std::vector<float> floats;
  if (dtype == "F32") {
    floats.resize(bytes.size() / 4);
    std::memcpy(floats.data(), bytes.data(), bytes.size());
    return floats;
  }
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + i, 2);
    if (dtype == "F16") {
      floats.push_back(HalfValue(bits));
    } else {
      const uint16_t halves[2] = {0, bits};  // BF16 is the upper half of a little-endian float
      float value = 0;
      std::memcpy(&value, halves, 4);
      floats.push_back(value);
    }
  }
  return floats;
}

StoredTensors ReadTensors(const std::string& folder, const std::string& prefix) {
  StoredTensors tensors;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(prefix, 0) != 0 || entry.path().extension() != ".safetensors") continue;
    const std::string file = ReadFile(entry.path().string());
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    const auto header = nlohmann::json::parse(file.substr(8, length));
    for (const auto& [key, value] : header.items()) {
      if (key == "__metadata__") continue;
      const uint64_t begin = value["data_offsets"][0];
      const uint64_t end = value["data_offsets"][1];
      tensors[key] = {value["dtype"], value["shape"].get<std::vector<int64_t>>(),
                      file.substr(8 + length + begin, end - begin)};
    }
  }
  return tensors;
}

void WriteTensors(const std::string& path, const StoredTensors& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data += tensor.bytes;
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  WriteFile(path, SafetensorsBytes(header.dump(), data));
}

std::string TestData(const std::string& name) { return std::string(MARCORO_TEST_DATA "/") + name; }

}  // namespace marcoro::testing
