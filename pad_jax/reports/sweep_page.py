"""The page of a sweep: one HTML file that needs nothing else, neither files nor the network."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from pad_jax.reports.sweep_figures import Drawing
from pad_jax.reports.sweep_results import Cell, Results
from pad_jax.reports.sweep_tables import format_percent, list_columns, list_rows

_TEXTS, _CLASS = 2, ' class="text"'  # the first columns are text
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5b6168; --line: #d9dce0; --page: #ffffff; --mark: #eef4fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ea; --soft: #a4abb3; --line: #3a3f45; --page: #16181b; --mark: #20303f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 82rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p, li { max-width: 56rem; } .lead { font-size: 1.08rem; }
.soft, figcaption { color: var(--soft); font-size: .92rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { vertical-align: bottom; white-space: normal; font-weight: 600; }
th.text, td.text { text-align: left; } td.text + td.text { white-space: normal; min-width: 9rem; color: var(--soft); }
td { vertical-align: top; } tr.base td { background: var(--mark); }
figure { margin: 0; } figcaption { margin: .6rem 0 0; max-width: 56rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 8px; padding: 10px; }
code { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: .9em; overflow-wrap: anywhere; }
""".strip()


def write_page(results: Results, drawings: Sequence[Drawing], pictures: Mapping[str, bytes], command: str) -> str:
    """The whole page.

    Args:
      pictures: PNG by the name of the drawing, for those that have a figure.
      command: that makes the report anew.
    """
    title = f'Sweep of {results.sweep.base}'
    parts = [
        f'<h1>{escape(title)}</h1>',
        *(f'<p class="lead">{escape(sentence)}</p>' for sentence in summarize(results)),
        '<h2>Variants</h2>',
        _make_table(results),
        f'<p class="soft">{escape(explain_table(results))}</p>',
        '<h2>What is missing</h2>',
        _make_list(list_missing(results) or ['Nothing: every cell is finished.']),
    ]
    for drawing in drawings:
        parts.append(f'<h2>{escape(drawing.title)}</h2>')
        if drawing.figure is None:
            parts.append(f'<p class="soft">Left out. {escape(drawing.caption)}</p>')
            continue
        data = base64.b64encode(pictures[drawing.name]).decode()
        image = f'<img id="{drawing.name}" alt="{escape(drawing.title)}" src="data:image/png;base64,{data}">'
        parts.append(f'<figure>{image}<figcaption>{escape(drawing.caption)}</figcaption></figure>')
    made = f'pad_jax {results.sweep.version}; every run in cells.csv, every variant in summary.csv. Made by'
    parts.append(f'<p class="soft">{escape(made)} <code>{escape(command)}</code></p>')
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>\n{_STYLE}\n</style>'
    )
    body = '\n'.join(parts)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def summarize(results: Results) -> list[str]:
    """What came out, in sentences: how much is done, who is ahead, and which differences are more than noise."""
    cells = results.cells
    finished = sum(cell.run is not None for cell in cells)
    seeds = len(results.base.cells)
    said = (
        f'{len(results.variants)} variants with {seeds} {"seed" if seeds == 1 else "seeds"} each: {finished} of '
        f'{len(cells)} runs are finished.'
    )
    scores = {variant.name: variant.estimate(results.score) for variant in results.shown}
    known = {name: score for name, score in scores.items() if score.mean == score.mean}  # not NaN
    if known:
        # Seeds differ by luck: a mean over fewer of them says less, and may be of easier ones.
        most = max(score.count for score in known.values())
        full = {name: score for name, score in known.items() if score.count == most}
        of_which = '' if len(full) == len(known) else ', of those with the most finished runs,'
        highest = max(score.mean for score in full.values())
        first, *others = [name for name, score in full.items() if score.mean == highest]
        have = f'{", ".join([first, *others])} have' if others else f'{first} has'
        said += f' On average{of_which} {have} the highest {results.score}: {format_percent(full[first])} %.'
    return [said, _compare_to_base(results)]


def _compare_to_base(results: Results) -> str:
    base = results.base
    found = {variant.name: variant.difference(base, results.score) for variant in results.shown if variant is not base}
    found = {name: found for name, found in found.items() if found and found.count > 1 and found.mean == found.mean}
    if not found:
        return f'No variant shares two finished seeds with {base.name}: nothing can be said of differences.'
    clear = [
        f'{name} ({format_percent(difference, signed=True)})'
        for name, difference in found.items()
        if difference.excludes_zero
    ]
    what = f'{len(found)} paired {"difference" if len(found) == 1 else "differences"} to {base.name}'
    if not clear:
        return f'Of {what}, none has a 95 % interval that excludes 0: these runs show no variant to differ.'
    return (
        f'Of {what}, {len(clear)} {"has a" if len(clear) == 1 else "have"} 95 % '
        f'{"interval that excludes" if len(clear) == 1 else "intervals that exclude"} 0: {", ".join(clear)}. Where '
        'there is no difference, one in twenty such intervals excludes 0 all the same.'
    )


def explain_table(results: Results) -> str:
    """What the numbers of the table are."""
    return (
        'Mean ± half of the 95 % interval over finished seeds (Student’s t); the difference to '
        f'{results.base.name} is paired by seed, and says of how many where not all finished seeds have a partner. A '
        'single seed has no interval. κ: dynamic positions / positions. Dynamic share: dynamic parameters / parameters '
        'of the dynamic layers, static ones included. Parameters and multiply-adds (of one example) are those of the '
        'compact network. Seconds a step are as they were, whatever else the machine did.'
    )


def list_missing(results: Results) -> list[str]:
    """A line for each variant with cells unfinished, or that lack something; [] if none is."""
    lines = []
    for variant in results.variants:
        seeds = {}
        for cell in variant.cells:
            for lack in _list_lacks(cell, results.score):
                seeds.setdefault(lack, []).append(str(cell.seed))
        said = [f'seed{"s" * (len(those) > 1)} {", ".join(those)} {lack}' for lack, those in seeds.items()]
        if said:
            lines.append(f'{variant.name}: {"; ".join(said)}')
    paths = sorted({cell.data_path for cell in results.cells} - {''})
    if len(paths) > 1:
        lines.append(f'a sign that {" and ".join(paths)} hold the same data: only classes and counts were compared')
    return lines


def _list_lacks(cell: Cell, score: str) -> list[str]:
    if cell.run is None:
        return [cell.state]
    lacks = {
        'without a time per step': cell.values['seconds_per_step'] is None,
        'with a score that is no number': math.isnan(cell.values[score]),
        'without a record of the version': not cell.knows_version,
    }
    return [lack for lack, is_so in lacks.items() if is_so]


def _make_table(results: Results) -> str:
    heads = _make_row('th', list_columns(results))
    rows = [
        _make_row('td', row, 'base' if variant is results.base else '')
        for variant, row in zip(results.variants, list_rows(results), strict=True)
    ]
    body = '\n'.join(rows)
    return f'<div class="wide"><table>\n<thead>{heads}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _make_row(tag: str, cells: Iterable[str], kind: str = '') -> str:
    written = [f'<{tag}{_CLASS if index < _TEXTS else ""}>{escape(cell)}</{tag}>' for index, cell in enumerate(cells)]
    return f'<tr{f" class={kind!r}" if kind else ""}>{"".join(written)}</tr>'


def _make_list(lines: Iterable[str]) -> str:
    return f'<ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
