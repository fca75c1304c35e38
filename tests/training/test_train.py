"""A training from its start to files that every other command takes; killed, resumed, spread, blown up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from learning import evaluation, images, network, pictures, started, training
from small_net import randomise_norms
from torch import Tensor

import quantopsy as qp
from quantopsy.analysis.progress import Silent
from quantopsy.analysis.recipes import given_of
from quantopsy.core import Plan, QuantopsyError, Site
from quantopsy.core.recipe import Recipe
from quantopsy.engine.calibration import Calibration, grids_of
from quantopsy.graph.capture import capture
from quantopsy.graph.execute import compile_network
from quantopsy.quant.encoding import qparams_from_json
from quantopsy.report.trained import statements
from quantopsy.training.network import TrainableNetwork
from quantopsy.training.norm import measured_moments
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.start import ready, usual_plan
from quantopsy.training.train import train
from quantopsy.training.trainer import CHECKPOINT, Job, Trainer

LITTLE = {"epochs": 2, "batch": 16, "bits": 2, "activation_bits": 8, "calibration_samples": 32, "augment": "none"}


def trained(out: Path, progress=None, **settings):
    chosen = TrainingSettings(**{**LITTLE, **settings})
    return train(network(), training(), evaluation=evaluation(), out=out, settings=chosen, progress=progress)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(torch.export.load(folder / "network.pt2").state_dict)


def test_it_wins_back_what_quantization_took(tmp_path) -> None:
    done = trained(tmp_path, epochs=6, rate=0.03)
    expected = done.expected
    assert expected.samples == 160
    assert expected.lost_before[0] > 5.0
    assert expected.gained[1] > 0.0  # for certain
    assert expected.gained[0] == pytest.approx(expected.after[0] - expected.before[0])
    history = done.history
    assert [epoch.number for epoch in history.epochs] == list(range(7))
    # 24 images choose: what is kept is at most a standard error below the best.
    values = [epoch.value for epoch in history.epochs]
    assert history.best > 0
    assert max(values) - values[history.best] <= 100 * 0.5 / 24**0.5


def test_network_and_recipe_are_taken_by_every_other_command(tmp_path) -> None:
    done = trained(tmp_path, rate=0.05, epochs=3)
    applied = qp.apply(tmp_path, data=evaluation())
    assert applied.same_model
    assert applied.after[0] == pytest.approx(done.expected.after[0])
    recipe = Recipe.load(tmp_path / "recipe.json")
    kinds = {spec.kind for site, spec in recipe.plan.sites if site.role == "weight"}
    assert "learned" in kinds  # where levels have moved; the others are uniform still
    study = qp.analyze(tmp_path / "network.pt2", evaluation(), bits=(4,), mode="screen", out=tmp_path / "study")
    assert list(study.layers()["name"]) == [
        layer.name for layer in qp.capture(network(), (torch.zeros(2, 3, 12, 12),)).layers
    ]
    # A training goes on from a recipe, and begins where it ended.
    again = train(
        tmp_path,
        training(),
        evaluation=evaluation(),
        out=tmp_path / "on",
        settings=TrainingSettings(epochs=1, calibration_samples=32),
    )
    assert again.expected.before[0] == pytest.approx(done.expected.after[0])


def test_a_recipe_s_own_grids_and_roundings_are_where_training_starts(tmp_path) -> None:
    # Step sizes that were trained, and one weight rounded otherwise than to the nearest.
    first = trained(tmp_path / "lsq", method="lsq", rate=0.05, bits=3)
    recipe = first.recipe
    plan, site = dict(recipe.plan.sites), Site("left", "weight")
    subject = started()[0].subject
    up = torch.rand(subject.network.tensors[str(subject.network.layer("left").weight)].shape) < 0.5
    calibration = Calibration()
    plan[site] = replace(plan[site], rounding=calibration.give(up))
    changed = replace(recipe, plan=Plan.of(plan), given={**recipe.given, **given_of(Plan.of(plan), calibration)})
    worth = qp.apply(changed, data=evaluation())
    assert worth.after[0] != pytest.approx(first.expected.after[0])  # it matters
    for method in ("lsq", "ddq"):
        settings = TrainingSettings(method=method, epochs=1, calibration_samples=32)
        again = train(changed, training(), evaluation=evaluation(), out=tmp_path / f"from {method}", settings=settings)
        assert again.expected.before == pytest.approx(worth.after)


@pytest.mark.parametrize(("method", "follows"), [("dorefa", False), ("pact", False), ("ste", True)])
def test_the_grids_of_bent_weights_stay_where_they_were_calibrated(tmp_path, method, follows) -> None:
    told = Told()
    done = trained(tmp_path, told, method=method, activation_method="lsq", norms="folded", epochs=1)
    start, _ = started(method=method, activation_method="lsq", bits=2, activation_bits=8)
    for site, (grid, *_) in grids_of(start.network, start.plan, start.calibration):
        if site.role == "weight":
            (found,) = done.recipe.encodings[site.layer]["weight"]
            assert torch.equal(qparams_from_json(found).scale, grid.scale) is not follows
    assert any("from least to greatest value" in line for line in told.lines) is follows


def test_norms_are_measured_on_images_of_all_classes(tmp_path, monkeypatch) -> None:
    seen: list[Tensor] = []

    def watched(program, batches):
        seen.extend(x for (x,) in batches)
        return measured_moments(program, batches)

    monkeypatch.setattr("quantopsy.training.train.measured_moments", watched)
    x, y = training().tensors
    by_class = torch.utils.data.TensorDataset(x[y.argsort(stable=True)], y.sort().values)
    settings = TrainingSettings(**{**LITTLE, "epochs": 1, "norms": "kept"})
    train(network(), by_class, evaluation=evaluation(), out=tmp_path, settings=settings)
    with torch.no_grad():
        classes = network()(torch.cat(seen)).argmax(1).bincount(minlength=5)
    assert int(classes.sum()) == 32
    assert bool((classes > 0).all())


def test_layers_that_share_learn_one_bit_width(tmp_path) -> None:
    options = {"target": "3.5bits", "bits": 6, "epochs": 2, "edge_bits": 0}
    done = trained(tmp_path / "shared", share=("[lr]*",), **options)
    alone = trained(tmp_path / "all", share=("*",), **options)
    assert alone.average_bits == 3
    assert len(set(alone.history.epochs[-1].bits.values())) == 1
    bits = done.history.epochs[-1].bits
    assert bits["left"] == bits["right.0"]
    assert done.average_bits <= 3.5
    with pytest.raises(QuantopsyError, match="nearest are"):
        trained(tmp_path / "no", share=("lift",), **options)
    with pytest.raises(QuantopsyError, match="bits do not learn"):
        trained(tmp_path / "no", share=("left",), bits=3)
    with pytest.raises(QuantopsyError, match="start with the same"):
        trained(tmp_path / "no", share=("*",), **{**options, "edge_bits": 8})


def test_shares_that_overlap_are_one(tmp_path, monkeypatch) -> None:
    found = []

    def look(limit, _) -> None:
        found.append(len(limit.footprint.gates))
        raise KeyboardInterrupt

    monkeypatch.setattr("quantopsy.training.train.start_gates", look)
    options = {"target": "3.5bits", "bits": 6, "edge_bits": 0}
    for share in (("[lrh]*",), ("[lrh]*", "[sl]*"), ("[lrh]*", "[sl]*", "[sd]*")):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, share=share, **options)
    assert found == [3, 2, 1]


def test_a_study_s_network_starts_from_its_plan(tmp_path) -> None:
    qp.analyze(network(), evaluation(), bits=(4,), mode="screen", out=tmp_path / "study", scheme="per-channel")
    with pytest.raises(QuantopsyError, match="its model was a Python object"):
        train(tmp_path / "study", training(), out=tmp_path / "trained", settings=TrainingSettings(**LITTLE))
    qp.analyze(
        "learning:network",
        "learning:evaluation",
        bits=(4,),
        mode="screen",
        out=tmp_path / "named",
        scheme="per-channel",
    )
    settings = TrainingSettings(method="lsq", epochs=1, calibration_samples=32)
    done = train(tmp_path / "named", training(), out=tmp_path / "trained", settings=settings)
    plan = done.recipe.plan
    assert plan[Site("left", "weight")].granularity == "per_channel"
    assert plan[Site("left", "weight")].bits == 4
    assert Site("add", "output") in plan  # where an analysis quantizes
    assert done.held_out


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Interrupted(Silent):
    """Ctrl-C at a step."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.phase = ""

    def start(self, phase: str, total: float) -> None:
        self.phase = phase

    def advance(self, amount: float) -> None:
        if self.phase == "training":
            self.left -= amount
            if self.left <= 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize(
    "more",
    [{"method": "ste", "norms": "kept"}, {"ema": 0.9, "method": "lsq"}, {"target": "3.5bits", "bits": 5}],
)
def test_killed_and_started_again_it_ends_with_the_same_numbers(tmp_path, more) -> None:
    whole = trained(tmp_path / "whole", augment="flip+shift", **more)
    for step in (5, 14):  # within the first epoch, and the second
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", Interrupted(step), augment="flip+shift", checkpoint_seconds=0.0, **more)
        assert (tmp_path / "parts" / CHECKPOINT).exists()
    parts = trained(tmp_path / "parts", augment="flip+shift", **more)
    assert parts.expected == whole.expected
    assert parts.history.losses == whole.history.losses
    for mine, other in zip(parts.history.epochs, whole.history.epochs, strict=True):
        assert replace(mine, seconds=0.0) == replace(other, seconds=0.0)
    mine, other = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_wherever_it_is_stopped_it_ends_with_the_same_numbers(tmp_path, monkeypatch) -> None:
    options = {"augment": "flip+shift", "ema": 0.9, "method": "ste", "checkpoint_seconds": 0.0}
    whole = trained(tmp_path / "whole", **options)

    def stopping(within: str, ends: type[BaseException]):
        function, calls = getattr(Trainer, within), []

        def stopped(self, *arguments):
            calls.append(within)
            found = function(self, *arguments)
            if len(calls) == 2:
                raise ends
            return found

        return stopped

    # In the middle of a step, behind it, and in a validation; each goes on from where the one before was stopped.
    for within, ends in (("_losses", KeyboardInterrupt), ("_average", MemoryError), ("statistics", KeyboardInterrupt)):
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, within, stopping(within, ends))
            with pytest.raises(ends):
                trained(tmp_path / "parts", **options)
    parts = trained(tmp_path / "parts", **options)
    for mine, other in zip(parts.history.epochs, whole.history.epochs, strict=True):
        assert replace(mine, seconds=0.0) == replace(other, seconds=0.0)
    mine, other = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_ranges_stay_behind_a_training_that_ends_early(tmp_path) -> None:
    start, program = started(method="ste", bits=2)
    settings = TrainingSettings(**{**LITTLE, "method": "ste", "epochs": 40, "patience": 1, "rate": 0.0})
    made = TrainableNetwork(program, start.plan, start.calibration, settings.learning)
    training_, validation = start.split(settings)
    job = Job(made, start.subject.program, start.images, training_, validation, start.subject.metric, settings)
    history = Trainer(job, tmp_path, Silent()).run()
    assert history.stopped is not None
    before = [quantizer.qparams.ends for quantizer in made.quantizers]
    with torch.no_grad():
        made.train()(3 * training().tensors[0])
    for (low, high), quantizer in zip(before, made.quantizers, strict=True):
        assert torch.equal(quantizer.qparams.ends[0], low)
        assert torch.equal(quantizer.qparams.ends[1], high)


