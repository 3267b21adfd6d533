#include "worker/weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::SafetensorsBytes;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;

// The header with `data_bytes` bytes of data behind it.
absl::Status Parse(const std::string& header, uint64_t data_bytes) {
  return ParseSafetensorsHeader(header, 0, data_bytes, "some.safetensors").status();
}

struct BadHeader {
  const char* name;
  std::string header;
  uint64_t data_bytes;
  std::string what;  // part of the message
};

std::string One(const std::string& dtype, const std::string& shape, const std::string& range) {
  return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + range +
         "}}";
}

const std::vector<BadHeader>& BadHeaders() {
  static const std::vector<BadHeader> headers = {
      {"Empty", "", 0, "not a JSON object"},
      {"List", "[]", 0, "not a JSON object"},
      {"Unfinished", R"({"w":{"dtype":"F32")", 0, "not valid JSON"},
      {"TextAfterIt", "{} x", 0, "not valid JSON"},
      {"InvalidUtf8", "{\"\xff\":1}", 0, "not valid JSON"},
      {"NumberForTensor", R"({"w":1})", 0, "unexpected a number"},
      {"TextForTensor", R"({"w":"x"})", 0, "unexpected a string"},
      {"NullForTensor", R"({"w":null})", 0, "unexpected null"},
      {"NestedTooDeep", R"({"w":{"dtype":{"a":1}}})", 0, "unexpected an object"},
      {"NestedLists", R"({"w":{"shape":[[1]]}})", 0, "unexpected a list"},
      {"UnknownKey", R"({"w":{"kind":"F32"}})", 0, "unknown key kind"},
      {"LacksRange", R"({"w":{"dtype":"F32","shape":[1]}})", 4, "lacks"},
      {"KeyTwice", R"({"w":{"dtype":"F32","dtype":"F32"}})", 4, "dtype appears twice"},
      {"MetadataNotText", R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
      {"UnknownDType", One("F31", "[1]", "[0,4]"), 4, "unknown dtype F31"},
      {"NegativeShape", One("F32", "[-1]", "[0,4]"), 4, "negative"},
      {"FractionalShape", One("F32", "[1.5]", "[0,6]"), 6, "fraction"},
      {"ShapeTooLong", One("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "too many"},
      {"ShapeOverflows", One("F32", "[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
      // 2^62 elements of 4 bytes are 0 modulo 2^64.
      {"ShapeWrapsToZero", One("F32", "[4611686018427387904]", "[0,0]"), 0, "overflows"},
      {"HalfBytes", One("F4", "[3]", "[0,1]"), 1, "whole bytes"},
      {"RangeLongerThanShape", One("F32", "[2]", "[0,12]"), 12, "need 8"},
      {"RangeShorterThanShape", One("F32", "[2]", "[0,4]"), 4, "need 8"},
      {"RangeBackwards", One("F32", "[1]", "[4,0]"), 4, "outside"},
      {"RangeBeyondFile", One("F32", "[2]", "[0,8]"), 4, "outside"},
      {"RangeOfThree", One("F32", "[1]", "[0,4,8]"), 4, "two numbers"},
      {"RangeHuge", One("F32", "[1]", "[18446744073709551612,18446744073709551616]"), 4,
       "fraction"},
      {"BytesAtTheEnd", One("F32", "[1]", "[0,4]"), 8, "4 bytes at the end"},
      {"BytesAtTheBegin", One("F32", "[1]", "[4,8]"), 8, "gap"},
      {"Overlap",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
       7, "tensor b: its data overlaps"},
      {"SameRangeTwice",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4, "overlaps"},
      {"Gap",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
       9, "tensor b: its data leaves a gap"},
      {"NameTwice",
       R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       8, "tensor a: it appears twice"}};
  return headers;
}

TEST(SafetensorsHeader, BadOnesAreRefusedWithTheReason) {
  for (const BadHeader& bad : BadHeaders()) {
    SCOPED_TRACE(bad.name);
    const absl::Status status = Parse(bad.header, bad.data_bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("some.safetensors"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.what));
  }
}

TEST(SafetensorsHeader, TakesTensorsInAnyOrderOfNames) {
  const std::string header = R"({"__metadata__":{"format":"pt"},)"
                             R"("late":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                             R"("early":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                             R"("none":{"dtype":"I64","shape":[0,7],"data_offsets":[4,4]}}   )";
  const auto entries = ParseSafetensorsHeader(header, 100, 16, "f");
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].info.name, "early");
  EXPECT_EQ((*entries)[0].offset, 100u);
  EXPECT_EQ((*entries)[1].info.name, "none");
  EXPECT_EQ((*entries)[2].info.name, "late");
  EXPECT_EQ((*entries)[2].offset, 104u);
  EXPECT_EQ((*entries)[2].info.bytes, 12u);
  EXPECT_EQ((*entries)[2].info.shape, (std::vector<int64_t>{2, 3}));
}

TEST(SafetensorsHeader, KnowsTypesItCannotLoad) {
  for (const auto& [dtype, bits] : std::vector<std::pair<std::string, int>>{{"BOOL", 8},
                                                                            {"U8", 8},
                                                                            {"I8", 8},
                                                                            {"F8_E4M3", 8},
                                                                            {"F8_E5M2", 8},
                                                                            {"F4", 4},
                                                                            {"I16", 16},
                                                                            {"U16", 16},
                                                                            {"F16", 16},
                                                                            {"BF16", 16},
                                                                            {"I32", 32},
                                                                            {"U32", 32},
                                                                            {"F32", 32},
                                                                            {"I64", 64},
                                                                            {"U64", 64},
                                                                            {"F64", 64}}) {
    EXPECT_EQ(SafetensorsDTypeBits(dtype), bits) << dtype;
    const uint64_t bytes = static_cast<uint64_t>(bits);  // of eight elements
    EXPECT_TRUE(Parse(One(dtype, "[8]", "[0," + std::to_string(bytes) + "]"), bytes).ok()) << dtype;
  }
}

TEST(SafetensorsFile, ReadsWhatIsStored) {
  const auto file = SafetensorsFile::Open(TestData("tiny/model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->entries().size(), 21u);
  const auto tensors = testing::ReadTensors(TestData("tiny"));
  for (const SafetensorsEntry& entry : (*file)->entries()) {
    const auto& expected = tensors.at(entry.info.name);
    EXPECT_EQ(entry.info.dtype, expected.dtype);
    EXPECT_EQ(entry.info.shape, expected.shape);
    std::string bytes(entry.info.bytes, '\0');
    (*file)->Prefetch(entry, 0, entry.info.bytes);
    ASSERT_TRUE((*file)->Read(entry, 0, entry.info.bytes, bytes.data()).ok());
    EXPECT_EQ(bytes, expected.bytes) << entry.info.name;
    std::string part(2, '\0');
    ASSERT_TRUE((*file)->Read(entry, entry.info.bytes - 2, 2, part.data()).ok());
    EXPECT_EQ(part, expected.bytes.substr(expected.bytes.size() - 2));
  }
}

class BadFiles : public ::testing::Test {
 protected:
  absl::Status Open(std::string_view bytes) {
    const std::string path = folder_.File("m.safetensors");
    WriteFile(path, bytes);
    const absl::Status status = SafetensorsFile::Open(path).status();
    if (!status.ok()) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    }
    return status;
  }

  TempFolder folder_;
};

TEST_F(BadFiles, EveryTruncationIsRefused) {
  const std::string header = One("F32", "[2,2]", "[0,16]");
  const std::string whole = SafetensorsBytes(header, std::string(16, 'x'));
  EXPECT_TRUE(Open(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(Open(std::string_view(whole).substr(0, size)).code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  EXPECT_EQ(Open(whole + "x").code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BadFiles, HeaderLengthBeyondTheFileIsRefusedWithoutReadingIt) {
  for (const uint64_t length :
       {uint64_t{17}, uint64_t{100'000'001}, uint64_t{1} << 40, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    std::string bytes(reinterpret_cast<const char*>(&length), 8);
    const absl::Status status = Open(bytes + "{}              ");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << length;
    EXPECT_THAT(std::string(status.message()), HasSubstr("header"));
  }
}

TEST_F(BadFiles, HeaderOverTheLimitIsRefused) {
  const std::string path = folder_.File("big.safetensors");
  const uint64_t length = kMaxSafetensorsHeader + 1;
  WriteFile(path, std::string_view(reinterpret_cast<const char*>(&length), 8));
  std::filesystem::resize_file(path, length + 8);  // a hole on disk
  EXPECT_EQ(SafetensorsFile::Open(path).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BadFiles, MissingFileIsNotFound) {
  EXPECT_EQ(SafetensorsFile::Open(folder_.File("none")).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(BadFiles, WhatIsNoRegularFileIsRefusedAndNeverWaitedFor) {
  EXPECT_EQ(SafetensorsFile::Open(folder_.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(mkfifo(folder_.File("fifo").c_str(), 0600), 0);
  EXPECT_EQ(SafetensorsFile::Open(folder_.File("fifo")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(BadFiles, HostileNestingCostsNothing) {
  const std::string header = R"({"w":)" + std::string(10'000'000, '[');
  EXPECT_EQ(Open(SafetensorsBytes(header, "")).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(BadFiles, LongNamesAreCutInMessages) {
  const std::string header = R"({")" + std::string(100'000, 'n') + R"(":1})";
  const absl::Status status = Open(SafetensorsBytes(header, ""));
  EXPECT_LT(status.message().size(), 1000u);
}

}  // namespace
}  // namespace marcoro
