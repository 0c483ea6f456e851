"""The side of the hub's protocol that takes files: repositories and branches made, large files sent, commits.

Large files go to another origin under an address that is signed, as on the hub; a commit names them by their
SHA-256, and has the small ones in it. Steps can be refused, or done with the answer lost (``Faults``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

SIGNATURE = "X-Amz-Signature=5ecret51gnature"


class Uploads:
    """Handles POST and PUT for the server in ``hub_server``."""

    server_hub: Any
    headers: Any
    rfile: Any
    path: str

    def do_POST(self) -> None:  # noqa: N802
        self._take()

    def do_PUT(self) -> None:  # noqa: N802
        self._take()

    def _take(self) -> None:
        self.sent = 0
        self.data = self._content()
        try:
            self._route_upload(unquote(urlsplit(self.path).path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._note()

    def _content(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route_upload(self, path: str) -> None:
        if path == "/api/repos/create":
            self._step("create", self._create)
        elif path == "/api/validate-yaml":
            self._step("validate", lambda: self._json({"errors": [], "warnings": []}))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self._step("branch", lambda: self._branch(match[1], match[2]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self._step("preupload", lambda: self._preupload(match[1], match[2]))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._step("batch", lambda: self._batch(match[1]))
        elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            self._step("put", lambda: self._put(match[1]))
        elif match := re.fullmatch(r"/verify/([^/]+/[^/]+)", path):
            self._step("verify", self._verify)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._step("commit", lambda: self._commit(match[1], match[2]))
        else:
            self._refuse(404, None)

    def _step(self, name: str, act: Any) -> None:
        faults = self.server_hub.faults
        if name in faults.before:
            faults.before.pop(name)()
        status, times = faults.refuse.get(name, (0, 0))
        token = self.server_hub.write_token
        if times:
            faults.refuse[name] = (status, times - 1)
            self._refuse(status, None)
        elif name != "put" and token and self.headers["Authorization"] != f"Bearer {token}":
            self._refuse(401 if not self.headers["Authorization"] else 403, None)
        else:
            self.is_lost = faults.lose.get(name, 0) > 0
            faults.lose[name] = faults.lose.get(name, 0) - 1
            act()

    def _json(self, value: Any, status: int = 200) -> None:
        if self.is_lost:
            raise BrokenPipeError  # closes the connection
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _create(self) -> None:
        asked = json.loads(self.data)
        name = f"{asked['organization']}/{asked['name']}"
        repos = self.server_hub.repos
        if name in repos:
            self.send_response(409)
            self._body(
                json.dumps({"error": "there already", "url": f"{self.server_hub.url}/{name}"}).encode()
            )
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        files = {".gitattributes": b"*.safetensors filter=lfs\n"}
        repos[name] = self.server_hub.new_repo(files, private=private)
        self._json({"url": f"{self.server_hub.url}/{name}", "name": name, "id": name})

    def _branch(self, name: str, branch: str) -> None:
        repo = self.server_hub.repos[name]
        if branch in (*repo.revisions, *repo.branches):
            self._refuse(409, None)
            return
        repo.branches[branch] = (hashlib.sha1(branch.encode()).hexdigest(), dict(repo.files))
        self._json({}, 201)

    def _preupload(self, name: str, revision: str) -> None:
        _, files = self.server_hub.repos[name].at(revision)
        repo, regular = self.server_hub.repos[name], self.server_hub.faults.regular
        answer = []
        for file in json.loads(self.data)["files"]:
            path = file["path"]
            mode = "lfs" if repo.is_large(path) and path not in regular else "regular"
            oid = repo.digest(path, files) if path in files else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answer})

    def _batch(self, name: str) -> None:
        hub = self.server_hub
        answer = []
        for each in json.loads(self.data)["objects"]:
            if each["oid"] not in hub.objects:
                upload = {"href": f"{hub.cdn}/lfs/{each['oid']}?{SIGNATURE}"}
                each = {**each, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/verify/{name}"}}}
            answer.append(each)
        self._json({"transfer": "basic", "objects": answer})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.data).hexdigest() != oid:
            self._refuse(400, None)
            return
        self.server_hub.objects[oid] = self.data
        self.server_hub.puts.append(oid)
        self.send_response(200)
        self._body(b"")

    def _verify(self) -> None:
        asked = json.loads(self.data)
        there = self.server_hub.objects.get(asked["oid"])
        if there is None or len(there) != asked["size"]:
            self._refuse(404, None)
        else:
            self._json({})

    def _commit(self, name: str, revision: str) -> None:
        repo = self.server_hub.repos[name]
        commit, files = repo.at(revision)
        lines = [json.loads(line) for line in self.data.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", commit) != commit:
            self._refuse(412, None)
            return
        removed = []
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server_hub.objects:
                        self._refuse(400, None)
                        return
                    files[value["path"]] = self.server_hub.objects[value["oid"]]
                case "deletedFile":
                    removed.append(value["path"])
                    del files[value["path"]]
        made = hashlib.sha1(self.data + commit.encode()).hexdigest()
        repo.history.append((revision, header["summary"], removed))
        if revision in repo.branches:
            repo.branches[revision] = (made, files)
        else:
            repo.commit = made
        self._json({"commitUrl": f"{self.server_hub.url}/{name}/commit/{made}", "commitOid": made})