class Gated(torch.nn.Sequential):
    """A layer that is called as trained bit-widths are."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.add_module("gates", torch.nn.Conv2d(3, 8, 3))
        self.add_module("head", torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(800, 5)))


def test_the_average_is_of_all_weights_whatever_a_layer_is_called(tmp_path) -> None:
    settings = TrainingSettings(**{**LITTLE, "ema": 0.9, "epochs": 1, "rate": 0.1})
    start = ready(Gated().eval(), training(), settings, Silent())
    made = TrainableNetwork(compile_network(start.network), start.plan, start.calibration, settings.learning)
    training_, validation = start.split(settings)
    job = Job(made, start.subject.program, start.images, training_, validation, start.subject.metric, settings)
    trainer = Trainer(job, tmp_path, Silent())
    for batch in islice(trainer._batches(), 3):
        trainer._step(batch)
    now = made.state_dict()
    assert trainer.average is not None
    for name in ("layers.gates.weight", "layers.head/2.weight"):
        assert not torch.equal(trainer.average[name], now[name])


def test_a_checkpoint_of_another_training_is_refused(tmp_path) -> None:
    trained(tmp_path)
    with pytest.raises(QuantopsyError, match=r"settings differ.*--fresh"):
        trained(tmp_path, rate=0.02)
    others = {"loss": lambda outputs, _: outputs.square().mean(1), "metric": "agreement"}
    with pytest.raises(QuantopsyError, match=r"metric, loss differ.*--fresh"):
        train(network(), training(), out=tmp_path, settings=TrainingSettings(**LITTLE), **others)
    (tmp_path / CHECKPOINT).write_bytes(b"cut off")
    with pytest.raises(QuantopsyError, match="does not load"):
        trained(tmp_path)


def test_bits_learn_until_the_target_is_met(tmp_path) -> None:
    done = trained(tmp_path, target="3.5bits", bits=6, epochs=4, edge_bits=0)
    kept = done.history.epochs[done.history.best]
    assert kept.within
    assert done.average_bits <= 3.5
    assert all(2 <= bits <= 6 for bits in kept.bits.values())
    assert {site.layer: spec.bits for site, spec in done.recipe.plan.sites if site.role == "weight"} == dict(kept.bits)


def test_patience_begins_where_the_target_is_met(tmp_path) -> None:
    # Until then every epoch has fewer bits than the one before, and is no better.
    done = trained(tmp_path, target="3bits", bits=8, epochs=8, edge_bits=0, patience=1)
    assert done.history.epochs[done.history.best].within
    assert not done.history.epochs[1].within


def test_a_target_that_no_bits_meet_is_refused(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match="are the least that training can reach"):
        trained(tmp_path, target="1.5bits", bits=6)
    with pytest.raises(QuantopsyError, match="pact does not learn bits; give --method lsq or ddq"):
        trained(tmp_path, target="3bits", method="pact")
    with pytest.raises(QuantopsyError, match="one limit"):
        trained(tmp_path, target="3bits", bitops="3bits")


@pytest.mark.parametrize("method", ["lsq", "ddq"])
@pytest.mark.parametrize("edges", ["all", "inputs"])
def test_bits_of_weights_and_inputs_learn_until_operations_are_within_the_limit(tmp_path, method, edges) -> None:
    options = {"method": method, "bitops": "3bits", "bits": 5, "activation_bits": 5, "edge_bits": 0, "edges": edges}
    done = trained(tmp_path, epochs=3, **options)
    kept = done.history.epochs[done.history.best]
    assert kept.within
    specs = {(site.layer, site.role): spec for site, spec in done.recipe.plan.sites}
    layers = [layer for layer in started()[0].network.layers if layer.weight is not None]
    taken = sum(x.macs * specs[x.name, "weight"].bits * specs[x.name, "input"].bits for x in layers)
    assert done.bitops is not None
    assert done.bitops == (taken, 3 * 5 * sum(x.macs for x in layers))
    assert taken <= done.bitops[1]
    assert {x.name: specs[x.name, "input"].bits for x in layers} == dict(kept.input_bits)
    assert min(kept.input_bits.values()) < 5
    assert {specs[x.name, "input"].kind for x in layers} == {"uniform"}  # whatever runtime takes it
    worth = qp.apply(tmp_path / "recipe.json", data=evaluation())
    assert worth.after[0] == pytest.approx(done.expected.after[0])
    (text,) = [line for line in statements(done) if "BitOps" in line]
    assert "the limit is" in text
    assert "(3bits)" in text


def test_without_labels_the_float_network_teaches(tmp_path) -> None:
    unlabelled = [(x,) for x, _ in training()]
    settings = TrainingSettings(**LITTLE)
    done = train(network(), unlabelled, evaluation=[(x,) for x, _ in evaluation()], out=tmp_path, settings=settings)
    assert done.expected.metric == "agreement"
    assert done.expected.gained[0] > 0
    with pytest.raises(QuantopsyError, match="no labels and distillation is off"):
        train(
            network(), unlabelled, out=tmp_path / "none", settings=TrainingSettings(**{**LITTLE, "distillation": 0.0})
        )


def test_what_blows_up_is_named_and_the_best_state_kept(tmp_path, monkeypatch) -> None:
    step = Trainer._step

    def poisoned(self, batch):
        if self.step == 16:  # in the second epoch
            layer = self.network.layers["right/0"]
            with torch.no_grad():
                layer.weight[0, 0, 0, 0] = float("nan")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    done = trained(tmp_path)
    assert "'right.0'" in done.history.stopped
    assert "step 16" in done.history.stopped
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path).values())
    assert done.expected.after[0] >= done.expected.before[0]


def test_the_float_network_is_trained_the_same_way(tmp_path) -> None:
    done = trained(tmp_path, method="float")
    assert not done.recipe.plan.sites
    assert qp.apply(tmp_path, data=evaluation()).lost[0] == 0.0


def test_first_and_last_layer_keep_their_bits() -> None:
    found = qp.capture(network(), (torch.zeros(2, 3, 12, 12),))
    plan = usual_plan(found, TrainingSettings(bits=3, activation_bits=4))
    bits = {site.layer: spec.bits for site, spec in plan.sites if site.role == "weight"}
    assert bits == {"stem.0": 8, "depthwise.0": 3, "left": 3, "right.0": 3, "head": 8}
    override = TrainingSettings(bits=3, plan={"layers": {"le*": {"weight": {"bits": 5}, "input": None}}})
    plan = usual_plan(found, override)
    assert plan[Site("left", "weight")].bits == 5
    assert Site("left", "input") not in plan
    with pytest.raises(QuantopsyError, match="lefft"):
        usual_plan(found, TrainingSettings(plan={"layers": {"lefft": {"weight": {"bits": 5}}}}))


def test_too_few_images_to_choose_by(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match="too few to choose by"):
        train(network(), images(0, 30), out=tmp_path, settings=TrainingSettings(**LITTLE))


def two_processes() -> list[str]:
    """What starts two processes that know of each other. ``--multi_gpu`` also where ``--device`` is the processor: with
    ``--cpu`` accelerate starts one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return [
        *launch,
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)),
    ]


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command with the tests' modules at hand, one thread a process."""
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "training"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_take_the_steps_of_one(tmp_path) -> None:
    # Kept batch norms would take the moments of each process's own share, as under DDP they always do.
    options = {"bits": 5, "target": "4bits", "edge_bits": 0, "norms": "folded", "epochs": 1, "batch": 72}
    named = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--data", "learning:training", "--evaluation", "learning:evaluation", "--augment", "none"]
    command = ["--module", "quantopsy", "train", "learning:network", *data, *named, "--out", str(tmp_path / "two")]
    found = ran([*two_processes(), *command])
    assert found.returncode == 0, found.stderr[-2000:]
    settings = TrainingSettings(**options, augment="none")
    train(
        "learning:network",
        "learning:training",
        evaluation="learning:evaluation",
        out=tmp_path / "one",
        settings=settings,
    )
    mine, other = weights(tmp_path / "two"), weights(tmp_path / "one")
    start = dict(capture(network(), (torch.zeros(2, 3, 12, 12),)).tensors)
    weighted = {name: value for name, value in other.items() if value.dim() > 1}
    moved = torch.cat([(other[name] - start[name]).abs().flatten() for name in weighted])
    # Sums in another order round a few values otherwise, which then go their own way.
    apart = torch.cat([(mine[name] - other[name]).abs().flatten() for name in weighted])
    assert moved.median() > 1e-4
    assert apart.median() < 0.01 * moved.median()
    assert apart.quantile(0.95) < 0.05 * moved.median()


