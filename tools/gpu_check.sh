#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call: GPU tests, benchmarks, a short real training run.
#
#   tools/gpu_check.sh            run the checks with $PYTHON (default python3); results go to
#                                 ${OUT:-gpu_results}: summary.json, *.json, *.log
#   tools/gpu_check.sh wheels     on a machine with a network: fetch into .whl/ what a machine that
#                                 has PyTorch but no network lacks; carry .whl/ along (git ignores it)
#
# Where .whl/ holds wheels, the checks install them into a scratch folder, not into $PYTHON's own
# environment. The wheels must fit the other machine: TARGET_PYTHON=3.12 (default), x86-64 Linux.
# MINUTES=2 (default) is the length of the training run; SKIP="tests bench train" leaves steps out.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
TARGET_PYTHON="${TARGET_PYTHON:-3.12}"
MINUTES="${MINUTES:-2}"
SKIP="${SKIP:-}"
WHEELS=.whl

# Needed by tokenwm and its tests, usually absent from an image made for PyTorch. Versions: constraints.txt.
CARRIED=(
  av braceexpand cffi docstring_parser einx Farama-Notifications frozendict gym-pusht gymnasium
  jsonargparse loguru omegaconf pycparser pygame pymunk rich shapely torch-einops-utils
  typeshed_client vector-quantize-pytorch webdataset
)

fetch_wheels() {
  local platforms=() name
  for name in 2_17 2_24 2_27 2_28 2_31 2_34 2_35; do platforms+=(--platform "manylinux_${name}_x86_64"); done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
  rm -rf "$WHEELS"
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$TARGET_PYTHON" "${platforms[@]}" -c constraints.txt -d "$WHEELS" "${CARRIED[@]}"
  du -sh "$WHEELS"
}

if [[ "${1:-}" == wheels ]]; then
  fetch_wheels
  exit
elif (($#)); then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" >&2
  exit 2
fi

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if compgen -G "$WHEELS/*.whl" > /dev/null; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$scratch/site" "$WHEELS"/*.whl
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SDL_VIDEODRIVER=dummy

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_check: $PYTHON has no torch that sees a CUDA device; nothing was checked." >&2
  echo "Run this on a machine with one, or name its Python: PYTHON=... tools/gpu_check.sh" >&2
  exit 3
fi

results="${OUT:-gpu_results}"
mkdir -p "$results"
results="$(cd "$results" && pwd)"
steps="$scratch/steps.tsv"
: > "$steps"

# run_step NAME COMMAND...: run, log, note exit code and seconds; a failure does not stop the others.
run_step() {
  local name="$1" start code=0
  shift
  start="$(date +%s.%N)"
  echo "== $name: $*"
  "$@" 2>&1 | tee "$results/$name.log" || code=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" "$start" "$(date +%s.%N)" >> "$steps"
}

wanted() { [[ " $SKIP " != *" $1 "* ]]; }

# Other versions of the libraries warn about other things, so warnings are no errors here.
pytest_gpu() {
  local code=0
  "$PYTHON" -m pytest -m gpu -o filterwarnings=default -p no:cacheprovider -q \
    --junitxml "$results/pytest.xml" "$@" || code=$?
  if ((code == 5)); then
    echo "no test is marked gpu"
    code=0
  fi
  return "$code"
}

if wanted tests; then run_step pytest pytest_gpu; fi

if wanted bench; then
  run_step bench_imagination "$PYTHON" tools/bench_imagination.py --compile \
    --json "$results/bench_imagination.json"
fi

if wanted train; then
  run_step train "$PYTHON" -m tokenwm.cli.main quickstart \
    --size debug --minutes "$MINUTES" --out "$scratch/quickstart"
  metrics="$(find "$scratch/quickstart" -name metrics.json 2> /dev/null | head -n 1 || true)"
  if [[ -n "$metrics" ]]; then cp "$metrics" "$results/train_metrics.json"; fi
  run_step bench_approximations "$PYTHON" tools/bench_approximations.py \
    --model "$scratch/quickstart/world_model" --data "$scratch/quickstart/frames" \
    --json "$results/bench_approximations.json"
fi

"$PYTHON" - "$steps" "$results/summary.json" << 'PYTHON_END'
import json
import platform
import sys

import torch

properties = torch.cuda.get_device_properties(0)
steps = {}
with open(sys.argv[1]) as lines:
    for name, code, start, stop in (line.rstrip("\n").split("\t") for line in lines):
        seconds = round(float(stop) - float(start), 2)
        steps[name] = {"exit_code": int(code), "seconds": seconds}
summary = {
    "device": properties.name,
    "device_memory_bytes": properties.total_memory,
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": platform.python_version(),
    "steps": steps,
}
with open(sys.argv[2], "w") as file:
    json.dump(summary, file, indent=2)
print(json.dumps(summary, indent=2))
failed = [name for name, step in steps.items() if step["exit_code"]]
sys.exit(f"gpu_check: failed: {', '.join(failed)}" if failed else 0)
PYTHON_END
