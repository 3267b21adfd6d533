// Lines from standard input, while Ctrl-C is an event and not the end.
#pragma once

#include <string>

namespace marcoro {

class LineReader {
 public:
  // Blocks SIGINT for this thread and those it starts later: construct it before any other.
  LineReader();
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  enum class Event { kLine, kInterrupt, kEnd, kTooLong };
  // Waits for a line (without its line break; a last one needs none), Ctrl-C, or the end of the
  // input. A line longer than kMaxInputBytes is skipped: kTooLong.
  Event Next(std::string* line);

  // Whether Ctrl-C was pressed since the last event; takes it.
  bool TakeInterrupt();

 private:
  // Whether the buffer had a whole line.
  bool TakeLine(std::string* line);

  int signals_;  // a signalfd
  std::string buffer_;
  bool ended_ = false;
  bool skipping_ = false;
};

}  // namespace marcoro
