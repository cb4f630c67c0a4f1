"""Models put on the hub and got from there, with a stand-in for it; never without being asked."""

import base64
import hashlib
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub
import huggingface_hub.constants as constants
import huggingface_hub.utils._http as library
import pytest
import torch

import hrvqvae
from hrvqvae import Model
from hrvqvae.checkpoints.export import export
from tests.checkpoints.test_export import IMAGES, commands, front_matter
from tests.conftest import check_refusals, do, input_error, names_in, same, write_picture
from tests.replay import blocks

TOKEN = "hf_test"
# the library's HTTP client
http = sys.modules[type(library.get_session()).__module__.partition(".")[0]]


def sha1(content):
    return hashlib.sha1(content).hexdigest()


def commit_of(files):
    return sha1(repr(sorted(files.items())).encode())


class Hub:
    """The state of the stand-in, and the requests to it."""

    url = "https://huggingface.co"
    refuse_commits = False
    reachable = True

    def __init__(self):
        self.repositories = {}  # the files of each
        self.private = set()
        self.requests = []  # method and path

    def answer(self, request):
        if not self.reachable:
            raise http.ConnectError("Connection refused")
        path = unquote(request.url.path)
        self.requests.append(f"{request.method} {path}")
        parts = path.strip("/").split("/")
        is_user = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if request.method in ("GET", "HEAD"):
            return self._read(parts, is_user)
        if not is_user:
            return http.Response(401, json={"error": "Invalid username or password."})
        return self._write(parts, request.read())

    def _read(self, parts, is_user):
        of_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if of_api else parts[:2])
        files = self.repositories.get(name)
        if files is None or (name in self.private and not is_user):
            return http.Response(401, headers={"X-Error-Code": "RepoNotFound"})
        commit = commit_of(files)
        if of_api and parts[-1] not in ("main", commit) and "revision" in parts:
            return http.Response(404, headers={"X-Error-Code": "RevisionNotFound"})
        if of_api and "tree" in parts:
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": sha1(content)}
                for path, content in sorted(files.items())
            ]
            return http.Response(200, json=rows)
        if of_api:
            siblings = [{"rfilename": file} for file in files]
            about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            return http.Response(200, json=about)
        content = files.get("/".join(parts[4:]))  # user/name/resolve/revision/file
        if content is None:
            return http.Response(404, headers={"X-Error-Code": "EntryNotFound"})
        tags = {"ETag": f'"{sha1(content)}"', "X-Repo-Commit": commit}
        return http.Response(200, content=content, headers=tags)

    def _write(self, parts, body):
        answer = {"errors": [], "warnings": []}  # of a card's YAML
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked.get("visibility") == "private" or asked.get("private"):
                self.private.add(name)
            self.repositories.setdefault(name, {})
            answer = {"url": f"{self.url}/{name}", "id": name}
        elif "preupload" in parts:
            answer["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
        elif "commit" in parts and self.refuse_commits:
            return http.Response(403)
        elif "commit" in parts:
            name = "/".join(parts[2:4])
            files = self.repositories[name]
            for kind, value in (json.loads(line).values() for line in body.splitlines()):
                if kind == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif kind == "deletedFile":
                    del files[value["path"]]
            commit = commit_of(files)
            url = f"{self.url}/{name}/commit/{commit}"
            answer = {"commitUrl": url, "commitOid": commit, "success": True}
        return http.Response(200, json=answer)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in that huggingface_hub asks instead of the real one."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    # a protocol of its own for large files
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    running = Hub()
    client = http.Client(transport=http.MockTransport(running.answer), follow_redirects=True)
    huggingface_hub.set_client_factory(lambda: client)
    yield running
    huggingface_hub.set_client_factory(library.default_client_factory)


def test_a_run_with_priors_there_and_back(full_run, tmp_path, hub):
    printed = do(f"hub push {full_run} someone/digits --license mit --private")
    assert printed.startswith(f"{hub.url}/someone/digits/commit/")
    pushed = hub.repositories["someone/digits"]
    assert hub.private == {"someone/digits"}
    files = export(full_run, Path("out"))
    assert pushed.keys() == {str(path.relative_to("out")) for path in files}
    card = pushed["README.md"].decode()
    assert front_matter(card)["license"] == "mit"
    get, reconstruct = commands(card)
    assert get.startswith("hub get ")
    assert reconstruct.startswith("reconstruct digits ")
    write_picture(tmp_path / "x.png", 1, (12, 12), "L")
    do(get)
    do(reconstruct)
    check_refusals(f"{get} | digits exists already; choose another folder")
    original = hrvqvae.load(full_run)
    fetched = Model.from_pretrained("someone/digits", cache_dir=tmp_path / "cache")
    for model in (hrvqvae.load("digits"), fetched):
        assert same(model.encode(IMAGES), original.encode(IMAGES))
        assert model.sample(2).shape == (2, 1, 12, 12)
    printed = do(f"evaluate digits --data {original.config.data.root} --device cpu")
    assert "the priors know the class" in printed


def test_weights_that_were_changed_there_and_back(full_run, tmp_path, hub):
    """They replace another model and its artifacts, and nothing else."""
    model = hrvqvae.load(full_run)
    model.push_to_hub("someone/changed")
    files = hub.repositories["someone/changed"]
    assert any(name.startswith("priors/") for name in files)
    assert b"test images: MSE" in files["README.md"]
    files["notes.txt"] = b""
    for parameter in model.autoencoder.parameters():
        parameter.data += 0.001
    assert model.push_to_hub("someone/changed", commit_message="changed").startswith(hub.url)
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "notes.txt"]
    assert b"not in training" in files["README.md"]
    there = Model.from_pretrained("someone/changed", cache_dir=tmp_path / "cache")
    assert same(there.autoencoder.state_dict(), model.autoencoder.state_dict())
    assert there.config.data.size == 12


