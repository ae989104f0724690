"""`python -m encoders_fast compare`: one checkpoint, one text, both libraries in turn. Starts in `command.py`."""
