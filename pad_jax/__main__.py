"""python -m pad_jax VERB: commands on configs and on runs."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    from pad_jax.config_files import SHIPPED
    from pad_jax.training.cli import Parser, check_count, exit_status, parse_with_overrides, path_flag, workdir_flag
    from pad_jax.training.config import FREE_KEYS, load_config
    from pad_jax.training.processes import add_flags, all_or_none, join
except ModuleNotFoundError as error:
    sys.exit(f"error: the commands need {error.name}, which is not installed: pip install 'pad-jax[train]'")

# Each verb imports its room when it is called, so that `count` starts without plots, data sets and checkpoints.


def train(arguments: Sequence[str], prog: str | None = None) -> None:
    """Train the network of a config; resume from the latest checkpoint."""
    parser = _make_parser(train)
    parser.prog = prog or parser.prog
    parser.add_config(arguments)
    parser.add_argument(
        '--workdir',
        type=workdir_flag,
        required=True,
        help='run directory; if it contains checkpoints, training resumes from the latest',
    )
    add_flags(parser)
    flags, overrides = parse_with_overrides(parser, arguments)
    join(flags.coordinator, flags.num_processes, flags.process_id, flags.join_seconds)
    with all_or_none():
        config = load_config(flags.config, overrides)
    from pad_jax.training.trainer import train as train_network  # after the config is checked: errors come at once

    train_network(config, flags.workdir)


def count(arguments: Sequence[str]) -> None:
    """Count parameters and multiply-adds of a config's network, without allocating or training it."""
    from pad_jax.models import report_counts, sum_multiply_adds
    from pad_jax.training.setup import account_network, plan_layers

    def report_accounts(layers):
        return {**report_counts(layers), 'multiply_adds': sum_multiply_adds(layers).compact}

    parser = _make_parser(count)
    parser.add_config(arguments)
    flags, overrides = parse_with_overrides(parser, arguments)
    config = load_config(flags.config, overrides)
    layers = account_network(config, plan_layers(config))
    by_name = {layer.name: report_accounts([layer]) for layer in layers}
    print(json.dumps({**report_accounts(layers), 'layers': by_name}, indent=2))


def evaluate(arguments: Sequence[str]) -> None:
    """Evaluate the latest checkpoint of a run."""
    from pad_jax.training.evaluate import evaluate_workdir
    from pad_jax.training.workdir import encode_row

    epilog = (
        'If the data has moved, name its new place with --config.data.path=PATH. It must have the classes that the run '
        f'was trained on. These keys may be changed too: {", ".join(sorted(FREE_KEYS - {"data.path"}))}.'
    )
    parser = _make_parser(evaluate, 'run', epilog)
    _add_best(parser)
    parser.add_argument('--confusion', type=path_flag, help='.csv to write: true classes as rows, predicted as columns')
    flags, overrides = parse_with_overrides(parser, arguments)
    print(encode_row(evaluate_workdir(flags.workdir, overrides, flags.confusion, flags.best)), end='')


def predict(arguments: Sequence[str]) -> None:
    """Predict new images or texts by a run or an export: labels and scores, for a GLUE task a submission."""
    from pad_jax.deploy.predict import open_export, open_run, predict_files

    parser = _make_parser(predict)
    _add_best(parser)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument('--workdir', type=workdir_flag, help='directory of a run')
    one.add_argument('--export', type=path_flag, help='directory of an export')
    shown = 'images and folders of images; for texts one .tsv, .csv or .jsonl file; for GLUE a test file'
    parser.add_argument('--input', type=path_flag, nargs='+', required=True, help=shown)
    parser.add_argument(
        '--output', type=path_flag, required=True, help='table to write; for GLUE a directory is enough'
    )
    flags = parser.parse_args(arguments)
    if flags.best and flags.export:
        parser.error('--best needs --workdir: an export holds one checkpoint')
    predictor = open_run(flags.workdir, flags.best) if flags.workdir else open_export(flags.export)
    path, num_rows = predict_files(predictor, flags.input, flags.output)
    print(f'{num_rows} predictions in {path}', file=sys.stderr)


def generate(arguments: Sequence[str]) -> None:
    """Continue a text by the language model of a run; the new text goes to stdout."""
    from pad_jax.deploy.generate import generate_text

    parser = _make_parser(generate, 'run')
    _add_best(parser)
    parser.add_argument('--prompt', required=True, help='text to continue')
    parser.add_argument('--tokens', type=int, default=200, help='tokens to add; bytes, if the run has no tokenizer')
    shown = '0 takes the most likely token; above it tokens are drawn, at 1 as likely as the model says'
    parser.add_argument('--temperature', type=float, default=0.0, help=shown)
    parser.add_argument('--seed', type=int, default=0, help='of the draws')
    flags = parser.parse_args(arguments)
    check_count('--tokens', flags.tokens, most=1_000_000)
    print(flags.prompt, end='')
    for text in generate_text(flags.workdir, flags.prompt, flags.tokens, flags.temperature, flags.seed, flags.best):
        print(text, end='', flush=True)
    print()


def inspect(arguments: Sequence[str]) -> None:
    """Show where a run's network is dynamic, and how much it varies over inputs, as tables and PNGs."""
    from pad_jax.reports.inspect import inspect_workdir

    epilog = 'If the data has moved, add --config.data.path=PATH; without data only the partition is shown.'
    flags, overrides = parse_with_overrides(_make_parser(inspect, 'run', epilog), arguments)
    inspect_workdir(flags.workdir, overrides)


