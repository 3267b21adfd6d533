#include "coordinator/text/stop_matcher.h"

#include <time.h>

#include <random>

#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

using Stops = std::vector<std::string>;

struct Outcome {
  std::string released;
  size_t held = 0;
  int stopped_at = -1;
  bool operator==(const Outcome&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Outcome& outcome) {
  return out << '"' << outcome.released << "\" held " << outcome.held << " stop "
             << outcome.stopped_at;
}

// The definition, by trying everything. counts_from: stops that end at or before this byte do not
// count.
Outcome ByDefinition(const Stops& stops, bool include_stop, const std::string& text,
                     size_t counts_from = 0) {
  for (size_t end = counts_from + 1; end <= text.size(); ++end) {
    int longest = -1;
    for (size_t i = 0; i < stops.size(); ++i) {
      const size_t size = stops[i].size();
      if (size > end || text.compare(end - size, size, stops[i]) != 0) continue;
      if (longest < 0 || size > stops[longest].size()) longest = static_cast<int>(i);
    }
    if (longest < 0) continue;
    const size_t cut = include_stop ? end : end - stops[longest].size();
    return {text.substr(0, cut), 0, longest};
  }
  size_t held = 0;
  for (const std::string& stop : stops) {
    for (size_t size = 1; size < stop.size() && size <= text.size(); ++size) {
      if (text.compare(text.size() - size, size, stop, 0, size) == 0) held = std::max(held, size);
    }
  }
  return {text.substr(0, text.size() - held), held, -1};
}

TEST(StopMatcher, ReleasesEverythingWithoutStops) {
  StopMatcher matcher({}, false);
  std::string released;
  EXPECT_FALSE(matcher.Push("anything", &released));
  EXPECT_EQ(released, "anything");
}

TEST(StopMatcher, FindsAStopAcrossPiecesAndReleasesNothingOfIt) {
  StopMatcher matcher(Stops{"<|im_end|>"}, false);
  std::string released;
  EXPECT_FALSE(matcher.Push("hi<", &released));
  EXPECT_EQ(released, "hi");
  EXPECT_FALSE(matcher.Push("|im", &released));
  EXPECT_EQ(matcher.held_bytes(), 4u);
  EXPECT_TRUE(matcher.Push("_end|>\nand more", &released));
  EXPECT_EQ(released, "hi");
  EXPECT_EQ(matcher.stopped_at(), 0);
  EXPECT_EQ(matcher.held_bytes(), 0u);
}

TEST(StopMatcher, ReleasesWhatDidNotBecomeAStop) {
  StopMatcher matcher(Stops{"<|im_end|>"}, false);
  std::string released;
  matcher.Push("a <|im_", &released);
  EXPECT_EQ(released, "a ");
  matcher.Push("start", &released);
  EXPECT_EQ(released, "a <|im_start");
  matcher.Push("<", &released);
  EXPECT_EQ(released, "a <|im_start");
  matcher.Finish(&released);
  EXPECT_EQ(released, "a <|im_start<");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, IncludesTheStopWhenAskedTo) {
  StopMatcher matcher(Stops{"END"}, true);
  std::string released;
  EXPECT_TRUE(matcher.Push("the END.", &released));
  EXPECT_EQ(released, "the END");
}

TEST(StopMatcher, TheMatchThatEndsFirstWins) {
  StopMatcher matcher(Stops{"abcd", "bc"}, false);
  std::string released;
  EXPECT_TRUE(matcher.Push("abcd", &released));
  EXPECT_EQ(released, "a");
  EXPECT_EQ(matcher.stopped_at(), 1);
}

TEST(StopMatcher, OfMatchesThatEndTogetherTheLongestWins) {
  StopMatcher matcher(Stops{"b", "ab"}, false);
  std::string released;
  EXPECT_TRUE(matcher.Push("xab", &released));
  EXPECT_EQ(released, "x");
  EXPECT_EQ(matcher.stopped_at(), 1);
}

TEST(StopMatcher, StopsThatDoNotCountYetAreLetPass) {
  StopMatcher matcher(Stops{"ab"}, false);
  std::string released;
  EXPECT_FALSE(matcher.Push("xaba", &released, /*may_stop=*/false));
  EXPECT_EQ(released, "xab");  // the last a may yet begin one
  EXPECT_TRUE(matcher.Push("b", &released));
  EXPECT_EQ(released, "xab");
}

TEST(StopMatcher, RefusesStopsOutOfBounds) {
  EXPECT_TRUE(StopMatcher::CheckStops(Stops(16, "x")).ok());
  EXPECT_TRUE(StopMatcher::CheckStops(Stops{std::string(1024, 'x')}).ok());
  for (const Stops& bad : {Stops(17, "x"), Stops{"x", ""}, Stops{std::string(1025, 'x')},
                           Stops{std::string(1 << 20, 'x')}, Stops{"\xff"}}) {
    EXPECT_EQ(StopMatcher::CheckStops(bad).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_NE(StopMatcher::CheckStops(Stops{"x", ""}).message().find("stop[1]"),
            absl::string_view::npos);
}

std::string RandomText(std::mt19937* random, size_t size, int letters) {
  std::string text;
  while (text.size() < size) text.push_back(static_cast<char>('a' + (*random)() % letters));
  return text;
}

TEST(StopMatcher, AgreesWithTheDefinitionAtEveryStepForRandomTexts) {
  std::mt19937 random(99);
  for (int round = 0; round < 20000; ++round) {
    Stops stops(1 + random() % 4);
    const int letters = 1 + static_cast<int>(random() % 3);
    for (std::string& stop : stops) stop = RandomText(&random, 1 + random() % 7, letters);
    const std::string text = RandomText(&random, random() % 40, letters + random() % 2);
    const bool include_stop = round % 2 == 0;
    const size_t counts_from = round % 3 == 0 ? random() % (text.size() + 1) : 0;
    SCOPED_TRACE(testing::PrintToString(stops) + " in " + text);

    StopMatcher matcher(stops, include_stop);
    Outcome outcome;
    for (size_t at = 0; at < text.size() && !matcher.stopped();) {
      size_t size = std::min<size_t>(1 + random() % 5, text.size() - at);
      if (at < counts_from) size = std::min(size, counts_from - at);
      matcher.Push(text.substr(at, size), &outcome.released, /*may_stop=*/at >= counts_from);
      at += size;
      outcome.held = matcher.held_bytes();
      outcome.stopped_at = matcher.stopped_at();
      // A piece is taken whole: the definition sees the text up to its end.
      ASSERT_EQ(outcome, ByDefinition(stops, include_stop, text.substr(0, at), counts_from));
    }
    if (matcher.stopped()) continue;
    matcher.Finish(&outcome.released);
    ASSERT_EQ(outcome.released, text);
  }
}

TEST(StopMatcher, NeverCutsACharacter) {
  const Stops stops = {"é日", "日本", "😀!"};
  const std::string characters[] = {"é", "日", "本", "😀", "!", "\u00ea", "\u65e6"};
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    StopMatcher matcher(stops, false);
    std::string released;
    for (int i = 0; i < 12 && !matcher.stopped(); ++i) {
      matcher.Push(characters[random() % std::size(characters)], &released);
      ASSERT_TRUE(IsValidUtf8(released));
    }
  }
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

// 16 stops of 1 KB that almost match for ever: KMP needs at most two comparisons a byte for each, a
// naive search a thousand.
TEST(StopMatcher, HardStopsTakeLinearTime) {
  Stops stops(16, std::string(1024, 'a'));
  for (size_t i = 0; i < stops.size(); ++i) stops[i].back() = static_cast<char>('b' + i);
  StopMatcher matcher(stops, false);
  std::string released;
  const std::string piece = std::string(1000, 'a') + "z";
  const double begin = ThreadSeconds();
  for (int i = 0; i < 1000; ++i) ASSERT_FALSE(matcher.Push(piece, &released));
  EXPECT_EQ(released.size(), 1000 * piece.size());
  EXPECT_LT(ThreadSeconds() - begin, 5.0);  // 32 million steps; naively 16 billion
}

}  // namespace
}  // namespace marcoro
