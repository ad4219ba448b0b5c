"""Bad inputs of every command, each with the line that it has to be told in. See `bad_inputs_test.py`.

In flags and lines {tmp} is a folder of the test's own, in which everything lies that a case may not change, and {texts}
the one that `write_texts` fills.
"""

from typing import NamedTuple

from tests.data.glue_miniatures import VOCABULARY
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import DIGITS, GLUE, ROOT, SMALL
from tests.training.tiny_texts import REGRESSION, glue, small_text_flags

CIFAR = ROOT / 'configs' / 'cifar_resnet10_pad.py'


class Case(NamedTuple):
    """A command that is refused.

    Attributes:
      says: part of the only line on stderr.
      world: what there is before, a key of `bad_inputs_test.WORLDS`.
    """

    command: str
    flags: tuple[str, ...]
    says: str
    world: str = 'nothing'


# train.py, on a small config of images with a few keys changed.
IMAGE_CONFIGS = [
    (['partition.dynamic_fracton=0.3'], 'unknown config key partition.dynamic_fracton, did you mean partition.dyn'),
    (['partition.dynamic_fraction=0.'], 'partition.dynamic_fraction must be in (0, 1], got 0.0'),
    (['partition.dynamic_fraction=1.5'], 'must be in (0, 1], got 1.5'),
    (['partition.dynamic_fraction=nan'], "must be in (0, 1], got 'nan'"),
    (['partition.dynamic_fraction=some'], "must be in (0, 1], got 'some'"),
    (['model.num_kernels=0'], 'model.num_kernels must be an integer from 1 to 1024, got 0'),
    (['partition.criterion=luck'], 'partition.criterion must be one of sensitivity, magnitude, random'),
    (['partition.granularity=atom'], 'partition.granularity must be one of element, output, input, spatial, layer'),
    (['model.plan=best'], 'model.plan must be one of auto, outputs'),
    (['model.name=resnet11'], 'model.name must be one of resnet10, resnet18'),
    (['partition.scope=all'], 'partition.scope must be one of global, layer'),
    (['partition.schedule=sine'], 'partition.schedule must be one of exponential, linear, one_shot'),
    (['optim.schedule=sine'], 'optim.schedule must be one of cosine, linear, step, constant'),
    (['partition.handoff=max'], 'partition.handoff must be one of independent, mean'),
    (['partition.scales=some'], 'partition.scales must be one of both, static, dynamic, none'),
    (['partition.prune=zero'], 'partition.prune must be True or False'),
    (
        ['partition.prune=True', 'partition.handoff=mean'],
        "partition.handoff 'mean' is about static parameters, partition.prune leaves none",
    ),
    (['partition.prune=True', 'partition.scales=static'], "partition.scales 'static' is about static parameters"),
    (['train.steps=-1'], 'train.steps must be an integer from 0 to 2147483647, got -1'),
    (
        ['data.batch_size=60'],
        'data.batch_size must be a multiple of 8 (8 devices × optim.accumulate_steps = 1), got',
    ),
    (['optim.accumulate_steps=4'], 'must be a multiple of 32 (8 devices × optim.accumulate_steps = 4), got 16'),
    (['data.image_size=4'], "image_size must be at least 8 for stem 'cifar', got 4"),
    (['model.stem=imagenet'], "image_size must be at least 64 for stem 'imagenet', got 8"),
    (['data.image_size=16'], 'image_size must be 8 for the digits, got 16'),
    (['data.path=/tmp'], 'the digits are embedded and read no path'),
    (
        ['data.augment=resized_crop'],
        'data.augment=resized_crop cuts photos of any size: it needs data.name=imagenet',
    ),
    (['data.color_jitter=0.4'], 'data.color_jitter and data.randaugment_layers must be 0 for digits'),
    (['data.crop_padding=9'], 'crop_padding must be in [0, image_size] = [0, 8], got 9'),
    (['model.num_classes=9'], 'model.num_classes is 9, the data has 10 classes: --config.model.num_classes=10'),
    (['partition.keep_dynamic=stage9'], "keep_dynamic = 'stage9' matches none of the parameters stage1_block1/con"),
    (
        ['partition.granularity=layer'],
        "dynamic_fraction 0.3 leaves nothing dynamic: granularity 'layer' decides for",
    ),
    (
        ['partition.granularity=output', 'partition.dynamic_fraction=0.05'],
        'at least 36 positions at once, 14 are to',
    ),
    (
        ['partition.scope=layer', 'partition.granularity=input', 'model.conv=dcd'],
        'positions of stage1_block1/conv1/scaling/tensor at once, and',
    ),
    (['partition.keep_dynamic=.*'], "no layer is left to compete: keep_dynamic = '.*' matches all of them"),
    (['partition.keep_static=conv'], 'that is wholly static is --config.model.conv=static'),
    (['partition.keep_static=stage9'], "keep_static = 'stage9' matches none"),
    (['partition.keep_dynamic=conv1', 'partition.keep_static=stage1'], 'is matched by keep_dynamic and by keep_st'),
    (['partition.keep_dynamic=('], "partition.keep_dynamic must be a regular expression, got '('"),
    (['partition.start_step=6'], 'the last round of the partition comes after 6 steps, the run has 6'),
    (['train.steps=0', 'train.epochs=0.1', 'partition.start_step=99'], 'comes after 99 steps, the run has 10'),
    (['train.steps=0', 'train.epochs=1e30'], 'train.epochs = 1e+30 makes 9.01e+31 steps of 1442 training examples'),
    (['train.temperature_epochs=1e8'], 'train.temperature_epochs = 1e+08 makes 9.01e+09 steps of 1442 training'),
    (['=3'], "an override must name a key, as in train.steps=100, got '=3'"),
    (['train.steps=0', 'train.epochs=0.01', 'optim.warmup_steps=1'], 'must be below the 1 steps of the run'),
    (['partition.batch_size=1443'], 'partition.batch_size must be at most the 1442 training examples, got 1443'),
]

