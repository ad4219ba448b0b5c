"""A table of plans for a small config, for tests of what it changes."""

from pad_jax.layers import PlanTable
from pad_jax.reports.tuning import choose_by_cost, find_cases
from pad_jax.training.plan_tables import list_choices, write_plan_table


def write_other_plans(path, config, device_kind='cpu'):
    """Writes a table that has, for every case of a network, a plan that the costs don't choose; returns the path."""
    plans = {}
    for case in find_cases(config):
        plans[case] = next(name for name in list_choices(case) if name != choose_by_cost(case))
    table = PlanTable(device_kind, '1.2.3', tuple(plans.items()))
    write_plan_table(path, table, {case: {} for case in plans})
    return path
