"""Whether the hub of Hugging Face can be asked, found out once and quickly; its own libraries try for minutes."""

from __future__ import annotations

import functools
from typing import Literal

import huggingface_hub
from huggingface_hub import errors

from rlhf.errors import InputError

# Seconds until the hub counts as out of reach.
_PATIENCE = 5.0


@functools.cache
def require_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuses what the hub does not have or does not give, and any name while the hub is out of reach.

    With HF_HUB_OFFLINE the hub is not asked: what was downloaded before is used.
    """
    if huggingface_hub.is_offline_mode():
        return
    try:
        url = huggingface_hub.hf_hub_url(name, "README.md", repo_type=kind)
        huggingface_hub.get_hf_file_metadata(url, timeout=_PATIENCE)
    except errors.RemoteEntryNotFoundError:
        return  # The hub knows it, and it has no such file.
    except errors.GatedRepoError as error:
        raise InputError(f"the {kind} {name!r} of the hub is gated: ask for access there, and log in.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"there is no {kind} {name!r}: neither a folder nor a file here, nor on the hub (or it is not public, and "
            "you are not logged in)."
        ) from error
    except Exception as error:
        raise InputError(
            f"{name!r} is no folder or file here, and the hub cannot be reached ({type(error).__name__}); give a "
            "folder, check the network, or set HF_HUB_OFFLINE=1 to use what was downloaded before."
        ) from error
