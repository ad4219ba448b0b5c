"""Reports of sweeps: their numbers by hand, and the folders that are refused."""

import base64
import csv
import html.parser
import io
import json
import math
import re
import shutil

import matplotlib.image
import pytest

from pad_jax.reports.sweep_report import read_results
from tests.reports.miniature_sweep import (
    SCORES,
    change_json,
    change_rows,
    leave_unfinished,
    read_json,
    write_miniature,
)
from tests.training.fixtures import run_command

FIGURES = ['score_parameters', 'score_kappa', 'training_curves']


@pytest.fixture(scope='module')
def one_block_module():
    from pad_jax.models import MODELS
    from tests.training.tiny import ONE_BLOCK

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        yield


@pytest.fixture(scope='module')
def reported(tmp_path_factory, finished_run, one_block_module):
    """A sweep with every run finished, and its report. Tests must not change it."""
    folder = write_miniature(tmp_path_factory.mktemp('reported') / 'sweep', finished_run)
    status, out, err = run_command('report', folder)
    assert status == 0, err
    assert err == f'report: {folder}/report/report.html\n'
    assert out.startswith('3 variants, 3 planned seeds each: 9 of 9 runs are finished.')
    return folder


@pytest.fixture
def sweep(tmp_path, finished_run, one_block, monkeypatch):
    """Return a function that writes a sweep with given scores. Its figures are drawn, but not rendered."""
    monkeypatch.setattr('pad_jax.reports.sweep_report.save_figure', lambda figure, file: file.write(b'a picture'))

    def make(scores=SCORES, planned=3):
        return write_miniature(tmp_path / 'sweep', finished_run, scores, planned)

    return make


def report(folder, *flags):
    """Write the report of a sweep; return the output of the command and the report as Markdown."""
    status, out, err = run_command('report', folder, *flags)
    assert status == 0, err
    return out, (folder / 'report' / 'report.md').read_text()


def read_runs(folder):
    return list(csv.DictReader(io.StringIO((folder / 'report' / 'runs.csv').read_text())))


