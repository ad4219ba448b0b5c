"""What `python -m pad_jax report` writes of a folder, and what it refuses."""

import base64
import csv
import html.parser
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import types

import matplotlib.image
import pytest

from pad_jax.reports.mask_overlap import Overlap
from pad_jax.reports.sweep_plots import plot_overlaps
from tests.reports.miniature_sweep import (
    SCORES,
    STATIC_PARAMETERS,
    change_json,
    change_rows,
    leave_unfinished,
    read_json,
    write_miniature,
)
from tests.training.fixtures import contents, run_command

FIGURES = ['score_parameters', 'score_kappa', 'training_curves', 'layer_fractions', 'mask_overlap']
T_OF_TWO = 4.302652729749462  # Student's t of 2 degrees of freedom at 0.975


@pytest.fixture(scope='module')
def one_block_module():
    from pad_jax.models import MODELS
    from tests.training.tiny import ONE_BLOCK

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        yield


@pytest.fixture(scope='module')
def reported(tmp_path_factory, finished_run, one_block_module):
    """A sweep with every cell finished and its report. Tests must not change it."""
    folder = write_miniature(tmp_path_factory.mktemp('reported') / 'sweep', finished_run)
    status, out, err = run_command('report', folder)
    assert status == 0, err
    assert err == f'report: {folder}/report/report.html\n'
    assert out.startswith('3 variants with 3 seeds each: 9 of 9 runs are finished.')
    return folder


@pytest.fixture
def sweep(tmp_path, finished_run, one_block):
    """Makes one, of the scores given."""

    def make(scores=SCORES, planned=3):
        return write_miniature(tmp_path / 'sweep', finished_run, scores, planned)

    return make


def read_table(folder, name):
    return list(csv.DictReader(io.StringIO((folder / 'report' / name).read_text())))