# train.py, on a small config of texts.
NOWHERE = {'data__path': '{texts}/nowhere'}
IN_EPOCHS = {'train__steps': 0, 'train__epochs': 2.0, 'partition__start_step': 12}
TEXT_CONFIGS = [
    (glue('imdb'), "data.task must be one of cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, got 'imdb'"),
    ({'model__num_selected': 5}, 'model.num_selected must be at most model.num_experts = 4, got 5'),
    ({'data__max_length': 32}, 'data.max_length must be at most model.max_length = 16, got 32'),
    ({'model__num_classes': 3}, 'model.num_classes is 3, the data has 2 classes ('),
    (REGRESSION | {'model__num_classes': 2}, 'the data has numbers for labels: --config.model.num_classes=1'),
    # Before anything is read.
    (NOWHERE | {'model__vocab_size': 20}, f'the vocabulary has {len(VOCABULARY)} pieces, model.vocab_size is 20'),
    (
        glue('stsb', **NOWHERE, model__num_classes=2),
        'model.num_classes is 2, stsb is regression: --config.model.num_classes=1',
    ),
    (
        glue('mnli', **NOWHERE, model__num_classes=2),
        'model.num_classes is 2, mnli has 3 classes: --config.model.num_classes=3',
    ),
    (
        glue('rte', **NOWHERE, model__num_classes=1),
        'model.num_classes is 1, rte has 2 classes: --config.model.num_classes=2',
    ),
    ({'data__text_columns': 'first,first'}, "text_columns and label_column must differ, got 'first', 'first' and"),
    ({'data__text_columns': 'first,label'}, "must differ, got 'first', 'label' and 'label'"),
    ({'data__text_columns': 'first,third'}, "has no column 'third': its columns are 'first', 'second', 'label'"),
    ({'data__label_column': 'class'}, "has no column 'class': its columns are 'first', 'second', 'label'"),
    ({'data__text_columns': 'a,b,c'}, 'text_columns must be one or two names of columns'),
    ({'data__text_columns': ' , '}, 'text_columns must be one or two names of columns'),
    ({'data__regression': True}, "own/train.tsv' line 2: label 'a dog' is not a number"),
    ({'data__vocabulary': ''}, 'data.vocabulary must name a vocab.txt or tokenizer.json: model.pretrained names'),
    ({'data__vocabulary': '{texts}/nowhere.txt'}, 'nowhere.txt'),
    ({'data__vocabulary': '{texts}/numbers.tsv'}, 'vocabulary must name a vocab.txt or tokenizer.json'),
    ({'data__path': '{texts}/nowhere'}, "nowhere' does not exist"),
    ({'data__path': ''}, 'path must name a file'),
    (glue('rte', data__path=''), 'path must name a folder with RTE/train.tsv'),
    (glue('cola'), 'CoLA/train.tsv (the original files) or glue/cola (prepared by TFDS)'),
    (glue('rte', data__path='{texts}/own'), "own' has no dev.tsv: expected train.tsv, dev.tsv"),
    (glue('rte', data__path='{texts}/glue/MNLI'), "MNLI' is the folder of the task mnli, expected RTE"),
    (glue('rte', data__path='{texts}/numbers.tsv'), 'for a file of your own: --config.data.name=text'),
    ({'partition__batch_size': 49}, 'partition.batch_size must be at most the 48 training examples, got 49'),
    ({'partition__start_step': 6}, 'the last round of the partition comes after 6 steps, the run has 6: lower '),
    ({'partition__start_step': 6}, 'partition.start_step, every_steps or rounds, or raise train.steps'),
    (IN_EPOCHS, 'the last round of the partition comes after 12 steps, the run has 12: lower '),
    (IN_EPOCHS, 'partition.start_step, every_steps or rounds, or raise train.epochs'),
    ({'partition__keep_static': 'ffn'}, 'a network that is wholly static is --config.model.ffn=dense'),
    ({'partition__keep_dynamic': 'conv'}, "keep_dynamic = 'conv' matches none of the parameters layer_0/ffn/"),
    ({'data__batch_size': 12}, 'data.batch_size must be a multiple of 8 (8 devices'),
    ({'optim__accumulate_steps': 2}, 'must be a multiple of 16 (8 devices × optim.accumulate_steps = 2), got 8'),
]

