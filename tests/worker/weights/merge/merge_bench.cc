// How fast a recipe of two synthetic parents is loaded, beside plain reads of the same files in the
// same round. Run by hand:
//   merge_bench [--rounds=5] [--cold] [--layers=32] … FOLDER
// writes the parents into FOLDER, unless they are there: layers of Mistral-7B's shape in BF16.
// Every measurement is of processes of their own, on two processors. Others at work on the machine
// change the times, but those of a round alike: what counts is the ratio.
#include <fcntl.h>
#include <sched.h>
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

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"
#include "worker/weights/merge/merge_source.h"
#include "worker/weights/merge/plan.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/row_kernels.h"

ABSL_FLAG(int, layers, 4, "layers of parents that are written");
ABSL_FLAG(std::string, method, "slerp", "merge method; all but slerp merge with a third, the base");
ABSL_FLAG(std::string, weights, "fp8", "fp8 or bf16");
ABSL_FLAG(int, ranks, 2, "tensor-parallel degree: 1 or 2");
ABSL_FLAG(int, rounds, 5, "rounds of plain reads and a load");
ABSL_FLAG(bool, cold, false, "drop the files from the page cache before each measurement");
ABSL_FLAG(bool, checkpoint, false, "load parent a alone, without merging");

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
  double seconds = 0;  // of the clock
  double user = 0;     // of all processes on processors, fair where others use them too
  double system = 0;
  double resident = 0;  // bytes, of all processes
};

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

// So that two processes have two processors, whatever the scheduler makes of their short lives.
void KeepToProcessor(int index) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(index), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// Runs work(rank) in processes of their own.
Cost Measure(int processes, const std::function<bool(int)>& work) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<pid_t> children;
  for (int rank = 0; rank < processes; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      if (processes == kProcessors) KeepToProcessor(rank);
      _exit(work(rank) ? 0 : 1);
    }
    children.push_back(child);
  }
  Cost cost;
  for (const pid_t child : children) {
    int status = 0;
    rusage usage = {};
    wait4(child, &status, 0, &usage);
    if (status != 0) std::abort();
    cost.user += Seconds(usage.ru_utime);
    cost.system += Seconds(usage.ru_stime);
    cost.resident += static_cast<double>(usage.ru_maxrss) * 1024;
  }
  cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return cost;
}

// Every `of`-th piece of the files.
bool ReadPlainly(const std::vector<std::string>& files, int rank, int of) {
  constexpr size_t kPiece = 4 << 20;
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

bool DropFromPageCache(const std::vector<std::string>& files) {
  for (const std::string& path : files) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0 || fdatasync(file) != 0) return false;
    if (posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0) return false;
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

std::vector<std::string> WeightFiles(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The parents' files, written if they are not there.
std::vector<std::string> PrepareParents(const std::string& folder, const std::string& method) {
  std::vector<std::string> parents = {"a"};
  if (!absl::GetFlag(FLAGS_checkpoint)) parents.push_back("b");
  if (!absl::GetFlag(FLAGS_checkpoint) && method != "slerp") parents.push_back("base");
  std::vector<std::string> files;
  for (size_t i = 0; i < parents.size(); ++i) {
    const std::string parent = folder + "/" + parents[i];
    if (!std::filesystem::exists(parent + "/config.json"))
      WriteParent(parent, absl::GetFlag(FLAGS_layers), i + 1);
    for (const std::string& file : WeightFiles(parent)) files.push_back(file);
  }
  return files;
}

struct Rates {
  std::vector<double> of_one;   // plain read's seconds by those of the load: one process reads,
  std::vector<double> of_both;  // one for each processor
};

void PrintRatios(const char* name, std::vector<double> ratios) {
  std::sort(ratios.begin(), ratios.end());
  std::printf("rate of the load by that of %s: median %.2f, worst %.2f, best %.2f\n", name,
              ratios[ratios.size() / 2], ratios.front(), ratios.back());
}

void PrintCost(const char* name, const Cost& cost, double bytes) {
  std::printf(
      "  %-24s %6.2f s, %5.1f GB/s; on processors %6.2f s user, %6.2f s system; peak %.2f GB\n",
      name, cost.seconds, bytes / cost.seconds / 1e9, cost.user, cost.system, cost.resident / 1e9);
}

void Run(const std::string& folder) {
  const std::string method = absl::GetFlag(FLAGS_method);
  const std::vector<std::string> files = PrepareParents(folder, method);
  double bytes = 0;
  for (const std::string& file : files)
    bytes += static_cast<double>(std::filesystem::file_size(file));
  std::string model = folder + "/a";
  if (!absl::GetFlag(FLAGS_checkpoint)) {
    model = folder + "/recipe.yml";
    WriteRecipe(model, method);
  }
  const int ranks = absl::GetFlag(FLAGS_ranks);
  const DType weights = absl::GetFlag(FLAGS_weights) == "bf16" ? DType::kBF16 : DType::kF8E4M3;
  const auto measure = [&](const char* name, int processes, const std::function<bool(int)>& work) {
    if (absl::GetFlag(FLAGS_cold) && !DropFromPageCache(files)) std::abort();
    const Cost cost = Measure(processes, work);
    PrintCost(name, cost, bytes);
    return cost.seconds;
  };
  std::printf("%s, tp %d, %.2f GB\n", model.c_str(), ranks, bytes / 1e9);
  Rates rates;
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    std::printf("round %d\n", round + 1);
    const double one =
        measure("plain read, 1 process", 1, [&](int rank) { return ReadPlainly(files, rank, 1); });
    const double loading = measure("load", ranks, [&](int rank) {
      const absl::Status status = LoadRank(model, rank, ranks, weights);
      if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return status.ok();
    });
    const double both = measure("plain read, 2 processes", kProcessors,
                                [&](int rank) { return ReadPlainly(files, rank, kProcessors); });
    rates.of_one.push_back(one / loading);
    rates.of_both.push_back(both / loading);
  }
  PrintRatios("a plain read", rates.of_one);
  PrintRatios("two plain reads at once", rates.of_both);
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("merge_bench [flags] FOLDER: how fast a recipe is loaded");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2) {
    std::fprintf(stderr, "%s\n", std::string(absl::ProgramUsageMessage()).c_str());
    return 1;
  }
  marcoro::Run(arguments[1]);
  return 0;
}
