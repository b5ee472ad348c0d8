"""Predict whole images or volumes with one model, a fold, or all folds of a run.

    python -m pipeline.predict --checkpoint runs/surface --input DIR --output predictions

Each volume is read once, whatever the number of folds. One bad file does not stop the others (exit code 3).

Inputs of more than 2^27 numbers are read and written by blocks, so that memory follows a tile and a slab and not the volume. Several
tasks may share the work: each runs the same command with ``--shard I/N`` and computes its part of the blocks of all inputs into
``OUTPUT/blocks``; when they have ended, the same command without ``--shard`` computes what is still missing, decides, writes the
answers and takes the blocks away. Only that last command writes answers, so no two processes ever write one file. Blocks that are
there are not computed again, whoever was killed. The answers equal those of one process to the last bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pipeline import cli
from pipeline.cli import say
from pipeline.config import Config, difference, to_dict
from pipeline.records import DONE, FAILED, PARTIAL, Case, Geometry, Part, Prediction, UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pipeline.data.normalise import Scale
    from pipeline.files import Pixels, Rows
    from pipeline.geometry import Tiling
    from pipeline.inference.blocks import Blocks
    from pipeline.inference.placement import Placement
    from pipeline.inference.sliding_window import Source, Voice


def parser() -> argparse.ArgumentParser:
    p = cli.parser("predict", "Predict whole images or volumes, tile by tile.")
    p.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="image files and folders of images")
    p.add_argument("--output", type=Path, required=True, help="folder for the answers")
    p.add_argument("--save-soft", action="store_true", help="also write probabilities to soft/, for pipeline.ensemble")
    p.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="compute only part I (0 to N-1) of the blocks of all inputs and write no answer; afterwards, the same command without --shard "
        "writes the answers",
    )
    p.add_argument(
        "--blocks",
        choices=["auto", "always", "never"],
        default="auto",
        help="read and write by blocks, in memory that does not grow with the volume; auto: inputs of more than 2^27 numbers",
    )
    add_model_options(p)
    return p


def add_model_options(p: argparse.ArgumentParser) -> None:
    """Options that say which networks answer and how, for :func:`prepare`."""
    p.add_argument("--checkpoint", type=Path, required=True, help="run folder (all folds), fold folder, or model file")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    p.add_argument(
        "--backend", choices=["torch", "onnx", "openvino"], default="torch", help="what computes; the others need the extra 'cpu'"
    )
    size = p.add_mutually_exclusive_group()
    size.add_argument(
        "--patch-size", type=int, nargs="+", metavar="N", help="tile size D H W; one number for all axes; default: as trained"
    )
    size.add_argument("--whole", action="store_true", help="each image in one piece, whatever its size")
    p.add_argument("--overlap", type=int, help="voxels that neighbouring tiles share; default: as in the config")
    p.add_argument(
        "--halo", type=_halo, metavar="N|auto", help="voxels at inner tile faces that are thrown away; auto: as far as the network sees"
    )
    p.add_argument(
        "--norms", choices=["tile", "frozen", "exact"], help="statistics of group and instance norm: of each tile, or of the whole image"
    )
    p.add_argument("--batch", type=int, help="tiles per forward pass")
    p.add_argument("--threshold", type=float, help="probability from which a voxel is foreground")
    p.add_argument("--min-component-size", type=int, help="remove components with fewer voxels; 0: keep all")
    p.add_argument("--max-hole-size", type=int, help="fill holes of up to this many voxels; 0: none")
    p.add_argument("--kernel-size", type=int, help="edge of the closing kernel in voxels; 0: none")
    p.add_argument("--separate-instances", action="store_true", help="label touching parts separately")
    p.add_argument("--tta", action="store_true", help="average over all flips")
    p.add_argument("--scales", type=float, nargs="+", metavar="F", help="average over tiles resized by these factors, e.g. 0.75 1 1.25")
    p.add_argument("--model", choices=["auto", "best", "swa"], help="which weights of a fold; auto: the better on its held-out cases")
    p.add_argument("--allow-missing-folds", action="store_true", help="predict with a run whose folds are not all complete")


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no I/N with I from 0 to N-1, such as 0/4")
    return int(index), int(number)


def _halo(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Networks ready to speak, and how their answer is finished."""

    config: Config
    speak: Voice
    models: tuple[str, ...]
    device: str
    output: Path
    save_soft: bool
    blocks: str = "auto"
    """When inputs are read and written by blocks: auto, always, never."""
    channels: int = 0
    """Input channels of the networks; 0: not known."""
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """What the model file says of its training data (:class:`pipeline.records.Checkpoint`); empty for older ones."""
    backend: str = "torch"
    told: set[str] = field(default_factory=set)
    """Warnings given so far, so that each is given once."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), predict, argv)


def predict(arguments: argparse.Namespace) -> int:
    """The whole command; returns its exit code."""
    from pipeline.inference import outputs

    outputs.require_folder(arguments.output)  # before a model is loaded or an image looked at
    predictor = prepare(arguments, arguments.output, arguments.save_soft)
    inputs = find_inputs(arguments.input, predictor)
    require_free(predictor, inputs)
    say(f"Found {len(inputs)} files to process")
    predictor = dataclasses.replace(predictor, blocks=arguments.blocks)
    require_room(predictor, inputs)
    if arguments.shard is not None:  # shards share a folder: they write nothing but blocks, each its own
        return predict_shard(predictor, inputs, *arguments.shard)
    with outputs.owned(predictor.output, say):
        return predict_all(predictor, inputs)


def prepare(arguments: argparse.Namespace, output: Path, save_soft: bool = False) -> Predictor:
    """Networks loaded and ready as the options of :func:`add_model_options` say. Raises UserError where they cannot be followed."""
    from pipeline import postprocess
    from pipeline.checks import limits
    from pipeline.inference import backends
    from pipeline.inference.models import load_facts
    from pipeline.inference.sliding_window import voice
    from pipeline.inference.stitching import with_halo

    device = "cpu" if arguments.backend != "torch" and arguments.device == "auto" else cli.device(arguments.device)
    backends.check(arguments.backend, device)
    paths = find_models(arguments.checkpoint, arguments.model, arguments.allow_missing_folds)
    networks, config = load_models(paths)
    facts = load_facts(paths[0])
    config = with_options(config, arguments)
    limits.of_prediction(config, paths[0])
    backends.check(arguments.backend, device, config.predict.norms)
    if config.task == "labels":
        postprocess.check(config.postprocess)
    if arguments.halo == "auto":
        config, told = with_halo(config, networks[0], facts.channels[0])
        say(told)
    networks = [backends.accelerate(n.to(device), p, arguments.backend, say) for n, p in zip(networks, paths, strict=True)]
    return Predictor(
        config=config,
        speak=voice(networks, config, device),
        models=tuple(str(p) for p in paths),
        device=device,
        output=output,
        save_soft=save_soft,
        channels=facts.channels[0],
        trained_on=facts.trained_on,
        backend=arguments.backend,
    )


def find_models(path: Path, model: str | None, allow_missing: bool = False) -> list[Path]:
    """Model files behind RUN, FOLD or FILE. Raises UserError when there are none, or when a run lacks folds and that is not allowed."""
    from pipeline import files

    if reason := files.absence(path):
        way_out = "Give a run folder (runs/NAME), a fold folder (runs/NAME/fold_0) or a .safetensors file."
        raise UserError(f"--checkpoint {path}: {reason}. {way_out}")
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(f"--checkpoint {path}: is no file but a pipe, a socket or a device. Give a run folder or a .safetensors file.")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"--checkpoint {path}: the folder may not be read. Give this user the right to read it.")
    folds = sorted((p for p in path.glob("fold_*") if os.path.isdir(p)), key=lambda p: int(p.name[5:]) if p.name[5:].isdigit() else 0)
    if not folds:
        return [_fold_model(path, model)]
    complete = [f for f in folds if _complete(f)]
    count = _fold_count(path)
    if len(complete) < count and not allow_missing:
        missing = sorted({f"fold_{n}" for n in range(count)} - {f.name for f in complete})
        raise UserError(
            f"{path}: {', '.join(missing)} not complete. Finish them with pipeline.train, or accept it with --allow-missing-folds."
        )
    if not complete:
        raise UserError(f"{path}: no fold is complete.")
    return [_fold_model(f, model) for f in complete]


def _complete(fold: Path) -> bool:
    from pipeline.train import read_result

    result = read_result(fold)
    return result is not None and result.status == "completed"


def _fold_count(run: Path) -> int:
    from pipeline.config import load

    return load(run / "config.yaml").data.folds.count if (run / "config.yaml").is_file() else 0


def _fold_model(fold: Path, model: str | None) -> Path:
    from pipeline.train import model_files, read_result

    present = model_files(fold)
    if not present:
        raise UserError(f"{fold}: holds neither best_model.safetensors nor swa_model.safetensors. Is this a fold folder of a run?")
    result = read_result(fold)
    wanted = model if model not in (None, "auto") else (result.chosen if result is not None else "best")
    if wanted not in present:
        raise UserError(f"{fold}: has no {wanted} weights, only {', '.join(present)}. Use --model {next(iter(present))}.")
    return present[wanted]


def load_models(paths: Sequence[Path]) -> tuple[list[torch.nn.Module], Config]:
    """Rebuild every network. Raises UserError when the models were trained under different configs, or on other kinds of files."""
    from pipeline.inference.models import build, load_model

    networks, configs, facts = [], [], []
    for path in paths:
        model = load_model(path)
        network, config = build(model, str(path))
        facts.append({"channels": list(model.channels), **{k: model.trained_on.get(k) for k in ("family", "codes")}})
        say(f"Loaded model from {path}\n  Fold: {model.fold}, epoch: {model.epoch + 1}, {config.train.stop.monitor}: {model.score}")
        networks.append(network)
        configs.append(config)
    for path, config, own in zip(paths, configs, facts, strict=True):
        changes = [
            c
            for c in difference(to_dict(configs[0]), to_dict(config))
            if c.startswith(("data.normalise", "data.classes", "data.dims", "task", "network"))
        ]
        changes += [f"{k}: {facts[0][k]} -> {v}" for k, v in own.items() if None not in (v, facts[0][k]) and v != facts[0][k]]
        if changes:
            raise UserError(f"{path} and {paths[0]} cannot speak together:\n  " + "\n  ".join(changes))
    return networks, configs[0]


def with_options(config: Config, arguments: argparse.Namespace) -> Config:
    """The model's config with the command line's options laid over it."""
    from pipeline.postprocess import adjust

    changes: dict[str, Any] = {}
    if arguments.patch_size is not None:
        size = tuple(arguments.patch_size) * (config.data.dims if len(arguments.patch_size) == 1 else 1)
        changes["patch"] = size
    if arguments.whole:
        changes["patch"] = "whole"
    if arguments.scales is not None:
        changes["scales"] = tuple(arguments.scales)
    for name in ("overlap", "batch", "halo", "norms"):
        if getattr(arguments, name) not in (None, "auto"):
            changes[name] = getattr(arguments, name)
    if arguments.tta:
        changes["flips"] = True
    steps = config.postprocess
    if config.task == "labels":
        steps = adjust(
            steps,
            threshold=arguments.threshold,
            min_component_size=arguments.min_component_size,
            max_hole_size=arguments.max_hole_size,
            kernel_size=arguments.kernel_size,
            separate_instances=arguments.separate_instances,
        )
    return dataclasses.replace(config, predict=dataclasses.replace(config.predict, **changes), postprocess=steps)


def find_inputs(paths: Sequence[Path], predictor: Predictor) -> list[Case]:
    """Cases of all files and folders, in the order given. Raises UserError where one answer would be written over another."""
    from pipeline.data import cases as case_finder
    from pipeline.tasks import COMPANIONS

    config, found = predictor.config, dict[str, Case]()
    for path in paths:
        for case in case_finder.inputs(path, config.data, predictor.channels, predictor.trained_on.get("layout")):
            if case.id in found:
                raise UserError(
                    f"{case.image[0]} and {found[case.id].image[0]} are both called {case.id}, and so would be their answers. "
                    "Predict them in two runs, or rename one."
                )
            found[case.id] = case
    for case_id in found if config.task == "labels" else ():
        for ending in COMPANIONS:
            if case_id + ending in found:
                raise UserError(
                    f"{found[case_id + ending].image[0]} is called like a picture that is written beside the answer for {case_id}. "
                    "Leave it out, or rename it."
                )
    return list(found.values())


def require_free(predictor: Predictor, inputs: Sequence[Case]) -> None:
    """Raise UserError where answers would replace an input, or a file in the output folder that is no answer."""
    from pipeline.inference import outputs

    outputs.require_folder(predictor.output)
    outputs.require_apart((path for case in inputs for path in case.image), predictor.output)
    outputs.require_own(predictor.output, (name for case in inputs for name in _names(predictor, case)))


def _names(predictor: Predictor, case: Case) -> list[str]:
    """Files that the answer to a case may be written to."""
    from pipeline import files
    from pipeline.inference import outputs

    return outputs.names(case.id, predictor.config.task, files.suffix(case.image[0]), predictor.save_soft)


LOOKED_AT = 1000
"""Inputs whose sizes are read before work to tell whether their answers fit; of more, the others come on top."""

FREE_SPACE = "Free space there, choose another --output, or leave --save-soft out"


def require_room(predictor: Predictor, inputs: Sequence[Case]) -> None:
    """Warn where the disk has fewer bytes free than the answers to all inputs take; DiskError where they certainly cannot fit."""
    from pipeline import files

    dims, need = predictor.config.data.dims, 0
    for case in inputs[:LOOKED_AT]:
        found = files.probe(case.image[0], dims)
        if found.problem is None:
            names = (predictor.output / name for name in _names(predictor, case))
            need += max(0, _need(predictor, case, found.shape[1:], found.dtype) - sum(_size(p) for p in names))
    text = files.require_room(predictor.output, need, f"{FREE_SPACE}.")
    if text is not None:
        say(f"warning: {text}")


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except (OSError, ValueError):
        return 0


def _need(predictor: Predictor, case: Case, size: Sequence[int], dtype: str) -> int:
    """Bytes that the answer to a case of ``size`` voxels takes at least: probabilities, and files that are not compressed."""
    import numpy as np

    from pipeline import files

    config, voxels = predictor.config, math.prod(size)
    labels = config.task == "labels"
    planes = (1 if config.data.classes == 2 else config.data.classes) if labels else max(1, predictor.channels)
    soft = planes * voxels * (2 if labels else 4) if predictor.save_soft else 0
    plain = files.suffix(case.image[0]) in (".npy", ".nii")
    answer = voxels * (2 if labels else planes * np.dtype(dtype).itemsize)  # labels: and their visualisation
    return soft + (answer if plain else 0)


def _admit_names(predictor: Predictor, case: Case) -> None:
    """Raise FileError, before any work, where the disk cannot hold a name that is made of the case's."""
    from pipeline import files
    from pipeline.inference import outputs

    problem = outputs.too_long(predictor.output, _names(predictor, case))
    if problem is not None:
        raise files.FileError(case.image[0], problem, "Rename the input, or choose another --output")


