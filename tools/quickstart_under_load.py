"""The quick start while another process takes a core for its second half: does it end in time?

python tools/quickstart_under_load.py [--minutes 15] [--out DIR] [options of tokenwm quickstart ...]

Prints one JSON object: minutes wanted and taken, the steps of both stages and of their decays, and
model minus persistence in dB on held-out episodes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BUSY = "while True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--out", type=Path, help="folder of the run (default: a temporary one)")
    parser.add_argument("--processes", type=int, default=1, help="busy processes (default: 1)")
    arguments, rest = parser.parse_known_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="quickstart-"))
    command = [sys.executable, "-m", "tokenwm", "quickstart", "--out", str(out)]
    command += ["--minutes", str(arguments.minutes), *rest]
    busy: list[subprocess.Popen[bytes]] = []

    def begin_load() -> None:
        for _ in range(arguments.processes):
            busy.append(subprocess.Popen([sys.executable, "-c", BUSY]))

    timer = threading.Timer(30.0 * arguments.minutes, begin_load)
    began = time.monotonic()
    timer.start()
    try:
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        taken = (time.monotonic() - began) / 60
    finally:
        timer.cancel()
        for process in busy:
            process.kill()
            process.wait()
    found = {
        "minutes_wanted": arguments.minutes,
        "minutes_taken": round(taken, 2),
        "busy_processes_from_half_time_on": len(busy),
        "exit_code": code,
        "out": str(out),
        **stages(out),
        "model_minus_persistence_db": gains(out),
    }
    print(json.dumps(found, indent=1))
    return code


def stages(out: Path) -> dict[str, Any]:
    """Steps of each stage: in all, before its decay, and within it."""
    plan = json.loads((out / "plan.json").read_text())
    return {
        stage: {
            "steps": plan[stage]["max_steps"],
            "before_decay": plan[stage]["decay_start"],
            "in_decay": plan[stage]["max_steps"] - plan[stage]["decay_start"],
            "times_planned": len(plan[stage]["decay_spans"]),
        }
        for stage in ("tokenizer", "world-model")
        if stage in plan
    }


def gains(out: Path) -> dict[str, Any]:
    """Mean gain over persistence by horizon, if there is a report."""
    path = out / "report" / "metrics.json"
    if not path.is_file():
        return {}
    mean = json.loads(path.read_text())["psnr_gain_over_persistence"]["mean"]
    return {str(horizon): mean[horizon - 1] for horizon in (1, 3, 5, 10, 15, 20)}


if __name__ == "__main__":
    sys.exit(main())