class Page(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, and all of its text."""

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


def test_cells_are_what_the_runs_measured(reported):
    rows = read_table(reported, 'cells.csv')
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
    counted = {row['variant']: float(row['multiply_adds']) for row in read_table(reported, 'summary.csv')}
    assert 0 < counted['static'] < counted['base']
    _, out, _ = run_command('inspect', '--workdir', reported / 'base' / 'seed_0')
    compact = next(line for line in out.splitlines() if line.split('│')[1:2] and 'compact' in line.split('│')[1])
    assert f'{counted["base"] / 1000:.4g} k' in compact


@pytest.mark.parametrize('variant', SCORES)
def test_summary_is_recomputed_by_hand(reported, variant):
    row = next(row for row in read_table(reported, 'summary.csv') if row['variant'] == variant)
    assert (row['finished'], row['planned']) == ('3', '3')

    def check(name, values):
        mean, margin = statistics.mean(values), T_OF_TWO * statistics.stdev(values) / math.sqrt(3)
        found = [float(row[f'{name}{end}']) for end in ('', '_low', '_high')]
        assert found == pytest.approx([mean, mean - margin, mean + margin], rel=1e-12)

    scores, base = SCORES[variant], SCORES['base']
    check('accuracy', list(scores.values()))
    check('loss', [2 - score for score in scores.values()])
    if variant == 'base':
        assert not any(row[name] for name in row if 'difference' in name)
    else:
        check('accuracy_difference', [scores[seed] - base[seed] for seed in range(3)])
    assert float(row['seconds_per_step']) == 1.25
    if variant == 'static':
        assert (float(row['parameters']), float(row['dynamic_fraction'])) == (STATIC_PARAMETERS, 0)


def test_table_and_sentences_say_what_stands_apart(reported):
    text = (reported / 'report' / 'report.md').read_text()
    assert text.startswith(f'    python -m pad_jax report {reported}\n\n')
    # by_magnitude − base: 0.125, 0.0625, 0.125; mean 5 / 48, deviation √(2 · (1/48)² + (2/48)²) / √2 = √3 / 48:
    # margin t · (√3 / 48) / √3 = t / 48 = 0.0896. static − base: −0.25, 0, −0.125, margin t · 0.125 / √3 = 0.3105.
    assert '| by_magnitude | partition.criterion = magnitude | 3 of 3 | 72.92 ± 23.72 | +10.42 ± 8.96 |' in text
    assert '| static | model.conv = static | 3 of 3 | 50.00 ± 62.10 | −12.50 ± 31.05 |' in text
    assert (
        'Of 2 paired differences to base, 1 has a 95 % interval that excludes 0: by_magnitude (+10.42 ± 8.96).' in text
    )
    assert 'On average by_magnitude has the highest accuracy: 72.92 ± 23.72 %.' in text
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert len(lines) == 5 and len({line.count('|') for line in lines}) == 1


def test_page_holds_every_figure_and_refers_to_nothing_else(reported):
    page = Page(reported / 'report' / 'report.html')
    assert list(page.images) == FIGURES
    assert {path.name for path in (reported / 'report').iterdir()} == {
        *(f'{name}.png' for name in FIGURES), 'report.html', 'report.md', 'cells.csv', 'summary.csv',
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
    assert 'url(' not in style and '@import' not in style and 'prefers-color-scheme: dark' in style
    assert 'Nothing: every cell is finished.' in page.text
    assert 'Without masks, and so not here: static.' in page.text


def test_an_overlap_stands_above_what_chance_gives():
    names = [types.SimpleNamespace(name=name) for name in ('one', 'two')]
    overlaps = {
        ('one', 'one'): Overlap(0.5, 0.25, 0.375),
        ('one', 'two'): None,
        ('two', 'two'): Overlap(0.75, 0.1, 0.2),
    }
    axes, *_ = plot_overlaps(names, overlaps).axes
    found = {(round(text.get_position()[0]), round(text.get_position()[1])): [] for text in axes.texts}
    for text in sorted(axes.texts, key=lambda text: text.get_position()[1]):
        found[round(text.get_position()[0]), round(text.get_position()[1])].append(text.get_text())
    # By column and row: the earlier variant across, the later one down.
    assert found == {(0, 0): ['0.50', '0.25 · 0.38'], (0, 1): ['n/a'], (1, 1): ['0.75', '0.10 · 0.20']}


@pytest.mark.skipif(not shutil.which('chromium'), reason='chromium is not installed')
def test_page_opens_in_a_browser(reported, tmp_path):
    widths = 'JSON.stringify([...document.images].map(image => image.naturalWidth))'
    script = f'<script>addEventListener("load", () => document.body.dataset.widths = {widths})</script>'
    page = (reported / 'report' / 'report.html').read_text()
    (tmp_path / 'page.html').write_text(page.replace('</body>', f'{script}</body>'))
    flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--enable-logging=stderr',
        f'--user-data-dir={tmp_path}/user',
    ]
    command = ['chromium', *flags, '--dump-dom', f'file://{tmp_path}/page.html']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert ':CONSOLE' not in done.stderr
    shown = tmp_path / 'shown.html'
    shown.write_text(done.stdout)
    body = next(attributes for tag, attributes in Page(shown).tags if tag == 'body')
    found = json.loads(body['data-widths'])
    assert len(found) == len(FIGURES) and min(found) > 300


def test_any_variant_may_be_what_the_others_are_compared_with(sweep, refused):
    folder = sweep()
    status, _, err = run_command('report', folder, '--base=static')
    assert status == 0, err
    text = (folder / 'report' / 'report.md').read_text()
    assert text.startswith(f'    python -m pad_jax report {folder} --base=static\n\n')
    assert 'accuracy: difference to static |' in text and 'paired differences to static, ' in text
    # base − static: 0.25, 0, 0.125, margin t · 0.125 / √3 = 0.3105.
    assert '| base | nothing: the base | 3 of 3 | 62.50 ± 31.05 | +12.50 ± 31.05 |' in text
    assert '| static | model.conv = static | 3 of 3 | 50.00 ± 62.10 | – |' in text
    page = Page(folder / 'report' / 'report.html')
    assert [attributes.get('class') for tag, attributes in page.tags if tag == 'tr'] == [None, None, None, 'base']
    line = refused('report', folder, '--base=other')
    assert '--base must be a variant of' in line and 'one of base, by_magnitude, static, got other' in line


def test_a_difference_says_of_how_many_pairs_it_is(sweep):
    folder = sweep({'base': {0: 0.5, 1: 0.75}, 'by_magnitude': {0: 0.625, 1: 1.0, 2: 0.1}})
    assert run_command('report', folder)[0] == 0
    # 0.125 and 0.25: 0.1875, of two pairs; three runs are finished.
    assert re.search(r'\+18\.75 ± \d+\.\d\d \(of 2\) \|', (folder / 'report' / 'report.md').read_text())
    assert [row['accuracy_difference_seeds'] for row in read_table(folder, 'summary.csv')] == ['', '2']


def test_a_tie_is_said_to_be_one(sweep):
    folder = sweep({'base': {0: 0.5}, 'by_magnitude': {0: 0.25}, 'static': {0: 0.5}}, planned=1)
    _, out, _ = run_command('report', folder)
    assert 'On average base, static have the highest accuracy: 50.00 %.' in out


def test_a_score_that_is_no_number_is_named_and_shows_no_difference(sweep):
    folder = sweep(
        {'base': SCORES['base'], 'by_magnitude': {0: 0.625, 1: math.nan, 2: 0.75}, 'static': SCORES['static']}
    )
    status, out, _ = run_command('report', folder)
    assert status == 0 and 'missing: by_magnitude: seed 1 with a score that is no number\n' in out
    assert 'Of 1 paired difference to base, none has' in out
    assert '| 3 of 3 | n/a | n/a |' in (folder / 'report' / 'report.md').read_text()


def test_what_stopped_a_cell_and_where_data_lay_is_said(sweep):
    folder = sweep({'base': {0: 0.5, 1: 0.75}, 'static': {0: 0.25, 1: 0.5}}, planned=2)
    leave_unfinished(folder / 'static' / 'seed_1', step=4)
    (folder / 'static' / 'seed_1.log').write_text('step 4\nerror: the loss is not finite\n')
    for seed, place in enumerate(('here', 'there')):
        path = folder / 'base' / f'seed_{seed}' / 'config.json'
        change_json(path, data=read_json(path)['data'] | {'path': place})
    status, out, err = run_command('report', folder)
    assert status == 0, err
    assert 'missing: static: seed 1 unfinished at step 4 of 6 (error: the loss is not finite)\n' in out
    assert 'missing: a sign that here and there hold the same data: only classes and counts were compared\n' in out


def test_unfinished_cells_are_named_and_do_not_count(sweep):
    folder = sweep({'base': SCORES['base'], 'by_magnitude': {0: 0.625, 1: 0.0}})
    leave_unfinished(folder / 'by_magnitude' / 'seed_1', step=4)
    (folder / 'base' / 'seed_2' / 'timing.json').unlink()  # killed after its last step
    (folder / 'base' / 'seed_1' / 'versions.json').unlink()  # from before versions were recorded
    status, out, err = run_command('report', folder)
    assert status == 0, err
    missing = 'by_magnitude: seed 1 unfinished at step 4 of 6; seed 2 not begun'
    assert (
        f'missing: {missing}\n' in out
        and 'missing: base: seed 1 without a record of the version; seed 2 without a time per step\n' in out
    )
    assert '4 of 6 runs are finished. On average, of those with the most finished runs, base has the highest' in out
    page = Page(folder / 'report' / 'report.html')
    assert missing in page.text and f'Missing: {missing}.' in (folder / 'report' / 'report.md').read_text()
    cells = {(row['variant'], row['seed']): row for row in read_table(folder, 'cells.csv')}
    for seed, state in (('1', 'unfinished at step 4 of 6'), ('2', 'not begun')):
        assert list(cells['by_magnitude', seed].values())[2:] == [state, *[''] * 7]
    assert cells['base', '2']['seconds_per_step'] == '' and cells['base', '2']['accuracy'] == '0.625'
    base, row = read_table(folder, 'summary.csv')
    # The one finished seed alone: 0.625 − 0.5, without any interval; base without the time that nobody took.
    assert (row['finished'], row['planned'], row['accuracy'], row['accuracy_low']) == ('1', '3', '0.625', '')
    assert (row['accuracy_difference'], row['accuracy_difference_high']) == ('0.125', '')
    assert float(base['seconds_per_step']) == 0.75
    assert '| 62.50 | +12.50 |' in (folder / 'report' / 'report.md').read_text()
    assert 'No variant shares two finished seeds with base' in out
    assert 'n/a, since only one seed is finished: by_magnitude.' in page.text


def test_a_variant_without_a_finished_cell_has_a_row_and_no_numbers(sweep):
    folder = sweep({'base': {0: 0.5}, 'static': {}}, planned=1)
    status, _, err = run_command('report', folder)
    assert status == 0, err
    text = (folder / 'report' / 'report.md').read_text()
    assert f'| static | model.conv = static | 0 of 1 |{" n/a |" * 8}' in text


def test_figures_that_would_show_nothing_are_left_out_and_said_so(sweep):
    folder = sweep({'base': {}, 'static': {0: 0.25, 1: 0.5}})
    (folder / 'report').mkdir()
    (folder / 'report' / 'mask_overlap.png').write_bytes(b'of an earlier report')
    status, _, err = run_command('report', folder)
    assert status == 0, err
    page = Page(folder / 'report' / 'report.html')
    assert list(page.images) == ['score_parameters', 'training_curves']
    assert 'Left out. All finished variants have the same κ, 0.' in page.text
    assert page.text.count('Left out. No finished variant is partially dynamic: there are no masks.') == 2
    assert not (folder / 'report' / 'mask_overlap.png').exists()


def test_tasks_of_several_metrics_count_with_their_mean(sweep):
    folder = sweep({'base': {0: 0.5}, 'static': {0: 0.25}}, planned=1)
    for name, f1 in (('base', 0.75), ('static', 0.5)):
        workdir = folder / name / 'seed_0'
        change_rows(workdir, lambda row, f1=f1: row | ({'f1': f1} if row['split'] == 'eval' else {}))
    status, out, err = run_command('report', folder)
    assert status == 0, err
    first, second = read_table(folder, 'cells.csv')
    assert list(first)[3:7] == ['mean of accuracy, f1', 'accuracy', 'f1', 'loss']
    assert [first[name] for name in list(first)[3:6]] == ['0.625', '0.5', '0.75']  # (0.5 + 0.75) / 2
    assert second['mean of accuracy, f1'] == '0.375'
    assert 'On average base has the highest mean of accuracy, f1: 62.50 %.' in out


@pytest.mark.slow
def test_a_sweep_of_texts(tmp_path, finished_text_run, one_layer):
    folder = write_miniature(tmp_path / 'sweep', finished_text_run, {'base': SCORES['base']})
    status, out, err = run_command('report', folder)
    assert status == 0, err
    assert 'On average base has the highest accuracy: 62.50 ± 31.05 %.' in out  # 0.125 · t / √3
    (row,) = read_table(folder, 'summary.csv')
    partition = read_json(finished_text_run / 'partition.json')
    assert float(row['dynamic_fraction']) == partition['totals']['dynamic_fraction']
    page = Page(folder / 'report' / 'report.html')
    assert list(page.images) == [name for name in FIGURES if name != 'score_kappa']


@pytest.fixture
def refused_report(sweep, refused):
    def run(change):
        folder = sweep({'base': {0: 0.5, 1: 0.75}, 'static': {0: 0.25}})
        change(folder)
        return refused('report', folder)

    return run


@pytest.mark.parametrize(
    'change, says',
    [
        (lambda folder: (folder / 'sweep.json').unlink(), ['is not the folder of a sweep: it holds no sweep.json']),
        (
            lambda folder: change_json(folder / 'base' / 'seed_1' / 'versions.json', pad_jax=['0.0.9']),
            ['base/seed_1 was trained by pad_jax 0.0.9', 'sweep.json is of 0.1.0'],
        ),
        (
            lambda folder: change_json(folder / 'static' / 'seed_0' / 'versions.json', pad_jax=['0.0.9', '0.1.0']),
            ['static/seed_0 was trained by pad_jax 0.0.9 and 0.1.0, '],
        ),
        (
            lambda folder: change_json(folder / 'static' / 'seed_0' / 'data.json', num_train=7),
            ['base/seed_0 and ', 'static/seed_0 were trained on different data (num_train: 1442 -> 7)'],
        ),
        (
            lambda folder: change_json(folder / 'sweep.json', variants={'static': {'model.conv': 'condconv'}}),
            ['static/seed_0 was made by another config than ', "(model.conv: 'condconv' -> 'static')"],
        ),
        (
            lambda folder: shutil.copytree(folder / 'base', folder / 'other'),
            ['other/seed_0 is a run, but of no variant that ', 'sweep.json names (base, static'],
        ),
        (
            lambda folder: [leave_unfinished(cell.parent, 4) for cell in folder.glob('*/*/config.json')],
            ['has no finished cell'],
        ),
        (
            lambda folder: change_rows(
                folder / 'static' / 'seed_0', lambda row: row | ({'f1': 0.5} if row['split'] == 'eval' else {})
            ),
            ['base/seed_0 is evaluated by accuracy, ', 'static/seed_0 by accuracy, f1'],
        ),
        (
            lambda folder: (folder / 'base' / 'seed_0' / 'metrics.jsonl').write_text(
                '{"step": 3, "split": "eval", "loss": 1.0, "accuracy": 0.5}\n'
            ),
            ['base/seed_0 holds a finished run, but its metrics.jsonl has lost the last evaluation'],
        ),
        (lambda folder: (folder / 'report').write_text(''), ['report cannot be written: File exists']),
    ],
)
def test_refused_with_nothing_written(refused_report, change, says):
    line = refused_report(change)
    assert all(part in line for part in says), line


def test_a_checkpoint_that_is_damaged_is_refused(refused_report):
    def damage(folder):
        for file in (folder / 'base' / 'seed_0' / 'checkpoints').rglob('manifest.json'):
            file.write_text('{}')

    assert 'holds no sound checkpoint' in refused_report(damage)


def test_the_runs_stay_as_they_were(sweep):
    folder = sweep({'base': {0: 0.5}})
    before = contents(folder)
    assert run_command('report', folder)[0] == 0
    after = {path: found for path, found in contents(folder).items() if '/report' not in path}
    before.pop(str(folder), None), after.pop(str(folder), None)
    assert after == before
