"""Data that others publish: where it is, under which licence, and how it gets here. None of it ships with the course.

Files are looked for in the folder that ``DPO_TUTORIAL_DATA`` names, then in the user's cache, then on the network,
where the size is stated before anything is downloaded. A file whose hash is known is used only when it has that hash;
of the others the hash is written down at the first download, and a later download must have it again.
"""

import contextlib
import functools
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from dpo_tutorial.data import pairs
from dpo_tutorial.data.pairs import prompt_id, write_atomically

_PANDALM = "https://raw.githubusercontent.com/WeOpenML/PandaLM/3871806e/data/"
_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/cd543a14/"
LEADERBOARD = "src/alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
# The models of the course's table; the list fixes it, since the original gains models over time.
ALPACA_MODELS = tuple(
    """FuseChat-Gemma-2-9B-Instruct FuseChat-Llama-3.1-8B-Instruct FuseChat-Llama-3.2-1B-Instruct
    FuseChat-Qwen-2.5-7B-Instruct Mixtral-8x7B-Instruct-v0.1_concise NullModel OpenHermes-2.5-Mistral-7B alpaca-7b
    alpaca-7b_concise alpaca-7b_verbose alpaca-farm-ppo-human alpaca-farm-ppo-sim-gpt4-20k baize-v2-13b chatglm2-6b
    claude claude-2 claude-instant-1.2 falcon-7b-instruct gemma-2b-it gpt-3.5-turbo-1106 gpt-3.5-turbo-1106_concise
    gpt-3.5-turbo-1106_verbose gpt35_turbo_instruct gpt4_0613_concise gpt4_1106_preview gpt4_gamed jina-chat
    minichat-3b nous-hermes-13b oasst-rlhf-llama-33b oasst-sft-llama-33b openbuddy-falcon-40b-v9
    openbuddy-llama-30b-v7.1 openbuddy-llama2-13b-v11.1 phi-2 pythia-12b-mix-sft text_davinci_001 text_davinci_003
    ultralm-13b vicuna-13b vicuna-13b-v1.5-togetherai vicuna-7b vicuna-7b-v1.3 vicuna-7b-v1.5""".split()
)


class MissingData(FileNotFoundError):
    """Data that is neither here nor to be had; the message says what to set or to do."""


@dataclass(frozen=True)
class File:
    """One published file: its place below the data folder, address, size in bytes, and hash where it is known."""

    path: str
    url: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """One entry of the catalogue: either ``files``, or ``hub``, the id (and options) of a Hugging Face dataset."""

    title: str
    licence: str
    citation: str
    page: str
    files: tuple[File, ...] = ()
    hub: str = ""
    options: dict = field(default_factory=dict)


def judged_path(model: str) -> str:
    """Where AlpacaEval's repository keeps the judgements of one model."""
    return f"results/{model}/weighted_alpaca_eval_gpt4_turbo/annotations.json"


def _pandalm(*files: tuple[str, int, str]) -> Source:
    return Source(
        "PandaLM's test set: 999 comparisons, three human annotators, verdicts of two machine judges",
        "Apache-2.0",
        "arXiv 2306.05087",
        "https://github.com/WeOpenML/PandaLM",
        tuple(File(f"pandalm/{name}", _PANDALM + name, size, sha256) for name, size, sha256 in files),
    )


