"""Random damage to small datasets of every format: does one odd episode ever stop anything?

    python tools/fuzz_readers.py [--format robomimic ...] [--minutes 10] [--seed 0] [--out FILE]

Each round writes a small dataset, damages one thing in it (bytes of a file, the length of a file,
values, types and shapes of one episode, its name), and runs what `tokenwm inspect` and `tokenwm
prepare` do. Everything follows from the seed and the number of the round, so a finding is seen
again with `--seed S --first ROUND --rounds 1`. Rounds run in a process with limited memory; one
that dies or hangs is a finding too. Prints JSON: rounds, and findings of these kinds:

- `traceback`: an error that is no TokenwmError;
- `stopped`: the damage was to one episode alone, and the whole source was refused;
- `others lost`: an episode that was not damaged was left out;
- `memory`: a round took more than `--megabytes` beyond what the process began with;
- `died`, `hung`: the process ended by a signal, or a round took more than a minute.
"""

import argparse
import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from tests.unit.data.readers.odd_datasets import FORMATS, Rows, make_rows  # noqa: E402
from tests.unit.data.readers.opening import recipe  # noqa: E402
from tokenwm.data.making.prepare import prepare  # noqa: E402
from tokenwm.data.readers.base import load_each  # noqa: E402
from tokenwm.data.recipes.survey import survey  # noqa: E402
from tokenwm.errors import EpisodeError, TokenwmError  # noqa: E402

NUM_EPISODES = 5
SECONDS = 60
NAMES = ["x" * 120, "a_phase3", "b_shift1", "a b", "ä", "[b]", "..a", "-", "caf\udce9", "0", "a\tb"]


def odd_array(rng: random.Random, array: Any) -> Any:
    """One array, made odd."""
    values = np.asarray(array)
    numbers: list[Any] = [np.nan, np.inf, -1, 9e12, 2**63 - 1, 1e300, -1e300, 0]

    def one_value() -> Any:
        changed = values.astype(rng.choice([values.dtype.str, "f8", "i8", "f2", "u1", "u8"]))
        if changed.size:
            changed.flat[rng.randrange(changed.size)] = rng.choice(numbers)
        return changed

    choices: list[Callable[[], Any]] = [
        one_value,
        lambda: values[: rng.randrange(len(values) + 1)],
        lambda: np.concatenate([values] * rng.randint(2, 3)),
        lambda: values.reshape(-1)[0],
        lambda: values[..., : rng.randrange(values.shape[-1] + 1)],
        lambda: values.reshape(len(values), -1)[:, 0],
        lambda: values.reshape(*values.shape, 1),
        lambda: values.T,
        lambda: values.astype(rng.choice(["S3", "U3", "c8", "f2", "i8", "u8", "f8", "?"])),
        lambda: np.zeros((0, *values.shape[1:]), values.dtype),
        lambda: np.full_like(values, rng.choice([0, 1])),
    ]
    return rng.choice(choices)()


def odd_rows(rng: random.Random, rows: Rows) -> tuple[Rows, str]:
    """An episode, made odd; and what was done to it."""
    rows = dict(rows)
    name = rng.choice([*rows, "length", "is_first"])
    if name == "length":
        rows["length"] = rng.choice([0, -1, 1, 10**12, 2**63 - 1])
    elif name == "is_first":
        rows["is_first"] = odd_array(rng, np.arange(len(rows["action"])) == 0)
    elif rng.random() < 0.1:
        del rows[name]
    else:
        rows[name] = odd_array(rng, rows[name])
    return rows, f"values of {name}"


