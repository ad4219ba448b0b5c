"""Tables of measured plans: what is written is read, what is wrong is refused, and no number changes."""

import json

import jax
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.layers import (
    ConvCase,
    DynamicConv,
    MixtureCase,
    MixtureFFN,
    MixtureLinear,
    PartialCase,
    PlanTable,
    choose_dispatcher,
    choose_plan,
    describe_case,
    resolve_geometry,
)
from pad_jax.training import trainer
from pad_jax.training.configuration import flatten
from pad_jax.training.plan_tables import check_writable, checksum, read_plan_table, write_plan_table
from tests.layers.compiling import jit_quickly
from tests.training.tiny import DIGITS, small_config

GEOMETRY = resolve_geometry((6, 6), (3, 3))
CONV = ConvCase((2, 6, 6, 3), (4, 3, 3, 3, 5), GEOMETRY, 'float32')
MIXTURE = MixtureCase(6, 4, 2, 'kernel', (3, 5), 'float32')
KIND = jax.local_devices()[0].device_kind
X = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))


def table_of(*plans, kind=KIND):
    return PlanTable(kind, '1.2.3', plans)


def write(path, *plans, **changes):
    table = table_of(*plans)
    write_plan_table(path, table, {case: {plan: 1.5} for case, plan in plans})
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return table


def test_what_is_written_is_read(tmp_path):
    by_place = CONV._replace(by_place=True, geometry=resolve_geometry((6, 6), (3, 3), 2, 'CIRCULAR', 1, 2))
    path = tmp_path / 'new' / 'table.json'
    written = write(path, (CONV, 'outputs'), (by_place, 'shift'), (MIXTURE, 'ragged'))
    found = read_plan_table(str(path))
    assert found == written and hash(found) == hash(written) and checksum(found) == checksum(written)
    assert found.find(by_place) == 'shift' and found.find(CONV._replace(dtype='bfloat16')) is None
    assert [entry.name for entry in path.parent.iterdir()] == ['table.json']
    assert read_plan_table('') is None
    assert checksum(table_of((CONV, 'shift'))) != checksum(table_of((CONV, 'outputs'))) != checksum(None)


BAD = {
    'format': ({'format': 2}, 'has format 2, this version of pad_jax reads 1'),
    'device': ({'device_kind': 'TPU v9'}, f"was measured on 'TPU v9', this device is '{KIND}'"),
    'entries': ({'entries': None}, 'is damaged: it lacks jax or entries'),
    'no entry': ({'entries': [3]}, 'is damaged: entry 1 is no object'),
    'no case': ({'entries': [{'kind': 'loop'}]}, 'entry 1 is no case of a convolution or a mixture'),
    'no shapes': (
        {'entries': [describe_case(CONV) | {'x': []}]},
        'is damaged: entry 1 has no shapes of a convolution: tuple index out of range',
    ),
    'a number': (
        {'entries': [describe_case(PartialCase(CONV, -1, 3)) | {'whole': describe_case(CONV) | {'x': 3}}]},
        'is damaged: entry 1 has no shapes of a partial convolution',
    ),
    'no field': ({'entries': [{'kind': 'mixture', 'plan': 'dense'}]}, 'entry 1 is no case of .*tokens'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_bad_table_is_refused_with_the_reason(tmp_path, name):
    changes, message = BAD[name]
    write(tmp_path / 'table.json', (CONV, 'outputs'), **changes)
    with pytest.raises(BadInput, match=message):
        read_plan_table(str(tmp_path / 'table.json'))


@pytest.mark.parametrize(
    ('case', 'plan', 'allowed'),
    [
        (CONV, 'fastest', 'outputs, unfolded, shift, patches, fused'),
        (CONV, 'grouped', 'outputs, unfolded, shift, patches, fused'),
        (CONV._replace(by_place=True), 'outputs', 'shift, patches, fused'),
        (MIXTURE, 'capacity', 'dense, blocks, ragged'),
    ],
)
def test_a_plan_that_auto_may_not_take_is_refused(tmp_path, case, plan, allowed):
    write(tmp_path / 'table.json', (case, plan))
    with pytest.raises(BadInput, match=f"has plan '{plan}' in entry 1, allowed are {allowed}$"):
        read_plan_table(str(tmp_path / 'table.json'))


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadInput, match='does not exist: python -m pad_jax tune'):
        read_plan_table(str(tmp_path / 'table.json'))
    with pytest.raises(BadInput, match='cannot be read: Is a directory'):
        read_plan_table(str(tmp_path))
    for content in ('{"format": 1', '[]', '{}'):
        (tmp_path / 'table.json').write_text(content)
        with pytest.raises(BadInput, match=r'is damaged|is none'):
            read_plan_table(str(tmp_path / 'table.json'))
    for path in (tmp_path, tmp_path / 'table.json' / 'within'):
        with pytest.raises(BadInput, match='cannot be written'):
            check_writable(path)


def test_the_command_refuses_it_before_anything_is_written(refused, tmp_path):
    write(tmp_path / 'table.json', (CONV, 'outputs'), device_kind='TPU v9')
    flags = [f'--config={DIGITS}', f'--workdir={tmp_path}/run', f'--config.model.plan_table={tmp_path}/table.json']
    assert 'was measured on' in refused('train', *flags)


def test_a_table_comes_before_the_costs_where_it_knows_the_shape():
    x, kernels = jax.ShapeDtypeStruct(CONV.x, 'float32'), jax.ShapeDtypeStruct(CONV.kernels, 'float32')
    by_cost = choose_plan(x, kernels, GEOMETRY, 'cpu')
    other = next(name for name in ('shift', 'outputs') if name != by_cost)
    table = table_of((CONV, other), (MIXTURE, 'ragged'))
    assert choose_plan(x, kernels, GEOMETRY, 'cpu', table=table) == other
    wider = jax.ShapeDtypeStruct((3, *CONV.x[1:]), 'float32')
    assert choose_plan(wider, kernels, GEOMETRY, 'cpu', table=table) == choose_plan(wider, kernels, GEOMETRY, 'cpu')
    (batch,) = jax.export.symbolic_shape('b')
    symbolic = jax.ShapeDtypeStruct((batch, *CONV.x[1:]), 'float32')
    assert choose_plan(symbolic, kernels, GEOMETRY, 'cpu', table=table) in ('outputs', 'unfolded', 'shift', 'patches')
    assert choose_dispatcher(6, 4, 2, 'cpu') == 'dense'
    assert choose_dispatcher(6, 4, 2, 'cpu', MIXTURE, table) == 'ragged'
    assert choose_dispatcher(6, 4, 2, 'cpu', MIXTURE._replace(shape=(3, 6)), table) == 'dense'
    # One that drops tokens would compute something else, however it got there.
    assert choose_dispatcher(6, 4, 2, 'cpu', MIXTURE, table_of((MIXTURE, 'capacity'))) == 'dense'


def test_a_table_changes_the_plan_and_never_the_numbers():
    variables = jit_quickly(DynamicConv(5, (3, 3), use_bias=False).init)(jax.random.key(1), X)
    programs, outputs = set(), []
    for plan in ('outputs', 'shift', 'patches'):
        layer = DynamicConv(5, (3, 3), use_bias=False, plan_table=table_of((CONV, plan)))
        programs.add(str(jax.make_jaxpr(layer.apply)(variables, X)))
        named = DynamicConv(5, (3, 3), use_bias=False, plan=plan)
        assert str(jax.make_jaxpr(layer.apply)(variables, X)) == str(jax.make_jaxpr(named.apply)(variables, X))
        outputs.append(jit_quickly(layer.apply)(variables, X))
    assert len(programs) == 3
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-5)


