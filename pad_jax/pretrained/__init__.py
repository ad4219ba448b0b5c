"""Pretrained weights from safetensors files: the BERT family, torchvision's networks, and upcycling."""

from pad_jax.pretrained.bert import Loaded, load_pretrained
from pad_jax.pretrained.torchvision import LAYOUTS, LoadedNetwork, find_layout, load_torchvision
from pad_jax.pretrained.upcycling import upcycle
from pad_jax.pretrained.weights import PACKAGES, find_vocabulary, find_weights
