import json
import re

import pytest

from pad_jax.errors import BadInput
from pad_jax.partition import CRITERIA
from pad_jax.training.cli import Parser, parse_with_overrides
from pad_jax.training.config import (
    FREE_KEYS,
    differing_keys,
    find_conflicts,
    find_key_problems,
    flatten,
    keys_of,
    load_config,
    read_workdir_config,
)
from tests.training.tiny import DIGITS, GLUE

IMAGE_KEYS, TEXT_KEYS = keys_of({}), keys_of({'model.ffn': ''})


def make_wrong_values(rule):
    """Values that a rule must refuse according to its own words, as text that a user would type."""
    limits = [float(number) for number in re.findall(r'\d[\d.e+-]*', rule.words)]
    if rule.kind is bool:
        return ['2', 'maybe', 'None', '']
    if rule.words.startswith('one of '):
        return ['', 'luck', rule.words.removeprefix('one of ').split(', ')[0].upper()]
    if rule.kind is int:
        least, most = map(int, limits)
        return [str(least - 1), str(most + 1), 'ten', '4.0', '1e3', 'True', '[64]', '{[]: 1}', '1' + '0' * 30]
    if rule.kind is float:
        least, most = limits
        at_limits = ['0'] * rule.words.startswith('in (') + ['1'] * rule.words.endswith(')')
        beyond = [str(least - 0.5), str(most * 1.01 + 0.01), '1e999', '1' + '0' * 400]
        return [*at_limits, *beyond, 'nan', 'inf', 'a third', '0,1', 'True', '']
    return []


# Limits by hand, which the words of a rule may not change without notice.
GOLDEN = {
    'model.num_kernels': ['0', '1025'],
    'model.width_multiplier': ['0', '0.015', '129'],
    'model.dtype': ['float64'],
    'partition.dynamic_fraction': ['0.0', '1.5', '-0.3'],
    'partition.start_step': ['-1', str(2**31)],
    'optim.learning_rate': ['0', '1e-50', '3.5e38'],
    'optim.ema_decay': ['1'],
    'train.seed': ['-1', str(2**32)],
    'train.temperature': ['0.5'],
    'data.color_jitter': ['1.5'],
}


OWN_TEXTS = ['data.name=text', 'data.text_columns=a', 'data.label_column=b']


def load(*overrides, file=DIGITS):
    return load_config(str(file), overrides)


def refused(*overrides, file=DIGITS):
    with pytest.raises(BadInput) as caught:
        load(*overrides, file=file)
    return str(caught.value)


@pytest.mark.parametrize(('file', 'keys'), [(DIGITS, IMAGE_KEYS), (GLUE, TEXT_KEYS)])
def test_a_bad_value_is_refused_with_its_key_its_rule_and_itself(file, keys):
    for name, key in keys.items():
        for text in [*make_wrong_values(key.rule), *(GOLDEN.get(name, []))]:
            message = refused(f'{name}={text}', file=file)
            assert message.startswith(f'{name} must be {key.rule.words}, got '), message
            found = message.split(', got ')[-1]
            assert text in found or float(text) == pytest.approx(float(found), nan_ok=True), message


def test_only_texts_take_any_value():
    names = {name for name, key in (IMAGE_KEYS | TEXT_KEYS).items() if not make_wrong_values(key.rule)}
    columns = {'data.text_columns', 'data.label_column', 'data.vocabulary'}
    assert names == {'data.path', 'model.pretrained', 'partition.keep_dynamic', 'partition.keep_static', *columns}


