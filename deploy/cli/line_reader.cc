#include "deploy/cli/line_reader.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "deploy/cli/text_input.h"

namespace marcoro {

LineReader::LineReader() {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, nullptr);
  signals_ = signalfd(-1, &interrupt, SFD_NONBLOCK | SFD_CLOEXEC);
}

LineReader::~LineReader() {
  if (signals_ >= 0) close(signals_);
}

bool LineReader::TakeInterrupt() {
  signalfd_siginfo info;
  bool taken = false;
  while (read(signals_, &info, sizeof(info)) == sizeof(info)) taken = true;
  return taken;
}

bool LineReader::TakeLine(std::string* line) {
  size_t end = buffer_.find('\n');
  if (end == std::string::npos && (!ended_ || buffer_.empty())) return false;
  if (end == std::string::npos) end = buffer_.size();
  *line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return true;
}

LineReader::Event LineReader::Next(std::string* line) {
  while (true) {
    if (TakeLine(line)) {
      if (!skipping_) return Event::kLine;
      skipping_ = false;
      return Event::kTooLong;
    }
    if (ended_) return Event::kEnd;
    if (buffer_.size() > kMaxInputBytes) {
      buffer_.clear();
      skipping_ = true;
    }
    pollfd files[] = {{STDIN_FILENO, POLLIN, 0}, {signals_, POLLIN, 0}};
    if (poll(files, 2, -1) < 0 && errno != EINTR) return Event::kEnd;
    if (TakeInterrupt()) return Event::kInterrupt;
    if (files[0].revents == 0) continue;
    char bytes[1 << 16];
    const ssize_t count = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      ended_ = true;
    } else {
      buffer_.append(bytes, static_cast<size_t>(count));
    }
  }
}

}  // namespace marcoro
