"""Command ``fidelity-lsh``: torch-fidelity's command line with the registered metrics added, parsed strictly."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch_fidelity.fidelity

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.calculate import (
    calculate_metrics,
    create_reference,
    create_statistics,
    save_samples,
)
from torch_fidelity_lsh.fidelity.classes import calculate_by_class
from torch_fidelity_lsh.fidelity.distributed import RanksError, on_first, rank_and_size, ranks_of_torchrun
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, MetricOption, plugin_keywords
from torch_fidelity_lsh.fidelity.spaces import as_table
from torch_fidelity_lsh.fidelity.statistics import save_statistics
from torch_fidelity_lsh.metric.comparison import NUMBERS, compare
from torch_fidelity_lsh.metric.config import LSHConfig, option_fields
from torch_fidelity_lsh.metric.files import check_writable
from torch_fidelity_lsh.metric.functional import METRICS
from torch_fidelity_lsh.metric.memorization import memorization
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.reference import SUFFIX, save_reference
from torch_fidelity_lsh.watch import as_line, watch

_USER_ERRORS = (ValueError, OSError, ImportError, RanksError)
_INTERRUPTED = 130  # as shells report it
_FALLS = 3  # a difference lies below --fail-below


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, or that which the first argument names: index, compare, classes, memorization, watch.

    The result is the only thing on stdout; progress, warnings and errors go to stderr. Under ``torchrun`` the ranks
    share the work, and the first one prints.

    Args:
        argv: Arguments without the command's name. Default: those of the process.

    Returns:
        Exit code: 0; 1 after an error in what the user asked for; 3 where ``compare`` finds a fall that is too large;
        130 after an interrupt. Wrong options exit with 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv and argv[0] in _COMMANDS else ""
    make, run = _COMMANDS[command]
    parser = make()
    args = _parse_strictly(parser, argv[1:] if command else argv)
    if args["gpu"] is not None:  # Before CUDA is looked at, which then keeps the devices it saw.
        os.environ["CUDA_VISIBLE_DEVICES"] = args["gpu"]
    try:
        # Upstream's KID prints a remark to stdout.
        with _short_warnings(parser.prog), ranks_of_torchrun(cuda=not args["cpu"]), redirect_stdout(sys.stderr):
            text, code = run(args)
            is_first = rank_and_size()[0] == 0
    except _USER_ERRORS as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    if is_first:
        print(text)
    return code


@contextmanager
def _short_warnings(program: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"{program}: warning: {message}", file=sys.stderr)
        yield


def _measure(args: dict[str, Any]) -> tuple[str, int]:
    path, keywords = args["report"], _call_keywords(args)
    if args["by_class"] and not path:
        raise ValueError("--by-class is for --report; `fidelity-lsh classes` prints classes")
    if path:
        from torch_fidelity_lsh.report.metrics import write_report  # of an extra

    metrics = write_report(path, by_class=args["by_class"], **keywords) if path else calculate_metrics(**keywords)
    return _as_json(metrics) if args["json"] else _as_text(metrics), 0


def _compare(args: dict[str, Any]) -> tuple[str, int]:
    config = LSHConfig.from_kwargs(args)
    keywords = _keywords_of_one_input(args)
    sets = [create_reference(input=args[name], **keywords) for name in ("input1", "against", "input2")]
    result = compare(sets[0], sets[1], sets[2], config, args["metric"], args["paired"])
    limit, differences = args["fail_below"], [getattr(result, name) for name in NUMBERS]
    fails = limit is not None and any(difference.interval[1] < limit for difference in differences)
    lines = [result.verdict, *(f"{name}: {each}" for name, each in zip(NUMBERS, differences, strict=True))]
    return _as_json(result.to_dict()) if args["json"] else "\n".join(lines), _FALLS if fails else 0


def _classes(args: dict[str, Any]) -> tuple[str, int]:
    inputs = {name: args[name] for name in ("input1", "input2", "labels1", "labels2")}
    found = calculate_by_class(**inputs, metric=args["metric"], **_keywords_of_one_input(args))
    return _as_json(found.to_dict()) if args["json"] else str(found), 0


def _memorization(args: dict[str, Any]) -> tuple[str, int]:
    keywords = _keywords_of_one_input(args)
    generated, training, held_out = (create_reference(input=args[f"input{side}"], **keywords) for side in (1, 2, 3))
    found = memorization(generated, training, held_out, LSHConfig.from_kwargs(args))
    return _as_json(found.to_dict()) if args["json"] else str(found), 0


def _watch(args: dict[str, Any]) -> tuple[str, int]:
    keywords = {name: value for name, value in _call_keywords(args).items() if name != "input1"}
    output = args["output"] or str(Path(args["folder"]) / "scores.jsonl")
    settings = {name: args[name] for name in ("every", "settle", "once")}
    count = 0
    for line in watch(args["folder"], output, **settings, **keywords):
        count += 1
        if rank_and_size()[0] == 0:
            print(as_line(line), file=sys.stderr)
    return f"{output}: {count} lines added", 0


def _index(args: dict[str, Any]) -> tuple[str, int]:
    make, suffix = _FORMATS[args["format"]]
    on_first(lambda: check_writable(args["output"], "--output", suffix))
    text, summary = make(args["output"], {"input": args["input"], **_keywords_of_one_input(args)})
    return _as_json({"output": args["output"], **summary}) if args["json"] else f"{args['output']}: {text}", 0


def _index_lsh(output: str, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    reference = create_reference(**keywords)
    on_first(lambda: save_reference(reference, output))
    source = f" from {reference.source}" if reference.source else ""
    return f"{len(reference)} samples, {reference.dimension} features each{source}", {
        "samples": len(reference),
        "dimension": reference.dimension,
        "feature_extractor": reference.feature_extractor,
        "feature_layer": reference.feature_layer,
    }


def _index_statistics(output: str, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    statistics = create_statistics(**keywords)
    on_first(lambda: save_statistics(statistics, output))
    source = f" from {statistics.source}" if statistics.source else ""
    summary = {"dimension": statistics.dimension, "source": statistics.source}
    return f"mean and covariance of {statistics.dimension} features{source}", summary


def _index_samples(output: str, keywords: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    count = on_first(lambda: save_samples(output, **keywords))
    return f"{count} images", {"samples": count}


_FORMATS = {
    "lsh": (_index_lsh, SUFFIX),
    "adm": (_index_samples, ".npz"),
    "pytorch-fid": (_index_statistics, ".npz"),
}


def make_parser() -> argparse.ArgumentParser:
    """Return upstream's parser with the flags of all registered metrics added."""
    parser = _upstream_parser()
    parser.prog = "fidelity-lsh"
    parser.usage = "%(prog)s --input1 GENERATED --input2 REAL METRIC [METRIC ...] [options]"
    parser.description = (
        "Metrics of generated samples (input1) against real ones (input2). "
        "Either input can also be a file of ready features N x D: .npy, .npz or .safetensors; an .npz file of images "
        "(arr_0); for --fid one of mu and sigma; or a reference file written by fidelity-lsh index."
    )
    parser.allow_abbrev = False
    _add_registered_metrics(parser)
    return parser


