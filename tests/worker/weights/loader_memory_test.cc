// Peak resident memory of loading, as the kernel counts it, in a process of its own.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"
#include "worker/weights/model_tensors.h"

namespace marcoro {
namespace {

using testing::TempFolder;

// 129 M parameters: 258 MB in BF16.
ModelConfig Config() {
  ModelConfig config;
  config.architecture = "MistralForCausalLM";
  config.hidden_size = 1024;
  config.layers = 8;
  config.heads = 16;
  config.kv_heads = 8;
  config.head_dim = 64;
  config.ffn_size = 4096;
  config.vocabulary_size = 4000;
  config.max_positions = 128;
  config.rope_theta = 1e4f;
  config.rms_norm_epsilon = 1e-5f;
  return config;
}

// A checkpoint of that shape in one file, written piece by piece. Every number is 0.5 + k/512.
void WriteCheckpoint(const std::string& path, const ModelConfig& config) {
  std::string header = "{";
  uint64_t end = 0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    const uint64_t rows = static_cast<uint64_t>(tensor.shape[0]);
    const uint64_t columns = tensor.shape.size() == 1 ? 1 : static_cast<uint64_t>(tensor.shape[1]);
    const uint64_t begin = end;
    end += rows * columns * 2;
    header += (begin == 0 ? "\"" : ",\"") + tensor.name +
              "\":{\"dtype\":\"BF16\",\"shape\":" + FormatShape(tensor.shape) +
              ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  }
  header += "}";
  std::ofstream out(path, std::ios::binary);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header;
  std::vector<uint16_t> numbers(1 << 16);
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<uint16_t>(0x3f00 + (i * 2654435761u >> 20) % 128);
  }
  for (uint64_t done = 0; done < end;) {
    const uint64_t bytes = std::min<uint64_t>(end - done, numbers.size() * 2);
    out.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(bytes));
    done += bytes;
  }
  ASSERT_TRUE(out.flush()) << path;
}

// A line of /proc/self/status in bytes: "VmRSS", or "VmHWM" for the highest it has been.
int64_t StatusBytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(key + ":", 0) == 0) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return -1;
}

struct Measurement {
  int64_t growth = -1;  // of the peak over what the process had before
  int64_t shard = -1;   // bytes of the loaded parameters
};

Measurement Load(const std::string& folder, const Shard& shard) {
  const ModelConfig config = Config();
  BackendOptions options;
  options.name = "reference";
  options.threads = 2;
  auto backend = CreateBackend(options);
  auto source = CheckpointSource::Open(folder);
  if (!backend.ok() || !source.ok()) return {};
  const int64_t before = StatusBytes("VmRSS");
  const auto loaded = LoadParameters(**source, config, shard, {}, **backend);
  if (!loaded.ok()) return {};
  Measurement result;
  result.growth = StatusBytes("VmHWM") - before;
  result.shard = 0;
  for (const Buffer& buffer : loaded->storage) result.shard += static_cast<int64_t>(buffer.bytes());
  return result;
}

// Loads in a child, whose peak is its own.
Measurement LoadInChild(const std::string& folder, const Shard& shard) {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    const Measurement result = Load(folder, shard);
    const bool written = write(ends[1], &result, sizeof(result)) == sizeof(result);
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  Measurement result;
  if (read(ends[0], &result, sizeof(result)) != sizeof(result)) result = {};
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? result : Measurement{};
}

TEST(LoaderMemory, PeakIsTheShardPlusLessThanOneTensor) {
  TempFolder folder;
  WriteCheckpoint(folder.File("model.safetensors"), Config());
  constexpr int64_t kLargestTensor = 4096 * 1024 * 2;  // as stored
  for (const Shard& shard : {Shard{0, 1}, Shard{1, 2}}) {
    SCOPED_TRACE(shard.world_size);
    const Measurement measured = LoadInChild(folder.path(), shard);
    ASSERT_GT(measured.shard, 50'000'000 / shard.world_size);
    // Loaded for real: every page of the shard is written.
    EXPECT_GT(measured.growth, measured.shard * 9 / 10);
    EXPECT_LT(measured.growth, measured.shard + kLargestTensor);
    std::printf("tp %d: shard %.1f MB, peak %.1f MB above it\n", shard.world_size,
                static_cast<double>(measured.shard) / 1e6,
                static_cast<double>(measured.growth - measured.shard) / 1e6);
  }
}

}  // namespace
}  // namespace marcoro
