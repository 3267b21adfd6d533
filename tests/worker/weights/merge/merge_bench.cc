// How fast a recipe of two synthetic parents is loaded, beside a plain read of the same files. Run
// by hand:
//   merge_bench FOLDER [LAYERS [METHOD [WEIGHTS]]]
// writes the parents into FOLDER, unless they are there: layers of Mistral-7B's shape in BF16.
// Every measurement is of processes of their own, on two processors.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

constexpr int kProcessors = 2;

std::string ConfigJson(int layers) {
  return R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
  "num_hidden_layers": )" +
         std::to_string(layers) +
         R"(, "vocab_size": 4000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0, "sliding_window": null, "tie_word_embeddings": false, "bos_token_id": 1,
  "eos_token_id": 2, "torch_dtype": "bfloat16"})";
}

// Random weights of that shape in one file.
void WriteParent(const std::string& folder, int layers, uint64_t seed) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/config.json") << ConfigJson(layers);
  const ModelConfig config = LoadModelConfig(folder).value();
  std::string header = "{";
  uint64_t end = 0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    uint64_t bytes = 2;
    for (const int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
    header += (end == 0 ? "\"" : ",\"") + tensor.name +
              "\":{\"dtype\":\"BF16\",\"shape\":" + FormatShape(tensor.shape) +
              ",\"data_offsets\":[" + std::to_string(end) + "," + std::to_string(end + bytes) +
              "]}";
    end += bytes;
  }
  header += "}";
  std::ofstream out(folder + "/model.safetensors", std::ios::binary);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header;
  std::vector<float> numbers(1 << 18);
  std::vector<uint16_t> stored(numbers.size());
  for (uint64_t done = 0; done < end;) {
    GetRowKernels().random(seed + done, static_cast<int64_t>(numbers.size()), 0.03f,
                           numbers.data());
    GetRowKernels().to_bf16(numbers.data(), static_cast<int64_t>(numbers.size()), stored.data());
    const uint64_t bytes = std::min<uint64_t>(end - done, stored.size() * 2);
    out.write(reinterpret_cast<const char*>(stored.data()), static_cast<std::streamsize>(bytes));
    done += bytes;
  }
  if (!out.flush()) std::abort();
}

void WriteRecipe(const std::string& path, const std::string& method) {
  const bool slerp = method == "slerp";
  std::ofstream out(path);
  out << "models:\n";
  for (const char* parent : {"a", "b"}) {
    out << "  - model: " << parent << "\n";
    if (!slerp) out << "    parameters: {weight: 0.5, density: 0.5}\n";
  }
  out << "merge_method: " << method << "\ndtype: bfloat16\n";
  out << "base_model: " << (slerp ? "a" : "base") << "\n";
  if (slerp) out << "parameters: {t: [0.2, 0.8]}\n";
}

struct Cost {
  double seconds = 0;    // of the clock
  double processor = 0;  // seconds of all processes on processors, fair where others use them too
  double resident = 0;   // bytes, of the largest process
  double bytes = 0;      // that were read
};

// Runs work(rank) in processes of their own.
Cost Measure(int processes, const std::function<bool(int)>& work) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<pid_t> children;
  for (int rank = 0; rank < processes; ++rank) {
    const pid_t child = fork();
    if (child == 0) _exit(work(rank) ? 0 : 1);
    children.push_back(child);
  }
  Cost cost;
  for (const pid_t child : children) {
    int status = 0;
    rusage usage = {};
    wait4(child, &status, 0, &usage);
    if (status != 0) std::abort();
    for (const timeval& time : {usage.ru_utime, usage.ru_stime}) {
      cost.processor += static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
    }
    cost.resident = std::max(cost.resident, static_cast<double>(usage.ru_maxrss) * 1024);
  }
  cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return cost;
}

