"""The loop: steps, epochs, validation, checkpoints. Spread over processes and devices by ``accelerate``.

Everything random depends on the seed and the number of the step alone, so a training that was killed ends with the same
numbers when it is started again on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import Tensor

from quantopsy.analysis.progress import Progress
from quantopsy.analysis.significance import degradation
from quantopsy.analysis.subject import device_named
from quantopsy.core import QuantopsyError
from quantopsy.data import Batch, Images, prefetch
from quantopsy.graph.execute import Program
from quantopsy.metrics import Metric, measure
from quantopsy.training.augment import augmented, chosen
from quantopsy.training.footprint import Limit
from quantopsy.training.guards import OscillationGuard, ScaleGuard, first_not_finite
from quantopsy.training.history import Epoch, History
from quantopsy.training.mixing import GateGradients, gate_rate, set_gate_rate
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.objective import Loss, distillation_loss, label_loss, own_loss
from quantopsy.training.optimizers import optimizers, set_rates
from quantopsy.training.quantizers.ste import StraightThrough
from quantopsy.training.settings import TrainingSettings

CHECKPOINT = "checkpoint.pt"

FOLLOW_UNTIL = 0.5
"""Share of the training after which ranges that follow the data stay."""

FREEZE_FROM = 0.5
"""Share of the training from which oscillating weights are frozen: earlier, weights should move."""

ONE_STANDARD_ERROR = 0.6827
"""Level of an interval that reaches one standard error to either side."""

LOGGED = 10
"""Steps between two entries of the loss in the history."""


class Watcher(Protocol):
    """Hears of losses and epochs while they come: TensorBoard, or nobody."""

    def step(self, number: int, losses: dict[str, float]) -> None:
        """Losses of a step."""

    def epoch(self, network: TrainableNetwork, epoch: Epoch) -> None:
        """An epoch is over."""


@dataclass
class Job:
    """What is trained on what."""

    network: TrainableNetwork
    teacher: Program
    images: Images
    training: np.ndarray  # positions of the images that are trained on
    validation: np.ndarray  # of those that the best epoch is chosen by
    metric: Metric
    settings: TrainingSettings
    limit: Limit | None = None
    loss: Loss | None = None
    identity: dict[str, Any] = field(default_factory=dict)  # what a checkpoint must be of


class Trainer:
    """One training; holds what a checkpoint holds."""

    def __init__(self, job: Job, folder: Path, progress: Progress, watcher: Watcher | None = None) -> None:
        self.job, self.settings, self.progress, self.watcher = job, job.settings, progress, watcher
        self.accelerator = accelerator(self.settings)
        set_seed(self.settings.seed)
        self.network = job.network
        self.steps_per_epoch = steps_per_epoch(len(job.training), self.settings.batch_of(len(job.training)))
        self.steps = self.steps_per_epoch * self.settings.epochs
        gates = gate_rate(job.limit, self.steps) if job.limit is not None else 0.0
        self.optimizers = optimizers(self.network, self.settings.rate, self.settings.decay, gates)
        prepared = self.accelerator.prepare(self.network, *self.optimizers)
        self.module, self.optimizers = prepared[0], list(prepared[1:])
        self.step = 0
        self.losses: list[float] = []  # of the epoch so far
        self.history = History()
        self.best: dict[str, Tensor] | None = None
        self.top: np.ndarray | None = None  # statistics of the epoch with the best value
        self.average: dict[str, Tensor] | None = None
        self.gates = None if job.limit is None else GateGradients(job.limit)
        self.scales = ScaleGuard(self.network)
        self.oscillations = OscillationGuard(self.network)
        self.file = folder / CHECKPOINT
        example = job.images.batch(job.training[:2])
        self.augmentation = chosen(self.settings.augment, self._tensors(example), example.labels)
        if example.labels is None and not self.settings.distillation:
            raise QuantopsyError(
                "training", "the data have no labels and distillation is off", "give labels, or leave distillation on"
            )

    def run(self) -> History:
        """Train to the end, from a checkpoint where there is one; the network then has its best state.

        An interruption leaves the last checkpoint: within a step or a validation nothing is whole that could be kept.
        """
        settings = self.settings
        if self.file.exists():
            self._restore()
        if not self.history.epochs:
            self._validate(0.0, 0.0)  # of the network as it starts
        if self.step < FOLLOW_UNTIL * self.steps:
            self._follow_ranges()
        self.progress.start("training", self.steps)
        self.progress.advance(self.step)
        saved = time.monotonic()
        while self.step < self.steps and self.history.stopped is None:
            begin = time.monotonic()
            self.module.train()
            for batch in self._batches():
                self.losses.append(self._step(batch))
                if self.history.stopped is not None:
                    break
                self.progress.advance(1)
                if time.monotonic() - saved > settings.checkpoint_seconds and self.step % self.steps_per_epoch:
                    self.save()
                    saved = time.monotonic()
            if self.history.stopped is None:
                self._validate(float(np.mean(self.losses)), time.monotonic() - begin)
                self._stop_early()
                self.losses = []
            self.save()
        if self.best is not None:
            self.network.load_state_dict(self.best)
        self._freeze_ranges()  # a training that ended early has not yet
        self.network.eval()
        return self.history

    def _batches(self) -> Iterator[Batch]:
        """What is left of the epoch, this process's share of every batch."""
        job, size = self.job, self.settings.batch_of(len(self.job.training))
        epoch, done = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(job.training)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        tiles = [order[k * size : (k + 1) * size][rank::world] for k in range(done, self.steps_per_epoch)]
        return prefetch(job.images, tiles)

    def _step(self, batch: Batch) -> float:
        settings = self.settings
        share = self.step / self.steps
        set_rates(self.optimizers[0], share, settings.warm_up)
        if self.job.limit is not None:
            set_gate_rate(self.optimizers[1], self.job.limit, share)
        if share >= FOLLOW_UNTIL:
            self._freeze_ranges()
        generator = torch.Generator().manual_seed(
            (settings.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        )
        changed = (augmented(x, self.augmentation, generator) for x in self._tensors(batch))
        inputs = tuple(x.to(self.accelerator.device) for x in changed)
        parts: dict[str, Tensor] = {}
        try:
            parts = self._losses(inputs, batch)
        except QuantopsyError:  # grids refuse NaN
            if not self._blown_up(inputs):
                raise
        if self._stopped_anywhere():
            return float("nan")
        total = sum(parts.values(), torch.zeros((), device=self.accelerator.device))
        plain = total
        if self.job.limit is not None:
            total = total * self.job.limit.price().detach().to(total)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self._clipped(), 1.0)
        if not bool(torch.isfinite(total)) or not bool(torch.isfinite(norm)):
            self._blown_up(inputs, loss=True)
            return float("nan")
        if self.gates is not None and not self.gates.done:
            self.gates.apply(float(self.accelerator.reduce(plain.detach(), "mean")))
        for optimizer in self.optimizers:
            optimizer.step()
        self.scales.apply()
        if settings.freeze_oscillations and share >= FREEZE_FROM:
            self.oscillations.apply()
        self._average()
        self.step += 1
        losses = {name: float(part.detach()) for name, part in parts.items()}
        if self.step % LOGGED == 0:
            self.history.losses.append((self.step, sum(losses.values())))
            if self.watcher is not None:
                self.watcher.step(self.step, losses)
        return sum(losses.values())

    def _tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs in the order in which the network takes them."""
        return self.network.program.network.arrange(batch.inputs)

    def _losses(self, inputs: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        settings, job = self.settings, self.job
        outputs = self.module(*inputs)
        parts: dict[str, Tensor] = {}
        if batch.labels is not None:
            labels = batch.labels.to(self.accelerator.device)
            parts["labels"] = own_loss(job.loss, outputs, labels) if job.loss else label_loss(outputs, labels)
        if settings.distillation:
            with torch.no_grad():
                teacher = job.teacher
                reference = teacher.network.unflatten(teacher.forward(teacher.place(inputs)))
            parts["distillation"] = settings.distillation * distillation_loss(outputs, reference)
        return parts

    def _clipped(self) -> list[torch.nn.Parameter]:
        """Parameters whose gradients are clipped together: all but gates, whose gradient's sign is what counts."""
        return [parameter for group in self.optimizers[0].param_groups for parameter in group["params"]]

    def _blown_up(self, inputs: tuple[Tensor, ...], loss: bool = False) -> bool:
        """Whether something is not finite, the ``loss`` or a layer; the training then ends at its best state so far."""
        culprit = first_not_finite(self.network, inputs)
        if culprit is None and not loss:
            return False
        what = "the loss is" if culprit is None else f"layer {culprit!r} was the first to be"
        self.history.stopped = f"{what} not finite at step {self.step} (a smaller --rate may help)"
        return True

    def _stopped_anywhere(self) -> bool:
        """Whether this process has stopped, or another: none may wait for the gradients of one that has."""
        mine = self.history.stopped
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(mine is not None), device=self.accelerator.device)
            if float(self.accelerator.reduce(flag, "sum")):
                reasons = [reason for reason in gather_object([mine]) if reason is not None]
                self.history.stopped = reasons[0]
        return self.history.stopped is not None

    def _average(self) -> None:
        decay = self.settings.ema
        if not decay:
            return
        now = self.network.state_dict()
        if self.average is None:
            self.average = {name: value.clone() for name, value in now.items()}
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, value in now.items():
            if value.is_floating_point() and not name.endswith("gates.logits"):
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def _validate(self, loss: float, seconds: float) -> None:
        """Measure the network, its average where there is one, on the validation images; keep it if it is the best."""
        own = None
        if self.average is not None:
            own = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.average)
        try:
            statistics = self.statistics(self.job.validation)
            value = self.job.metric.value(statistics)
        except QuantopsyError:
            if not self._blown_up(self._tensors(self.job.images.batch(self.job.validation[:2]))):
                raise
            return
        limit = self.job.limit
        epoch = Epoch(
            number=self.step // self.steps_per_epoch,
            step=self.step,
            loss=loss,
            value=value,
            within=limit is None or limit.met,
            bits=self.network.weight_bits(),
            input_bits=self.network.input_bits(),
            errors=quantization_errors(self.network),
            scales_kept=self.scales.kept,
            frozen=self.oscillations.frozen,
            seconds=seconds,
        )
        if self._better(epoch, statistics):
            self.best = {name: kept.clone() for name, kept in self.network.state_dict().items()}
            self.history.best = len(self.history.epochs)
        self.history.epochs.append(epoch)
        if self.watcher is not None and self.accelerator.is_main_process:
            self.watcher.epoch(self.network, epoch)
        if own is not None:
            self.network.load_state_dict(own)

    def _better(self, epoch: Epoch, statistics: np.ndarray) -> bool:
        """Whether ``epoch`` is to be kept instead of the one that is.

        One within the target goes before one that is not. Else the later one, unless it is worse than the best so far
        by more than a standard error, paired image by image: a few images more or less are chance, and the later one
        was trained longer. Of what is no better than the network as it started, the start is kept.
        """
        metric, epochs = self.job.metric, self.history.epochs
        kept = epochs[self.history.best] if epochs else None
        if kept is None or self.top is None or epoch.within > kept.within:
            self.top = statistics
            return True
        if epoch.within < kept.within:
            return False
        if metric.sign * epoch.value >= metric.sign * metric.value(self.top):
            self.top = statistics
            return True
        worse = degradation(metric, self.top, statistics, level=ONE_STANDARD_ERROR)
        return kept.number > 0 and worse.low <= 0.0 and metric.sign * epoch.value > metric.sign * epochs[0].value

    def _stop_early(self) -> None:
        patience, epochs = self.settings.patience, self.history.epochs
        if not epochs[self.history.best].within:  # gates still close, at the price of the metric
            return
        if patience is not None and epochs[-1].number - epochs[self.history.best].number >= patience:
            self.history.stopped = f"no better for {patience} epochs"

    def statistics(self, order: np.ndarray) -> np.ndarray:
        """The metric's statistics of images ``order``, (n, K), every process taking its share."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.network.eval()
        found: list[tuple[int, np.ndarray]] = []
        mine = np.sort(order)[rank::world]
        trouble = None
        try:
            found = self._measured(mine)
        except QuantopsyError as error:
            trouble = error
        gathered = gather_object([(found, trouble)]) if world > 1 else [(found, trouble)]
        for _, other in gathered:  # of whichever process: all go on, or none
            if other is not None:
                raise other
        rows = [pair for part, _ in gathered for pair in part]
        return np.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])])

    def _measured(self, mine: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The metric's statistics of images ``mine``, with their positions."""
        job = self.job
        found: list[tuple[int, np.ndarray]] = []
        for batch in prefetch(job.images, np.array_split(mine, -(-len(mine) // 64)) if len(mine) else []):
            with torch.no_grad():
                exact = job.teacher.network.unflatten(job.teacher.forward(job.teacher.place(batch.inputs)))
                outputs = self.network(*self._tensors(batch))
            labels = None if batch.labels is None else batch.labels.to(self.accelerator.device)
            names = [job.images.name(int(index)) for index in batch.indices]
            rows = measure(job.metric, outputs, labels, exact, names.__getitem__)
            found += zip(batch.indices.tolist(), rows, strict=True)
        return found

    def _follow_ranges(self) -> None:
        for quantizer in self._straight_through():
            with suppress(QuantopsyError):  # a grid that is not uniform stays
                quantizer.observe()

    def _freeze_ranges(self) -> None:
        for quantizer in self._straight_through():
            quantizer.freeze()

    def _straight_through(self) -> Sequence[StraightThrough]:
        return [quantizer for quantizer in self.network.quantizers if isinstance(quantizer, StraightThrough)]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "identity": self.job.identity,
            "step": self.step,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "best": self.best,
            "top": None if self.top is None else torch.from_numpy(self.top),
            "average": self.average,
            "gates": {} if self.gates is None else self.gates.state(),
            "oscillations": self.oscillations.state(),
            "scales": self.scales.kept,
            "history": self.history.to_json(),
        }
        temporary = self.file.with_suffix(".new")
        torch.save(state, temporary)
        temporary.replace(self.file)

    def _restore(self) -> None:
        try:
            state = torch.load(self.file, map_location=self.accelerator.device, weights_only=True)
        except Exception as error:
            raise QuantopsyError(
                f"checkpoint {str(self.file)!r}", f"does not load ({type(error).__name__})", "begin again with --fresh"
            ) from error
        different = [name for name, value in self.job.identity.items() if state["identity"].get(name) != value]
        if different:
            raise QuantopsyError(
                f"checkpoint {str(self.file)!r}",
                f"it is of another training ({', '.join(different)} differ)",
                "begin again with --fresh, or give another --out",
            )
        self.step, self.best, self.average = state["step"], state["best"], state["average"]
        self.losses = state["losses"]
        self.top = None if state["top"] is None else state["top"].cpu().numpy()
        self.network.load_state_dict(state["network"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.gates is not None:
            self.gates.restore(state["gates"])
        self.oscillations.restore(state["oscillations"])
        self.scales.kept = state["scales"]
        self.history = History.from_json(state["history"])
        self.progress.say(f"Going on at step {self.step} of {self.steps}")


def steps_per_epoch(images: int, batch: int) -> int:
    """How many whole batches there are, and one of fewer where there is none."""
    return max(images // batch, 1)


def accelerator(settings: TrainingSettings) -> Accelerator:
    """One process on one device, or as ``accelerate launch`` says.

    Raises :class:`QuantopsyError` for a device that there is not, and where this process has trained on another device
    or with another precision: accelerate sets them once.
    """
    device = device_named(settings.device)
    if is_initialized():
        state = AcceleratorState()
        if (state.device.type, state.mixed_precision) != (device.type, settings.precision):
            raise QuantopsyError(
                f"device {settings.device!r} and precision {settings.precision!r}",
                f"accelerate keeps what this process began with, {state.device.type!r} and {state.mixed_precision!r}",
                "train in a process of its own",
            )
    return Accelerator(
        cpu=settings.device == "cpu",
        mixed_precision=settings.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


@torch.no_grad()
def quantization_errors(network: TrainableNetwork) -> dict[str, float]:
    """||W_q - W||^2 / ||W||^2 of every layer's weight that is on a grid (DDQ, Figure 5(a))."""
    found = {}
    for layer in network.quantized_layers:
        if layer.weight_quantizer is not None:
            weight = layer.latent_weight()
            apart = (layer.weight_quantizer(weight) - weight).square().sum()
            found[layer.layer.name] = float(apart / weight.square().sum().clamp(min=1e-30))
    return found
