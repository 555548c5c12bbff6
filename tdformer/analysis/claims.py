"""Judges the paper's claims by the runs of a study, seed by seed.

A claim is a number of each run and the sign that the paper expects. Some compare a setting with a top-down path to one without; others
compare two numbers of the same network. Each verdict rests on the paired t interval over seeds:

  confirmed here       the whole interval has the expected sign
  opposite             the whole interval has the other sign
  not confirmed here   the interval holds zero
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tdformer.runs.paired import Paired, paired
from tdformer.runs.study import BySeed, StudyResult
from tdformer.runs.study_records import StudyRecord

Verdict = Literal["confirmed here", "not confirmed here", "opposite"]
TOP1, TOP1_FIRST = "val/top1", "val/top1_segment1"
HARDLY = 2.0
"""The paper's own numbers grow by 0.1 to 0.5 percent. A growth of energy by less than this many percent counts as hardly any
[our choice]."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper as a number of a run."""

    name: str
    text: str
    """What the paper says, in a sentence."""
    place: str
    """The table, figure or section in which the paper says it."""
    quantity: str
    """What is measured, with its unit."""
    measure: Callable[[StudyRecord], float | None]
    """Returns None for a run that does not have it."""
    sign: Literal[1, -1]
    """The sign of the difference that the claim expects."""
    is_within: bool = False
    """True if the number is a difference within one network, and not compared with a setting without a top-down path."""
    margin: float = 0.0
    """The claim is about the difference minus this."""


@dataclass(frozen=True)
class Judgement:
    """A claim judged by one setting, or by one setting against another."""

    claim: Claim
    setting: str
    against: str | None
    """The setting without a top-down path. None for a claim about one network."""
    difference: Paired
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        claim = self.claim
        said = {"claim": claim.name, "text": claim.text, "paper": claim.place, "quantity": claim.quantity}
        return {**said, "setting": self.setting, "against": self.against, **vars(self.difference), "verdict": self.verdict}


CLAIM_COLUMNS = ("claim and what is measured", "setting", "against", "difference", "95 % interval", "verdict")


def claim_row(judgement: Judgement) -> list[str]:
    """Return a judgement as texts, for CLAIM_COLUMNS."""
    claim, difference = judgement.claim, judgement.difference
    return [
        f"{claim.text} ({claim.place}): {claim.quantity}",
        judgement.setting,
        judgement.against or "itself",
        f"{difference.mean:+.3g}",
        f"{difference.t_low:+.3g} to {difference.t_high:+.3g}",
        judgement.verdict,
    ]


def judge(result: StudyResult, with_feedback: dict[str, bool]) -> list[Judgement]:
    """Judge every claim for which at least two seeds have the numbers. with_feedback: whether each setting has a top-down path."""
    own = [name for name, has_feedback in with_feedback.items() if has_feedback]
    others = [name for name, has_feedback in with_feedback.items() if not has_feedback]
    return [
        judgement
        for claim in CLAIMS
        for setting in own
        for judgement in _judgements(claim, setting, [None] if claim.is_within else others, result.records)
    ]


def _judgements(claim: Claim, setting: str, others: list[Any], records: dict[str, BySeed]) -> Iterator[Judgement]:
    values = _values(claim, records[setting])
    for other in others:
        against = dict.fromkeys(values, 0.0) if other is None else _values(claim, records[other])
        if (difference := paired(values, against)) is not None:
            yield Judgement(claim, setting, other, difference, _verdict(difference, claim))


def _values(claim: Claim, records: BySeed) -> dict[int, float]:
    return {seed: value for seed, record in records.items() if (value := claim.measure(record)) is not None}


def _verdict(difference: Paired, claim: Claim) -> Verdict:
    low, high = sorted(claim.sign * (end - claim.margin) for end in (difference.t_low, difference.t_high))
    return "confirmed here" if low > 0 else "opposite" if high < 0 else "not confirmed here"


# --- numbers of a run --------------------------------------------------------------------------------------------


def _of_analysis(*keys: str) -> Callable[[StudyRecord], Any]:
    """Return a function that looks up a number in the analysis of a run, or None where it is lacking."""

    def look(record: StudyRecord) -> Any:
        found: Any = record.analysis
        for key in keys:
            if not isinstance(found, dict) or key not in found:
                return None
            found = found[key]
        return found

    return look


def _second_pass(record: StudyRecord) -> float | None:
    last, first = record.last(TOP1), record.last(TOP1_FIRST)
    return None if last is None or first is None else last - first


def _information(estimator: str) -> Callable[[StudyRecord], float | None]:
    look = _of_analysis("mutual_information")

    def measure(record: StudyRecord) -> float | None:
        stages = look(record)
        return stages[max(stages)][estimator]["mean"]["value"] if stages else None

    return measure