_HUMANS = ("testset-v1.json", 937899, "cc154f9067c7382d7ea86f8f246511a5e1ac87e1fddd845c5938d789505b07a4")
_GPT = ("gpt-3.5-turbo-testset-v1.json", 459434, "4c00aa7b3eeae504050a037422ba6f5b0a2ee041680f47bb77b8a4b549b128e3")
_PANDA = ("pandalm-7b-testset-v1.json", 403524, "9a40b62a7bb2aa87ca77eb8bfcb51539b5a62f974ce91678d30e834d65ed0a7e")
CATALOGUE = {
    "pandalm": _pandalm(_HUMANS),
    "pandalm_judges": _pandalm(_GPT, _PANDA),
    "alpaca_eval": Source(
        f"AlpacaEval 2: GPT-4 Turbo's judgements of {len(ALPACA_MODELS)} models against gpt4_1106_preview",
        "CC BY-NC 4.0",
        "arXiv 2404.04475",
        "https://github.com/tatsu-lab/alpaca_eval",
        (
            *(File(f"alpaca_eval/results/{m}.json", _ALPACA + judged_path(m), 3_700_000) for m in ALPACA_MODELS),
            File("alpaca_eval/published.csv", _ALPACA + LEADERBOARD, 30_000),
        ),
    ),
    "hh_rlhf": Source(
        "Anthropic's helpful and harmless dialogues, human preferences",
        "MIT",
        "arXiv 2204.05862",
        "https://huggingface.co/datasets/Anthropic/hh-rlhf",
        hub="Anthropic/hh-rlhf",
    ),
    "ultrafeedback": Source(
        "UltraFeedback, binarized: GPT-4's scores of four responses, best against a random other",
        "MIT",
        "arXiv 2310.01377, 2310.16944",
        "https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
        hub="HuggingFaceH4/ultrafeedback_binarized",
        options={"split": "train_prefs"},
    ),
    "helpsteer2": Source(
        "HelpSteer2-Preference: human preferences with a strength from -3 (first) to 3 (second)",
        "CC BY 4.0",
        "arXiv 2410.01257",
        "https://huggingface.co/datasets/nvidia/HelpSteer2",
        hub="nvidia/HelpSteer2",
        options={"data_dir": "preference"},
    ),
}


def catalogue() -> pd.DataFrame:
    """The catalogue: ``name, title, licence, citation, page, megabytes, here`` (sizes on the hub are not known)."""
    rows = [
        (name, s.title, s.licence, s.citation, s.page, sum(f.size for f in s.files) / 1e6 or None, here(name))
        for name, s in CATALOGUE.items()
    ]
    return pd.DataFrame(rows, columns=["name", "title", "licence", "citation", "page", "megabytes", "here"])


def load(name: str, *, network: bool = True, say: Callable = print, limit: int | None = None) -> pd.DataFrame:
    """One dataset as a DataFrame.

    Args:
        name: a key of ``CATALOGUE``.
        network: whether a file that is not here may be downloaded (never when ``HF_HUB_OFFLINE`` is set).
        say: gets a sentence with the size before a download.
        limit: the first rows only (hub datasets: no more than these are read).

    Returns:
        ``pandalm``: ``idx, prompt_id, prompt, response1, response2``, ``annotator1`` to ``annotator3`` (1, 2,
        0 = tie), ``votes1, votes2, votes_tied``, ``model1, model2, source``; ``formats.from_votes`` makes
        pairs of it.
        ``pandalm_judges``: ``idx, gpt_35_turbo, pandalm_7b`` (1, 2, 0 = tie, missing where a verdict is
        none of these).
        ``alpaca_eval``: ``model, instruction_id, preference, len_output, len_baseline``; the published rates are
        in ``alpaca_eval_leaderboard()``. The hub datasets: preference pairs as ``pairs.load`` gives them.

    Raises:
        MissingData: not here, and not to be had; the message says what to set.
        ValueError: the name is not in the catalogue, or a file has another hash than it should have.
    """
    source = _source(name)
    if source.hub:
        rows = "all rows" if limit is None else f"the first {limit:,} rows"
        say(f"Reading {rows} of {source.hub} from the Hugging Face hub, streamed (limit=N reads only N)")
        kept, _ = pairs.load(source.hub, on_error="reject", limit=limit, **source.options)
        return kept
    table = _LOADERS[name](functools.partial(_get, network=network, say=say))
    return table if limit is None else table.head(limit)


def here(name: str) -> bool:
    """Whether :func:`load` needs no network for this name (hub datasets are not looked for: False)."""
    source = _source(name)
    if name == "alpaca_eval" and _find("alpaca_eval/annotations.csv.gz"):
        return True
    return bool(source.files) and all(_find(file.path) for file in source.files)


