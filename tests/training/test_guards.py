"""A weight that oscillates is put on a level and stays there, and no other weight is touched."""

from __future__ import annotations

import pytest
import torch
from learning import started

from quantopsy.training.guards import OscillationGuard
from quantopsy.training.network import QuantizedLayer, TrainableNetwork
from quantopsy.training.settings import TrainingSettings


def guarded(method: str, **settings: object) -> tuple[OscillationGuard, QuantizedLayer]:
    """A guard of a network whose layer ``left`` it comes with."""
    chosen = {"method": method, "bits": 3, "edge_bits": 0, **settings}
    start, program = started(**chosen)
    network = TrainableNetwork(program, start.plan, start.calibration, TrainingSettings(**chosen).learning).train()
    (layer,) = (layer for layer in network.quantized_layers if layer.layer.name == "left")
    return OscillationGuard(network), layer


@torch.no_grad()
def oscillate(guard: OscillationGuard, layer: QuantizedLayer, steps: int) -> torch.Tensor:
    """Push one weight to and fro across a border between two levels; where it was frozen, a mask of the weight."""
    weight, quantizer = layer.weight, layer.weight_quantizer
    assert weight is not None
    assert quantizer is not None
    place = 0 if int(weight.abs().argmax()) else 1  # not the largest of them
    levels = quantizer.qparams.decode(torch.arange(-1, 2, dtype=torch.int32))
    for step in range(steps):
        wanted = layer.latent_weight().flatten()
        wanted[place] = levels[step % 2 + 1] * 0.98
        weight.flatten()[place] = quantizer.latent(wanted.reshape(weight.shape), among=weight).flatten()[place]
        guard.apply()
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[place] = True
    return mask.reshape(weight.shape)


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
def test_freezing_a_weight_moves_no_other(method) -> None:
    guard, layer = guarded(method)
    assert layer.weight is not None
    with torch.no_grad():
        layer.weight.mul_(0.9)  # training has moved latents: their largest is no longer where it began
    before = layer.latent_weight().detach().clone()
    frozen = oscillate(guard, layer, 40)
    assert guard.frozen == 1
    after = layer.latent_weight().detach()
    assert torch.equal(after[~frozen], before[~frozen])


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
@torch.no_grad()
def test_a_frozen_weight_stays_on_its_level_while_others_move(method) -> None:
    guard, layer = guarded(method)
    frozen = oscillate(guard, layer, 40)
    assert layer.weight is not None
    assert layer.weight_quantizer is not None
    held = layer.latent_weight()[frozen]
    torch.testing.assert_close(layer.weight_quantizer(held), held, rtol=1e-5, atol=0)
    for _ in range(3):
        layer.weight.mul_(1.07)
        guard.apply()
    torch.testing.assert_close(layer.latent_weight()[frozen], held, rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_largest_weight_is_what_the_others_are_measured_by() -> None:
    _, layer = guarded("dorefa")
    assert layer.weight is not None
    assert layer.weight_quantizer is not None
    before = layer.latent_weight()
    wanted = torch.where(before.abs() == before.abs().amax(), before / 2, before)
    layer.weight.copy_(layer.weight_quantizer.latent(wanted, among=layer.weight))
    torch.testing.assert_close(layer.latent_weight(), before, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_weights_that_other_bits_set_free_stay_counted() -> None:
    guard, layer = guarded("lsq", target="3bits", bits=4)
    assert layer.weight_quantizer is not None
    gates = layer.weight_quantizer.gates
    assert gates is not None
    frozen = oscillate(guard, layer, 40)
    gates.logits[-1] = -1.0
    guard.apply()
    assert guard.frozen == 1
    assert layer.weight is not None
    layer.weight[frozen] *= 1.01  # free: it stays where it is put
    before = layer.weight.detach().clone()
    guard.apply()
    assert torch.equal(layer.weight, before)
    assert torch.equal(oscillate(guard, layer, 40), frozen)
    assert guard.frozen == 1  # the same one again
