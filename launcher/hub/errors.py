"""What the hub's refusals mean to a person. No message repeats a token."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from launcher.errors import PreflightError, WeightsError
from launcher.job.redact import redact

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_LOGIN = "run `hf auth login` or set HF_TOKEN, then try again"


class HubUnreachable(PreflightError):
    """The hub did not answer, which says nothing about the model."""


class HubFailure(Exception):
    """Something that huggingface_hub raised; ``error`` is it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.error = error


@contextlib.contextmanager
def catching() -> Iterator[None]:
    """Turn what huggingface_hub raises, whatever its HTTP client, into HubFailure."""
    from huggingface_hub.errors import HTTPError, SafetensorsParsingError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, SafetensorsParsingError) as error:
        raise HubFailure(error) from None


def not_a_model(path: str) -> PreflightError:
    """Neither a directory nor the form of a hub id."""
    return PreflightError(
        f"there is no directory {path!r}, and it is not a hub id",
        where="model.path",
        fix="give a directory (relative to the spec) or a hub id such as org/model",
    )


def refusal(error: Exception, name: str, revision: str | None) -> PreflightError:
    """Why the hub did not give the model, and what to do about it."""
    from huggingface_hub import constants, errors

    url = f"{constants.ENDPOINT}/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        what, fix = f"{name} is gated", f"accept its terms at {url}, {_LOGIN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, fix = f"{name} has no revision {revision!r}", f"choose one of {url}/commits"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = f"there is no model {name} on the hub, or it is private, and no such directory"
        fix = f"check model.path; for a private model {_LOGIN}"
    elif status in {401, 403}:
        what, fix = f"the hub refuses the token for {name}", _LOGIN
    elif isinstance(error, errors.SafetensorsParsingError):
        return WeightsError(f"a file of {name} is broken: {_said(error)}", where=url)
    elif isinstance(error, OSError) and error.errno in _DISK:
        what, fix = f"{name} can't be stored: {_said(error)}", "make room, or set HF_HOME"
    else:
        what = f"the hub can't be reached for {name}, and there is no complete copy of it here"
        fix = f"run `hf download {name}` where there is a network, such as the login node"
        return HubUnreachable(what, where="model.path", cause=_said(error), fix=fix)
    return PreflightError(what, where="model.path", fix=fix)


def _said(error: Exception) -> str:
    """The error's first line, with the user's token blacked out should a server send it back."""
    from huggingface_hub import get_token

    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    token = get_token()
    return redact(text.replace(token, "[secret]") if token else text)
