"""The commands: arguments, exit codes, messages. Imports are deferred until the arguments
are parsed."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sjepa import __version__
from sjepa.core.allocation import keep_freed_memory
from sjepa.core.errors import ToldByMain, UserError
from sjepa.core.threads import take_short_turns, usable_cores
from sjepa.entrypoints.flags import add_flags, as_overrides

EXIT_FAULT, EXIT_USER, EXIT_SIGNAL = 1, 2, 128
SHELLS = ("bash", "zsh")

_SCHEMAS = {  # homes of the configuration schemas
    "traintok": "sjepa.tokenizer.schema",
    "runtok": "sjepa.entrypoints.tokens",
    "evaltok": "sjepa.entrypoints.codec_quality",
}

Work = Callable[[argparse.Namespace], int | None]


def trainsjepa() -> int:
    """Trains, validates each epoch, evaluates at the end; or writes a configuration."""

    def work(options: argparse.Namespace) -> int | None:
        keep_freed_memory()
        if options.init is not None:
            return _init(options)
        if options.template or options.out or options.hours is not None:
            raise UserError("--template, --hours and --out belong to --init")
        from sjepa.s_jepa.schema import load_config

        config = load_config(options.config, options.overrides)
        from sjepa.entrypoints.systems import SYSTEMS  # slow imports after the configuration check
        from sjepa.entrypoints.train import train

        return train(SYSTEMS["s-jepa"], config, dry_run=options.dry_run)

    parser = _parser("trainsjepa", "Train a speech encoder without labels.", "cpu/configs/train.yaml train.epochs=3")
    parser.add_argument("--dry-run", action="store_true", help="print data, plan, parameters and memory, and stop")
    start = parser.add_argument_group("a configuration to start from")
    start.add_argument("--init", nargs="?", const="", metavar="AUDIO", help="write one for these recordings, and stop")
    start.add_argument("--hours", type=float, metavar="H", help="time for training (default: 2)")
    start.add_argument("--template", metavar="NAME", help="a shipped one instead, such as train_twophase")
    start.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: NAME.yaml)")
    return _run(parser, work)


def _init(options: argparse.Namespace) -> int:
    if options.config:
        raise UserError("--init writes a configuration; it takes none (-c)")
    if options.hours is not None and not 0 < options.hours < 1e5:
        raise UserError(f"--hours: {options.hours:g} is not a number of hours above 0")
    if bool(options.template) == bool(options.init):
        raise UserError("--init: name a folder, archive or manifest of recordings, or --template NAME")
    from sjepa.entrypoints.init import write_configuration, write_template

    if options.template:
        if options.overrides or options.hours is not None:
            raise UserError("--template copies a configuration as it is; neither --hours nor key=value go with it")
        return write_template(options.template, options.out)
    return write_configuration(options.init, options.out, hours=options.hours or 2.0, overrides=options.overrides)


def evalsjepa() -> int:
    """Evaluates a trained model on the full test set; or compares runs."""

    def work(options: argparse.Namespace) -> int | None:
        if options.overrides[:1] == ["compare"]:
            from sjepa.entrypoints.compare import compare

            return compare([Path(folder) for folder in options.overrides[1:]], options.out or Path("compare.html"))
        if options.out:
            raise UserError("--out belongs to compare")
        from sjepa.config.load import overridden
        from sjepa.s_jepa.schema import load_config

        config = load_config(options.config, options.overrides)
        from sjepa.entrypoints.evaluate import evaluate_weights

        return evaluate_weights(config, overridden=overridden(options.overrides))

    parser = _parser("evalsjepa", "Evaluate a trained model on the full test set.", "cpu/configs/eval.yaml")
    parser.epilog = f"{parser.epilog}\n         evalsjepa compare runs/ONE runs/OTHER --out compare.html"
    parser.add_argument("--out", type=Path, metavar="FILE", help="page that compare writes (default: compare.html)")
    return _run(parser, work)


def buildh5ds() -> int:
    """Decodes every clip once into HDF5."""

    def work(options: argparse.Namespace) -> int | None:
        from sjepa.s_jepa.schema import load_config

        config = load_config(options.config, options.overrides)
        from sjepa.entrypoints.build_h5 import build_files

        return build_files(config)

    return _run(_parser("buildh5ds", "Decode every clip once into HDF5.", "cpu/configs/hdf5.yaml"), work)


def exportw() -> int:
    """Writes the encoder as ONNX and as a Hugging Face folder."""

    def work(options: argparse.Namespace) -> int | None:
        from sjepa.config.load import overridden
        from sjepa.s_jepa.schema import load_config

        config = load_config(options.config, options.overrides)
        from sjepa.entrypoints.export import export_encoder

        return export_encoder(config, overridden=overridden(options.overrides))

    return _run(_parser("exportw", "Export the encoder of trained weights.", "cpu/configs/export.yaml"), work)


def runinfer() -> int:
    """Features of recordings from an exported encoder. Arguments are parsed by the standalone
    `inference.py`."""
    _say_anything()
    if "--help-config" in sys.argv[1:]:
        section = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        return _told("runinfer", lambda: _print_reference("runinfer", section))
    from sjepa.inference import main

    take_short_turns()
    return main(version=__version__, threads=usable_cores())


def traintok() -> int:
    """Trains the tokenizer; every flag is another name of a configuration key."""
    about = "Train the tokenizer: its encoder, without labels (stage 1), then its decoder (stage 2)."
    parser = _parser("traintok", about, "cpu/configs/tok_jepa.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print data, plan, parameters and memory, and stop")
    add_flags(parser)

    def work(options: argparse.Namespace) -> int | None:
        keep_freed_memory()
        from sjepa.config.load import load_config
        from sjepa.tokenizer.schema import SCHEMA

        config = load_config(SCHEMA, options.config, [*as_overrides(options), *options.overrides])
        from sjepa.entrypoints.systems import SYSTEMS
        from sjepa.entrypoints.train import train

        system = SYSTEMS["tokenizer decoder" if config.train.stage == "train_decoder" else "tokenizer encoder"]
        return train(system, config, dry_run=options.dry_run)

    return _run(parser, work)


def runtok() -> int:
    """Turns audio into tokens of the tokenizer, and tokens into audio."""

    def work(options: argparse.Namespace) -> int | None:
        from sjepa.config.load import load_config
        from sjepa.entrypoints.tokens import SCHEMA, run

        flags = {name: getattr(options, name) for name in ("weights", "out") if getattr(options, name)}
        keys = [item for item in options.inputs if "=" in item and not Path(item).exists()]
        inputs = [Path(item) for item in options.inputs if item not in keys]
        return run(options.action, inputs, load_config(SCHEMA, options.config, keys).model_copy(update=flags))

    parser = argparse.ArgumentParser(
        prog="runtok",
        add_help=False,
        description="Audio to tokens (encode), tokens to audio (decode), statistics of token files (stats).",
        epilog="example: runtok encode recordings/ --weights runs/NAME/train2/weights/best.pt --out tokens",
    )
    parser.add_argument("action", choices=("encode", "decode", "stats"))
    parser.add_argument(
        "inputs", nargs="*", metavar="FILE or key=value", help="audio files and folders, or token files"
    )
    parser.add_argument("--weights", metavar="FILE", help="weights of stage 2")
    parser.add_argument("--out", metavar="PATH", help="folder for tokens, or audio file")
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="YAML configuration of the same keys")
    _add_general(parser)
    parser.set_defaults(help_config=None, config_schema=False)
    return _run(parser, work)


def evaltok() -> int:
    """Evaluates a trained tokenizer: audio from tokens, use of the tokens, probes."""

    def work(options: argparse.Namespace) -> int | None:
        from sjepa.config.load import load_config
        from sjepa.entrypoints.codec_quality import SCHEMA, evaluate_codec

        return evaluate_codec(load_config(SCHEMA, options.config, options.overrides))

    return _run(
        _parser("evaltok", "Evaluate a trained tokenizer on the full test set.", "cpu/configs/tok_eval.yaml"), work
    )


def ckpt2pt() -> int:
    """Consolidates a checkpoint folder of DeepSpeed's layout into one file."""

    def work(options: argparse.Namespace) -> int | None:
        from sjepa.tokenizer.convert import convert

        given = {name: getattr(options, name) for name in ("tag", "encoder_only", "assert_gaatn")}
        print(convert(options.ds_dir, options.out_pt, **given))
        return 0

    parser = argparse.ArgumentParser(
        prog="ckpt2pt", description="Consolidate a checkpoint folder into one file.", add_help=False
    )
    parser.add_argument(
        "--ds_dir", type=Path, required=True, metavar="DIR", help="folder that holds latest, step<N>, final"
    )
    parser.add_argument("--out_pt", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--tag", help="step<N> or final (default: what latest names)")
    parser.add_argument("--encoder_only", action="store_true", help="the encoder alone")
    parser.add_argument("--assert_gaatn", action="store_true", help="error unless Gaussian adaptive attention is in it")
    _add_general(parser)
    parser.set_defaults(help_config=None, config_schema=False)
    return _run(parser, work)


def _parser(command: str, purpose: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command,
        description=purpose,
        epilog=f"example: {command} -c {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    group = parser.add_argument_group("configuration")
    group.add_argument("-c", "--config", type=Path, metavar="FILE", help="YAML configuration (default: the defaults)")
    group.add_argument("overrides", nargs="*", metavar="section.key=value", help="single keys instead of the file's")
    group.add_argument("--help-config", nargs="?", const="", metavar="SECTION", help="print its keys and stop")
    group.add_argument("--config-schema", action="store_true", help="print a JSON schema of it, for editors, and stop")
    _add_general(parser)
    return parser


def _add_general(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("general")
    group.add_argument("-h", "--help", action="help", help="show this text and stop")
    group.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")
    group.add_argument(
        "--print-completion", choices=SHELLS, action=_PrintCompletion, help="print completion for this shell and stop"
    )


class _PrintCompletion(argparse.Action):
    """Prints and ends, whatever else is required."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        from sjepa.entrypoints.completion import completion

        print(completion(parser, values, None if parser.prog == "ckpt2pt" else _schema(parser.prog)))
        parser.exit()


def _run(parser: argparse.ArgumentParser, work: Work, arguments: Sequence[str] | None = None) -> int:
    """Runs `work` and returns the exit code (see `_exit_code`)."""
    code = _exit_code(parser, work, arguments)
    gc.collect()  # shuts down remaining loader workers, which could block interpreter exit
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # communication threads may abort at interpreter shutdown if other ranks have exited
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _exit_code(parser: argparse.ArgumentParser, work: Work, arguments: Sequence[str] | None) -> int:
    """Exit codes: 0 success, 1 internal error, 2 invalid input (one line each), 128 + n stopped
    by signal n after saving."""

    def whole() -> int:
        options = parser.parse_intermixed_args(arguments)
        if options.help_config is not None:
            return _print_reference(parser.prog, options.help_config)
        if options.config_schema:
            return _print_schema(parser.prog)
        take_short_turns()
        return work(options) or 0

    return _told(parser.prog, whole)


def _told(command: str, work: Callable[[], int]) -> int:
    """Runs `work`; exceptions become lines and exit codes."""
    _say_anything()
    try:
        return work()
    except ToldByMain:
        return 0
    except UserError as error:
        for line in str(error).splitlines():
            print(f"{command}: {line}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return EXIT_SIGNAL + 2
    except BrokenPipeError:  # stdout was closed by its reader
        sys.stderr.close()
        return EXIT_SIGNAL + 13
    except Exception as error:
        return _fault(command, error)


def _say_anything() -> None:
    """Escapes characters that the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _print_reference(command: str, section: str = "") -> int:
    from sjepa.config.reference import reference

    print(reference(_schema(command), section))
    return 0


def _print_schema(command: str) -> int:
    from sjepa.config.reference import json_schema

    print(json_schema(_schema(command)))
    return 0


def _schema(command: str) -> Any:
    return import_module(_SCHEMAS.get(command, "sjepa.s_jepa.schema")).SCHEMA


def _fault(command: str, error: Exception) -> int:
    """One line for the user; the traceback goes to the run's log if there is one, else to
    stderr."""
    console = sys.modules.get("sjepa.reporting.console")
    log_file = getattr(console, "log_file", None)
    if log_file is not None:
        with log_file.open("a", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
    else:
        traceback.print_exception(error)
    where = f"; the traceback is in {log_file}" if log_file else ""
    print(f"{command}: internal error ({type(error).__name__}: {error}){where}", file=sys.stderr)
    return EXIT_FAULT
