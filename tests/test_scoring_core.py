"""One case has one score, whichever door it came in by: files, the store, candidates of tuning,
arrays.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from tiles import soft_of

import pipeline as pl
from pipeline import config as configs
from pipeline import files
from pipeline.config import Change, Config, ConfigError
from pipeline.data import cache, change, normalise
from pipeline.data.cache import CachedCase
from pipeline.files import FileError
from pipeline.inference import soft as softs
from pipeline.metrics import METRICS, MetricEntry, better, units
from pipeline.metrics.counts import Counts, Pooling
from pipeline.metrics.image import intensities
from pipeline.records import Case, NamedOptions, UserError
from pipeline.scoring import core, folder, held_out, memory, worlds
from pipeline.scoring.cached import Scoring, rules_of
from pipeline.scoring.core import CaseArrays, Rules, Scores
from pipeline.scoring.pairs import Pair, Reading
from pipeline.scoring.patches import PatchRules, PatchScores, measure
from pipeline.tuning import trials
from pipeline.tuning.search import Candidate
from pipeline.tuning.trials import CaseFiles, Measure, ScoringTask
from pipeline.workflows import checks

FEW = settings(max_examples=25)
SIZE = (9, 11)
SPACING = (0.5, 2.0)
LABEL_METRICS = [
    "dice",
    "iou",
    "accuracy",
    "specificity",
    "surface_dice",
    "hd95",
    "voi",
    "components",
]


@dataclass(frozen=True)
class Drawn:
    """A case of labels and the number of classes; ``ignore`` is the class after the last."""

    answer: np.ndarray
    target: np.ndarray
    fov: np.ndarray | None
    classes: int
    ignore: int | None


@st.composite
def cases(draw: st.DrawFn) -> Drawn:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number, has_ignore, has_fov = draw(st.integers(2, 4)), draw(st.booleans()), draw(st.booleans())
    answer, target = (
        np.kron(rng.integers(0, number, (3, 4)), np.ones((3, 3)))[: SIZE[0], : SIZE[1]].astype(
            np.uint8
        )
        for _ in range(2)
    )
    target[:, 0] = number - 1  # the largest class occurs
    if has_ignore:
        target[rng.random(SIZE) < 0.2] = number
    fov = (rng.random(SIZE) < 0.7).astype(np.uint8) if has_fov else None
    if fov is not None:
        fov[0] = 1
    return Drawn(
        answer=answer, target=target, fov=fov, classes=number, ignore=number if has_ignore else None
    )


def label_config(drawn: Drawn, metrics: list[Any]) -> Config:
    folders = {"image": "i", "label": "l"} | ({} if drawn.fov is None else {"fov": "f"})
    data = {
        "dims": 2,
        "layout": "folders",
        "folders": folders,
        "classes": drawn.classes,
        "ignore_label": drawn.ignore,
    }
    data["patch"] = {"size": [16, 16], "foreground": None}
    data["frames"] = {} if drawn.fov is None else {"fov": "fov", "padded": [12, 12]}
    whole = {
        "name": "t",
        "task": "labels",
        "data": data,
        "network": "unet",
        "losses": ["dice"],
        "metrics": metrics,
    }
    return configs.from_dict(whole)


def probabilities(drawn: Drawn) -> np.ndarray:
    """A soft answer ``(K, *S)`` that is decided as the answer."""
    if drawn.classes == 2:
        return np.where(drawn.answer == 1, 0.75, 0.25).astype(np.float32)[None]
    return np.stack([np.where(drawn.answer == c, 0.7, 0.1) for c in range(drawn.classes)]).astype(
        np.float32
    )


def stored_case(
    root: Path,
    image: np.ndarray,
    targets: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray] | None = None,
) -> CachedCase:
    """A case as the store has it, without the files that it was made from."""
    volumes = {
        name: cache.save(root / "store" / f"{name}.npy", array)
        for name, array in {"image": image, **targets}.items()
    }
    return CachedCase(
        case=Case(id="a", image=()),
        image=volumes.pop("image"),
        targets=volumes,
        scale=normalise.IntensityScale(low=(0.0,) * len(image), high=(255.0,) * len(image)),
        properties=None,  # type: ignore[arg-type] - nobody reads it here
        maps={
            name: cache.save(root / "store" / f"map_{name}.npy", array)
            for name, array in (maps or {}).items()
        },
    )


def write_labels(root: Path, drawn: Drawn) -> dict[str, Path]:
    arrays = {"answer": drawn.answer, "target": drawn.target, "fov": drawn.fov}
    places = {name: root / name / "a.tif" for name, array in arrays.items() if array is not None}
    for name, path in places.items():
        files.write(path, arrays[name], dims=2)
    return places


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in scores.items() if not isinstance(v, Mapping)}


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal names and equal bits, NaN being NaN."""
    return list(one) == list(other) and all(
        np.array_equal(one[k], other[k], equal_nan=True) for k in one
    )


