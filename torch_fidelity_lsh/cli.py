"""Command ``fidelity-lsh``: torch-fidelity's command line with the registered metrics added, parsed strictly."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn

import numpy as np
import torch
import torch_fidelity.fidelity

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.calculate import calculate_metrics, create_reference
from torch_fidelity_lsh.fidelity.distributed import RanksError, rank_and_size, ranks_of_torchrun, together
from torch_fidelity_lsh.fidelity.registry import METRICS_REGISTRY, MetricOption, plugin_keywords
from torch_fidelity_lsh.metric.config import option_fields
from torch_fidelity_lsh.metric.files import check_writable
from torch_fidelity_lsh.metric.messages import did_you_mean
from torch_fidelity_lsh.metric.reference import SUFFIX, save_reference

_USER_ERRORS = (ValueError, OSError, ImportError, RanksError)
_INTERRUPTED = 130  # as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, ``fidelity-lsh index`` if that is its first argument.

    The result is the only thing on stdout; progress, warnings and errors go to stderr. Under ``torchrun`` the ranks
    share the work, and the first one prints.

    Args:
        argv: Arguments without the command's name. Default: those of the process.

    Returns:
        Exit code: 0; 1 after an error in what the user asked for; 130 after an interrupt. Wrong options exit with 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    indexing = argv[:1] == ["index"]
    parser = make_index_parser() if indexing else make_parser()
    args = _parse_strictly(parser, argv[1:] if indexing else argv)
    try:
        # Upstream's KID prints a remark to stdout.
        with _short_warnings(parser.prog), ranks_of_torchrun(), redirect_stdout(sys.stderr):
            text = _index(args) if indexing else _measure(args)
            is_first = rank_and_size()[0] == 0
    except _USER_ERRORS as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    if is_first:
        print(text)
    return 0


@contextmanager
def _short_warnings(program: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"{program}: warning: {message}", file=sys.stderr)
        yield


def _measure(args: dict[str, Any]) -> str:
    metrics = calculate_metrics(**_call_keywords(args))
    return _as_json(metrics) if args["json"] else _as_text(metrics)


def _index(args: dict[str, Any]) -> str:
    together(lambda: check_writable(args["output"], "--output", SUFFIX) if rank_and_size()[0] == 0 else None)
    keywords = {name: value for name, value in _call_keywords(args).items() if name != "input2"}
    reference = create_reference(input=args["input"], **keywords)
    if rank_and_size()[0] == 0:
        save_reference(reference, args["output"])
    source = f" from {reference.source}" if reference.source else ""
    text = f"{args['output']}: {len(reference)} samples, {reference.dimension} features each{source}"
    summary = {"output": args["output"], "samples": len(reference), "dimension": reference.dimension}
    sources = {"feature_extractor": reference.feature_extractor, "feature_layer": reference.feature_layer}
    return _as_json({**summary, **sources}) if args["json"] else text


def make_parser() -> argparse.ArgumentParser:
    """Return upstream's parser with the flags of all registered metrics added."""
    parser = _upstream_parser()
    parser.prog = "fidelity-lsh"
    parser.usage = "%(prog)s --input1 GENERATED --input2 REAL METRIC [METRIC ...] [options]"
    parser.description = (
        "Metrics of generated samples (input1) against real ones (input2). "
        "Either input can also be a file of ready features N x D: .npy, .npz or .safetensors, or a reference file "
        "written by fidelity-lsh index."
    )
    parser.allow_abbrev = False
    _add_registered_metrics(parser)
    return parser


# Upstream's options of the input and of the extraction of features.
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


def make_index_parser() -> argparse.ArgumentParser:
    """Return the parser of ``fidelity-lsh index``: upstream's options of one input and of feature extraction."""
    parser = argparse.ArgumentParser(
        "fidelity-lsh index",
        description="Reduce one set of samples to a small file, to be --input2 of many calls with --lsh or --lsh-knn.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", required=True, help="the samples: whatever --input2 of fidelity-lsh takes")
    parser.add_argument("--output", required=True, help="file to write, ending in .safetensors")
    parser.add_argument("--feature-layer-lsh", help="name of the feature layer (default: that of prc)")
    components = option_fields()["num_components"]
    parser.add_argument(
        "--lsh-num-components", type=int, default=components.default, help=_help(components.metadata["help"])
    )
    for action in _upstream_parser()._actions:
        if action.dest.removeprefix("no_") in _INDEX_OPTIONS:
            parser._add_action(action)
    return parser


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
        return built.parser
    finally:
        argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]
    raise RuntimeError("The installed torch-fidelity no longer builds its command line with argparse")


def _add_registered_metrics(parser: argparse.ArgumentParser) -> None:
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


def _wants_cuda(args: dict[str, Any]) -> bool:
    if args["gpu"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = args["gpu"]
    cuda = not args["cpu"] and os.environ.get("CUDA_VISIBLE_DEVICES", "") != ""
    if torch.cuda.is_available() and not cuda:
        print("CUDA is available but --gpu option is not specified", file=sys.stderr)
    return cuda


def _as_json(values: dict[str, Any]) -> str:
    # --ppl-reduction none returns an array.
    return json.dumps(values, indent=4, default=np.ndarray.tolist, allow_nan=False)


def _as_text(metrics: dict[str, Any]) -> str:
    lines = (
        f"{key}: {value}" if isinstance(value, np.ndarray) else f"{key}: {value:.7g}" for key, value in metrics.items()
    )
    return "\n".join(lines)
