"""Options of ``tokenwm sweep plan|run|fit``."""

from collections.abc import Mapping

from tokenwm.scaling.runs.columns import COLUMN_OF

TEXTS: Mapping[str, str] = {
    "sweep plan": """
Choose sizes, token budgets and learning rates by rule, show what they cost, and write the sweep
file. Nothing is trained but a few steps of each size, to time them.

tokens DIR|URL  token shards
--budget FLOPS!  training FLOPs of all runs together, for example 3e15 or 300T
--out SWEEP!  sweep file to write (YAML)
--sizes N = 5  model sizes
--budgets N = 4  token budgets of each size
--workers|--parallel N = 1  runs that will be trained at once on this machine
--min-parameters X = 3e4  matmul parameters of the smallest size
--max-parameters X = 3e6  matmul parameters of the largest size
--budget-ratio X = 2.0  ratio of a token budget to the one before
--learning-rate X = 2.5e-3  peak learning rate at width 128
--seeds SEED …  seeds (default: 0)
--verify-learning-rate  add runs at half and twice each size's rate, with its second smallest budget
--no-probe FLOPS/S  time nothing; every run is taken to be as fast as this
--set KEY=VALUE …  override training settings that all runs have in common, for example
    batch_size=32 precision=bf16-mixed; docs/scaling.md names all
--overwrite  replace a plan that is there
+ DEVICE JSON
""",
    "sweep run": """
Train all runs of a sweep file. Finished runs are skipped, others go on from their last checkpoint,
so the same command continues an interrupted sweep.

sweep SWEEP  sweep file, from tokenwm sweep plan
--out DIR!  folder of the runs
--data DIR|URL  token shards (default: those the file names)
--workers|--parallel RUNS = 1  runs at once; locally they share the cores evenly unless
    OMP_NUM_THREADS is set
--retries N = 1  further attempts of a run that fails; diverged runs are not repeated
--evaluate DIR|URL  frame shards that the tokens were made of: measure rollout PSNR, effective
    horizon and reward error of every run as well
--gpus X = 0.0  GPUs of a Ray task
--slurm KEY=VALUE …  parameters for submitit, for example slurm_partition=gpu timeout_min=240
    gpus_per_node=1 cpus_per_task=8
+ ENGINE DEVICE JSON ANEW
""",
    "sweep fit": f"""
Fit L = E + A/N^α + B/D^β to the runs of a sweep, compare with IsoFLOP parabolas and the loss
envelope, check by hold-out, and say what to train for a budget (see docs/scaling.md).

path PATH  folder of a sweep, or a CSV file of runs
--columns KEY=COLUMN …  columns of a CSV file, for example N='Model Size' D='Training Tokens'; keys:
    {", ".join(COLUMN_OF)}; the others are known by their usual names
--metrics COLUMN …  further columns of a CSV file to set against compute
--budget FLOPS  training FLOPs to recommend for (default: ten times those of the largest run)
--out DIR  folder of the report (default: SWEEP/fit, or NAME-fit beside a CSV file)
--imagined-steps STEPS  environment steps the model will imagine in its life; gives the size that is
    cheapest to train and imagine with at the same loss
--tokens-per-imagined-step TOKENS  positions of a step: frame tokens, one for state, one for action
--tokens-per-step TOKENS  tokens of an optimizer step, for the number of steps (default: that of the
    runs)
--flops-per-second FLOPS  throughput of training, for hours (default: that of the largest runs)
--drop-highest-loss K = 0  leave out the K runs with the highest loss; they are listed
--drop-shortest K = 0  of every size, leave out the runs with its K smallest token budgets, which
    may not follow the law yet; they are listed
--exclude RUN=REASON …  leave out runs by name; the reason is kept in the report
--delta DELTA = 1e-3  of the Huber loss, in log loss
--replicates N = 500  replicates of every bootstrap
--confidence X = 0.9  coverage of the intervals
--seed SEED = 0  seed of every bootstrap
+ JSON REMAKE
""",
}
"""Words of a verb → what it does, an empty line, its options."""
