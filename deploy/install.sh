#!/usr/bin/env bash
# Installs what Marcoro needs on Debian 12 or Ubuntu 24.04, from the distribution's own packages. Quick when all is there.
#
#   install.sh                 to build and run
#   install.sh --runtime       to run built binaries only (container images)
#   install.sh --list-runtime  prints the packages that --runtime installs
#   install.sh --dev           also what the tests and checks use: clang, Python's grpcio and, below build/tools, promtool, haproxy
#                              and the schemas of Kubernetes; Go programs where Go is present
#   install.sh --cuda          to build and run, with a CUDA toolkit for 'cmake --preset cuda': the one that is there ($CUDA_HOME,
#                              nvcc on the PATH, /usr/local/cuda), else NVIDIA's packages where their repository is configured,
#                              else NVIDIA's wheels below build/tools/cuda, which needs no root
set -euo pipefail

build_packages=(
  build-essential ca-certificates ccache cmake git ninja-build pkg-config python3
  libabsl-dev libbenchmark-dev libboost-context-dev libcurl4-openssl-dev libgloo-dev libgmock-dev libgrpc++-dev libgtest-dev libprotobuf-dev
  libsentencepiece-dev libspdlog-dev libssl-dev libyaml-cpp-dev nlohmann-json3-dev prometheus-cpp-dev protobuf-compiler
  protobuf-compiler-grpc
)
dev_packages=(
  clang-19 clang-format-19 clang-tidy-19 libclang-rt-19-dev lld-19 llvm-19
  iproute2 procps python3-grpcio python3-protobuf python3-venv python3-yaml shellcheck
)
# Those whose libraries the binaries link; the libraries' own packages are named differently from system to system.
linked_packages=(
  libcurl4-openssl-dev libgloo-dev libgrpc++-dev libprotobuf-dev libspdlog-dev libssl-dev libyaml-cpp-dev prometheus-cpp-dev
)
# What the binaries need besides: the authorities that vouch for a hub.
needed_packages=(ca-certificates)
# Go programs that the tests call, pinned: name, package and version. They go to $GOBIN or $GOPATH/bin.
go_tools=(
  'ghz github.com/bojand/ghz/cmd/ghz@v0.121.0'
  'grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3'
  'buf github.com/bufbuild/buf/cmd/buf@v1.75.0'
)
kustomize='kustomize sigs.k8s.io/kustomize/kustomize/v5@v5.8.1'  # where kubectl is not
python_tools=(kubernetes-validate==1.37.0 dockerfile-parse==2.0.1)
# A compiler that knows C++20 and this compiler's libraries. What newer ones make does not run with the drivers of 13.0.
oldest_cuda=12.4
cuda_packages=(cuda-nvcc-13-0 cuda-cudart-dev-13-0 libnccl-dev)
cuda_wheels=(
  'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*'
  'nvidia-nccl-cu13==2.28.*'
)

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

note() { echo "install.sh: $*"; }

# Runs a command as root.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

missing_of() {
  local package
  for package in "$@"; do
    # Not grep -q: it would leave dpkg-query writing to nobody.
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || echo "$package"
  done
}

# The names of packages are those of these systems.
check_system() {
  local system=unknown
  # shellcheck source=/dev/null
  [ ! -r /etc/os-release ] || system=$(. /etc/os-release && echo "${ID:-unknown} ${VERSION_ID:-}")
  case "$system" in
    'debian 12' | 'ubuntu 24.04') command -v apt-get >/dev/null && return ;;
  esac
  fail "this is $system, neither Debian 12 nor Ubuntu 24.04. Install the equivalents of these packages: $*"
}

