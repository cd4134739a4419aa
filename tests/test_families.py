"""Flows on a U-Net, class-conditional EDM models, InstructPix2Pix, PixArt and LoRA weights, on tiny pipelines of the real classes."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline, StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from diffprobe import rng
from diffprobe.adapters.edm import ClassConditionalPipeline
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import InstructEditor, PipelineEditor, PipelineGenerator, PixArtGenerator
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, GenerateSettings, Model, Rig
from diffprobe.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.probes.drift import Drift
from diffprobe.runs.result import start
from diffprobe.sampling import Guidance, final, guided, trajectory

Folder = Callable[[str], Path]


def pipe_of(model: Model) -> StableDiffusionPipeline:
    assert isinstance(model.generator, PipelineGenerator)
    return model.generator.pipe


def noise(n: int) -> torch.Tensor:
    return rng.normal((4, 16, 16), "test.families", range(n))


def test_a_flow_solver_follows_a_flow_whatever_its_betas(pipelines: Folder) -> None:
    model = load(str(pipelines("flow")))
    assert model.path == RectifiedFlow(shift=3.0, spacing="solver")
    assert model.editor is not None
    level = model.editor.level(0.4, 15)
    assert level.t is not None
    assert level.alpha == pytest.approx(1 - level.t / 1000, abs=1e-3)
    assert level.sigma == pytest.approx(level.t / (1000 - level.t), rel=5e-3)  # the solver rounds its times to whole numbers


@pytest.mark.parametrize("family", ["flow", "edm", "sd3"])
def test_the_levels_of_a_path_are_those_of_its_scheduler(pipelines: Folder, family: str) -> None:
    model = load(str(pipelines(family)))
    assert model.path is not None
    scheduler = pipe_of(model).scheduler
    scheduler.set_timesteps(7)
    assert model.path.levels(7) == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)


@pytest.mark.parametrize("family", ["flow", "edm"])
def test_our_loop_is_the_deployed_one(pipelines: Folder, family: str) -> None:
    """The denoiser along the scheduler's own levels, by our Euler step, gives what the pipeline gives."""
    model, prompts, scale = load(str(pipelines(family))), ["a red star", "blue"], 3.0
    assert model.path is not None
    assert model.denoiser is not None
    assert model.condition is not None
    pipe = pipe_of(model)
    deployed = pipe(
        prompt=prompts,
        num_inference_steps=6,
        guidance_scale=scale,
        generator=rng.generators([3, 4]),
        output_type="latent",
        return_dict=False,
    )[0]
    seeded = torch.cat([torch.randn(1, 4, 16, 16, generator=generator) for generator in rng.generators([3, 4])])
    x = seeded * (pipe.scheduler.init_noise_sigma if family == "edm" else 1.0)
    with torch.no_grad():
        denoiser = guided(model.denoiser, model.path, Guidance(scale))
        ours = final(trajectory(denoiser, model.path, x, model.path.levels(6), cond=model.condition(prompts)))
    off = float((ours - deployed).norm() / deployed.norm())
    assert off < (0.02 if family == "flow" else 1e-4)  # the flow's solver shows the network whole times only


def test_the_edm_denoiser_is_the_schedulers_preconditioning(pipelines: Folder) -> None:
    model = load(str(pipelines("edm")))
    assert isinstance(model.path, VarianceExploding)
    assert model.denoiser is not None
    pipe, x, sigma = pipe_of(model), noise(2) * 3, torch.tensor(3.0)
    classes = torch.tensor([0, 1])
    with torch.no_grad():
        ours = model.denoiser(x, 3.0, classes)
        shown, clock = pipe.scheduler.precondition_inputs(x, sigma), pipe.scheduler.precondition_noise(sigma)
        raw = pipe.unet(shown, clock, encoder_hidden_states=pipe.tokens(classes)).sample
        theirs = pipe.scheduler.precondition_outputs(x, raw, sigma)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(model.denoiser(x, 3.0), model.denoiser(x, 3.0, torch.tensor(2)))  # no condition is the class without a name


