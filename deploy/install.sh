#!/usr/bin/env bash
# Installs what Marcoro needs on Debian 12 or Ubuntu 24.04, from the distribution's own packages. Quick when all is there.
#
#   install.sh             to build and run
#   install.sh --runtime   to run built binaries only (container images)
#   install.sh --dev       also what the tests and checks use: clang, promtool, Python's grpcio, Go tools where Go is present
set -euo pipefail

build_packages=(
  build-essential ca-certificates ccache cmake git ninja-build pkg-config
  libabsl-dev libbenchmark-dev libcurl4-openssl-dev libgloo-dev libgmock-dev libgrpc++-dev libgtest-dev libprotobuf-dev
  libsentencepiece-dev libspdlog-dev libssl-dev nlohmann-json3-dev prometheus-cpp-dev protobuf-compiler
  protobuf-compiler-grpc
)
dev_packages=(
  clang-19 clang-format-19 clang-tidy-19 libclang-rt-19-dev lld-19
  iproute2 procps prometheus python3-grpcio python3-protobuf python3-venv shellcheck
)
# Go programs that the tests call, pinned; they go to $GOBIN, $GOPATH/bin or ~/go/bin.
go_tools=(
  github.com/bojand/ghz/cmd/ghz@v0.121.0
  github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
  github.com/bufbuild/buf/cmd/buf@v1.75.0
)

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

# The runtime libraries' names differ between the distributions; asked of the package that the build used.
runtime_packages() {
  local -r dev=(libgrpc++-dev libprotobuf-dev libsentencepiece-dev libspdlog-dev prometheus-cpp-dev libssl-dev libgloo-dev)
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "${dev[@]}" |
    sed -n 's/^ *Depends: \(lib[^<]*\)$/\1/p' | grep -v -e '-dev$' | sort -u
}

missing_of() {
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_of "$@")
  [ "${#missing[@]}" -eq 0 ] && return
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "needs root (or sudo) to install: ${missing[*]}"
    root=(sudo)
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  "${root[@]}" apt-get update -qq
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_go_tools() {
  if ! command -v go >/dev/null; then
    echo "Go is not installed: the tests that call ghz, grpcurl and buf will be skipped and say so"
    return
  fi
  local bin tool name
  bin=$(go env GOBIN)
  [ -n "$bin" ] || bin=$(go env GOPATH)/bin
  for tool in "${go_tools[@]}"; do
    name=$(basename "${tool%@*}")
    [ -x "$bin/$name" ] && continue
    echo "installing $name"
    GOFLAGS=-mod=mod go install "$tool" >/dev/null 2>&1 || fail "go install $tool failed"
  done
}

command -v apt-get >/dev/null || fail "this is neither Debian nor Ubuntu; install the equivalents of: ${build_packages[*]}"
case "${1:-}" in
  '') install_packages "${build_packages[@]}" ;;
  --runtime)
    mapfile -t runtime < <(runtime_packages)
    install_packages "${runtime[@]}"
    ;;
  --dev)
    install_packages "${build_packages[@]}" "${dev_packages[@]}"
    install_go_tools
    ;;
  *) fail "usage: install.sh [--runtime | --dev]" ;;
esac
