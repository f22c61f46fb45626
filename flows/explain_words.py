"""A chosen sample in words: the long account for the terminal, the few words under a picture; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curate.catalog.boxes import parse_boxes
from curate.catalog.models import FeedbackRow, Sample, SelectedRow, SelectionRole
from curate.catalog.verdicts import score_prediction
from curate.contracts.prediction import ClassificationPrediction, DetectedBox, DetectionPrediction, Prediction
from curate.selection.explain import PARTS
from flows.explain import Account

SHOWN_DIGITS = 12
NOTHING = "nothing"


def tell_account(account: Account) -> list[tuple[str, list[str]]]:
    """Return the account as headings with sentences."""
    sections = [
        ("What it is", _what(account)),
        ("Why the device kept it", _kept(account.sample)),
        ("Why it was chosen", _chosen(account)),
        ("What its score is made of", _parts(account.row)),
        ("What came of it", _outcome(account)),
    ]
    return [(heading, lines) for heading, lines in sections if lines]


def few_words(row: SelectedRow) -> str:
    """Return the reason in a few words; how often it was seen and what is labelled near it stand beside them."""
    if row.role is SelectionRole.AUDIT:
        stands = "" if not row.inclusion_probability else f", for {1 / row.inclusion_probability:,.0f} frames"
        return f"drawn at random{stands}"
    if row.role is SelectionRole.CONTESTED:
        return "two models differ"
    words = [f"objected {row.parts['evidence']:.2f}"] if row.parts.get("evidence") else []
    if "model" in row.parts:
        words.append(f"unsure {row.parts['model']:.2f}")
    return " · ".join(words) if row.parts else "; ".join(row.reasons)


def say_prediction(prediction: Prediction | None, class_names: Sequence[str]) -> str:
    """Return what a model said, short: a class with its probability, or the boxes it showed."""
    if isinstance(prediction, DetectionPrediction):
        return _count(_class_name(box, class_names) for box in prediction.shown_boxes)
    if isinstance(prediction, ClassificationPrediction):
        return f"{_name(class_names, prediction.class_index)} {max(prediction.probabilities):.0%}"
    return "no answer"


def say_label(label: Mapping[str, Any] | None) -> str | None:
    """Return what people settled on, short; None while they have not."""
    if label is None:
        return None
    return _count(box.class_name for box in parse_boxes(label)) if "boxes" in label else str(label.get("class"))


def agrees(sample: Sample, label: Mapping[str, Any] | None, class_names: tuple[str, ...]) -> bool | None:
    """Whether people settled on what the device had answered, None where one of the two is not there."""
    if sample.prediction is None or label is None:
        return None
    return score_prediction(sample.prediction, label, class_names) >= 1.0


def _what(account: Account) -> list[str]:
    sample = account.sample
    when = sample.captured_at.strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"Frame {sample.frame_index} of camera {sample.camera_id} on {sample.device_id}, {when} UTC."]
    if sample.prediction is not None:
        said = say_prediction(sample.prediction, account.class_names)
        lines.append(f"{sample.release_id} answered: {said}{_runner_up(sample.prediction, account.class_names)}.")
    return lines + [_say_verdict(each) for each in account.feedback]


def _kept(sample: Sample) -> list[str]:
    if not sample.arms:
        return []
    lines = [f"Kept by: {', '.join(sample.arms)}. {'; '.join(sample.reasons).capitalize()}".rstrip(". ") + "."]
    if sample.random_probability is not None:
        lines.append(f"The random arm keeps any frame with probability {sample.random_probability:g}.")
    return [*lines, f"A frame like this one is kept with probability {sample.inclusion_probability:.3g}."]


def _chosen(account: Account) -> list[str]:
    row = account.row
    lines = [f"Round {row.round_number}, rank {row.rank} of {account.chosen}: {_purpose(row)}."]
    lines += [f"{reason[:1].upper()}{reason[1:]}." for reason in row.reasons]
    if row.inclusion_probability:
        stands = 1 / row.inclusion_probability
        lines.append(f"Drawn with probability {row.inclusion_probability:.3g}: stands for {stands:,.0f} frames.")
    if row.stands_for > 1 or row.cell is not None:
        cell = "" if row.cell is None else f", in cell {row.cell} of the pool"
        lines.append(f"Stands for {row.stands_for} capture(s) of one sight (number {row.cluster}{cell}).")
    if row.nearest_id is not None and row.nearest_cosine is not None:
        label = say_label(account.nearest_label)
        lines.append(
            f"Closest training label: {row.nearest_id} at cosine {row.nearest_cosine:.3f}"
            f"{'' if label is None else f', labelled {label}'}."
        )
    if row.policy_digest is not None:
        same = "the one in force" if row.policy_digest == account.policy_digest else "no longer in force"
        lines.append(
            f"Selection policy {'; '.join((f'{row.policy_digest[:SHOWN_DIGITS]}, {same}', *account.policy_changes))}."
        )
    return lines


def _parts(row: SelectedRow) -> list[str]:
    lines = [f"{name} {row.parts[name]:.3f}: {meaning}" for name, meaning in PARTS.items() if name in row.parts]
    if row.role is SelectionRole.ACTIVE and not row.explored:
        lines.append(f"utility {row.utility:.4g}: what choosing it added, given all that were chosen before it")
    return lines


def _outcome(account: Account) -> list[str]:
    label, task = account.label, account.task
    if label is None:
        sent = task is not None and task.backend_task_id is not None
        where = f"asked as task {task.backend_task_id}" if task is not None and sent else "not sent yet"
        return [f"Nobody has settled what it is: {account.sample.status}, {where}."]
    right = agrees(account.sample, label, account.class_names)
    verdict = {None: "", True: " The device was right.", False: " The device was wrong."}[right]
    return [f"People settled on: {say_label(label)}.{verdict}"]


def _purpose(row: SelectedRow) -> str:
    if row.role is SelectionRole.AUDIT:
        return "to measure the field; no model is taught with it"
    if row.role is SelectionRole.CONTESTED:
        return "to settle whether the candidate is better; it teaches from the next round on"
    return "to teach, drawn at random among the distinct sights" if row.explored else "to teach, chosen by the policy"


def _runner_up(prediction: Prediction, class_names: Sequence[str]) -> str:
    if not isinstance(prediction, ClassificationPrediction):
        return ""
    ranked = sorted(enumerate(prediction.probabilities), key=lambda each: -each[1])
    index, probability = ranked[1]
    return f", then {_name(class_names, index)} {probability:.0%}"


def _say_verdict(row: FeedbackRow) -> str:
    said = f"A person {row.verdict} the answer"
    why = f" ({row.reason.replace('_', ' ')})" if row.reason else ""
    what = f", saying {row.label}" if row.label else ""
    return f"{said}{why}{what}{'; it came in a flood and does not count' if row.quarantined else ''}."


def _class_name(box: DetectedBox, class_names: Sequence[str]) -> str:
    return _name(class_names, box.class_index)


def _name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if index < len(class_names) else f"class {index}"


def _count(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.most_common()) or NOTHING
