#include "worker/weights/random_source.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "worker/weights/model_tensors.h"

namespace marcoro {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.architecture = "MistralForCausalLM";
  config.hidden_size = 512;
  config.layers = 2;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.ffn_size = 1024;
  config.vocabulary_size = 1000;
  return config;
}

std::vector<float> Read(RandomSource& source, const std::string& name, int64_t first,
                        int64_t count) {
  const TensorInfo* tensor = source.Find(name);
  std::vector<float> rows(static_cast<size_t>(count * tensor->columns()));
  EXPECT_TRUE(source.ReadRows(*tensor, first, count, rows.data()).ok());
  return rows;
}

TEST(RandomSource, HasEveryTensorOfTheModel) {
  RandomSource source(Config(), 1);
  // Embedding, final norm, lm_head, and nine for each layer.
  EXPECT_EQ(source.Tensors().size(), 3u + 2 * 9);
  uint64_t elements = 0;
  for (const TensorInfo* tensor : source.Tensors()) {
    elements += static_cast<uint64_t>(tensor->rows() * tensor->columns());
    EXPECT_EQ(tensor->dtype, "BF16");
  }
  EXPECT_EQ(elements, Config().parameter_count());
  EXPECT_EQ(source.Find("model.layers.2.mlp.up_proj.weight"), nullptr);
}

TEST(RandomSource, HasNoHeadWhereItIsTied) {
  ModelConfig config = Config();
  config.tied_embeddings = true;
  EXPECT_EQ(RandomSource(config, 1).Find("lm_head.weight"), nullptr);
}

TEST(RandomSource, RowsDoNotDependOnHowTheyAreRead) {
  RandomSource source(Config(), 1);
  RandomSource again(Config(), 1);
  const std::string name = "model.layers.1.mlp.down_proj.weight";
  const std::vector<float> whole = Read(source, name, 0, 512);
  const std::vector<float> part = Read(again, name, 200, 3);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 200 * 1024));
}

TEST(RandomSource, SeedsTensorsAndRowsDiffer) {
  RandomSource source(Config(), 1);
  RandomSource other(Config(), 2);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const std::vector<float> row = Read(source, name, 0, 1);
  const auto equal_numbers = [&row](const std::vector<float>& numbers) {
    int equal = 0;
    for (size_t i = 0; i < row.size(); ++i) equal += row[i] == numbers[i] ? 1 : 0;
    return equal;
  };
  // Rounded to BF16 some of 512 pairs agree by chance.
  EXPECT_LT(equal_numbers(Read(other, name, 0, 1)), 20);
  EXPECT_LT(equal_numbers(Read(source, name, 1, 1)), 20);
  EXPECT_LT(equal_numbers(Read(source, "model.layers.1.mlp.up_proj.weight", 0, 1)), 20);
  EXPECT_LT(equal_numbers(Read(source, "model.layers.0.mlp.gate_proj.weight", 0, 1)), 20);
}

TEST(RandomSource, NumbersAreUniformWithTheDeviationOfOneOverTheRoot) {
  RandomSource source(Config(), 3);
  const std::vector<float> numbers = Read(source, "model.layers.0.mlp.up_proj.weight", 0, 1024);
  const double limit = std::sqrt(3.0 / 512);
  double sum = 0;
  double squares = 0;
  int upper_quarter = 0;
  for (const float number : numbers) {
    ASSERT_LE(std::fabs(number), limit);
    sum += number;
    squares += double{number} * number;
    if (number > limit / 2) ++upper_quarter;
  }
  const double count = static_cast<double>(numbers.size());  // 524,288
  EXPECT_NEAR(sum / count, 0, 0.001 * limit * 5);
  // Cutting to BF16 makes magnitudes smaller by up to 1/128.
  EXPECT_NEAR(std::sqrt(squares / count) * std::sqrt(512), 1, 0.01);
  EXPECT_NEAR(upper_quarter / count, 0.25, 0.01);
}

TEST(RandomSource, NumbersAreBF16) {
  RandomSource source(Config(), 3);
  for (const float number : Read(source, "lm_head.weight", 0, 10)) {
    ASSERT_EQ(ToFloat(ToBFloat16(number)), number);
  }
}

TEST(RandomSource, NormsAreOne) {
  RandomSource source(Config(), 3);
  EXPECT_EQ(Read(source, "model.norm.weight", 0, 1), std::vector<float>(512, 1.0f));
}

}  // namespace
}  // namespace marcoro
