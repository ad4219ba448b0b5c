"""How much of a language model must be dynamic? κ from 0.25 to 1, by neuron; the base has 0.5.

    python -m pad_jax sweep configs/ablations/dynamic_fraction_lm.py --workdir=runs/dynamic_fraction_lm --seeds=5

With --config.data.name=corpus --config.data.path=FOLDER the models learn your own texts.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    fractions = (0.25, 0.75, 1.0)
    return ConfigDict(
        {
            'base': 'lm_pad.py',
            'variants': tuple((f'kappa_{kappa:g}', {'partition.dynamic_fraction': kappa}) for kappa in fractions),
        }
    )
