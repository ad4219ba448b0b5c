"""Every config file builds, and its diff from its base is what its docstring says."""

import ast
import re

import jax
import jax.numpy as jnp
import pytest

from pad_jax.models import report_counts
from pad_jax.training import setup
from pad_jax.training.config import flatten, is_language, is_partial, is_text, keys_of, load_config
from pad_jax.training.setup import (
    make_inputs,
    make_model,
    make_recipe,
    make_task,
    measure_lengths,
    plan_layers,
)
from tests.training.tiny import ROOT

pytestmark = pytest.mark.usefixtures('traced_once')
FILES = sorted(path for path in (ROOT / 'configs').glob('*.py') if path.name != '__init__.py')
NAMES = [str(path.relative_to(ROOT / 'configs')) for path in FILES]


# What the end of a name says: the key that differs from the config whose name ends in `_pad`, and its value.
ONE_KEY = {'static': ('model.conv', 'static'), 'dynamic': ('partition.dynamic_fraction', 1.0)}
ONE_KEY |= {'random': ('partition.criterion', 'random'), 'dense': ('model.ffn', 'dense')}
ONE_KEY |= {'moe': ('partition.dynamic_fraction', 1.0)}
NAMED = [name for name in NAMES if re.search(f'_({"|".join(ONE_KEY)}).py$', name) and 'bert' not in name]
NAMED = [name for name in NAMED if not re.match('lm_.*dense', name)]
LANGUAGE_MODELS = ('lm', 'lm_olmoe', 'mlm_bert_tiny')
RESNET50 = 'imagenet_resnet50_pad.py'
# Batch B, rate 0.1·B/256, warm-up over 5 epochs of 1,281,167/B steps, and what comes once an epoch.
SCALED = ('data.batch_size', 'optim.learning_rate', 'optim.warmup_steps')
EVERY = ('train.eval_every_steps', 'train.checkpoint_every_steps')
HARDWARE = {
    'gpu': (128, 0.05, 50000, 10000),
    '8gpu': (1024, 0.4, 6250, 1250),
    'tpu_v4_32': (2048, 0.8, 3125, 625),
}


def load(name, *overrides):
    return load_config(str(ROOT / 'configs' / name), overrides)


def find_networks(names):
    """The first of the names that describe the same network: tracing a large one takes seconds."""
    found = {}
    for name in names:
        config = load(name)
        sizes = config.data.get('image_size'), config.partition.dynamic_fraction, config.partition.granularity
        found.setdefault((config.model.to_json(), config.partition.scales, *sizes), name)
    return list(found.values())


# Networks of ImageNet differ in depth or in one key, so one is enough; tests/training/count_test.py has all.
# So do those of OLMoE's shape.
ONE_IS_ENOUGH = re.compile('imagenet(?!.*50_pad)|lm_olmoe_(?!pad)')
BUILT = [name for name in find_networks(NAMES) if not ONE_IS_ENOUGH.match(name)]


def test_the_files_that_are_promised_exist():
    models = ('resnet10', 'resnet18', 'resnet50', 'mobilenet_v2')
    promised = [f'imagenet_{model}_{kind}' for model in models for kind in ('static', 'dynamic', 'pad')]
    promised += [f'digits_resnet10_{kind}' for kind in ('static', 'dynamic', 'random', 'pad')]
    promised += [f'glue_minilm_{kind}' for kind in ('dense', 'moe', 'pad')]
    promised += ['cifar_resnet10_pad', 'glue_bert_base_moe', 'imagenet_resnet50_pad_pretrained']
    promised += [f'imagenet_resnet50_pad_{hardware}' for hardware in HARDWARE]
    promised += [f'{model}_{kind}' for model in LANGUAGE_MODELS for kind in ('dense', 'moe', 'pad')]
    assert {f'{name}.py' for name in promised} <= set(NAMES) and len(NAMED) == 16


