#!/usr/bin/env bash
# Everything that needs a GPU, on one that has just been lent: bench/gpu_check.sh [folder for logs]
# Offline and in under 9 minutes: builds in place with the torch that is there (>= 2.11), runs the
# tests of the ops on the GPU, the sanitizers on little data, then the benchmarks, and writes
# bench/results/<device>.json. What failed, and the table, come last.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-runs/gpu_check}}
python=${PYTHON:-python3}
mkdir -p "$out"
summary=()

# step NAME SECONDS COMMAND...: at most that long, and never past the time that is left
step() {
  local name=$1 limit=$2 begin=$SECONDS rc=0
  shift 2
  local left=$((520 - SECONDS))
  ((limit < left)) || limit=$left
  if ((limit > 5)); then
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || rc=$?
  else
    rc=skipped
  fi
  summary+=("$(printf '%-16s %-8s %4d s' "$name" "$([[ $rc == 0 ]] && echo ok || echo "rc $rc")" \
    $((SECONDS - begin)))")
  echo "${summary[-1]}"
  [[ $rc == 0 ]] || tail -25 "$out/$name.log"
  return 0
}

workers=$($python -c 'import xdist; print("-n 8")' 2>/dev/null || true)
export OMP_NUM_THREADS=2 SSDKERN_CUDA=1 SSDKERN_REQUIRE_NATIVE=1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$python -c 'import torch, sys; print(sys.version.split()[0], torch.__version__)'

export SSDKERN_BUILD_JOBS=$(nproc)
step build 200 $python -m pip install --no-index --no-deps --no-build-isolation --editable .
step native 100 $python -m pytest -q -p no:cacheprovider $workers -m ops -k "cuda-native"
step paths 60 $python -m pytest -q -p no:cacheprovider $workers tests/test_cuda_paths.py \
  -k "cuda-native"
step graphs 60 $python -m pytest -q -p no:cacheprovider tests/test_cuda_graph.py -k native
step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
  --kernel-regex kns=ssdkern --error-exitcode 1 $python -m bench.gpu_bench --small
step racecheck 60 compute-sanitizer --tool racecheck --kernel-regex kns=ssdkern \
  --error-exitcode 1 $python -m bench.gpu_bench --small
step bench 200 $python -m bench.gpu_bench --seconds 160
step triton 100 $python -m pytest -q -p no:cacheprovider $workers -m ops -k "cuda-triton"
step graphs-triton 60 $python -m pytest -q -p no:cacheprovider tests/test_cuda_graph.py -k triton

printf '%s\n' "${summary[@]}"
for name in native paths graphs triton graphs-triton; do
  [[ -f $out/$name.log ]] && tail -1 "$out/$name.log"
done
cp bench/results/*.json "$out" 2>/dev/null || true
sed -n '/^op, microseconds/,$p' "$out/bench.log" | grep . || cat "$out/bench.log"
