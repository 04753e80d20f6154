"""Where rows come from: files, folders, URLs, data sets of the Hub, and data in memory."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdss.chat.nulls import as_meant
from fastdss.errors import UserError, UserTypeError

from .files import KINDS, Found, is_url, kind_of
from .readers import is_unread, read_file
from .splits import check_split, split_of
from .tables import is_saved, read_memory, read_saved, saved_split

Source = str | Path | Iterable[Mapping[str, Any]]

# What tells tables of which only a log says which of their files count.
_TABLES = {"_delta_log/*": "Delta Lake", ".hoodie": "Hudi", "metadata/*.metadata.json": "Iceberg"}
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


def several(source: Any) -> list[Source]:
    """A source, or several paths, as a list of sources."""
    if isinstance(source, str | Path):
        return [source]
    if isinstance(source, Sequence) and source and all(isinstance(item, str | Path) for item in source):
        return list(source)
    return [source]


def expand(sources: Sequence[Source], split: str | None = None, config: str | None = None) -> list[Source]:
    """The sources, with each folder replaced by its files and each Hub id by its data set.

    Raises ``ValueError`` where several splits are found and none is named.
    """
    expanded: list[Source] = []
    of_hub = 0
    for source in sources:
        if not isinstance(source, str | Path):
            if split not in (None, str(getattr(source, "split", None))):
                raise UserError(f"split: data in memory holds no splits, got {split!r}: leave it out")
            expanded.append(source)
            continue
        if is_url(str(source)):
            expanded.append(source)
            continue
        path = Path(source)
        if path.is_dir():
            expanded += _files_of(path, split)
        elif not path.exists() and kind_of(str(source)) is None and _HUB_ID.fullmatch(str(source)):
            expanded.append(_from_hub(str(source), split, config))
            of_hub += 1
        else:
            expanded.append(source)
    if config is not None and not of_hub:
        raise UserError(f"config: only a data set of the Hub has configurations, got {config!r}: leave --config out")
    return expanded


def read_source(source: Source, max_bytes: int, split: str | None = None) -> Iterator[Found]:
    """The records of one of the sources that ``expand`` returns."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not is_url(str(source)) and path.is_dir():
            return read_saved(str(path))
        return read_file(str(source), max_bytes, split)
    if isinstance(source, Iterator):
        raise UserTypeError("source: expected what can be read twice, such as a list or a Dataset, got an iterator")
    table = read_memory(source)
    if table is not None:
        return table
    return (Found(as_meant(row) if isinstance(row, Mapping) else row) for row in source)


def _holds_scores(folder: Path) -> bool:
    """Whether ``fastdss score`` wrote it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "scoring_version" in manifest


def _check_is_whole(folder: Path, inside: Sequence[Path], files: Sequence[Path]) -> None:
    """Raise ``ValueError`` for a folder whose readable files are not its rows: more, of deleted rows or of other
    configurations, or fewer. inside: all that lies in it; files: those that may be rows."""
    for name, what in _TABLES.items():
        if any(path.match(name) for path in inside):
            raise UserError(f"{folder} holds a table of {what}, whose files have deleted rows too: save it as Parquet")
    configs = _configs_of(folder / "README.md")
    if len(configs) > 1:
        raise UserError(f"{folder} holds the configurations {', '.join(configs)}: give the files of one")
    unread = [path.name for path in files if is_unread(path.name)]
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise UserError(
            f"{folder} holds {', '.join(unread[:3])}{more}, which may hold rows and cannot be read: convert or unpack "
            "them, or give the files to read by name"
        )


def _configs_of(card: Path) -> list[str]:
    """The configurations that a card of the Hub names; none where there is no card."""
    import yaml

    try:
        begun = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---")[0]
        configs = yaml.safe_load(begun)["configs"]
        return sorted({str(config["config_name"]) for config in configs})
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def _files_of(folder: Path, split: str | None) -> list[Source]:
    if is_saved(folder):
        check_split(str(folder), split, folder.name, saved_split(folder))
        return [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in folder.iterdir() if is_saved(part))
        split = splits[0] if split is None and len(splits) == 1 else split
        if split not in splits:
            raise UserError(f"{folder} holds the splits {', '.join(splits)}: give one of their folders, or --split")
        return [folder / split]
    if _holds_scores(folder):
        named = shlex.quote(str(folder))
        raise UserError(
            f"{folder} holds scores, not conversations: fastdss merge {named} --out training.parquet joins both, and "
            "that file can be trained on"
        )
    inside = list(folder.rglob("*"))
    scores = [path.parent for path in inside if path.name == "manifest.json" and _holds_scores(path.parent)]
    files = sorted(
        path
        for path in inside
        if path.is_file()
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json")
        and not any(path.is_relative_to(held) for held in scores)
    )
    _check_is_whole(folder, inside, files)
    files = [path for path in files if kind_of(path.name) is not None]
    if not files:
        raise UserError(f"{folder} holds no {', '.join(KINDS)} file and no saved datasets.Dataset")
    by_split: dict[str, list[Source]] = {}
    for path in files:
        by_split.setdefault(split_of(path.relative_to(folder)), []).append(path)
    if split is None and len(by_split) == 1:
        return next(iter(by_split.values()))
    if split is None:
        raise UserError(f"{folder} holds the splits {', '.join(sorted(by_split))}: name one by --split")
    if split not in by_split:
        raise UserError(f"split: {folder} holds {', '.join(sorted(by_split))}, got {split!r}")
    return by_split[split]


def _from_hub(name: str, split: str | None, config: str | None) -> Source:
    from datasets import DatasetDict, load_dataset

    try:
        dataset = load_dataset(name, config, split=split)
    except Exception as error:  # the Hub's library raises a dozen types, with messages that say what to do
        if isinstance(error, KeyboardInterrupt | MemoryError):
            raise
        raise UserError(
            f"{name} is no file here, and the Hub gives no such data set ({type(error).__name__}: {error}); "
            "--config and --split name a part of one"
        ) from None
    if isinstance(dataset, DatasetDict):
        if len(dataset) > 1:
            raise UserError(f"{name} holds the splits {', '.join(dataset)}: name one by --split")
        dataset = next(iter(dataset.values()))
    source: Source = dataset
    return source