ONE_GETS_NAN = """
import sys, torch
from accelerate import PartialState
from learning import evaluation, network, training
from quantopsy.training import trainer
from quantopsy.training.settings import TrainingSettings
from quantopsy.training.train import train
augmented, calls = trainer.augmented, []
def poisoned(x, *rest):
    calls.append(len(x))
    x = augmented(x, *rest)
    return torch.full_like(x, float("nan")) if len(calls) == 6 and PartialState().process_index == 1 else x
trainer.augmented = poisoned
settings = TrainingSettings(bits=3, epochs=1, batch=16, augment="none", calibration_samples=32)
done = train(network(), training(), evaluation=evaluation(), out=sys.argv[1], settings=settings)
if done is not None:
    print(done.history.stopped, "processes", PartialState().num_processes)
"""


def test_no_process_waits_for_one_that_got_nan(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ONE_GETS_NAN)
    found = ran([*two_processes(), str(script), str(tmp_path / "out")])
    assert found.returncode == 0, found.stderr[-2000:]
    assert "not finite at step 5" in found.stdout
    assert found.stdout.count("processes 2") == 1  # the other one has no result


def test_a_recipe_is_analyzed_on_its_own_grids(tmp_path) -> None:
    settings = TrainingSettings(**{**LITTLE, "edge_bits": 0})
    done = train("learning:network", training(), evaluation=evaluation(), out=tmp_path / "t", settings=settings)
    study = qp.analyze(tmp_path / "t", evaluation(), bits=(2,), mode="exact", out=tmp_path / "study")
    whole = study.whole().iloc[0]
    assert whole["value"] == pytest.approx(done.expected.after[0])
    # The network's own study can be diagnosed later: the recipe is opened again.
    assert qp.diagnose(tmp_path / "study", data=evaluation(), samples=60) is not None
    other = qp.analyze(tmp_path / "t" / "network.pt2", evaluation(), bits=(2,), mode="exact", out=tmp_path / "fresh")
    assert other.whole().iloc[0]["value"] != whole["value"]  # grids estimated, not learned


