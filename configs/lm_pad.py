"""A language model with a partially dynamic mixture of experts, κ = 0.5 by neuron, on bytes. Minutes on a CPU.

    python train.py --config=configs/lm_pad.py --workdir=runs/lm
    python -m pad_jax generate --workdir=runs/lm --prompt='def main('

The text is the source of Python's own standard library, which every machine has. Flags for your own texts:

    --config.data.name=corpus --config.data.path=FOLDER

FOLDER holds text files or JSON lines; its subfolders are domains, each with a loss of its own. The base of every config
of causal language models: it has all keys, with their meanings.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = 'llama'  # family: decides norms, attention and router
    config.model.ffn = 'ffn'  # dense; linear: each linear layer a mixture; ffn: whole experts
    config.model.num_experts = 8  # E, experts of a mixture
    config.model.num_selected = 2  # k, experts of each token
    config.model.plan = 'auto'  # execution of mixtures
    config.model.balance_coefficient = 1e-2  # weight of the loss that balances importance and load
    config.model.z_coefficient = 0.0  # weight of the loss that keeps router logits small
    config.model.switch_coefficient = 0.0  # weight of the load-balancing loss of Switch
    config.model.num_layers = 2  # blocks of attention and feed-forward part
    config.model.width = 64  # C, features of a token
    config.model.num_heads = 4  # attention heads
    config.model.num_kv_heads = 0  # heads of keys and values; 0 = as many as num_heads
    config.model.ffn_width = 128  # F, hidden width of an expert, or of the dense part
    config.model.shared_width = 0  # hidden width of an expert for all tokens; 0 = none
    config.model.vocab_size = 256  # rows of the token embedding
    config.model.max_length = 64  # most tokens of a text
    config.model.dtype = 'float32'  # dtype to compute in, float32 or bfloat16; parameters stay float32
    config.model.remat = False  # recompute activations for the gradient: less memory, more time

    config.partition = ConfigDict()
    config.partition.dynamic_fraction = 0.5  # κ; 1 = fully dynamic
    config.partition.criterion = 'sensitivity'  # score: sensitivity, magnitude, random, grasp, synflow, variance
    config.partition.scope = 'global'  # positions compete in the whole network (global) or in their layer
    config.partition.granularity = 'output'  # positions with one gate: element, output, input, layer
    config.partition.rounds = 1  # T, rounds of the partition
    config.partition.schedule = 'exponential'  # dynamic fraction after each round: exponential, linear, one_shot
    config.partition.start_step = 0  # training steps before the first round
    config.partition.every_steps = 0  # training steps between rounds
    config.partition.batches = 10  # scoring batches of a round
    config.partition.batch_size = 16  # examples of a scoring batch
    config.partition.handoff = 'independent'  # static parameters start from independent draws or the mean factor
    config.partition.scales = 'both'  # scale factors λd and λs: both, static, dynamic, none
    config.partition.prune = False  # positions that are not dynamic become zero instead of static
    config.partition.compact = False  # train without dead entries after the last round
    config.partition.keep_dynamic = ''  # regular expression: layers that stay dynamic, outside κ
    config.partition.keep_static = ''  # regular expression: layers that become static, outside κ

    config.data = ConfigDict()
    config.data.name = 'stdlib'  # corpus: your own texts; stdlib: Python's own library
    config.data.path = ''  # file or folder of the data
    config.data.text_column = 'text'  # of JSON lines: field of the text
    config.data.holdout = 0.01  # share of each class to evaluate on, if the data has no split for it
    config.data.vocabulary = ''  # vocab.txt, tokenizer.json or name of a package; '' = bytes
    config.data.batch_size = 16  # examples of a batch, over all devices
    config.data.max_length = 64  # T, tokens of a window
    config.data.on_bad = 'stop'  # image, row or file that cannot be read: stop, skip

    config.optim = ConfigDict()
    config.optim.name = 'adamw'  # optimizer: sgd, adamw
    config.optim.learning_rate = 3e-3  # peak of the learning rate
    config.optim.schedule = 'cosine'  # learning rate after the warm-up: cosine, linear, step, constant
    config.optim.warmup_steps = 10  # linear warm-up from 0
    config.optim.weight_decay = 0.1  # applies to weights only
    config.optim.clip_norm = 1.0  # largest global gradient norm; 0 = no clipping
    config.optim.accumulate_steps = 1  # microbatches of a batch
    config.optim.ema_decay = 0.0  # moving average of parameters, used by evaluation; 0 = none

    config.train = ConfigDict()
    config.train.objective = 'causal'  # causal: predict the next token; masked: hidden ones
    config.train.steps = 1500  # 0 = given by epochs
    config.train.epochs = 0.0  # passes over the training data, if steps is 0
    config.train.seed = 0  # seed of all random draws
    config.train.on_nonfinite = 'stop'  # loss or gradient that is not finite: stop, skip
    config.train.max_nonfinite = 10  # skipped steps in a row that stop the run
    config.train.eval_every_steps = 500  # steps between evaluations; like the next two, also at the last step
    config.train.log_every_steps = 50  # train rows of metrics.jsonl
    config.train.checkpoint_every_steps = 500  # most steps that an interruption loses
    config.train.keep_checkpoints = 1  # latest checkpoints that are kept
    config.train.keep_best = False  # also keep the checkpoint of the best evaluation, for --best
    config.train.patience = 0  # evaluations without a better one that end the run; 0 = never

    config.parallel = 'pmap'  # step on several devices: pmap, shard_map
    config.debug = False  # stop at the operation that makes a NaN
    return config
