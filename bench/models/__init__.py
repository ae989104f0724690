"""Benches of the models, by what is measured."""