@pytest.mark.parametrize(
    ('override', 'value'),
    [
        ('optim.learning_rate=3e-2', 0.03),
        ('optim.learning_rate=1', 1.0),
        ('optim.learning_rate=.5', 0.5),
        ('optim.learning_rate= 0.25 ', 0.25),
        ('optim.weight_decay=1E-05', 1e-5),
        ('train.epochs=90', 90.0),
        ('train.steps=1_000', 1000),
        ('train.seed=+7', 7),
        ('train.seed=4294967295', 2**32 - 1),
        ('debug=true', True),
        ('debug=False', False),
        ('data.path=/a folder/with=signs=/und Ümläut', '/a folder/with=signs=/und Ümläut'),
        ('data.path=', ''),
        ('data.path=17', '17'),
        ('partition.keep_dynamic=stage[12]_.*conv1$', 'stage[12]_.*conv1$'),
    ],
)
def test_overrides_of_every_type(override, value):
    name = override.split('=')[0]
    found = flatten(load(f'{name}=replaced by the last override', override))[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ('override', 'says'),
    [
        ('train.seeed=1', 'unknown config key train.seeed, did you mean train.seed?'),
        ('partiton.scope=1', 'unknown config key partiton.scope, did you mean partition.scope?'),
        ('paralel=1', 'unknown config key paralel, did you mean parallel?'),
        ('batch_size=1', 'unknown config key batch_size, did you mean data.batch_size?'),
        ('model.kappa=1', 'unknown config key model.kappa, did you mean partition.dynamic_fraction?'),
        ('train.regular=x', 'unknown config key train.regular, did you mean partition.keep_dynamic?'),
        ('zzz=1', 'unknown config key zzz'),
        ('model.name.x=1', 'unknown config key model.name.x, did you mean model.name?'),
        ('=1', "an override must name a key, as in train.steps=100, got '=1'"),
        ('  =1', "an override must name a key, as in train.steps=100, got '  =1'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(override, says):
    assert refused(override) == says


def test_all_wrong_keys_are_reported_in_one_line():
    message = refused('train.seeed=1', 'model.num_kernels=0', 'partition.dynamic_fraction=2', 'parallel=no', 'debug=3')
    assert message.startswith('unknown config key train.seeed, did you mean train.seed?; ')
    for name in ('model.num_kernels', 'partition.dynamic_fraction', 'parallel', 'debug'):
        assert message.count(f'{name} must be ') == 1, message
    assert message.count('; ') == 4 and '\n' not in message


def test_combinations_are_checked_once_every_key_is_valid():
    conflicts = ['train.steps=20', 'data.image_size=7', 'partition.schedule=one_shot', 'partition.rounds=2']
    assert refused(*conflicts, 'debug=3') == "debug must be True or False, got '3'"
    message = refused(*conflicts)
    for part in (
        'optim.warmup_steps must be below the 20 steps of the run, got 20',
        'data.image_size must be at least 8',
        'has a single round, got rounds = 2',
    ):
        assert message.count(part) == 1, message
    assert message.count('; ') >= 2 and '\n' not in message
    texts = refused('model.num_selected=9', 'data.max_length=513', 'data.task=mnli', 'model.num_classes=2', file=GLUE)
    assert texts.count('; ') == 2 and 'num_selected' in texts and 'data.max_length' in texts and 'must be 3' in texts


RESNET18 = ('model.name=resnet18', 'model.pretrained=FILE')


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize(('file', 'weights'), [(DIGITS, RESNET18), (GLUE, ('model.pretrained=FOLDER',))])
def test_copies_are_not_scored_before_they_are_trained(file, weights, criterion):
    first = (*weights, f'partition.criterion={criterion}', 'partition.start_step=0')
    if criterion in ('magnitude', 'random'):
        load(*first, file=file)
    else:
        line = refused(*first, file=file)
        assert f'partition.start_step must be above 0 for model.pretrained with criterion {criterion!r}' in line
        assert "handoff 'mean' with it, or criterion 'magnitude' or 'random'" in line
    for change in ('partition.start_step=1', 'model.pretrained=', 'partition.dynamic_fraction=1'):
        load(*first, change, file=file)
    # It may be that no layer competes.
    load(*first, 'partition.keep_dynamic=stage4', 'partition.keep_static=.*', file=file)


def test_a_network_without_a_partition_asks_nothing_of_its_keys():
    for network in ('model.conv=static', 'partition.dynamic_fraction=1'):
        load(network, 'train.steps=50', 'partition.start_step=50')
    for network in ('model.ffn=dense', 'partition.dynamic_fraction=1'):
        load(network, 'train.steps=50', 'partition.start_step=50', file=GLUE)


def write(tmp_path, body, name='mine.py'):
    path = tmp_path / name
    path.write_text(
        'import ml_collections\nfrom ml_collections import ConfigDict\n'
        f'from configs import digits_resnet10_pad as base\n{body}\n'
    )
    return path


BASE = 'def get_config():\n    config = base.get_config()\n    '


@pytest.mark.parametrize(
    ('body', 'says'),
    [
        (BASE + 'config.modle = ConfigDict()\n    config.modle.width = 3\n    return config', 'unknown config key mod'),
        (BASE + 'config.model.stam = 3\n    return config', 'model.stam, did you mean model.stem?'),
        (BASE + 'del config.optim.name\n    return config', 'config key optim.name is missing'),
        (BASE + 'config.unlock()\n    config.model = ConfigDict()\n    return config', 'model.name is missing; config'),
        (BASE + 'config.model.name = "resnet11"\n    return config', 'model.name must be one of resnet10'),
        (BASE + 'config.ignore_type()\n    return {}', 'must return a ConfigDict, got dict'),
        (BASE + '1 / 0', 'fails: ZeroDivisionError: division by zero'),
        (BASE + 'raise SystemExit(3)', 'fails: SystemExit: 3'),
        ('def get_config(:', 'fails: SyntaxError'),
        ('import a_module_that_is_not_there', 'fails: ModuleNotFoundError'),
        ('config = 1', "fails: KeyError: 'get_config'"),
        (BASE + 'class Own(BaseException): pass\n    raise Own(3)', 'fails: Own: 3'),
        (
            BASE + 'config.optim.name = ml_collections.config_dict.required_placeholder(str)\n    return config',
            'fails: R',
        ),
        (BASE + 'config.unlock()\n    del config.optim\n    config.optim = 3\n    return config', 'optim.name is mis'),
        (BASE + 'config.unlock()\n    config.optim.more = config\n    return config', 'fails: RecursionError'),
        (BASE + 'config.unlock()\n    config.optim[3] = 3\n    return config', 'fails: TypeError'),
    ],
)
def test_files_that_are_wrong(tmp_path, body, says):
    with pytest.raises(BadInput) as caught:
        load_config(str(write(tmp_path, body)))
    assert says in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInput, match=r'nowhere\.py does not exist'):
        load_config(str(tmp_path / 'nowhere.py'))
    with pytest.raises(BadInput, match='does not exist'):
        load_config(str(tmp_path))
    with pytest.raises(BadInput, match='is not a Python file'):
        load_config(str(write(tmp_path, '', name='mine.yaml')))


def test_a_diff_of_a_base_works_from_any_folder(tmp_path):
    path = write(tmp_path, BASE + 'config.train.epochs = 3\n    config.optim.learning_rate = 1\n    return config')
    config = load_config(str(path), ['train.epochs=8.5', 'optim.learning_rate=0.5'])
    assert config.train.epochs == 8.5 and config.optim.learning_rate == 0.5
    assert load_config(str(path)).train.epochs == 3


def test_an_override_mends_a_value_of_the_wrong_type(tmp_path):
    path = write(
        tmp_path, BASE + 'with config.ignore_type():\n        config.model.width_multiplier = "wide"\n    return config'
    )
    assert load_config(str(path), ['model.width_multiplier=4']).model.width_multiplier == 4


@pytest.mark.parametrize(
    ('overrides', 'num_classes'),
    [
        ([], 2),
        (['data.task=stsb'], 1),
        (['data.task=mnli'], 3),
        (['data.task=mnli', 'model.num_classes=3'], 3),
        (OWN_TEXTS, 2),
        ([*OWN_TEXTS, 'data.regression=True'], 1),
        ([*OWN_TEXTS, 'model.num_classes=7'], 7),
    ],
)
def test_the_task_says_how_many_classes_there_are(overrides, num_classes):
    """As far as it is known without data; that is what a workdir's config says then."""
    assert load(*overrides, file=GLUE).model.num_classes == num_classes


def test_differing_keys_say_old_and_new_but_for_those_that_are_free():
    old, new = flatten(load()), flatten(load('train.seed=3', *(f'{name}={value}' for name, value in FREE.items())))
    assert differing_keys(old, new) == ['train.seed: 0 -> 3']
    assert FREE.keys() | {'model.remat'} == FREE_KEYS
    texts = flatten(load(file=GLUE)), flatten(load('model.remat=True', 'model.plan=dense', file=GLUE))
    assert differing_keys(*texts) == []
    assert differing_keys({'a': 1}, {'b': 2}) == ["a: 1 -> 'missing'", "b: 'missing' -> 2"]


FREE = {
    'data.path': 'elsewhere',
    'model.plan': 'shift',
    'partition.compact': True,
    'train.keep_checkpoints': 7,
    'train.on_nonfinite': 'skip',
    'train.max_nonfinite': 3,
    'parallel': 'shard_map',
    'debug': True,
}


OLDER = json.dumps(load().to_dict()).replace('width_multiplier', 'width')


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('', 'config.json is damaged'),
        ('[]', 'config.json is damaged: it holds no object'),
        ('{"model": 3, "a.b": 2}', 'unknown config key a.b; '),
        ('{"model": {"name": {"a": 1}}}', 'unknown config key model.name.a, did you'),
        # A width of 64 is not a multiplier of 64.
        (OLDER, '(use the version and the --import that made it, or another workdir): unknown config key model.width'),
        ('\x00\xff', 'config.json is damaged'),
    ],
)
def test_a_damaged_workdir_config(tmp_path, content, says):
    (tmp_path / 'config.json').write_text(content, encoding='latin-1')
    with pytest.raises(BadInput) as caught:
        read_workdir_config(tmp_path)
    assert says in str(caught.value)


