"""Data sets and policies on the Hugging Face hub, by huggingface_hub. The token is HF_TOKEN's or that of a login.

Only kinds of files that the formats consist of are sent and fetched, and none that hold pickles or programs; what is left out
is listed. Nothing that was fetched is run or unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import UsageError
from ...files import claimed, disk_errors, read_json
from ...spec import KinoiseError
from .. import FORMATS
from .card import CARD, Known, evaluation, write_card

KINDS = ("dataset", "model")
DATA = (
    "*.json", "*.jsonl", "*.parquet", "*.mp4", "*.png", "*.jpg", "*.hdf5", "*.h5", "*.zip", "*.md",
    "*.zarray", "*.zgroup", "*.zattrs", "*.zmetadata", "*/[0-9]*",
)  # fmt: skip
"""Of data sets; zarr names chunks by numbers alone."""
CARDS = "*.md"
POLICY = ("*.safetensors", "*.json", CARDS)
OWN = "training_state/*"
"""Of a policy, what only resuming its training needs: twice its weights, and the paths of the machine that trained it."""
NEVER = (
    "*.pkl", "*.pickle", "*.pt", "*.pth", "*.bin", "*.ckpt", "*.npy", "*.npz", "*.joblib", "*.py", "*.so", "*.sh", ".cache/*",
)  # fmt: skip
"""Whatever else says yes: files that unpickle or run where somebody opens them with what they are for."""


@dataclass(frozen=True)
class Content:
    """What there is to push.

    Args:
        kind: one of KINDS.
        path: the folder, or a data set's only file.
        tag: what the commit is to be called too; LeRobot finds a data set by its version.
    """

    kind: str
    path: Path
    tag: str | None = None


@dataclass(frozen=True)
class Moved:
    """What went to or came from the hub: which files, and which were left out."""

    kind: str
    commit: str
    files: tuple[str, ...]
    left: tuple[str, ...]


def content(path: Path) -> Content:
    """A run stands for its last checkpoint. Raises KinoiseError for what is neither a checkpoint nor a data set."""
    if not path.exists():
        raise KinoiseError(f"{path} does not exist. Check the path.")
    for candidate in (path / "checkpoints" / "last", path):
        if (candidate / "config.json").is_file() and any(candidate.glob("*.safetensors")):
            return Content("model", candidate.resolve())
    name = next((name for name, member in FORMATS.items() if member.recognises(path)), None)
    if name is None:
        raise KinoiseError(f"{path} is neither a data set ({', '.join(FORMATS)}) nor a run or checkpoint. Check the path.")
    if name == "mixture":
        raise KinoiseError(f"{path} only names data sets: push each of them, or push what kinoise convert makes of it.")
    tag = read_json(path / "meta" / "info.json").get("codebase_version") if name == "lerobot" else None
    return Content("dataset", path, tag)


def push(
    path: Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    evaluations: Sequence[Path] = (),
) -> Moved:
    """Uploads a data set, a checkpoint, or a run's last one. A policy's card is written anew first, see `card.write_card`.

    Args:
        repo: "user/name"; made if it isn't there.
        private: whether a repository that is made can be seen by its owner alone.
        revision: the branch, made if it isn't there; None is the main one.
        license, datasets: for a policy's card, see `card.Known`.
        evaluations: for the card, folders of `kinoise eval`; without any, RUN/eval if it is of these weights.

    Raises:
        UsageError: for a card's settings that don't fit, or where there is no card to take them.
        KinoiseError: nothing to push there, no token, not allowed, the hub can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    item = content(path)
    _card(item, path, Known(repo, license, tuple(datasets)), evaluations)
    patterns, never = (POLICY, (*NEVER, OWN)) if item.kind == "model" else (DATA, NEVER)
    top = item.path if item.path.is_dir() else item.path.parent
    names = sorted(file.relative_to(top).as_posix() for file in item.path.rglob("*") if file.is_file()) or [item.path.name]
    chosen = _chosen(names, patterns, never)
    if not chosen:  # a single file without its suffix
        raise KinoiseError(f"{path}: expected a name that ends in .hdf5 or .zip, by which pull knows it. Rename it.")
    with _hub_errors(repo):
        api = HfApi()
        api.create_repo(repo, repo_type=item.kind, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=item.kind, exist_ok=True)
        where = {"repo_id": repo, "repo_type": item.kind, "revision": revision, "commit_message": f"kinoise push {path.name}"}
        if item.path.is_dir():
            # What an earlier push left would be read as part of this one.
            both = {
                "allow_patterns": list(patterns),
                "ignore_patterns": list(never),
                "delete_patterns": [item for item in patterns if item != CARDS],
            }
            done = api.upload_folder(folder_path=item.path, **both, **where)
        else:
            names = api.list_repo_files(repo, repo_type=item.kind, revision=revision)
            others = [name for name in _chosen(names, patterns, never) if name != item.path.name and not name.endswith(".md")]
            if others:
                raise KinoiseError(
                    f"{repo} holds another data set ({others[0]}), and pull fetches all there is: take a new one."
                )
            done = api.upload_file(path_or_fileobj=item.path, path_in_repo=item.path.name, **where)
        if item.tag is not None:
            with suppress(RevisionNotFoundError):  # at the first push
                api.delete_tag(repo, tag=item.tag, repo_type=item.kind)
            api.create_tag(repo, tag=item.tag, revision=revision, repo_type=item.kind)
    return Moved(item.kind, done.oid, chosen, tuple(sorted(set(names) - set(chosen))))