# Upstream's options of the input and of the extraction of features.
_ONE_INPUT = "whatever --input2 of fidelity-lsh takes, but a generative model"
_INDEX_OPTIONS = (
    "batch_size",
    "cache",
    "cache_root",
    "cpu",
    "datasets_download",
    "datasets_root",
    "feature_extractor",
    "feature_extractor_compile",
    "feature_extractor_internal_dtype",
    "feature_extractor_weights_path",
    "gpu",
    "json",
    "rng_seed",
    "samples_find_deep",
    "samples_find_ext",
    "samples_resize_and_crop",
    "save_cpu_ram",
    "silent",
)


def _subcommand_parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"fidelity-lsh {name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def make_index_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh index``: upstream's options of one input and of feature extraction."""
    parser = _subcommand_parser(
        "index",
        "Reduce one set of samples to a small file, to be --input2 of many calls with --lsh or --lsh-knn, "
        "or write it as other tools read it.",
    )
    parser.add_argument("--input", required=True, help=f"the samples: {_ONE_INPUT}")
    parser.add_argument("--output", required=True, help="file to write, ending in .safetensors, or .npz")
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default="lsh",
        help="lsh: for --lsh and --lsh-knn; adm: the images, as arr_0; pytorch-fid: mean and covariance for FID",
    )
    parser.add_argument("--feature-layer-fid", help="name of the feature layer of --format pytorch-fid")
    _add_options_of_one_input(parser, ("num_components",))
    return parser


