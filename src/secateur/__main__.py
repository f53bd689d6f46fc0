"""Lets ``python -m secateur`` and ``accelerate launch -m secateur`` run the command line."""

from secateur.cli import main

main()
