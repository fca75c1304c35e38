"""Metrics against torchmetrics and hand-made cases; what goes wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassJaccardIndex,
)

from quantopsy.core import QuantopsyError
from quantopsy.metrics import chance_level, is_at_chance, logits, measure, resolve_metric

LABELS = torch.arange(60) % 7
LOGITS = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)) + 1.5 * torch.eye(7)[LABELS]
MAP_LABELS = torch.randint(0, 6, (9, 5, 4), generator=torch.Generator().manual_seed(1))
MAP_LOGITS = torch.randn(9, 6, 5, 4, generator=torch.Generator().manual_seed(2))


def statistics_of(metric, outputs=LOGITS, labels=LABELS, float_outputs=None, tile=13):
    """As the engine does it: tile by tile."""
    found = resolve_metric(metric, labels is not None)
    float_outputs = outputs if float_outputs is None else float_outputs
    rows = [
        measure(
            found,
            outputs[i : i + tile],
            None if labels is None else labels[i : i + tile],
            float_outputs[i : i + tile],
        )
        for i in range(0, len(outputs), tile)
    ]
    return found, np.concatenate(rows)


@pytest.mark.parametrize("k", [1, 5])
def test_topk_agrees_with_torchmetrics(k):
    metric, rows = statistics_of(f"top{k}")
    reference = MulticlassAccuracy(7, top_k=k, average="micro")(LOGITS, LABELS)
    assert metric.value(rows) == pytest.approx(100.0 * float(reference))
    assert metric.unit == "points"


@pytest.mark.parametrize("ignore", [None, 2])
def test_miou_agrees_with_torchmetrics(ignore):
    metric, rows = statistics_of("miou" if ignore is None else f"miou:ignore={ignore}", MAP_LOGITS, MAP_LABELS, tile=4)
    reference = MulticlassJaccardIndex(6, average="macro", ignore_index=ignore)(MAP_LOGITS, MAP_LABELS)
    assert metric.value(rows) == pytest.approx(100.0 * float(reference))


def test_labels_that_are_no_class_are_left_out_of_maps():
    labels = MAP_LABELS.clone()
    labels[:, 0] = 255
    metric, rows = statistics_of("top1", MAP_LOGITS, labels)
    correct = MAP_LOGITS[:, :, 1:].argmax(1) == labels[:, 1:]
    assert metric.value(rows) == pytest.approx(100.0 * float(correct.double().mean()))
    miou, rows = statistics_of("miou", MAP_LOGITS, labels)
    cropped, expected = statistics_of("miou", MAP_LOGITS[:, :, 1:], labels[:, 1:])
    assert miou.value(rows) == pytest.approx(cropped.value(expected))


def test_agreement_is_the_share_decided_as_by_the_float_network():
    changed = LOGITS.clone()
    changed[:6] = -changed[:6]
    metric, rows = statistics_of(None, changed, None, LOGITS)
    assert metric.name == "agreement"
    assert metric.value(rows) == pytest.approx(90.0)
    metric, rows = statistics_of("agreement", MAP_LOGITS, None, MAP_LOGITS.flip(0))
    same = MAP_LOGITS.argmax(1) == MAP_LOGITS.flip(0).argmax(1)
    assert metric.value(rows) == pytest.approx(100.0 * float(same.double().mean()))


TORCHMETRICS = {
    "sum": MulticlassAccuracy(7, average="macro"),
    "f1": MulticlassF1Score(7, average="weighted"),
    "confusion": torchmetrics.CohenKappa(task="multiclass", num_classes=7),
    "concatenated": MulticlassAUROC(7),
    "binned": MulticlassAUROC(7, thresholds=20),
    "lists": MulticlassCalibrationError(7),
}


@pytest.mark.parametrize("reference", TORCHMETRICS.values(), ids=TORCHMETRICS)
def test_torchmetrics_of_stored_rows_equal_torchmetrics_of_all_data(reference):
    metric, rows = statistics_of(reference)
    fresh = reference.clone()
    assert metric.value(rows) == pytest.approx(float(fresh(LOGITS, LABELS)), abs=1e-5)
    counts = np.random.default_rng(0).integers(0, 3, len(rows))
    picked = np.repeat(np.arange(len(rows)), counts)
    fresh.reset()
    expected = float(fresh(LOGITS[picked], LABELS[picked]))
    assert metric.value(rows, counts) == pytest.approx(expected, abs=1e-5)


def test_torchmetrics_of_regression():
    x, y = torch.randn(2, 20, generator=torch.Generator().manual_seed(3))
    reference = torchmetrics.MeanSquaredError()
    metric, rows = statistics_of(reference, x, y)
    assert metric.value(rows) == pytest.approx(float(reference(x, y)), abs=1e-6)
    assert not metric.higher_is_better


def test_a_function_may_say_that_lower_is_better():
    def error(outputs, labels):
        return (outputs.argmax(1) != labels).double()

    assert resolve_metric(error, True).higher_is_better
    error.higher_is_better = False
    assert not resolve_metric(error, True).higher_is_better


def test_rows_from_a_study_need_no_image_to_be_merged():
    _, rows = statistics_of(MulticlassAUROC(7))
    fresh = resolve_metric(MulticlassAUROC(7), True)
    assert fresh.value(rows) == pytest.approx(float(MulticlassAUROC(7)(LOGITS, LABELS)))


def test_fractional_weights_scale_sums_and_are_refused_where_rows_must_be_repeated():
    metric, rows = statistics_of(MulticlassAccuracy(7, average="micro"))
    weights = np.random.default_rng(1).random(len(rows))
    hit = (LOGITS.argmax(1) == LABELS).numpy()
    assert metric.value(rows, weights) == pytest.approx(float(weights @ hit / weights.sum()))
    metric, rows = statistics_of(MulticlassAUROC(7))
    with pytest.raises(QuantopsyError, match="fractions"):
        metric.value(rows, weights)


def test_the_users_torchmetric_is_left_as_it_was():
    reference = MulticlassAccuracy(7, average="micro")
    reference.update(LOGITS[:10], LABELS[:10])
    before = {name: state.clone() for name, state in reference.metric_state.items()}
    statistics_of(reference)
    assert all(torch.equal(before[name], state) for name, state in reference.metric_state.items())


@pytest.mark.parametrize("name", ["top1", "agreement"])
def test_values_of_many_weightings_equal_those_one_by_one(name):
    metric, rows = statistics_of(name)
    weights = np.random.default_rng(2).integers(0, 4, (5, len(rows))).astype(float)
    assert metric.values(rows, weights) == pytest.approx([metric.value(rows, w) for w in weights])


def test_a_function_of_outputs_and_labels_scores_images():
    def margin(outputs, labels):
        return outputs["scores"].gather(1, labels[:, None])[:, 0]

    metric = resolve_metric(margin, True)
    rows = measure(metric, {"scores": LOGITS}, LABELS, {"scores": LOGITS})
    assert metric.name == "margin"
    assert metric.value(rows) == pytest.approx(float(LOGITS[torch.arange(60), LABELS].double().mean()), rel=1e-6)


def test_metrics_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(
        "from torchmetrics.classification import MulticlassAccuracy\n"
        "def first(outputs, labels): return outputs[:, 0]\n"
        "def accuracy(): return MulticlassAccuracy(7)\n"
        "def broken(): raise RuntimeError('no such table')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert resolve_metric("my_metrics:first", True).name == "first"
    assert resolve_metric("my_metrics:accuracy", True).name == "MulticlassAccuracy"
    for name, said in {
        "my_metrics:acuracy": "accuracy",
        "my_metrics:broken": "no such table",
        "my_metrics:number": "no metric",
        "not_a_module:first": "not_a_module",
    }.items():
        with pytest.raises(QuantopsyError, match=said):
            resolve_metric(name, True)


def test_unknown_names_get_the_nearest_ones():
    with pytest.raises(QuantopsyError, match="top1"):
        resolve_metric("top-1", True)
    with pytest.raises(QuantopsyError, match="is no metric"):
        resolve_metric(3, True)
    with pytest.raises(QuantopsyError, match="needs labels"):
        resolve_metric("top1", False)


def test_a_label_that_is_no_class_names_image_and_label():
    labels = LABELS.clone()
    labels[4] = 7
    with pytest.raises(QuantopsyError, match=r"picture 4: its label is 7 .* 0 to 6"):
        measure(resolve_metric("top1", True), LOGITS, labels, LOGITS, "picture {}".format)


def all_nan(outputs, labels):
    return torch.full((len(outputs),), float("nan"))


def too_few(outputs, labels):
    return outputs.mean()


def raises(outputs, labels):
    raise ValueError("cannot\nbe")


@pytest.mark.parametrize(
    ("metric", "outputs", "labels", "said"),
    [
        (all_nan, LOGITS, LABELS, "NaN or infinite for image 0"),
        (too_few, LOGITS, LABELS, "one score per image"),
        (raises, LOGITS, LABELS, "'raises': it failed .ValueError: cannot be"),
        (MulticlassAccuracy(5), LOGITS, LABELS, "'MulticlassAccuracy': it failed"),
        ("top5", LOGITS[:, :4], LABELS % 4, "use top1"),
        ("top1", LOGITS[:, :1], LABELS * 0, "compares classes"),
        ("top1", LOGITS, MAP_LABELS, "integer labels of shape"),
        ("miou", LOGITS, LABELS, "no map"),
        ("top1", MAP_LOGITS, torch.full_like(MAP_LABELS, 255), "image 0"),
    ],
)
def test_what_fails_is_named_in_one_line(metric, outputs, labels, said):
    with pytest.raises(QuantopsyError, match=said) as caught:
        measure(resolve_metric(metric, True), outputs, labels, outputs)
    assert "\n" not in str(caught.value)


def test_a_torchmetric_without_a_single_value_says_how_to_get_one():
    metric, rows = statistics_of(MulticlassAccuracy(7, average="none"))
    with pytest.raises(QuantopsyError, match="not one number"):
        metric.value(rows)


def test_torchmetrics_that_no_stored_row_can_give_are_refused():
    with pytest.raises(QuantopsyError, match="mean_x"):
        resolve_metric(torchmetrics.PearsonCorrCoef(), True)
    with pytest.raises(QuantopsyError, match="no state"):
        resolve_metric(MulticlassAccuracy(7, average="micro") + 1.0, True)
    metric, rows = statistics_of(BinaryAUROC())
    with pytest.raises(QuantopsyError, match="'BinaryAUROC': it failed"):
        metric.value(rows)


class Extremes(torchmetrics.Metric):
    """Range of the labels plus their mean: a state of each kind that the others lack."""

    def __init__(self):
        super().__init__()
        self.add_state("most", torch.tensor(-1e9), dist_reduce_fx="max")
        self.add_state("least", torch.tensor(1e9), dist_reduce_fx="min")
        self.add_state("middle", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, preds, target):
        self.most, self.least = target.max().float(), target.min().float()
        self.middle = target.float().mean()

    def compute(self):
        return self.most - self.least + self.middle


def test_extremes_and_means_merge_over_the_images_that_count():
    metric, rows = statistics_of(Extremes())
    weights = np.zeros(len(rows))
    weights[[2, 5]] = 0.5, 1.5
    assert metric.value(rows, weights) == pytest.approx((5 - 2) + (0.5 * 2 + 1.5 * 5) / 2.0)


def test_an_undefined_value_is_said_to_be():
    with pytest.raises(QuantopsyError, match="over 3 images is nan"):
        resolve_metric("top1", True).value(np.full((3, 1), np.nan))


def test_logits_are_the_first_tensor():
    assert logits({"out": [LOGITS, LABELS]}) is LOGITS
    with pytest.raises(QuantopsyError, match="no tensor"):
        logits({"out": 3})


def test_guessing_is_told_from_knowing():
    metric = resolve_metric("top1", True)
    assert chance_level(metric, 7) == pytest.approx(100.0 / 7.0)
    assert chance_level(resolve_metric("miou", True), 7) is None
    assert is_at_chance(metric, np.repeat([1.0, 0.0], [9, 51])[:, None], 7)
    assert not is_at_chance(metric, np.repeat([1.0, 0.0], [30, 30])[:, None], 7)
