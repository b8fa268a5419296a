"""``tokenwm sweep plan|run|fit``: scaling-law sweeps."""

import importlib

from tokenwm.cli.main import module_of
from tokenwm.errors import TokenwmError

USAGE = """usage: tokenwm sweep plan TOKENS --budget FLOPS --out SWEEP  what to train, what it costs
       tokenwm sweep run SWEEP --out DIR                     train all of it; resumes
       tokenwm sweep fit DIR                                 the law, and what to train next
see tokenwm sweep plan --help, run --help, fit --help, and docs/scaling.md"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    if argv[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not argv or argv[0] not in ("plan", "run", "fit"):
        raise TokenwmError(f"{argv[0]!r} is no step of a sweep\n{USAGE}" if argv else USAGE)
    code: int = importlib.import_module(module_of(f"sweep-{argv[0]}")).main(argv[1:])
    return code
