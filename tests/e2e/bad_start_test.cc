// Servers that cannot start say in one line what is wrong, end with a code that is not 0, and leave
// no process.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A copy of `tiny` to be spoilt; removed at the end.
class SpoiltModel {
 public:
  SpoiltModel() {
    std::string path = ::testing::TempDir() + "/marcoro_spoilt_XXXXXX";
    folder_ = mkdtemp(path.data());
    for (const auto& file : fs::directory_iterator(ModelFolder("tiny"))) {
      if (!absl::StartsWith(file.path().filename().string(), "golden"))
        fs::copy(file.path(), folder_ / file.path().filename());
    }
  }
  ~SpoiltModel() { fs::remove_all(folder_); }
  SpoiltModel(const SpoiltModel&) = delete;
  SpoiltModel& operator=(const SpoiltModel&) = delete;

  std::string folder() const { return folder_.string(); }
  fs::path File(const std::string& name) const { return folder_ / name; }
  std::string Read(const std::string& name) const {
    std::ifstream file(File(name), std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(File(name), std::ios::binary) << text;
  }
  void Replace(const std::string& name, const std::string& from, const std::string& to) const {
    std::string text = Read(name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " is not in " << name;
    Write(name, text.replace(at, from.size(), to));
  }

 private:
  fs::path folder_;
};

std::vector<std::string> ServeArguments(const std::string& model,
                                        const std::vector<std::string>& flags) {
  const int port = FreePorts(4);
  std::vector<std::string> arguments = {Program("marcoro"), "serve", "--model=" + model,
                                        absl::StrCat("--listen=127.0.0.1:", port),
                                        absl::StrCat("--metrics=127.0.0.1:", port + 1)};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

// The line of a program's last words, "marcoro-worker: …" or the like, that holds all of the words.
bool HasLineWith(const std::string& text, const std::vector<std::string>& words) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (!absl::StartsWith(line, "marcoro")) continue;
    bool all = true;
    for (const std::string& word : words) all = all && absl::StrContains(line, word);
    if (all) return true;
  }
  return false;
}

void ExpectRefusal(const std::vector<std::string>& arguments,
                   const std::vector<std::string>& words) {
  const Finished run = RunToEnd(arguments);
  ASSERT_TRUE(run.exit_code.has_value()) << "it goes on for ever\n" << run.out << run.err;
  EXPECT_TRUE(*run.exit_code > 0 && *run.exit_code < 128) << "exit code " << *run.exit_code << "\n"
                                                          << run.err;
  EXPECT_TRUE(run.tree_gone) << "processes are left";
  EXPECT_TRUE(HasLineWith(run.err, words))
      << "no line with " << ::testing::PrintToString(words) << " in\n"
      << run.err;
  EXPECT_THAT(run.out, ::testing::Not(HasSubstr("ready:")));
  EXPECT_FALSE(HasSanitizerReport(run.err)) << run.err;
}

void ExpectServeToRefuse(const std::string& model, const std::vector<std::string>& flags,
                         const std::vector<std::string>& words) {
  ExpectRefusal(ServeArguments(model, flags), words);
}

void ExpectWorkerToRefuse(const std::string& model, const std::vector<std::string>& words) {
  ExpectRefusal({Program("marcoro-worker"), "--model=" + model, "--listen=127.0.0.1:0"}, words);
}

// A port that somebody else listens on.
class TakenPort {
 public:
  TakenPort() : port_(FreePorts(1)), descriptor_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(descriptor_, 1), 0);
  }
  ~TakenPort() { close(descriptor_); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  const int port_;
  const int descriptor_;
};

TEST(BadCheckpointTest, ATruncatedFileIsNamed) {
  const SpoiltModel model;
  fs::resize_file(model.File("model.safetensors"),
                  fs::file_size(model.File("model.safetensors")) / 2);
  ExpectServeToRefuse(model.folder(), {"--tp=2"}, {"model.safetensors"});
  ExpectWorkerToRefuse(model.folder(), {"model.safetensors"});
}

