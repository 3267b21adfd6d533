// Our reading of tokenizer.model and our BPE against the sentencepiece library itself. (A program
// of its own: see coordinator/text/sentencepiece_file.h for why the server does not link the
// library.)
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "coordinator/text/sentencepiece_model.h"

namespace marcoro {
namespace {

std::string ReadModel() {
  std::ifstream file(MARCORO_TEST_DATA "/tokenizer/tokenizer.model", std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// Texts with what tokenizers stumble over: runs of spaces, characters of one to four bytes, pieces
// of the vocabulary.
std::string RandomText(std::mt19937& random, const SentencePieceModel& model) {
  const std::vector<std::string> parts = {" ",    "  ", "\n", "\t",   "a", "e", "th", "Ω",
                                          "日本", "😀", "▁",  "\x7f", "é", "1", "."};
  std::string text;
  for (int count = static_cast<int>(random() % 40); count > 0; --count) {
    if (random() % 2 == 0) {
      text += parts[random() % parts.size()];
    } else {
      const int32_t id = static_cast<int32_t>(random() % model.size());
      if (model.Kind(id) == TokenKind::kText) text += model.Bytes(id);
    }
  }
  return text;
}

class SentencePieceOracleTest : public testing::Test {
 protected:
  SentencePieceOracleTest() : bytes_(ReadModel()) {
    EXPECT_TRUE(library_.LoadFromSerializedProto(bytes_).ok());
    std::string error;
    model_ = SentencePieceModel::Parse(bytes_, /*add_dummy_prefix=*/true, &error);
    EXPECT_NE(model_, nullptr) << error;
  }

  const std::string bytes_;
  sentencepiece::SentencePieceProcessor library_;
  std::unique_ptr<SentencePieceModel> model_;
};

TEST_F(SentencePieceOracleTest, EveryPieceIsRead) {
  ASSERT_EQ(model_->size(), library_.GetPieceSize());
  for (int32_t id = 0; id < model_->size(); ++id) {
    EXPECT_EQ(model_->Find(library_.IdToPiece(id)), id);
    EXPECT_EQ(model_->Kind(id) == TokenKind::kByte, library_.IsByte(id));
    EXPECT_EQ(model_->Kind(id) == TokenKind::kSpecial,
              library_.IsControl(id) || library_.IsUnknown(id));
  }
}

TEST_F(SentencePieceOracleTest, RandomTextsGiveTheLibrarysIds) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const std::string text = RandomText(random, *model_);
    std::vector<int32_t> ids;
    model_->Encode(text, &ids);
    ASSERT_EQ(ids, library_.EncodeAsIds(text)) << "text " << i << ": '" << text << "'";
  }
}

TEST_F(SentencePieceOracleTest, WithoutTheDummyPrefixToo) {
  // ModelProto{normalizer_spec{add_dummy_prefix: false}} joined to the model overrides its setting.
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(bytes_ + std::string("\x1a\x02\x18\x00", 4)).ok());
  std::string error;
  const auto model = SentencePieceModel::Parse(bytes_, /*add_dummy_prefix=*/false, &error);
  std::mt19937 random(2);
  for (int i = 0; i < 5000; ++i) {
    const std::string text = RandomText(random, *model);
    std::vector<int32_t> ids;
    model->Encode(text, &ids);
    ASSERT_EQ(ids, library.EncodeAsIds(text)) << "text " << i << ": '" << text << "'";
  }
}

}  // namespace
}  // namespace marcoro
