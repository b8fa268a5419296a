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
# SKIP="tests iris bench plan compiled quickstart" leaves steps out; all take about ten minutes.
# REHEARSAL=1 runs them without a CUDA device, in a few steps each: to find out whether they would run.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
TARGET_PYTHON="${TARGET_PYTHON:-3.12}"
SKIP="${SKIP:-}"
REHEARSAL="${REHEARSAL:-}"
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

if [[ -z "$REHEARSAL" ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
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

tokenwm() { "$PYTHON" -m tokenwm "$@"; }

# A model of IRIS's sizes that predicts well, from nothing: Push-T episodes, a tokenizer, the model.
train_iris() {
  local episodes=300 tokenizer_steps=1500 steps=1500
  if [[ -n "$REHEARSAL" ]]; then episodes=12 tokenizer_steps=20 steps=20; fi
  # In a function whose result is looked at bash goes on after a failure.
  tokenwm prepare data_recipes/pusht.yaml --out "$iris/frames" --workers "$(nproc)" \
    --set "source.num_episodes=$episodes" source.state=null splits.val=0.1 splits.test=0.1 &&
    tokenwm tokenizer fit --config configs/tokenizer/tokens16.yaml --data.root "$iris/frames" \
      --trainer.max_steps "$tokenizer_steps" --trainer.val_check_interval "$tokenizer_steps" \
      --trainer.default_root_dir "$iris/tokenizer" &&
    tokenwm tokenize "$iris/frames" --tokenizer "$iris/tokenizer" --out "$iris/tokens" &&
    tokenwm world-model fit --config configs/world_model/iris.yaml --data.root "$iris/tokens" \
      --trainer.max_steps "$steps" --trainer.val_check_interval "$steps" \
      --trainer.default_root_dir "$iris/model" &&
    cp "$iris/model/logs/metrics.csv" "$results/iris_metrics.csv"
}

# bench NAME OPTION...: with the trained model and held-out contexts.
bench() {
  local name="$1" options=(--json "$results/$1.json")
  shift
  if [[ -n "$REHEARSAL" ]]; then options+=(--horizon 2 --repetitions 1); fi
  run_step "$name" "$PYTHON" tools/bench_imagination.py --model "$iris/model" \
    --data "$iris/frames" "$@" "${options[@]}"
}

iris="$scratch/iris"
small=() planner=(--candidates 512)
if [[ -n "$REHEARSAL" ]]; then small=(--batch-sizes 1 4) planner=(--candidates 8 --candidate-steps 2); fi

if wanted tests; then run_step pytest pytest_gpu; fi
if wanted iris; then run_step train_iris train_iris; fi
if wanted bench; then
  bench bench_imagination "${small[@]}" "${planner[@]}" --profile
fi
if wanted plan; then  # 512 candidates × 5 steps × 3 rounds: control.json has the latencies of every plan
  count=512 steps_acted=50
  if [[ -n "$REHEARSAL" ]]; then count=8 steps_acted=3; fi
  run_step plan tokenwm control "$iris/model" --candidates "$count" --horizon 5 --episodes 1 --films 0 \
    --steps "$steps_acted" --dtype bfloat16 --out "$scratch/control"
  if [[ -f "$scratch/control/control.json" ]]; then cp "$scratch/control/control.json" "$results/"; fi
fi
if wanted compiled; then  # another half a minute for every shape
  bench bench_compiled --compile --profile "${planner[@]}" --batch-sizes 1 "${LARGE:-1024}" --engines \
    plain_loop sequential_bf16 speculative_bf16 sequential_bf16_compiled speculative_bf16_compiled
fi
if wanted quickstart; then
  run_step quickstart tokenwm quickstart --size debug --minutes 1 --out "$scratch/quickstart"
  metrics="$(find "$scratch/quickstart" -name metrics.json 2> /dev/null | head -n 1 || true)"
  if [[ -n "$metrics" ]]; then cp "$metrics" "$results/quickstart_metrics.json"; fi
fi

"$PYTHON" - "$steps" "$results/summary.json" << 'PYTHON_END'
import json
import platform
import sys

import torch

on_gpu = torch.cuda.is_available()
properties = torch.cuda.get_device_properties(0) if on_gpu else None
steps = {}
with open(sys.argv[1]) as lines:
    for name, code, start, stop in (line.rstrip("\n").split("\t") for line in lines):
        seconds = round(float(stop) - float(start), 2)
        steps[name] = {"exit_code": int(code), "seconds": seconds}
summary = {
    "device": properties.name if properties else "cpu",
    "device_memory_bytes": properties.total_memory if properties else None,
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
