"""`tune` on the smallest networks: it measures what their layers ask for, and what it writes is what they then take."""

import json

import jax
import pytest

from pad_jax.errors import BadInput
from pad_jax.layers import DROPLESS, PartialCase, PlanTable, list_plans
from pad_jax.models import MODELS
from pad_jax.reports import tuning
from pad_jax.reports.network_forms import make_forms
from pad_jax.reports.tuning import Measured, choose_by_cost, find_cases, measure_case, tune
from pad_jax.training.plan_tables import read_plan_table, write_plan_table
from pad_jax.training.setup import make_model, plan_layers
from tests.reports.comparison_test import cells
from tests.training.fixtures import compiled_quickly
from tests.training.tiny import DIGITS, ONE_BLOCK, small_config
from tests.training.tiny_texts import small_text_config

ALL = list_plans(2)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setitem(MODELS, 'resnet10', ONE_BLOCK)
    with compiled_quickly():
        yield


def test_cases_are_those_of_one_device():
    config = small_config(model__width_multiplier=0.25, optim__accumulate_steps=2, model__plan='outputs')
    # 16 images on 8 devices in 2 parts; both convolutions of the block are alike.
    ((case, count),) = find_cases(config).items()
    assert case.x == (1, 8, 8, 16) and case.kernels == (4, 3, 3, 16, 16) and count == 2
    (case,) = find_cases(small_config(model__conv='condconv', partition__dynamic_fraction=0.5))
    assert case.kernels[0] == 5  # the static part is one more kernel
    assert all(case.by_place for case in find_cases(small_config(model__conv='odconv')))
    assert not find_cases(small_config(model__conv='dcd'))
    with pytest.raises(BadInput, match='must be a multiple of 24'):
        find_cases(small_config(optim__accumulate_steps=3))


def test_a_table_of_what_is_fastest_that_auto_then_takes(tmp_path, monkeypatch, capsys):
    """With times that are made up; measured ones may be anything."""
    made_up = dict(zip(ALL, (5.0, 4.0, 3.0, 1.0, 2.0), strict=True))
    asked = []

    def measure(case, count, repeats):
        asked.append((case, count, repeats))
        return Measured(count, 'outputs', {name: seconds / 1e3 for name, seconds in made_up.items()})

    monkeypatch.setattr(tuning, 'measure_case', measure)
    config, path = small_config(), tmp_path / 'tables' / 'here.json'
    tune(config, path, repeats=7)
    out, err = capsys.readouterr()
    fastest = ALL[3]
    row = cells(out, '2×8²×4→4 3×3')
    assert row == ['2×8²×4→4 3×3', '2', '5', '4', '3', '1', '2', 'outputs', fastest, '5.00']
    assert cells(out, 'geometric mean')[-1] == '5.00'
    assert f'Table: {path}' in out and err == '1 of 1: 2×8²×4→4 3×3\n'
    ((case, count, repeats),) = asked
    assert (count, repeats) == (2, 7)
    table = read_plan_table(str(path))
    assert table.find(case) == fastest and table.jax_version == jax.__version__
    assert json.loads(path.read_text())['entries'][0]['milliseconds']['outputs'] == 5.0
    taken, named = (
        make_model(small_config(**change), plan_table=table if not change else None)
        for change in ({}, {'model__plan': fastest})
    )
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), 'float32')
    shapes = jax.eval_shape(taken.init, jax.random.key(0), image)
    programs = [str(jax.make_jaxpr(model.apply)(shapes, image)) for model in (taken, named)]
    assert programs[0] == programs[1]


def test_every_plan_is_measured():
    changes = {'model__conv': 'odconv', 'partition__dynamic_fraction': 1.0, 'data__batch_size': 8}
    ((case, count),) = find_cases(small_config(**changes)).items()
    found = measure_case(case, count, repeats=1)
    assert list(found.seconds) == list_plans(1, by_place=True) and found.count == 2
    assert found.chosen == choose_by_cost(case)
    assert found.loss >= 1 and found.seconds[found.fastest] == min(found.seconds.values()) > 0


def test_structured_partitions_are_tuned_by_what_is_dynamic(tmp_path):
    changes = {'partition__granularity': 'output', 'model__width_multiplier': 1 / 8, 'data__batch_size': 8}
    config = small_config(**changes)
    cases = find_cases(config)
    ((case, count),) = [(case, count) for case, count in cases.items() if isinstance(case, PartialCase)]
    assert case.whole in cases and count == 2  # as it is before the partition
    assert (case.axis, case.tenths) == (-1, 2)  # 2 of 8 outputs, where 2.4 may be
    found = measure_case(case, count, repeats=1)
    assert list(found.seconds) == ['auto', *list_plans(1)] and found.chosen == 'auto'
    programs = set()
    form = make_forms(config, plan_layers(config))['compact']
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
    for plan in ('outputs', 'shift'):
        table = tmp_path / plan
        write_plan_table(table, PlanTable('cpu', '1', ((case, plan),)), {case: {}})
        by_table = make_model(config, plan_table=read_plan_table(str(table)))
        by_name = make_model(small_config(**changes, model__plan=plan))
        first, second = (str(jax.make_jaxpr(model.apply)(form.variables, image)) for model in (by_table, by_name))
        assert first == second
        programs.add(first)
    assert len(programs) == 2


@pytest.mark.parametrize('ffn', ['linear', 'ffn'])
def test_dispatchers_are_measured_at_the_token_count_of_a_config(texts, one_layer, ffn):
    config = small_text_config(texts, model__ffn=ffn, data__batch_size=8)
    cases = find_cases(config)
    # One text of 16 tokens for each device; the width is 16, the hidden one 24.
    shapes = [(case.parameter, case.shape) for case in cases]
    assert shapes == {'linear': [('kernel', (16, 24)), ('kernel', (24, 16))], 'ffn': [('neurons', (33, 24))]}[ffn]
    assert all(case.tokens == 16 and case.experts == 4 and case.selected == 2 for case in cases)
    case = next(iter(cases))
    found = measure_case(case, 1, repeats=1)
    assert tuple(found.seconds) == DROPLESS and found.chosen in DROPLESS


def test_what_cannot_be_tuned_is_refused(refused, tmp_path):
    for flags, message in (
        (['--config.model.conv=static'], 'no dynamic layers: there is no plan to choose'),
        ([f'--table={tmp_path}'], 'cannot be written: Is a directory'),
        (['--repeats=0'], '--repeats must be at least 1, got 0'),
        (['--config.data.batch_size=12'], 'must be a multiple of 8'),
    ):
        assert message in refused('tune', f'--config={DIGITS}', *flags)
