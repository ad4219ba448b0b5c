"""How much stays dynamic after each round, and before which training steps the rounds come."""

SCHEDULES = ('exponential', 'linear', 'one_shot')


def check_fraction(dynamic_fraction: float) -> None:
    """ValueError unless κ is in (0, 1]."""
    if not 0 < dynamic_fraction <= 1:
        raise ValueError(f'dynamic_fraction must be in (0, 1], got {dynamic_fraction}')


def round_fractions(dynamic_fraction: float, rounds: int = 1, schedule: str = 'exponential') -> tuple[float, ...]:
    """Dynamic fraction after each of the T = `rounds` rounds; the last is exactly `dynamic_fraction`.

    `exponential` keeps κ^(t/T) after round t, `linear` 1 − (1 − κ)·t/T (the reference's dyconv/prune.py,
    optax.exponential_decay(1, T, κ) and optax.polynomial_schedule(1, κ, 1, T) in float64), `one_shot` takes
    κ at once and so allows a single round.

    Args:
      dynamic_fraction: κ, float in (0, 1].
      rounds: T, at least 1.
      schedule: one of `SCHEDULES`.

    >>> round_fractions(0.25, rounds=2)
    (0.5, 0.25)
    >>> round_fractions(0.5, rounds=2, schedule='linear')
    (0.75, 0.5)
    """
    check_fraction(dynamic_fraction)
    if rounds < 1 or rounds != int(rounds):
        raise ValueError(f'rounds must be at least 1{"" if rounds < 1 else " and whole"}, got {rounds}')
    if schedule not in SCHEDULES:
        raise ValueError(f'schedule must be one of {", ".join(SCHEDULES)}, got {schedule!r}')
    if schedule == 'one_shot' and rounds > 1:
        raise ValueError(f"schedule 'one_shot' has a single round, got rounds = {rounds}")
    passed = [done / rounds for done in range(1, rounds)]
    if schedule == 'exponential':
        fractions = [dynamic_fraction**part for part in passed]
    else:
        fractions = [1 - (1 - dynamic_fraction) * part for part in passed]
    return (*fractions, float(dynamic_fraction))


def round_steps(start_step: int = 0, every_steps: int = 0, rounds: int = 1) -> tuple[int, ...]:
    """The training steps before which the rounds come: `start_step`, then every `every_steps` steps.

    With `every_steps = 0` all rounds come at `start_step`, one after the other; with `start_step = 0` as well,
    before training, as in the paper.

    >>> round_steps(start_step=100, every_steps=50, rounds=3)
    (100, 150, 200)
    """
    if start_step < 0 or every_steps < 0:
        raise ValueError(f'start_step and every_steps must be at least 0, got {start_step} and {every_steps}')
    return tuple(start_step + every_steps * index for index in range(rounds))