# train.py, by its flags alone.
FLAGS = [
    ([], 'the following arguments are required: --config, --workdir'),
    (['--workdir=w'], 'the following arguments are required: --config'),
    ([f'--config={DIGITS}'], 'the following arguments are required: --workdir'),
    ([f'--config={DIGITS}', '--workdir=w', '--configg.train.steps=3'], 'unknown argument --configg.train.steps=3'),
    ([f'--config={DIGITS}', '--workdir=w', 'stray'], 'unknown argument stray'),
    ([f'--config={DIGITS}', '--workdir=w', '--config.train.steps'], '--config.train.steps has no value'),
    ([f'--config={DIGITS}', '--workdir='], 'workdir must name a folder'),
    (['--config=nowhere.py', '--workdir=w'], 'config file nowhere.py does not exist'),
    (['--config=', '--workdir=w'], 'does not exist'),
]

VERBS = [
    ('count', [], 'required: --config'),
    ('count', [f'--config={DIGITS}', '--config.model.num_kernels=0'], 'model.num_kernels must be'),
    ('count', [f'--config={DIGITS}', '--config.partition.keep_static=nothing'], "'nothing' matches none"),
    ('evaluate', [], 'required: --workdir'),
    ('evaluate', ['--workdir=nowhere'], 'nowhere is not the workdir of a run'),
    ('evaluate', [f'--workdir={DIGITS}'], 'is not the workdir of a run'),
    ('inspect', ['--workdir=nowhere'], 'nowhere is not the workdir of a run'),
    ('evaluate', ['--workdir=x', '--more=1'], 'unknown argument --more=1'),
    ('evaluate', ['--workdir=x', '--config.data.path'], '--config.data.path has no value'),
    ('inspect', ['--workdir=x', '--data.path=y'], 'unknown argument --data.path=y; see '),
    ('nothing', [], 'invalid choice'),
]

PREPARE_FLAGS = [
    ((), 'the following arguments are required: imagenet2012|glue|convert; see python -m pad_jax prepare --help'),
    (('cifar',), "invalid choice: 'cifar'"),
    (('glue', '--manual-dir=x'), 'required: --task, --data-dir; see python -m pad_jax prepare glue --help'),
    (('convert', '--data-dir=x', '--name=y', '--subset'), 'unrecognized arguments: --subset'),
]

RTE = '--task=rte'
FOLDERS_OF_PREPARE = ('--manual-dir={tmp}/manual', '--data-dir={tmp}/data')
PREDICT = ('--input={tmp}/new.csv', '--output={tmp}/out.csv')
BOTH = ('train', 'evaluate')

