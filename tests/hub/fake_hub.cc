#include "tests/hub/fake_hub.h"

#include <openssl/sha.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace marcoro {
namespace {

HttpAnswer NotFound() {
  return {.status = 404, .headers = {{"X-Error-Code", "EntryNotFound"}}, .body = "no such thing"};
}

// The part of a body that a Range header asks for.
HttpAnswer Ranged(const HttpCall& call, const std::string& body) {
  HttpAnswer answer = {.body = body};
  const std::string header = call.Header("range");
  absl::string_view range = header;
  uint64_t first = 0;
  if (!absl::ConsumePrefix(&range, "bytes=") || !absl::ConsumeSuffix(&range, "-") ||
      !absl::SimpleAtoi(range, &first)) {
    return answer;
  }
  if (first >= body.size()) return {.status = 416};
  answer.status = 206;
  answer.body = body.substr(first);
  answer.SetHeader("Content-Range",
                   absl::StrCat("bytes ", first, "-", body.size() - 1, "/", body.size()));
  return answer;
}

}  // namespace

std::string Sha256Hex(const std::string& bytes) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), sizeof(digest)));
}

std::string GitHash(const std::string& bytes) {
  const std::string object = absl::StrCat("blob ", bytes.size(), absl::string_view("\0", 1), bytes);
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1(reinterpret_cast<const unsigned char*>(object.data()), object.size(), digest);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), sizeof(digest)));
}

std::string Noise(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

FakeRepository NoiseRepository() {
  FakeRepository repository;
  repository.small = {{"config.json", R"({"model_type":"mistral"})"},
                      {"tokenizer_config.json", "{}"},
                      {"README.md", "# model"}};
  repository.large = {{"tokenizer.model", Noise(2000, 1)},
                      {"model.safetensors", Noise(3'000'000, 2)},
                      {"pytorch_model.bin", Noise(1000, 3)}};
  return repository;
}

FakeRepository RepositoryOfFolder(const std::string& folder) {
  FakeRepository repository;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ostringstream bytes;
    bytes << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    const bool large = entry.path().extension() == ".safetensors";
    (large ? repository.large : repository.small)[entry.path().filename()] = bytes.str();
  }
  return repository;
}

FakeHub::FakeHub(FakeRepository repository)
    : repository_(std::move(repository)),
      storage_([this](const HttpCall& call) { return AnswerStorage(call); }),
      hub_([this](const HttpCall& call) { return AnswerHub(call); }) {}

void FakeHub::SetFault(Fault fault) {
  const absl::MutexLock lock(&mutex_);
  fault_ = std::move(fault);
}

void FakeHub::SetStorageFault(Fault fault) {
  const absl::MutexLock lock(&mutex_);
  storage_fault_ = std::move(fault);
}

HttpAnswer FakeHub::Resolve(const std::string& file) {
  HttpAnswer answer = {.headers = {{"X-Repo-Commit", repository_.commit}}};
  if (const auto found = repository_.small.find(file); found != repository_.small.end()) {
    answer.body = found->second;
    answer.SetHeader("ETag", absl::StrCat("\"", GitHash(answer.body), "\""));
    return answer;
  }
  const auto found = repository_.large.find(file);
  if (found == repository_.large.end()) return NotFound();
  const std::string hash = Sha256Hex(found->second);
  answer.status = 302;
  answer.body = "Found. Redirecting";
  answer.SetHeader("X-Linked-ETag", absl::StrCat("\"", hash, "\""));
  answer.SetHeader("X-Linked-Size", absl::StrCat(found->second.size()));
  answer.SetHeader("Location", absl::StrCat(storage_.url(), "/", hash, "?signature=secret"));
  return answer;
}

HttpAnswer FakeHub::AnswerHub(const HttpCall& call) {
  HttpAnswer answer = NotFound();
  absl::string_view target = call.target;
  if (target == absl::StrCat("/api/models/", repository_.name, "/revision/main") ||
      target == absl::StrCat("/api/models/", repository_.name, "/revision/", repository_.commit)) {
    nlohmann::json listing = {{"sha", repository_.commit}, {"siblings", nlohmann::json::array()}};
    for (const auto* files : {&repository_.small, &repository_.large}) {
      for (const auto& [name, bytes] : *files) listing["siblings"].push_back({{"rfilename", name}});
    }
    answer = {.body = listing.dump()};
  } else if (absl::ConsumePrefix(&target, absl::StrCat("/", repository_.name, "/resolve/",
                                                       repository_.commit, "/"))) {
    answer = Resolve(std::string(target));
    if (answer.status == 200) {
      HttpAnswer ranged = Ranged(call, answer.body);
      for (const auto& [name, value] : answer.headers) ranged.SetHeader(name, value);
      answer = ranged;
    }
  }
  const absl::MutexLock lock(&mutex_);
  if (fault_) fault_(call, &answer);
  return answer;
}

HttpAnswer FakeHub::AnswerStorage(const HttpCall& call) {
  HttpAnswer answer = NotFound();
  for (const auto& [name, bytes] : repository_.large) {
    if (call.target == absl::StrCat("/", Sha256Hex(bytes), "?signature=secret")) {
      answer = Ranged(call, bytes);
    }
  }
  const absl::MutexLock lock(&mutex_);
  if (storage_fault_) storage_fault_(call, &answer);
  return answer;
}

}  // namespace marcoro