def test_a_prompt_asks_for_the_class_whose_words_it_holds(pipelines: Folder) -> None:
    pipe = ClassConditionalPipeline.from_pretrained(pipelines("edm"))
    asked = ["a large Red star, with a hat", "a blue star", "a red heart", "", "Make no change."]
    assert pipe.classes(asked).tolist() == [0, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="unconditional"):
        ClassConditionalPipeline(pipe.unet, pipe.vae, pipe.scheduler, id2label={0: "red star"})


def test_the_edm_pipeline_edits_pictures_and_latents_alike(pipelines: Folder) -> None:
    pipe = ClassConditionalPipeline.from_pretrained(pipelines("edm"))
    pipe.set_progress_bar_config(disable=True)
    image = torch.sigmoid(rng.normal((3, 32, 32), "test.families", [0]))
    with torch.no_grad():
        latents = pipe.vae.encode(image * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    a, b = (
        pipe(
            "a red star", image=x, strength=0.4, num_inference_steps=5, generator=torch.Generator().manual_seed(1), output_type="pt"
        ).images
        for x in (image, latents)
    )
    assert torch.allclose(a, b, atol=1e-5)
    assert a.shape == (1, 3, 32, 32)


def test_an_instruct_pipeline_edits_and_has_no_strength_axis(pipelines: Folder) -> None:
    model = load(str(pipelines("edit")))
    assert isinstance(model.editor, InstructEditor)
    assert model.codec is not None
    assert model.capabilities == {"path", "codec", "editor", "denoiser", "condition"}
    assert model.identity["image_guidance_scale"] == "1.5"
    level = model.editor.level(1.0, 15)
    assert (level.steps, level.t) == (15, 925)
    image = torch.sigmoid(rng.normal((3, 32, 32), "test.families", [0]))
    edited = model.editor.edit(model.codec.encode(image), ["a"], [7], EditSettings(1.0, 4, 5.0))
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(pipelines("edit"))
    pipe.set_progress_bar_config(disable=True)
    by_hand = pipe(
        "a", image=image, num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(7), output_type="pt"
    )
    assert torch.allclose(edited.images.clamp(0, 1), by_hand.images, atol=1e-4)
    with pytest.raises(UserError, match=r"ignores strength 0\.4: use strength 1"):
        model.editor.level(0.4, 15)


def test_a_sweep_over_strengths_is_refused_and_a_budget_suits_itself(pipelines: Folder) -> None:
    model = load(str(pipelines("edit")))
    with pytest.raises(UserError, match=r"no strength axis .* set strengths to \[1\.0\]"):
        Drift().check(model)
    suited = Drift().suited(model)
    assert suited.strengths == (1.0,)
    suited.check(model)
    other = load(str(pipelines("sd")))
    assert Drift().suited(other) == Drift()


def test_lora_weights_change_the_pipeline_as_diffusers_does(pipelines: Folder) -> None:
    plain, tuned = load(str(pipelines("sd"))), load(f"{pipelines('sd')}+{pipelines('lora')}")
    assert tuned.name == "sd+lora"
    assert tuned.identity["weights"] == plain.identity["weights"]
    assert tuned.identity["lora"].startswith("sha256:")
    pipe = StableDiffusionPipeline.from_pretrained(pipelines("sd"))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(pipelines("lora"))
    by_hand = pipe("a", num_inference_steps=3, generator=torch.Generator().manual_seed(5), output_type="pt", guidance_scale=3.0).images
    assert plain.generator is not None
    assert tuned.generator is not None
    assert torch.allclose(tuned.generator.generate(["a"], [5], GenerateSettings(3, 3.0)), by_hand, atol=1e-4)
    assert not torch.allclose(plain.generator.generate(["a"], [5], GenerateSettings(3, 3.0)), by_hand, atol=1e-2)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return dict(pipe_of(model).unet.state_dict())


def test_a_lora_is_fused_with_the_strength_before_the_star(pipelines: Folder) -> None:
    """W + scale B A, from the file by hand; strength 0 is the base and strength 1 the plain spec, bit for bit."""
    base, lora = pipelines("sd"), pipelines("lora")
    plain, whole = load(str(base)), load(f"{base}+{lora}")
    for spec, same in ((f"{base}+0*{lora}", plain), (f"{base}+1.0*{lora}", whole)):
        assert all(torch.equal(value, weights(same)[name]) for name, value in weights(load(spec)).items())
    layers = load_file(lora / "pytorch_lora_weights.safetensors")
    for scale in (0.5, -2.0):
        expected = {name: value.clone() for name, value in weights(plain).items()}
        for name in {key.split(".lora_")[0] for key in layers}:
            down, up = layers[f"{name}.lora_A.weight"], layers[f"{name}.lora_B.weight"]
            expected[f"{name.removeprefix('unet.')}.weight"] += scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        found = weights(load(f"{base}+{scale}*{lora}"))
        assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.items())
        assert not torch.allclose(found["mid_block.resnets.0.conv1.weight"], weights(plain)["mid_block.resnets.0.conv1.weight"], atol=1e-2)


