"""Is a partially dynamic language model as good as the alternatives of its size? Base: κ = 0.5 by neuron.

    python -m pad_jax sweep configs/ablations/networks_lm.py --workdir=runs/networks_lm --seeds=5

With --config.data.name=corpus --config.data.path=FOLDER the models learn your own texts. Further variants: the dense
network with as many multiply-adds as k = 2 experts, the fully dynamic network, and a random partition. A layer of the
base has 8 · 64 dynamic neurons and 64 static ones on average, 576 in all. `shared` has as many: 8 · 64, and 64 of one
shared expert chosen by hand. `narrow` has 8 · 72 dynamic ones, and fewer multiply-adds. `pruned` is the base
without its static neurons.
"""

from ml_collections import ConfigDict


def get_ablation() -> ConfigDict:
    dynamic = {'partition.dynamic_fraction': 1.0}
    return ConfigDict(
        {
            'base': 'lm_pad.py',
            'variants': (
                ('dense', {'model.ffn': 'dense', 'model.ffn_width': 256}),
                ('dynamic', dynamic),
                ('random', {'partition.criterion': 'random'}),
                ('shared', {**dynamic, 'model.ffn_width': 64, 'model.shared_width': 64}),
                ('narrow', {**dynamic, 'model.ffn_width': 72}),
                ('pruned', {'partition.prune': True}),
            ),
        }
    )