def _admit_size(predictor: Predictor, case: Case, size: Sequence[int], dtype: str) -> None:
    """Raise DiskError, before any work, where the answer to a case certainly does not fit on the disk."""
    from pipeline import files

    files.require_room(predictor.output, _need(predictor, case, size, dtype), f"{FREE_SPACE}.")


def predict_all(predictor: Predictor, inputs: Sequence[Case]) -> int:
    """Predict every case; write summary.json with one row a file, failures included; returns the exit code."""
    from pipeline import files
    from pipeline.inference import outputs

    predictor.output.mkdir(parents=True, exist_ok=True)
    files.sweep(predictor.output)
    rows, began = [], time.monotonic()
    with outputs.Kept(lambda: _write_summary(predictor, rows, len(inputs))) as write:
        write()  # before any answer: what is killed can be run again, since it is known whose answers these are
        for n, case in enumerate(inputs):
            cli.stop.check()
            say(f"\nProcessing {case.image[0].name} ({n + 1} of {len(inputs)})")
            rows.append(_guarded(predictor, case, lambda case=case: predict_case(predictor, case)))
            write()
    return _told(rows, began)


def predict_shard(predictor: Predictor, inputs: Sequence[Case], index: int, number: int) -> int:
    """Compute part ``index`` of ``number`` of the blocks of all cases; writes ``blocks/shard_I_of_N.json``; returns the exit code."""
    from pipeline import files
    from pipeline.inference import blocks, outputs

    counts = [_count_blocks(predictor, case) for case in inputs]
    mine = [(case, which) for case, which in zip(inputs, blocks.share(counts, index, number), strict=True) if which]
    say(f"Shard {index} of {number}: {sum(len(which) for _, which in mine)} of {sum(counts)} blocks, in {len(mine)} files")
    rows, began = [], time.monotonic()
    facts = predictor.output / blocks.FOLDER / blocks.SHARD.format(index, number)
    with outputs.Kept(lambda: files.write_json(facts, {"files": rows})) as write:
        for case, which in mine:
            cli.stop.check()
            say(f"\nProcessing {case.image[0].name}, blocks {which.start} to {which.stop - 1}")
            rows.append(_guarded(predictor, case, lambda case=case, which=which: predict_blocks(predictor, case, which)))
            write()
    return _told(rows, began)


