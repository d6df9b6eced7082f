"""The fake Hub answers huggingface_hub's own client as the real one does."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.errors import RevisionNotFoundError as NoRevision

from .fake_hub import TOKEN, USER


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


def upload(api, repo_id, name, content, **kwargs):
    return api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo_id, **kwargs)


def test_upload_download_and_history(hub, api, tmp_path):
    assert api.whoami()["name"] == USER
    assert api.create_repo("mine").repo_id == f"{USER}/mine"
    api.create_repo("org/a")
    api.create_repo("org/a", exist_ok=True)
    first = upload(api, "org/a", "x.txt", b"one").oid
    upload(api, "org/a", "deep/er/y.txt", b"y")
    api.create_branch("org/a", branch="side", revision=first)
    upload(api, "org/a", "x.txt", b"two", revision="side")
    assert hub.files("org/a") == {"x.txt": b"one", "deep/er/y.txt": b"y"}
    assert hub.files("org/a", revision=first) == {"x.txt": b"one"}
    assert hub.history("org/a")[0].message == "Upload x.txt with huggingface_hub"
    api.delete_file("x.txt", "org/a")
    assert set(api.list_repo_files("org/a")) == {".gitattributes", "deep/er/y.txt"}
    for revision, content in ((first, "one"), ("side", "two")):
        file = api.hf_hub_download("org/a", "x.txt", revision=revision, cache_dir=tmp_path)
        assert Path(file).read_text() == content
    assert [entry.path for entry in api.list_repo_tree("org/a", path_in_repo="deep")] == ["deep/er"]
    assert api.get_paths_info("org/a", ["deep/er/y.txt"])[0].size == 1
    assert {branch.name for branch in api.list_repo_refs("org/a").branches} == {"main", "side"}
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("org/a", "gone.txt", cache_dir=tmp_path)
    with pytest.raises(NoRevision):
        api.repo_info("org/a", revision="gone")


def test_private_repositories_are_hidden_from_everybody_else(hub, api, tmp_path):
    api.create_repo("org/secret", private=True, repo_type="dataset")
    upload(api, "org/secret", "x.txt", b"one", repo_type="dataset")
    api.hf_hub_download("org/secret", "x.txt", repo_type="dataset", cache_dir=tmp_path / "mine")
    for token, status in ((False, 401), ("hf_wrong", 401)):
        other = HfApi(endpoint=hub.url, token=token)
        with pytest.raises(HfHubHTTPError) as caught:
            other.repo_info("org/secret", repo_type="dataset")
        assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError):
            upload(other, "org/secret", "x.txt", b"two", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).repo_info("org/secret", repo_type="dataset")
    assert hub.files("org/secret", "dataset") == {"x.txt": b"one"}


@pytest.mark.parametrize("how", ["error", "cut"])
def test_a_broken_commit_changes_nothing(hub, api, how):
    api.create_repo(f"org/{how}")
    hub.break_commit(f"org/{how}", 2, how)
    upload(api, f"org/{how}", "x.txt", b"one")
    with pytest.raises(Exception, match=r"500|disconnected"):
        upload(api, f"org/{how}", "x.txt", b"two")
    assert hub.files(f"org/{how}") == {"x.txt": b"one"}
    upload(api, f"org/{how}", "x.txt", b"three")
    assert hub.files(f"org/{how}") == {"x.txt": b"three"}