@pytest.mark.parametrize('name', BUILT)
def test_a_config_builds_runs_under_eval_shape_and_counts(name):
    config = load(name)
    model, task, inputs = make_model(config), make_task(config), make_inputs(config)
    variables = {key: tree for key, tree in setup.abstract_variables(model, inputs).items() if key != 'intermediates'}
    # A batch of eight; of texts as long as any of them.
    length = config.data.get('max_length')
    shapes = [(8, length) if is_text(config) else (8, *leaf.shape[1:]) for leaf in inputs]
    batch = {
        key: jax.ShapeDtypeStruct(shape, leaf.dtype)
        for key, shape, leaf in zip(task.inputs, shapes, inputs, strict=True)
    }
    temperature = None if is_text(config) else 2.0
    apply = lambda variables, batch: task.apply(model, variables, batch, temperature, train=False)  # noqa: E731
    outputs, aux = jax.eval_shape(apply, variables, batch)
    is_static = (config.model.ffn == 'dense') if is_text(config) else (config.model.conv == 'static')
    sizes = (length, config.model.vocab_size) if is_language(config) else (config.model.num_classes,)
    assert outputs.shape == (8, *sizes) and outputs.dtype == jnp.float32
    assert bool(aux) == (is_text(config) and not is_static)
    masks = variables.get('partition', {})
    assert len(jax.tree.leaves(masks)) == (len(make_recipe(config).find_roles(masks)) if is_partial(config) else 0)
    layers = plan_layers(config)
    report = report_counts(layers)
    fraction = 0 if is_static else config.partition.dynamic_fraction
    assert report['dynamic_fraction'] == pytest.approx(fraction, abs=1e-4)
    # Training holds both modes of every position; only the one that is alive is counted.
    dead = sum(
        layer.dynamic_positions + layer.num_factors * (layer.positions - layer.dynamic_positions)
        for layer in layers
        if is_partial(config)
    )
    assert report['parameters'] + dead == sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def differing(base, name):
    old, new = flatten(load(base)), flatten(load(name))
    return {key: new[key] for key in new if new[key] != old[key]}


@pytest.mark.parametrize('name', NAMED)
def test_a_config_differs_from_its_base_by_what_its_name_says(name):
    base, _, kind = name.removesuffix('.py').rpartition('_')
    assert differing(f'{base}_pad.py', name) == dict([ONE_KEY[kind]])


@pytest.mark.parametrize('model', LANGUAGE_MODELS)
def test_a_dense_language_model_differs_by_its_feed_forward_part(model):
    pad, dense = (load(f'{model}_{kind}.py') for kind in ('pad', 'dense'))
    changes = differing(f'{model}_pad.py', f'{model}_dense.py')
    assert changes.pop('model.ffn') == 'dense'
    if 'ffn_width' in pad.model:
        assert changes.pop('model.ffn_width') == dense.model.ffn_width == pad.model.num_selected * pad.model.ffn_width
    assert not changes


@pytest.mark.parametrize('hardware', HARDWARE)
def test_a_recipe_for_other_hardware_scales_batch_rate_and_lengths(hardware):
    *scaled, every = HARDWARE[hardware]
    expected = dict(zip(SCALED, scaled, strict=True)) | dict.fromkeys(EVERY, every)
    # As many scoring examples as on one accelerator, but no more at once than a device trains on.
    expected |= {'partition.batches': 20, 'partition.batch_size': 128}
    assert differing(RESNET50, f'imagenet_resnet50_pad_{hardware}.py') == expected


@pytest.mark.parametrize('name', ['digits_resnet10_pad.py', 'glue_minilm_pad.py', 'lm_pad.py', 'mlm_bert_tiny_pad.py'])
def test_a_base_config_has_the_help_of_every_key_as_its_comment(name):
    comments = dict(
        re.findall(r'^    config\.([\w.]+) = .*?  # (.*)$', (ROOT / 'configs' / name).read_text(), re.MULTILINE)
    )
    keys = keys_of(flatten(load(name)))
    assert comments.keys() == keys.keys()
    for key in keys.values():
        choices = key.rule.words.removeprefix('one of ')
        assert comments[key.name] in (key.help, f'{key.help}: {choices}'), key.name


@pytest.mark.parametrize('name', NAMES)
def test_a_config_says_its_own_command_and_where_it_was_measured(name):
    text = ast.get_docstring(ast.parse((ROOT / 'configs' / name).read_text()))
    assert f'python train.py --config=configs/{name} --workdir=' in text
    assert '--config.data.path=' in text or load(name).data.name in ('digits', 'stdlib')
    if name.startswith('imagenet'):
        assert 'Written for' in text and re.search(r'has (not )?been\smeasured here', text)


def test_the_recipe_from_pretrained_weights_takes_them():
    """Its partition comes after the warm-up and while there is training left."""
    config = load('imagenet_resnet50_pad_pretrained.py', 'model.pretrained=FILE')
    assert config.optim.warmup_steps < config.partition.start_step
    measure_lengths(config, 1_281_167)


@pytest.mark.parametrize('name', [name for name in NAMES if name.startswith('glue')])
def test_upcycled_networks_are_partitioned_in_rounds_while_they_train(name):
    """Copies carry no signal before; and the mean of the experts takes over, so that the loss doesn't jump."""
    measure_lengths(load(name, 'data.task=wnli'), 635)  # even the smallest task leaves room for rounds and warm-up
    partition = load(name).partition
    assert partition.start_step > 0 and partition.rounds > 1 and partition.every_steps > 0
    assert partition.handoff == 'mean'