TEST(BadCheckpointTest, AFileThatLiesAboutItsHeaderIsNamed) {
  const SpoiltModel model;
  const std::string whole = model.Read("model.safetensors");
  for (const char* length : {"\xff\xff\xff\xff\xff\xff\xff\x7f", "\x00\x00\x00\x00\x00\x00\x00\x00",
                             "\x05\x00\x00\x00\x00\x00\x00\x00"}) {
    model.Write("model.safetensors", std::string(length, 8) + whole.substr(8));
    ExpectWorkerToRefuse(model.folder(), {"model.safetensors"});
  }
  ExpectServeToRefuse(model.folder(), {}, {"model.safetensors"});
}

TEST(BadCheckpointTest, AFileThatLiesAboutAnOffsetIsNamed) {
  const SpoiltModel model;
  model.Replace("model.safetensors", "\"data_offsets\":[0,", "\"data_offsets\":[9,");
  ExpectServeToRefuse(model.folder(), {}, {"model.safetensors"});
}

TEST(BadCheckpointTest, AMissingTensorIsNamed) {
  const SpoiltModel model;
  model.Replace("model.safetensors", "\"model.norm.weight\"", "\"model.nork.weight\"");
  ExpectServeToRefuse(model.folder(), {}, {"model.norm.weight"});
}

TEST(BadCheckpointTest, AnEmptyFolderIsNamed) {
  const SpoiltModel model;
  fs::remove(model.File("model.safetensors"));
  ExpectServeToRefuse(model.folder(), {}, {model.folder(), "safetensors"});
}