class Page(html.parser.HTMLParser):
    """Tags of a page with their attributes, and all of its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    @property
    def images(self):
        return {attributes['id']: attributes['src'] for tag, attributes in self.tags if tag == 'img'}


def test_values_are_those_that_the_runs_measured(reported):
    rows = read_runs(reported)
    assert [(row['variant'], int(row['seed'])) for row in rows] == [
        (name, seed) for name in SCORES for seed in range(3)
    ]
    for row in rows:
        workdir = reported / row['variant'] / f'seed_{row["seed"]}'
        last = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()][-1]
        totals = read_json(workdir / 'partition.json')['totals']
        assert (last['split'], last['accuracy']) == ('eval', SCORES[row['variant']][int(row['seed'])])
        assert row['state'] == 'finished'
        assert [float(row[name]) for name in ('accuracy', 'loss')] == [last['accuracy'], last['loss']]
        for name in ('parameters', 'dynamic_fraction', 'dynamic_share'):
            assert float(row[name]) == totals[name]
        assert float(row['seconds_per_step']) == 0.25 + int(row['seed'])


def test_multiply_adds_are_those_that_inspect_counts(reported):
    counted = {row['variant']: float(row['multiply_adds']) for row in read_runs(reported)}
    assert 0 < counted['static'] < counted['base']
    _, out, _ = run_command('inspect', '--workdir', reported / 'base' / 'seed_0')
    total = [line for line in out.splitlines() if line.startswith('│ total')][1]
    assert total.split('│')[-2].strip() == f'{counted["base"] / 1000:.4g} k'


def test_table_and_sentences_name_the_differences(reported):
    text = (reported / 'report' / 'report.md').read_text()
    assert text.startswith(f'    python -m pad_jax report {reported}\n\n')
    # by_magnitude − base: 0.125, 0.0625, 0.125; mean 5 / 48, deviation √(2 · (1/48)² + (2/48)²) / √2 = √3 / 48:
    # margin t · (√3 / 48) / √3 = t / 48 = 0.0896. static − base: −0.25, 0, −0.125, margin t · 0.125 / √3 = 0.3105.
    assert '| by_magnitude | partition.criterion = magnitude | 3 of 3 | 72.92 | +10.42 ± 8.96 |' in text
    assert '| static | model.conv = static | 3 of 3 | 50.00 | −12.50 ± 31.05 |' in text
    assert '95 % intervals that exclude 0, of 2 differences to base: by_magnitude (+10.42 ± 8.96).' in text
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert len(lines) == 5 and len({line.count('|') for line in lines}) == 1


def test_page_holds_every_figure_and_refers_to_nothing_else(reported):
    page = Page(reported / 'report' / 'report.html')
    assert list(page.images) == FIGURES
    assert {path.name for path in (reported / 'report').iterdir()} == {
        *(f'{name}.png' for name in FIGURES), 'report.html', 'report.md', 'runs.csv',
    }  # fmt: skip
    for name, source in page.images.items():
        kind, _, data = source.partition(',')
        assert kind == 'data:image/png;base64'
        picture = base64.b64decode(data, validate=True)
        assert picture == (reported / 'report' / f'{name}.png').read_bytes()
        pixels = matplotlib.image.imread(io.BytesIO(picture))
        assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.03
    referred = [
        attributes[name] for _, attributes in page.tags for name in ('src', 'href', 'srcset') if name in attributes
    ]
    assert all(reference.startswith('data:') for reference in referred)
    assert not {tag for tag, _ in page.tags} & {'script', 'iframe', 'object', 'embed'}
    style = (reported / 'report' / 'report.html').read_text().partition('</style>')[0]
    assert 'url(' not in style and '@import' not in style
    assert 'Missing' not in page.text


def test_any_variant_may_be_the_base_of_the_comparison(sweep, refused):
    folder = sweep()
    _, text = report(folder, '--base=static')
    assert text.startswith(f'    python -m pad_jax report {folder} --base=static\n\n')
    assert '| difference to static |' in text and 'differences to static: ' in text
    # base − static: 0.25, 0, 0.125, margin t · 0.125 / √3 = 0.3105.
    assert '| base | nothing: the base | 3 of 3 | 62.50 | +12.50 ± 31.05 |' in text
    assert '| static | model.conv = static | 3 of 3 | 50.00 | – |' in text
    line = refused('report', folder, '--base=other')
    assert '--base must be a variant of' in line and 'one of base, by_magnitude, static, got other' in line


def test_few_seeds_have_no_interval_and_few_pairs_are_counted(sweep):
    """Two seeds of 0.5 and 0.75 have the interval 62.50 ± 158.83 %."""
    fourth = {0: 0.25, 1: 0.75, 2: 0.5, 3: 0.5}
    out, text = report(sweep({'base': {0: 0.5, 1: 0.75}, 'by_magnitude': {0: 0.625, 1: 1.0, 2: 0.1}, 'static': fourth}))
    # by_magnitude − base: 0.125 and 0.25, so 0.1875 of two pairs; three runs are finished.
    assert '| 2 of 4 | 62.50 | – |' in text and '| 3 of 4 | 57.50 | +18.75 (of 2) |' in text
    # Four seeds: √(0.125 / 3) / 2 · t of 3 degrees of freedom = 3.1824.
    assert '| 4 of 4 | 50.00 ± 32.48 | −12.50 (of 2) |' in text
    assert '95 % intervals that exclude 0, of 2 differences to base: 0.' in out


def test_nothing_is_compared_before_two_variants_share_two_seeds(sweep):
    out, text = report(sweep({'base': {0: 0.5, 1: 0.75}, 'by_magnitude': {0: 0.625}, 'static': {2: 0.5}}))
    assert out.splitlines()[1] == ('No variant shares two finished seeds with base, so differences cannot be judged.')
    assert ' ± ' not in text.partition('Mean over finished seeds')[0]


def test_a_score_that_is_not_a_number_is_named_and_shows_no_difference(sweep):
    out, text = report(sweep(SCORES | {'by_magnitude': {0: 0.625, 1: math.nan, 2: 0.75}}))
    assert 'missing: by_magnitude: seed 1 without a finite accuracy; ' in out
    assert 'of 1 differences to base: 0.' in out
    assert '| 3 of 3 | n/a | n/a |' in text


def test_unfinished_runs_are_named_and_do_not_count(sweep):
    folder = sweep({'base': SCORES['base'], 'by_magnitude': {0: 0.625, 1: 0.0}})
    leave_unfinished(folder / 'by_magnitude' / 'seed_1', step=4)
    (folder / 'by_magnitude' / 'seed_1.log').write_text('step 4\nerror: the loss is not finite\n')
    (folder / 'base' / 'seed_2' / 'timing.json').unlink()  # killed after its last step
    out, text = report(folder)
    missing = 'by_magnitude: seed 1 unfinished at step 4 of 6 (error: the loss is not finite); seed 2 not begun'
    assert f'missing: {missing}\n' in out and 'missing: base: seed 2 without a finite seconds_per_step\n' in out
    assert '4 of 6 runs are finished.' in out
    assert f'Missing: {missing}.' in Page(folder / 'report' / 'report.html').text and f'Missing: {missing}.' in text
    rows = {(row['variant'], row['seed']): row for row in read_runs(folder)}
    for seed, state in (('1', 'unfinished at step 4 of 6 (error: the loss is not finite)'), ('2', 'not begun')):
        assert list(rows['by_magnitude', seed].values())[2:] == [state, *[''] * 7]
    assert rows['base', '2']['seconds_per_step'] == '' and rows['base', '2']['accuracy'] == '0.625'
    # Of one finished seed: 0.625 − 0.5, without an interval; of the base the mean of the two known times.
    base, other = read_results(folder).variants
    assert base.estimate('seconds_per_step').mean == 0.75 and len(other.finished) == 1
    assert '| 62.50 | +12.50 |' in text
    assert 'No variant shares two finished seeds with base' in out


def test_a_run_that_stopped_early_is_finished(sweep):
    folder = sweep({'base': {0: 0.5}}, planned=1)
    workdir = folder / 'base' / 'seed_0'
    for path in (folder / 'sweep.json', workdir / 'config.json'):
        content = read_json(path)
        content.get('config', content)['train'] |= {'steps': 12, 'patience': 1}
        path.write_text(json.dumps(content))
    (workdir / 'checkpoints' / '6').rename(workdir / 'checkpoints' / '8')
    change_rows(workdir, lambda row: row | ({'step': {3: 6, 6: 8}[row['step']]} if row['split'] == 'eval' else {}))
    assert report(folder)[0].startswith('1 variants, 1 planned seeds each: 1 of 1 runs are ')
    change_rows(workdir, lambda row: row | ({'accuracy': 0.75} if (row['step'], row['split']) == (8, 'eval') else {}))
    assert 'has no finished run to report' in run_command('report', folder)[2]  # the last evaluation is the best one


def test_a_variant_without_a_finished_run_has_a_row_without_numbers_and_empty_figures_are_left_out(sweep):
    folder = sweep({'base': {}, 'static': {0: 0.25, 1: 0.5}})
    (folder / 'report').mkdir()
    (folder / 'report' / 'score_kappa.png').write_bytes(b'of an earlier report')
    _, text = report(folder)
    assert re.search(r'^\| base \| nothing: the base \| 0 of 3 \|( (n/a|–) \|)+$', text, re.MULTILINE)
    assert list(Page(folder / 'report' / 'report.html').images) == ['score_parameters', 'training_curves']
    assert not (folder / 'report' / 'score_kappa.png').exists()


def test_tasks_of_several_metrics_count_with_their_mean(sweep):
    folder = sweep({'base': {0: 0.5}, 'static': {0: 0.25}}, planned=1)
    for name, f1 in (('base', 0.75), ('static', 0.5)):
        workdir = folder / name / 'seed_0'
        change_rows(workdir, lambda row, f1=f1: row | ({'f1': f1} if row['split'] == 'eval' else {}))
    _, text = report(folder)
    first, second = read_runs(folder)
    assert list(first)[3:7] == ['mean of accuracy, f1', 'accuracy', 'f1', 'loss']
    assert [first[name] for name in list(first)[3:6]] == ['0.625', '0.5', '0.75']  # (0.5 + 0.75) / 2
    assert second['mean of accuracy, f1'] == '0.375'
    assert '| mean of accuracy, f1 in % |' in text


@pytest.mark.slow
def test_a_sweep_of_texts(tmp_path, finished_text_run, one_layer):
    folder = write_miniature(tmp_path / 'sweep', finished_text_run, {'base': SCORES['base']})
    report(folder)
    partition = read_json(finished_text_run / 'partition.json')
    assert float(read_runs(folder)[0]['dynamic_fraction']) == partition['totals']['dynamic_fraction']
    page = Page(folder / 'report' / 'report.html')
    assert list(page.images) == [name for name in FIGURES if name != 'score_kappa']


def edit(path, **values):
    return lambda folder: change_json(folder / path, **values)


def lose_the_last_evaluation(folder):
    row = '{"step": 3, "split": "eval", "loss": 1.0, "accuracy": 0.5}'
    (folder / 'base' / 'seed_0' / 'metrics.jsonl').write_text(f'{row}\n')


def evaluate_by_another_metric(folder):
    change_rows(folder / 'static' / 'seed_0', lambda row: row | ({'f1': 0.5} if row['split'] == 'eval' else {}))


def leave_all_unfinished(folder):
    for config in folder.glob('*/*/config.json'):
        leave_unfinished(config.parent, 4)


OLD = {'pad_jax': ['0.0.9', '0.1.0']}
CONDCONV = {'static': {'model.conv': 'condconv'}}


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda folder: (folder / 'sweep.json').unlink(), 'is not the folder of a sweep: '),
        (edit('static/seed_0/versions.json', **OLD), 'static/seed_0 was trained by pad_jax 0.0.9 and 0.1.0, not by'),
        (edit('static/seed_0/data.json', num_train=7), 'static/seed_0 have different data (num_train: 1442 -> 7)'),
        (edit('sweep.json', variants=CONDCONV), "(model.conv: 'condconv' -> 'static')"),
        (lambda folder: shutil.copytree(folder / 'base', folder / 'other'), 'other/seed_0 is a run of no variant in '),
        (leave_all_unfinished, 'has no finished run'),
        (evaluate_by_another_metric, 'static/seed_0 are evaluated by different metrics'),
        (lose_the_last_evaluation, 'base/seed_0 is finished, but its metrics.jsonl has lost the last evaluation'),
        (lambda folder: (folder / 'report').write_text(''), 'report cannot be written: File exists'),
    ],
)
def test_refused_without_writing(sweep, refused, change, says):
    folder = sweep({'base': {0: 0.5, 1: 0.75}, 'static': {0: 0.25}})
    change(folder)
    assert says in refused('report', folder)