def data_dir() -> Path | None:
    """The folder that ``DPO_TUTORIAL_DATA`` names, or None."""
    value = os.environ.get("DPO_TUTORIAL_DATA")
    return Path(value) if value else None


def cache_root() -> Path:
    """The course's folder for what was downloaded: ``DPO_TUTORIAL_CACHE``, else in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DPO_TUTORIAL_CACHE") or Path(base) / "dpo_tutorial")


def cache_dir() -> Path:
    """Where downloaded data is kept: ``data`` in :func:`cache_root`."""
    return cache_root() / "data"


def alpaca_eval_leaderboard(*, network: bool = True, say: Callable = print) -> pd.DataFrame:
    """The published rates of the table's models, by model, in per cent (one of the table's models is not on it)."""
    if found := _find("alpaca_eval/leaderboard.csv"):
        return pd.read_csv(found, index_col=0)
    return published_rates(_get(CATALOGUE["alpaca_eval"].files[-1], network=network, say=say))


def _source(name: str) -> Source:
    if name not in CATALOGUE:
        raise ValueError(f"name is {name!r}; accepted are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def _find(path: str) -> Path | None:
    """The file in the user's data folder, else in the cache, else None."""
    for folder in (data_dir(), cache_dir()):
        if folder and (folder / path).is_file():
            return folder / path
    return None


def _get(file: File, *, network: bool, say: Callable) -> Path:
    """The file on disk with the hash it should have; downloaded when it is nowhere."""
    if found := _find(file.path):
        _check_hash(file, _sha256(found), str(found), pin=False)
        return found
    if not network or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise _missing(file, "the network was not asked")
    return _download(file, say)


def _missing(file: File, why: str) -> MissingData:
    folder = data_dir()
    looked = f"{folder} (DPO_TUTORIAL_DATA)" if folder else "DPO_TUTORIAL_DATA (not set)"
    return MissingData(
        f"{file.path} is neither in {looked} nor in {cache_dir()}, and {why}. Remedy: put the file from {file.url} "
        f"there as {file.path} and set DPO_TUTORIAL_DATA to that folder, or connect once and load it again."
    )


def _download(file: File, say: Callable) -> Path:
    target = cache_dir() / file.path
    try:
        with urllib.request.urlopen(file.url, timeout=20) as answer:
            size = int(answer.headers.get("Content-Length") or file.size)
            say(f"Downloading {file.path}, {size / 1e6:.1f} MB, from {file.url}")
            content = answer.read()
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:  # the last: cut off in the middle
        raise _missing(file, f"the download failed ({getattr(error, 'reason', error)})") from error
    _check_hash(file, hashlib.sha256(content).hexdigest(), file.url, pin=True)
    _write(target, content)
    return target


def _write(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, [content])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(file: File, found: str, where: str, *, pin: bool) -> None:
    """Compare with the known hash, else with the one written down at the first download, else write it down."""
    pins_path = cache_dir() / "pins.json"
    pins = {}
    with contextlib.suppress(FileNotFoundError):
        pins = json.loads(pins_path.read_text(encoding="utf-8"))
    expected = file.sha256 or pins.get(file.path)
    if expected is None and pin:
        _write(pins_path, json.dumps(pins | {file.path: found}, indent=1, sort_keys=True).encode())
    elif expected not in (None, found):
        known = "known to the course" if file.sha256 else f"written down in {pins_path} at the first download"
        raise ValueError(
            f"{where} has sha256 {found}, expected {expected} ({known}); it was not used. "
            "Remedy: fetch it again; if its authors changed it, the course's figures are not those of the new file"
        )


