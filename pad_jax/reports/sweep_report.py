"""Reports of sweeps: one HTML page, Markdown, CSV and figures, with intervals and paired differences over seeds."""

import base64
import csv
import io
import math
import shlex
import types
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pad_jax.errors import BadInput
from pad_jax.models import sum_multiply_adds
from pad_jax.reports.inspect import count_partition
from pad_jax.reports.plots import plot_tradeoff, plot_training_curves, save_figure
from pad_jax.reports.runs import Network, Run, read_run
from pad_jax.reports.stats import Interval, estimate_difference, estimate_interval
from pad_jax.reports.sweep import BASE, REPORT, SWEEP, Sweep, SweepRun, find_runs, read_sweep
from pad_jax.reports.tables import Measure, format_count, format_fraction, print_line
from pad_jax.training.best import Scores
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import differing_keys, flatten, read_workdir_config
from pad_jax.training.setup import account_network, measure_lengths
from pad_jax.training.workdir import compare_data, read_data, read_metrics, read_versions

COSTS = ('parameters', 'dynamic_fraction', 'dynamic_share', 'multiply_adds', 'seconds_per_step')
_MIN_KAPPA_SPAN = 0.005  # masks by groups of positions meet the same κ only approximately
_EXPLANATION = (
    'Mean over finished seeds, from four seeds on ± half of its 95 % interval (Student’s t): with fewer, the interval '
    'says little. Differences are paired by seed and have an interval from three pairs on. The number of pairs is '
    'given if some seeds lack a partner. Multiply-adds are those of one example. They and the parameters belong to '
    'the compact network.'
)
_MIN_SEEDS, _MIN_PAIRS = 4, 3  # of an interval in the table
_UNKNOWN = Interval(math.nan, math.nan, 0)
_STYLE = (
    'body { margin: 2rem auto; max-width: 80rem; font: 16px/1.5 sans-serif } img { max-width: 100% } '
    'th, td { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right } td { white-space: nowrap }'
)


class Outcome(NamedTuple):
    """The outcome of one run of a sweep.

    Attributes:
      run: the run.
      state: 'finished', 'not begun' or 'unfinished at step STEP of TOTAL', with the error that stopped it.
      files: the files of a finished run; else None.
      values: measures and `COSTS` of a finished run, NaN if unknown; else {}.
    """

    run: SweepRun
    state: str
    files: Run | None = None
    values: Mapping[str, float] = types.MappingProxyType({})


class Variant(NamedTuple):
    """One variant: its name, the keys that it changes, and the outcomes of its runs. Numbers are of finished runs."""

    name: str
    changes: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def finished(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.files]

    @property
    def network(self) -> Network:
        return Network(self.name, tuple(outcome.files for outcome in self.finished))

    def by_seed(self, name: str) -> dict[int, float]:
        return {outcome.run.seed: outcome.values[name] for outcome in self.finished}

    def estimate(self, name: str) -> Interval:
        """Estimate a value over seeds. Seconds a step are averaged over the seeds that measured them."""
        values = list(self.by_seed(name).values())
        if name in COSTS:
            values = [value for value in values if not math.isnan(value)]
        return estimate_interval(values) if values else _UNKNOWN

    def difference(self, base: 'Variant', name: str) -> Interval:
        """Estimate the difference to another variant, paired by seed; of no pair if they are the same."""
        found = None if base is self else estimate_difference(self.by_seed(name), base.by_seed(name))
        return found or _UNKNOWN


class Results(NamedTuple):
    """Results of a sweep with at least one finished run.

    Attributes:
      sweep: its description.
      variants: all variants.
      base: the variant that the others are compared with.
      measures: of every finished run, the score first.
    """

    sweep: Sweep
    variants: tuple[Variant, ...]
    base: Variant
    measures: tuple[Measure, ...]

    @property
    def score(self) -> Measure:
        return self.measures[0]

    @property
    def shown(self) -> list[Variant]:
        """Variants with a finished run."""
        return [variant for variant in self.variants if variant.finished]


