"""Finding models: a folder is used as it is, anything else is a hub id. What can't be had is said in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from orpheus.config import EMBEDDED, embedded_path
from orpheus.errors import UserError

T = TypeVar("T")


def looks_like_path(name: str) -> bool:
    """Whether `name` can only be a folder: a hub id is 'name' or 'owner/name' and nothing more."""
    return name.startswith((".", "/", "~", EMBEDDED)) or name.count("/") > 1 or "\\" in name


def local_folder(name: str | Path, what: str, needs: str = "config.json") -> Path | None:
    """The folder `name` ('embedded:NAME' too) if there is one, None for a hub id.

    Raises UserError for a path that does not exist and for a folder without the file `needs`.
    """
    # os.path rather than Path: it takes names that are too long, or of unknown users, for what they are.
    folder = Path(os.path.expanduser(embedded_path(str(name))))
    if os.path.isdir(folder):
        if not (folder / needs).is_file():
            raise UserError(f"{what}: the folder {folder} has no {needs}, so it holds no {what}")
        return folder
    if os.path.exists(folder):
        raise UserError(f"{what}: {folder} is a file, expected a folder with {needs}")
    if looks_like_path(str(name)):
        raise UserError(f"{what}: there is no folder {folder}")
    return None


def portable_name(name: str | Path) -> str:
    """The name as a provenance file keeps it: a folder by its absolute path, ids and 'embedded:NAME' as they are."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.isdir(path) else str(name)


def unreachable(what: str, name: str, error: BaseException, instead: str) -> UserError:
    """The error for something that could not be had from the hub: which id, why, and what to do."""
    return UserError(
        f"{what} '{name}' can't be had: {reason_of(error)}. Give a local folder, fetch it first with "
        f"`hf download {name}` where there is a network, or {instead}"
    )


def reason_of(error: BaseException) -> str:
    """Why a download failed, in plain words."""
    from huggingface_hub import errors as hf

    chain = [error]  # `datasets` and transformers wrap the hub's own error, which says most
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    if any(isinstance(cause, hf.DisabledRepoError) for cause in chain):
        return "access to it is disabled on the hub"
    error = next((cause for cause in chain if isinstance(cause, hf.GatedRepoError)), error)
    text = str(error)
    if isinstance(error, hf.GatedRepoError) or "gated" in text:
        return "it is gated: accept its terms on the hub and log in with `hf auth login`"
    if isinstance(error, hf.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private or disabled"
    if isinstance(error, (hf.OfflineModeIsEnabled, hf.LocalEntryNotFoundError)) or "offline" in text.lower():
        return "the hub can't be reached (offline) and it is not in the local cache"
    if isinstance(error, hf.EntryNotFoundError):
        return "the repository lacks a file that is needed"
    cause = chain[-1]
    if isinstance(cause, (ConnectionError, TimeoutError)) or "connect" in f"{cause} {text}".lower():
        return "the hub can't be reached"
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def fetch(what: str, name: str, load: Callable[[], T], instead: str) -> T:
    """Run `load`; a network or hub failure becomes a UserError naming the id, the reason and the remedy."""
    from huggingface_hub.errors import HFValidationError

    try:
        return load()
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"{what}: '{name}' is neither a folder nor a hub id like 'owner/name'") from error
    except Exception as error:
        # Hub errors are OSErrors, transformers wraps some in ValueError, a broken download is the HTTP client's own
        # type (httpx, which older hub versions don't have), damaged weights safetensors'. Anything else is a bug.
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, (OSError, ValueError)) and library not in ("httpx", "safetensors", "safetensors_rust"):
            raise
        if os.path.isdir(embedded_path(name)):
            raise UserError(f"{what}: the folder {name} can't be loaded: {reason_of(error)}") from error
        raise unreachable(what, name, error, instead) from error
