"""`pytest bench/`: ops and models beside what they replace. `python -m bench.readme` fills README.md from results."""
