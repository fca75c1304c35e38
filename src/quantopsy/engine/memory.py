"""How many images to run at once."""

from __future__ import annotations

from math import prod

from quantopsy.core import QuantopsyError
from quantopsy.graph.execute import Program

LARGEST_TILE = 256
# Beyond this much kept per tile nothing gets faster; caches only get colder.
COMFORTABLE_BYTES = 512 * 2**20
BYTES = 4  # float32
GIB = 2**30


def bytes_per_image(program: Program) -> int:
    """Memory that one image takes while its layers are swept: every value of the float pass, and
    twice the largest for the layer in flight and the grid it is put on."""
    sizes = [prod(layer.output_shape) for layer in program.network.layers]
    return BYTES * (sum(sizes) + 4 * max(sizes) + sum(prod(shape) for shape in program.network.input_shapes))


def screen_bytes_per_image(program: Program) -> int:
    """Memory that one image takes while it is screened: every value stays until the way back has passed it,
    there with a gradient for two probes, and the largest layer's weight gradients."""
    layers = program.network.layers
    sizes = [prod(layer.output_shape) for layer in layers]
    values = sum(sizes) + sum(prod(shape) for shape in program.network.input_shapes)
    weights = max((prod(layer.weight_shape) for layer in layers if layer.weight_shape is not None), default=0)
    return BYTES * round(1.5 * values + 8 * max(sizes) + 2 * weights)


def choose_tile(per_image: int, max_memory: float, tile: int | None, images: int) -> int:
    """Images per tile of ``per_image`` bytes: as asked for, else what is comfortable within ``max_memory`` GiB."""
    if tile is None:
        tile = max(1, min(LARGEST_TILE, COMFORTABLE_BYTES // per_image, int(max_memory * GIB) // per_image))
    if tile * per_image > max_memory * GIB:
        raise QuantopsyError(
            f"tile of {tile} images",
            f"needs about {tile * per_image / GIB:.1f} GiB, more than --max-memory {max_memory:g}",
            "give a smaller --tile or more memory",
        )
    return min(tile, images)