// Every `of`-th piece of the files.
bool ReadPlainly(const std::vector<std::string>& files, int rank, int of) {
  constexpr size_t kPiece = 256 * 1024;
  std::vector<char> buffer(kPiece);
  for (const std::string& path : files) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const off_t size = lseek(file, 0, SEEK_END);
    for (off_t at = off_t{rank} * off_t{kPiece}; at < size; at += off_t{of} * off_t{kPiece}) {
      if (pread(file, buffer.data(), kPiece, at) < 0) return false;
    }
    close(file);
  }
  return true;
}

// Loads a recipe, or the checkpoint of a folder.
absl::Status LoadRank(const std::string& model, int rank, int ranks, DType weights) {
  ModelConfig config;
  std::unique_ptr<TensorSource> source;
  if (std::filesystem::is_directory(model)) {
    config = LoadModelConfig(model).value();
    source = CheckpointSource::Open(model).value();
  } else {
    auto plan = PlanMerge(model);
    if (!plan.ok()) return plan.status();
    config = plan->config;
    auto merge = MergeSource::Open(*std::move(plan));
    if (!merge.ok()) return merge.status();
    source = *std::move(merge);
  }
  BackendOptions options;
  options.threads = kProcessors / ranks;
  auto backend = CreateBackend(options);
  if (!backend.ok()) return backend.status();
  LoadOptions load;
  load.linear_dtype = weights;
  return LoadParameters(*source, config, {rank, ranks}, load, **backend).status();
}

void MeasureLoading(const std::string& model, double bytes, const Cost& plain, DType weights) {
  for (int ranks = 1; ranks <= kProcessors; ranks *= 2) {
    const Cost cost = Measure(ranks, [&](int rank) {
      const absl::Status status = LoadRank(model, rank, ranks, weights);
      if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return status.ok();
    });
    std::printf(
        "%s, tp %d: %.2f s (%.2f s on processors), %.1f GB/s, %.2f of the plain read, "
        "peak %.2f GB\n",
        std::filesystem::path(model).filename().c_str(), ranks, cost.seconds, cost.processor,
        bytes / cost.seconds / 1e9, plain.seconds / cost.seconds * bytes / plain.bytes,
        cost.resident / 1e9);
  }
}

void Run(const std::string& folder, int layers, const std::string& method, DType weights) {
  std::vector<std::string> files;
  std::vector<std::string> parents = {"a", "b"};
  if (method != "slerp") parents.push_back("base");
  double bytes = 0;
  for (size_t i = 0; i < parents.size(); ++i) {
    files.push_back(folder + "/" + parents[i] + "/model.safetensors");
    if (!std::filesystem::exists(files[i])) WriteParent(folder + "/" + parents[i], layers, i + 1);
    bytes += static_cast<double>(std::filesystem::file_size(files[i]));
  }
  const std::string recipe = folder + "/recipe.yml";
  WriteRecipe(recipe, method);
  std::printf("%s of %zu parents, %.2f GB\n", method.c_str(), parents.size(), bytes / 1e9);
  for (int repeat = 0; repeat < 2; ++repeat) {
    Cost plain =
        Measure(kProcessors, [&](int rank) { return ReadPlainly(files, rank, kProcessors); });
    plain.bytes = bytes;
    std::printf("plain read: %.2f s (%.2f s on processors), %.1f GB/s\n", plain.seconds,
                plain.processor, bytes / plain.seconds / 1e9);
    MeasureLoading(folder + "/a", bytes / static_cast<double>(parents.size()), plain, weights);
    MeasureLoading(recipe, bytes, plain, weights);
  }
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: merge_bench FOLDER [LAYERS [METHOD [bf16]]]\n");
    return 1;
  }
  const bool bf16 = argc > 4 && std::string(argv[4]) == "bf16";
  marcoro::Run(argv[1], argc > 2 ? std::atoi(argv[2]) : 4, argc > 3 ? argv[3] : "slerp",
               bf16 ? marcoro::DType::kBF16 : marcoro::DType::kF8E4M3);
  return 0;
}