def report_sweep(folder: Path, base: str = BASE) -> Path:
    """Write report.html, report.md, runs.csv and figures as PNG to folder/report, and print the summary.

    Only finished runs count. Every file is made before the first is written. An earlier report is replaced.

    Args:
      folder: folder of a sweep.
      base: the variant that the others are compared with.

    Returns:
      The path of report.html.

    Raises:
      BadInput: if the folder is not a sweep's, `base` is unknown, or its runs cannot be compared. Also if no run is
        finished, or the report cannot be written.
    """
    results = read_results(folder, base)
    summary, missing, figures = summarize(results), list_missing(results), _draw_figures(results)
    command = f'python -m pad_jax report {shlex.quote(str(folder))}' + (f' --base={base}' if base != BASE else '')
    texts = [*summary, _EXPLANATION, *(f'Missing: {line}.' for line in missing)]
    parts = command, texts, tabulate_variants(results), figures
    files = {
        'runs.csv': _write_csv(results).encode(),
        'report.md': _write_markdown(*parts).encode(),
        'report.html': _write_page(f'Sweep of {results.sweep.base}, pad_jax {results.sweep.version}', *parts).encode(),
        **{f'{name}.png': picture for name, (_, picture) in figures.items()},
    }
    target = folder / REPORT
    try:
        target.mkdir(exist_ok=True)
        for path in target.glob('*.png'):
            path.unlink()
        for name, content in files.items():
            (target / name).write_bytes(content)
    except OSError as error:
        raise BadInput(f'{target} cannot be written: {error.strerror}') from error
    for line in [*summary, *(f'missing: {line}' for line in missing)]:
        print_line(line)
    return target / 'report.html'


def read_results(folder: Path, base: str = BASE) -> Results:
    """Read the runs of a sweep; see `report_sweep`."""
    sweep = read_sweep(folder)
    if base not in sweep.names:
        raise BadInput(f'--base must be a variant of {folder}, one of {", ".join(sweep.names)}, got {base}')
    for path in sorted(folder.glob('*/seed_*/config.json')):
        if path.parent.parent.name not in sweep.names:
            raise BadInput(f'{path.parent} is a run of no variant in {folder / SWEEP}: move it elsewhere')
    seeds = set(range(sweep.seeds)).union(*({run.seed for run in find_runs(folder, name)} for name in sweep.names))
    runs = {name: [SweepRun(folder, name, seed) for seed in sorted(seeds)] for name in sweep.names}
    _check_same_kind(sweep, [run for found in runs.values() for run in found if run.has_begun])
    variants = [
        Variant(name, sweep.variants.get(name, {}), tuple(map(_read_outcome, found))) for name, found in runs.items()
    ]
    finished = [outcome for variant in variants for outcome in variant.finished]
    if not finished:
        raise BadInput(f'{folder} has no finished run to report: continue its sweep')
    measures = {outcome.files.measures: str(outcome.run.workdir) for outcome in finished}
    if len(measures) > 1:
        raise BadInput(f'{" and ".join(measures.values())} are evaluated by different metrics')
    return Results(sweep, tuple(variants), variants[sweep.names.index(base)], *measures)


def _check_same_kind(sweep: Sweep, begun: Sequence[SweepRun]) -> None:
    """Raise BadInput for a run that differs from sweep.json, or whose data differ from those of the first run."""
    for run in begun:
        versions = read_versions(run.workdir)
        if {*versions} - {sweep.version}:
            raise BadInput(f'{run.workdir} was trained by pad_jax {" and ".join(versions)}, not by {sweep.version}')
        asked = flatten(sweep.config) | sweep.variants.get(run.variant, {}) | {'train.seed': run.seed}
        if differing := differing_keys(asked, flatten(read_workdir_config(run.workdir))):
            raise BadInput(f'{run.workdir} has another config than {SWEEP} ({"; ".join(differing)})')
        if differing := compare_data(read_data(begun[0].workdir), read_data(run.workdir)):
            raise BadInput(f'{begun[0].workdir} and {run.workdir} have different data ({"; ".join(differing)})')


