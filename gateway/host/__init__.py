"""What the machine can hold: `kernel.py` reads it, `checks.py` judges it."""
