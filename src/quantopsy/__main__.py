"""``python -m quantopsy``: for what starts modules, such as ``accelerate launch``."""

from quantopsy.cli.app import main

main()
