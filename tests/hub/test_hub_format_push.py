"""The pipeline's own push_to_hub, over real HTTP."""

import pytest
from huggingface_hub import ModelCard

from hf_latent.hub.card.render import render_model_card
from hf_latent.hub.card.signature import is_unedited
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline.hub_format import MINIMUM_DIFFUSERS, SHORT_CARD
from hf_latent.pipeline.saved_files import MODULES
from tests.hub.conftest import TOKEN

LOADING = """
import sys
from hf_latent.models.frozen import hash_weights
from hf_latent.pipeline import LatentDiffusionPipeline
pipe = LatentDiffusionPipeline.from_pretrained({name!r}, **{options!r})
print(hash_weights(pipe.unet), pipe.config._name_or_path)
"""
# Of a model's own copy of the code, with hf_latent, with one of another version and without it.
COPY = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({folder!r}, trust_remote_code=True, use_safetensors=True)
{installed}
print(type(pipe).__module__, pipe.push_to_hub("ada/model"))
"""
INSTALLED = {
    "this version": "",
    "another version": "import hf_latent.hub.card.render as x; del x.write_model_card",
    "none": "sys.modules |= dict.fromkeys(x for x in sys.modules if x.startswith('hf_latent'))",
}
PUSHING = """
from hf_latent.pipeline import LatentDiffusionPipeline
pipe = LatentDiffusionPipeline.from_pretrained({folder!r})
{call}
"""
COMPONENTS = {
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
}
WHOLE = COMPONENTS | {"model_index.json", *(f"{name}.py" for name in MODULES)}


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def run(process, code, **environment):
    outcome = process.run(code, **environment)
    assert outcome.status == 0, outcome.err
    assert TOKEN not in outcome.out + outcome.err
    return outcome.out.strip()


def load(process, name, environment=None, **options):
    return run(process, LOADING.format(name=name, options=options), **(environment or {}))


def push(process, folder, call):
    return run(process, PUSHING.format(folder=str(folder), call=call), token=TOKEN)


@pytest.mark.parametrize(
    "call",
    [
        "print(pipe.push_to_hub('ada/model', private=True))",
        "pipe.save_pretrained('model', push_to_hub=True, private=True)",
        "pipe.save_pretrained({folder!r}, push_to_hub=True, repo_id='ada/model', private=True)",
    ],
)
def test_a_push_sends_all_that_is_needed_and_the_packages_card(
    hub, process, saved, pipeline, tmp_path, call
):
    before = f"import os; os.chdir({str(tmp_path)!r})\n"
    address = push(process, saved, before + call.format(folder=str(saved)))
    assert "print" not in call or address.startswith(f"{hub.endpoint}/ada/model/")
    repo = hub.repos["models", "ada/model"]
    files = repo.files("main")
    assert set(files) - {".gitattributes"} == WHOLE | {"README.md"}
    assert repo.private
    card = files["README.md"].data.decode()
    assert is_unedited(card) and card == render_model_card(saved, "ada/model")
    assert ModelCard(card).data.library_name == "diffusers"
    loaded = load(process, "ada/model", {"HF_TOKEN": TOKEN})
    assert loaded == f"{hash_weights(pipeline.unet)} ada/model"


@pytest.mark.parametrize("installed", INSTALLED)
def test_a_models_own_code_pushes_it_whatever_is_installed(hub, process, saved, installed):
    code = COPY.format(folder=str(saved), installed=INSTALLED[installed])
    assert run(process, code, token=TOKEN).startswith("diffusers_modules.")
    files = hub.repos["models", "ada/model"].files("main")
    assert set(files) - {".gitattributes"} == WHOLE | {"README.md"}
    card = files["README.md"].data.decode()
    short = SHORT_CARD.format(
        title="model",
        diffusers=MINIMUM_DIFFUSERS,
        repo_id="ada/model",
        task="unconditional-image-generation",
        arguments="num_images=1",
    )
    whole = render_model_card(saved, "ada/model")
    assert card == (whole if installed == "this version" else short)


@pytest.mark.parametrize(
    "call",
    [
        "pipe.push_to_hub('ada/model')",
        "pipe.save_pretrained({folder!r}, push_to_hub=True, repo_id='ada/model')",
    ],
)
def test_a_card_on_the_hub_survives(hub, process, saved, tmp_path, call):
    card = b"---\nlicense: mit\n---\n# Mine, written by hand\n"
    hub.put("ada/model", {"README.md": card}, kind="models")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# Another")
    push(process, saved, call.format(folder=str(tmp_path / "out")))
    files = hub.repos["models", "ada/model"].files("main")
    assert files["README.md"].data == card
    assert set(files) - {".gitattributes"} == WHOLE | {"README.md"}


def test_saving_and_pushing_sends_the_card_there_and_nothing_foreign(hub, process, saved):
    (saved / "README.md").write_text("# Mine\n![samples](samples.png)")
    (saved / "samples.png").write_bytes(b"a picture")
    for name in (
        "other.png",
        "data/x.png",
        "unet/deep/x.json",
        "notes.txt",
        "unet/model.bin",
        "secret.py",
        "checkpoint-1/a.safetensors",
    ):
        (saved / name).parent.mkdir(parents=True, exist_ok=True)
        (saved / name).write_text("mine alone")
    push(process, saved, f"pipe.save_pretrained({str(saved)!r}, push_to_hub=True)")
    files = hub.repos["models", "ada/saved"].files("main")
    assert set(files) - {".gitattributes"} == WHOLE | {"README.md", "samples.png"}
    assert files["README.md"].data.startswith(b"# Mine")


@pytest.mark.parametrize("variant", [None, "copy"])
def test_weights_of_an_earlier_push_are_removed_and_no_others(
    hub, process, saved, pipeline, variant
):
    call = f"pipe.push_to_hub('ada/model', variant={variant!r}, max_shard_size={{}})"
    push(process, saved, "pipe.push_to_hub('ada/model')")
    older = {"guidance.py": b"of an earlier version", "unet/mine.safetensors": b"mine"}
    hub.put("ada/model", older, kind="models")
    push(process, saved, call.format("'50KB'"))
    pipeline.unet.conv_in.bias.data += 1
    pipeline.save_pretrained(saved)
    push(process, saved, call.format(None))
    names = set(hub.repos["models", "ada/model"].files("main")) - {".gitattributes", "README.md"}
    copies = {f"{x}/diffusion_pytorch_model.copy.safetensors" for x in ("unet", "vae")}
    assert names == WHOLE | {"unet/mine.safetensors"} | (copies if variant else set())
    loaded = load(process, "ada/model", **({"variant": variant} if variant else {}))
    assert loaded.startswith(hash_weights(pipeline.unet))


def test_a_pull_request_does_not_change_main(hub, process, saved):
    hub.put("ada/model", {"README.md": b"# There"}, kind="models")
    push(process, saved, "pipe.push_to_hub('ada/model', create_pr=True)")
    repo = hub.repos["models", "ada/model"]
    assert set(repo.files("main")) == {".gitattributes", "README.md"}
    assert set(repo.files("refs/pr/1")) >= WHOLE


def test_revision_and_offline_mode(hub, process, saved, pipeline, tmp_path):
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    first = hub.put("ada/model", files, kind="models").refs["main"]
    pipeline.unet.conv_in.bias.data += 1
    pipeline.save_pretrained(saved)
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    hub.put("ada/model", files, kind="models")
    newest = hash_weights(pipeline.unet)
    pipeline.unet.conv_in.bias.data -= 1
    assert load(process, "ada/model").startswith(newest)
    assert not load(process, "ada/model", revision=first).startswith(newest)
    asked = len(hub.requests)
    offline = {"local_files_only": True}
    assert load(process, "ada/model", **offline).startswith(newest)
    assert not load(process, "ada/model", revision=first, **offline).startswith(newest)
    assert len(hub.requests) == asked
    outcome = process.run(LOADING.format(name="ada/other", options=offline))
    assert outcome.status == 1
    assert "LocalEntryNotFoundError" in outcome.err
