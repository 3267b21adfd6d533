// Who is ordered after whom: vector clocks. Every thread counts its own moments; at barriers it
// learns the moments of others. What happened at a moment that a thread has not learned of is not
// ordered before that thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace marcoro::simt {

// `who` is a thread of the cluster, the asynchronous copies of a thread, or an mbarrier that ends
// bulk copies; -1 is nobody.
struct Moment {
  int32_t who = -1;
  uint32_t when = 0;

  friend bool operator==(const Moment&, const Moment&) = default;
};

// Of each who, the last moment known.
using Times = std::vector<uint32_t>;

class Clock {
 public:
  Clock() = default;
  Clock(int thread, int copies)
      : thread_(thread), copies_(copies), known_(std::make_shared<Times>()) {}

  Moment now() const { return {thread_, now_}; }
  bool IsAfter(const Moment& moment) const;

  // What follows is another moment.
  void Tick() { ++now_; }
  // Learns what is known elsewhere. `Adopt`: that includes all that was known here.
  void Learn(const std::shared_ptr<const Times>& known);
  void Adopt(std::shared_ptr<const Times> known);
  // Learns a single moment. Threads that knew the same share what they know then: `lesson` keeps
  // the last result.
  struct Lesson {
    Moment moment;
    std::shared_ptr<const Times> before;
    std::shared_ptr<const Times> after;
  };
  void Learn(const Moment& moment, Lesson& lesson);

  // The thread's asynchronous copies, numbered from 1: the next one's moment, and that all up to a
  // number have ended.
  Moment copy(uint32_t number) const { return {copies_, number}; }
  void EndCopies(uint32_t number);
  uint32_t ended_copies() const { return ended_copies_; }

 private:
  friend class Release;

  int32_t thread_ = -1;
  int32_t copies_ = -1;
  uint32_t now_ = 1;
  uint32_t ended_copies_ = 0;
  std::shared_ptr<const Times> known_;
};

// What those who arrive somewhere know together.
class Release {
 public:
  void Add(const Clock& clock);
  void Add(const Moment& moment);
  // The result so far. Start over with Clear.
  std::shared_ptr<const Times> Known() const { return std::make_shared<Times>(times_); }
  void Clear();

 private:
  Times times_;
  std::shared_ptr<const Times> joined_;  // the last one: the threads of a block mostly share theirs
};

}  // namespace marcoro::simt