def _load_pandalm(get: Callable) -> pd.DataFrame:
    (file,) = CATALOGUE["pandalm"].files
    rows = json.loads(get(file).read_text(encoding="utf-8"))
    table = pd.DataFrame(rows)
    prompts = [r["instruction"] + ("\n\n" + r["input"] if r["input"].strip() else "") for r in rows]
    table["prompt"], table["prompt_id"], table["source"] = prompts, [prompt_id(p) for p in prompts], "pandalm"
    table[["model1", "model2"]] = [key.split("_") for key in table["cmp_key"]]
    votes = table[[f"annotator{k}" for k in (1, 2, 3)]]
    for label, name in ((1, "votes1"), (2, "votes2"), (0, "votes_tied")):
        table[name] = (votes == label).sum(axis=1)
    names = ["idx", "prompt_id", "prompt", "response1", "response2", *votes, "votes1", "votes2", "votes_tied"]
    return table[[*names, "model1", "model2", "source"]]


def _load_judges(get: Callable) -> pd.DataFrame:
    tables = []
    for file, key, name in zip(
        CATALOGUE["pandalm_judges"].files,
        ("gpt_result", "pandalm_result"),
        ("gpt_35_turbo", "pandalm_7b"),
        strict=True,
    ):
        rows = json.loads(get(file).read_text(encoding="utf-8"))
        verdicts = pd.array([_verdict(row[key]) for row in rows], dtype="Int64")
        tables.append(pd.Series(verdicts, index=[row["idx"] for row in rows], name=name))
    return pd.concat(tables, axis=1).rename_axis("idx").reset_index()


def _verdict(value) -> int | None:
    """1, 2, or 0 for a tie; None for anything else (a judge that answered with something else)."""
    return {"1": 1, "2": 2, "0": 0, "tie": 0}.get(str(value).strip().lower())


def _load_alpaca(get: Callable) -> pd.DataFrame:
    if found := _find("alpaca_eval/annotations.csv.gz"):
        return pd.read_csv(found)
    return extract_alpaca_eval(_annotation_files(get))


def _annotation_files(get: Callable) -> dict[str, Path]:
    files = CATALOGUE["alpaca_eval"].files[:-1]
    return {model: get(file) for model, file in zip(ALPACA_MODELS, files, strict=True)}


def alpaca_eval_files(*, say: Callable = print) -> tuple[dict[str, Path], Path]:
    """AlpacaEval's own annotation files by model, and its leaderboard; fetched where they are not here."""
    get = functools.partial(_get, network=True, say=say)
    return _annotation_files(get), get(CATALOGUE["alpaca_eval"].files[-1])


def extract_alpaca_eval(files: dict[str, Path]) -> pd.DataFrame:
    """The numbers of AlpacaEval's annotation files: no texts.

    Args:
        files: per model, its ``annotations.json`` (rows with ``instruction, output_1, output_2, preference``).

    Returns:
        ``model, instruction_id, preference`` (1 = baseline wins .. 2 = model wins), ``len_output, len_baseline`` in
        characters, sorted by model and instruction. ``instruction_id`` is the rank of the instruction's text among
        all instructions of the files; rows without a preference are left out.
    """
    judged = {m: json.loads(Path(path).read_text(encoding="utf-8")) for m, path in files.items()}
    rank = {
        text: k for k, text in enumerate(sorted({row["instruction"] for rows in judged.values() for row in rows}))
    }
    table = [
        (m, rank[r["instruction"]], round(r["preference"], 6), len(r["output_2"]), len(r["output_1"]))
        for m, rows in judged.items()
        for r in rows
        if r["preference"] is not None
    ]
    frame = pd.DataFrame(table, columns=["model", "instruction_id", "preference", "len_output", "len_baseline"])
    return frame.sort_values(["model", "instruction_id"]).reset_index(drop=True)


def published_rates(path: Path) -> pd.DataFrame:
    """The published leaderboard, the table's models and columns only."""
    frame = pd.read_csv(path, index_col=0)
    columns = ["win_rate", "standard_error", "length_controlled_winrate", "avg_length", "n_total"]
    return frame.loc[[m for m in ALPACA_MODELS if m in frame.index], columns]


_LOADERS = {"pandalm": _load_pandalm, "pandalm_judges": _load_judges, "alpaca_eval": _load_alpaca}