TEST(BadCheckpointTest, ImpossibleConfigurationsAreNamed) {
  const std::vector<std::pair<std::string, std::string>> changes = {
      {"\"hidden_size\": 64", "\"hidden_size\": 0"},
      {"\"hidden_size\": 64", "\"hidden_size\": -64"},
      {"\"hidden_size\": 64", "\"hidden_size\": 1e300"},
      {"\"num_attention_heads\": 4", "\"num_attention_heads\": 3"},
      {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"},
      {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2000000000"},
      {"\"vocab_size\": 1024", "\"vocab_size\": \"many\""},
      {"\"model_type\": \"mistral\"", "\"model_type\": \"gpt2\""},
      {"{", "["}};
  for (const auto& [from, to] : changes) {
    SCOPED_TRACE(to);
    const SpoiltModel model;
    model.Replace("config.json", from, to);
    ExpectWorkerToRefuse(model.folder(), {"config.json"});
  }
}

TEST(BadCheckpointTest, AnImpossibleConfigurationEndsServe) {
  const SpoiltModel model;
  model.Replace("config.json", "\"hidden_size\": 64", "\"hidden_size\": 0");
  ExpectServeToRefuse(model.folder(), {"--tp=2", "--replicas=2"}, {"config.json"});
}

TEST(BadCheckpointTest, ATokenizerThatIsNotOneIsNamed) {
  const SpoiltModel model;
  model.Write("tokenizer.model", "this is not a tokenizer");
  ExpectServeToRefuse(model.folder(), {}, {"tokenizer.model"});
}

TEST(BadCheckpointTest, ATruncatedTokenizerIsNamed) {
  const SpoiltModel model;
  fs::resize_file(model.File("tokenizer.model"), fs::file_size(model.File("tokenizer.model")) / 2);
  ExpectServeToRefuse(model.folder(), {}, {"tokenizer.model"});
}

TEST(BadCheckpointTest, ATokenizerThatDoesNotFitTheVocabularyIsNamed) {
  const SpoiltModel model;
  model.Replace("config.json", "\"vocab_size\": 1024", "\"vocab_size\": 512");
  ExpectRefusal({Program("marcoro-coordinator"), "--model=" + model.folder(),
                 "--workers=127.0.0.1:1", "--listen=127.0.0.1:0"},
                {"tokenizer.model", "512"});
}

TEST(BadCheckpointTest, AnUnknownChatTemplateSaysHowToNameOne) {
  const SpoiltModel model;
  model.Write("tokenizer_config.json",
              R"({"chat_template": "{% for m in messages %}{{ m.content | sort }}{% endfor %}"})");
  ExpectServeToRefuse(model.folder(), {}, {"tokenizer_config.json", "--chat-template"});
}

TEST(BadStartTest, AMissingFolderIsNamed) {
  ExpectServeToRefuse("/nowhere/at/all", {"--tp=2"}, {"/nowhere/at/all"});
}

TEST(BadStartTest, ATensorParallelDegreeThatTheModelCannotHaveIsExplained) {
  ExpectServeToRefuse(ModelFolder("tiny"), {"--tp=4"}, {"4", "2"});  // two KV heads
  ExpectServeToRefuse(ModelFolder("small"), {"--tp=3"}, {"3"});
  ExpectServeToRefuse(ModelFolder("small"), {"--tp=16"}, {"tp"});
}

TEST(BadStartTest, AGrpcPortInUseIsNamed) {
  const TakenPort taken;
  ExpectServeToRefuse(ModelFolder("tiny"), {"--listen=" + taken.address()},
                      {taken.address(), "--listen"});
}

TEST(BadStartTest, AMetricsPortInUseIsNamed) {
  const TakenPort taken;
  ExpectServeToRefuse(ModelFolder("tiny"), {"--metrics=" + taken.address()},
                      {taken.address(), "--metrics"});
}

TEST(BadStartTest, AWorkersPortInUseIsNamed) {
  const TakenPort taken;
  ExpectRefusal(
      {Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), "--listen=" + taken.address()},
      {taken.address(), "--listen"});
}

TEST(BadStartTest, TooLittleMemorySaysWhatToDo) {
  ExpectServeToRefuse(ModelFolder("tiny"), {"--kv-tokens=20000000000"}, {"memory", "--kv-tokens"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--kv-tokens=900000000000000000"}, {"--kv-tokens"});
}

// Whether the program was built without CUDA, or there is no GPU, or not as many.
TEST(BadStartTest, AGpuThatIsNotThereIsNamed) {
  ExpectRefusal({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"),
                 "--listen=127.0.0.1:0", "--backend=cuda", "--device=255"},
                {"GPU"});
}

TEST(BadStartTest, UnknownAndImpossibleFlagsAreNamed) {
  ExpectServeToRefuse(ModelFolder("tiny"), {"--no-such-flag=1"}, {"--no-such-flag"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--tp=two"}, {"--tp"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--weights=int3"}, {"--weights"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--weights=bf16", "--activations=fp8"},
                      {"--activations=fp8 needs --weights=fp8"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--listen=nonsense"}, {"--listen"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--chat-template=unknown"}, {"--chat-template"});
  ExpectServeToRefuse(ModelFolder("tiny"), {"--rank=1"}, {"--rank"});
}

TEST(BadStartTest, APeerWithoutItsRootGivesUpAfterTheJoinTimeout) {
  const int port = FreePorts(1);
  ExpectRefusal({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), "--rank=1",
                 "--world-size=2", absl::StrCat("--root=127.0.0.1:", port), "--join-timeout=1s"},
                {absl::StrCat("127.0.0.1:", port)});
}

TEST(BadStartTest, RanksOfDifferentNumbersRefuseEachOther) {
  const int port = FreePorts(1);
  const std::string address = absl::StrCat("127.0.0.1:", port);
  Process root({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), "--world-size=2",
                "--listen=" + address, "--join-timeout=60s"});
  for (const char* other : {"--weights=bf16", "--activations=fp8"}) {
    ExpectRefusal({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), other, "--rank=1",
                   "--world-size=2", "--root=" + address, "--join-timeout=5s"},
                  {"fingerprint"});
  }
}

TEST(BadStartTest, RanksOfDifferentKvFormatsRefuseEachOther) {
  const int port = FreePorts(1);
  const std::string address = absl::StrCat("127.0.0.1:", port);
  Process root({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), "--world-size=2",
                "--kv=fp8", "--listen=" + address, "--join-timeout=5s"});
  ExpectRefusal({Program("marcoro-worker"), "--model=" + ModelFolder("tiny"), "--rank=1",
                 "--world-size=2", "--root=" + address, "--join-timeout=5s"},
                {"fingerprint"});
}

}  // namespace
}  // namespace marcoro
