"""Rows of every task of GLUE, as the original files and as TFDS prepares them. A vocabulary.

The rows are made up; what is taken from the real files is their layout: columns, missing headers, byte order
marks, quotation marks as text, and last lines without an end.
"""

import contextlib
import io

WORDS = ('the', 'cat', 'sat', 'on', 'mat', 'did', '"', "'", '.', ',', '?', 'a', 'is', 'it', 'dog', 'ran', 'é', 'cafe')
PIECES = ('##s', '##ting', 'run', 'ca', '##fe')
VOCABULARY = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS, *PIECES)

# Two texts (or one) and the number of the label; quotation marks do not pair up, as in MRPC.
PAIRS = [
    ('the cat sat on " the mat', 'it sat', 1),
    ("did it ? the dog ' ran", 'the dog ran . " it is', 0),
    ('the dogs', 'a cat', 1),
    ('a café is it', 'the mat , the mat', 0),
    ('it ran', 'it is the dog', 1),
]
SCORES = (5.0, 0.0, 3.8, 2.25, 4.75)
TASKS = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
SINGLE = ('cola', 'sst2')
SIZES = {'train': 5, 'dev': 3, 'test': 2}

NLI = ('entailment', 'neutral', 'contradiction')
HEADERS = {
    'sst2': 'sentence\tlabel',
    'mrpc': 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String',
    'stsb': 'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore',
    'qqp': 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate',
    'mnli': 'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label',
    'qnli': 'index\tquestion\tsentence\tlabel',
    'rte': 'index\tsentence1\tsentence2\tlabel',
    'wnli': 'index\tsentence1\tsentence2\tlabel',
}
LABELS = ('label', 'Quality', 'score', 'is_duplicate', 'label1', 'gold_label')
TEST_HEADERS = {
    task: '\t'.join(
        'index' if name == 'Quality' else name for name in header.split('\t') if name == 'Quality' or name not in LABELS
    )
    for task, header in HEADERS.items()
} | {'cola': 'index\tsentence', 'sst2': 'index\tsentence', 'qqp': 'id\tquestion1\tquestion2'}
FOLDERS = dict(zip(TASKS, ('CoLA', 'SST-2', 'MRPC', 'STS-B', 'QQP', 'MNLI', 'QNLI', 'RTE', 'WNLI')))
TEXTS = {
    'cola': ('sentence',),
    'sst2': ('sentence',),
    'mrpc': ('#1 String', '#2 String'),
    'qqp': ('question1', 'question2'),
    'qnli': ('question', 'sentence'),
}
FEATURES = {**TEXTS, 'mrpc': ('sentence1', 'sentence2'), 'mnli': ('premise', 'hypothesis')}


def label_texts(task):
    """Labels as the original files write them, in the order in which TFDS numbers them."""
    if task == 'mnli':
        return NLI
    return ('entailment', 'not_entailment') if task in ('rte', 'qnli') else ('0', '1')


def rows(task, split):
    """(texts, label) of one split; those of the two evaluation splits of mnli differ by their order."""
    chosen = PAIRS[: SIZES[split.split('_')[0]]]
    if split == 'dev_mismatched':
        chosen = chosen[::-1]
    for number, (first, second, label) in enumerate(chosen):
        texts = (first,) if task in SINGLE else (first, second)
        yield texts, SCORES[number] if task == 'stsb' else number % 3 if task == 'mnli' else label


def splits(task):
    return ('train', 'dev_matched', 'dev_mismatched', 'test_matched') if task == 'mnli' else ('train', 'dev', 'test')


def write_original(root, task):
    """Writes ROOT/FOLDER/*.tsv."""
    folder = root / FOLDERS[task]
    folder.mkdir()
    for split in splits(task):
        is_test = split.startswith('test')
        header = TEST_HEADERS[task] if is_test else HEADERS.get(task)
        lines = [header] if header else []
        for number, (texts, label) in enumerate(rows(task, split)):
            written = f'{label:.3f}' if task == 'stsb' else label_texts(task)[label]
            if task == 'cola' and not is_test:
                lines.append(f'gj04\t{written}\t{"" if number else "*"}\t{texts[0]}')
                continue
            names = TEXTS.get(task, ('sentence1', 'sentence2'))
            known = dict(zip(names, texts)) | {'index': str(number), 'id': str(100 + number)}
            known |= dict.fromkeys(('label', 'Quality', 'score', 'is_duplicate', 'gold_label'), written)
            lines.append('\t'.join(known.get(column, f'other {column}') for column in header.split('\t')))
        # MRPC's begin with a byte order mark and CoLA's dev.tsv ends without the end of its line.
        mark = b'\xef\xbb\xbf' if task == 'mrpc' and not is_test else b''
        end = '' if task == 'cola' and split == 'dev' else '\n'
        (folder / f'{split}.tsv').write_bytes(mark + ('\n'.join(lines) + end).encode())
    return folder


def write_prepared(data_dir, task):
    """Writes DATA_DIR/glue/TASK/VERSION as TFDS does, by its own builder: only where the rows come from is new."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text.glue as tfds_glue

    def generate(split):
        # Backwards, so that only the index can tell the order.
        for number, (texts, label) in reversed(list(enumerate(rows(task, split)))):
            names = FEATURES.get(task, ('sentence1', 'sentence2'))
            yield number, {**dict(zip(names, texts)), 'label': -1 if split.startswith('test') else label, 'idx': number}

    with tfds.core.registered.skip_registration():

        class Glue(tfds_glue.Glue):
            def _split_generators(self, dl_manager):
                return {split.replace('dev', 'validation'): generate(split) for split in splits(task)}

    with contextlib.redirect_stderr(io.StringIO()):
        builder = Glue(config=task, data_dir=str(data_dir), file_format='array_record')
        builder.download_and_prepare()
    return builder.data_path


def write_vocabulary(folder):
    path = folder / 'vocab.txt'
    path.write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    return str(path)