def test_the_strength_of_a_lora_is_in_its_name_and_identity_where_it_is_not_one(pipelines: Folder) -> None:
    base, lora = pipelines("sd"), pipelines("lora")
    whole, one, part = (load(f"{base}+{scale}{lora}") for scale in ("", "1*", "0.60*"))
    assert (whole.name, one.name, part.name) == ("sd+lora", "sd+lora", "sd+0.6*lora")
    assert whole.identity == one.identity
    assert "lora_scale" not in whole.identity
    assert part.identity == {**whole.identity, "lora_scale": "0.6"}
    member = load("embedded+0.5*embedded-pastel")
    assert member.name == "embedded+0.5*embedded-pastel"
    assert (member.identity["lora_source"], member.identity["lora_scale"]) == ("embedded-pastel", "0.5")


def test_a_folder_with_a_star_in_its_name_is_a_folder(pipelines: Folder, tmp_path: Path) -> None:
    shutil.copytree(pipelines("lora"), tmp_path / "5*star")
    model = load(f"{pipelines('sd')}+{tmp_path}/5*star")
    assert model.identity == {**model.identity, "lora_source": f"{tmp_path}/5*star"}
    assert "lora_scale" not in model.identity


def test_lora_weights_in_half_precision_are_those_of_full_precision_rounded(pipelines: Folder) -> None:
    """Fused before they are rounded: a small adapter must not vanish."""
    spec = f"{pipelines('sd')}+{pipelines('lora')}"
    full, half = (pipe_of(load(spec, torch_dtype=dtype)).unet.state_dict() for dtype in ("float32", "bfloat16"))
    assert all(torch.equal(value.bfloat16(), half[name]) for name, value in full.items())


def test_a_lora_is_a_folder_or_a_file_and_one_of_several_must_be_named(pipelines: Folder, tmp_path: Path) -> None:
    file = pipelines("lora") / "pytorch_lora_weights.safetensors"
    by_file, by_folder = load(f"{pipelines('sd')}+{file}"), load(f"{pipelines('sd')}+{pipelines('lora')}")
    assert by_file.identity["lora"] == by_folder.identity["lora"]
    for name, scale in (("a", 1.0), ("b", 2.0)):
        save_file({key: scale * value for key, value in load_file(file).items()}, tmp_path / f"{name}.safetensors")
    digests = {load(f"{pipelines('sd')}+{tmp_path / name}.safetensors").identity["lora"] for name in "ab"}
    assert len(digests) == 2, "each file has its own digest, whatever lies beside it"
    with pytest.raises(UserError, match=r"holds 2 files .* name one \(a.safetensors, b.safetensors\)"):
        load(f"{pipelines('sd')}+{tmp_path}")


