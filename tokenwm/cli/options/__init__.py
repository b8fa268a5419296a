"""The options of every verb, apart from what verbs do, so that help needs nothing heavy."""

from collections.abc import Callable, Mapping

from tokenwm.cli.options import data, models, sweeps
from tokenwm.cli.options.base import Parser

PARSERS: Mapping[str, Callable[[], Parser]] = {
    "quickstart": data.quickstart,
    "inspect": data.inspect,
    "prepare": data.prepare,
    "verify-shards": data.verify_shards,
    "export-lerobot": data.export_lerobot,
    "tokenize": data.tokenize,
    "imagine": models.imagine,
    "evaluate": models.evaluate,
    "info": models.info,
    "report": models.report,
    "serve": models.serve,
    "push": models.push,
    "pull": models.pull,
    "sweep plan": sweeps.plan,
    "sweep run": sweeps.run,
    "sweep fit": sweeps.fit,
}
"""Words of a verb → its parser; ``training.py`` has those of ``tokenizer`` and ``world-model``."""
