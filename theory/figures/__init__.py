"""The figures that `python -m theory` draws, one module each."""