def test_lora_weights_that_do_not_fit_are_refused(pipelines: Folder) -> None:
    lora = pipelines("lora")
    cases = {
        f"{pipelines('edm')}+{lora}": "cannot put the LoRA weights",
        f"{pipelines('sd')}+nowhere": "no model 'nowhere'",
        f"exact:gmm+{lora}": "'exact:gmm' takes no LoRA weights",
        f"embedded-pastel+{lora}": "'embedded-pastel' takes no LoRA weights",
        "embedded+": "lacks a side",
        "embedded+0.5*": "lacks a side",
        f"{pipelines('sd')}+half*{lora}": r"'half' is no LoRA scale: give a number before the star, as in <pipeline>\+0\.6\*<LoRA>",
        f"{pipelines('sd')}+*{lora}": "'' is no LoRA scale",
        f"{pipelines('sd')}+nan*{lora}": "'nan' is no LoRA scale",
        f"{pipelines('sd')}+inf*{lora}": "'inf' is no LoRA scale",
        f"exact:gmm+0.5*{lora}": "'exact:gmm' takes no LoRA weights",
        f"{pipelines('pixart')}+{lora}": "cannot put the LoRA weights",
        f"+{lora}": "lacks a side",
    }
    for spec, told in cases.items():
        with pytest.raises(UserError, match=told) as caught:
            load(spec)
        assert "\n" not in str(caught.value)