@pytest.mark.parametrize('kind', [MixtureLinear, MixtureFFN])
def test_the_same_of_mixtures(kind):
    tokens = jax.random.normal(jax.random.key(0), (2, 3, 3))
    parameter, shape = ('neurons', (7, 5)) if kind is MixtureFFN else ('kernel', (3, 5))
    case = MixtureCase(6, 4, 2, parameter, shape, 'float32')
    variables = jit_quickly(kind(5, num_experts=4).init)(jax.random.key(1), tokens)
    outputs = []
    for plan in ('dense', 'blocks'):
        layer = kind(5, num_experts=4, plan_table=table_of((case, plan)))
        named = kind(5, num_experts=4, dispatcher=plan)
        programs = [str(jax.make_jaxpr(each.apply)(variables, tokens)) for each in (layer, named)]
        assert programs[0] == programs[1]
        outputs.append(jit_quickly(layer.apply)(variables, tokens)[0])
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_equal_tables_make_equal_layers():
    one, other = (DynamicConv(5, (3, 3), plan_table=table_of((CONV, 'shift'))) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != DynamicConv(5, (3, 3), plan_table=table_of((CONV, 'outputs')))


def test_processes_agree_on_the_content_and_not_on_the_path(monkeypatch, tmp_path):
    class Run:
        """Stands in for one that has nothing left to do."""

        def __init__(self, *arguments):
            seen['handed on'] = arguments[-1]

        def finish(self, signals):
            return {}

        def close(self):
            pass

    seen, contents = {}, []
    monkeypatch.setattr(trainer, 'check_same', lambda what, values: seen.update({what: dict(values)}))
    monkeypatch.setattr(trainer, '_Run', Run)
    for name, plan in (('a', 'shift'), ('b', 'shift'), ('c', 'outputs')):
        table = write(tmp_path / name, (CONV, plan))
        config = small_config(model__plan_table=str(tmp_path / name))
        trainer.train(config, tmp_path / f'run {name}')
        assert seen['config'].keys() == flatten(config).keys() - {'model.plan_table'}
        assert seen['plan table'] == {'checksum': checksum(table)} and seen['handed on'] == table
        contents.append(seen['plan table'])
    assert contents[0] == contents[1] != contents[2]
