// Checkpoints as bytes, read and written by plain code of the tests' own: what the loader is
// compared with.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace marcoro::testing {

// A folder that goes away with everything in it.
class TempFolder {
 public:
  TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder();

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::string ReadFile(const std::string& path);
void WriteFile(const std::string& path, std::string_view bytes);

// A safetensors file: length, header, data.
std::string SafetensorsBytes(const std::string& header, const std::string& data);

// A tensor as stored.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  // Element by element in double, from the definition of the format.
  std::vector<float> Floats() const;
};

using StoredTensors = std::map<std::string, StoredTensor>;

// Every tensor of every *.safetensors whose name begins with `prefix` in the folder.
StoredTensors ReadTensors(const std::string& folder, const std::string& prefix = "model");

// Writes one file with the tensors in order.
void WriteTensors(const std::string& path, const StoredTensors& tensors);

// Values of the formats, from their definitions.
float HalfValue(uint16_t bits);
float E4M3Value(uint8_t code);  // 0x7f and 0xff are NaN

// Path of a file or folder under tests/data.
std::string TestData(const std::string& name);

}  // namespace marcoro::testing
