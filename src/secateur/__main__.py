"""Lets ``python -m secateur`` and launchers such as ``torchrun -m secateur`` run the commands."""

from secateur.cli import main

main()