def make_compare_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh compare``."""
    parser = _subcommand_parser(
        "compare",
        "Compare two generators with the same real samples: differences with 95 % confidence intervals.",
    )
    inputs = {"input1": "the generated samples", "against": "those of the other generator", "input2": "the real ones"}
    for name, samples in inputs.items():
        parser.add_argument(_flag(name), required=True, help=f"{samples}: {_ONE_INPUT}")
    parser.add_argument("--metric", choices=METRICS, default="lsh_knn", help="what is compared")
    parser.add_argument("--paired", action="store_true", help="row i of both generators comes from the same latent")
    parser.add_argument(
        "--fail-below", type=float, help="exit with 3 where the interval of a difference ends below this, such as -0.05"
    )
    _add_options_of_one_input(parser, tuple(option_fields()))
    return parser


def make_classes_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh classes``."""
    parser = _subcommand_parser(
        "classes",
        "Precision and recall of each class, with 95 % confidence intervals; the five worst are printed.",
    )
    inputs = {"1": "the generated samples", "2": "the real ones"}
    for side, samples in inputs.items():
        parser.add_argument(f"--input{side}", required=True, help=f"{samples}, sorted into sub-folders, or with labels")
        parser.add_argument(f"--labels{side}", help=f"classes of {samples}, integers in an .npy file")
    parser.add_argument("--metric", choices=METRICS, default="lsh_knn", help="what is measured")
    _add_options_of_one_input(parser, tuple(option_fields()))
    return parser


def make_memorization_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh memorization``."""
    parser = _subcommand_parser(
        "memorization",
        "Share of generated samples that are copies of training samples, with a 95 % confidence interval.",
    )
    inputs = ("the generated samples", "what the generator was trained on", "real samples that it was not trained on")
    for side, samples in enumerate(inputs, start=1):
        parser.add_argument(f"--input{side}", required=True, help=f"{samples}: {_ONE_INPUT}")
    _add_options_of_one_input(parser, ("num_components",))
    return parser


def make_watch_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh watch``."""
    parser = make_parser()
    parser.prog = "fidelity-lsh watch"
    parser.usage = "%(prog)s FOLDER --input2 REAL METRIC [METRIC ...] [options]"
    parser.description = (
        "Score each sub-folder, file of samples or features, and generative model in a folder as it appears; append a "
        "JSON line for each to a file. Goes on after a restart, until interrupted."
    )
    parser.add_argument("folder", help="the folder to watch")
    parser.add_argument("--output", help="file of JSON lines (default: scores.jsonl in the folder)")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two looks")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds without a change until an entry is scored")
    parser.add_argument("--once", action="store_true", help="score what is there, and end")
    return parser


def _add_options_of_one_input(parser: argparse.ArgumentParser, settings: Sequence[str]) -> None:
    """Add upstream's options of one input and of feature extraction, and settings of the metrics."""
    parser.add_argument("--feature-layer-lsh", help="name of the feature layer (default: that of prc)")
    for name in settings:
        option = option_fields()[name]
        parser.add_argument(
            _flag(f"lsh_{name}"),
            type=option.metadata["parse"],
            default=option.default,
            help=_help(option.metadata["help"]),
        )
    for action in _upstream_parser()._actions:
        if action.dest.removeprefix("no_") in _INDEX_OPTIONS:
            parser._add_action(action)


