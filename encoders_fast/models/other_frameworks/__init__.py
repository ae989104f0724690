"""Checkpoints that TensorFlow and Flax left, read without either: `tf_model.h5` and `flax_model.msgpack`."""