def _count_blocks(predictor: Predictor, case: Case) -> int:
    """Blocks of a case; 1 for a file that cannot be read, so that somebody meets it."""
    from pipeline import files
    from pipeline.inference.sliding_window import tiling

    dims = predictor.config.data.dims
    found = files.probe(case.image[0], dims)
    if found.problem is not None:
        return 1
    size = found.shape[1:]
    if predictor.trained_on:
        try:
            size = _placement(predictor, case, files.geometry(case.image[0], dims)).size(size)
        except files.FileError:
            return 1
    return -(-size[0] // tiling(predictor.config, size, predictor.speak).step)


def _told(rows: Sequence[dict[str, Any]], began: float) -> int:
    """Tell how it went; returns the exit code."""
    failed = [r for r in rows if r["status"] == "failed"]
    say(f"\nInference complete: {len(rows) - len(failed)} done, {len(failed)} failed, {time.monotonic() - began:.1f} s")
    for row in failed:
        say(f"  failed: {row['file']}: {row['error']}")
    disk = any(row["error"].startswith("DiskError:") for row in failed)
    return DONE if not failed else (FAILED if disk or len(failed) == len(rows) else PARTIAL)


def _guarded(predictor: Predictor, case: Case, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.monotonic()
    row: dict[str, Any] = {"id": case.id, "file": str(case.image[0])}
    try:
        _admit_names(predictor, case)
        row |= {"status": "done", **work()}
    except Exception as error:
        say(f"  FAILED: {type(error).__name__}: {error}")
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.monotonic() - began, 2)}


