"""A small Hub on 127.0.0.1 that speaks the real protocol to the real huggingface_hub client.

It keeps repositories in memory, records every commit, wants a token, and can be told to fail.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
import yaml

TOKEN = "hf_loopback_token"
REPO = "(?:datasets/)?[^/]+/[^/]+"


class LoopbackHub:
    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}  # name ("datasets/" before a dataset's) -> path -> content
        self.past: dict[tuple[str, str], dict[str, bytes]] = {}  # (name, commit) -> what the repository held then
        self.private: set[str] = set()
        self.commits: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[str] = []
        self.fail: dict[str, list[Any]] = {}  # part of a path -> statuses to answer with, "drop" to hang up

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self) -> dict[str, str]:
        """What a client process needs to talk to this Hub and to no other."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def start(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                hub.answer(self)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # One request

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(request.path.split("?")[0])
        self.requests.append(f"{request.command} {path}")
        for part, statuses in self.fail.items():
            if part in path and statuses:
                status = statuses.pop(0)
                if status == "drop":
                    request.connection.close()
                    request.close_connection = True
                    return
                send(request, status, {"error": f"told to answer {status}"})
                return
        if request.command in ("POST", "PUT") and not re.search("/lfs-object/|validate-yaml", path):
            sent = request.headers.get("Authorization", "")
            if sent != f"Bearer {TOKEN}" and not sent.startswith("Basic "):
                send(request, 401, {"error": "Invalid credentials"})
                return
        path = path.replace("/api/datasets/", "/api/models/datasets/")
        for pattern, act in (
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate),
            (r"/api/whoami-v2", lambda *_: (200, {"type": "user", "name": "user"}, {})),
            (r"/api/models/(.+/.+)/preupload/[^/]+", self.preupload),
            (r"/(.+/.+)\.git/info/lfs/objects/batch", self.lfs_batch),
            (r"/lfs-object/(\w+)", self.lfs_object),
            (r"/lfs-verify", lambda *_: (200, {}, {})),
            (r"/api/models/(.+/.+)/commit/[^/]+", self.commit),
            (rf"/api/models/({REPO})(?:/revision/([^/]+))?", self.info),
            (rf"/api/models/({REPO})/tree/([^/]+)(?:/(.*))?", self.tree),
            (rf"/api/models/({REPO})/paths-info/[^/]+", self.paths_info),
            (rf"/({REPO})/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if match := re.fullmatch(pattern, path):
                send(request, *act(request, body, *match.groups()))
                return
        send(request, 404, {"error": f"no such address: {path}"}, {"X-Error-Code": "EntryNotFound"})

    def validate(self, request, body):
        """What the Hub refuses in a card's metadata, as far as ours could get it wrong."""
        metadata = yaml.safe_load(re.split(r"(?m)^---$", json.loads(body)["content"])[1]) or {}
        errors = [f'"{key}" must be a string' for key in ("pipeline_tag", "library_name", "base_model", "license")
                  if not isinstance(metadata.get(key, ""), str)]  # fmt: skip
        for language in metadata.get("language", []):
            if not re.fullmatch(r"[a-z]{2,3}", language):
                errors.append(f'"language" must only contain codes, not {language}')
        for example in metadata.get("widget", []):
            if not all(isinstance(value, str) for value in example.values()):
                errors.append('"widget" must hold texts')
        for model in metadata.get("model-index", []):
            for result in model["results"]:
                if not all((result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name"))):
                    errors.append('"model-index" lacks a type or a name')
                types = [metric["type"] for metric in result["metrics"]]
                if len(types) != len(set(types)):
                    errors.append(f'"model-index" has a metric twice on {result["dataset"]["name"]}')
        return (400 if errors else 200), {"errors": [{"message": said} for said in errors], "warnings": []}, {}

    def create(self, request, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        url = f"{self.url}/{name}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": url}, {}
        self.repos[name] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(name)
        return 200, {"url": url, "name": name, "id": name}, {}

    def preupload(self, request, body, repo):
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in files
        ]
        return 200, {"files": modes, "commitOid": "0" * 40}, {}

    def lfs_batch(self, request, body, repo):
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"href": f"{self.url}/lfs-object/{item['oid']}"}
            verify = {"href": f"{self.url}/lfs-verify"}
            objects.append({**item, "authenticated": True, "actions": {"upload": upload, "verify": verify}})
        answer = {"transfer": "basic", "objects": objects}
        return 200, answer, {"Content-Type": "application/vnd.git-lfs+json"}

    def lfs_object(self, request, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the content does not have this hash"}, {}
        self.objects[oid] = body
        return 200, {}, {}

    def commit(self, request, body, repo):
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        files, header, deleted = {}, {}, []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                header = value
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        if missing := set(deleted) - set(self.repos[repo]):
            return 400, {"error": f"there is no {sorted(missing)} to delete"}, {}
        self.repos[repo] = {path: held for path, held in self.repos[repo].items() if path not in deleted} | files
        self.commits.append({"repo": repo, "files": sorted(files), "summary": header.get("summary")})
        oid = self.oid(repo)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True}, {}

    def oid(self, repo: str) -> str:
        return hashlib.sha1(f"{repo} {len(self.commits)}".encode()).hexdigest()

    def move_on(self, repo: str, files: dict[str, bytes]) -> str:
        """Replace what a repository holds; the commit that had it before, which can still be asked for."""
        before = self.oid(repo)
        self.past[repo, before] = self.repos[repo]
        self.commits.append({"repo": repo, "files": sorted(files), "summary": "moved on"})
        self.repos[repo] = files
        return before

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """(commit, files) of a repository at a branch, which is always the newest, or at a commit."""
        past = self.past.get((repo, revision))
        return (self.oid(repo), self.repos[repo]) if past is None else (revision, past)

    def info(self, request, body, repo, revision=None):
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        commit, files = self.at(repo, revision)
        if re.fullmatch(r"[0-9a-f]{40}", revision or "") and revision != commit:
            return 404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {
            "id": repo.removeprefix("datasets/"),
            "modelId": repo,
            "sha": commit,
            "private": False,
            "siblings": siblings,
            "tags": [],
        }
        return 200, about, {}

    def entries(self, repo):
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in sorted(self.repos[repo].items())
        ]

    def paths_info(self, request, body, repo):
        asked = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        return 200, [entry for entry in self.entries(repo) if entry["path"] in asked["paths"]], {}

    def tree(self, request, body, repo, revision, folder=None):
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        found = [entry for entry in self.entries(repo) if entry["path"].startswith(f"{folder}/" if folder else "")]
        if folder and not found:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, found, {}

    def resolve(self, request, body, repo, revision, path):
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        commit, files = self.at(repo, revision)
        if path not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        content = files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Linked-ETag": etag, "X-Linked-Size": str(len(content))}
        return 200, content, headers | {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}


def send(request: BaseHTTPRequestHandler, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
    request.send_response(status)
    for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | (headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


@pytest.fixture
def hub():
    server = LoopbackHub()
    server.start()
    yield server
    server.stop()
