"""Networks: a choice of which layers are dynamic. The layer class is a field, never a second file."""

from pad_jax.models.accounting import (
    LayerCount,
    MultiplyAdds,
    account_layers,
    count_layers,
    plan_dynamic_positions,
    report_counts,
    sum_multiply_adds,
)
from pad_jax.models.bert import Bert
from pad_jax.models.decoder import Architecture, Decoder, generate
from pad_jax.models.feed_forward import FFNS, FeedForward, LayerSpec, make_ffn_spec, make_spec
from pad_jax.models.mobilenet import MobileNetV2
from pad_jax.models.registry import (
    DECODERS,
    DTYPES,
    ENCODERS,
    MODELS,
    build_decoder,
    build_encoder,
    build_model,
    make_conv_spec,
)
from pad_jax.models.resnet import STEMS, BasicBlock, BottleneckBlock, ImageNetwork, ResNet, check_image_size