def _write_summary(predictor: Predictor, rows: Sequence[dict[str, Any]], inputs: int) -> None:
    from pipeline import files

    config, names = to_dict(predictor.config), predictor.trained_on.get("class_names")
    summary = {
        "models": predictor.models,
        "task": predictor.config.task,
        **({"classes": predictor.config.data.classes} if predictor.config.task == "labels" else {}),
        **({"class_names": names} if names else {}),
        "ignore_label": predictor.config.data.ignore_label,
        "predict": config["predict"],
        "postprocess": config["postprocess"],
        "inputs": inputs,
        "files": rows,
    }
    files.write_json(predictor.output / "summary.json", summary)


def predict_case(predictor: Predictor, case: Case) -> dict[str, Any]:
    """Read, predict, finish and write one case; returns its facts and statistics."""
    from pipeline.data import normalise
    from pipeline.data.store import load_image
    from pipeline.inference.sliding_window import Source, settled, sliding_window, tiling

    config = predictor.config
    if _by_blocks(predictor, case):
        return predict_blocks(predictor, case)
    array, geometry = load_image(case, config.data.dims)
    size = array.shape[1:]
    say(f"  Loaded volume: {size}, dtype: {array.dtype}")
    _require_finite(case, array)
    _admit_size(predictor, case, size, str(array.dtype))
    place, notes = _admitted(predictor, case, array, geometry)
    array = place.apply(array)
    tiles = tiling(config, array.shape[1:], predictor.speak)
    source = Source(array=array, scale=_fitted(predictor, case, array, normalise, notes))
    _warn(predictor, source, tiles)
    speak = settled(predictor.speak, source, tiles)
    with _bar(tiles.count()) as advance:
        counted = _counted(speak, lambda n: (advance(n), cli.stop.check()))
        soft = sliding_window(source, counted, tiles, config.predict.batch, predictor.device)
    prediction = Prediction(case_id=case.id, soft=place.restore(soft), geometry=geometry)
    image = place.restore(source.array[:]) if config.data.dims == 2 else None
    return {"shape": list(size), "tiles": tiles.count(), **_warned(notes), **_finish_case(predictor, case, source, prediction, image)}


