"""Options of the verbs about data."""

from pathlib import Path

from tokenwm.cli.options.base import (
    SIZES,
    Parser,
    add_device,
    add_engine,
    add_json,
    add_overwrite,
    add_set,
    num_cores,
    whole,
)
from tokenwm.data.storage.folder import location

DATASET = "DIR|URL"


def quickstart() -> Parser:
    """``tokenwm quickstart``."""
    parser = Parser(
        "quickstart",
        "Record or read episodes, train a world model, imagine, and report. Interrupted, the same "
        "command continues.",
    )
    parser.add("--recipe", default="data_recipes/pusht.yaml", help="data recipe; yours works too")
    out = Path("runs/quickstart")
    parser.add("--out", type=Path, default=out, metavar="DIR", help="folder of the run")
    parser.add(
        "--minutes",
        default=15.0,
        help="time for everything; training fills what preparation and evaluation leave, by the "
        "clock. A continued run counts the time used before, up to its last checkpoint",
    )
    parser.add(
        "--size",
        default="small",
        choices=SIZES,
        help="config of that name for both models; debug takes its steps from the config and "
        "little data",
    )
    add_set(
        parser,
        "the recipe, or with tokenizer. or world-model. in front of a training's options",
        "image_size=[128,128] world-model.model.model.transformer.dropout=0.1",
        old="--model-set",
    )
    add_device(parser)
    return parser


def inspect() -> Parser:
    """``tokenwm inspect``."""
    parser = Parser(
        "inspect",
        "Say what a file or folder of recordings holds, and write a recipe for it (see "
        "docs/data.md). Nothing in it is changed.",
    )
    parser.add("path", type=Path, help="file or folder of recordings")
    parser.add("--recipe", type=Path, metavar="FILE", help="write a starter recipe to this file")
    help = "read the numbers of N episodes, evenly spread; 0 for all"
    parser.add("--episodes", default=100, metavar="N", help=help)
    add_json(parser)
    return parser


def prepare() -> Parser:
    """``tokenwm prepare``."""
    parser = Parser(
        "prepare",
        "Turn recorded episodes into shards, as a recipe says (see docs/data.md). Interrupted, the "
        "same command continues.",
    )
    parser.add("recipe", help="recipe file, for example data_recipes/pusht.yaml")
    parser.add("--out", metavar=DATASET, help="folder of the dataset, or an fsspec URL")
    workers = "shards made at once, 0 for in this process; the result does not depend on it"
    add_engine(parser, "shards", workers, num_cores(), type=whole)
    add_set(parser, "the recipe", "image_size=[128,128]")
    help = "stop at the first bad episode instead of leaving it out (quality.strict=true)"
    parser.flag("--strict", help=help)
    help = "make nothing; say which episodes would be used, how many bytes and how much time"
    parser.flag("--dry-run", help=help)
    add_json(parser)
    help = "replace another dataset in the folder, or this one if a byte of it is damaged"
    add_overwrite(parser, help)
    return parser


def verify_shards() -> Parser:
    """``tokenwm verify-shards``."""
    parser = Parser(
        "verify-shards",
        "Check every byte of a dataset against its manifest. Exit code 1 if anything is damaged, "
        "missing, or should not be there.",
    )
    parser.add("dataset", metavar=DATASET, help="frame or token shards")
    help = "processes that read, 0 for none (default: one per core if there is much to read)"
    parser.add("--workers", type=whole, metavar="N", help=help)
    add_json(parser)
    return parser


def export_lerobot() -> Parser:
    """``tokenwm export-lerobot``."""
    parser = Parser(
        "export-lerobot",
        "Write the episodes of frame shards as a LeRobot folder (see docs/formats.md).",
    )
    parser.add("dataset", type=location, metavar=DATASET, help="frame shards, from tokenwm prepare")
    parser.add("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    help = "version of LeRobot's format"
    parser.add("--version", choices=("v3.0", "v2.1"), default="v3.0", help=help)
    help = "quality of the videos, 0 to 51, smaller is better"
    parser.add("--crf", default=10, metavar="N", help=help)
    return parser


def tokenize() -> Parser:
    """``tokenwm tokenize``."""
    parser = Parser(
        "tokenize",
        "Encode frame shards once, before the world model is trained. Interrupted, the same "
        "command continues.",
    )
    parser.add("frames", metavar=DATASET, help="frame shards made by tokenwm prepare")
    help = "run or checkpoint folder of the tokenizer"
    parser.add("--tokenizer", type=Path, required=True, metavar="DIR", help=help)
    parser.add("--out", required=True, metavar=DATASET, help="folder of the token shards")
    parser.add("--action-bins", default=256, metavar="N", help="bins per action dimension")
    parser.add("--state-bins", default=256, metavar="N", help="bins per state dimension")
    parser.add(
        "--bins",
        choices=("uniform", "quantile"),
        default="uniform",
        help="bins of equal width over the range of the training data, or of equal content",
    )
    help = "take the bins of these token shards, so that both can be mixed in training"
    parser.add("--vocabulary-of", metavar=DATASET, help=help)
    parser.flag("--no-state", help="leave proprioception out of the sequence")
    parser.add(
        "--shifted-copies",
        default=0,
        metavar="N",
        help="copies of every training episode with frames moved by a few pixels, for small "
        "datasets",
    )
    workers = (
        "shards made at once, 0 for in this process; the result does not depend on it (default: "
        "one per core, on a CPU and if there is much to encode)"
    )
    add_engine(parser, "shards", workers, None, type=whole)
    add_device(parser)
    add_overwrite(parser, "replace a dataset in the folder")
    return parser
