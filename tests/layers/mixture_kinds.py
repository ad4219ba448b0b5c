"""Kinds of mixtures that one contract holds for: name -> (class, its parameter)."""

from pad_jax.layers import GATINGS, Gating, MixtureFFN, MixtureLinear


class Swiglu(MixtureFFN, kw_only=True):
    """Experts of OLMoE: no biases, and weights that do not add up to one."""

    activation: str = 'swiglu'
    use_bias: bool = False
    gating: Gating = GATINGS['olmoe']


class SwigluWithBiases(MixtureFFN, kw_only=True):
    activation: str = 'swiglu'


class WithoutBiases(MixtureFFN, kw_only=True):
    use_bias: bool = False


KINDS = {
    'linear': (MixtureLinear, 'kernel'),
    'ffn': (MixtureFFN, 'neurons'),
    'swiglu': (Swiglu, 'neurons'),
    'swiglu with biases': (SwigluWithBiases, 'neurons'),
    'without biases': (WithoutBiases, 'neurons'),
}