def _require_finite(case: Case, array: np.ndarray) -> None:
    """Raise FileError for a case in memory that holds NaN or infinity, naming the file that does."""
    from pipeline import files
    from pipeline.data import store

    for number, count in store.nonfinite_files(case, array).items():
        raise files.FileError(case.image[number], store.nonfinite_problem(count), store.NONFINITE)


def _placement(predictor: Predictor, case: Case, geometry: Geometry) -> Placement:
    from pipeline.inference.placement import placement

    return placement(case, geometry, predictor.config.data.dims, predictor.trained_on)


def _admitted(predictor: Predictor, case: Case, array: Pixels, geometry: Geometry) -> tuple[Placement, list[str]]:
    """How the array goes to the axes of training, and what was said of it.

    Raises FileError where it cannot be predicted by these networks.
    """
    from pipeline import files

    wanted, have = predictor.channels, len(array)
    if wanted and have != wanted:
        cure = f"Give an image of {wanted} channels" + (
            "; of files ID_0000, ID_0001, ... give their folder, so that they are taken together" if wanted > have else ""
        )
        raise files.FileError(case.image[0], f"has {have} channels, the model takes {wanted}", cure)
    place = _placement(predictor, case, geometry)
    if place.alignment is not None:
        say(f"  Its axes {place.codes[0]} are brought to those of training, {place.codes[1]}, and its answer back")
    return place, _noted([*geometry.notes, *place.notes])