def by_files(root: Path, drawn: Drawn, config: Config, spacing: tuple[float, ...] | None) -> Scores:
    places = write_labels(root, drawn)
    rules, where = (
        rules_of(config),
        {"prediction": places["answer"], "label": places["target"], "fov": places.get("fov")},
    )
    row = folder.score(Pair(id="a", rules=rules, reading=Reading(dims=2), spacing=spacing, **where))
    assert not isinstance(row, str), row
    return numbers(row.scores)


def by_store(root: Path, drawn: Drawn, config: Config, spacing: tuple[float, ...] | None) -> Scores:
    targets = {"label": drawn.target} | ({} if drawn.fov is None else {"fov": drawn.fov})
    case = stored_case(
        root, np.zeros((1, *SIZE), np.uint8), {k: v[None] for k, v in targets.items()}
    )
    scoring = Scoring(spacings={} if spacing is None else {"a": spacing})
    return numbers(
        held_out.score(config, soft_of(config, probabilities(drawn), case), case, scoring)
    )


def by_tuning(
    root: Path, drawn: Drawn, config: Config, spacing: tuple[float, ...] | None
) -> Scores:
    places = write_labels(root, drawn)
    softs.save(
        root / "soft", softs.SoftPrediction(case_id="a", heads={"main": probabilities(drawn)})
    )
    case = CaseFiles(
        id="a",
        soft=(root / "soft",),
        label=places["target"],
        content="",
        fov=places.get("fov"),
        spacing=spacing,
    )
    task = ScoringTask(
        case=case,
        measure=Measure.of(config.data, config.metrics),
        candidates=(Candidate(steps=()),),
    )
    return dict(trials.score_case(task))[task.candidates[0].key]


@FEW
@given(drawn=cases(), spaced=st.booleans())
def test_a_case_of_labels_has_one_score(drawn: Drawn, spaced: bool) -> None:
    config, spacing = label_config(drawn, LABEL_METRICS), SPACING if spaced else None
    with tempfile.TemporaryDirectory() as place:
        found = {
            door.__name__: door(Path(place), drawn, config, spacing)
            for door in (by_files, by_store, by_tuning)
        }
    assert same(found["by_files"], found["by_store"])
    first = found["by_files"]
    if drawn.fov is not None:
        first = {k.removesuffix("_fov"): v for k, v in first.items() if k.endswith("_fov")}
    assert same(found["by_tuning"], first)
    if drawn.fov is None:
        known = pl.score(
            drawn.answer,
            drawn.target,
            LABEL_METRICS,
            spacing=spacing,
            ignore_label=drawn.ignore,
            num_classes=drawn.classes,
        )
        assert same(numbers(known), first)
    _agrees_with_scikit_learn(first, drawn)


def _agrees_with_scikit_learn(scores: Scores, drawn: Drawn) -> None:
    """Dice of each class is its F1; one that neither map holds is NaN, but for a set of one class,
    where two empty masks agree.
    """
    counted = np.ones(SIZE, bool) if drawn.ignore is None else drawn.target != drawn.ignore
    counted &= drawn.fov != 0 if drawn.fov is not None else True
    if not counted.any():
        return
    answer, target = drawn.answer[counted], drawn.target[counted]
    for c in range(1, drawn.classes):
        name = "dice" if drawn.classes == 2 else f"dice_{c}"
        absent = not ((answer == c).any() or (target == c).any())
        expected = f1_score(
            target == c, answer == c, zero_division=1.0 if drawn.classes == 2 else math.nan
        )
        assert (
            np.isnan(scores[name])
            if absent and drawn.classes > 2
            else scores[name] == pytest.approx(expected)
        ), name