def _early_gradient(way: str) -> Callable[[StudyRecord], float | None]:
    """Return a function for the share, in percent, that the time steps before the last segment have in the gradient of the last stage."""
    norms_of = _of_analysis("time_gradients", "norms", way)

    def measure(record: StudyRecord) -> float | None:
        norms, segments = norms_of(record), record.config.get("model.segments")
        if not norms or not segments or segments < 2:
            return None
        of_last_stage = norms[max(norms)]
        early = of_last_stage[: len(of_last_stage) - len(of_last_stage) // segments]
        return 100 * sum(early) / sum(of_last_stage) if sum(of_last_stage) else None

    return measure


def _difference(first: Callable[[StudyRecord], Any], second: Callable[[StudyRecord], Any]) -> Callable[[StudyRecord], float | None]:
    def measure(record: StudyRecord) -> float | None:
        one, two = first(record), second(record)
        return None if one is None or two is None else one - two

    return measure


def _percent(measure: Callable[[StudyRecord], Any]) -> Callable[[StudyRecord], float | None]:
    def scaled(record: StudyRecord) -> float | None:
        value = measure(record)
        return None if value is None else 100 * value

    return scaled


def _loss_of_accuracy(replacement: str) -> Callable[[StudyRecord], float | None]:
    change = _of_analysis("topdown_use", "answers", replacement, "change")
    return lambda record: None if change(record) is None else -change(record)


def _moved(kind: str, corrupted: bool) -> Callable[[StudyRecord], float | None]:
    """Return a function for how many points of attention the last pass has more on the object than the first pass."""
    look = _of_analysis("attention_maps", "focus")

    def measure(record: StudyRecord) -> float | None:
        columns = look(record) or {}
        changes = [kinds[kind]["change"] for name, kinds in columns.items() if (name != "clean") == corrupted]
        found = [100 * change["value"] for change in changes if change]
        return statistics.fmean(found) if found else None

    return measure


def _log_energy(convention: str) -> Callable[[StudyRecord], float | None]:
    """Return a function for 100 ln(mJ): differences of it are percent, nearly."""
    look = _of_analysis("energy", convention)
    return lambda record: 100 * math.log(look(record)) if look(record) else None


ALIVE = "The clamp keeps surrogate gradients of the attention alive."
OBJECT = "In the second pass attention moves to the object."
INFORMATION = "Feedback raises the mutual information of features between time steps."
GRADIENTS = "Feedback keeps gradients alive along time."
ENERGY = "Feedback hardly costs energy."
CONTENT = "The content of the top-down signal matters."

ROBUSTNESS = _of_analysis("corruptions", "mean_error")
DEAD_CLAMPED, DEAD_FREE = (_percent(_of_analysis("surrogates", which, "dead")) for which in ("clamped", "unclamped"))

CLAIMS: tuple[Claim, ...] = (
    Claim("accuracy", "Feedback raises accuracy.", "tables 1 to 5", "top-1, points", lambda record: record.last(TOP1), 1),
    Claim("second_pass", "The second pass knows better.", "section 4", "top-1, last minus first pass, points", _second_pass, 1, True),
    Claim("content_none", CONTENT, "section 4", "top-1 lost without S_td, points", _loss_of_accuracy("none"), 1, True),
    Claim(
        "content_class",
        CONTENT,
        "section 4",
        "top-1 lost with S_td of another class, points",
        _loss_of_accuracy("of another class"),
        1,
        True,
    ),
    *(
        Claim(f"information_{name}", INFORMATION, "figure 1", f"last stage, {what}, bits", _information(name), 1)
        for name, what in (("spikes", "spikes by counts"), ("gaussian", "canonical correlations"), ("ksg", "nearest neighbours"))
    ),
    Claim(
        "gradients_own",
        GRADIENTS,
        "theorem 4.3",
        "share of earlier passes in |dL/dH|, with minus without the way through feedback, points",
        _difference(_early_gradient("with feedback"), _early_gradient("without feedback")),
        1,
        True,
    ),
    Claim(
        "clamp",
        ALIVE,
        "figure 3",
        "dead neurons with minus without the clamp, points",
        _difference(DEAD_CLAMPED, DEAD_FREE),
        -1,
        True,
    ),
    *(
        Claim(
            f"attention_{kind}_{'corrupted' if corrupted else 'clean'}",
            OBJECT,
            "figures 4, 5",
            f"{'corrupted' if corrupted else 'clean'} images, {what}, last minus first pass, points",
            _moved(kind, corrupted),
            1,
            True,
        )
        for kind, what in (("rate", "spike rate"), ("gradient", "Grad-CAM"))
        for corrupted in (False, True)
    ),
    Claim(
        "robustness",
        "Feedback makes robust.",
        "table 7",
        "error on corrupted images, points",
        _of_analysis("corruptions", "mean_error"),
        -1,
    ),
    *(
        Claim(f"energy_{name}", ENERGY, "section 5", f"mJ, {what}, percent", _log_energy(f"{name}_mj"), -1, margin=HARDLY)
        for name, what in (("paper", "the paper's convention"), ("strict", "strict convention"))
    ),
)