def _fitted(predictor: Predictor, case: Case, array: Pixels, limits: ModuleType, notes: list[str]) -> Scale:
    """The scale of an array by ``limits``, :mod:`normalise` or :mod:`streamed`; what is to be said of it is added to ``notes``.

    Raises FileError where the normalisation would cut off most of the image.
    """
    from pipeline import files

    part = predictor.config.data.normalise
    problem = limits.problem_of(part, array)
    if problem is not None:
        raise files.FileError(case.image[0], *problem)
    scale, found = limits.fit_with_notes(part, array)
    notes += _noted(found)
    return scale


def _noted(notes: Sequence[str]) -> list[str]:
    for note in notes:
        say(f"  WARNING: {note}.")
    return list(notes)


def _warned(notes: list[str]) -> dict[str, Any]:
    """For the row of a case: only where there is something."""
    return {"warnings": notes} if notes else {}


def _finish_case(predictor: Predictor, case: Case, source: Source, prediction: Prediction, image: np.ndarray | None) -> dict[str, Any]:
    """Save the soft answer where that is asked for, and finish it, all in memory; ``image`` is the input as its file has it."""
    from pipeline.inference import soft as softs

    facts = _facts(predictor, case, source)
    if predictor.save_soft:
        softs.save(predictor.output / "soft", prediction, facts)
    return finish(predictor.config.postprocess, prediction, predictor.output, facts, image)


def _facts(predictor: Predictor, case: Case, source: Source) -> dict[str, Any]:
    """What travels with a soft prediction."""
    from pipeline import files

    return {
        "task": predictor.config.task,
        "suffix": files.suffix(case.image[0]),
        "scale": asdict(source.scale),
        "dtype": str(source.array.dtype),
        "channels": len(source.array),
        "image": [str(p.absolute()) for p in case.image],
    }


# --- by blocks ---------------------------------------------------------------------------------------------------------


def _by_blocks(predictor: Predictor, case: Case) -> bool:
    """Whether a case is read and written by blocks: it is large, that is wanted, or a shard has begun with it."""
    from pipeline import files
    from pipeline.data import streamed
    from pipeline.inference import blocks

    if predictor.blocks != "auto":
        return predictor.blocks == "always"
    if blocks.folders(predictor.output, case.id):
        return True
    found = files.probe(case.image[0], predictor.config.data.dims)
    return found.problem is None and math.prod(found.shape) * len(case.image) > streamed.WHOLE


