"""The figures of recipes/theory.py, one module each."""
