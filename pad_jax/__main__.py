"""python -m pad_jax VERB: what can be asked of configs and of runs."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pad_jax.partition import report_counts
from pad_jax.reports.demo import run_demo
from pad_jax.reports.inspection import inspect_workdir
from pad_jax.training.command_line import Parser, exit_status, parse_with_overrides
from pad_jax.training.configuration import load_config
from pad_jax.training.evaluation import evaluate_workdir
from pad_jax.training.prediction import predict_file
from pad_jax.training.rules import FREE_ON_RESUME
from pad_jax.training.setup import plan_layers


def count(arguments: Sequence[str]) -> None:
    """Counts the parameters of a config's network; nothing is allocated or trained."""
    parser = Parser(prog='python -m pad_jax count', description=count.__doc__)
    parser.add_argument('--config', required=True, help='a file of configs/; --config.section.key=value changes a key')
    flags, overrides = parse_with_overrides(parser, arguments)
    layers = plan_layers(load_config(flags.config, overrides))
    by_name = {layer.name: report_counts([layer]) for layer in layers}
    print(json.dumps({**report_counts(layers), 'layers': by_name}, indent=2))


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
    """Shows which positions of a run's network are dynamic, layer by layer, as a table and as a PNG."""
    inspect_workdir(_make_workdir_parser('inspect', inspect.__doc__).parse_args(arguments).workdir)


def demo(arguments: Sequence[str]) -> None:
    """Trains static, dynamic and partially dynamic networks on embedded digits, and compares them."""
    parser = Parser(prog='python -m pad_jax demo', description=demo.__doc__)
    parser.add_argument('--workdir', type=Path, default=Path('runs/demo'), help='folder of the runs and the pictures')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each network')
    parser.add_argument('--configs', type=Path, default=Path('configs'), help='folder of the config files')
    flags, overrides = parse_with_overrides(parser, arguments)
    run_demo(flags.workdir, flags.configs, flags.seeds, overrides)


def _make_workdir_parser(verb: str, description: str, epilog: str = '') -> Parser:
    parser = Parser(prog=f'python -m pad_jax {verb}', description=description, epilog=epilog)
    parser.add_argument('--workdir', type=Path, required=True, help='folder of a run')
    return parser


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    'count': count,
    'evaluate': evaluate,
    'predict': predict,
    'inspect': inspect,
    'demo': demo,
}


def main() -> None:
    summary = ', '.join(f'{name}: {verb.__doc__}' for name, verb in VERBS.items())
    parser = Parser(prog='python -m pad_jax', description=__doc__, epilog=summary)
    parser.add_argument('verb', choices=VERBS, help='what to do; VERB --help says more')
    flags = parser.parse_args(sys.argv[1:2])
    VERBS[flags.verb](sys.argv[2:])


if __name__ == '__main__':
    sys.exit(exit_status(main))
