"""Pretrained weights: safetensors -> params, and upcycling: dense to experts, static to dynamic convolutions."""

from pad_jax.pretrained.bert import Loaded, load_pretrained
from pad_jax.pretrained.packaged import PACKAGES, find_weights
from pad_jax.pretrained.safetensors_folder import find_vocabulary
from pad_jax.pretrained.upcycling import upcycle
from pad_jax.pretrained.upcycling_convolutions import upcycle_convolutions

__all__ = [
    'PACKAGES',
    'Loaded',
    'find_vocabulary',
    'find_weights',
    'load_pretrained',
    'upcycle',
    'upcycle_convolutions',
]
