"""Options of the verbs that use a trained model."""

from collections.abc import Mapping

from tokenwm.cli.options.data import SHARD_WORKERS

MODEL = "run or checkpoint folder of the world model"
FRAMES = "frame shards made by tokenwm prepare (default: those that the model was trained on)"
IMAGINING = """\
--context N = 4  observed frames before imagining
--horizon N = 20  imagined steps
--temperature X = {temperature}  0 always takes the most likely token, 1 draws as the model
    believes; else at least 0.0001
--top-k K  draw from the K most likely tokens only
--top-p X = 1.0  draw from the most likely tokens that hold so much of the probability only; 1 is
    all
--seed SEED = 0  seed of everything random; the same seed gives the same future
"""
"""Options of imagination, which ``evaluate`` and ``imagine`` share."""

PLANNERS: Mapping[str, str] = {
    "random-shooting": "random_shooting:RandomShooting",
    "cem": "cem:CEM",
    "icem": "icem:ICEM",
    "mppi": "mppi:MPPI",
    "categorical": "categorical:CategoricalCEM",
    "beam": "beam:BeamSearch",
    "graph": "graph:GraphSearch",
}
"""Planner → module and class in ``tokenwm/control/planners``."""

TEXTS: Mapping[str, str] = {
    "evaluate": f"""
Imagine held-out episodes open loop, measure every step beside persistence, reconstruction and
shuffled actions, and write a report (see docs/evaluation.md).

model DIR …  {MODEL}; of folds, one each (they are measured as one, see docs/evaluation.md)
--data DIR|URL …  {FRAMES}; of folds, one each in the same order
--out DIR  folder of the report (default: MODEL/report; of folds, report_folds of the first)
--split {{train,val,test}} = test  episodes to measure; val is taken where there is no test
--starts N = 4  starts per episode, evenly spaced
--episodes N  measure only N episodes, evenly spread over the split (default: all)
--batch-size N = 32  futures imagined at once; bounds the memory
--examples N = 4  starts to show as pictures, from best to worst
--lpips  also take LPIPS distances; needs the extra perceptual and AlexNet's weights in the torch
    hub cache, nothing is downloaded
--curves TITLE=CSV …  metrics.csv of a training run to draw as well; may be repeated. The model's
    own is found in MODEL/logs
{IMAGINING.format(temperature=0.0)}+ DEVICE JSON REMAKE
""",
    "heads": f"""
Train small heads on what a finished world model sees, measure them on held-out episodes and keep
them beside it: the action prior (cloning by hindsight), the distance to a goal and the model's
doubt.

model DIR  {MODEL}
--data DIR|URL  {FRAMES}
--train {{prior,distance,doubt}} …  which (default: all)
--mix DIR|URL …  further frames to train on, as tokenwm synthesize makes them
--real-fraction X  share of the drawn steps that are recorded, not synthetic (default: all steps
    alike)
--minutes MINUTES = 3.0  of training, of all of them together; encoding the frames comes on top
--epochs X = 50.0  passes over all steps after which training ends, however much time is left
--chunk N  steps of the model that the prior gives at once (default: 2.5 seconds)
--reach N  most steps of the model from a state to its goal (default: 5 seconds)
--seed SEED = 0  seed of everything random
+ DEVICE JSON REMAKE
""",
    "imagine": f"""
Imagine from any recorded episode with its own, other or random actions; writes a GIF, an MP4 and an
NPZ (see docs/evaluation.md). With --instead both its own and other actions, with the same luck, and
how they differ, also as strip and numbers (see docs/synthetic.md).

model DIR  {MODEL}
--data DIR|URL  {FRAMES}
--out DIR!  folder to write into
--episode KEY  episode to start from (default: the first held-out one)
--start N = 0  step of the episode at which the observed context begins
--actions WHOSE = own  own: those of the episode; random: uniform over the range of the training
    data; KEY: those of another episode at the same steps; FILE.npy: an array of at least as many
    rows of actions as steps are imagined, in the units of the data
--instead CHANGE …  what would have been with other actions from the last observed step on:
    NAME=VALUE, NAME+=VALUE, NAME-=10%% (of a dimension's range; its name or number; several go
    together), EPISODE:STEP (what was done there) or FILE.npy
--instead-steps N  actions that are changed; then come the episode's own (default: all imagined)
--rerun  with --instead: also write a recording for the Rerun viewer (.rrd); needs the extra rerun
--samples N  futures to draw, each with its own noise (default: 1; with --instead 8 pairs)
{IMAGINING.format(temperature=1.0)}+ DEVICE JSON REMAKE
""",
    "play": f"""
Open a page on which people steer the imagined robot, several at once (see docs/playing.md).

model DIR  {MODEL}
--data DIR|URL  {FRAMES}, to begin from
--out DIR  folder that played episodes are saved in, as recordings that prepare reads (default:
    MODEL/played)
--host NAME = 127.0.0.1  address to listen on; there is no authentication, so leave it on loopback
    or put a proxy in front
--port N = 8610  0 takes a free one
--allow-host NAME …  another name that the server goes by, may be given again; requests for others
    are refused (loopback, this machine's name, --host and IP addresses are known)
--dtype {{float32,bfloat16}} = float32  type in which the transformer computes
--num-passes N  passes through the transformer for a frame: fewer are faster and not exact (default:
    as many as exact frames take)
--context N = 4  observed frames before imagining
--temperature X = 0.3  0 always takes the most likely token, 1 draws as the model believes: then
    small mistakes add up to ghosts
--max-players N = 32  people at a time
+ DEVICE
""",
    "synthesize": f"""
Imagine episodes that never happened, from recorded steps, and write them as frame shards: marked as
synthetic, with the origin of each, cut where the model can no longer be trusted (see
docs/synthetic.md). Interrupted, the same command continues.

model DIR  {MODEL}
--data DIR|URL  {FRAMES}
--out DIR|URL!  folder of the dataset
--actions {{records,other,policy,planner,random}} = records  those of the recording from there on,
    with noise; of another episode; of the action prior (tokenwm heads MODEL); planned towards the
    picture that was recorded --horizon steps later; or random
--noise X = 0.3  of records: standard deviation of the noise, in those of the data; of ids the
    share that is replaced
--episodes N = 100  episodes to imagine; those that cannot be trusted are not kept
--least-steps N = 2  imagined steps below which an episode is not kept
--split {{train,val,test}} = train  episodes that starts are taken from
--alpha X = 0.1  limits: this share of held-out episodes, imagined with their own actions, may be
    beyond one of them; 0 for no limits
--max-surprise X  limit of the model's surprise at what it drew, nats per token, instead
--max-doubt X  limit of its learned doubt, instead
--batch-size N = 16  episodes imagined at once; bounds the memory
--workers WORKERS = 0  {SHARD_WORKERS}
{IMAGINING.format(temperature=1.0)}--overwrite  replace another dataset in the folder
+ ENGINE DEVICE JSON
""",
    "control": f"""
Let a model decide in a simulator: plan, act, observe, plan anew. Writes control.json, a page with
films of real beside imagined, and the episodes as recordings that prepare reads.

model DIR  {MODEL}
--out DIR!  folder to write into
--env ID  registered id of a Gymnasium environment (default: the one the data was recorded from)
--set KEY=VALUE …  options of the simulator, as a recipe has them under source: cameras, state,
    rate, env_kwargs, start, reset_options, …
--steps N  most environment steps of an episode (default: as the data)
--planner {{{",".join((*PLANNERS, "random"))}}}  who looks for actions; random draws them, to
    compare with; graph is for few actions and pictures that tell all (default: icem, or categorical
    where actions are ids)
--objective {{reward,goal-image,goal-state,distance}} = reward  what is wanted: the predicted
    reward, or to be near --goal; distance is the learned one
--goals DIR|URL  frame shards of that simulator: every episode starts at a held-out step of theirs
    and has to get to what was there --ahead seconds later; needs their task state
--ahead SECONDS = 2.5  seconds from start to goal; an episode has twice as long
--discount X = 1.0  of the predicted reward, for each step of the model; below 1 where an episode
    ends with its only reward, or later is as good as sooner
--prior  let the action prior propose the first candidates
--doubt  have the learned doubt of every plan; these three are trained by tokenwm heads MODEL
--goal FILE  a picture of the goal, or an .npy of it or of the robot's state
--horizon N = 5  steps of the model that a plan has
--candidates N = 64  action sequences that are tried in a round; of graph, new situations of a step
    that are gone on from
--rounds N = 3  most rounds of a plan
--passes N  imagine candidates in so many passes a step, and only the best exactly (default: all
    exactly)
--every N  robot steps from plan to plan (default: one step of the model)
--deadline X  seconds from an observation until its action must be there; steps then take as long
    as they would in reality (default: plans are waited for)
--limits FILE  hard limits, see tokenwm info DATASET --limits FILE
--safe-action X …  the robot's action, one number a dimension, where nothing is left of the last
    plan
--episodes N = 10  how many
--films N = 2  episodes, from the first on, to film
--dtype {{float32,bfloat16}} = float32  type in which the transformer computes
--seed SEED = 0  seed of the episodes' starts and of all noise
+ DEVICE JSON REMAKE
""",
    "info": """
Say what a dataset, a checkpoint, a run, a sweep or a report holds, where it came from, and what to
do with it next.

path PATH|URL  what to look at
--limits FILE  of a dataset: write the hard limits that it proposes, as YAML, to look over and give
    to tokenwm control --limits
+ JSON
""",
    "report": """
Write the page of an evaluation or of a dataset's quality again, from the figures beside it: after
an update of tokenwm for example. Nothing is measured.

path DIR|URL  folder of a report, of a run that has one, or of frame shards
+ JSON
""",
    "completion": """
Print a completion script: eval "$(tokenwm completion bash)" in ~/.bashrc, or the same with zsh in
~/.zshrc.

shell {bash,zsh}  for which shell
""",
    "push": """
Publish a checkpoint or a dataset on the Hugging Face hub, with a card made from provenance and
report. Local folders and tokens are taken out.

path DIR  folder of a checkpoint, a run or a dataset
repository OWNER/NAME  made if it is not there
--report DIR  the model's report, for figures in the card
--private  a repository that is made is private
+ JSON
""",
    "pull": """
Fetch a checkpoint or a dataset from the Hugging Face hub. Every file is checked against its hash;
code and pickles are never fetched.

repository OWNER/NAME  where it is
--out DIR!  folder to make
--dataset  a dataset, not a checkpoint
--revision NAME  branch, tag or commit
--max-gigabytes X = 20.0  most that is fetched
--overwrite  replace a checkpoint or a dataset in the folder
+ JSON
""",
    "serve": f"""
Imagine, score and encode for other processes (see docs/serving.md); requests that wait together are
computed together.

model DIR  {MODEL}
--host NAME = 127.0.0.1  address to listen on; there is no authentication, so leave it on loopback
    or put a proxy in front
--port N = 8600  0 takes a free one
--allow-host NAME …  another name that the server goes by, may be given again; requests for others
    are refused (loopback, this machine's name, --host and IP addresses are known)
--dtype {{float32,bfloat16}} = float32  type in which the transformer computes
--max-rows N = 1024  imagined rows of a request
--max-steps N = 1000  context steps and actions of a request
--max-row-steps N = 65536  imagined rows times actions of a request
--max-megabytes N = 64  size of a request
--max-held-megabytes N = 512  size of all requests that are received, wait or are answered; beyond,
    503
--max-queued-rows N = 4096  rows that may wait; beyond, 503
--max-connections N = 256  open connections; beyond, 503
--max-batch-rows N  rows computed at once; more waits for its turn (default: 32 on a CPU, else 1024)
--timeout X = 60.0  seconds until a request is given up
+ DEVICE
""",
}
"""Words of a verb → what it does, an empty line, its options."""
