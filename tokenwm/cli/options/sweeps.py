"""Options of ``tokenwm sweep plan|run|fit``."""

from pathlib import Path

from tokenwm.cli.options.base import (
    Parser,
    add_engine,
    add_json,
    add_overwrite,
    add_remake,
    add_set,
    one_or_more,
    positive,
)
from tokenwm.data.storage.folder import location
from tokenwm.scaling.runs.columns import COLUMN_OF


def plan() -> Parser:
    """``tokenwm sweep plan``."""
    parser = Parser(
        "sweep plan",
        "Choose sizes, token budgets and learning rates by rule, show what they cost, and write "
        "the sweep file. Nothing is trained but a few steps of each size, to time them.",
    )
    parser.add("tokens", type=location, metavar="DIR|URL", help="token shards")
    parser.add(
        "--budget",
        type=positive,
        required=True,
        metavar="FLOPS",
        help="training FLOPs of all runs together, for example 3e15 or 300T",
    )
    help = "sweep file to write (YAML)"
    parser.add("--out", type=Path, required=True, metavar="SWEEP", help=help)
    parser.add("--sizes", default=5, metavar="N", help="model sizes")
    parser.add("--budgets", default=4, metavar="N", help="token budgets of each size")
    help = "runs that will be trained at once on this machine"
    parser.add("--workers", default=1, metavar="N", help=help, old="--parallel")
    help = "matmul parameters of the smallest size"
    parser.add("--min-parameters", default=3e4, metavar="X", help=help)
    help = "matmul parameters of the largest size"
    parser.add("--max-parameters", default=3e6, metavar="X", help=help)
    help = "ratio of a token budget to the one before"
    parser.add("--budget-ratio", default=2.0, metavar="X", help=help)
    help = "peak learning rate at width 128"
    parser.add("--learning-rate", default=LEARNING_RATE, metavar="X", help=help)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="seeds")
    parser.flag(
        "--verify-learning-rate",
        help="add runs at half and twice each size's rate, with its second smallest budget",
    )
    help = "time nothing; every run is taken to be as fast as this"
    parser.add("--no-probe", type=float, metavar="FLOPS_PER_SECOND", help=help)
    example = "batch_size=32 precision=bf16-mixed (all of them: docs/scaling.md)"
    add_set(parser, "the training settings that all runs have in common", example)
    add_json(parser)
    add_overwrite(parser, "replace a plan that is there")
    return parser


LEARNING_RATE = 2.5e-3
"""Of :class:`tokenwm.scaling.sweep.plan.Request`; a test compares them."""


def run() -> Parser:
    """``tokenwm sweep run``."""
    parser = Parser(
        "sweep run",
        "Train all runs of a sweep file. Finished runs are skipped, others go on from their last "
        "checkpoint, so the same command continues an interrupted sweep.",
    )
    parser.add("sweep", type=Path, help="sweep file, from tokenwm sweep plan")
    parser.add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    help = "token shards (default: those the file names)"
    parser.add("--data", type=location, metavar="DIR|URL", help=help)
    workers = "runs at once; locally they share the cores evenly unless OMP_NUM_THREADS is set"
    add_engine(parser, "runs", workers, 1, type=one_or_more, old="--parallel")
    help = "further attempts of a run that fails; diverged runs are not repeated"
    parser.add("--retries", default=1, metavar="N", help=help)
    parser.add(
        "--evaluate",
        type=location,
        metavar="DIR|URL",
        help="frame shards that the tokens were made of: measure rollout PSNR, effective horizon "
        "and reward error of every run as well",
    )
    parser.add("--gpus", default=0.0, metavar="N", help="GPUs of a Ray task")
    parser.add(
        "--slurm",
        nargs="+",
        metavar="KEY=VALUE",
        help="parameters for submitit, for example slurm_partition=gpu timeout_min=240 "
        "gpus_per_node=1 cpus_per_task=8",
    )
    return parser


def fit() -> Parser:
    """``tokenwm sweep fit``."""
    parser = Parser(
        "sweep fit",
        "Fit L = E + A/N^α + B/D^β to the runs of a sweep, compare with IsoFLOP parabolas and the "
        "loss envelope, check by hold-out, and say what to train for a budget (see "
        "docs/scaling.md).",
    )
    parser.add("path", type=Path, help="folder of a sweep, or a CSV file of runs")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=COLUMN",
        help="columns of a CSV file, for example N='Model Size' D='Training Tokens'; keys: "
        f"{', '.join(COLUMN_OF)}; the others are known by their usual names",
    )
    help = "further columns of a CSV file to set against compute"
    parser.add_argument("--metrics", nargs="+", default=[], metavar="COLUMN", help=help)
    help = "training FLOPs to recommend for (default: ten times those of the largest run)"
    parser.add("--budget", type=positive, metavar="FLOPS", help=help)
    help = "folder of the report (default: SWEEP/fit, or NAME-fit beside a CSV file)"
    parser.add("--out", type=Path, metavar="DIR", help=help)
    _add_costs(parser)
    help = "leave out the K runs with the highest loss; they are listed"
    parser.add("--drop-highest-loss", default=0, metavar="K", help=help)
    parser.add(
        "--drop-shortest",
        default=0,
        metavar="K",
        help="of every size, leave out the runs with its K smallest token budgets, which may not "
        "follow the law yet; they are listed",
    )
    help = "leave out runs by name; the reason is kept in the report"
    parser.add_argument("--exclude", nargs="+", default=[], metavar="RUN=REASON", help=help)
    parser.add("--delta", type=positive, default=1e-3, help="of the Huber loss, in log loss")
    parser.add("--replicates", default=500, metavar="R", help="replicates of every bootstrap")
    parser.add("--confidence", default=0.9, help="coverage of the intervals")
    parser.add("--seed", default=0, help="seed of every bootstrap")
    add_json(parser)
    add_remake(parser)
    return parser


def _add_costs(parser: Parser) -> None:
    """What imagining and training cost."""
    parser.add(
        "--imagined-steps",
        type=positive,
        metavar="STEPS",
        help="environment steps the model will imagine in its life; gives the size that is "
        "cheapest to train and imagine with at the same loss",
    )
    help = "positions of a step: frame tokens, one for state, one for action"
    parser.add("--tokens-per-imagined-step", type=positive, metavar="TOKENS", help=help)
    help = "tokens of an optimizer step, for the number of steps (default: that of the runs)"
    parser.add("--tokens-per-step", type=positive, metavar="TOKENS", help=help)
    help = "throughput of training, for hours (default: that of the largest runs)"
    parser.add("--flops-per-second", type=positive, metavar="FLOPS", help=help)
