"""Decoders beside those of transformers, with random weights: `make test-transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers.mixture import join_neurons
from pad_jax.models import Architecture, Decoder, generate, make_ffn_spec
from pad_jax.models.registry import DECODERS

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

pytestmark = pytest.mark.slow

SIZES = {
    'vocab_size': 61,
    'hidden_size': 24,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'intermediate_size': 20,
    'max_position_embeddings': 64,
    'attention_dropout': 0.0,
    'pad_token_id': None,
    'attn_implementation': 'eager',
}
MIXTURE = {'num_experts': 6, 'num_experts_per_tok': 3}
LOCAL = {'num_local_experts': 6, 'num_experts_per_tok': 3}
GRANITE = {
    'embedding_multiplier': 3.0,
    'residual_multiplier': 0.4,
    'attention_multiplier': 0.3,
    'logits_scaling': 2.0,
}
# Family -> (name of its classes, values of its config).
FAMILIES = {
    'llama': ('Llama', {}),
    'olmoe': ('Olmoe', MIXTURE),
    'mixtral': ('Mixtral', LOCAL),
    'qwen2_moe': (
        'Qwen2Moe',
        {**MIXTURE, 'moe_intermediate_size': 20, 'shared_expert_intermediate_size': 28, 'decoder_sparse_step': 1},
    ),
    'qwen3_moe': (
        'Qwen3Moe',
        {**MIXTURE, 'moe_intermediate_size': 20, 'head_dim': 10, 'decoder_sparse_step': 1, 'norm_topk_prob': True},
    ),
    'granite_moe': ('GraniteMoe', {**LOCAL, **GRANITE, 'tie_word_embeddings': True}),
}


def make_reference(family):
    """A network of transformers whose parameters are all away from their initial values, and its config."""
    name, values = FAMILIES[family]
    config = getattr(transformers, f'{name}Config')(**{**SIZES, **values})
    torch.manual_seed(0)
    network = getattr(transformers, f'{name}ForCausalLM')(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            base = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(base + 0.25 * torch.randn_like(parameter))
    return network, config


def read_architecture(family, config):
    """The values of the family with those that this config changes."""
    given = {
        'num_kv_heads': config.num_key_value_heads,
        'head_size': getattr(config, 'head_dim', None) or 0,
        'rope_theta': config.rope_parameters['rope_theta'],
        'norm_epsilon': config.rms_norm_eps,
        'tied': config.tie_word_embeddings,
        **{name: getattr(config, name) for name in GRANITE if family == 'granite_moe'},
    }
    fields = {name: getattr(DECODERS[family], name) for name in DECODERS[family].__dataclass_fields__}
    return Architecture(**{**fields, **given})


def make_network(family, config):
    num_experts = getattr(config, 'num_experts', None) or getattr(config, 'num_local_experts', None)
    architecture = read_architecture(family, config)
    mixture = {'num_experts': num_experts, 'num_selected': 3, 'gating': architecture.gating, 'noisy': False}
    return Decoder(
        config.vocab_size,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        20,
        config.max_position_embeddings,
        architecture,
        make_ffn_spec('ffn', **mixture) if num_experts else make_ffn_spec('dense'),
        28 if family == 'qwen2_moe' else 0,
    )


def convert(weights, model):
    """Params of the decoder from a state dict of transformers 5, whose experts are stacked and fused."""
    weights = {name.removeprefix('model.'): value.numpy() for name, value in weights.items()}
    weights = {name.replace('block_sparse_moe.', 'mlp.'): value for name, value in weights.items()}
    used = set()

    def take(name):
        used.add(name)
        return weights[name]

    def linear(name):
        bias = {'bias': take(f'{name}.bias')} if f'{name}.bias' in weights else {}
        return {'kernel': take(f'{name}.weight').T, **bias}

    def norm(name):
        return {'scale': take(f'{name}.weight')}

    def swiglu(name):
        return {part: linear(f'{name}.{part}_proj') for part in ('gate', 'up', 'down')}

    def feed_forward(name):
        router = next((part for part in ('gate', 'router.layer', 'router') if f'{name}.{part}.weight' in weights), None)
        if router is None:
            return swiglu(name)
        is_fused = f'{name}.experts.gate_up_proj' in weights
        fused, down = (
            ('experts.gate_up_proj', 'experts.down_proj')
            if is_fused
            else (
                'input_linear.weight',
                'output_linear.weight',
            )
        )
        gate, up = np.split(take(f'{name}.{fused}').transpose(0, 2, 1), 2, axis=-1)  # [E, 2F, C] -> [E, C, F] twice
        experts = {
            'neurons': join_neurons(gate, up, take(f'{name}.{down}')),
            'router': {'gate': linear(f'{name}.{router}')['kernel']},
        }
        if f'{name}.shared_expert_gate.weight' not in weights:
            return {'experts': experts}
        shared = {'shared': swiglu(f'{name}.shared_expert'), 'shared_gate': linear(f'{name}.shared_expert_gate')}
        return {'experts': experts, **shared}

    def layer(name):
        attention = {ours: linear(f'{name}.self_attn.{theirs}_proj') for ours, theirs in NAMES.items()}
        for ours, theirs in (('query_norm', 'q_norm'), ('key_norm', 'k_norm')):
            if f'{name}.self_attn.{theirs}.weight' in weights:
                attention[ours] = norm(f'{name}.self_attn.{theirs}')
        return {
            'attention_norm': norm(f'{name}.input_layernorm'),
            'attention': attention,
            'ffn_norm': norm(f'{name}.post_attention_layernorm'),
            'ffn': feed_forward(f'{name}.mlp'),
        }

    params = {f'layer_{index}': layer(f'layers.{index}') for index in range(model.num_layers)}
    params |= {'tokens': {'embedding': take('embed_tokens.weight')}, 'norm': norm('norm')}
    if model.architecture.tied:
        used.add('lm_head.weight')
    else:
        params['logits'] = linear('lm_head')
    assert used >= weights.keys()
    return params


NAMES = {'query': 'q', 'key': 'k', 'value': 'v', 'output': 'o'}


@pytest.mark.parametrize('family', FAMILIES)
def test_computes_what_transformers_does(family):
    reference, config = make_reference(family)
    model = make_network(family, config)
    params = convert(reference.state_dict(), model)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (2, 13))
    valid = np.ones(tokens.shape, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.int32(tokens), valid)['params']
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    with jax.default_matmul_precision('highest'):
        logits, _ = jax.jit(model.apply)({'params': params}, jnp.int32(tokens), valid)
    difference = np.abs(logits - expected).max()
    print(f'{family}: largest difference {difference:.2g}, largest logit {np.abs(expected).max():.2g}')
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    found = reference.generate(torch.tensor(tokens), max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert generate(model, {'params': params}, jnp.int32(tokens), 6).tolist() == found[:, 13:].tolist()