def damage(rng: random.Random, path: Path) -> str:
    """Damage the bytes of a file; says how."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["bytes", "bytes", "bytes", "cut", "double", "zeros", "number", "append"])
    place = rng.randrange(len(content) + 1)
    if rng.random() < 0.5:  # headers and tables at both ends are where sizes are
        near = min(len(content), 400)
        place = rng.choice([rng.randrange(near + 1), len(content) - rng.randrange(near + 1)])
    if kind == "bytes":
        for _ in range(rng.randint(1, 8)):
            content[min(place + rng.randrange(16), len(content) - 1)] = rng.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "double":
        content[place:place] = content[place : place + rng.randint(1, 200)]
    elif kind == "zeros":
        content[place : place + 40] = bytes(len(content[place : place + 40]))
    elif kind == "number":
        value = rng.choice([0, 1, -1, 2**31 - 1, 2**63 - 1, 10**12]) % 2**64
        content[place : place + 8] = value.to_bytes(8, rng.choice(["little", "big"]))
    else:
        content += bytes(rng.randrange(256) for _ in range(rng.randint(1, 100)))
    path.write_bytes(bytes(content))
    return f"{kind} at {place} of {path.name}"


def one_round(name: str, seed: int, number: int, megabytes: int) -> dict[str, Any] | None:
    """One damaged dataset; what was found, if anything."""
    rng = random.Random(f"{name} {seed} {number}")
    about = FORMATS[name]
    episodes = [make_rows(index) for index in range(NUM_EPISODES)]
    may_cost = 1  # episodes, if it is not the whole source
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        names: list[str] = []
        what, odd = "", rng.randrange(NUM_EPISODES)
        kind = rng.choice(["bytes", "values"] + ["name"] * (about.named and number % 5 == 0))
        try:
            if kind == "values":
                episodes[odd], what = odd_rows(rng, episodes[odd])
            elif kind == "name":
                names = [f"t{index}" for index in range(NUM_EPISODES)]
                names[odd] = what = rng.choice(NAMES)
            path = about.write(data, episodes, names)
        except Exception:
            return None  # numpy or the format cannot hold that
        if kind == "bytes":
            files = sorted(item for item in data.rglob("*") if item.is_file())
            file = rng.choice(files)
            what = damage(rng, file)
            may_cost = _episodes_of(about, file)
        # Where an episode begins in a chunk is for the chunk to say: it may become several.
        may_cost = NUM_EPISODES if "is_first" in what else may_cost
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        problem = _check(about, path, Path(folder) / "out", may_cost, whole=number % 4 == 0)
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if problem is None and used > megabytes:
            problem = ("memory", f"{used} MB")
        if problem is None:
            return None
        return {
            "format": name,
            "round": number,
            "damage": f"{kind}: {what}",
            "kind": problem[0],
            "message": problem[1][-1500:],
        }


def _episodes_of(about: Any, file: Path) -> int:
    """Episodes that damage to a file may cost; all of them if it may cost the whole source."""
    if "meta" in file.parts or not (about.own_files or file.suffix in (".mp4", ".parquet")):
        return NUM_EPISODES
    return 2 if file.name.startswith("file-") else 1


def _check(about: Any, path: Path, out: Path, may_cost: int, whole: bool) -> tuple[str, str] | None:
    """Run both verbs; of `prepare` its reading alone unless the whole of it is asked for."""
    try:
        for step in ("inspect", "prepare"):
            try:
                if step == "inspect":
                    survey(path)
                    continue
                made = recipe(about.kind, path, source=dict(about.options))
                if whole:
                    lost = [item.reason for item in prepare(made, out).excluded]
                else:
                    source = made.open_source()
                    results = load_each(source, list(source.episodes()))
                    lost = [str(item) for item in results if isinstance(item, EpisodeError)]
            except TokenwmError as error:
                if may_cost < NUM_EPISODES:
                    return "stopped", f"{step}: {error}"
                continue
            if len(lost) > may_cost < NUM_EPISODES:
                return "others lost", "; ".join(lost[:3])
    except Exception:
        return "traceback", traceback.format_exc()
    return None


def work(name: str, seed: int, first: int, rounds: int, megabytes: int) -> None:
    """Run rounds in this process, and say so line by line."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    one_round(name, seed, -1, megabytes)  # imports, before the memory is limited
    limit = _memory() + 4 * megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(first, first + rounds):
        print(json.dumps({"begun": number}), flush=True)
        found = one_round(name, seed, number, megabytes)
        if found is not None:
            print(json.dumps({"found": found}), flush=True)
            if found["kind"] == "memory":
                return  # the high-water mark tells nothing any more


def _memory() -> int:
    """Address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def supervise(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run rounds of one format in processes, until time or rounds are up."""
    end = time.monotonic() + 60 * arguments.minutes
    number, findings = arguments.first, []
    last = arguments.first + arguments.rounds
    while number < last and time.monotonic() < end:
        rounds = min(200, last - number)
        command = [sys.executable, __file__, "--work", name, "--seed", str(arguments.seed)]
        command += ["--first", str(number), "--rounds", str(rounds)]
        command += ["--megabytes", str(arguments.megabytes)]
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT)
            seen, since, hung = 0, time.monotonic(), False
            while process.poll() is None:
                time.sleep(0.2)
                size = os.fstat(output.fileno()).st_size
                if size != seen:
                    seen, since = size, time.monotonic()
                hung = time.monotonic() - since > SECONDS
                if hung or time.monotonic() > end:
                    process.kill()
                    process.wait()
                    break
            output.seek(0)
            errors.seek(0)
            lines = [json.loads(line) for line in output.read().splitlines() if line.endswith("}")]
            told = errors.read()[-500:]
        begun = [line["begun"] for line in lines if "begun" in line]
        findings += [line["found"] for line in lines if "found" in line]
        number = begun[-1] + 1 if begun else number + 1
        stopped = process.returncode != 0 and time.monotonic() <= end
        if hung or stopped:
            kind = "hung" if hung else "died"
            message = f"exit code {process.returncode}: {told}"
            findings.append({"format": name, "round": number - 1, "kind": kind, "message": message})
    return {"rounds": number - arguments.first, "findings": findings}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--rounds", type=int, default=10**9, help="at most, of each format")
    parser.add_argument("--megabytes", type=int, default=700, help="a round may take")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(
            arguments.work,
            arguments.seed,
            arguments.first,
            arguments.rounds,
            arguments.megabytes,
        )
        return 0
    report = {}
    for name in arguments.format:
        report[name] = supervise(name, arguments)
        print(f"{name}: {report[name]['rounds']} rounds", file=sys.stderr)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))
    return int(any(of_format["findings"] for of_format in report.values()))


if __name__ == "__main__":
    sys.exit(main())
