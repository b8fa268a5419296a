"""Options of ``tokenwm tokenizer|world-model fit|validate|test``: ours, then LightningCLI's.

The short options are those of the other verbs and stand for options of LightningCLI, which has some
150 more. Its help takes seconds, so that what matters is told here; a test compares the defaults.
"""

import argparse
from collections.abc import Sequence

from tokenwm.cli.options.base import Parser
from tokenwm.cli.shipped import find_file
from tokenwm.errors import TokenwmError

SUBCOMMANDS = ("fit", "validate", "test")

OPTIONS = """
--help-all  show every option of LightningCLI; takes some seconds
--size NAME  config of that name: debug, small, base, … (folder configs/{folder})
--data DATA  shards of {shards}, a folder or a URL (--data.root)
--out FOLDER  folder of the run (--trainer.default_root_dir; default: runs/{folder})
--workers N  processes that load data, 0 for none (--data.num_workers; default: 0)
--set KEY=VALUE …  override any option, for example model.optimizer.learning_rate=0.001
+ DEVICE JSON ANEW
"""
"""Our own options; the rest are LightningCLI's."""
FROM = """
--from MODEL  fine-tune this model, a folder of a checkpoint or of a run: takes its sizes, windows,
    batches and .3 of its learning rate
"""
"""Options that ``fit`` alone has."""
LIGHTNING = """
--config FILE  file with any of these options; may be repeated, later ones win
--minutes X  train for so long instead of so many steps; needs the schedule wsd
--trainer.max_steps N = -1  optimizer steps; -1: until stopped
--trainer.precision NAME  32-true, bf16-mixed or 16-mixed
--trainer.devices N = auto  how many, or which
--trainer.accumulate_grad_batches N = 1  batches of an optimizer step
--trainer.val_check_interval N  batches between validations
--trainer.logger CLASS  other loggers than TensorBoard and metrics.csv, or false
--data.num_steps N  steps of a training window
--data.batch_size N  windows of a batch, on each device
--data.mixture LIST  further datasets, see docs/training.md
--data.real_fraction X  share of recorded, not synthetic, windows
--data.on_corrupt NAME = error  error, or skip what is damaged
--data.cache DIR  folder in which to keep what is read from a URL
--model.optimizer.learning_rate X = 1e-3  its peak
--model.optimizer.warmup_steps N = 100  steps until the peak
--model.optimizer.schedule NAME = wsd  wsd or cosine
--seed_everything SEED = 0  seed of weights and noise; --data.seed is that of the order
--checkpoint_every_n_steps N = 100  steps between checkpoints for resuming
--ckpt_path FILE  checkpoint to begin from (default: checkpoints/last.ckpt of --out)
"""
OF_STAGE = {
    "tokenizer": """
--model.tokenizer.patch_size N = 4  pixels of a token's side
--model.tokenizer.codebook_size N = 512  different tokens
--model.tokenizer.quantizer NAME = fsq  fsq or vq
--model.max_shift N = 0  pixels by which frames are moved at random
--model.crop N = 0  pixels of the squares that are taken of frames, 0 for whole ones
""",
    "world-model": """
--model.model.transformer.dim N = 256  width
--model.model.transformer.num_layers N = 10  layers
--model.model.transformer.num_heads N = 4  heads of attention
--model.model.transformer.window N = 20  steps that attention reaches back
--model.model.transformer.dropout X = 0.0  dropout
--model.model.draft_layers N = 0  1: a draft head for faster imagination
""",
}


