"""A partially dynamic ResNet-10 on scikit-learn's scanned digits (8×8), κ = 0.3: half a minute, 98 % correct.

    python train.py --config=configs/digits_resnet10_pad.py --workdir=runs/digits

The keys of every vision config, with what they mean.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = 'resnet10'  # resnet10, 18, 34, 50, 101; mobilenet_v2
    config.model.num_classes = 10  # as many as the data has
    config.model.conv = 'dynamic'  # of all but the stem: static, dynamic (DY-Conv), condconv, odconv, dcd
    config.model.num_kernels = 4  # K
    config.model.reduction = 16  # hidden width of the attention: channels / reduction
    config.model.width_multiplier = 0.25  # of the channels of every layer; 1 = the paper's network
    config.model.stem = 'cifar'  # imagenet: resolution / 32 at the end of the network; cifar, for small images: / 8
    config.model.sync_batch_norm = True  # norms take their statistics over all devices, or each its own
    config.model.plan = 'auto'  # how dynamic convolutions are executed; the numbers are the same
    config.model.pretrained = ''  # torchvision's weights as safetensors, a file or a folder; '' = from scratch
    config.model.dtype = 'float32'  # to compute in; parameters are float32

    config.partition = ConfigDict()
    config.partition.dynamic_fraction = 0.3  # κ: 1 = fully dynamic
    config.partition.criterion = 'sensitivity'  # sensitivity, magnitude, random, grasp, synflow, variance
    config.partition.scope = 'global'  # positions compete over the whole network, or within their layer
    config.partition.granularity = 'element'  # one gate for each element, output, input, spatial place, layer
    config.partition.rounds = 1  # T
    config.partition.schedule = 'exponential'  # κ after each round: exponential, linear, one_shot
    config.partition.start_step = 0  # steps before the first round
    config.partition.every_steps = 0  # steps between rounds; 0 = one after the other
    config.partition.batches = 10  # scoring batches for each round
    config.partition.batch_size = 64  # examples in each
    config.partition.handoff = 'independent'  # a static parameter starts from its own draw, or from the mean
    config.partition.scales = 'both'  # scale factors λd and λs: both, static, dynamic, none
    config.partition.prune = False  # positions that are not dynamic: zero (True), or a static parameter (False)
    config.partition.compact = False  # after the last round, keep and train what is alive alone
    config.partition.keep_dynamic = ''  # regular expression: layers that stay dynamic, outside κ
    config.partition.keep_static = ''  # regular expression: layers that become static, outside κ

    config.data = ConfigDict()
    config.data.name = 'digits'  # digits; folder, kept in memory; imagenet, read while it trains
    config.data.path = ''  # where the data lies; digits are embedded
    config.data.batch_size = 64  # global
    config.data.image_size = 8  # pixels
    config.data.augment = 'crop'  # see all of an image, moved; imagenet also: resized_crop, a random part
    config.data.crop_padding = 1  # pixels that a random crop may move by
    config.data.flip = False  # mirror at random
    config.data.color_jitter = 0.0  # strength of random brightness, contrast and saturation; 0 = none
    config.data.randaugment_layers = 0  # RandAugment's operations on each image; 0 = none
    config.data.randaugment_magnitude = 9  # of each, to 10
    config.data.on_bad = 'stop'  # an unreadable image: stop, skip (and say so)

    config.optim = ConfigDict()
    config.optim.name = 'sgd'  # sgd (momentum 0.9), adamw
    config.optim.learning_rate = 0.1  # peak
    config.optim.schedule = 'cosine'  # cosine, step, constant
    config.optim.warmup_steps = 20  # linear, from 0
    config.optim.weight_decay = 1e-4  # on weights only
    config.optim.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    config.optim.accumulate_steps = 1  # parts that a batch is worked off in
    config.optim.ema_decay = 0.0  # of the moving average of parameters that is evaluated in their place; 0 = none

    config.train = ConfigDict()
    config.train.steps = 0  # 0 = as many as epochs say
    config.train.epochs = 8.0  # passes over the training data, if steps is 0
    config.train.seed = 0  # of parameters, order and augmentation
    config.train.temperature = 30.0  # of the attention at the start
    config.train.temperature_epochs = 2.0  # over which it falls to 1
    config.train.label_smoothing = 0.0  # share of a label that is spread over all classes
    config.train.mixup = 0.0  # α: mixes pairs of images by shares from Beta(α, α); 0 = none
    config.train.on_nonfinite = 'stop'  # a loss or gradient that is not finite: stop; skip leaves that step out
    config.train.max_nonfinite = 10  # so many skipped in a row stop the run
    config.train.eval_every_steps = 20  # and after the last step, as are the next two
    config.train.log_every_steps = 10  # rows of metrics.jsonl
    config.train.checkpoint_every_steps = 1000  # what an interruption loses at most
    config.train.keep_checkpoints = 2  # the newest

    config.parallel = 'pmap'  # pmap, shard_map
    config.debug = False  # stop where a NaN is made, and name the operation and the line of the model
    return config