def _read_outcome(run: SweepRun) -> Outcome:
    said = run.read_last_line()
    problem = f' ({said})' if said.startswith('error: ') else ''
    if not run.has_begun:
        return Outcome(run, f'not begun{problem}')
    config = read_workdir_config(run.workdir)
    total = measure_lengths(config, read_data(run.workdir).num_train).total
    step = max(Checkpoints(run.workdir / 'checkpoints').steps_here(), default=0)
    if step < total and not _is_stopped_early(run.workdir, config, step):
        return Outcome(run, f'unfinished at step {step} of {total}{problem}')
    files = read_run(run.workdir, timed=False)
    if files.evaluated['step'] != step:
        raise BadInput(f'{run.workdir} is finished, but its metrics.jsonl has lost the last evaluation')
    layers = account_network(config, count_partition(config, files.partition, run.workdir))
    products = sum_multiply_adds(layers).compact
    seconds = math.nan if files.seconds_per_step is None else files.seconds_per_step
    costs = *(files.partition['totals'][name] for name in COSTS[:3]), products, seconds
    measured = {name: float(files.evaluated[name]) for name, *_ in files.measures}
    return Outcome(run, 'finished', files, measured | dict(zip(COSTS, costs, strict=True)))


def _is_stopped_early(workdir: Path, config, step: int) -> bool:
    rows = read_metrics(workdir) if config.train.patience else []
    return Scores(config, [row for row in rows if row['step'] <= step]).is_out_of_patience


def _draw_figures(results: Results) -> dict[str, tuple[str, bytes]]:
    """Draw the figures; return {name: (caption, PNG)}. κ is left out if it is about the same for all variants."""
    networks = [variant.network for variant in results.shown]
    caption = 'Means with 95 % intervals (Student’s t); seeds one by one if there are fewer than four.'
    found = {'score_parameters': (caption, plot_tradeoff(networks, 'parameters', 'parameters'))}
    if np.ptp([network.total('dynamic_fraction') for network in networks]) > _MIN_KAPPA_SPAN:
        found['score_kappa'] = caption, plot_tradeoff(networks, 'dynamic_fraction', 'dynamic fraction κ')
    curves = plot_training_curves(networks, as_error=False)
    found['training_curves'] = 'Means over the finished seeds with a band of ± one standard error.', curves
    encoded = {}
    for name, (caption, figure) in found.items():
        save_figure(figure, file := io.BytesIO())
        encoded[name] = caption, file.getvalue()
    return encoded


def summarize(results: Results) -> list[str]:
    """Summarize in sentences the finished runs and the differences that exceed noise."""
    outcomes = [outcome for variant in results.variants for outcome in variant.outcomes]
    said = (
        f'{len(results.variants)} variants, {len(results.base.outcomes)} planned seeds each: '
        f'{sum(outcome.files is not None for outcome in outcomes)} of {len(outcomes)} runs are finished.'
    )
    base, score = results.base.name, results.score
    found = {variant.name: variant.difference(results.base, score.name) for variant in results.shown}
    found = {name: one for name, one in found.items() if one.count > 1 and not math.isnan(one.mean)}
    if not found:
        return [said, f'No variant shares two finished seeds with {base}, so differences cannot be judged.']
    clear = [f'{name} ({score.format(*one[:2], signed=True)})' for name, one in found.items() if one.excludes_zero]
    unit = '' if score.unit == '%' else f' in {score.unit} ({score.better} is better)'
    compared = f'95 % intervals that exclude 0, of {len(found)} differences to {base}{unit}: {", ".join(clear) or 0}.'
    return [said, f'{compared} Without any true difference, one in twenty such intervals excludes 0.']