# What lies in the workdir, in a folder of photos or among archives is what is wrong: (commands, flags, line, world).
WORLDS = [
    (BOTH, [], 'run/config.json is damaged: ', 'a run with half a config.json'),
    (BOTH, [], 'run/config.json is damaged: it nests', 'a run with a config.json that nests'),
    (BOTH, [], 'run/config.json: config key train.seed must be an integer from 0', 'a run with a seed of 1e999'),
    (BOTH, [], 'run/data.json is damaged: it must hold class_names', 'a run with an empty data.json'),
    (('train',), [], 'metrics.jsonl, line 1: not a row of metrics: ', 'a run with rows that are not UTF-8'),
    (('evaluate',), [], 'holds no checkpoint', 'a run without checkpoints'),
    (('inspect',), [], 'holds no partition.json', 'a run without a partition.json'),
    (('inspect',), [], 'run/partition.json is damaged: ', 'a run with half a partition.json'),
    (('inspect',), [], 'run/config.json is damaged', 'a run with half a config.json'),
    (('inspect',), [], 'is damaged: totals has no number for positions', 'a run with counts beyond any'),
    (('predict',), PREDICT, 'run is one of images: only texts can be predicted', 'a run'),
    (('predict',), PREDICT, 'run/config.json is damaged', 'a run with half a config.json'),
]
TEXT_WORLDS = [
    (('--input={tmp}/nowhere.csv', '--output={tmp}/out.csv'), "cannot read '{tmp}/nowhere.csv': No such file"),
    (('--input={tmp}/new.txt', '--output={tmp}/out.csv'), "new.txt' must end in one of .tsv, .csv, .jsonl"),
    (('--input={tmp}/new.csv', '--output={tmp}/out.txt'), "out.txt' must end in one of .tsv, .csv, .jsonl"),
    (('--input={tmp}/new.csv', '--output={tmp}/new.csv'), "new.csv' is the file to be read: predictions must go to"),
    (('--input={tmp}/new.csv', '--output={tmp}/no/out.csv'), "out.csv': '{tmp}/no' is not a folder"),
    (('--input={tmp}/new.csv', '--output={tmp}'), "'{tmp}' must end in one of"),
    (('--input={tmp}/empty.csv', '--output={tmp}/out.csv'), "empty.csv' is empty"),
    (('--input={tmp}/others.csv', '--output={tmp}/out.csv'), "others.csv' has no column 'first': its columns are"),
    (('--input={tmp}/broken.csv', '--output={tmp}/out.csv'), "broken.csv' line 2: it has 1 fields, but there are 2"),
    (('--input={tmp}/latin.csv', '--output={tmp}/out.csv'), "latin.csv' line 2 is not UTF-8: byte 0xe9"),
]
PHOTOS = [
    ('{tmp}/nowhere', [], "the data folder '{tmp}/nowhere' does not exist", 'photos'),
    ('{tmp}/photos/train/cat/0.png', [], "0.png' is not a folder", 'photos'),
    ('{tmp}/photos', ['model.num_classes=10'], 'the data has 2 classes: --config.model.num_classes=2', 'photos'),
    ('{tmp}/photos', [], "photos' has no folder val/", 'photos without val'),
    ('{tmp}/photos', [], 'must hold at least two classes, got only the class cat', 'photos of cats'),
    ('{tmp}/photos', [], "val' has classes that train lacks: emu", 'photos with an unknown class'),
    ('{tmp}/photos', [], "train/dog' holds no .png, .jpg or .jpeg file", 'photos with an empty class'),
    ('{tmp}/photos', [], "train/dog/3.png': ", 'photos with half a photo'),
    ('{tmp}/photos', [], "train/dog/3.png': not a PNG, JPEG", 'photos with a text'),
    ('{tmp}/photos', [], "3.png': 10,000,000,000 pixels, at most 89,478,485 are read", 'photos with a bomb'),
    ('{tmp}/photos', [], "3.png': it is no plain file", 'photos with a pipe'),
    ('{tmp}/photos', ['data.name=imagenet', 'data.on_bad=skip'], "photos' has no folder val/", 'photos without val'),
]
ARCHIVES = [
    ('imagenet2012', (), "--manual-dir '{tmp}/manual' does not exist", 'nothing'),
    (
        'imagenet2012',
        (),
        'has no ILSVRC2012_img_train.tar and no ILSVRC2012_img_val.tar: register at',
        'an empty folder',
    ),
    ('imagenet2012', (), "--manual-dir '{tmp}/manual' is not a folder", 'a file'),
    ('imagenet2012', (), "ILSVRC2012_img_train.tar' is no tar, or cut short", 'tars that are none'),
    ('imagenet2012', (), 'which leads out of its folder: nothing of it is taken', 'tars that lead out'),
    ('imagenet2012', (), "holds 'x', which is no file", 'tars with a link'),
    ('imagenet2012', (), "5.1.0' is there already: --overwrite puts a new one in its place", 'a set that is there'),
    ('glue', ('--task=imdb',), '--task must be one of cola, sst2', 'an empty folder'),
    ('glue', (RTE,), "manual' has neither RTE.zip nor RTE/: download ", 'an empty folder'),
    ('glue', (RTE,), "RTE.zip' is no zip, damaged or cut short: File is not a zip file", 'a zip that is none'),
    ('glue', (RTE,), "RTE.zip' holds '../RTE/train.tsv', which leads out of its folder", 'a zip that leads out'),
    ('glue', (RTE,), "RTE.zip' has no RTE/*.tsv", 'a zip of something else'),
    ('glue', (RTE,), "RTE.zip' unpacks to 2.4 GB, at most 2.15 GB are taken", 'a zip that claims to be huge'),
    ('glue', ('--task=mrpc',), 'has no data_mrpc_dev_ids.tsv (from ', 'an empty folder'),
]
CONVERT = [
    (
        'imagenet2012',
        "data' holds no set 'imagenet2012': expected imagenet2012/VERSION/dataset_info.json",
        'an empty set',
    ),
    ('../data/x', "data' holds no set '../data/x'", 'an empty set'),
    ('/etc', "data' holds no set '/etc'", 'an empty set'),
    ('x', "x/1.0.0/dataset_info.json' is no description of a TFDS set", 'a set with half a dataset_info.json'),
    ('x', "x/1.0.0' was prepared as array_record, not as tfrecord: nothing to convert", 'a set in array_record'),
    ('x', "x/1.0.0/features.json' is missing: copy it from", 'a set without features.json'),
    ('x', "name '../y' is no name of files in its folder", 'a set that leads out'),
    ('x', "pythonClassName 'evil.Feature' is none of TFDS: its code is not run", 'a set that names code'),
]
DEMO = [
    (['--seeds=0'], '--seeds must be at least 1, got 0'),
    (['--seeds=some'], "argument --seeds: invalid int value: 'some'"),
    (['--config.train.seed=3'], 'train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1'),
    (['--configs={tmp}/nowhere'], 'config file {tmp}/nowhere/digits_resnet10_static.py does not exist'),
    (['--config.train.steps=-3'], 'train.steps must be an integer from 0'),
    (['--stray'], 'unknown argument --stray'),
]
CONFIG_FILES = [
    ('def get_config(:', 'mine.py fails: SyntaxError'),
    ('1 / 0', 'mine.py fails: ZeroDivisionError'),
    ('get_config = 3', "mine.py fails: TypeError: 'int' object is not callable"),
    ('def get_config():\n    return {}', 'mine.py must return a ConfigDict, got dict'),
]


