"""Turning a trained network into something that is served. Only what loads an export is a public name."""

from pad_jax.deploy.loading import ExportedNetwork, load_exported
