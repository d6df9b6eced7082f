"""The Hub: uploads that are one commit, and errors that say what to do.

`HfApi.upload_folder` may split an upload over several commits, and a reader between two of them would find half of it;
`HfApi.create_commit` shows all files at once or none.
"""

import contextlib
import fnmatch
import functools
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import HubError

logger = logging.getLogger(__name__)

# a name with one slash; shorter names are directories that are not there
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LOG_IN = "log in by `hf auth login` or pass token=…"
# weights of an earlier upload that a loader might prefer to the new ones
_STALE = "model*.safetensors*"


def is_repo_id(name: str) -> bool:
    """Whether a name has the form `org/name`."""
    return _REPO_ID.fullmatch(name) is not None


@functools.cache
def _api() -> Any:
    from huggingface_hub import HfApi

    from . import __version__

    # a single one, whose background uploads run one after the other
    return HfApi(library_name="cllm4rec_hf", library_version=__version__)


def push(
    write: Callable[[Path], None],
    repo_id: str,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    blocking: bool = True,
) -> Any:
    """Upload the files that a function writes, all in one commit.

    Args:
        write: writes them into the directory it is given.
        repo_id: repository; made if it does not exist.
        message: the commit's message.
        repo_type: `model` or `dataset`.
        private: whether a repository that is made here is private; the organisation's default by default.
        token: token with the right to write; the one of `hf auth login` by default.
        revision: branch, made if it does not exist; `main` by default.
        blocking: False uploads in the background.

    Returns:
        The `CommitInfo`, or its future.

    Raises:
        HubError: if the upload fails; nothing of it is to be seen then.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api, where = _api(), {"repo_type": repo_type, "token": token}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cllm4rec-")))
        write(directory)
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        operations: list[Any] = [CommitOperationAdd(name, str(files[name])) for name in sorted(files)]
        with writing(repo_id):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True, **where).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True, **where)
            if fnmatch.filter(files, _STALE):
                stale = fnmatch.filter(api.list_repo_files(repo_id, revision=revision, **where), _STALE)
                operations += [CommitOperationDelete(name) for name in stale if name not in files and "/" not in name]
            with warnings.catch_warnings():
                # that a catalog belongs into a dataset repository
                warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
                done = api.create_commit(
                    repo_id, operations, commit_message=message, revision=revision, run_as_future=not blocking, **where
                )
        if not blocking:
            # the files are needed until then
            kept = stack.pop_all()
            done.add_done_callback(lambda _: kept.close())
    return done


def write_checkpoint(directory: Path, model: Any, tokenizer: Any = None, catalog: Any = None) -> None:
    """Write a checkpoint as it is published: loadable anywhere, and without a path of this machine.

    Args:
        directory: where to.
        model: a CLLM4Rec model; a backbone that only this machine has is written along.
        tokenizer: its tokenizer.
        catalog: its catalog.
    """
    with model.publishable():
        model.save_pretrained(directory)
    for part in (tokenizer, catalog):
        if part is not None:
            part.save_pretrained(directory)


@contextlib.contextmanager
def writing(repo_id: str) -> Iterator[None]:
    """Turn the errors of an upload into a HubError."""
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise HubError(f"Nothing was uploaded to {repo_id}: no token was found; {_LOG_IN}") from None
    except (HTTPError, OSError) as error:
        status = _status(error)
        if status == 401:
            reason = f"the Hub does not know who you are; {_LOG_IN}"
        elif status in (403, 404):
            reason = f"this token may not write there, or there is no such organisation; check the name, or {_LOG_IN}"
        else:
            reason = f"{_first_line(error)}. Try again later"
        raise HubError(f"Nothing was uploaded to {repo_id}: {reason}") from error


@contextlib.contextmanager
def reading(name: str, expected: str, kind: str = "model", revision: str | None = None) -> Iterator[None]:
    """Turn the Hub's errors of a download into a HubError; others pass.

    Args:
        name: what the user named.
        expected: what the name may stand for beside a repository.
        kind: `model` or `dataset`.
        revision: the revision that was asked for.
    """
    try:
        yield
    except Exception as error:
        message = _explain(error, name, expected, kind, revision)
        if message is None:
            raise
        raise HubError(message) from None


def _explain(error: BaseException, name: str, expected: str, kind: str, revision: str | None) -> str | None:
    from huggingface_hub import errors

    for cause in _chain(error):
        repo = getattr(cause, "repo_id", None) or name
        needed = "" if repo == name else f", which {name} needs,"
        if isinstance(cause, errors.GatedRepoError):
            return f"{repo}{needed} is gated; ask for access on its page of the Hub, then {_LOG_IN}"
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{repo}{needed} is neither {expected} nor a {kind} repository of the Hub that you may read; check "
                f"the spelling or, if it is private, {_LOG_IN}"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            asked = _first_line(error) if revision is None or needed else f"{revision!r} was asked for"
            return f"{repo}{needed} has no such revision on the Hub ({asked}); name a branch, tag or commit"
        if isinstance(cause, errors.HFValidationError):
            return f"{name} is not {expected}, and no repository of the Hub may have that name"
        if isinstance(cause, errors.HfHubHTTPError) and not isinstance(cause, errors.EntryNotFoundError):
            remedy = f"check the token: {_LOG_IN}" if _status(cause) in (401, 403) else "try again later"
            return f"The Hub does not give {repo}{needed} out ({_first_line(cause)}); {remedy}"
        if isinstance(cause, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError)):
            return (
                f"{name} is not {expected}, the Hub is not reached, and the cache does not hold all of it; check the "
                "connection, and HF_HUB_OFFLINE and local_files_only"
            )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