def training(verb: str, subcommand: str, *, with_lightning: bool = True) -> Parser:
    """The parser of one subcommand.

    Args:
        verb: ``tokenizer`` or ``world-model``.
        subcommand: One of :data:`SUBCOMMANDS`.
        with_lightning: Whether it knows the options of LightningCLI that are told in the help.
    """
    what = "Train" if subcommand == "fit" else "Measure on held-out data"
    model, shards = ("frame tokenizer", "frames")
    if verb == "world-model":
        model, shards = "world model", "tokens"
    resumes = " Interrupted, the same command continues." if subcommand == "fit" else ""
    own = (FROM if subcommand == "fit" else "") + OPTIONS
    own = own.format(shards=shards, folder=verb.replace("-", "_"))
    parser = Parser(f"{verb} {subcommand}", f"{what} the {model}.{resumes}", own)
    parser.allow_abbrev = False
    parser.usage = f"{parser.prog} [options] [options of LightningCLI]"
    if with_lightning:
        group = "the most used of LightningCLI's options"
        parser.add_options(LIGHTNING + OF_STAGE[verb], group)
    return parser


def lightning_arguments(verb: str, argv: Sequence[str]) -> list[str]:
    """The arguments of LightningCLI that the given ones stand for.

    Args:
        verb: ``tokenizer`` or ``world-model``.
        argv: Arguments after it.

    Raises:
        TokenwmError: There is no such subcommand or size, or nothing says what to train.
        SystemExit: Help was asked for, or an option is wrong.
    """
    usage = f"tokenwm {verb} {'|'.join(SUBCOMMANDS)} [options]; see tokenwm {verb} fit --help"
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: {usage}")
        raise SystemExit(0)
    if not argv or argv[0] not in SUBCOMMANDS:
        raise TokenwmError(f"usage: {usage}")
    subcommand, *rest = argv
    if {"-h", "--help"} & set(rest):
        training(verb, subcommand).parse_args(["--help"])
    given, others = training(verb, subcommand, with_lightning=False).parse_known_args(rest)
    if given.help_all:
        return [subcommand, "--help"]
    result = [subcommand]
    if given.size is not None:
        name = given.size.removesuffix(".yaml")
        result += ["--config", str(find_file(f"configs/{verb.replace('-', '_')}/{name}.yaml"))]
    elif not _says_what(given, others):
        raise TokenwmError(
            "nothing says what to train: give --size small (a config that comes with tokenwm), "
            f"--config FILE, or --from MODEL; see tokenwm {verb} {subcommand} --help"
        )
    return [*result, *others, *_long_options(given)]


def _says_what(given: argparse.Namespace, others: Sequence[str]) -> bool:
    """True if the length of windows is given, without which nothing can be trained."""
    if getattr(given, "from", None) is not None:
        return True
    told = ("--config", "--data.num_steps", "--print_config", "--model.help", "--data.help")
    settings = (f"--{setting}" for setting in given.set)
    return _is_config(given.data) or any(word.startswith(told) for word in (*others, *settings))


def _is_config(data: str | None) -> bool:
    """True if ``--data`` is LightningCLI's own: a file or text with options of the data."""
    return data is not None and data.endswith((".yaml", ".yml", "}"))


def _long_options(given: argparse.Namespace) -> list[str]:
    result = []
    if getattr(given, "from", None) is not None:
        result.append(f"--from={getattr(given, 'from')}")
    if given.data is not None:
        option = "--data" if _is_config(given.data) else "--data.root"
        result.append(f"{option}={given.data}")
    if given.out is not None:
        result.append(f"--trainer.default_root_dir={given.out}")
    result += device_options(given.device)
    if given.workers is not None:
        result.append(f"--data.num_workers={given.workers}")
    if given.overwrite:
        result.append("--resume=false")
    for setting in given.set:
        if "=" not in setting:
            raise TokenwmError(f"--set {setting!r}: expected KEY=VALUE")
        result.append(f"--{setting}")
    return result


def device_options(name: str) -> list[str]:
    """The options of LightningCLI that ``--device`` stands for; it finds a GPU itself."""
    if name == "auto":
        return []
    kind, _, index = name.partition(":")
    accelerator = f"--trainer.accelerator={'gpu' if kind == 'cuda' else kind}"
    return [accelerator, f"--trainer.devices=[{index}]"] if index else [accelerator]