def export(arguments: Sequence[str]) -> None:
    """Write the latest checkpoint of a run for serving without its code; `pad_jax.load_exported` reads it."""
    from pad_jax.deploy.export import export_workdir
    from pad_jax.deploy.verify import NotVerified
    from pad_jax.reports.tables import make_table, print_line, print_table

    epilog = 'The export is verified on the data of the run. If that has moved, add --config.data.path=PATH.'
    parser = _make_parser(export, 'run', epilog)
    _add_best(parser)
    parser.add_argument('--out', type=path_flag, required=True, help='directory to write')
    parser.add_argument('--overwrite', action='store_true', help='replace an export that exists')
    flags, overrides = parse_with_overrides(parser, arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so half-written files are cleaned up
    try:
        exported = export_workdir(flags.workdir, flags.out, flags.overwrite, overrides, flags.best)
    except NotVerified as error:
        sys.exit(f'error: {error}')
    table = make_table(f'Export of {flags.workdir}', ['figure'], ['export', 'fully dynamic', 'ratio'])
    for row in exported.rows():
        table.add_row(*row)
    print_table(table)
    print_line(f'Compared with the checkpoint on {exported.inputs}, in a fresh process.')
    print(f'exported: {exported.folder}', file=sys.stderr)


def compare(arguments: Sequence[str]) -> None:
    """Compare runs, finished or not: their last evaluations and costs as a table, their curves as a picture."""
    from pad_jax.reports.compare import compare_runs

    parser = _make_parser(compare)
    parser.add_argument('workdirs', type=path_flag, nargs='+', metavar='RUN', help='directory of a run')
    parser.add_argument('--out', type=path_flag, default=Path('compare.png'), help='picture to write')
    flags = parser.parse_args(arguments)
    compare_runs(flags.workdirs, flags.out)


def demo(arguments: Sequence[str]) -> None:
    """Train static, dynamic and partially dynamic networks on embedded data, and compare them."""
    from pad_jax.reports.demo import run_demo

    parser = _make_parser(demo)
    parser.add_argument(
        '--workdir', type=workdir_flag, default=Path('runs/demo'), help='directory of the runs and pictures'
    )
    parser.add_argument('--seeds', type=int, help='runs of each network; without it 1 of language models, 2 on digits')
    parser.add_argument('--only', help='the half to run: lm or digits')
    parser.add_argument('--configs', type=path_flag, default=SHIPPED, help='directory of the config files')
    flags, overrides = parse_with_overrides(parser, arguments)
    run_demo(flags.workdir, flags.configs, flags.seeds, flags.only, overrides)


def sweep(arguments: Sequence[str]) -> None:
    """Train the variants of an ablation file over several seeds; keep runs that are finished already."""
    from pad_jax.reports.sweep import COMMAND, run_sweep

    epilog = '--config.section.key=value changes a key of the base, before the changes of the variants.'
    parser = _make_parser(sweep, 'sweep', epilog)
    parser.add_argument('file', type=path_flag, help='a Python file, or the name of a file of configs/ablations/')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each variant, with the seeds 0, 1, ...')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    flags, overrides = parse_with_overrides(parser, arguments)
    _leave_accelerator()
    run_sweep(flags.file, flags.workdir, flags.seeds, flags.jobs, overrides, (*COMMAND, *flags.modules))


def report(arguments: Sequence[str]) -> None:
    """Write the results of a sweep into its directory report/: tables, figures, CSV and Markdown."""
    from pad_jax.reports.sweep import BASE
    from pad_jax.reports.sweep_report import report_sweep

    parser = _make_parser(report)
    parser.add_argument('workdir', type=workdir_flag, metavar='DIR', help='directory of a sweep')
    parser.add_argument('--base', default=BASE, metavar='VARIANT', help='variant that the others are compared with')
    flags = parser.parse_args(arguments)
    _leave_accelerator()
    print(f'report: {report_sweep(flags.workdir, flags.base)}', file=sys.stderr)


def _leave_accelerator() -> None:
    """Use the CPU in this process: the accelerator is for the runs, which are processes of their own."""
    import jax

    jax.config.update('jax_platforms', 'cpu')


def _make_parser(verb: Callable, workdir_of: str | None = None, epilog: str = '') -> Parser:
    parser = Parser(prog=f'python -m pad_jax {verb.__name__}', description=verb.__doc__, epilog=epilog)
    if workdir_of:
        parser.add_argument('--workdir', type=workdir_flag, required=True, help=f'directory of a {workdir_of}')
    return parser


def _add_best(parser: Parser) -> None:
    parser.add_argument('--best', action='store_true', help='the best checkpoint of a run with train.keep_best=True')


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    verb.__name__: verb
    for verb in (train, count, evaluate, predict, generate, inspect, compare, export, demo, sweep, report)
}


def main() -> None:
    summary = ', '.join(f'{name}: {verb.__doc__}' for name, verb in VERBS.items())
    parser = Parser(prog='python -m pad_jax', description=__doc__, epilog=summary)
    parser.add_argument('verb', choices=VERBS, help='the command; VERB --help shows its flags')
    flags = parser.parse_args(sys.argv[1:2])
    VERBS[flags.verb](sys.argv[2:])


def run() -> None:
    """Run the command `pad-jax`."""
    sys.exit(exit_status(main))


if __name__ == '__main__':
    run()
