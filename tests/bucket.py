"""A local server of Google Cloud Storage's JSON API: the requests that jdiff's clients make, from its documentation."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PATH = r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?"
BUCKETS = ("bucket", "closed")  # the second answers 403 to every request
PAGE_SIZE = 1000


@dataclass
class Store:
    """Objects, each a generation and its bytes, by bucket and name. Generations grow with every write."""

    objects: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    sessions: dict[str, tuple[str, str, dict, bytearray]] = field(default_factory=dict)
    counter: itertools.count = field(default_factory=lambda: itertools.count(1))
    lock: threading.RLock = field(default_factory=threading.RLock)


class RequestError(Exception):
    """A request that fails, with its HTTP status."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.store.lock:
                self._route(url.path)
        except RequestError as error:
            status = error.args[0]
            body = {"error": {"code": status, "message": "refused"}}
            self._answer(None if status == 304 else body, status=status)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _route(self, path: str) -> None:
        match = re.fullmatch(PATH, path)
        if match is None or match[1] not in BUCKETS:
            raise RequestError(404)
        bucket, rest = match.groups()
        if bucket == "closed":
            raise RequestError(403)
        if rest is not None:
            self._object(bucket, rest)
        elif not path.endswith("/o"):
            self._answer({"kind": "storage#bucket", "name": bucket})
        elif self.command == "GET":
            self._list(bucket)
        else:
            self._upload(bucket)

    def _object(self, bucket: str, path: str) -> None:
        """path: an object's name, with escaped slashes, and the operation that copies it to another."""
        name, *operation = path.split("/", 1)
        name = unquote(name)
        generation, data = self._get(bucket, name)
        if operation:
            match = re.fullmatch("(copy|rewrite|move)To(?:/b/([^/]+))?/o/([^/]+)", operation[0])
            verb, to_bucket, to_name = match.groups(bucket)
            resource = self._store(to_bucket, unquote(to_name), data)
            if verb == "move":
                del self.store.objects[bucket, name]
            self._answer({"done": True, "resource": resource} if verb == "rewrite" else resource)
            return
        self._check(bucket, name)
        if self.command == "DELETE":
            del self.store.objects[bucket, name]
            self._answer(None, status=204)
        elif self.query.get("alt") == "media":
            self._download(generation, data)
        else:
            self._answer(_resource(bucket, name, generation, data))

    def _get(self, bucket: str, name: str) -> tuple[int, bytes]:
        if (bucket, name) not in self.store.objects:
            raise RequestError(404)
        return self.store.objects[bucket, name]

    def _check(self, bucket: str, name: str) -> None:
        """Fail unless the object has the generation of the query; a missing object has generation 0."""
        generation = self.store.objects.get((bucket, name), (0, b""))[0]
        if self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            raise RequestError(412)
        if self.query.get("ifGenerationNotMatch") == str(generation):
            raise RequestError(304)

    def _store(self, bucket: str, name: str, data: bytes) -> dict:
        self._check(bucket, name)
        generation = next(self.store.counter)
        self.store.objects[bucket, name] = generation, data
        return _resource(bucket, name, generation, data)

    def _upload(self, bucket: str) -> None:
        kind = self.query.get("uploadType")
        if kind == "media":
            self._answer(self._store(bucket, self.query["name"], self.body))
        elif kind == "multipart":
            # Two parts between boundaries, metadata and content, each after headers of its own.
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            parts = self.body.split(b"--" + boundary)[1:3]
            metadata, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in parts)
            name = json.loads(metadata).get("name") or self.query["name"]
            self._answer(self._store(bucket, name, re.sub(rb"\r?\n\Z", b"", data)))
        elif kind == "resumable" and "upload_id" not in self.query:
            name = json.loads(self.body or b"{}").get("name") or self.query["name"]
            session = str(next(self.store.counter))
            self.store.sessions[session] = bucket, name, dict(self.query), bytearray()
            host = self.headers["Host"]
            location = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            self._answer({}, headers={"Location": location})
        elif kind == "resumable":
            bucket, name, query, data = self.store.sessions[self.query["upload_id"]]
            data += self.body
            if self.headers.get("Content-Range", "/0").endswith("/*"):
                self._answer(None, status=308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})
            else:
                self.query = query
                self._answer(self._store(bucket, name, bytes(data)))
        else:
            raise RequestError(501)

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        low, high = self.query.get("startOffset", ""), self.query.get("endOffset") or "\U0010ffff"
        page_token, page_size = self.query.get("pageToken", ""), int(self.query.get("maxResults", PAGE_SIZE))
        names = sorted(name for b, name in self.store.objects if b == bucket and name.startswith(prefix))
        entries: dict[str, str | None] = {}  # names, and prefixes up to the delimiter
        for name in names:
            if low <= name < high:
                head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                entries.setdefault(prefix + head + mark if mark else name, None if mark else name)
        remaining = [entry for entry in entries if entry > page_token]
        page = remaining[:page_size]
        answer: dict = {"kind": "storage#objects"}
        items = [name for entry in page if (name := entries[entry]) is not None]
        answer["items"] = [_resource(bucket, name, *self.store.objects[bucket, name]) for name in items]
        answer["prefixes"] = [entry for entry in page if entries[entry] is None]
        if len(remaining) > page_size:
            answer["nextPageToken"] = page[-1]
        self._answer(answer)

    def _download(self, generation: int, data: bytes) -> None:
        headers, status = {"x-goog-generation": str(generation), "x-goog-metageneration": "1"}, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                raise RequestError(416)
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        self._answer(data, status=status, headers=headers)

    def _answer(self, content: dict | bytes | None, *, status: int = 200, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *request: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has disconnected
            super().handle_error(*request)


def _resource(bucket: str, name: str, generation: int, data: bytes) -> dict:
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(data)),
        "generation": str(generation),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
        "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
    }


@contextmanager
def serving() -> Iterator[tuple[Store, dict[str, str]]]:
    """Run a server in a thread. Yields its store, and the environment variables that point clients to it."""
    store = Store()
    server = Server(("localhost", 0), type("StoreHandler", (Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://localhost:{server.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # otherwise the client asks for credentials
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # otherwise gcsfs asks another service for the kind of bucket
    }
    try:
        yield store, environment
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
