"""Writes data sets as TFDS prepares them, in array_record, without TensorFlow and without the network.

TFDS's own builders say what a set is: its features, its labels, its version. Its writer is not used: beyond a
gigabyte it needs TensorFlow.
"""

from pad_jax.data.preparation.convert import convert_tfrecord
from pad_jax.data.preparation.glue import prepare_glue
from pad_jax.data.preparation.imagenet2012 import prepare_imagenet2012
