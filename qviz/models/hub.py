"""Files from the Hugging Face Hub, with errors in words. Nothing here touches the network until a
model is asked for by its Hub id, and then not for files that the local Hub cache already has.
"""

import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit


def cached(repo: str, filename: str) -> Path | None:
    """The file's place in the local Hub cache, or None if it is not there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.try_to_load_from_cache(repo, filename)
    except errors.HFValidationError as error:
        raise explain(repo, error) from error
    return Path(found) if isinstance(found, str) else None


def fetch(repo: str, filename: str) -> Path | None:
    """A file of a repository, from the local cache or the network; None if it has no such file."""
    found = cached(repo, filename)
    if found is not None:
        return found
    import huggingface_hub
    from huggingface_hub import errors

    require_network(repo)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, filename))
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        raise explain(repo, error) from error


def header(repo: str, filename: str) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """Tensor name → (shape, dtype) of a file on the Hub, without its weights; None if missing."""
    import huggingface_hub
    from huggingface_hub import errors

    require_network(repo)
    try:
        remote = huggingface_hub.HfApi().parse_safetensors_file_metadata(repo, filename)
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, OSError) as error:
        raise explain(repo, error) from error
    return {name: (tuple(t.shape), str(t.dtype)) for name, t in remote.tensors.items()}


def snapshot(repo: str) -> Path:
    """A directory with the repository's safetensors, configuration and tokenizer, nothing else."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                local_files_only=not reachable(),
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
                # sub-directories and consolidated files hold the same weights once more
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        raise explain(repo, error) from error


def reachable() -> bool:
    """Whether the Hub can be reached. Checked first, because its client retries for 25 seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True  # a proxy resolves names, so this cannot be checked from here
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def require_network(repo: str) -> None:
    if not reachable():
        raise unreachable(repo)


def unreachable(repo: str) -> ConnectionError:
    return ConnectionError(
        f"{repo!r} is not a local directory, not in the local Hub cache, and the Hub cannot be "
        "reached. Check the name and the network, or pass a local directory; the bundled model "
        "(None) needs neither"
    )


def explain(repo: str, error: Exception) -> Exception:
    """The error to raise when something went wrong between here and the Hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return ValueError(
            f"{repo!r} is neither a local directory nor a Hub id (owner/name): {error}"
        )
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{repo} is gated: accept its terms on its Hub page, then log in with `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo!r} is neither a local directory nor a repository on the Hub (or it is "
            f"private: log in with `hf auth login`)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return unreachable(repo)
    return ConnectionError(f"the Hub did not deliver {repo}: {type(error).__name__}: {error}")
