"""Gradients of trained grids against autograd of slow references, and against differences where it is smooth."""

from __future__ import annotations

import pytest
import torch
from ddq_formulas import kronecker
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trainable_cases import GRANULARITIES, quantizer, sample, straight

from quantopsy.core import Spec
from quantopsy.core.plan import Role
from quantopsy.quant import UniformQParams, fake_quantize
from quantopsy.quant.grouping import aligned
from quantopsy.training.quantizers.ddq import DDQ
from quantopsy.training.quantizers.gates import Gates
from quantopsy.training.quantizers.lsq import LearnedScale, LearnedScaleAndOffset
from quantopsy.training.quantizers.pact import LearnedThreshold

ROLES_: tuple[Role, ...] = ("weight", "output")


def incoming(x: Tensor, seed: int = 11) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def clipped(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Straight through within the ends, both included; beyond them the end, with its own gradient."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("role", ROLES_)
@pytest.mark.parametrize("method", ["lsq", "pot", "apot"])
def test_learned_step_is_lsq(method: str, role: Role, granularity: str) -> None:
    x = sample(1, (4, 5, 40), role)
    made, _ = quantizer(method, x, Spec(bits=3, symmetric=True, granularity=granularity), role)
    assert isinstance(made, LearnedScale)
    with torch.no_grad():
        made.scale *= 0.7  # so that some are clipped
    x = x.requires_grad_()
    made(x).backward(incoming(x))

    # v / s clipped, rounded straight through, times s, as in Esser et al. 2020, appendix B.
    grid = made.qparams
    scale, other = made.scale.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    laid = aligned(scale, x, grid.axis, grid.group_size)
    ends = [aligned(end / grid.scale, x, grid.axis, grid.group_size) for end in grid.ends]
    inside = clipped(other / laid, *ends)
    rounded = made(x).detach() / laid.detach()
    (straight(inside, rounded) * laid).backward(incoming(x))
    assert scale.grad is not None
    images = 1 if role == "weight" else 4
    shared = {"per_tensor": 800, "per_channel": 200, "per_group:2": torch.tensor([80, 80, 40])}[granularity]
    highest = {"lsq": {"weight": 3, "output": 7}[role], "pot": 1, "apot": 1}[method]
    factor = torch.as_tensor(shared / images * highest, dtype=torch.float32) ** -0.5
    torch.testing.assert_close(made.scale.grad, scale.grad * factor, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, other.grad)


def test_gradients_of_the_step_are_the_papers() -> None:
    x = torch.tensor([-9.0, -1.3, 0.4, 2.6, 9.0])
    made, _ = quantizer("lsq", torch.tensor([-4.0, 3.0]), Spec(bits=3, symmetric=True), "weight")
    assert isinstance(made, LearnedScale)
    with torch.no_grad():
        made.scale.fill_(1.0)
    for value, expected in zip(x, (-4.0, 0.3, -0.4, 0.4, 3.0), strict=True):
        made.scale.grad = None
        made(value.view(1)).sum().backward()
        assert made.scale.grad is not None
        assert float(made.scale.grad) == pytest.approx(expected / 3**0.5, abs=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_learned_offset_is_lsq_plus(granularity: str) -> None:
    x = sample(2, (4, 5, 40)) + 0.3
    made, _ = quantizer("lsq+", x, Spec(bits=3, granularity=granularity), "output")
    assert isinstance(made, LearnedScaleAndOffset)
    with torch.no_grad():
        made.scale *= 0.6
        # Where the offset is a multiple of the scale ours is the paper's.
        made.offset.copy_(-made.qparams.zero_point * made.scale)
    x = x.requires_grad_()
    made(x).backward(incoming(x))

    grid = made.qparams
    scale, offset = (p.detach().clone().requires_grad_() for p in (made.scale, made.offset))
    other = x.detach().clone().requires_grad_()
    s, beta = (aligned(p, x, grid.axis, grid.group_size) for p in (scale, offset))
    inside = ((other - beta) / s).clamp(grid.qmin, grid.qmax)
    (straight(inside, inside.round()) * s + beta).backward(incoming(x))
    shared = {"per_tensor": 800, "per_channel": 200, "per_group:2": torch.tensor([80, 80, 40])}[granularity]
    highest = made._gradient_scale.unit**-2
    factor = (shared / 4 * highest) ** -0.5  # of one of four images
    torch.testing.assert_close(made.scale.grad, scale.grad * factor, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.offset.grad, offset.grad * factor, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x.grad, other.grad)


def test_only_clipped_values_reach_the_threshold_of_pact() -> None:
    x = sample(3, (64,), "output")
    made, _ = quantizer("pact", x, Spec(bits=4), "output")
    assert isinstance(made, LearnedThreshold)
    with torch.no_grad():
        made.alpha *= 0.5
    x = x.requires_grad_()
    made(x).backward(incoming(x))

    alpha, other = made.alpha.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    y = 0.5 * (other.abs() - (other - alpha).abs() + alpha)  # PACT equation (1)
    straight(y, made(x)).backward(incoming(x))
    torch.testing.assert_close(made.alpha.grad, alpha.grad, rtol=1e-4, atol=1e-5)
    assert x.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(x.grad[x > 0], other.grad[x > 0])  # the formula's kink at 0 is nobody's


def dense(
    made: DDQ, x: Tensor, correction: float, gradient: Tensor, gates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss whose gradients are DDQ's, from a one-hot matrix (N, 2^b) and U (2^b, 2^b); leaves q~, scale, x."""
    tilde, scale = (p.detach().clone().double().requires_grad_() for p in (made.levels, made.scale))
    other = x.detach().clone().double().requires_grad_()
    fraction = made._fraction
    stored = straight(tilde, (tilde * fraction).round().clamp(0, len(tilde) * fraction - 1) / fraction)
    q = stored.sort(stable=True).values + made.lowest.double()
    if gates is not None:
        U = kronecker(gates)
        q = U.T @ q / 2 ** (len(gates) - gates.sum())
    if made._of_activation:
        q = torch.where(q.detach().abs() == q.detach().abs().min(), 0.0, q)
    flat = other.reshape(-1)
    # The first of a block stands for it. Levels that have met share their values: what is above goes to the upper.
    first = torch.arange(0, len(q), 1 if gates is None else 2 ** int(len(gates) - gates.sum()))
    levels = q.detach()[first]
    nearest = first[torch.bucketize((flat / scale).detach(), (levels[1:] + levels[:-1]) / 2)]
    one_hot = torch.nn.functional.one_hot(nearest, len(q)).double()
    held = q.detach()
    position = flat / scale
    inside = clipped(position, held.min(), held.max())
    # LSQ's gradient for the scale and x, equation (8) for the levels: their sum, each with the other's part held.
    x_q = scale * straight(inside, one_hot @ held) + scale.detach() * (one_hot @ (q - held))
    x_q = x_q.view_as(x)
    to_parameters = gradient + correction * (x_q.detach() - x.double())
    parameters = (tilde, scale) if gates is None else (tilde, scale, gates)
    found = torch.autograd.grad(x_q, parameters, to_parameters, retain_graph=True)
    (to_x,) = torch.autograd.grad(x_q, other, gradient.double())
    return *found, to_x  # type: ignore[return-value]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    bits=st.integers(2, 5),
    role=st.sampled_from(ROLES_),
    correction=st.sampled_from((0.0, 0.3)),
    closed=st.integers(-1, 3),
    size=st.sampled_from(((4, 5, 3), (4, 8, 160))),
)
def test_gradients_of_levels_and_gates_are_those_of_the_dense_matrices(
    seed: int, bits: int, role: Role, correction: float, closed: int, size: tuple[int, ...]
) -> None:
    x = sample(seed, size, role)
    mixed = closed >= 0
    made, _ = quantizer("ddq", x, Spec(bits=bits), role, correction=correction, mixed=mixed)
    assert isinstance(made, DDQ)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.levels += 0.8 * torch.randn(made.levels.shape, generator=generator)  # some cross
        made.scale *= 0.8
        if isinstance(made.gates, Gates):
            made.gates.logits[bits - min(closed, bits - 2) :] = -0.5
    gradient = incoming(x)
    x.requires_grad_()
    made(x).backward(gradient)

    gates = made.gates().detach().double().requires_grad_() if isinstance(made.gates, Gates) else None
    to_levels, to_scale, *to_gates, to_x = dense(made, x, correction, gradient, gates)
    factor = (x.numel() / (1 if role == "weight" else x.shape[0]) * float(made._gradient_scale.unit) ** -2) ** -0.5
    factor *= 2 ** (-1.5 * (bits - made.bits))
    close = {"rtol": 1e-3, "atol": 1e-3, "check_dtype": False}
    torch.testing.assert_close(made.levels.grad, to_levels, **close)
    torch.testing.assert_close(made.scale.grad, to_scale * factor, **close)
    torch.testing.assert_close(x.grad, to_x, check_dtype=False)
    if isinstance(made.gates, Gates):
        expected = to_gates[0].clone()
        expected[: made.gates.minimum] = 0
        open_ = made.gates.bits
        expected[[i for i in range(bits) if i not in (open_ - 1, open_)]] = 0  # only the next to close or to open
        torch.testing.assert_close(made.gates.logits.grad, expected, **close)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    bits=st.integers(2, 8),
    closed=st.integers(0, 6),
    symmetric=st.booleans(),
    granularity=st.sampled_from(GRANULARITIES),
    role=st.sampled_from(ROLES_),
)
def test_gated_steps_are_every_other_level_and_gates_hear_what_levels_between_are_worth(
    seed: int, bits: int, closed: int, symmetric: bool, granularity: str, role: Role
) -> None:
    x = sample(seed, (4, 5, 40), role)
    spec = Spec(bits=bits, symmetric=symmetric, granularity=granularity)
    made, whole = quantizer("lsq", x, spec, role, mixed=True)
    assert isinstance(made.gates, Gates)
    assert isinstance(whole, UniformQParams)
    at: dict[int, Tensor] = {}
    for number in range(bits, 1, -1):
        with torch.no_grad():
            made.gates.logits[number:] = -0.5
        grid = made.qparams
        assert isinstance(grid, UniformQParams)
        assert made.bits == number
        assert len(range(grid.qmin, grid.qmax + 1)) in (2**number, 2**number - 1)
        torch.testing.assert_close(grid.scale, whole.scale * 2 ** (bits - number))
        at[number] = made(x).detach()
        assert torch.equal(made(torch.zeros_like(x)), torch.zeros_like(x))  # zero stays a level
        assert torch.equal(at[number], fake_quantize(x, grid))
    s = max(bits - closed, 2)
    with torch.no_grad():
        made.gates.logits[:s] = 0.5
    gradient = incoming(x)
    made(x).backward(gradient)
    expected = torch.zeros(bits)
    if s > 2:
        expected[s - 1] = (gradient * (at[s] - at[s - 1])).sum()
    if s < bits:
        expected[s] = (gradient * (at[s + 1] - at[s])).sum()
    torch.testing.assert_close(made.gates.logits.grad, expected, rtol=1e-4, atol=1e-4)


def test_a_step_behind_closed_gates_moves_as_lsq_moves_it_at_so_many_bits() -> None:
    x = sample(3, (6, 50))
    gated, _ = quantizer("lsq", x, Spec(bits=6, symmetric=True), mixed=True)
    assert isinstance(gated, LearnedScale)
    assert isinstance(gated.gates, Gates)
    with torch.no_grad():
        gated.gates.logits[3:] = -0.5
    grid = gated.qparams
    alone = LearnedScale(Spec(bits=3, symmetric=True), grid, "weight")
    for made in (gated, alone):
        made(x).backward(incoming(x))
    assert gated.scale.grad is not None
    assert alone.scale.grad is not None
    # The same share of the step, up to what rounds Q_P = 2^(s - 1) - 1 to a power of two.
    share = [float(made.scale.grad / made.scale.detach()) for made in (gated, alone)]
    assert share[0] == pytest.approx(share[1], rel=0.2)


@pytest.mark.parametrize("granularity", GRANULARITIES[1:])
def test_tables_of_their_own_are_a_loop_over_single_ones(granularity: str) -> None:
    x = sample(5, (4, 5, 300))
    made, _ = quantizer("ddq", x, Spec(bits=3, granularity=granularity), correction=0.2)
    assert isinstance(made, DDQ)
    x.requires_grad_()
    gradient = incoming(x)
    made(x).backward(gradient)
    width = 5 if granularity == "per_channel" else 2
    for channel in range(4):
        for group, start in enumerate(range(0, 5, width)):
            part = x.detach()[channel, start : start + width].clone().requires_grad_()
            single, _ = quantizer("ddq", part, Spec(bits=3, signed=True), correction=0.2)
            assert isinstance(single, DDQ)
            at = (channel,) if granularity == "per_channel" else (channel, group)
            torch.testing.assert_close(single(part), made(x)[channel, start : start + width])
            single(part).backward(gradient[channel, start : start + width])
            torch.testing.assert_close(made.levels.grad[at], single.levels.grad, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(made.scale.grad[at], single.scale.grad, rtol=1e-3, atol=1e-3)


def test_levels_fall_in_the_direction_of_differences() -> None:
    x = sample(6, (4000,))
    made, _ = quantizer("ddq", x, Spec(bits=3, symmetric=True), correction=1.0, stored_bits=16)
    assert isinstance(made, DDQ)
    # No outer loss: what is left is the gradient of the squared error with the codes held, half of it.
    (made(x) * 0).sum().backward()
    codes = (made.levels.detach() + made.lowest - (x / made.scale.detach())[:, None]).abs().argmin(1)

    def error(levels: Tensor) -> Tensor:
        q = (levels + made.lowest).double() * made.scale.detach().double()
        return 0.5 * (q[codes] - x.double()).square().sum()

    for level in range(8):
        step = torch.zeros(8).double()
        step[level] = 1e-3
        slope = (error(made.levels.detach() + step) - error(made.levels.detach() - step)) / 2e-3
        assert float(made.levels.grad[level]) == pytest.approx(float(slope), rel=1e-3, abs=1e-3)


def test_with_levels_held_ddq_is_lsq() -> None:
    for role in ROLES_:
        x = sample(7, (4, 8, 200), role)
        spec = Spec(bits=4, symmetric=role == "weight")
        found = []
        for method in ("lsq", "ddq"):
            made, _ = quantizer(method, x, spec, role, correction=0.1)
            with torch.no_grad():
                made.scale *= 0.8
            value = x.clone().requires_grad_()
            made(value).backward(incoming(x))
            found.append((made.scale.grad, value.grad))
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
