#include "worker/weights/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/safetensors.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::ReadTensors;
using testing::StoredTensors;
using testing::TempFolder;

// Tensors of odd lengths, bytes before floats.
const std::vector<OutputTensor> kTensors = {{"codes", "F8_E4M3", {3, 5}},
                                            {"scales", "BF16", {3, 1}},
                                            {"more codes", "F8_E4M3", {7}},
                                            {"scalar", "F32", {}},
                                            {"norm \"x\"\n", "F16", {5}}};

std::string Contents(size_t tensor, uint64_t bytes) {
  std::string contents;
  for (uint64_t i = 0; i < bytes; ++i) contents += static_cast<char>(tensor * 50 + i);
  return contents;
}

std::unique_ptr<SafetensorsWriter> CreateOrDie(const std::string& path,
                                               const std::vector<OutputTensor>& tensors) {
  auto writer = SafetensorsWriter::Create(path, tensors);
  EXPECT_TRUE(writer.ok()) << writer.status();
  return *std::move(writer);
}

TEST(SafetensorsWriter, WritesWhatAnyReaderReads) {
  TempFolder folder;
  const std::string path = folder.File("model.safetensors");
  auto writer = CreateOrDie(path, kTensors);
  // Pieces from the last to the first.
  for (size_t t = kTensors.size(); t-- > 0;) {
    const std::string contents = Contents(t, kTensors[t].bytes());
    for (size_t i = contents.size(); i-- > 0;) {
      ASSERT_TRUE(writer->Write(t, i, &contents[i], 1).ok());
    }
  }
  ASSERT_TRUE(writer->Finish().ok());

  const StoredTensors stored = ReadTensors(folder.path());
  ASSERT_EQ(stored.size(), kTensors.size());
  for (size_t t = 0; t < kTensors.size(); ++t) {
    const auto& tensor = stored.at(kTensors[t].name);
    EXPECT_EQ(tensor.dtype, kTensors[t].dtype);
    EXPECT_EQ(tensor.shape, kTensors[t].shape);
    EXPECT_EQ(tensor.bytes, Contents(t, kTensors[t].bytes()));
  }
  EXPECT_TRUE(SafetensorsFile::Open(path).ok()) << SafetensorsFile::Open(path).status();
}

TEST(SafetensorsWriter, TheHeaderSaysPtAndTensorsAreAlignedToTheirElements) {
  const SafetensorsLayout layout = LayOutSafetensors(kTensors);
  uint64_t length = 0;
  std::memcpy(&length, layout.head.data(), 8);
  ASSERT_EQ(length, layout.head.size() - 8);
  EXPECT_EQ(layout.head.size() % 8, 0u);
  const auto header = nlohmann::json::parse(layout.head.substr(8));
  EXPECT_EQ(header["__metadata__"], nlohmann::json({{"format", "pt"}}));
  EXPECT_EQ(layout.offsets[3] % 4, 0u);  // the float
  EXPECT_EQ(layout.offsets[1] % 2, 0u);
  EXPECT_EQ(layout.offsets[4] % 2, 0u);
  EXPECT_EQ(layout.file_bytes, layout.head.size() + 15 + 6 + 7 + 4 + 10);
  for (size_t t = 0; t < kTensors.size(); ++t) {
    const auto& offsets = header[kTensors[t].name]["data_offsets"];
    EXPECT_EQ(offsets[0], layout.offsets[t] - layout.head.size());
  }
}

TEST(SafetensorsWriter, AnUnwritablePathIsNamed) {
  TempFolder folder;
  const absl::Status status =
      SafetensorsWriter::Create(folder.File("none/model.safetensors"), kTensors).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("none/model.safetensors"));
}

TEST(SafetensorsWriter, FullDisksQuotasAndFileLimitsAreExhaustion) {
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    const absl::Status status = WriteError("/disk/file", error);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("/disk/file: cannot be written: "));
  }
  EXPECT_EQ(WriteError("/disk/file", EIO).code(), absl::StatusCode::kUnavailable);
}

// A limit on file sizes stands for a full disk: the write that crosses it fails.
TEST(SafetensorsWriter, AWriteThatFailsIsNoSilence) {
  TempFolder folder;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const std::vector<OutputTensor> tensors = {{"big", "F32", {1024, 1024}}};
  auto writer = CreateOrDie(folder.File("model.safetensors"), tensors);
  rlimit limit = before;
  limit.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string contents(4 << 20, 'x');
  const absl::Status status = writer->Write(0, 0, contents.data(), contents.size());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, SIG_DFL);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder.File("model.safetensors")));
}

}  // namespace
}  // namespace marcoro
