"""Partially dynamic ResNet-10 on scikit-learn's scanned digits (8×8), κ = 0.3. Takes half a minute, 98 % correct.

    python train.py --config=configs/digits_resnet10_pad.py --workdir=runs/digits

The base of every config of images: it has all keys, with their meanings.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.name = 'resnet10'  # network: resnet10, resnet18, resnet34, resnet50, resnet101, mobilenet_v2
    config.model.num_classes = 10  # classes of the data; 0 = as many as it has
    config.model.conv = 'dynamic'  # layer of all convolutions except the stem: static, dynamic, condconv, odconv, dcd
    config.model.num_kernels = 4  # K, kernels of a dynamic convolution
    config.model.reduction = 16  # hidden width of the attention = channels / reduction
    config.model.width_multiplier = 0.25  # multiplies all channels; 1 = the standard network
    config.model.stem = 'cifar'  # imagenet: ends at size / 32; cifar, for small images: at size / 8
    config.model.sync_batch_norm = True  # batch statistics over all devices
    config.model.plan = 'auto'  # execution of dynamic convolutions
    config.model.pretrained = ''  # torchvision's weights as safetensors; '' = from scratch
    config.model.dtype = 'float32'  # dtype to compute in, float32 or bfloat16; parameters stay float32

    config.partition = ConfigDict()
    config.partition.dynamic_fraction = 0.3  # κ; 1 = fully dynamic
    config.partition.criterion = 'sensitivity'  # score: sensitivity, magnitude, random, grasp, synflow, variance
    config.partition.scope = 'global'  # positions compete in the whole network (global) or in their layer
    config.partition.granularity = 'element'  # positions with one gate: element, output, input, spatial, layer
    config.partition.rounds = 1  # T, rounds of the partition
    config.partition.schedule = 'exponential'  # dynamic fraction after each round: exponential, linear, one_shot
    config.partition.start_step = 0  # training steps before the first round
    config.partition.every_steps = 0  # training steps between rounds
    config.partition.batches = 10  # scoring batches of a round
    config.partition.batch_size = 64  # examples of a scoring batch
    config.partition.handoff = 'independent'  # static parameters start from independent draws or the mean factor
    config.partition.scales = 'both'  # scale factors λd and λs: both, static, dynamic, none
    config.partition.prune = False  # positions that are not dynamic become zero instead of static
    config.partition.compact = False  # train without dead entries after the last round
    config.partition.keep_dynamic = ''  # regular expression: layers that stay dynamic, outside κ
    config.partition.keep_static = ''  # regular expression: layers that become static, outside κ

    config.data = ConfigDict()
    config.data.name = 'digits'  # digits, embedded; folder, kept in memory; imagenet, streamed
    config.data.path = ''  # file or folder of the data
    config.data.holdout = 0.0  # share of each class to evaluate on, if the data has no split for it
    config.data.batch_size = 64  # examples of a batch, over all devices
    config.data.image_size = 8  # side in pixels
    config.data.augment = 'crop'  # crop moves the image; resized_crop (imagenet only) takes a part
    config.data.crop_padding = 1  # largest move of a crop, in pixels
    config.data.flip = False  # mirror at random
    config.data.color_jitter = 0.0  # random brightness, contrast and saturation; 0 = none
    config.data.randaugment_layers = 0  # operations of RandAugment; 0 = none
    config.data.randaugment_magnitude = 9  # strength of each operation
    config.data.on_bad = 'stop'  # image, row or file that cannot be read: stop, skip

    config.optim = ConfigDict()
    config.optim.name = 'sgd'  # optimizer: sgd, adamw
    config.optim.learning_rate = 0.1  # peak of the learning rate
    config.optim.schedule = 'cosine'  # learning rate after the warm-up: cosine, linear, step, constant
    config.optim.warmup_steps = 20  # linear warm-up from 0
    config.optim.weight_decay = 1e-4  # applies to weights only
    config.optim.clip_norm = 0.0  # largest global gradient norm; 0 = no clipping
    config.optim.accumulate_steps = 1  # microbatches of a batch
    config.optim.ema_decay = 0.0  # moving average of parameters, used by evaluation; 0 = none

    config.train = ConfigDict()
    config.train.steps = 0  # 0 = given by epochs
    config.train.epochs = 8.0  # passes over the training data, if steps is 0
    config.train.seed = 0  # seed of all random draws
    config.train.temperature = 30.0  # temperature of the attention at the start
    config.train.temperature_share = 0.25  # share of the run in which the temperature falls to 1
    config.train.label_smoothing = 0.0  # share of a label that is spread over all classes
    config.train.mixup = 0.0  # α: mixes pairs of images with shares from Beta(α, α); 0 = none
    config.train.on_nonfinite = 'stop'  # loss or gradient that is not finite: stop, skip
    config.train.max_nonfinite = 10  # skipped steps in a row that stop the run
    config.train.eval_every_steps = 20  # steps between evaluations; like the next two, also at the last step
    config.train.log_every_steps = 10  # train rows of metrics.jsonl
    config.train.checkpoint_every_steps = 1000  # most steps that an interruption loses
    config.train.keep_checkpoints = 2  # latest checkpoints that are kept
    config.train.keep_best = False  # also keep the checkpoint of the best evaluation, for --best
    config.train.patience = 0  # evaluations without a better one that end the run; 0 = never

    config.parallel = 'pmap'  # step on several devices: pmap, shard_map
    config.debug = False  # stop at the operation that makes a NaN
    return config