def predict_blocks(predictor: Predictor, case: Case, which: range | None = None) -> dict[str, Any]:
    """Compute those of the blocks ``which`` that are not there yet; ``None``: all, then finish the case, write it and take the blocks away."""
    from pipeline.data import streamed
    from pipeline.inference import blocks
    from pipeline.inference.sliding_window import Source, tiling

    config = predictor.config
    with blocks.image(case, config.data.dims) as (given, geometry):
        shape = tuple(given.shape[1:])
        say(f"  Volume: {shape}, dtype: {given.dtype}, by blocks")
        _admit_size(predictor, case, shape, str(given.dtype))
        place, notes = _admitted(predictor, case, given, geometry)
        if _streams(predictor, given):
            _require_rows(case, place)
            if which is None and config.task == "labels":
                blocks.check_memory(config.postprocess, 1 if config.data.classes == 2 else config.data.classes, shape)
        array = place.apply(given)
        size = tuple(array.shape[1:])
        tiles = tiling(config, size, predictor.speak)
        name = f"{case.id}.{blocks.key(_digests(predictor.models), config, case)}"
        parts = blocks.Blocks(folder=predictor.output / blocks.FOLDER / name, size=size, step=tiles.step)
        wanted = range(parts.count()) if which is None else which
        _admit_blocks(predictor, parts, wanted)
        source = Source(array=array, scale=_fitted(predictor, case, array, streamed, notes))
        _compute(predictor, source, tiles, parts, wanted)
        row = {"shape": list(shape), "tiles": tiles.count(), "blocks": len(wanted), **_warned(notes)}
        if which is not None:
            return row
        answer = _finish_blocks(predictor, case, source, (parts.soft(), geometry, place, parts.folder))
    blocks.remove(predictor.output, case.id)
    return row | answer


def _admit_blocks(predictor: Predictor, parts: Blocks, which: range) -> None:
    """Raise DiskError, before any work, where the blocks that are still to be computed certainly do not fit on the disk."""
    from pipeline import files

    rows = sum(end - first for first, end in parts.missing(which))
    planes = 1 if predictor.config.task == "labels" and predictor.config.data.classes == 2 else predictor.config.data.classes
    planes = planes if predictor.config.task == "labels" else max(1, predictor.channels)
    need = 4 * planes * rows * math.prod(parts.size[1:])
    files.require_room(predictor.output, need, "Blocks lie there until the answer is written. Free space, or choose another --output.")


def _require_rows(case: Case, place: Placement) -> None:
    """Raise FileError where an answer in the file's axes cannot be written slab by slab."""
    from pipeline import files

    if not place.first_axis_stays:
        problem = f"has axes {place.codes[0]}, the model was trained on {place.codes[1]}: its first axis is another one"
        cure = f"By blocks, the first axis has to stay. Save the file with axes {place.codes[1]}, or predict it in memory (--blocks never)"
        raise files.FileError(case.image[0], problem, cure)


def _compute(predictor: Predictor, source: Source, tiles: Tiling, parts: Blocks, which: range) -> None:
    """Compute and write those of the blocks ``which`` that are not there."""
    from pipeline.inference import blocks
    from pipeline.inference.sliding_window import settled

    runs = parts.missing(which)
    if not runs:
        return
    _warn(predictor, source, tiles)
    speak = settled(predictor.speak, source, tiles)
    needed = sum(any(tiles.speaks(place, *run) for run in runs) for place in tiles.places())
    with _bar(needed) as advance:
        counted = _counted(speak, lambda n: (advance(n), cli.stop.check()))
        blocks.compute(source, counted, tiles, parts, runs, predictor.config.predict.batch, predictor.device)


def _streams(predictor: Predictor, array: Pixels) -> bool:
    """Whether the answer, too, is written by blocks."""
    from pipeline.data import streamed

    return predictor.blocks == "always" or math.prod(array.shape) > streamed.WHOLE


def _finish_blocks(predictor: Predictor, case: Case, source: Source, found: tuple[Rows, Geometry, Placement, Path]) -> dict[str, Any]:
    """Decide and write a case whose blocks are all there: in memory where it is small, as it would be without blocks.

    ``found`` are its soft answer on the axes of training, where the file lies, how it came to those axes, and a folder for scratch files.
    """
    from pipeline.inference import blocks

    array, geometry, place, work = found
    if not _streams(predictor, source.array):
        prediction = Prediction(case_id=case.id, soft=place.restore(array[:]), geometry=geometry)
        image = place.restore(source.array[:]) if predictor.config.data.dims == 2 else None
        return _finish_case(predictor, case, source, prediction, image)
    soft = blocks.Soft(
        case_id=case.id, array=place.restore_rows(array), geometry=geometry, facts=_facts(predictor, case, source), work=work
    )
    if predictor.save_soft:
        blocks.save_soft(predictor.output / "soft", soft)
    if predictor.config.task == "labels":
        path, statistics = blocks.write_labels(predictor.config.postprocess, soft, predictor.output)
        say("  " + ", ".join(f"{k}: {v}" for k, v in statistics.items()))
    else:
        path, statistics = blocks.write_image(soft, predictor.output, source.scale)
    say(f"  Saved {path}")
    return {"output": path.name, **statistics}


