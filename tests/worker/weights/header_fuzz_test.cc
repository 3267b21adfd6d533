// Seeded mutations of safetensors headers: whatever the bytes, a list of entries that keeps its
// promises, or a clean error.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <string_view>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/safetensors.h"

namespace marcoro {
namespace {

using testing::ReadFile;
using testing::TestData;

// The header's text, and how many bytes of data follow it.
struct Header {
  std::string text;
  uint64_t data_bytes = 0;
};

Header TinyHeader() {
  const std::string file = ReadFile(TestData("tiny/model.safetensors"));
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  return {file.substr(8, length), file.size() - 8 - length};
}

void Mutate(std::string& text, std::mt19937_64& random) {
  const size_t at = random() % text.size();
  switch (random() % 6) {
    case 0:
      text[at] = static_cast<char>(random());
      break;
    case 1:
      text.erase(at, 1 + random() % 40);
      break;
    case 2:
      text.insert(at, text.substr(random() % text.size(), random() % 200));
      break;
    case 3:
      text[at] = "0123456789-.eE\"[]{},:"[random() % 21];
      break;
    case 4:
      text.insert(at, std::to_string(random() >> (random() % 64)));
      break;
    default:
      text.resize(at);
  }
  if (text.empty()) text.assign(1, '{');
}

// The ranges lie one after the other over exactly the data, each as long as its shape says.
void ExpectPromisesKept(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes) {
  uint64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    ASSERT_EQ(entry.offset, end);
    unsigned __int128 bits = static_cast<unsigned>(SafetensorsDTypeBits(entry.info.dtype));
    for (const int64_t dimension : entry.info.shape) {
      ASSERT_GE(dimension, 0);
      bits *= static_cast<unsigned __int128>(dimension);
    }
    ASSERT_TRUE(bits == static_cast<unsigned __int128>(entry.info.bytes) * 8);
    end += entry.info.bytes;
  }
  ASSERT_EQ(end, data_bytes);
}

TEST(SafetensorsHeaderFuzz, SurvivesMutations) {
  std::mt19937_64 random(4);
  const Header original = TinyHeader();
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = original.text;
    for (uint64_t edits = 1 + random() % 3; edits > 0; --edits) Mutate(text, random);
    const auto entries = ParseSafetensorsHeader(text, 0, original.data_bytes, "f");
    if (!entries.ok()) {
      ASSERT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument) << text;
      continue;
    }
    ++accepted;
    ExpectPromisesKept(*entries, original.data_bytes);
  }
  // Names and the padding can be changed without harm; most else cannot.
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 10'000);
}

TEST(SafetensorsHeaderFuzz, SurvivesBytesFromNowhere) {
  constexpr std::string_view kLetters = "0123456789-{}[]\":,dtypeshapF32_ofsn\xff\\u ";
  std::mt19937_64 random(5);
  for (int round = 0; round < 20'000; ++round) {
    std::string text = "{";
    for (uint64_t length = random() % 60; length > 0; --length) {
      text.push_back(kLetters[random() % kLetters.size()]);
    }
    const auto entries = ParseSafetensorsHeader(text, 0, random() % 100, "f");
    if (!entries.ok()) {
      ASSERT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

}  // namespace
}  // namespace marcoro
