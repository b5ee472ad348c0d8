"""Submit the outputs of an ensemble: it predicts and fuses the test images first.

Data flow: workflows.ensemble -> workflows.submit.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.inference import submission
from pipeline.workflows import ensemble
from pipeline.workflows.submit import Submission, checked_and_packed, require_place


def submit_ensemble(
    spec: Path,
    test_dir: Path,
    out: Path = Path("submission.zip"),
    format: str = "tiff-zip",  # noqa: A002 - the option's name
    *,
    work: Path | None = None,
    device: str = "auto",
) -> Submission:
    """Predict the test images with an ensemble, then submit its outputs.

    Args:
        spec: an ``ensembles/NAME.yaml``.
        test_dir: folder of the test images.
        out: file to write; an older submission is replaced.
        format: as for :func:`~pipeline.write_submission`.
        work: folder for the ensemble's outputs; None: ``<out without suffix>_predictions``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        The submission that was written.

    Raises:
        UserError: as :func:`~pipeline.write_submission` and the ensemble do; an image that the
            ensemble failed for is a missing prediction.
    """
    require_place(out, format)
    submission.require_replaceable(out)  # before hours of prediction
    folder = work or out.with_name(f"{out.stem}_predictions")
    ensemble.ensemble(ensemble.load_spec(spec), folder, inputs=(test_dir,), device=device)
    return checked_and_packed(folder, test_dir, out, format)