class Flat(torch.nn.Sequential):
    """A batch norm behind a linear layer: an image has one value for every channel."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        body = (torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
        super().__init__(*body, torch.nn.Linear(8, 5))
        randomise_norms(self).eval()


def test_a_batch_norm_needs_two_values(tmp_path) -> None:
    settings = TrainingSettings(**{**LITTLE, "batch": 1})
    with pytest.raises(QuantopsyError, match=r"batch norm of layer '1': .*--norms folded"):
        train(Flat(), training(), out=tmp_path / "one", settings=settings)
    done = train(Flat(), training(), out=tmp_path / "folded", settings=replace(settings, norms="folded", epochs=1))
    assert done.history.stopped is None
    done = trained(tmp_path / "maps", batch=1, epochs=1, samples=100)  # a map has many values
    assert done.history.stopped is None


class TwoInputs(torch.nn.Module):
    """Tells nothing without knowing which picture is which."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        seen = torch.cat([self.left(left).relu().mean((2, 3)), self.right(right).sigmoid().mean((2, 3))], 1)
        return self.head(seen)


def test_inputs_are_taken_by_name_whatever_their_order(tmp_path) -> None:
    module = TwoInputs().eval()
    left, right = pictures(1, 120), 3 * pictures(2, 120) + 1
    with torch.no_grad():
        labels = module(left, right).argmax(1)
    data = [{"right": b, "left": a, "label": y} for a, b, y in zip(left, right, labels, strict=True)]
    settings = TrainingSettings(**{**LITTLE, "bits": 8, "epochs": 1, "rate": 1e-4})
    done = train(module, data[:80], evaluation=data[80:], out=tmp_path, settings=settings)
    assert done.history.epochs[0].value >= 87.5  # 8 images, 8 bits
    assert qp.apply(tmp_path, data=data[80:]).after[0] == done.expected.after[0] >= 90.0


