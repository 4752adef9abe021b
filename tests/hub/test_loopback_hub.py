"""The loopback Hub answers stock huggingface_hub as the Hub does, for models and data sets."""

from tests.hub.conftest import TOKEN


def test_a_model_is_uploaded_listed_read_in_part_and_downloaded(hub, process, tmp_path):
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "weights.safetensors").write_bytes(bytes(range(100)))
    code = f"""
from pathlib import Path
from huggingface_hub import HfApi, HfFileSystem, snapshot_download
api = HfApi()
api.create_repo("ada/model")
api.upload_folder(repo_id="ada/model", folder_path={str(folder)!r})
print(*sorted(api.list_repo_files("ada/model")))
print([x.path for x in api.list_repo_tree("ada/model", recursive=False)])
print([x.size for x in api.get_paths_info("ada/model", ["vae/weights.safetensors", "none"])])
with HfFileSystem().open("ada/model/vae/weights.safetensors", "rb", block_size=8) as file:
    file.seek(50)
    print(list(file.read(3)))
print(Path(snapshot_download("ada/model"), "vae/weights.safetensors").read_bytes()[-1])
"""
    outcome = process.run(code, TOKEN)
    assert outcome.out.splitlines() == [
        ".gitattributes model_index.json vae/weights.safetensors",
        "['.gitattributes', 'model_index.json', 'vae']",
        "[100]",
        "[50, 51, 52]",
        "99",
    ], outcome.err
    ranges = [x.headers.get("range", "") for x in hub.asked("GET .*resolve")]
    assert any(x.startswith("bytes=50-") for x in ranges)


def test_errors_are_those_of_the_hub(hub, process):
    hub.put("eve/hidden", {"a.txt": b"a"}, private=True)
    hub.put("eve/open", {"a.txt": b"a"})
    code = """
from huggingface_hub import HfApi, hf_hub_download
def told(call, *arguments, **named):
    try:
        call(*arguments, repo_type="dataset", **named)
    except Exception as error:
        print(type(error).__name__, error.response.status_code)
told(HfApi().repo_info, "eve/hidden")
told(HfApi().repo_info, "eve/missing")
told(HfApi().repo_info, "eve/open", revision="none")
told(HfApi().create_repo, "eve/open2")
told(hf_hub_download, "eve/open", "b.txt")
told(HfApi().create_branch, "eve/open", branch="mine")
"""
    assert process.run(code, TOKEN).out.splitlines() == [
        "RepositoryNotFoundError 404",
        "RepositoryNotFoundError 404",
        "RevisionNotFoundError 404",
        "HfHubHTTPError 403",
        "RemoteEntryNotFoundError 404",
        "HfHubHTTPError 403",
    ]
    assert process.run(code).out.splitlines()[:2] == ["RepositoryNotFoundError 401"] * 2


def test_a_download_that_is_cut_is_made_again(hub, process):
    hub.put("ada/data", {"a.safetensors": bytes(1000)})
    hub.fail("GET .*resolve", how="cut")
    code = """
from pathlib import Path
from huggingface_hub import hf_hub_download
print(len(Path(hf_hub_download("ada/data", "a.safetensors", repo_type="dataset")).read_bytes()))
"""
    assert process.run(code).out == "1000\n"
    assert len(hub.asked("GET .*resolve")) == 2
