"""The answers of the loopback Hub: one method per endpoint, and the routes to them."""

import base64
import fnmatch
import json
import re
from collections import namedtuple
from typing import Any
from urllib.parse import parse_qs

from tests.hub.loopback_repo import Blob, Refusal, Repo, check_card

Account = namedtuple("Account", "name role")
Answer = tuple[int, dict[str, str], bytes]
KINDS = {"models": "", "datasets": "datasets/"}
API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
LINK = r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)"


class Endpoints:
    """The endpoints; each gets the parts of its path, the query, the body and the account."""

    endpoint: str
    page_size: int
    repos: dict[tuple[str, str], Repo]
    tokens: dict[str, Account]
    stored: dict[str, bytes]  # LFS objects by their sha256
    xet: str  # the address of Xet's storage; its files are not in `stored`

    def account(self, headers: dict[str, str]) -> Account | None:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def readable(self, kind: str | None, repo_id: str, account: Account | None) -> Repo:
        kind = {None: "models", "datasets/": "datasets"}.get(kind, kind)
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and (account is None or account.name != repo.owner)):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo: Repo | str, account: Account | None, proposal: bool = False) -> None:
        owner = repo.owner if isinstance(repo, Repo) else repo
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if account.role != "write" or (account.name != owner and not proposal):
            raise Refusal(403, f"You don't have the rights to write to {owner}'s namespace")

    def whoami(self, account: Account | None, **_: Any) -> dict:
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"accessToken": {"displayName": "test", "role": account.role}}
        return {"type": "user", "name": account.name, "orgs": [], "auth": token}

    def harnesses(self, **_: Any) -> dict:
        return {"standardEnvVars": [], "harnesses": {}}

    def create(self, body: bytes, account: Account | None, **_: Any) -> dict:
        asked = json.loads(body)
        owner = asked.get("organization") or (account.name if account else "")
        self.writable(owner, account)
        kind, repo_id = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
        url = f"{self.endpoint}/{KINDS[kind]}{repo_id}"
        if (kind, repo_id) in self.repos:
            refusal = Refusal(409, "You already created this repo")
            refusal.body["url"] = url  # huggingface_hub continues with it
            raise refusal
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        return {"url": url, "name": repo_id}

    def validate(self, body: bytes, **_: Any) -> dict:
        asked = json.loads(body)
        errors = check_card(asked["content"], asked["repoType"])
        if errors:
            raise Refusal(400, "invalid", errors=errors)
        return {"errors": [], "warnings": []}

    def info(self, repo: Repo, rev: str = "main", **_: Any) -> dict:
        files = repo.files(rev)
        siblings = [{"rfilename": k, "size": len(v.data)} for k, v in sorted(files.items())]
        known = {"id": repo.id, "private": repo.private, "author": repo.owner, "tags": []}
        return known | {"sha": repo.sha(rev), "siblings": siblings, "downloads": 0, "likes": 0}

    def write_check(self, repo: Repo, account: Account | None, **_: Any) -> dict:
        self.writable(repo, account)
        return {}

    def refs(self, repo: Repo, **_: Any) -> dict:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in repo.refs.items()
            if not name.startswith("refs/")
        ]
        return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}

    def tree(self, repo: Repo, rev: str, query: dict, path: str = "", **_: Any) -> Answer:
        entries = repo.entries(rev, path, query.get("recursive", "").lower() in ("true", "1"))
        start = int(query.get("cursor", 0))
        page, headers = entries[start : start + self.page_size], {}
        if start + self.page_size < len(entries):
            link = f"{self.endpoint}/api/{repo.kind}/{repo.id}/tree/{rev.replace('/', '%2F')}"
            more = f"recursive={query.get('recursive', '')}&cursor={start + self.page_size}"
            headers["Link"] = f'<{link}?{more}>; rel="next"'
        return 200, headers, json.dumps(page).encode()

    def paths(self, repo: Repo, rev: str, body: bytes, **_: Any) -> list:
        wanted = parse_qs(body.decode()).get("paths", [])
        found = {x["path"]: x for name in wanted for x in repo.around(rev, name)}
        return [found[name] for name in wanted if name in found]

    def branch(self, repo: Repo, rev: str, account: Account | None, **_: Any) -> dict:
        self.writable(repo, account)
        if rev in repo.refs:
            raise Refusal(409, "Reference already exists")
        repo.refs[rev] = repo.sha("main")
        return {}

    def discussions(self, repo: Repo, query: dict, **_: Any) -> dict:
        found = [
            x for x in repo.pull_requests if query.get("author") in (None, x["author"]["name"])
        ]
        found = [x for x in found if query.get("status") in (None, "all", x["status"])]
        return {"count": len(found), "start": 0, "discussions": found}

    def preupload(
        self, repo: Repo, rev: str, body: bytes, query: dict, account: Account | None, **_: Any
    ) -> dict:
        self.writable(repo, account, proposal=bool(query.get("create_pr")) or "refs/pr" in rev)
        files, answers = repo.files(rev), []
        ignored = files[".gitignore"].data.decode().split() if ".gitignore" in files else []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = file["size"] > 0 and Blob.is_large(path, b"", file["size"])
            answer = {"path": path, "uploadMode": "lfs" if large else "regular"}
            answer["shouldIgnore"] = any(fnmatch.fnmatch(path, x) for x in ignored)
            answers.append(answer | ({"oid": files[path].etag} if path in files else {}))
        return {"files": answers}

    def xet_token(self, repo: Repo, account: Account | None, **_: Any) -> dict:
        self.writable(repo, account, proposal=True)
        return {"casUrl": self.xet, "accessToken": "xet", "exp": 2**40}

    def batch(self, repo: Repo, body: bytes, account: Account | None, **_: Any) -> dict:
        self.writable(repo, account, proposal=True)
        objects = json.loads(body)["objects"]
        for x in objects:
            if x["oid"] not in self.stored:
                href = f"{self.endpoint}/lfs/{x['oid']}"
                x["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str, body: bytes, **_: Any) -> dict:
        if Blob(body, True).etag != oid:
            raise Refusal(400, "The content has another sha256")
        self.stored[oid] = body
        return {}

    def verify(self, oid: str, body: bytes, **_: Any) -> dict:
        if len(self.stored.get(oid, b"")) != json.loads(body)["size"]:
            raise Refusal(404, "Object not found")
        return {}

    def commit(
        self, repo: Repo, rev: str, body: bytes, query: dict, account: Account | None, **_: Any
    ) -> dict:
        proposal = bool(query.get("create_pr"))
        self.writable(repo, account, proposal or rev.startswith("refs/pr/"))
        header, *operations = [json.loads(line) for line in body.splitlines()]
        files = dict(repo.files(rev))
        for x in operations:
            value, path = x["value"], x["value"]["path"]
            if x["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]), False)
            elif x["key"] == "lfsFile":
                if value["oid"] not in self.stored:
                    raise Refusal(400, f"{path} has no LFS object")
                files[path] = Blob(self.stored[value["oid"]], True)
            elif files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        assert account is not None
        title, link = header["value"]["summary"], f"{self.endpoint}/{KINDS[repo.kind]}{repo.id}"
        answer: dict[str, Any] = {"success": True}
        if proposal:
            rev = repo.propose(title, account.name)
            answer["pullRequestUrl"] = f"{link}/discussions/{len(repo.pull_requests)}"
        sha = repo.commit(rev, files, title)
        return answer | {"commitOid": sha, "commitUrl": f"{link}/commit/{sha}"}

    def resolve(self, repo: Repo, rev: str, path: str, headers: dict[str, str], **_: Any) -> Answer:
        if path not in repo.files(rev):
            raise Refusal(404, "Entry not found", "EntryNotFound")
        blob, sha = repo.files(rev)[path], repo.sha(rev)
        sent = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        return blob.part(headers.get("range"), sent)


ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", r"/api/agent-harnesses", "harnesses"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", API, "info"),
        ("GET", API + r"/revision/(?P<rev>[^/]+)", "info"),
        ("GET", API + r"/auth-check/write", "write_check"),
        ("GET", API + r"/refs", "refs"),
        ("GET", API + r"/discussions", "discussions"),
        ("GET", API + r"/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", API + r"/paths-info/(?P<rev>[^/]+)", "paths"),
        ("POST", API + r"/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", API + r"/preupload/(?P<rev>[^/]+)", "preupload"),
        ("GET", API + r"/xet-write-token/(?P<rev>[^/]+)", "xet_token"),
        ("POST", API + r"/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", LINK + r"\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "store"),
        ("POST", r"/lfs/(?P<oid>\w+)/verify", "verify"),
        ("GET", LINK + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )
]
