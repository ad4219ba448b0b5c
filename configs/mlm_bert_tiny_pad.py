"""BERT-tiny with a partially dynamic mixture of experts, κ = 0.5 by neuron, pretrained on texts.

    make weights
    python train.py --config=configs/mlm_bert_tiny_pad.py --workdir=runs/mlm --config.data.path=FOLDER

FOLDER holds text files or JSON lines. The vocabulary is that of `make weights`. The network is then fine-tuned on GLUE:

    python train.py --config=configs/glue_minilm_moe.py --workdir=runs/rte --config.data.path=GLUE \
        --config.model.name=bert_tiny --config.model.ffn=ffn --config.model.pretrained=runs/mlm

The recipe is that of BERT (Devlin et al. 2019, arXiv:1810.04805) without the next sentence, at a batch for one CPU.
It was never run to its end here. The base of every config of masked language models: it has all keys, with their
meanings.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = 'bert_tiny'  # encoder: bert_tiny, minilm, bert_base, bert_large
    config.model.ffn = 'ffn'  # dense; linear: each linear layer a mixture; ffn: whole experts
    config.model.num_experts = 8  # E, experts of a mixture
    config.model.num_selected = 2  # k, experts of each token
    config.model.routing = 'token'  # unit that experts are chosen for: token, sentence
    config.model.plan = 'auto'  # execution of mixtures
    config.model.balance_coefficient = 1e-2  # weight of the loss that balances importance and load
    config.model.z_coefficient = 0.0  # weight of the loss that keeps router logits small
    config.model.switch_coefficient = 0.0  # weight of the load-balancing loss of Switch
    config.model.vocab_size = 30522  # rows of the token embedding
    config.model.max_length = 512  # rows of the position embedding
    config.model.dropout = 0.0  # dropped fraction in training
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
    config.partition.batch_size = 32  # examples of a scoring batch
    config.partition.handoff = 'independent'  # static parameters start from independent draws or the mean factor
    config.partition.scales = 'both'  # scale factors λd and λs: both, static, dynamic, none
    config.partition.prune = False  # positions that are not dynamic become zero instead of static
    config.partition.compact = False  # train without dead entries after the last round
    config.partition.keep_dynamic = ''  # regular expression: layers that stay dynamic, outside κ
    config.partition.keep_static = ''  # regular expression: layers that become static, outside κ

    config.data = ConfigDict()
    config.data.name = 'corpus'  # corpus: your own texts; stdlib: Python's own library
    config.data.path = ''  # file or folder of the data
    config.data.text_column = 'text'  # of JSON lines: field of the text
    config.data.holdout = 0.05  # share of each class to evaluate on, if the data has no split for it
    config.data.vocabulary = 'minilm'  # vocab.txt, tokenizer.json or name of a package; '' = bytes
    config.data.batch_size = 32  # examples of a batch, over all devices
    config.data.max_length = 128  # T, tokens of a window
    config.data.on_bad = 'stop'  # image, row or file that cannot be read: stop, skip

    config.optim = ConfigDict()
    config.optim.name = 'adamw'  # optimizer: sgd, adamw
    config.optim.learning_rate = 1e-3  # peak of the learning rate
    config.optim.schedule = 'linear'  # learning rate after the warm-up: cosine, linear, step, constant
    config.optim.warmup_steps = 10  # linear warm-up from 0
    config.optim.weight_decay = 0.01  # applies to weights only
    config.optim.clip_norm = 1.0  # largest global gradient norm; 0 = no clipping
    config.optim.accumulate_steps = 1  # microbatches of a batch
    config.optim.ema_decay = 0.0  # moving average of parameters, used by evaluation; 0 = none

    config.train = ConfigDict()
    config.train.objective = 'masked'  # causal: predict the next token; masked: hidden ones
    config.train.steps = 10000  # 0 = given by epochs
    config.train.epochs = 0.0  # passes over the training data, if steps is 0
    config.train.seed = 0  # seed of all random draws
    config.train.on_nonfinite = 'stop'  # loss or gradient that is not finite: stop, skip
    config.train.max_nonfinite = 10  # skipped steps in a row that stop the run
    config.train.eval_every_steps = 1000  # steps between evaluations; like the next two, also at the last step
    config.train.log_every_steps = 50  # train rows of metrics.jsonl
    config.train.checkpoint_every_steps = 1000  # most steps that an interruption loses
    config.train.keep_checkpoints = 1  # latest checkpoints that are kept
    config.train.keep_best = False  # also keep the checkpoint of the best evaluation, for --best
    config.train.patience = 0  # evaluations without a better one that end the run; 0 = never

    config.parallel = 'pmap'  # step on several devices: pmap, shard_map
    config.debug = False  # stop at the operation that makes a NaN
    return config