def list_missing(results: Results) -> list[str]:
    """List, in a line for each variant, the runs that are unfinished or lack a value."""
    lines = []
    for variant in results.variants:
        seeds = {}
        for outcome in variant.outcomes:
            lacks = [outcome.state] if outcome.files is None else []
            lacks += [f'without a finite {name}' for name, value in outcome.values.items() if math.isnan(value)]
            for lack in lacks:
                seeds.setdefault(lack, []).append(str(outcome.run.seed))
        if seeds:
            said = [f'seed{"s" * (len(those) > 1)} {", ".join(those)} {lack}' for lack, those in seeds.items()]
            lines.append(f'{variant.name}: {"; ".join(said)}')
    return lines


def tabulate_variants(results: Results) -> list[list[str]]:
    """Return the table of variants as text, headings first: means over finished seeds with 95 % intervals."""
    first, *others = [measure.heading for measure in results.measures]
    costs = ['parameters', 'κ', 'dynamic share', 'multiply-adds', 'seconds a step']
    formats = ['{:,.0f}'.format, format_fraction, format_fraction, format_count, '{:.4f}'.format]
    heads = ['variant', 'changes', 'seeds', first, f'difference to {results.base.name}', *others, *costs]
    rows = []
    for variant in results.variants:
        changes = ', '.join(f'{key} = {value}' for key, value in variant.changes.items()) or 'nothing: the base'
        first, *others = [one.format(*_drop_wide(variant.estimate(one.name))) for one in results.measures]
        found = variant.difference(results.base, results.score.name)
        shown = results.score.format(*_drop_wide(found, _MIN_PAIRS), signed=True)
        difference = '–' if variant is results.base else shown
        if 0 < found.count < len(variant.finished):
            difference += f' (of {found.count})'
        means = [variant.estimate(name).mean for name in COSTS]
        rows.append([
            *(variant.name, changes, f'{len(variant.finished)} of {len(variant.outcomes)}', first, difference, *others),
            *('n/a' if math.isnan(mean) else form(mean) for mean, form in zip(means, formats, strict=True)),
        ])  # fmt: skip
    return [heads, *rows]


def _drop_wide(interval: Interval, seeds: int = _MIN_SEEDS) -> tuple[float, float]:
    """Return mean and margin of an interval, with the margin NaN if it has fewer seeds."""
    return interval.mean, interval.margin if interval.count >= seeds else math.nan


def _write_csv(results: Results) -> str:
    """Write one row for each run, with empty fields for unknown numbers."""
    columns, text = [*(name for name, *_ in results.measures), *COSTS], io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['variant', 'seed', 'state', *columns])
    for variant in results.variants:
        for outcome in variant.outcomes:
            values = [outcome.values.get(name, math.nan) for name in columns]
            known = [None if math.isnan(value) else value for value in values]
            writer.writerow([variant.name, outcome.run.seed, outcome.state, *known])
    return text.getvalue()


def _write_markdown(command, texts, table, figures) -> str:
    heads, *rows = [[cell.replace('|', r'\|') for cell in line] for line in table]
    lines = [f'| {" | ".join(line)} |' for line in (heads, ['---'] * len(heads), *rows)]
    links = [f'![{caption}]({name}.png)' for name, (caption, _) in figures.items()]
    return '\n\n'.join([f'    {command}', '\n'.join(lines), *texts, *links]) + '\n'


def _write_page(title, command, texts, table, figures) -> str:
    """Write one HTML file that needs no other file and no network."""
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>',
        f'<h1>{escape(title)}</h1><p><code>{escape(command)}</code></p><table>',
    ]
    for number, line in enumerate(table):
        tag = 'td' if number else 'th'
        parts.append(f'<tr>{"".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line)}</tr>')
    parts += ['</table>', *(f'<p>{escape(text)}</p>' for text in texts)]
    for name, (caption, picture) in figures.items():
        data = base64.b64encode(picture).decode()
        parts.append(f'<p>{escape(caption)}</p><img id="{name}" alt="" src="data:image/png;base64,{data}">')
    return '\n'.join([*parts, '</body></html>\n'])
