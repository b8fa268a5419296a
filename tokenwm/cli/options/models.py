"""Options of the verbs that use a trained model."""

from pathlib import Path

from tokenwm.cli.options.base import Parser, add_device, add_json, add_remake
from tokenwm.data.storage.folder import location

MODEL = "run or checkpoint folder of the world model"
FRAMES = "frame shards made by tokenwm prepare (default: those that the model was trained on)"


def evaluate() -> Parser:
    """``tokenwm evaluate``."""
    parser = Parser(
        "evaluate",
        "Imagine held-out episodes open loop, measure every step beside persistence, "
        "reconstruction and shuffled actions, and write a report (see docs/evaluation.md).",
    )
    help = f"{MODEL}; of folds, one each (they are measured as one, see docs/evaluation.md)"
    parser.add("model", nargs="*", type=Path, help=help)
    help = f"{FRAMES}; of folds, one each in the same order"
    parser.add("--data", nargs="+", type=location, metavar="DIR|URL", help=help)
    _add_imagining(parser, temperature=0.0)
    help = "folder of the report (default: MODEL/report; of folds, report_folds of the first)"
    parser.add("--out", type=Path, metavar="DIR", help=help)
    help = "episodes to measure; val is taken where there is no test"
    parser.add("--split", default="test", choices=("train", "val", "test"), help=help)
    parser.add("--starts", default=4, metavar="N", help="starts per episode, evenly spaced")
    help = "measure only N episodes, evenly spread over the split (default: all)"
    parser.add("--episodes", type=int, metavar="N", help=help)
    help = "futures imagined at once; bounds the memory"
    parser.add("--batch-size", default=32, metavar="B", help=help)
    help = "starts to show as pictures, from best to worst"
    parser.add("--examples", default=4, metavar="N", help=help)
    parser.add(
        "--curves",
        action="append",
        default=[],
        metavar="TITLE=CSV",
        help="metrics.csv of a training run to draw as well; may be repeated. The model's own is "
        "found in MODEL/logs",
    )
    add_remake(parser)
    return parser


def imagine() -> Parser:
    """``tokenwm imagine``."""
    parser = Parser(
        "imagine",
        "Imagine from any recorded episode with its own, other or random actions; writes a GIF, an "
        "MP4 and an NPZ (see docs/evaluation.md).",
    )
    parser.add("model", type=Path, help=MODEL)
    parser.add("--data", type=location, metavar="DIR|URL", help=FRAMES)
    parser.add("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    help = "episode to start from (default: the first held-out one)"
    parser.add("--episode", metavar="KEY", help=help)
    help = "step of the episode at which the observed context begins"
    parser.add("--start", default=0, metavar="STEP", help=help)
    parser.add(
        "--actions",
        default="own",
        metavar="WHOSE",
        help="own: those of the episode; random: uniform over the range of the training data; KEY: "
        "those of another episode at the same steps; FILE.npy: an array of at least H rows of "
        "actions in the units of the data",
    )
    help = "futures to draw, each with its own noise"
    parser.add("--samples", default=1, metavar="N", help=help)
    _add_imagining(parser, temperature=1.0)
    add_remake(parser)
    return parser


def _add_imagining(parser: Parser, temperature: float) -> None:
    """How to imagine: what ``evaluate`` and ``imagine`` share."""
    help = "observed frames before imagining"
    parser.add("--context", default=4, metavar="C", help=help)
    parser.add("--horizon", default=20, metavar="H", help="imagined steps")
    add_device(parser)
    parser.add(
        "--temperature",
        default=temperature,
        metavar="T",
        help="0 always takes the most likely token, 1 draws as the model believes; else at least "
        "0.0001",
    )
    help = "draw from the K most likely tokens only"
    parser.add("--top-k", type=int, metavar="K", help=help)
    help = "draw from the most likely tokens that hold P of the probability only; 1 is all"
    parser.add("--top-p", default=1.0, metavar="P", help=help)
    help = "seed of everything random; the same seed gives the same future"
    parser.add("--seed", default=0, help=help)
    add_json(parser)


def info() -> Parser:
    """``tokenwm info``."""
    parser = Parser(
        "info",
        "Say what a dataset, a checkpoint, a run, a sweep or a report holds, where it came from, "
        "and what to do with it next.",
    )
    parser.add("path", type=location, metavar="PATH|URL", help="what to look at")
    add_json(parser)
    return parser


def report() -> Parser:
    """``tokenwm report``."""
    parser = Parser(
        "report",
        "Write the page of an evaluation or of a dataset's quality again, from the figures beside "
        "it: after an update of tokenwm for example. Nothing is measured.",
    )
    help = "folder of a report, of a run that has one, or of frame shards"
    parser.add("path", type=location, metavar="DIR|URL", help=help)
    return parser


def serve() -> Parser:
    """``tokenwm serve``."""
    parser = Parser(
        "serve",
        "Imagine, score and encode for other processes (see docs/serving.md); requests that wait "
        "together are computed together.",
    )
    parser.add("model", type=Path, help=MODEL)
    help = (
        "address to listen on; there is no authentication, so leave it on loopback or put a proxy "
        "in front"
    )
    parser.add("--host", default="127.0.0.1", help=help)
    parser.add("--port", default=8600, help="0 takes a free one")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that the server goes by, may be given again; requests for others are "
        "refused (loopback, this machine's name, --host and IP addresses are known)",
    )
    add_device(parser)
    help = "type in which the transformer computes"
    parser.add("--dtype", choices=("float32", "bfloat16"), default="float32", help=help)
    for name, (default, help) in LIMITS.items():
        parser.add(name, default=default, metavar="N", help=help)
    help = "rows computed at once; more waits for its turn (default: 32 on a CPU, else 1024)"
    parser.add("--max-batch-rows", type=int, metavar="N", help=help)
    help = "seconds until a request is given up"
    parser.add("--timeout", default=60.0, metavar="S", help=help)
    return parser


LIMITS = {
    "--max-rows": (1024, "imagined rows of a request"),
    "--max-steps": (1000, "context steps and actions of a request"),
    "--max-row-steps": (2**16, "imagined rows times actions of a request"),
    "--max-megabytes": (64, "size of a request"),
    "--max-held-megabytes": (
        512,
        "size of all requests that are received, wait or are answered; beyond, 503",
    ),
    "--max-queued-rows": (4096, "rows that may wait; beyond, 503"),
    "--max-connections": (256, "open connections; beyond, 503"),
}
"""Of :class:`tokenwm.serving.requests.Limits`; a test compares them."""
