"""Networks side by side: what they reach, and what they cost."""

import math
from collections.abc import Sequence

from rich.table import Table

from pad_jax.reports.estimates import Estimate
from pad_jax.reports.runs import Network
from pad_jax.reports.tables import format_fraction, make_table


def compare_networks(networks: Sequence[Network], title: str = 'Networks over seeds') -> Table:
    """One row a network: accuracy (mean ± standard error over seeds), parameters, κ, dynamic share, seconds a step."""
    columns = ['seeds', 'accuracy in %', 'parameters', 'κ', 'dynamic share', 'seconds a step']
    table = make_table(title, ['network', 'convolutions'], columns)
    for network in networks:
        table.add_row(
            network.name,
            network.kind,
            f'{len(network.runs)}',
            format_percent(network.accuracy),
            f'{network.total("parameters"):,.0f}',
            format_fraction(network.total('dynamic_fraction')),
            format_fraction(network.total('dynamic_share')),
            '–' if network.seconds_per_step is None else f'{network.seconds_per_step:.4f}',
        )
    table.caption = 'accuracy: mean ± standard error over seeds · κ: dynamic positions / positions'
    return table


def format_percent(accuracy: Estimate) -> str:
    """An accuracy in [0, 1] as a percentage; without ± where one seed can't tell.

    >>> format_percent(Estimate(0.98, 0.0025)), format_percent(Estimate(0.5, math.nan))
    ('98.00 ± 0.25', '50.00')
    """
    mean = f'{100 * accuracy.mean:.2f}'
    return mean if math.isnan(accuracy.standard_error) else f'{mean} ± {100 * accuracy.standard_error:.2f}'
