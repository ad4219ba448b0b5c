"""The package as an installation sees it: what it needs, what it holds, and commands from any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

from pad_jax import CRITERIA, MODELS
from tests.training.fixtures import run_command

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())

# Only jax, flax, optax and NumPy with what these bring themselves.
LIBRARY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
import jax, jax.numpy as jnp
import pad_jax
layer = pad_jax.DynamicConv(8, (3, 3), granularity='element')
images = jnp.ones((1, 4, 4, 3))
variables = layer.init(jax.random.key(0), images)
loss = lambda apply, batch: (apply(batch) ** 2).mean()
masks, _ = pad_jax.partition_flax(layer, variables, loss, [images], dynamic_fraction=0.3, criterion='magnitude')
assert 'load_exported' in dir(pad_jax)
try:
    pad_jax.load_exported
except ImportError as error:
    print(error)
"""


def read_requirements(name):
    return {line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith('#')}


def run(*command, folder, **environment):
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'} | environment
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_layers_and_partition_need_four_libraries():
    library = set(PROJECT['project']['dependencies'])
    names = {line.partition('>')[0].partition('-')[0] for line in read_requirements('requirements.txt') - library}
    blocked = names - {'orbax', 'tensorstore', 'scipy', 'rich'} | {'PIL', 'sklearn', 'cykooz'}  # of jax and flax
    found = run('-c', LIBRARY.format(blocked=blocked), folder=ROOT)
    assert found.stdout == "pad_jax.load_exported needs safetensors: pip install 'pad-jax[train]'\n", found.stderr
    assert library < read_requirements('requirements.txt')


def test_the_wheel_has_every_package():
    packages = {str(path.parent.relative_to(ROOT)).replace('/', '.') for path in (ROOT / 'pad_jax').rglob('*.py')}
    configs = {'pad_jax.shipped.configs', 'pad_jax.shipped.configs.ablations'}
    assert {*PROJECT['tool']['setuptools']['packages']} == packages | configs
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()


DERIVED = """
from configs import cifar_resnet10_pad

def get_config():
    config = cifar_resnet10_pad.get_config()
    config.train.steps = 30
    return config
"""
STUDY = """
from ml_collections import ConfigDict

def get_ablation():
    return ConfigDict({'base': 'cifar_resnet10_pad.py', 'variants': (('few', {'model.num_kernels': 2}),)})
"""


def test_an_installation_finds_its_configs_by_name_from_any_folder(tmp_path):
    """A folder of the user is called `configs` too, and one of its files wins."""
    installed = tmp_path / 'installed'
    shutil.copytree(ROOT / 'pad_jax', installed / 'pad_jax', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / 'configs', installed / 'pad_jax' / 'shipped' / 'configs')
    mine = tmp_path / 'here' / 'configs'
    mine.mkdir(parents=True)
    (mine / '__init__.py').touch()
    (mine / 'base.py').write_text((ROOT / 'configs' / 'digits_resnet10_pad.py').read_text())
    (mine / 'digits_resnet10_static.py').write_text(
        'from configs import base\nget_config = base.get_config\nprint("mine")\n'
    )
    program = """
import sys
from pad_jax.config_files import find_config_file
from pad_jax.reports.sweep import read_ablation
from pad_jax.training.config import load_config
for name in ('digits_resnet10_static', 'configs/digits_resnet10_static.py', 'digits_resnet10_static.py'):
    print(load_config(name).model.conv)
print(read_ablation('dynamic_fraction').base.is_file())
"""
    found = run('-c', program, folder=tmp_path / 'here', PYTHONPATH=str(installed))
    assert found.stdout.split() == ['static', 'mine', 'dynamic', 'static', 'True'], found.stderr
    (tmp_path / 'derived.py').write_text(DERIVED)
    (tmp_path / 'study.py').write_text(STUDY)
    program = """
from pad_jax.reports.sweep import read_ablation
from pad_jax.training.config import load_config
print(load_config('derived.py').train.steps, read_ablation('study.py').base.parent.name)
load_config('digits_resnet10_padd')
"""
    found = run('-c', program, folder=tmp_path, PYTHONPATH=str(installed))
    assert found.stdout.split() == ['30', 'configs'], found.stderr
    assert found.stderr.endswith('is not a Python file, did you mean digits_resnet10_pad?\n')


REGISTERED = """
from pad_jax import CRITERIA, MODELS
CRITERIA['mine'] = CRITERIA['random']
MODELS['small'] = MODELS['resnet10']
"""


def test_a_module_of_the_user_registers_parts(tmp_path, monkeypatch):
    for table, name in ((CRITERIA, 'mine'), (MODELS, 'small')):
        monkeypatch.setitem(table, name, None)  # so that it is removed in the end
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'parts_of_a_test.py').write_text(REGISTERED)
    flags = ('--config=digits_resnet10_pad', '--config.partition.criterion=mine', '--config.model.name=small')
    status, out, err = run_command('count', *flags, '--import=parts_of_a_test')
    assert status == 0 and '"parameters": ' in out, err
    (tmp_path / 'broken_part_of_a_test.py').write_text('1 / 0')
    status, _, err = run_command('count', *flags, '--import=broken_part_of_a_test')
    assert status == 2 and err == 'error: --import=broken_part_of_a_test fails: ZeroDivisionError: division by zero\n'
