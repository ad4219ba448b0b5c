"""The nine tasks of GLUE: what their files, labels and metrics are called.

Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding".
"""

import dataclasses

from pad_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """One split to evaluate on: its name here and in TFDS, the original file, and what a submission is called."""

    name: str
    file: str
    submission: str


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """How one task is distributed.

    `class_names[label]` names a label, in the order of TFDS; it is empty for regression, whose labels lie in
    `label_range`. `file_labels` are the same labels as the original files and submissions write them.
    `text_columns` and `label_column` are the original columns, `features` the texts in TFDS.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str
    features: tuple[str, ...]
    class_names: tuple[str, ...]
    file_labels: tuple[str, ...]
    metrics: tuple[str, ...]
    eval_splits: tuple[EvalSplit, ...]
    headless_columns: tuple[str, ...] | None = None
    """Of the files that have no header: CoLA's, except its test file."""
    has_broken_rows: bool = False
    """QQP: questions with a line break in them fell apart; the published counts leave their halves out."""
    label_range: tuple[float, float] | None = None
    diagnostic: str | None = None
    """MNLI: what a submission for the diagnostic set is called, which has the same labels and no split of its own."""

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to come close to."""
        return not self.class_names

    @property
    def num_classes(self) -> int:
        """Outputs of a network for it: 1 for regression."""
        return len(self.class_names) or 1


def _one_split(folder: str) -> tuple[EvalSplit, ...]:
    return (EvalSplit('validation', 'dev.tsv', f'{folder}.tsv'),)


GLUE_TASKS: dict[str, GlueTask] = {
    'cola': GlueTask(
        folder='CoLA',
        text_columns=('sentence',),
        label_column='label',
        features=('sentence',),
        class_names=('unacceptable', 'acceptable'),
        file_labels=('0', '1'),
        metrics=('matthews',),
        eval_splits=_one_split('CoLA'),
        headless_columns=('source', 'label', 'annotation', 'sentence'),
    ),
    'sst2': GlueTask(
        folder='SST-2',
        text_columns=('sentence',),
        label_column='label',
        features=('sentence',),
        class_names=('negative', 'positive'),
        file_labels=('0', '1'),
        metrics=('accuracy',),
        eval_splits=_one_split('SST-2'),
    ),
    'mrpc': GlueTask(
        folder='MRPC',
        text_columns=('#1 String', '#2 String'),
        label_column='Quality',
        features=('sentence1', 'sentence2'),
        class_names=('not_equivalent', 'equivalent'),
        file_labels=('0', '1'),
        metrics=('accuracy', 'f1'),
        eval_splits=_one_split('MRPC'),
    ),
    'stsb': GlueTask(
        folder='STS-B',
        text_columns=('sentence1', 'sentence2'),
        label_column='score',
        features=('sentence1', 'sentence2'),
        class_names=(),
        file_labels=(),
        metrics=('pearson', 'spearman'),
        eval_splits=_one_split('STS-B'),
        label_range=(0.0, 5.0),
    ),
    'qqp': GlueTask(
        folder='QQP',
        text_columns=('question1', 'question2'),
        label_column='is_duplicate',
        features=('question1', 'question2'),
        class_names=('not_duplicate', 'duplicate'),
        file_labels=('0', '1'),
        metrics=('accuracy', 'f1'),
        eval_splits=_one_split('QQP'),
        has_broken_rows=True,
    ),
    'mnli': GlueTask(
        folder='MNLI',
        text_columns=('sentence1', 'sentence2'),
        label_column='gold_label',
        features=('premise', 'hypothesis'),
        class_names=('entailment', 'neutral', 'contradiction'),
        file_labels=('entailment', 'neutral', 'contradiction'),
        metrics=('accuracy',),
        eval_splits=(
            EvalSplit('validation_matched', 'dev_matched.tsv', 'MNLI-m.tsv'),
            EvalSplit('validation_mismatched', 'dev_mismatched.tsv', 'MNLI-mm.tsv'),
        ),
        diagnostic='AX.tsv',
    ),
    'qnli': GlueTask(
        folder='QNLI',
        text_columns=('question', 'sentence'),
        label_column='label',
        features=('question', 'sentence'),
        class_names=('entailment', 'not_entailment'),
        file_labels=('entailment', 'not_entailment'),
        metrics=('accuracy',),
        eval_splits=_one_split('QNLI'),
    ),
    'rte': GlueTask(
        folder='RTE',
        text_columns=('sentence1', 'sentence2'),
        label_column='label',
        features=('sentence1', 'sentence2'),
        class_names=('entailment', 'not_entailment'),
        file_labels=('entailment', 'not_entailment'),
        metrics=('accuracy',),
        eval_splits=_one_split('RTE'),
    ),
    # Its labels count the other way round than those of RTE.
    'wnli': GlueTask(
        folder='WNLI',
        text_columns=('sentence1', 'sentence2'),
        label_column='label',
        features=('sentence1', 'sentence2'),
        class_names=('not_entailment', 'entailment'),
        file_labels=('0', '1'),
        metrics=('accuracy',),
        eval_splits=_one_split('WNLI'),
    ),
}
"""By the name of the configuration in TFDS, which is the name of the task here."""


def find_task(name: str) -> GlueTask:
    """The row of `GLUE_TASKS`; `BadInput` with the names there are.

    >>> find_task('rte').class_names
    ('entailment', 'not_entailment')
    """
    if name not in GLUE_TASKS:
        raise BadInput(f'task must be one of {", ".join(GLUE_TASKS)}, got {name!r}')
    return GLUE_TASKS[name]