def test_what_is_on_this_machine_is_asked_of_nobody(run, tmp_path, hub):
    Model.from_pretrained("mnist", torch.device("cpu"))
    Model.from_pretrained(str(run))
    (tmp_path / "someone").mkdir()
    export(run, Path("someone/digits"))
    Model.from_pretrained("someone/digits")
    for load, nowhere, message in (
        (hrvqvae.load, "someone/else", "mnist$"),
        (hrvqvae.load, "else/digits", "hrvqvae hub get else/digits$"),
        (Model.from_pretrained, "nowhere", "cifar10, mnist, .*mnist$"),
    ):
        with input_error(f"there is no such run folder.*{message}"):
            load(nowhere)
    with input_error("someone/digits is on this machine, and has no revisions"):
        Model.from_pretrained("someone/digits", revision="v2")
    with input_error("from_pretrained has no option devise; it has device, beam, revision"):
        Model.from_pretrained("mnist", devise="cuda")
    assert hub.requests == []


def test_what_the_hub_does_not_give(run, tmp_path, hub, monkeypatch):
    hub.refuse_commits = True
    check_refusals(f"hub push {run} someone/digits | the hub refuses someone/digits")
    assert hub.repositories.pop("someone/digits") == {}
    hub.refuse_commits = False
    Model(run).push_to_hub("someone/digits", private=True)
    get = "hub get someone/digits"
    check_refusals(f"""
        hub get someone/none | the hub has no model someone/none, or it is private
        {get} --revision v9 | has no revision 'v9'
        hub push {run} digits | 'digits' is no name of the hub; it must be user/name
        hub get a--b/c | 'a--b/c' is no name of the hub
    """)
    with input_error("someone/digits: .*commit_message"):
        Model(run).push_to_hub("someone/digits", commit_message="")
    hub.repositories["someone/digits"].pop("model.safetensors")
    check_refusals(f"{get} | is no model of hrvqvae (it has no model.safetensors)")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    check_refusals(f"""
        {get} | the hub has no model someone/digits, or it is private
        hub push {run} someone/other | the hub refuses someone/other; log in
    """)
    present = importlib.util.find_spec

    def find_spec(name):
        return None if name == "huggingface_hub" else present(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    check_refusals(f"{get} | the hub needs huggingface_hub: pip install 'hrvqvae[hub]'")
    # nothing is left of what failed
    assert names_in(tmp_path) == ["run"]


def test_without_a_network(run, tmp_path, hub):
    Model(run).push_to_hub("someone/digits")
    fetch = partial(Model.from_pretrained, cache_dir=tmp_path / "cache")
    fetch("someone/digits")
    hub.reachable = False
    for options in ({}, {"local_files_only": True}):
        fetch("someone/digits", **options)
        with input_error("someone/other is not on this machine, and the hub can't be reached"):
            fetch("someone/other", **options)
    told = "the hub can't be reached for someone/new"
    check_refusals(f"hub push {run} someone/new | {told}")


def test_the_page(tmp_path, hub):
    """The code and the commands of docs/hub.md, with the shipped model as the run and as what is on
    the hub.
    """
    page = blocks("docs/hub.md")
    names = {}
    exec(dict(page)["python"], names)
    assert names["images"].shape == (4, 1, 28, 28)
    assert Path("mine/priors/level-1/model.safetensors").is_file()
    Path("runs").mkdir()
    export("mnist", Path("runs/mnist"))
    Model("mnist").push_to_hub("user/name")
    typed = [command for _, block in page for command in commands(block)]
    assert len(typed) == 2
    for command in typed:
        do(command.partition("#")[0])
    assert Path("name/model.safetensors").is_file()
    card = hub.repositories["user/name"]["README.md"].decode()
    assert front_matter(card)["license"] == "mit"
