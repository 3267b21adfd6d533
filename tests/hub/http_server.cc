#include "tests/hub/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

constexpr size_t kMaxRequestBytes = 64 << 10;

// The head of a request; empty if the connection ends before it is whole.
std::string ReadHead(int connection) {
  std::string head;
  char buffer[4096];
  while (!absl::StrContains(head, "\r\n\r\n") && head.size() < kMaxRequestBytes) {
    const ssize_t count = recv(connection, buffer, sizeof(buffer), 0);
    if (count <= 0) return "";
    head.append(buffer, static_cast<size_t>(count));
  }
  return head;
}

HttpCall ParseCall(const std::string& head) {
  HttpCall call;
  const std::vector<std::string> lines = absl::StrSplit(head, "\r\n");
  const std::vector<std::string> words = absl::StrSplit(lines[0], ' ');
  call.method = words[0];
  if (words.size() > 1) call.target = words[1];
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<std::string, std::string> header =
        absl::StrSplit(lines[i], absl::MaxSplits(':', 1));
    call.headers[absl::AsciiStrToLower(header.first)] =
        std::string(absl::StripAsciiWhitespace(header.second));
  }
  return call;
}

void SendAll(int connection, const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t count = send(connection, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) return;  // the client has gone, as it may
    sent += static_cast<size_t>(count);
  }
}

}  // namespace

std::string HttpCall::Header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

void HttpAnswer::SetHeader(const std::string& name, const std::string& value) {
  std::erase_if(headers, [&](const auto& header) { return header.first == name; });
  headers.emplace_back(name, value);
}

HttpServer::HttpServer(Handler handler) : handler_(std::move(handler)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const bool listens = bind(listener_, generic, size) == 0 && listen(listener_, 64) == 0 &&
                       getsockname(listener_, generic, &size) == 0;
  EXPECT_TRUE(listens);
  port_ = ntohs(address.sin_port);
  accepting_ = std::thread([this] { Accept(); });
}

HttpServer::~HttpServer() {
  stop_.Notify();
  shutdown(listener_, SHUT_RDWR);  // wakes accept
  accepting_.join();
  close(listener_);
  std::vector<std::thread> serving;
  {
    const absl::MutexLock lock(&mutex_);
    for (const int connection : connections_) shutdown(connection, SHUT_RDWR);
    serving.swap(serving_);
  }
  for (std::thread& thread : serving) thread.join();
}

std::string HttpServer::url() const { return absl::StrCat("http://127.0.0.1:", port_); }

std::vector<HttpCall> HttpServer::calls() const {
  const absl::MutexLock lock(&mutex_);
  return calls_;
}

void HttpServer::Accept() {
  while (true) {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) return;
    const absl::MutexLock lock(&mutex_);
    connections_.push_back(connection);
    serving_.emplace_back([this, connection] { Serve(connection); });
  }
}

// One request for each connection.
void HttpServer::Serve(int connection) {
  const std::string head = ReadHead(connection);
  if (!head.empty()) {
    const HttpCall call = ParseCall(head);
    {
      const absl::MutexLock lock(&mutex_);
      calls_.push_back(call);
    }
    const HttpAnswer answer = handler_(call);
    std::string text = absl::StrCat("HTTP/1.1 ", answer.status, " Status\r\nConnection: close\r\n");
    bool has_length = false;
    for (const auto& [name, value] : answer.headers) {
      absl::StrAppend(&text, name, ": ", value, "\r\n");
      has_length = has_length || absl::EqualsIgnoreCase(name, "content-length");
    }
    if (answer.say_length && !has_length) {
      absl::StrAppend(&text, "Content-Length: ", answer.body.size(), "\r\n");
    }
    absl::StrAppend(&text, "\r\n");
    if (call.method != "HEAD") {
      text += answer.body.substr(0, answer.cut_after.value_or(answer.body.size()));
    }
    SendAll(connection, text);
    if (answer.stall) stop_.WaitForNotification();
  }
  const absl::MutexLock lock(&mutex_);
  std::erase(connections_, connection);
  close(connection);
}

}  // namespace marcoro
