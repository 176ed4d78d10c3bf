"""A stand-in for the Hugging Face Hub: models in memory, over HTTP on this machine."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, code=200, **headers):
        body = json.dumps(content).encode() if isinstance(content, dict | list) else content
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        models, path = self.server.models, self.path.partition("?")[0]
        for name, files in models.items():
            if path.startswith(f"/api/models/{name}/tree/"):
                entries = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in files.items()
                ]
                return self.answer(entries)
            if path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                return self.answer(
                    {
                        "id": name,
                        "modelId": name,
                        "sha": COMMIT,
                        "siblings": siblings,
                        "private": True,
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                    }
                )
            prefix = f"/{name}/resolve/"
            if path.startswith(prefix):
                file = path[len(prefix) :].partition("/")[2]
                if file in files:
                    return self.answer(files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"')
        return self.answer({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self):
        self.server.posts.append(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization") or "ann", asked["name"]) if part)
            self.server.models.setdefault(name, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        if self.path.startswith("/api/validate-yaml"):
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in filter(None, body.decode().split("\n")):
                own = json.loads(line)
                if own["key"] == "file":
                    self.server.models[name][own["value"]["path"]] = base64.b64decode(own["value"]["content"])
            return self.answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}",
                }
            )
        return self.answer({"error": f"no {self.path}"}, 404)


@contextmanager
def hub_server():
    """(address, models by name as {file: content}, posted paths)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.models, server.posts = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.models, server.posts
    finally:
        server.shutdown()
        server.server_close()