@FEW
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "uint16"]),
    with_mask=st.booleans(),
)
def test_a_case_of_images_has_one_score(seed: int, dtype: str, with_mask: bool) -> None:
    """Files, the cache and arrays; with the mask of what was to change, as the network saw it."""
    rng, most = np.random.default_rng(seed), np.iinfo(dtype).max
    target, source, answer = (
        rng.integers(0, most + 1, (3, 12, 13)).astype(dtype) for _ in range(3)
    )
    source[:, 6:] = target[:, 6:]
    parts = tuple(NamedOptions(name=n) for n in ("psnr", "mae", "ssim", "retouch"))
    data = {
        "dims": 2,
        "layout": "folders",
        "folders": {"image": "i", "target": "t"},
        "change": {},
        "normalise": {"name": "none"},
    }
    data["patch"] = {"size": [16, 16], "foreground": None}
    whole = {
        "name": "t",
        "task": "image",
        "data": data,
        "network": "unet",
        "losses": [{"name": "l1", "target": "target"}],
    }
    config = dataclasses.replace(configs.from_dict(whole), metrics=parts)
    predicted = rng.integers(0, 256, (12, 13)).astype(np.uint8) if with_mask else None
    share = None if predicted is None else intensities(predicted)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        places = {"prediction": answer, "label": target, "input": source} | (
            {} if predicted is None else {"mask": predicted[None]}
        )
        for key, array in places.items():
            files.write(root / key / "a.png", array, dims=2)
        pair = Pair(
            id="a",
            rules=Rules(metrics=parts),
            reading=Reading(dims=2),
            **{key: root / key / "a.png" for key in places},
        )
        row = folder.score(pair)
        mask = change.difference_mask(source, target, Change()).astype(np.float16)
        case = stored_case(root, source, {"target": target}, {"mask": mask})
        soft = (
            answer.astype(np.float32)
            if share is None
            else np.concatenate([answer, share[None]]).astype(np.float32)
        )
        identity = dataclasses.replace(
            case, scale=normalise.IntensityScale(low=(0.0,) * 3, high=(1.0,) * 3, clip=False)
        )
        held = held_out.score(config, soft_of(config, soft, identity), identity)
    assert not isinstance(row, str), row
    assert same(row.scores, held)
    assert row.nothing is not None
    assert (row.nothing["leak"], row.nothing["psnr_out"]) == (0, 100)
    assert same(
        pl.score(answer, target, ["psnr", "mae", "ssim"]),
        {k: row.scores[k] for k in ("psnr", "mae", "ssim")},
    )


# --- a metric of one's own ------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[str]:
    """The name of a metric of labels that is added for one test: the error rate of foreground, with
    an option.
    """

    def miss(
        prediction: np.ndarray,
        target: np.ndarray,
        valid: np.ndarray | None = None,
        weight: float = 1.0,
        spacing: Any = None,
    ) -> dict[str, float]:
        counted = np.ones(target.shape, bool) if valid is None else valid
        return {"miss": weight * float(((prediction != 0) != (target != 0))[counted].mean())}

    def pooled(counts: Counts) -> float:
        return (counts.fp + counts.fn) / counts.total

    with METRICS.restored():
        METRICS.add(
            "miss",
            MetricEntry(
                miss,
                better="lower",
                length=True,
                pooled=Pooling(pooled, background=True),
                bytes_per_voxel=500,
            ),
        )
        yield "miss"


@pytest.fixture
def drawn() -> Drawn:
    rng = np.random.default_rng(7)
    answer, target = (rng.integers(0, 2, SIZE).astype(np.uint8) for _ in range(2))
    return Drawn(answer=answer, target=target, fov=None, classes=2, ignore=None)


def test_an_added_metric_works_through_every_door(own: str, drawn: Drawn, tmp_path: Path) -> None:
    config = label_config(drawn, [{"name": own, "options": {"weight": 2.0}}])
    expected = {own: 2 * float((drawn.answer != drawn.target).mean())}
    for n, door in enumerate((by_files, by_store, by_tuning)):
        assert door(tmp_path / str(n), drawn, config, None) == expected, door
    assert pl.score(drawn.answer, drawn.target, f"{own}:weight=2") == expected
    assert better(f"val_{own}") == "lower"
    assert units([NamedOptions(name=own)], spacing=True) == {own: "mm"}


def test_an_added_metric_is_one_of_the_commands(own: str, drawn: Drawn, tmp_path: Path) -> None:
    places = write_labels(tmp_path, drawn)
    scores = pl.score_folder(places["answer"].parent, places["target"].parent, [own, "dice"])
    assert (
        scores["mean"][own] == scores["pooled"][own] == float((drawn.answer != drawn.target).mean())
    )
    assert scores["units"] == {own: "voxels"}


def test_an_added_metric_is_called_as_those_of_monai(own: str, drawn: Drawn) -> None:
    metric = pl.Metric(own, weight=2.0)
    metric(
        y_pred=torch.from_numpy(drawn.answer)[None, None],
        y=torch.from_numpy(drawn.target)[None, None],
    )
    assert metric.aggregate().item() == 2 * float((drawn.answer != drawn.target).mean())
    with pytest.raises(ConfigError, match="Did you mean 'weight'"):
        pl.Metric(own, wieght=2.0)


def test_an_added_metric_watches_training(own: str, drawn: Drawn) -> None:
    """Pooled over the patches of an epoch, like those of the package."""
    config = dataclasses.replace(label_config(drawn, ["dice"]), metrics=())
    watched = dataclasses.replace(config.train.validate, metrics=(NamedOptions(name=own),))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, validate=watched))

    def fail(case_id: str) -> None:
        raise AssertionError(case_id)

    rules = PatchRules(config=config, version=2, fail=fail)
    scores = PatchScores(rules)
    logits = torch.from_numpy(drawn.answer.astype(np.float32) * 2 - 1)[None, None]
    scores.add(
        measure(rules, logits, {"id": ["a"], "label": torch.from_numpy(drawn.target)[None, None]})
    )
    assert scores.result() == {"val_miss": float((drawn.answer != drawn.target).mean())}


