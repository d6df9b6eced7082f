"""A Hugging Face Hub in memory, over real HTTP: repositories with branches and history, tokens, and broken uploads.

It speaks as much of the Hub's protocol as huggingface_hub's upload, download and look-up functions use. Every file is
declared `regular`, so contents travel inside the commit request and no large-file storage is needed.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_tests"
USER = "tester"

_KINDS = {"models": "model", "datasets": "dataset"}
_ACTIONS = "branch|commit|paths-info|preupload|refs|revision|tree"
_API = re.compile(rf"/api/(models|datasets)/([^/]+/[^/]+)(?:/({_ACTIONS})(?:/([^/]+))?(?:/(.+))?)?")
_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    # name -> commit hash
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> Commit:
        content = {name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())}
        sha = hashlib.sha1(json.dumps([len(self.commits), message, content]).encode()).hexdigest()
        self.commits.append(Commit(sha, message, files))
        self.branches[branch] = sha
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == sha), None)


class FakeHub:
    """The server, a context manager; `url` is what HF_ENDPOINT has to be."""

    def __init__(self):
        # by (`model` or `dataset`, repository id)
        self.repositories: dict[tuple[str, str], Repository] = {}
        # method, path and token of every request so far
        self.requests: list[tuple[str, str, str | None]] = []
        self.breakages: dict[str, list[Any]] = {}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Shut down; whoever asks later is refused the connection."""
        self._server.shutdown()
        self._server.server_close()

    def break_commit(self, repo_id: str, number: int = 1, how: str = "error") -> None:
        """Let the n-th commit to a repository from now on fail: `error` answers 500, `cut` closes the connection."""
        self.breakages[repo_id] = [number, how]

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Contents by name, without the .gitattributes that every repository starts with."""
        commit = self.repositories[kind, repo_id].at(revision)
        assert commit is not None, f"no {revision} in {repo_id}"
        return {name: data for name, data in commit.files.items() if name != ".gitattributes"}

    def history(self, repo_id: str, kind: str = "model") -> list[Commit]:
        """Uploads of a repository, oldest first."""
        return self.repositories[kind, repo_id].commits[1:]


class _HubError(Exception):
    """Raised with the status, the X-Error-Code and the message to answer with."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *args: Any) -> None:
        pass

    # ---- requests and answers

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append((self.command, unquote(address.path), self.token))
            try:
                self._route(address.path)
            except _HubError as error:
                status, code, message = error.args
                self._reply({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    do_GET = do_HEAD = do_POST = do_DELETE = _answer

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        is_file = isinstance(content, bytes)
        data = content if is_file else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if is_file else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, path: str) -> None:
        if path == "/api/whoami-v2":
            self._check_login()
            return self._reply({"type": "user", "name": USER, "fullname": USER, "orgs": []})
        if path == "/api/validate-yaml":
            return self._reply({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create()
        if match := _RESOLVE.fullmatch(path):
            return self._resolve(match[1] or "models", *(unquote(match[group]) for group in (2, 3, 4)))
        if match := _API.fullmatch(path):
            kind, name, action, revision, below = (part and unquote(part) for part in match.groups())
            repository = self._repository(kind, name)
            handle = getattr(self, f"_{(action or 'revision').replace('-', '_')}")
            return handle(name, repository, revision or "main", below or "")
        raise _HubError(404, "NoSuchRoute", f"{self.command} {path} is not known to this Hub")

    # ---- who may do what

    def _check_login(self) -> None:
        if self.token is None:
            raise _HubError(401, "", "Invalid username or password.")
        if self.token != TOKEN:
            raise _HubError(401, "", "Invalid credentials in Authorization header")

    def _repository(self, kind: str, name: str) -> Repository:
        """A repository that this token may see; the real Hub does not tell others whether it exists."""
        if self.token not in (None, TOKEN):
            raise _HubError(401, "", "Invalid credentials in Authorization header")
        repository = self.hub.repositories.get((_KINDS[kind], name))
        if repository is None or (repository.private and self.token is None):
            message = "Repository not found" if self.token else "Invalid username or password."
            raise _HubError(404 if self.token else 401, "RepoNotFound", message)
        return repository

    def _at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- writing

    def _create(self) -> None:
        self._check_login()
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repositories:
            return self._reply({"error": "You already created this repo", "url": url, "name": name}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[kind, name] = Repository(private)
        repository.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        self._reply({"url": url, "name": name, "id": name})

    def _branch(self, name: str, repository: Repository, branch: str, below: str) -> None:
        self._check_login()
        if branch in repository.branches:
            return self._reply({"error": f"Reference {branch} already exists"}, 409)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repository.branches[branch] = self._at(repository, start).sha
        return self._reply({})

    def _preupload(self, name: str, repository: Repository, revision: str, below: str) -> None:
        self._check_login()
        files = [file["path"] for file in json.loads(self.body)["files"]]
        self._reply({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]})

    def _commit(self, name: str, repository: Repository, branch: str, below: str) -> None:
        self._check_login()
        if branch not in repository.branches:
            raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        breakage = self.hub.breakages.get(name, [0, ""])
        breakage[0] -= 1
        if breakage == [0, "error"]:
            raise _HubError(500, "", "Internal Error - we are working hard to fix this")
        if breakage == [0, "cut"]:
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        files, message = dict(self._at(repository, branch).files), ""
        for line in self.body.splitlines():
            step = json.loads(line)
            key, value = step["key"], step["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise _HubError(400, "", f"This Hub does not know {key} in a commit")
        sha = repository.commit(branch, files, message).sha
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return self._reply({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": None})

    # ---- reading

    def _revision(self, name: str, repository: Repository, revision: str, below: str) -> None:
        commit = self._at(repository, revision)
        about = {"lastModified": "2026-01-01T00:00:00.000Z", "tags": [], "downloads": 0, "likes": 0}
        names = {"_id": "0", "id": name, "modelId": name, "sha": commit.sha, "private": repository.private}
        self._reply({**about, **names, "siblings": [{"rfilename": file} for file in sorted(commit.files)]})

    def _refs(self, name: str, repository: Repository, revision: str, below: str) -> None:
        pairs = repository.branches.items()
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in pairs]
        self._reply({"branches": branches, "tags": [], "converts": []})

    def _tree(self, name: str, repository: Repository, revision: str, below: str) -> None:
        prefix = f"{below.rstrip('/')}/" if below else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for file, data in sorted(self._at(repository, revision).files.items()):
            if file.startswith(prefix):
                folder, slash, _ = file[len(prefix) :].partition("/")
                if recursive or not slash:
                    entries[file] = _entry(file, data)
                else:
                    path = prefix + folder
                    entries[path] = {"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())}
        if not entries and prefix:
            raise _HubError(404, "EntryNotFound", f"{below} does not exist on {revision!r}")
        self._reply(list(entries.values()))

    def _paths_info(self, name: str, repository: Repository, revision: str, below: str) -> None:
        is_json = self.body.startswith(b"{")
        asked = (json.loads(self.body) if is_json else parse_qs(self.body.decode()))["paths"]
        files = self._at(repository, revision).files
        self._reply([_entry(path, files[path]) for path in asked if path in files])

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        commit = self._at(self._repository(kind, name), revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file not in commit.files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._reply({"error": "Entry not found"}, 404, headers)
        data = commit.files[file]
        headers["ETag"] = f'"{_oid(data)}"'
        part = _RANGE.fullmatch(self.headers.get("Range") or "")
        if part is None:
            return self._reply(data, 200, headers)
        first, last = int(part[1]), int(part[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._reply(data[first : last + 1], 206, headers)
