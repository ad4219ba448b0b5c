"""Deployment of trained networks. The public names are those that load an export."""

from pad_jax.deploy.serving import ExportedNetwork, load_exported
