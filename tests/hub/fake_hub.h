// A hub with one model: its API, and beside it the host where large files lie.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/hub/http_server.h"

namespace marcoro {

// By OpenSSL's one-call functions and git's format of a blob object.
std::string Sha256Hex(const std::string& bytes);
std::string GitHash(const std::string& bytes);

// `count` bytes that depend on `seed`.
std::string Noise(size_t count, uint32_t seed);

struct FakeRepository {
  std::string name = "org/model";
  std::string commit = "0123456789abcdef0123456789abcdef01234567";
  std::map<std::string, std::string> small;  // files in git
  std::map<std::string, std::string> large;  // files in large file storage
};

// config.json, a tokenizer and one file of weights, 3 MB of noise.
FakeRepository NoiseRepository();
// Every file of a folder; safetensors are large.
FakeRepository RepositoryOfFolder(const std::string& folder);

class FakeHub {
 public:
  explicit FakeHub(FakeRepository repository);

  const FakeRepository& repository() const { return repository_; }
  std::string url() const { return hub_.url(); }

  // Changes what is answered; called for each answer as it should be.
  using Fault = std::function<void(const HttpCall& call, HttpAnswer* answer)>;
  void SetFault(Fault fault);         // of the hub itself
  void SetStorageFault(Fault fault);  // of the host of large files

  std::vector<HttpCall> calls() const { return hub_.calls(); }
  std::vector<HttpCall> storage_calls() const { return storage_.calls(); }

 private:
  HttpAnswer AnswerHub(const HttpCall& call);
  HttpAnswer AnswerStorage(const HttpCall& call);
  HttpAnswer Resolve(const std::string& file);

  const FakeRepository repository_;
  absl::Mutex mutex_;
  Fault fault_ ABSL_GUARDED_BY(mutex_);
  Fault storage_fault_ ABSL_GUARDED_BY(mutex_);
  HttpServer storage_;
  HttpServer hub_;
};

}  // namespace marcoro