def _digests(models: Sequence[str]) -> dict[str, str]:
    from pipeline import files

    return {path: files.sha256(Path(path)) for path in models}


def _warn(predictor: Predictor, source: Source, tiles: Tiling) -> None:
    """Once a run: tiles of this network cannot equal the whole image, by how much they do not, and what to do."""
    from pipeline.inference.stitching import warning

    if "norms" in predictor.told:
        return
    text = warning(predictor.speak, source, tiles, predictor.backend)
    if text is not None:
        predictor.told.add("norms")
        say(f"  WARNING: {text}")


def finish(
    steps: Sequence[Part], prediction: Prediction, output: Path, facts: Mapping[str, Any], image: np.ndarray | None = None
) -> dict[str, Any]:
    """Decide, post-process, write; returns statistics of the answer.

    ``facts`` are what travels with a soft prediction: ``task``, ``suffix`` of the input, for images also its ``scale`` and ``dtype``.
    ``image`` is the input ``(C, *S)``; labels of a 2D one are also written over it, as ``ID_overlay.png``. An image with one
    channel more than ``channels`` of the facts comes from a network with a head ``mask``: its probability goes to ``masks/ID.png``.
    """
    from pipeline import postprocess
    from pipeline.tasks import TASKS

    task, statistics = TASKS[facts["task"]], {}
    if facts["task"] == "labels":
        answer = postprocess.apply(steps, prediction.soft)
        statistics = postprocess.statistics(answer)
        say("  " + ", ".join(f"{k}: {v}" for k, v in statistics.items()))
    else:
        count = facts.get("channels", len(prediction.soft))
        answer = task.hard(prediction.soft[:count], _scale(facts["scale"]), facts["dtype"])
        statistics = _write_mask(output, prediction, count)
    path = task.write(output, prediction.case_id, answer, prediction.geometry, facts["suffix"])
    if facts["task"] == "labels" and image is not None and answer.ndim == 2:
        _write_overlay(output / f"{prediction.case_id}_overlay.png", image, answer, len(prediction.soft))
    say(f"  Saved {path}")
    return {"output": path.name, **statistics}


def _write_mask(output: Path, prediction: Prediction, channels: int) -> dict[str, Any]:
    """The predicted mask, where there is one, as grey picture 0..255 (of a volume: a file like the answer); returns its share of the image."""
    from pipeline import files

    if len(prediction.soft) == channels:
        return {}
    mask = prediction.soft[channels]
    suffix = ".png" if mask.ndim == 2 else ".tif"
    files.write(output / "masks" / f"{prediction.case_id}{suffix}", (mask * 255).round().astype("uint8"), dims=mask.ndim)
    return {"mask_share": round(float((mask >= 0.5).mean()), 6)}


def _write_overlay(path: Path, image: np.ndarray, answer: np.ndarray, channels: int) -> None:
    """The answer over its image; the foreground of a mask in one colour, classes and instances in one each."""
    from pipeline import colours, files

    binary = channels == 1 and answer.max() <= 1
    picture = colours.overlay(image, answer, (colours.SKY,) if binary else colours.CLASSES)
    files.write(path, picture.transpose(2, 0, 1), dims=2)


def _scale(facts: Mapping[str, Any]) -> Scale:
    from pipeline.data.normalise import Scale

    return Scale(low=tuple(facts["low"]), high=tuple(facts["high"]), to=tuple(facts["to"]), clip=facts["clip"])


def _counted(speak: Voice, advance: Callable[[int], object]) -> Voice:
    def speak_and_count(tiles: torch.Tensor) -> torch.Tensor:
        soft = speak(tiles)
        advance(len(tiles))
        return soft

    return speak_and_count


class _bar:  # noqa: N801 - used like a function
    """Progress over tiles as a context: a tqdm bar on a terminal, nothing in a log (files are short work there)."""

    def __init__(self, total: int) -> None:
        import sys

        from tqdm import tqdm

        self.bar = tqdm(total=total, desc="Predicting", unit="tile", leave=False, disable=not sys.stderr.isatty())

    def __enter__(self) -> Any:
        return self.bar.update

    def __exit__(self, *_: object) -> None:
        self.bar.close()


if __name__ == "__main__":
    raise SystemExit(main())
