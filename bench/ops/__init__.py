"""Benches of the ops, one file each."""
