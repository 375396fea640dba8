#!/usr/bin/env bash
# The tests of the native CPU ops under sanitizers, on a build of its own:
#   tests/sanitize.sh [address|thread] [pytest arguments]
# `address` finds accesses out of bounds and undefined behaviour, `thread` finds data races.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-address}
shift || true
python=${PYTHON:-.venv/bin/python}
cxx=${CXX:-g++}
out=$(realpath -m "${SSDKERN_SANITIZE_DIR:-build/sanitize}/$kind")
torch=$($python -c 'import torch; print(torch.__path__[0])')
sources=(csrc/cpu/*.cpp)

case $kind in
  address)
    checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    runtime=libasan.so
    ;;
  thread)
    checks="-fsanitize=thread"
    runtime=libtsan.so
    sources+=(tests/sanitize_threads.cpp)
    ;;
  *)
    echo "want address or thread, got $kind" >&2
    exit 2
    ;;
esac
# line numbers only: tracking variables through the vector code takes minutes a file
export compile="$cxx -std=c++20 -O1 -g1 -fPIC -ffp-contract=off -fvisibility=hidden \
  -fno-omit-frame-pointer $checks -DTORCH_TARGET_VERSION=0x020b000000000000 \
  -isystem $torch/include"

mkdir -p "$out"
newest=$(ls -t csrc/*.h csrc/cpu/*.h "$0" | head -1)
objects=()
stale=()
for source in "${sources[@]}"; do
  object=$out/$(basename "$source" .cpp).o
  objects+=("$object")
  [[ $object -nt $source && $object -nt $newest ]] || stale+=("$source" "$object")
done
if ((${#stale[@]})); then
  printf '%s\n' "${stale[@]}" |
    xargs -n 2 -P "${SSDKERN_BUILD_JOBS:-2}" sh -c '$compile -c "$0" -o "$1"'
fi
$compile -shared -Wl,-Bsymbolic "${objects[@]}" -o "$out/libssdkern_cpu.so" \
  "-L$torch/lib" -Wl,--no-as-needed -ltorch -ltorch_cpu

# Python is not instrumented: the runtime comes first, then libstdc++, whose exceptions it watches.
export LD_PRELOAD
LD_PRELOAD=$($cxx -print-file-name=$runtime):$($cxx -print-file-name=libstdc++.so.6)
export SSDKERN_LIBRARY_CPU=$out/libssdkern_cpu.so OMP_NUM_THREADS=1
# Python itself leaks at exit; torch is not instrumented, so that its accesses mean nothing here
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1
$python -c 'import ssdkern; assert not (why := ssdkern.why_not("nms", "native", "cpu")), why'

tests=(tests/test_native*.py tests/test_fuzz*.py)
for source in csrc/cpu/*.cpp; do
  tests+=("tests/test_$(basename "$source" .cpp).py")
done
# what a compiler makes of the graph, and what the build itself holds, is tested elsewhere
names="(native or fuzz) and not compiles and not exports and not library and not instructions_stay"
$python -m pytest -q -p no:cacheprovider --capture=sys "${tests[@]}" -k "$names" "$@"
