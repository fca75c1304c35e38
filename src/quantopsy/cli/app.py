"""The program: its commands in the order in which they are used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer

from quantopsy.cli.analyses import analyze, demo, report
from quantopsy.cli.causes import additivity, diagnose
from quantopsy.cli.deliveries import export, parity
from quantopsy.cli.remedies import allocate, apply_, repair, train
from quantopsy.cli.surveys import calibration, check, quantizers, schemes
from quantopsy.cli.terminal import new_console
from quantopsy.cli.versions import compare, gate
from quantopsy.core import QuantopsyError

app = typer.Typer(
    help="A post-mortem for quantized convolutional networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

COMMANDS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "Which layers hurt": (check, analyze, report, schemes, calibration),
    "Why": (diagnose, additivity),
    "The cheapest repair": (repair, allocate, train, apply_),
    "A file that runs": (export, parity),
    "One version against another": (compare, gate),
    "To look around": (demo, quantizers),
}

for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(_command.__name__.rstrip("_"), rich_help_panel=_panel)(_command)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except QuantopsyError as error:
        new_console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