def pull(repo: str, out: Path, *, kind: str | None = None, revision: str | None = None) -> Moved:
    """Downloads a data set or a policy to the new folder `out`, by way of `out.partial`, where an interrupted pull goes on.

    Args:
        kind: one of KINDS; None is the first that there is.
        revision: a branch, tag or commit.

    Raises:
        KinoiseError: `out` exists, another process pulls it, no such repository or not for this token, no files for kinoise in
            it, the hub can't be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    if out.exists():
        raise KinoiseError(f"{out} exists already. Choose another OUT, or remove it first.")
    partial = out.with_name(f"{out.name}.partial")
    with disk_errors(out), _hub_errors(repo):
        kind, commit = _found(HfApi(), repo, KINDS if kind is None else (kind,), revision)
        names = sorted(HfApi().list_repo_files(repo, repo_type=kind, revision=commit))
        patterns = POLICY if kind == "model" else DATA
        chosen = _chosen(names, patterns)
        if not chosen:
            raise KinoiseError(f"{repo} holds nothing that kinoise reads: {', '.join(names[:5]) or 'no files'}.")
        partial.mkdir(parents=True, exist_ok=True)
        with claimed(partial, "pulls"):
            snapshot_download(
                repo,
                repo_type=kind,
                revision=commit,
                local_dir=partial,
                allow_patterns=list(patterns),
                ignore_patterns=list(NEVER),
            )
            _tidy(partial, chosen, repo)
            partial.rename(out)
    return Moved(kind, commit, chosen, tuple(sorted(set(names) - set(chosen))))


def _found(api, repo: str, kinds: Sequence[str], revision: str | None) -> tuple[str, str]:
    """(kind, commit) of the first kind of repository that is called so."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    for kind in kinds[:-1]:
        try:
            return kind, str(api.repo_info(repo, repo_type=kind, revision=revision).sha)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            continue
    return kinds[-1], str(api.repo_info(repo, repo_type=kinds[-1], revision=revision).sha)


def _tidy(folder: Path, names: Sequence[str], repo: str) -> None:
    """Removes what an earlier pull left that is not in this commit, and checks that the rest is all there."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    wanted = set(names)
    for file in [item for item in folder.rglob("*") if item.is_file()]:
        if file.relative_to(folder).as_posix() not in wanted:
            file.unlink()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise KinoiseError(f"{repo}: {len(missing)} files did not come, such as {missing[0]}. Run the command again.")


def _card(item: Content, path: Path, known: Known, evaluations: Sequence[Path]) -> None:
    """Writes the card of a policy, with what is known now."""
    given = [name for name in ("license", "datasets") if getattr(known, name)] + (["eval"] if evaluations else [])
    if item.kind != "model":
        if given:
            raise UsageError(f"{given[0]}= is for the card of a policy, and {path} is a data set. Leave it out.")
        return
    found = [evaluation(place, item.path) for place in evaluations]
    usual = path / "eval" / "result.json"
    if not evaluations and usual.is_file():
        with suppress(KinoiseError):  # of another checkpoint, which is no news of this one
            found = [evaluation(usual, item.path)]
    if not write_card(item.path, replace(known, results=tuple(found))) and given:
        raise UsageError(f"{given[0]}=: {item.path / CARD} is not as kinoise wrote it: say it there, or remove that file.")


def _chosen(names: Sequence[str], patterns: Sequence[str], never: Sequence[str] = NEVER) -> tuple[str, ...]:
    from huggingface_hub.utils import filter_repo_objects

    return tuple(filter_repo_objects(names, allow_patterns=list(patterns), ignore_patterns=list(never)))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a line that says what to do."""
    from huggingface_hub import errors

    # What its HTTP client raises, which one that is: errors of versions before 1 are requests' own, of later ones httpx's.
    own = ("builtins", errors.__name__.partition(".")[0])
    client = [kind for kind in errors.HfHubHTTPError.__mro__ if kind.__module__.partition(".")[0] not in own]
    unreached: Any = (*client, ConnectionError, errors.LocalTokenNotFoundError, errors.EntryNotFoundError)
    try:
        yield
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise KinoiseError(
            f"{repo}: there is none, or this token may not see it. Check its name, set HF_TOKEN, accept its terms."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise KinoiseError(f"{repo} has no such revision. Check revision=.") from error
    except errors.HFValidationError as error:
        raise KinoiseError(f"{repo}: expected a repository's name such as user/name ({_line(error)}).") from error
    except ValueError as error:  # raised of what the hub says of a card's front matter, before anything is sent
        raise KinoiseError(
            f"{repo}: refused ({' '.join(str(error).split())}). Change README.md or the settings for it."
        ) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        remedy = "Set HF_TOKEN to a token that may do this" if code in (401, 403) else "Run the command again later"
        raise KinoiseError(f"{repo}: the hub answered {code} ({_line(error)}). {remedy}.") from error
    except unreached as error:
        raise KinoiseError(f"{repo}: the hub can't be reached ({_line(error)}). Check the network and HF_ENDPOINT.") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
