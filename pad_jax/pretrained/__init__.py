"""Pretrained weights: safetensors of the BERT family -> params, dense or upcycled to experts."""

from pad_jax.pretrained.bert import Loaded, load_pretrained
from pad_jax.pretrained.packaged import PACKAGES, find_weights
from pad_jax.pretrained.safetensors_folder import find_vocabulary
from pad_jax.pretrained.upcycling import upcycle

__all__ = ['PACKAGES', 'Loaded', 'find_vocabulary', 'find_weights', 'load_pretrained', 'upcycle']
