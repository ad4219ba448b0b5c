"""How tokens reach their experts, one file each; the table of them is `pad_jax.layers.dispatch`."""