@pytest.mark.parametrize("count", [1, 33])
def test_no_piece_of_the_images_that_norms_are_measured_on_is_a_single_one(tmp_path, count) -> None:
    settings = TrainingSettings(**{**LITTLE, "epochs": 1, "calibration_samples": count})
    done = train(Flat(), training(), evaluation=evaluation(), out=tmp_path, settings=settings)
    assert done.history.stopped is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_there_is_not_is_refused(tmp_path) -> None:
    with pytest.raises(QuantopsyError, match="sees no CUDA device"):
        trained(tmp_path, device="cuda")


def test_a_process_trains_with_one_precision(tmp_path) -> None:
    trained(tmp_path / "no", epochs=1)
    with pytest.raises(QuantopsyError, match=r"began with, 'cpu' and 'no'.*process of its own"):
        trained(tmp_path / "bf16", epochs=1, precision="bf16")
    assert not (tmp_path / "bf16").exists()


def test_a_model_without_weights_is_refused(tmp_path) -> None:
    bare = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
    for method in ("ddq", "float"):
        with pytest.raises(QuantopsyError, match="no layer has a weight"):
            train(bare, training(), out=tmp_path, settings=TrainingSettings(**LITTLE, method=method))


def test_one_image_to_measure_on_is_enough(tmp_path) -> None:
    settings = TrainingSettings(**{**LITTLE, "epochs": 1})
    done = train(network(), training(), evaluation=images(2, 1), out=tmp_path, settings=settings)
    assert done.expected.samples == 1
    assert qp.apply(tmp_path, data=evaluation()).after[0] > 0


def test_images_that_were_trained_on_prove_nothing(tmp_path) -> None:
    # The same images under another name: what chose the epoch is measured on its own part of them, and said so.
    again = [(x.clone(), y) for x, y in training()]
    settings = TrainingSettings(**LITTLE)
    done = train(network(), training(), evaluation=again, out=tmp_path, settings=settings)
    assert not done.held_out
    assert done.expected.samples == 24