updated=no
update_lists() {
  [ "$updated" = no ] || return 0
  as_root apt-get update -qq
  updated=yes
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_of "$@")
  [ "${#missing[@]}" -gt 0 ] || return 0
  check_system "${missing[@]}"
  [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || fail "needs root or sudo to install: ${missing[*]}"
  note "installing ${#missing[@]} packages: ${missing[*]}"
  update_lists
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Asked of the packages that the build uses.
runtime_packages() {
  command -v apt-cache >/dev/null || check_system "${linked_packages[@]}"
  # A fresh container has no lists yet.
  apt-cache show "${linked_packages[0]}" >/dev/null 2>&1 || update_lists >&2
  apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "${linked_packages[@]}" |
    sed -n 's/^ *Depends: \(lib[^<]*\)$/\1/p' | grep -v -e '-dev$' -e '-cpp-push' | sort -u
  printf '%s\n' "${needed_packages[@]}"
}

# promtool and haproxy come in packages whose installation would start servers: unpacked below build/tools instead.
install_unpacked_tools() {
  local name work
  for name in promtool haproxy; do
    if [ -x "$tools/bin/$name" ] || command -v "$name" >/dev/null; then continue; fi
    note "unpacking $name below build/tools"
    mkdir -p "$tools/bin"
    work=$(mktemp -d)
    apt-cache show prometheus haproxy >/dev/null 2>&1 || update_lists
    "unpack_$name" "$work" || note "$name is not to be had: the tests that call it will be skipped and say so"
    rm -rf "$work"
  done
}

unpack_promtool() {
  (cd "$1" && apt-get download -qq prometheus 2>/dev/null && dpkg-deb -x prometheus_*.deb .) && cp "$1/usr/bin/promtool" "$tools/bin/"
}

# With the libraries that are not there, and a script that finds them.
unpack_haproxy() {
  local package
  mkdir "$1/partial"
  apt-get -qq -o Debug::NoLocking=1 -o Dir::Cache::archives="$1" install -y --no-install-recommends --download-only haproxy \
    >/dev/null 2>&1 || return 1
  for package in "$1"/*.deb; do dpkg-deb -x "$package" "$tools/haproxy" || return 1; done
  cat >"$tools/bin/haproxy" <<SCRIPT
#!/bin/sh
export LD_LIBRARY_PATH='$tools/haproxy/usr/lib/$(uname -m)-linux-gnu'
exec '$tools/haproxy/usr/sbin/haproxy' "\$@"
SCRIPT
  chmod +x "$tools/bin/haproxy"
}

install_python_tools() {
  local -r stamp="$tools/venv/installed"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "${python_tools[*]}" ]; then return; fi
  note "installing ${python_tools[*]} in build/tools/venv"
  rm -rf "$tools/venv"
  if /usr/bin/python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "${python_tools[@]}"; then
    echo "${python_tools[*]}" >"$stamp"
  else
    note 'they could not be installed: the tests that use them will be skipped and say so'
  fi
}

install_go_tools() {
  if ! command -v go >/dev/null; then
    note 'Go is not installed: the tests that call ghz, grpcurl or buf will be skipped and say so'
    return
  fi
  local bin tool name package
  bin=$(go env GOBIN)
  [ -n "$bin" ] || bin=$(go env GOPATH)/bin
  command -v kubectl >/dev/null || go_tools+=("$kustomize")
  for tool in "${go_tools[@]}"; do
    read -r name package <<<"$tool"
    if [ -x "$bin/$name" ] || command -v "$name" >/dev/null; then continue; fi
    note "installing $name"
    go install "$package" 2>/dev/null || note "go install $package failed: the tests that call $name will be skipped and say so"
  done
}

# Prints the nvcc of a toolkit that is there and new enough.
find_cuda() {
  local nvcc version
  for nvcc in "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$tools/cuda/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    if [ -z "$nvcc" ] || [ ! -x "$nvcc" ]; then continue; fi
    version=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
    if [ -n "$version" ] && printf '%s\n' "$oldest_cuda" "$version" | sort -V -C; then
      echo "$nvcc"
      return
    fi
    note "$nvcc is CUDA ${version:-of an unknown version}: at least $oldest_cuda is needed" >&2
  done
  return 1
}

may_install() { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }

install_cuda_packages() {
  may_install && command -v apt-cache >/dev/null && apt-cache show "${cuda_packages[@]}" >/dev/null 2>&1 || return 1
  install_packages "${cuda_packages[@]}"
}

# Whole toolkits look otherwise than wheels: CMake and nvcc want lib64, linkers want names without versions.
install_cuda_wheels() {
  local -r venv="$tools/cuda-wheels"
  local folder library
  note "installing CUDA below build/tools: ${cuda_wheels[*]}"
  rm -rf "$venv" "$tools/cuda"
  mkdir -p "$tools"
  /usr/bin/python3 -m venv "$venv" || fail "python3 -m venv does not work: install python3-venv, or a CUDA toolkit"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "${cuda_wheels[@]}" || fail 'the wheels could not be installed'
  folder=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
  [ -x "$folder/bin/nvcc" ] || fail "no nvcc in $folder"
  ln -sfn lib "$folder/lib64"
  ln -sfn ../../nccl/include/nccl.h "$folder/include/nccl.h"
  ln -sfn ../../nccl/lib/libnccl.so.2 "$folder/lib/libnccl.so.2"
  for library in "$folder"/lib/lib*.so.*; do
    ln -sfn "$(basename "$library")" "${library%%.so.*}.so"
  done
  ln -sfn "cuda-wheels/${folder#"$venv"/}" "$tools/cuda"
}

install_cuda() {
  local nvcc
  if ! nvcc=$(find_cuda); then
    install_cuda_packages || install_cuda_wheels
    nvcc=$(find_cuda) || fail 'the CUDA toolkit that was installed does not run'
  fi
  note "CUDA: $nvcc; build with: cmake --preset cuda && cmake --build --preset cuda"
}

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/tools
case "${1:-}" in
  '') install_packages "${build_packages[@]}" ;;
  --runtime)
    mapfile -t runtime < <(runtime_packages)
    [ "${#runtime[@]}" -gt 0 ] || fail 'found no runtime packages'
    install_packages "${runtime[@]}"
    ;;
  --list-runtime) runtime_packages ;;
  --dev)
    install_packages "${build_packages[@]}" "${dev_packages[@]}"
    install_unpacked_tools
    install_python_tools
    install_go_tools
    ;;
  --cuda)
    install_packages "${build_packages[@]}"
    install_cuda
    ;;
  *) fail 'usage: install.sh [--runtime | --list-runtime | --dev | --cuda]' ;;
esac
