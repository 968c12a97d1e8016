"""Datasets of the Hugging Face hub: their parquet files, fetched into its cache as they are needed (no torch here).

A dataset is named owner/name, or owner/name:words, where the words, separated by slashes, choose files by folder or by
the beginning of their names: lmms-lab-encoder/DocVQA:DocVQA/validation. With HF_HUB_OFFLINE=1 the cache alone is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from analyses.runs import HorizonError
from probes.data.samples import first_line

# what the HTTP library under huggingface_hub raises where nothing answers; its name changes with their versions
_NO_ANSWER: type[Exception] = HfHubHTTPError.__bases__[0]
_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<words>[^:]*))?")
_FILES = (".jsonl", ".json", ".tsv", ".csv", ".parquet", ".txt")
_PART = re.compile(r"(?:-\d{5}-of-\d{5}.*)?\.parquet$")


@dataclass(frozen=True)
class HubDataset:
    """The parquet files of a dataset that a name chooses.

    Attributes:
        id: owner/name.
        revision: branch, tag or commit, as asked for.
        commit: which that is.
        files: chosen, in order, as paths in the dataset.
        others: all other parquet files.
    """

    id: str
    revision: str
    commit: str
    files: tuple[str, ...]
    others: tuple[str, ...]

    def fetch(self, files: tuple[str, ...]) -> Iterator[Path]:
        """Download files, each when its turn comes; those in the cache are not fetched again.

        Raises:
            HorizonError: one cannot be fetched, or the revision has moved to another commit.
        """
        for file in files:
            try:  # by the revision's name, so that the cache knows it by that name, offline too
                path = Path(hf_hub_download(self.id, file, repo_type="dataset", revision=self.revision))
            except (_NO_ANSWER, OSError) as error:
                raise HorizonError(f"{file} of the dataset {self.id} cannot be fetched: {first_line(error)}") from error
            if self.commit not in path.parts:
                raise HorizonError(f"the dataset {self.id} changed while it was read: start again")
            yield path


def is_dataset_id(name: str) -> bool:
    """Whether a name reads as owner/name or owner/name:words, and not as a file.

    >>> is_dataset_id("lmms-lab-encoder/DocVQA:DocVQA/validation"), is_dataset_id("data/textvqa.tsv")
    (True, False)
    """
    return _ID.fullmatch(name) is not None and not name.lower().endswith(_FILES)


def open_dataset(name: str, *, default: str = "", revision: str | None = None) -> HubDataset:
    """List a dataset and choose its files.

    Args:
        name: owner/name, or owner/name:words.
        default: words to use where the name has none and the dataset several sets.
        revision: branch, tag or commit; main by default.

    Raises:
        HorizonError: there is no such dataset, it cannot be reached, or the name does not choose one set of files.
    """
    parts = _ID.fullmatch(name)
    if parts is None:
        raise HorizonError(f"{name!r} is no dataset id: write owner/name, or owner/name:split")
    commit, files = _list(parts["id"], revision)
    parquet = tuple(sorted(file for file in files if file.endswith(".parquet")))
    if not parquet:
        sample_names = ", ".join(sorted(files)[:5])
        raise HorizonError(
            f"the dataset {parts['id']} holds no parquet files ({sample_names}): download it and give its path"
        )
    is_single_set = len(file_sets(parquet)) == 1
    selected = choose_files(name, parquet, parts["words"] or ("" if is_single_set else default))
    return HubDataset(
        parts["id"], revision or "main", commit, selected, tuple(file for file in parquet if file not in selected)
    )


def choose_files(name: str, files: tuple[str, ...], words: str) -> tuple[str, ...]:
    """The files in whose path every word is a folder or the beginning of the file's name.

    >>> choose_files("a/b", ("en/dev-00000-of-00001.parquet", "cn/dev-00000-of-00001.parquet"), "en/dev")
    ('en/dev-00000-of-00001.parquet',)

    Args:
        name: the name of the dataset.
        files: the files of the dataset, as paths in it.
        words: what must be in their paths, separated by slashes; no word chooses all files.

    Raises:
        HorizonError: none is left, or files of several sets are.
    """
    selected = [file for file in files if all(_matches(file, word) for word in words.split("/") if word)]
    sets = file_sets(selected or files)
    if not selected or len(sets) > 1:
        problem = f"has several sets for {words!r}" if selected else f"has no set {words!r}"
        id_ = name.partition(":")[0]
        raise HorizonError(
            f"the dataset {id_} {problem}: choose one of {', '.join(f'{id_}:{words}' for words in sets[:20])}"
        )
    return tuple(selected)


def file_sets(files: Sequence[str]) -> list[str]:
    """Names of the sets that files are the parts of.

    >>> file_sets(["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"])
    ['data/test']
    """
    return list(dict.fromkeys(_PART.sub("", file) for file in files))


def _matches(file: str, word: str) -> bool:
    path = PurePosixPath(file)
    return word in path.parts[:-1] or re.match(re.escape(word) + r"[-_.]", path.name) is not None


def _list(dataset: str, revision: str | None) -> tuple[str, list[str]]:
    """Commit and files of a dataset, from the hub or, offline, from the cache."""
    try:
        info = HfApi().dataset_info(dataset, revision=revision)
    except OfflineModeIsEnabled:
        return _list_cached(dataset, revision)
    except RevisionNotFoundError as error:
        raise HorizonError(f"the dataset {dataset} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise HorizonError(
            f"{dataset} is no path here and no dataset on the hub that you may read (see `hf auth login`)"
        ) from error
    except (_NO_ANSWER, OSError) as error:
        raise HorizonError(
            f"{dataset} is no path here, and the hub cannot be asked for it: {first_line(error)}; with "
            "HF_HUB_OFFLINE=1 the cache is read"
        ) from error
    return str(info.sha), [sibling.rfilename for sibling in info.siblings or []]


def _list_cached(dataset: str, revision: str | None) -> tuple[str, list[str]]:
    try:
        folder = Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HorizonError(
            f"{dataset} is no path here, and its revision {revision or 'main'} is not in the cache, which is all that "
            "HF_HUB_OFFLINE leaves: fetch it with `hf download --repo-type dataset`"
        ) from error
    return folder.name, [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