class _ParserBuiltError(Exception):
    """Carries upstream's parser out of the function that builds and uses it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def _upstream_parser() -> argparse.ArgumentParser:
    def leave(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _ParserBuiltError(parser)

    parse = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = leave  # type: ignore[method-assign, assignment]
    try:
        torch_fidelity.fidelity.main()
    except _ParserBuiltError as built:
        (action,) = (action for action in built.parser._actions if action.dest == "feature_extractor")
        action.choices, action.nargs, action.metavar = None, "+", "NAME"
        action.help = (
            "names of feature extractors, registered, timm:NAME or torchvision:NAME, each with /LAYER or without"
        )
        return built.parser
    finally:
        argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]
    raise RuntimeError("The installed torch-fidelity no longer builds its command line with argparse")


def _add_registered_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report", help="file to write a page to that shows the result, ending in .html (default: None)"
    )
    parser.add_argument("--by-class", action="store_true", help="show classes in the report, which sub-folders tell")
    parser.add_argument(
        "--input3", help="real samples that the generator was not trained on, to find copies of input2 (default: None)"
    )
    parser.add_argument(
        "--fid-statistics-file", help="file of mu and sigma that serves --fid in place of --input2 (default: None)"
    )
    parser.add_argument(
        "--features-max-bytes", type=int, help="largest size of an array of an .npz file, unpacked (default: 100 times)"
    )
    group = parser.add_argument_group("registered metrics")
    entries = METRICS_REGISTRY.values()
    for entry in entries:
        group.add_argument(_flag(entry.name), action="store_true", help=_help(entry.description))
    for key in dict.fromkeys(entry.feature_layer_key for entry in entries):
        metrics = " and ".join(entry.name for entry in entries if entry.feature_layer_key == key)
        group.add_argument(_flag(key), help=f"Name of the feature layer to use with {metrics} (default if None)")
    for option in dict.fromkeys(option for entry in entries for option in entry.options):
        _add_option(group, option)


def _add_option(group: argparse._ArgumentGroup, option: MetricOption) -> None:
    flag, help_text = _flag(option.name), _help(option.help)
    if option.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=option.default, help=help_text)
    else:
        group.add_argument(flag, default=option.default, type=option.type, choices=option.choices, help=help_text)


def _flag(keyword: str) -> str:
    return "--" + keyword.replace("_", "-")


def _help(text: str) -> str:
    return text.replace("%", "%%")


def _parse_strictly(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict[str, Any]:
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        option = unknown[0].partition("=")[0]
        parser.error(f"unrecognized argument: {option}{did_you_mean(option, parser._option_string_actions)}")
    return vars(args)


def _call_keywords(args: dict[str, Any]) -> dict[str, Any]:
    """Turn parsed options into keywords of ``calculate_metrics``, as upstream's command does."""
    known = upstream.DEFAULTS.keys() | plugin_keywords().keys()
    keywords = {name: value for name, value in args.items() if name in known}
    keywords |= {name.removeprefix("no_"): not value for name, value in args.items() if name.startswith("no_")}
    return {**keywords, "verbose": not args["silent"], "cuda": _wants_cuda(args)}


def _keywords_of_one_input(args: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of ``create_reference``, its input apart."""
    return {name: value for name, value in _call_keywords(args).items() if name not in ("input1", "input2", "input3")}


def _wants_cuda(args: dict[str, Any]) -> bool:
    cuda = not args["cpu"] and os.environ.get("CUDA_VISIBLE_DEVICES", "") != ""
    if torch.cuda.is_available() and not cuda:
        print("CUDA is available but --gpu option is not specified", file=sys.stderr)
    return cuda


def _as_json(values: dict[str, Any]) -> str:
    # --ppl-reduction none returns an array.
    return json.dumps(values, indent=4, default=np.ndarray.tolist, allow_nan=False)


def _as_text(metrics: dict[str, Any]) -> str:
    if any("/" in key for key in metrics):
        return as_table(metrics)
    lines = (
        f"{key}: {value}" if isinstance(value, np.ndarray) else f"{key}: {value:.7g}" for key, value in metrics.items()
    )
    return "\n".join(lines)


_COMMANDS = {
    "": (make_parser, _measure),
    "index": (make_index_parser, _index),
    "compare": (make_compare_parser, _compare),
    "classes": (make_classes_parser, _classes),
    "memorization": (make_memorization_parser, _memorization),
    "watch": (make_watch_parser, _watch),
}
