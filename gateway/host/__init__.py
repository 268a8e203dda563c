"""What the machine can hold: kernel.py and looks.py read it, checks.py says why it matters."""
