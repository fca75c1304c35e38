"""All transforms by name. A new one is a file beside this one and a line in the table."""

from __future__ import annotations

from typing import Any

from quantopsy.core import QuantopsyError, names
from quantopsy.transforms.bias_absorption import BiasAbsorption
from quantopsy.transforms.channel_splitting import ChannelSplitting
from quantopsy.transforms.dead_channels import DeadChannels
from quantopsy.transforms.equalization import Equalization
from quantopsy.transforms.transform import Transform

_ENTRIES: tuple[type[Transform], ...] = (Equalization, BiasAbsorption, DeadChannels, ChannelSplitting)
TRANSFORMS: dict[str, type[Transform]] = {entry.name: entry for entry in _ENTRIES}


def from_json(data: Any) -> Transform:
    """The transform that :meth:`Transform.to_json` wrote.

    Raises :class:`QuantopsyError` for a name that there is not, with the nearest, and for a missing field.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise QuantopsyError("transform", "it is not an object with a 'name'", "write {'name': 'equalization', ...}")
    if data["name"] not in TRANSFORMS:
        raise names.unknown(data["name"], list(TRANSFORMS), "transform")
    try:
        return TRANSFORMS[data["name"]].from_json(data)
    except KeyError as error:
        reason = f"it has no field {error.args[0]!r}"
    except (TypeError, ValueError, AttributeError) as error:
        reason = f"a field of it has another form ({error})"
    raise QuantopsyError(f"transform {data['name']!r}", reason, "write it with its to_json")
