"""A bucket of Google Cloud Storage on this machine, as far as its clients ask: the JSON API, from its documentation."""

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
BUCKETS = ("bucket", "closed")  # there are no others, and one lets nobody in
WITHIN_A_PAGE = 1000


@dataclass
class Store:
    """What is stored: a generation and bytes, by bucket and name. A new generation is greater than all before."""

    held: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    sessions: dict[str, tuple[str, str, dict, bytearray]] = field(default_factory=dict)
    counter: itertools.count = field(default_factory=lambda: itertools.count(1))
    lock: threading.RLock = field(default_factory=threading.RLock)


class Refused(Exception):
    """A request that gets a status in place of an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.asked = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with self.store.lock:
                self._route(url.path)
        except Refused as refusal:
            why = {"error": {"code": refusal.args[0], "message": "refused"}}
            self._answer(None if refusal.args[0] == 304 else why, status=refusal.args[0])

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _route(self, path: str) -> None:
        found = re.fullmatch(PATH, path)
        if found is None or found[1] not in BUCKETS:
            raise Refused(404)
        bucket, rest = found.groups()
        if bucket == "closed":
            raise Refused(403)
        if rest is not None:
            self._object(bucket, rest)
        elif not path.endswith("/o"):
            self._answer({"kind": "storage#bucket", "name": bucket})
        elif self.command == "GET":
            self._list(bucket)
        else:
            self._upload(bucket)

    def _object(self, bucket: str, path: str) -> None:
        """path: a name, and where it is copied, how and to what; slashes of a name are escaped."""
        name, *copied = path.split("/", 1)
        name = unquote(name)
        generation, data = self._held(bucket, name)
        if copied:
            how, to, called = re.fullmatch("(copy|rewrite|move)To(?:/b/([^/]+))?/o/([^/]+)", copied[0]).groups(bucket)
            about = self._put(to, unquote(called), data)
            if how == "move":
                del self.store.held[bucket, name]
            self._answer({"done": True, "resource": about} if how == "rewrite" else about)
            return
        self._check(bucket, name)
        if self.command == "DELETE":
            del self.store.held[bucket, name]
            self._answer(None, status=204)
        elif self.asked.get("alt") == "media":
            self._download(generation, data)
        else:
            self._answer(_about(bucket, name, generation, data))

    def _held(self, bucket: str, name: str) -> tuple[int, bytes]:
        if (bucket, name) not in self.store.held:
            raise Refused(404)
        return self.store.held[bucket, name]

    def _check(self, bucket: str, name: str) -> None:
        """Refuse where the object is not of the generation that was said; 0 is of one that is not there."""
        now = self.store.held.get((bucket, name), (0, b""))[0]
        if self.asked.get("ifGenerationMatch", str(now)) != str(now):
            raise Refused(412)
        if self.asked.get("ifGenerationNotMatch") == str(now):
            raise Refused(304)

    def _put(self, bucket: str, name: str, data: bytes) -> dict:
        self._check(bucket, name)
        generation = next(self.store.counter)
        self.store.held[bucket, name] = generation, data
        return _about(bucket, name, generation, data)

    def _upload(self, bucket: str) -> None:
        kind = self.asked.get("uploadType")
        if kind == "media":
            self._answer(self._put(bucket, self.asked["name"], self.body))
        elif kind == "multipart":
            # Between marks lie what is told of the object and its bytes, each below a head of its own.
            mark = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in self.body.split(b"--" + mark)[1:3])
            name = json.loads(about).get("name") or self.asked["name"]
            self._answer(self._put(bucket, name, re.sub(rb"\r?\n\Z", b"", data)))
        elif kind == "resumable" and "upload_id" not in self.asked:
            name = json.loads(self.body or b"{}").get("name") or self.asked["name"]
            session = str(next(self.store.counter))
            self.store.sessions[session] = bucket, name, dict(self.asked), bytearray()
            host = self.headers["Host"]
            where = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            self._answer({}, headers={"Location": where})
        elif kind == "resumable":
            bucket, name, asked, data = self.store.sessions[self.asked["upload_id"]]
            data += self.body
            if self.headers.get("Content-Range", "/0").endswith("/*"):
                self._answer(None, status=308, headers={"Range": f"bytes=0-{len(data) - 1}"} if data else {})
            else:
                self.asked = asked
                self._answer(self._put(bucket, name, bytes(data)))
        else:
            raise Refused(501)

    def _list(self, bucket: str) -> None:
        prefix, delimiter = self.asked.get("prefix", ""), self.asked.get("delimiter")
        low, high = self.asked.get("startOffset", ""), self.asked.get("endOffset") or "\U0010ffff"
        after, most = self.asked.get("pageToken", ""), int(self.asked.get("maxResults", WITHIN_A_PAGE))
        names = sorted(name for b, name in self.store.held if b == bucket and name.startswith(prefix))
        entries: dict[str, str | None] = {}  # what is shown: names, and prefixes up to the delimiter
        for name in names:
            if low <= name < high:
                head, mark, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                entries.setdefault(prefix + head + mark if mark else name, None if mark else name)
        left = [shown for shown in entries if shown > after]
        page = left[:most]
        answer: dict = {"kind": "storage#objects"}
        items = [name for shown in page if (name := entries[shown]) is not None]
        answer["items"] = [_about(bucket, name, *self.store.held[bucket, name]) for name in items]
        answer["prefixes"] = [shown for shown in page if entries[shown] is None]
        if len(left) > most:
            answer["nextPageToken"] = page[-1]
        self._answer(answer)

    def _download(self, generation: int, data: bytes) -> None:
        headers, status = {"x-goog-generation": str(generation), "x-goog-metageneration": "1"}, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                raise Refused(416)
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

    def handle_error(self, *about: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has gone
            super().handle_error(*about)


def _about(bucket: str, name: str, generation: int, data: bytes) -> dict:
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
    """A server with a thread of its own; what is stored, and the environment in which clients find it."""
    store = Store()
    server = Server(("localhost", 0), type("Own", (Handler,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    where = f"http://localhost:{server.server_port}"
    told = {
        "STORAGE_EMULATOR_HOST": where,
        "TENSORSTORE_GCS_HTTP_URL": where,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # or it asks for somebody's credentials
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or it asks what kind of bucket this is, of another service
    }
    try:
        yield store, told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