def test_the_config_of_a_workdir_with_overrides(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(load().to_dict()))
    assert read_workdir_config(tmp_path).to_dict() == load().to_dict()
    found = read_workdir_config(tmp_path, [f'{name}={value}' for name, value in FREE.items()])
    assert differing_keys(flatten(load()), flatten(found)) == []
    assert {name: flatten(found)[name] for name in FREE} == FREE
    with pytest.raises(BadInput, match=r'train\.seed, model\.width_multiplier cannot be changed for the run in'):
        read_workdir_config(tmp_path, ['train.seed=1', 'data.path=x', 'model.width_multiplier=8'])
    with pytest.raises(BadInput, match='parallel must be one of pmap, shard_map'):
        read_workdir_config(tmp_path, ['parallel=xmap'])


def test_the_base_files_have_every_key_and_no_problem():
    for file, rules in ((DIGITS, IMAGE_KEYS), (GLUE, TEXT_KEYS)):
        assert flatten(load(file=file)).keys() == rules.keys()
        assert find_key_problems(flatten(load(file=file))) == find_conflicts(load(file=file)) == []


@pytest.mark.parametrize(
    ('arguments', 'overrides'),
    [
        (['--config.train.steps=3'], ['train.steps=3']),
        (['--config.train.steps', '3'], ['train.steps=3']),
        (['--config.optim.learning_rate', '-1'], ['optim.learning_rate=-1']),
        (['--config.data.path=a=b'], ['data.path=a=b']),
        (['--config.data.path='], ['data.path=']),
        (['--config.a=1', '--flag=x', '--config.b=2'], ['a=1', 'b=2']),
    ],
)
def test_flags_that_are_overrides(arguments, overrides):
    parser = Parser(prog='p')
    parser.add_argument('--flag')
    assert parse_with_overrides(parser, arguments)[1] == overrides
