"""The command line: one verb per stage. Each verb parses, calls one plain function, and prints.

Exit code 0: done; 1: the work failed; 2: the request was wrong, with one sentence on stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from latentddm import __version__
from latentddm.engine.errors import RequestError, WorkError
from latentddm.engine.files import disk_error

NAMED_KEYS = 5  # how many unreadable images a line names
EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("latentddm").setLevel(logging.INFO)
    # It warns wherever its CUDA kernels do not fit; attention.py says which kernel runs, and why.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        parsed.verb(parsed)
    except (RequestError, WorkError) as error:
        if parsed.debug:
            raise
        print(f"latentddm: {error}", file=sys.stderr)
        return EXIT_WRONG_REQUEST if isinstance(error, RequestError) else EXIT_FAILED
    except OSError as error:  # of files that are not written through engine.files: logs, events
        if parsed.debug:
            raise
        print(f"latentddm: {disk_error(error, error.filename)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        if parsed.debug:
            raise
        print("latentddm: stopped; run the same command again to go on.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _demo(arguments: argparse.Namespace) -> None:
    from latentddm.demo import DemoConfig, run_demo
    from latentddm.engine.config import load_config

    chosen = [
        f"{key}={value}" for key in ("images", "output") if (value := getattr(arguments, key))
    ]
    config = load_config(DemoConfig, find_config("demo.yaml"), [*chosen, *arguments.overrides])
    print(f"The report is {run_demo(config)}")


def _encode(arguments: argparse.Namespace) -> None:
    from autoencoder.images import Preprocessing, open_source
    from autoencoder.models import load_autoencoder
    from autoencoder.store import encode_store
    from latentddm.engine.devices import default_device, encoding_dtype

    device = default_device()
    source = open_source(arguments.images, size=arguments.size)
    rank, world_size = _rank_and_world_size(arguments)
    manifest = encode_store(
        source,
        load_autoencoder(arguments.autoencoder, device=device, dtype=encoding_dtype(device)),
        Path(arguments.output),
        preprocessing=Preprocessing(size=arguments.size),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        moments=arguments.moments,
        flips=arguments.flips,
        strict=arguments.strict,
        rank=rank,
        world_size=world_size,
    )
    if manifest is None:
        print("This process's shards are done; other processes still encode theirs.")
        return
    print(f"{arguments.output} holds {manifest.samples} latents in {len(manifest.shards)} shards.")
    if manifest.unreadable:
        print(
            f"{len(manifest.unreadable)} images could not be read and are listed in "
            f"{Path(arguments.output) / 'manifest.json'}."
        )


def _verify(arguments: argparse.Namespace) -> None:
    from autoencoder.store import verify_store

    source, autoencoder = None, None
    if arguments.repair:
        from autoencoder.images import open_source
        from autoencoder.models import load_autoencoder
        from autoencoder.store import LatentStore

        if arguments.images is None:
            raise RequestError("--repair encodes again what is damaged; add --images SRC.")
        plan = LatentStore(arguments.store).manifest.plan
        source = open_source(arguments.images, size=plan.preprocessing["size"])
        autoencoder = load_autoencoder(arguments.autoencoder or plan.autoencoder["reference"])
    report = verify_store(arguments.store, source=source, autoencoder=autoencoder)
    for name in report.repaired:
        print(f"{name}: repaired")
    for problem in report.problems:
        print(problem)
    print(f"{report.samples} latents in {report.shards} shards are whole.")
    if not report.ok:
        count = len(report.problems)
        raise WorkError(f"{arguments.store} is damaged in {count} places, named above.")


def _train(arguments: argparse.Namespace) -> None:
    from latentddm.engine.config import load_config
    from latentddm.training import TrainConfig, describe, train

    config = load_config(TrainConfig, find_config(arguments.config), arguments.overrides)
    if arguments.dry_run:
        print(describe(config))
        return
    print(f"The trained run is {train(config).path}")


def _train_autoencoder(arguments: argparse.Namespace) -> None:
    from autoencoder.training import AutoencoderConfig, describe, train_autoencoder
    from latentddm.engine.config import load_config

    config = load_config(AutoencoderConfig, find_config(arguments.config), arguments.overrides)
    if arguments.dry_run:
        print(describe(config))
        return
    print(f"The trained autoencoder is {train_autoencoder(config)}")


def _sample(arguments: argparse.Namespace) -> None:
    from latentddm.generation import SamplingConfig, write_samples

    config = SamplingConfig(
        steps=arguments.steps,
        churn=arguments.churn,
        safety=arguments.safety,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    written = write_samples(
        Path(arguments.run), arguments.num, config, Path(arguments.output), decode=arguments.decode
    )
    print(f"{arguments.num} samples are in {written}")


def _decode(arguments: argparse.Namespace) -> None:
    from autoencoder.decode import decode_files
    from autoencoder.models import load_autoencoder
    from latentddm.engine.devices import default_device

    autoencoder = load_autoencoder(
        _autoencoder_of(Path(arguments.latents), arguments.autoencoder), device=default_device()
    )
    rank, world_size = _rank_and_world_size(arguments)
    decode_files(
        Path(arguments.latents),
        Path(arguments.output),
        autoencoder,
        format=arguments.format,
        batch_size=arguments.batch_size,
        rank=rank,
        world_size=world_size,
    )
    print(f"The images are in {arguments.output}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from latentddm.engine.devices import default_device
    from latentddm.engine.files import write_json
    from latentddm.evaluation.folders import EvaluationOptions, evaluate_folders

    options = EvaluationOptions(
        metrics=arguments.metrics.split(",") if arguments.metrics else None,
        features=arguments.features,
        num=arguments.num,
        size=arguments.size,
        seed=arguments.seed,
        device=str(default_device()),
        show_progress=True,
    )
    evaluation = evaluate_folders(arguments.images, arguments.reference, options)
    for result in evaluation.results.values():
        print(result)
    for side, keys in evaluation.unreadable.items():
        if keys:
            print(f"{side}: {len(keys)} images could not be read: {', '.join(keys[:NAMED_KEYS])}")
    if arguments.output:
        write_json(Path(arguments.output), evaluation.to_json())


def find_config(name: str) -> Path:
    """A config by path, or by its name among the configs that come with latentddm."""
    path = Path(name)
    if path.is_file():
        return path
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):  # installed, or a checkout
        if (folder / name).is_file():
            return folder / name
    raise RequestError(f"The config {name} does not exist; give a YAML file.")


def _autoencoder_of(latents: Path, given: str | None) -> str:
    """The autoencoder that was given, or else the one named beside the latents."""
    from latentddm.latent_space import FILE_NAME, LatentSpace

    if given is not None:
        return given
    folder = latents if latents.is_dir() else latents.parent
    if not (folder / FILE_NAME).is_file():
        raise RequestError(f"Nothing beside {latents} names its autoencoder; give --autoencoder.")
    return LatentSpace.read(folder).autoencoder


def _rank_and_world_size(arguments: argparse.Namespace) -> tuple[int, int]:
    """From --rank and --world-size, or from `accelerate launch`."""
    rank = arguments.rank if arguments.rank is not None else int(os.environ.get("RANK", 0))
    size = arguments.world_size
    return rank, size if size is not None else int(os.environ.get("WORLD_SIZE", 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentddm",
        description="Few-step latent image generators from a folder of pictures, with no teacher.",
    )
    parser.add_argument("--version", action="version", version=f"latentddm {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(
        name: str, function: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--debug", action="store_true", help="show tracebacks")
        added.set_defaults(verb=function)
        return added

    demo = verb("demo", _demo, "Run every stage on the embedded portraits, or on your images.")
    demo.add_argument("--images", help="a folder, zip, tar shards ... (default: portraits)")
    demo.add_argument("--output", help="the folder of the report (default: demo)")
    demo.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to configs/demo.yaml"
    )

    encode = verb("encode", _encode, "Encode images into a latent store; run again to resume.")
    encode.add_argument("--images", required=True, help="a folder, zip, tar shards, lmdb, hf:NAME")
    encode.add_argument("--autoencoder", required=True, metavar="REF", help="a folder or a hub id")
    encode.add_argument("--output", required=True, metavar="STORE")
    encode.add_argument("--size", type=int, default=256, help="pixels a side (default 256)")
    encode.add_argument("--batch-size", type=int, default=64)
    encode.add_argument("--workers", type=int, help="image decoding processes")
    encode.add_argument("--moments", action="store_true", help="store mean and log variance")
    encode.add_argument("--flips", action="store_true", help="store mirrored views as well")
    encode.add_argument("--strict", action="store_true", help="stop at an unreadable image")
    _add_process_arguments(encode)

    verify = verb("verify", _verify, "Check every byte of a latent store.")
    verify.add_argument("store", metavar="STORE")
    verify.add_argument("--repair", action="store_true", help="encode again what is damaged")
    verify.add_argument("--images", metavar="SRC", help="the source, for --repair")
    verify.add_argument("--autoencoder", metavar="REF", help="default: the one in the manifest")

    for name, function, text in (
        ("train", _train, "Train a generator; run again to resume."),
        ("train-autoencoder", _train_autoencoder, "Train an autoencoder; run again to resume."),
    ):
        train = verb(name, function, text)
        train.add_argument("config", metavar="CONFIG.yaml")
        train.add_argument("overrides", nargs="*", metavar="key=value")
        train.add_argument("--dry-run", action="store_true", help="print, and touch nothing")

    sample = verb("sample", _sample, "Draw samples from a trained run.")
    sample.add_argument("run", metavar="RUN")
    sample.add_argument("--steps", type=int, default=4, help="network evaluations (default 4)")
    sample.add_argument("--num", type=int, default=64, help="how many images (default 64)")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--output", required=True, metavar="DIR")
    sample.add_argument("--churn", type=float, default=0.0, help="0 DDIM ... 1 DDPM")
    sample.add_argument("--safety", type=float, default=0.0, help="distance from t = 0 and 1")
    sample.add_argument("--batch-size", type=int, default=64)
    sample.add_argument("--decode", action="store_true", help="write images as well")

    decode = verb("decode", _decode, "Decode latents to image files; run again to resume.")
    decode.add_argument("latents", metavar="LATENTS", help="a .safetensors or .npy file")
    decode.add_argument("--output", required=True, metavar="DIR")
    decode.add_argument("--autoencoder", metavar="REF", help="default: the one named beside them")
    decode.add_argument("--format", choices=("png", "jpeg", "webp", "webdataset"), default="png")
    decode.add_argument("--batch-size", type=int, default=16)
    _add_process_arguments(decode)

    evaluate = verb("evaluate", _evaluate, "Measure how far images are from a reference.")
    evaluate.add_argument("images", metavar="IMAGES")
    evaluate.add_argument("--reference", required=True, metavar="SRC")
    evaluate.add_argument("--metrics", help="of frechet,energy,fid,kid,prdc ... (default: two)")
    evaluate.add_argument("--features", help="the feature space (default: what the metrics need)")
    evaluate.add_argument("--num", type=int, help="draw NUM images of each side")
    evaluate.add_argument("--size", type=int, help="crop and resize both sides to it")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--output", metavar="FILE.json", help="write the numbers and protocols")
    return parser


def _add_process_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, help="of this process (default: accelerate's)")
    parser.add_argument("--world-size", type=int, help="number of processes")
