"""python -m pad_jax VERB: what can be asked of configs and of runs."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from pad_jax.deploy.export import export_workdir
from pad_jax.deploy.verification import NotVerified
from pad_jax.models import LayerAccount, sum_multiply_adds
from pad_jax.partition import report_counts
from pad_jax.reports.demo import run_demo
from pad_jax.reports.inspection import inspect_workdir
from pad_jax.reports.sweep_layout import BASE
from pad_jax.reports.sweep_report import report_sweep
from pad_jax.reports.sweeps import run_sweep
from pad_jax.reports.tables import make_table, print_line, print_table
from pad_jax.training.command_line import Parser, exit_status, parse_with_overrides
from pad_jax.training.configuration import load_config
from pad_jax.training.evaluation import evaluate_workdir
from pad_jax.training.prediction import predict_file
from pad_jax.training.rules import FREE_ON_RESUME
from pad_jax.training.setup import account_network, plan_layers
from pad_jax.training.signals import exit_on_sigterm


def count(arguments: Sequence[str]) -> None:
    """Counts parameters and multiply-adds of a config's network; nothing is allocated or trained."""
    parser = Parser(prog='python -m pad_jax count', description=count.__doc__)
    parser.add_argument('--config', required=True, help='a file of configs/; --config.section.key=value changes a key')
    flags, overrides = parse_with_overrides(parser, arguments)
    config = load_config(flags.config, overrides)
    layers = account_network(config, plan_layers(config))
    by_name = {layer.count.name: _report([layer]) for layer in layers}
    print(json.dumps({**_report(layers), 'layers': by_name}, indent=2))


def _report(layers: Sequence[LayerAccount]) -> dict[str, Any]:
    products = sum_multiply_adds(layer.multiply_adds for layer in layers)
    return {**report_counts(layer.count for layer in layers), 'multiply_adds': products.compact}


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluates the newest checkpoint of a run."""
    epilog = (
        'Data that has moved is found with --config.data.path=PATH. It must have the classes that the run was trained '
        f'on. Of the other keys these may be changed too: {", ".join(sorted(FREE_ON_RESUME - {"data.path"}))}.'
    )
    parser = _make_workdir_parser('evaluate', evaluate.__doc__, epilog)
    flags, overrides = parse_with_overrides(parser, arguments)
    print(json.dumps(evaluate_workdir(flags.workdir, overrides)))


def predict(arguments: Sequence[str]) -> None:
    """Predicts the texts of a file: a submission for GLUE's tasks, a label and scores for texts of one's own."""
    parser = _make_workdir_parser('predict', predict.__doc__)
    parser.add_argument('--input', type=Path, required=True, help='.tsv, .csv or .jsonl; for GLUE a test file')
    parser.add_argument('--output', type=Path, required=True, help='file to write; for GLUE a folder will do')
    flags = parser.parse_args(arguments)
    path, num_rows = predict_file(flags.workdir, flags.input, flags.output)
    print(f'{num_rows} predictions in {path}', file=sys.stderr)


def inspect(arguments: Sequence[str]) -> None:
    """Shows where a run's network is dynamic, and how much it varies over inputs, as tables and as PNGs."""
    epilog = 'Data that has moved is found with --config.data.path=PATH; without it the partition alone is shown.'
    flags, overrides = parse_with_overrides(_make_workdir_parser('inspect', inspect.__doc__, epilog), arguments)
    inspect_workdir(flags.workdir, overrides)


def export(arguments: Sequence[str]) -> None:
    """Writes the newest checkpoint of a run to a folder that is served without its code: `pad_jax.load_exported`."""
    epilog = 'Data that has moved is found with --config.data.path=PATH: what was written is tried on it.'
    parser = _make_workdir_parser('export', export.__doc__, epilog)
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument('--overwrite', action='store_true', help='an export that is there may be replaced')
    flags, overrides = parse_with_overrides(parser, arguments)
    try:
        with exit_on_sigterm():
            exported = export_workdir(flags.workdir, flags.out, flags.overwrite, overrides)
    except NotVerified as error:
        sys.exit(f'error: {error}')
    table = make_table(f'Export of {flags.workdir}', ['figure'], ['export', 'fully dynamic', 'ratio'])
    for row in exported.rows():
        table.add_row(*row)
    print_table(table)
    print_line(f'Compared with the checkpoint on {exported.agreement.inputs}, in a fresh process.')
    print(f'exported: {exported.folder}', file=sys.stderr)


def demo(arguments: Sequence[str]) -> None:
    """Trains static, dynamic and partially dynamic networks on embedded digits, and compares them."""
    parser = Parser(prog='python -m pad_jax demo', description=demo.__doc__)
    parser.add_argument('--workdir', type=Path, default=Path('runs/demo'), help='folder of the runs and the pictures')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each network')
    parser.add_argument('--configs', type=Path, default=Path('configs'), help='folder of the config files')
    flags, overrides = parse_with_overrides(parser, arguments)
    run_demo(flags.workdir, flags.configs, flags.seeds, overrides)


def sweep(arguments: Sequence[str]) -> None:
    """Trains what an ablation file compares, over seeds; what is finished in the folder already is kept."""
    epilog = '--config.section.key=value changes a key of the base, before what the variants change.'
    parser = Parser(prog='python -m pad_jax sweep', description=sweep.__doc__, epilog=epilog)
    parser.add_argument('file', type=Path, help='a file of configs/ablations/')
    parser.add_argument('--workdir', type=Path, required=True, help='folder of the runs')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each variant; their seeds are 0, 1, ...')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    flags, overrides = parse_with_overrides(parser, arguments)
    jax.config.update('jax_platforms', 'cpu')  # the accelerator is for the runs, each a process of its own
    run_sweep(flags.file, flags.workdir, flags.seeds, flags.jobs, overrides)


def report(arguments: Sequence[str]) -> None:
    """Writes what a sweep has come to: a page with tables and figures, CSV and Markdown, in its folder's report/."""
    parser = Parser(prog='python -m pad_jax report', description=report.__doc__)
    parser.add_argument('workdir', type=Path, metavar='DIR', help='folder of a sweep')
    parser.add_argument('--base', default=BASE, metavar='VARIANT', help='what the others are compared with')
    flags = parser.parse_args(arguments)
    jax.config.update('jax_platforms', 'cpu')  # it reads, and leaves the accelerator to runs that may go on
    print(f'report: {report_sweep(flags.workdir, flags.base)}', file=sys.stderr)


def _make_workdir_parser(verb: str, description: str, epilog: str = '') -> Parser:
    parser = Parser(prog=f'python -m pad_jax {verb}', description=description, epilog=epilog)
    parser.add_argument('--workdir', type=Path, required=True, help='folder of a run')
    return parser


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    'count': count,
    'evaluate': evaluate,
    'predict': predict,
    'inspect': inspect,
    'export': export,
    'demo': demo,
    'sweep': sweep,
    'report': report,
}


def main() -> None:
    summary = ', '.join(f'{name}: {verb.__doc__}' for name, verb in VERBS.items())
    parser = Parser(prog='python -m pad_jax', description=__doc__, epilog=summary)
    parser.add_argument('verb', choices=VERBS, help='what to do; VERB --help says more')
    flags = parser.parse_args(sys.argv[1:2])
    VERBS[flags.verb](sys.argv[2:])


if __name__ == '__main__':
    sys.exit(exit_status(main))
