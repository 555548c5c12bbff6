"""Compares a run with its reference curve after each evaluation, and warns when it stays below."""

from __future__ import annotations

from collections.abc import Iterable

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.reference_curves.curve import TOP1, Curve
from tdformer.reference_curves.reference import find_reference
from tdformer.rundir.metrics_file import MetricsFile
from tdformer.rundir.run_dir import RunDir

MARGIN = 2.0
"""Points of top-1 accuracy by which a run may be below the reference [our choice]."""
SHIFT = 2
"""Epochs by which a run may be behind or ahead [our choice]. Early in training, one epoch is many points."""
IN_A_ROW = 3
"""Evaluations below both bounds after which the run warns. It warns again after twice as many, four times as many, and so on."""


class ReferenceWatch:
    """Holds a reference curve, and counts the evaluations in a row that are below it.

    earlier: epoch and top-1 of the evaluations that the run has had already, in their order.
    """

    def __init__(self, curve: Curve, config: RunConfig, earlier: Iterable[tuple[int, float]] = ()) -> None:
        self.curve, self._config, self._below = curve, config, 0
        for epoch, top1 in earlier:
            self.warning(epoch, top1)

    def announcement(self) -> str:
        """Return a sentence for the start of the run: what it is compared with."""
        of_reference, own = 1 + max(self.curve.column(TOP1)), self._config.training.epochs
        lengths = "" if of_reference == own else f"; it has {of_reference} epochs and this run {own}, compared epoch by epoch"
        return f"compared with the reference {self.curve.name}, which ends at top-1 {self.curve.top1_after(of_reference):.2f} %{lengths}"

    def points(self) -> list[tuple[int, float]]:
        """Return the reference's top-1 after each number of epochs that this run may come to."""
        return [(epoch + 1, top1) for epoch, top1 in self.curve.column(TOP1).items() if epoch < self._config.training.epochs]

    def text(self, epoch: int, top1: float) -> str:
        """Return the reference's accuracy after as many epochs, and the difference to it. The text is empty if the curve does not say."""
        reference = self.curve.top1_after(epoch)
        return "" if reference is None else f"  (reference {reference:.2f} %, {top1 - reference:+.2f})"

    def warning(self, epoch: int, top1: float) -> str | None:
        """Count an evaluation. Return a sentence if the run has been below its corridor so often that it is time to look."""
        near = [value for other in range(epoch - SHIFT, epoch + SHIFT + 1) if (value := self.curve.top1_after(other)) is not None]
        reference = self.curve.top1_after(epoch)
        if reference is None:
            return None
        self._below = self._below + 1 if top1 < min(near) - MARGIN else 0
        times, rest = divmod(self._below, IN_A_ROW)
        if rest or not times or times & (times - 1):  # 1, 2, 4, 8, … times IN_A_ROW
            return None
        return (
            f"warning: for {self._below} evaluations the run has been below its reference, now by {reference - top1:.1f} points. "
            f"{_causes(self._config)}"
        )


def watch_of(config: RunConfig, run_dir: RunDir, begun: bool) -> tuple[ReferenceWatch | None, str | None]:
    """Return the watch that training.reference asks for, and a sentence for the start of the run. Without a reference both are None.

    Raises UserError if there is no such reference. A run that has begun goes on without it, since its absence changes no result.
    """
    if config.training.reference is None:
        return None, None
    try:
        curve = find_reference(config.training.reference)
    except UserError as error:
        if begun:
            return None, f"warning: the run goes on without its reference: {error}"
        raise
    rows = MetricsFile(run_dir.metrics).rows()
    watch = ReferenceWatch(curve, config, [(int(row["epoch"]), row["val/top1"]) for row in rows if "val/top1" in row])
    return watch, watch.announcement()


def _causes(config: RunConfig) -> str:
    """Return the usual causes with this run's values, in the order in which to look at them."""
    training, data = config.training, config.data
    causes = (
        f"training.global_batch ({training.global_batch}) and training.micro_batch ({training.micro_batch})",
        f"the peak learning rate ({config.learning_rate():.3g})",
        f"training.precision ({training.precision})",
        f"data.shuffle ({data.shuffle}) and data.augment",
        f"model.time_steps ({config.model.time_steps})",
    )
    return f"Compare with its recipe, in this order: {'; '.join(causes)}."
