// A small HTTP server on the loopback interface that answers as a test tells it to, and badly if it
// is told to.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace marcoro {

struct HttpCall {
  std::string method;
  std::string target;                          // path and query
  std::map<std::string, std::string> headers;  // by name in lower case

  // Empty if there is none.
  std::string Header(const std::string& name) const;
};

struct HttpAnswer {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = "";
  bool say_length = true;                          // as Content-Length, if headers do not have one
  std::optional<size_t> cut_after = std::nullopt;  // bytes of the body; then the connection breaks
  bool stall = false;  // instead of breaking, the connection stays silent

  void SetHeader(const std::string& name, const std::string& value);
};

class HttpServer {
 public:
  using Handler = std::function<HttpAnswer(const HttpCall& call)>;

  // `handler` is called from several threads.
  explicit HttpServer(Handler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // "http://127.0.0.1:PORT".
  std::string url() const;
  int port() const { return port_; }
  std::vector<HttpCall> calls() const;

 private:
  void Accept();
  void Serve(int connection);

  const Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  absl::Notification stop_;
  std::thread accepting_;
  mutable absl::Mutex mutex_;
  std::vector<HttpCall> calls_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> connections_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> serving_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