def test_lora_weights_of_another_family_are_refused(pipelines: Folder, tmp_path: Path) -> None:
    """diffusers itself only warns, and leaves the networks as they were."""
    layers = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 32)}
    layers["transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.ones(32, 2)
    save_file(layers, tmp_path / "flux.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="fit no part of this StableDiffusionImg2ImgPipeline: they are of another family"):
        load(f"{pipelines('sd')}+{tmp_path / 'flux.safetensors'}")
    assert load(f"{pipelines('flux')}+{tmp_path / 'flux.safetensors'}").identity["lora"].startswith("sha256:")


def test_members_stand_on_either_side_of_a_plus_by_name() -> None:
    tuned, same = load("embedded+embedded-pastel"), load("embedded-pastel")
    assert tuned.name == "embedded+embedded-pastel"
    assert (tuned.identity["source"], tuned.identity["lora_source"]) == ("embedded", "embedded-pastel")
    assert tuned.identity["lora"] == same.identity["lora"]


def test_lora_weights_without_peft_say_what_to_install(pipelines: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.loaders.lora_base.USE_PEFT_BACKEND", False)
    monkeypatch.setattr("diffusers.loaders.peft.USE_PEFT_BACKEND", False, raising=False)
    with pytest.raises(UserError, match=r"pip install 'diffprobe\[lora\]'"):
        load(f"{pipelines('sd')}+{pipelines('lora')}")


@pytest.mark.parametrize("family", ["pixart", "sigma"])
def test_a_pixart_pipeline_generates_and_edits_nothing(pipelines: Folder, family: str, tmp_path: Path) -> None:
    model = load(str(pipelines(family)), torch_dtype="bfloat16")
    assert model.capabilities == {"path", "codec", "generator", "denoiser", "condition"}
    assert isinstance(model.path, VariancePreserving)
    assert isinstance(model.generator, PixArtGenerator)
    assert (model.generator.pipe.transformer.dtype, model.generator.pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    images = model.generator.generate(["a red star", "b"], [1, 2], GenerateSettings(2, 4.5))
    side = {"pixart": 256, "sigma": 128}[family]
    assert (images.shape, images.dtype) == ((2, 3, side, side), torch.float32)
    with pytest.raises(UserError, match=f"drift needs editor; '{family}' has none: drop the probe") as caught:
        start(Rig(model, {}), [Drift(count=2)], tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pixart_draws_at_a_resolution_of_its_own_and_resizes_to_any(pipelines: Folder) -> None:
    """As the pipeline does; also where its own rounding loses a pixel (88 x 232 from 160 x 400), and with it nearly the whole picture."""
    model = load(str(pipelines("pixart")))
    assert isinstance(model.generator, PixArtGenerator)
    assert model.codec is not None
    pipe = PixArtAlphaPipeline.from_pretrained(pipelines("pixart"))
    pipe.set_progress_bar_config(disable=True)

    def by_hand(height: int, width: int, output_type: str = "pt") -> torch.Tensor:
        seeded = {"generator": torch.Generator().manual_seed(3), "output_type": output_type}
        pictures: torch.Tensor = pipe("a", num_inference_steps=2, height=height, width=width, clean_caption=False, **seeded).images
        return pictures

    def ours(height: int, width: int) -> torch.Tensor:
        assert model.generator is not None
        images = model.generator.generate(["a"], [3], GenerateSettings(2, 4.5, height=height, width=width))
        assert images.shape == (1, 3, height, width)
        return images

    for size in ((256, 256), (100, 100), (300, 300), (64, 200), (201, 133)):
        assert torch.allclose(ours(*size), by_hand(*size), atol=1e-5)
    assert by_hand(88, 232).shape[-1] < 5
    with torch.no_grad():
        drawn = model.codec.decode(by_hand(88, 232, "latent"))
    assert drawn.shape[-2:] == (160, 400)
    whole = torch.nn.functional.interpolate(drawn, size=(92, 232), mode="bilinear", align_corners=False)[..., 2:90, :]
    assert torch.allclose(ours(88, 232), whole.clamp(0, 1), atol=1e-5)


@pytest.mark.skipif(find_spec("tiktoken") is not None, reason="reads the file, and says something else")
def test_a_tokenizer_that_needs_a_library_says_which(pipelines: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "pixart"
    shutil.copytree(pipelines("pixart"), folder)
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load(str(folder))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flow", "edm", "edit", "sd+lora"])
def test_half_precision_runs_the_networks_and_spares_the_decoder(pipelines: Folder, family: str) -> None:
    model = load("+".join(str(pipelines(part)) for part in family.split("+")), torch_dtype="bfloat16")
    assert model.identity["dtype"] == "bfloat16"
    assert isinstance(model.editor, PipelineEditor | InstructEditor)
    assert model.codec is not None
    pipe = model.editor.pipe
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    assert (network.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    latents = model.codec.encode(torch.sigmoid(rng.normal((3, 32, 32), "test.families", [0])))
    strength = 0.4 if model.editor.strength_axis else 1.0
    edited = model.editor.edit(latents, ["a red star"], [1], EditSettings(strength, 5, 3.0))
    assert edited.images.dtype == torch.float32
    assert bool(edited.images.isfinite().all())
    if model.generator is not None:
        assert model.generator.generate(["a red star"], [1], GenerateSettings(3, 3.0)).dtype == torch.float32
    if model.denoiser is not None and model.condition is not None:
        with torch.no_grad():
            assert model.denoiser(latents, 0.5, model.condition(["a red star"])).dtype == torch.float32


def test_the_denoiser_takes_no_condition_as_the_empty_prompt(pipelines: Folder) -> None:
    for family in ("sd", "flow"):
        model = load(str(pipelines(family)))
        assert model.denoiser is not None
        assert model.condition is not None
        t = 500 if family == "sd" else 0.5
        with torch.no_grad():
            assert torch.allclose(model.denoiser(noise(2), t), model.denoiser(noise(2), t, model.condition(["", ""])), atol=1e-6)


def test_a_member_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from diffprobe.adapters import embedded

    monkeypatch.setattr(embedded, "_places", lambda: [tmp_path])
    with pytest.raises(UserError, match=r"'embedded-flow' is not installed: run `pip install ./models`") as caught:
        load("embedded-flow")
    assert caught.value.exit_code == 4
    with pytest.raises(UserError, match="did you mean 'embedded-flow'"):
        load("embedded-flo")
