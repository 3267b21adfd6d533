#include "tests/kernels/simt/clock.h"

#include <algorithm>
#include <utility>

namespace marcoro::simt {
namespace {

void Raise(Times& times, const Moment& moment) {
  const auto who = static_cast<size_t>(moment.who);
  if (times.size() <= who) times.resize(who + 1);
  times[who] = std::max(times[who], moment.when);
}

void Join(Times& times, const Times& other) {
  if (times.size() < other.size()) times.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) times[i] = std::max(times[i], other[i]);
}

bool Includes(const Times& times, const Times& other) {
  if (times.size() < other.size()) return false;
  for (size_t i = 0; i < other.size(); ++i) {
    if (times[i] < other[i]) return false;
  }
  return true;
}

}  // namespace

bool Clock::IsAfter(const Moment& moment) const {
  if (moment.who < 0) return true;
  if (moment.who == thread_) return moment.when <= now_;
  if (moment.who == copies_) return moment.when <= ended_copies_;
  const auto who = static_cast<size_t>(moment.who);
  return who < known_->size() && (*known_)[who] >= moment.when;
}

void Clock::Learn(const std::shared_ptr<const Times>& known) {
  if (known == known_) return Tick();
  if (Includes(*known, *known_)) return Adopt(known);
  auto joined = std::make_shared<Times>(*known_);
  Join(*joined, *known);
  Adopt(std::move(joined));
}

void Clock::Adopt(std::shared_ptr<const Times> known) {
  known_ = std::move(known);
  Tick();
}

void Clock::Learn(const Moment& moment, Lesson& lesson) {
  if (lesson.before != known_ || lesson.moment != moment) {
    auto after = std::make_shared<Times>(*known_);
    Raise(*after, moment);
    lesson = {moment, known_, std::move(after)};
  }
  Adopt(lesson.after);
}

void Clock::EndCopies(uint32_t number) {
  ended_copies_ = number;
  Tick();
}

void Release::Add(const Clock& clock) {
  if (clock.known_ != joined_) {
    Join(times_, *clock.known_);
    joined_ = clock.known_;
  }
  Raise(times_, clock.now());
  if (clock.ended_copies_ > 0) Raise(times_, clock.copy(clock.ended_copies_));
}

void Release::Add(const Moment& moment) { Raise(times_, moment); }

void Release::Clear() {
  times_.clear();
  joined_ = nullptr;
}

}  // namespace marcoro::simt
