"""Options of the verbs about data."""

from collections.abc import Mapping

from tokenwm.cli.options.base import NUM_CORES

SHARD_WORKERS = "shards made at once, 0 for in this process; the result does not depend on it"

TEXTS: Mapping[str, str] = {
    "quickstart": """
Record or read episodes, train a world model, imagine, and report. Interrupted, the same command
continues.

--recipe FILE = data_recipes/pusht.yaml  data recipe; yours works too
--out DIR = runs/quickstart  folder of the run
--from DIR  fine-tune the model of this run or checkpoint on the recipe's episodes, with what it was
    trained on mixed in (see docs/training.md); --size does not matter then
--minutes X  time for everything (default: 15, with --from 6); training fills what preparation and
    evaluation leave, by the clock. A continued run counts the time used before, up to its last
    checkpoint
--size {debug,small,planning,base,large} = small  config of that name for both models; debug takes
    its steps from the config and little data
--set|--model-set KEY=VALUE …  override values of the recipe, for example image_size=[128,128], or
    of a training, for example world-model.model.model.transformer.dropout=0.1
+ DEVICE JSON ANEW
""",
    "inspect": """
Say what a file or folder of recordings holds, and write a recipe for it (see docs/data.md). Nothing
in it is changed.

path DIR  file or folder of recordings
--recipe FILE  write a starter recipe to this file
--episodes N = 100  read the numbers of N episodes, evenly spread; 0 for all
--overwrite  replace another recipe in the file
+ JSON
""",
    "prepare": f"""
Turn recorded episodes into shards, as a recipe says (see docs/data.md). Interrupted, the same
command continues.

recipe RECIPE  recipe file, for example data_recipes/pusht.yaml
--out DIR|URL  folder of the dataset, or an fsspec URL
--workers WORKERS = {NUM_CORES}  {SHARD_WORKERS}
--set KEY=VALUE …  override values of the recipe, for example image_size=[128,128]
--strict  stop at the first bad episode instead of leaving it out (quality.strict=true)
--dry-run  make nothing; say which episodes would be used, how many bytes and how much time
--overwrite  replace another dataset in the folder, or this one if a byte of it is damaged
+ ENGINE JSON
""",
    "verify-shards": """
Check every byte of a dataset against its manifest. Exit code 1 if anything is damaged, missing, or
should not be there.

dataset DIR|URL  frame or token shards
--workers WORKERS  processes that read, 0 for none (default: one per core if there is much to read)
+ JSON
""",
    "export-lerobot": """
Write the episodes of frame shards as a LeRobot folder (see docs/formats.md).

dataset DIR|URL  frame shards, from tokenwm prepare
--out DIR!  folder to make
--version {v3.0,v2.1} = v3.0  version of LeRobot's format
--crf N = 10  quality of the videos, 0 to 51, smaller is better
--synthetic-column  a column that says which episodes were imagined; sets with it merge only with
    others that have it
--overwrite  replace a LeRobot folder
+ JSON
""",
    "export-arrays": """
Write the episodes of frame shards as a robomimic HDF5 file or as NPZ files, one per episode, with a
recipe that reads them again (see docs/synthetic.md).

dataset DIR|URL  frame shards, from tokenwm prepare or tokenwm synthesize
--out DIR!  folder to make
--layout {robomimic,npz} = robomimic  which
--overwrite  replace an exported folder
+ JSON
""",
    "tokenize": f"""
Encode frame shards once, before the world model is trained. Interrupted, the same command
continues.

frames DIR|URL  frame shards made by tokenwm prepare
--tokenizer DIR!  run or checkpoint folder of the tokenizer
--out DIR|URL!  folder of the token shards
--action-bins N = 256  bins per action dimension, over the range of the training data
--state-bins N = 256  bins per state dimension
--bin-margin X = 2.0  what further bins cover beyond that range on each side, in such ranges (the
    median dimension's where the own is smaller): values of another day have their place there
--bins {{uniform,quantile}} = uniform  even bins over the range of the training data, or as many
    values in each
--vocabulary-of DIR|URL  take the bins of these token shards, so that both can be mixed in training,
    or of a world model that is to be fine-tuned on the tokens
--no-state  leave proprioception out of the sequence
--code-margin X  keep a token until its latent is so far beyond the border of its bin, whatever
    the tokenizer was trained with (docs/training.md)
--shifted-copies N = 0  copies of every training episode with frames moved by a few pixels, for
    small datasets
--workers WORKERS  {SHARD_WORKERS} (default: one per core, on a CPU and if there is much to encode)
--overwrite  replace a dataset in the folder
+ ENGINE DEVICE JSON
""",
}
"""Words of a verb → what it does, an empty line, its options."""
