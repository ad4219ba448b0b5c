"""A partially dynamic mixture of experts, MiniLM of six layers upcycled, on one task of GLUE; sized for a CPU.

    make weights
    python train.py --config=configs/glue_minilm_pad.py --workdir=runs/rte --config.data.path=FOLDER

FOLDER holds the original files of GLUE (RTE/train.tsv and so on), or is a data_dir of TFDS. Another task, or texts of
your own:

    --config.data.task=mrpc
    --config.data.name=text --config.data.text_columns=question,answer --config.data.label_column=label

The keys of every language config, with what they mean.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = 'minilm'  # bert_tiny, minilm, bert_base, bert_large
    config.model.num_classes = 0  # 0 = as many as the task has; of texts of your own 2, or 1 if labels are numbers
    config.model.ffn = 'linear'  # the feed-forward part: dense; linear (each linear a mixture); ffn (whole experts)
    config.model.num_experts = 8  # E
    config.model.num_selected = 2  # k: experts of each token
    config.model.routing = 'token'  # each token, or each sentence as a whole, has experts of its own
    config.model.plan = 'auto'  # how tokens reach experts: auto, dense, blocks, ragged
    config.model.balance_coefficient = 1e-2  # of the loss that evens out importance and load
    config.model.z_coefficient = 0.0  # of the loss that keeps a router's logits small
    config.model.vocab_size = 30522  # pieces
    config.model.max_length = 512  # positions
    config.model.dropout = 0.1  # fraction, in training
    config.model.dtype = 'float32'  # to compute in; parameters are float32
    config.model.remat = False  # compute activations anew for the gradient: less memory, more time
    config.model.pretrained = 'minilm'  # a folder with model.safetensors; a package's name; '' = from scratch

    config.partition = ConfigDict()
    config.partition.dynamic_fraction = 0.5  # κ: 1 = fully dynamic
    config.partition.criterion = 'sensitivity'  # sensitivity, magnitude, random, grasp, synflow, variance
    config.partition.scope = 'global'  # positions compete over the whole network, or within their layer
    config.partition.granularity = 'element'  # one gate for each element, output, input, layer
    # Experts that were copied from one dense layer carry no signal until they have trained apart.
    config.partition.rounds = 4  # T
    config.partition.schedule = 'exponential'  # κ after each round: exponential, linear, one_shot
    config.partition.start_step = 4  # steps before the first round; raise it, and the next, in a long run
    config.partition.every_steps = 2  # steps between rounds; 0 = one after the other
    config.partition.batches = 10  # scoring batches for each round
    config.partition.batch_size = 32  # examples in each
    config.partition.handoff = 'mean'  # a static parameter starts from the experts' mean, or keeps its own value
    config.partition.scales = 'both'  # scale factors λd and λs: both, static, dynamic, none
    config.partition.prune = False  # positions that are not dynamic: zero (True), or a static parameter (False)
    config.partition.compact = False  # after the last round, keep and train what is alive alone
    config.partition.keep_dynamic = ''  # regular expression: layers that stay dynamic, outside κ
    config.partition.keep_static = ''  # regular expression: layers that become static, outside κ

    config.data = ConfigDict()
    config.data.name = 'glue'  # glue; text: files of your own
    config.data.path = ''  # where the data lies
    config.data.task = 'rte'  # of glue: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli
    config.data.text_columns = ''  # of text: one column or two, separated by a comma
    config.data.label_column = ''  # of text
    config.data.regression = False  # of text: labels are numbers
    config.data.vocabulary = ''  # a vocab.txt or tokenizer.json; '' = that of the pretrained weights
    config.data.batch_size = 32  # global
    config.data.max_length = 128  # of a text or pair, in pieces; the longer text is cut first
    config.data.on_bad = 'stop'  # a row that is wrong: stop, skip (and say so); a CSV whose quoting breaks always stops

    config.optim = ConfigDict()
    config.optim.name = 'adamw'  # sgd (momentum 0.9), adamw
    config.optim.learning_rate = 5e-5  # peak
    config.optim.schedule = 'linear'  # cosine, linear, step, constant
    config.optim.warmup_steps = 10  # linear, from 0
    config.optim.weight_decay = 0.01  # on weights only
    config.optim.clip_norm = 1.0  # global gradient norm; 0 = no clipping
    config.optim.accumulate_steps = 1  # parts that a batch is worked off in
    config.optim.ema_decay = 0.0  # of the moving average of parameters that is evaluated in their place; 0 = none

    config.train = ConfigDict()
    config.train.steps = 0  # 0 = as many as epochs say
    config.train.epochs = 3.0  # passes over the training data, if steps is 0
    config.train.seed = 0  # of new parameters, order, dropout and routers' noise
    config.train.on_nonfinite = 'stop'  # a loss or gradient that is not finite: stop; skip leaves that step out
    config.train.max_nonfinite = 10  # so many skipped in a row stop the run
    config.train.eval_every_steps = 100  # and after the last step, as are the next two
    config.train.log_every_steps = 10  # rows of metrics.jsonl
    config.train.checkpoint_every_steps = 100  # what an interruption loses at most
    config.train.keep_checkpoints = 1  # the newest

    config.parallel = 'pmap'  # pmap, shard_map
    config.debug = False  # stop where a NaN is made, and name the operation and the line of the model
    return config
