import numpy as np
import pytest

from pad_jax.data.glue import GLUE_TASKS, find_task
from pad_jax.data.glue_files import read_glue_file
from pad_jax.data.metrics import choose_predictions
from pad_jax.data.predictions import choose_output, write_predictions, write_submission
from pad_jax.data.text_tables import open_table
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures


def read(path):
    table = open_table(path)
    return table.columns, [fields for _, fields, _ in table.read_rows(table.columns)]


@pytest.mark.parametrize('name', [name for name in GLUE_TASKS if name != 'stsb'])
def test_submissions_read_back_as_the_predictions(tmp_path, name):
    task, path = find_task(name), tmp_path / 'out.tsv'
    folder = miniatures.write_original(tmp_path, name)
    split = miniatures.splits(name)[-1]
    examples = read_glue_file(folder / f'{split}.tsv', task, labelled=False)
    logits = np.random.default_rng(0).normal(size=(2, len(task.class_names)))
    write_submission(path, task, examples.ids, logits)
    columns, rows = read(path)
    assert columns == ('index', 'prediction')
    assert [row[0] for row in rows] == examples.ids
    np.testing.assert_array_equal([task.file_labels.index(row[1]) for row in rows], choose_predictions(logits))


def test_golden_submissions(tmp_path):
    path = tmp_path / 'out.tsv'
    write_submission(path, find_task('rte'), ['0', '1'], np.array([[2.0, 1.0], [0.0, 1.0]]))
    assert path.read_text() == 'index\tprediction\n0\tentailment\n1\tnot_entailment\n'
    # Scores are clipped to 0..5 and have three decimals.
    write_submission(path, find_task('stsb'), ['0', '1', '2'], np.array([[-0.3], [2.71828], [5.2]], np.float32))
    assert path.read_text() == 'index\tprediction\n0\t0.000\n1\t2.718\n2\t5.000\n'


@pytest.mark.parametrize(
    'task, source, name',
    [
        ('cola', 'CoLA/test.tsv', 'CoLA.tsv'),
        ('stsb', 'mismatched.tsv', 'STS-B.tsv'),
        ('mnli', 'MNLI/test_matched.tsv', 'MNLI-m.tsv'),
        ('mnli', 'mismatched/test_matched.tsv', 'MNLI-m.tsv'),
        ('mnli', 'MNLI/test_mismatched.tsv', 'MNLI-mm.tsv'),
        ('mnli', 'MNLI/diagnostic.tsv', 'AX.tsv'),
        ('mnli', 'diagnostic-full.tsv', 'AX.tsv'),
        ('mnli', 'AX/test.tsv', 'AX.tsv'),
        ('mnli', 'ax.tsv', 'AX.tsv'),
        ('rte', 'diagnostic.tsv', 'RTE.tsv'),
    ],
)
def test_submissions_in_a_folder_have_the_names_the_benchmark_expects(tmp_path, task, source, name):
    assert choose_output(tmp_path, source, find_task(task)) == tmp_path / name
    assert choose_output(tmp_path / 'my.tsv', source, find_task(task)) == tmp_path / 'my.tsv'


def test_the_file_to_be_read_is_never_written(tmp_path):
    source = tmp_path / 'RTE.tsv'
    source.write_text('index\tsentence1\tsentence2\n')
    (tmp_path / 'link.tsv').symlink_to(source)
    (tmp_path / 'wrong.txt').write_text('')
    for output in (source, tmp_path, tmp_path / 'link.tsv', f'{tmp_path}/../{tmp_path.name}/RTE.tsv'):
        with pytest.raises(BadInput, match='is the file to be read: predictions must go to another'):
            choose_output(output, source, find_task('rte'))
    # Before anything else about it.
    with pytest.raises(BadInput, match=r"wrong.txt' is the file to be read"):
        choose_output(tmp_path / 'wrong.txt', tmp_path / 'wrong.txt')
    with pytest.raises(BadInput, match=r'must end in one of'):
        choose_output(tmp_path / 'wrong.txt', source)
    with pytest.raises(BadInput, match=r'must end in one of'):
        choose_output(tmp_path, source)  # A folder, but which file in it?


@pytest.mark.parametrize('suffix', ['tsv', 'csv', 'jsonl'])
def test_own_predictions_read_back(tmp_path, suffix):
    path, names = tmp_path / f'out.{suffix}', ('no, "never"', 'yes')
    # Differences of ln 3 and 0: probabilities 3/4 and 1/4, then 1/2 each, where the first class wins.
    logits = np.array([[np.log(3), 0.0], [1.0, 1.0]], np.float32)
    write_predictions(path, names, ['7', 'x'], logits)
    columns, rows = read(path)
    assert columns == ('id', 'label', 'score no, "never"', 'score yes')
    assert rows == [['7', names[0], '0.75', '0.25'], ['x', names[0], '0.5', '0.5']]


def test_own_numbers_read_back(tmp_path):
    path = tmp_path / 'out.csv'
    write_predictions(path, (), ['0', '1'], np.array([[0.1], [-12.5]], np.float32))
    assert read(path) == (('id', 'label'), [['0', '0.1'], ['1', '-12.5']])


def test_refuses_paths_that_cannot_be_written(tmp_path):
    logits = np.zeros((1, 2))
    with pytest.raises(BadInput, match=r"cannot write .*none' is not a folder"):
        write_submission(tmp_path / 'none' / 'a.tsv', find_task('rte'), ['0'], logits)
    with pytest.raises(BadInput, match=r'must end in one of .tsv, .csv, .jsonl'):
        write_predictions(tmp_path / 'a.xlsx', ('a', 'b'), ['0'], logits)
    with pytest.raises(BadInput, match='a TSV cannot hold'):
        write_predictions(tmp_path / 'a.tsv', ('a\tb', 'c'), ['0'], logits)