def make_cases() -> list[Case]:
    """All of them."""
    found, workdir = [], '--workdir={tmp}/run'
    small = [f'--config={DIGITS}', workdir, *(f'--config.{name}={value}' for name, value in SMALL.items())]
    in_rounds = [f'--config.{name.replace("__", ".")}={value}' for name, value in IN_ROUNDS.items()]
    for overrides, says in IMAGE_CONFIGS:
        found.append(Case('train', (*small, *(f'--config.{override}' for override in overrides)), says))
    for changes, says in TEXT_CONFIGS:
        overrides = small_text_flags('{texts}', **changes)
        found.append(Case('train', (f'--config={GLUE}', workdir, *(f'--config.{item}' for item in overrides)), says))
    found += [Case('train', tuple(flags), says) for flags, says in FLAGS]
    found += [Case(command, tuple(flags), says) for command, flags, says in VERBS]
    found += [Case('prepare', tuple(flags), says) for flags, says in PREPARE_FLAGS]
    found += [Case('demo', ('--workdir={tmp}/demo', f'--configs={ROOT}/configs', *flags), says) for flags, says in DEMO]
    for commands, flags, says, world in WORLDS:
        for command in commands:
            own = (*small, *in_rounds) if command == 'train' else (workdir, *flags)
            found.append(Case(command, own, says, world))
    found += [Case('predict', (workdir, *flags), says, 'a run of texts') for flags, says in TEXT_WORLDS]
    for path, overrides, says, world in PHOTOS:
        keys = ['model.num_classes=2', 'data.image_size=8', f'data.path={path}', *overrides]
        found.append(Case('train', (f'--config={CIFAR}', workdir, *(f'--config.{key}' for key in keys)), says, world))
    found += [
        Case('prepare', (kind, *FOLDERS_OF_PREPARE, *flags), says, world) for kind, flags, says, world in ARCHIVES
    ]
    for name, says, world in CONVERT:
        found.append(Case('prepare', ('convert', '--data-dir={tmp}/data', f'--name={name}'), says, world))
    for number, (_, says) in enumerate(CONFIG_FILES):
        for command, flags in (('train', [workdir]), ('count', [])):
            found.append(Case(command, (f'--config={{tmp}}/{number}/mine.py', *flags), says, 'config files'))
    return found