def test_an_added_metric_passes_the_checks_of_a_config(own: str, drawn: Drawn) -> None:
    def found(metrics: list[Any]) -> list[str]:
        return [p.text for p in checks.entries.problems(label_config(drawn, metrics), 1)]

    assert not [text for text in found([own]) if "metrics" in text]
    assert any("'weight'" in text for text in found([{"name": own, "options": {"wieght": 2}}]))


def test_a_name_is_taken_once(own: str) -> None:
    with pytest.raises(ValueError, match="there already"):
        METRICS.add("dice", METRICS["dice"])
    with pytest.raises(ValueError, match="letters"):
        METRICS.add("my-dice", METRICS["dice"])


# --- rules, units, memory -------------------------------------------------------------------------


def test_version_1_knows_neither_the_set_nor_the_world() -> None:
    answer, target = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]])
    case = CaseArrays(answer=answer, target=target, spacing=(1.0, 3.0))
    rules = Rules(metrics=(NamedOptions(name="dice"), NamedOptions(name="assd")), classes=(1, 2, 3))
    old, new = (core.score(case, dataclasses.replace(rules, version=v)) for v in (1, 2))
    assert "dice_3" not in old
    assert math.isnan(new["dice_3"])
    assert new["assd_1"] == 3 * old["assd_1"] > 0


def test_what_lies_where_nothing_counts_is_no_class() -> None:
    label = np.array([0, 1, 3, 3])
    answer = np.array([0, 1, 2, 0], np.uint8)
    assert core.blanked(answer, label, 3).tolist() == [0, 1, 0, 0]
    assert core.blanked(answer, label, None) is answer
    mask = (answer > 0).astype(np.uint8)
    assert core.blanked(mask, label, 3) is mask, "a mask stays as it is, and costs no copy"


def test_a_case_without_input_has_no_row_of_doing_nothing() -> None:
    image = np.zeros((1, 12, 12), np.uint8)
    with pytest.raises(ValueError, match="without its input"):
        CaseArrays(answer=image, target=image).doing_nothing()
    source = image + 1
    assert (
        CaseArrays(answer=image, target=image, source=source, predicted=image[0])
        .doing_nothing()
        .answer
        is source
    )


def test_units_are_those_of_the_whole_set(tmp_path: Path) -> None:
    lengths, in_mm = (
        [NamedOptions(name="hd95")],
        [NamedOptions(name="surface_dice", options={"tolerance_mm": 1.0})],
    )
    image = nibabel.nifti1.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.diag([2.0, 2, 2, 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii.gz")
    files.write(tmp_path / "b.npy", np.ones((1, 4, 4, 4), np.uint8))
    labels = {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.npy"}
    first = {"a": labels["a"]}
    for rule in (worlds.spacings, worlds.common_spacings):
        assert rule([NamedOptions(name="dice")], labels, 3) == {}, "nobody asks"
        assert rule(lengths, first, 3) == {"a": (2.0, 2.0, 2.0)}
        assert rule(lengths, {"b": labels["b"]}, 3) == {}
        assert rule(in_mm, {**first, "lost": tmp_path / "lost.nii.gz"}, 3) == {
            "a": (2.0, 2.0, 2.0)
        }, "its row will say so"
    assert worlds.spacings(lengths, labels, 3) == {}, "a run counts in voxels then"
    with pytest.raises(
        UserError, match=r"tolerance_mm needs .* 1 cases do not carry: b\. Use tolerance \(voxels\)"
    ):
        worlds.spacings(in_mm, labels, 3)
    with pytest.raises(UserError, match=r"no common unit: 1 label files carry none \(b\)"):
        worlds.common_spacings(lengths, labels, 3)
    with pytest.raises(FileError):
        files.geometry(tmp_path / "lost.nii.gz", 3)


def test_memory_follows_the_metric_that_takes_most(own: str) -> None:
    cheap, dear = ([NamedOptions(name=n)] for n in ("dice", own))
    assert (
        memory.case_bytes([*cheap, *dear], (1, 10, 10))
        == memory.case_bytes(dear, (1, 10, 10))
        == 100 * (memory.OPENED + 500)
    )
    assert memory.case_bytes(cheap, (1, 10, 10)) < memory.case_bytes(dear, (1, 10, 10))
    assert trials.workers_for(cheap, (2, 8, 8), 3, 5) == 5
    assert trials.workers_for(cheap, (1, 10**6, 10**6), 1) == 1
