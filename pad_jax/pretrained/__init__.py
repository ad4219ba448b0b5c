"""Pretrained weights from safetensors: BERT's family and torchvision's networks; upcycling of static parts."""

from pad_jax.pretrained.bert import Loaded, load_pretrained
from pad_jax.pretrained.packaged import PACKAGES, find_weights
from pad_jax.pretrained.safetensors_folder import find_vocabulary
from pad_jax.pretrained.torchvision import LAYOUTS, LoadedNetwork, find_layout, load_torchvision
from pad_jax.pretrained.upcycling import upcycle
from pad_jax.pretrained.upcycling_convolutions import upcycle_convolutions

__all__ = [
    'LAYOUTS',
    'PACKAGES',
    'Loaded',
    'LoadedNetwork',
    'find_layout',
    'find_vocabulary',
    'find_weights',
    'load_pretrained',
    'load_torchvision',
    'upcycle',
    'upcycle_convolutions',
]
