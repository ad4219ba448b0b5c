"""The check of every field of a layer that takes one of a few names."""


def check_choice(name: str, value, allowed) -> None:
    """ValueError, with what is allowed, where a value is not among it."""
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(map(str, allowed))}, got {value!r}')
