"""Uploading an adapter to the Hugging Face hub. Runs only when a repository was named; nothing else uploads."""

from __future__ import annotations

from pathlib import Path

from orpheus.errors import UserError
from orpheus.model.hub import reason_of


def check_upload(repo_id: str | None) -> None:
    """Before training: is the id well formed, is there a token, does the hub take it? UserError if not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not repo_id:
        raise UserError("push-to-hub needs to know where to: give --hub-repo-id owner/name")
    try:
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            raise HFValidationError(f"'{repo_id}' has no owner")
    except HFValidationError as error:
        raise UserError(f"push-to-hub: {error}; expected 'owner/name'") from error
    try:
        HfApi().whoami()
    except Exception as error:  # the hub's client raises many kinds; whichever it is, the upload would fail
        raise UserError(
            f"push-to-hub was asked for, but you are not logged in to the hub ({reason_of(error)}): run "
            "`hf auth login`, or set HF_TOKEN"
        ) from error


FILES = ("adapter_*", "orpheus.json", "tokenizer*", "special_tokens_map.json", "loss.png", "README.md")


def upload(folder: Path, repo_id: str, report: Path) -> str:
    """Upload the adapter's own files and a report (no checkpoints, no recordings) to a private repository.

    Returns its address.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            allow_patterns=list(FILES),
        )
        api.upload_file(path_or_fileobj=report, path_in_repo="report.html", repo_id=repo_id)
    except Exception as error:  # as above; the trained adapter is safe on disk
        raise UserError(
            f"the adapter is saved in {folder}, but uploading it to {repo_id} failed: {reason_of(error)}"
        ) from error
    return f"https://huggingface.co/{repo_id}"
