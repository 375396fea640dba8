#!/usr/bin/env bash
# What needs a GPU, on one that has just been lent: bench/gpu_check.sh [kernels|models] [folder]
# Offline and in under 9 minutes each, with the torch (>= 2.11) that is there: builds in place, then
#   kernels: the ops' tests on the GPU, CUDA C++ before Triton; the sanitizers on little data; the
#            times of every op, in bench/results/<device>.json
#   models:  the tests of CUDA graphs and of whole models; SSD300 beside torchvision's; the trainer
#            by its command line, in bench/results/<device>-models.json
# The folder (runs/gpu_check) takes one log and that file. What failed, and the table, come last.
set -uo pipefail
cd "$(dirname "$0")/.."
mode=${1:-kernels}
if [[ $mode != kernels && $mode != models ]]; then
  echo "want kernels or models, got $mode" >&2
  exit 2
fi
out=${2:-${OUT:-runs/gpu_check}}
log=$out/$mode.log
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" && : >"$log"
end=${GPU_CHECK_SECONDS:-505}

# step NAME SECONDS COMMAND...: at most that long, and never past the end
step() {
  local name=$1 limit=$2 begin=$SECONDS rc=0 left=$((end - SECONDS)) verdict=ok
  shift 2
  ((limit < left)) || limit=$left
  if ((limit > 5)); then
    timeout -k 10 "$limit" "$@" >"$work/$name.log" 2>&1 || rc=$?
    ((rc == 0)) || verdict="rc $rc"
  else
    verdict=skipped
    echo "no time left" >"$work/$name.log"
  fi
  (echo "== $name: $*" && cat "$work/$name.log" && echo) >>"$log"
  printf '%-10s %-8s %4d s  %s\n' "$name" "$verdict" $((SECONDS - begin)) \
    "$(grep -E '(passed|failed|error).* in ' "$work/$name.log" | tail -1)" | tee -a "$work/summary"
  [[ $verdict == ok ]] || tail -12 "$work/$name.log"
  [[ $verdict == ok ]]
}

finish() {
  find bench/results -newer "$work/begin" -name '*.json' -exec cp {} "$out" \;
  echo && cat "$work/summary"
  [[ -f $work/table ]] && cat "$work/table"
  ! grep -v ^more "$work/summary" | grep -qE '^\w+ +(rc|skipped)'
  exit
}

touch "$work/begin"
unset TORCH_CUDA_ARCH_LIST # the GPU at hand
export SSDKERN_CUDA=1 SSDKERN_REQUIRE_NATIVE=1 PYTHONUNBUFFERED=1
SSDKERN_BUILD_JOBS=$(nproc)
export SSDKERN_BUILD_JOBS
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -c 'import torch, sys; print(sys.version.split()[0], torch.__version__)'
step build 95 "$python" -m pip install --no-index --no-deps --no-build-isolation --editable . ||
  finish

pytest=("$python" -m pytest -p no:cacheprovider)
tests=(env OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=4 "${pytest[@]}" -v)
"$python" -c 'import xdist' 2>/dev/null && tests+=(-n 8)
ops=()
for file in csrc/cuda/*.cu; do
  file=tests/test_$(basename "$file" .cu).py
  [[ -f $file ]] && ops+=("$file")
done

check_kernels() {
  local paths=(tests/test_{cuda_paths,cuda_graph,real_sizes}.py) tool filter
  step native 110 "${tests[@]}" "${ops[@]}" "${paths[@]}" tests/test_fuzz*.py \
    -k "not cpu and not triton and not cuda-torch"
  step triton 120 "${tests[@]}" "${ops[@]}" "${paths[@]}" -k "triton and not cpu"
  if command -v compute-sanitizer >/dev/null; then
    filter=$(compute-sanitizer --help | grep -oE -e '--kernel-(name|regex)\b' | sort)
    filter=${filter:+${filter%%$'\n'*} kns=ssdkern}
    # torch itself handles the errors of calls that it provokes
    for tool in "memcheck --report-api-errors no" racecheck synccheck; do
      step "${tool%% *}" 80 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool \
        $filter --error-exitcode 1 "$python" -m bench.gpu_bench --small &
    done
    wait
  else
    echo "there is no compute-sanitizer" | tee -a "$work/summary"
  fi
  step bench 400 "$python" -m bench.gpu_bench --seconds $((end - SECONDS - 20))
  sed -n '/^op, microseconds/,$p' "$work/bench.log" | grep . >"$work/table" ||
    cp "$work/bench.log" "$work/table"
}

# times NAME SECONDS OPTIONS...: whole models; what was timed within the limit is kept
times() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "${pytest[@]}" -q --device cuda --benchmark-only --benchmark-json \
    "$work/$name.json" "$@"
}

check_models() {
  local both=(bench/bench_inference.py bench/bench_train_step.py)
  local scenes="from ssdkern.data import SyntheticScenes as S, write_yolo; "
  scenes+="write_yolo({'train': S(256), 'val': S(32, seed=1)}, '$work/scenes')"
  step tests 70 "${tests[@]}" "${ops[@]}" tests/test_graphs.py tests/test_lists.py \
    -k "test_graphs or test_lists or (opcheck and not cpu)"
  times infer128 70 bench/bench_inference.py --models ssd300 --batches 128 --libraries native \
    --modes compiled+captured,compiled+captured+host
  times train128 105 bench/bench_train_step.py --models ssd300 --batches 128 --libraries native \
    --modes compiled+captured
  times batch32 60 "${both[@]}" --models ssd300 --batches 32 --modes captured,eager
  step scenes 15 "$python" -c "$scenes"
  step train 90 "$python" -m ssdkern.train --data "$work/scenes" --output "$work/run" \
    --model ssd300 --optimizer sgd --lr 1e-4 --batch-size 32 --steps 40 --device cuda --amp bf16 \
    --compile --cuda-graph --workers 4 --eval-every 1000 --quiet
  times more 400 "${both[@]}" --models ssd300 --batches 128,8,1 --modes captured,eager
  times more512 400 "${both[@]}" --models ssd512 --batches 32 --modes captured,eager
  end=$((end + 25))
  step report 25 "$python" -m bench.models --training "$work/run/results.csv" \
    "$work"/{infer128,train128,batch32,more,more512}.json
  cp "$work/report.log" "$work/table"
}

check_"$mode"
finish
