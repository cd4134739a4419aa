"""A class-conditional latent pipeline with an EDM scheduler, in diffusers' own manner: it generates, and edits from a strength.

Like every pipeline it derives from diffusers' base class; so importing this file imports diffusers, and adapters do it late.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """A U-Net on classes, an AutoencoderKL and an EDMEulerScheduler, for which diffusers has no pipeline of its own.

    `id2label` names the classes, from 0 up; the one with an empty name is the unconditional class. A prompt asks for the class
    whose every word it holds ("a large red star" asks for "red star"), and for no class where there is none. The network is a
    UNet2DConditionModel that turns one-hot rows into its cross attention's tokens (`encoder_hid_dim_type` "text_proj", as many
    rows a class as tokens): its table of classes is a part of its weights.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(self, unet: Any, vae: Any, scheduler: Any, id2label: Mapping[Any, str] | None = None) -> None:
        super().__init__()
        labels = {" ".join(_words(label)): int(index) for index, label in (id2label or {}).items()}
        if "" not in labels or unet.config.encoder_hid_dim % len(labels):
            raise ValueError("id2label must name every class of the network, and the unconditional one by an empty name")
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label={str(index): label for label, index in labels.items()})
        self.labels = labels
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, vae_latent_channels=vae.config.latent_channels)
        self._guidance_scale = 1.0

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    def classes(self, prompts: Sequence[str]) -> Tensor:
        """The class that each prompt asks for, int64 [B]."""
        held = [set(_words(prompt)) for prompt in prompts]
        found = [next((i for label, i in self.labels.items() if label and set(label.split()) <= words), self.labels[""]) for words in held]
        return torch.tensor(found, device=self.device)

    def tokens(self, classes: Tensor) -> Tensor:
        """Class indices [B] as the network takes them: one-hot rows [B, tokens, tokens x classes]."""
        count = len(self.labels)
        return class_tokens(classes, count, self.unet.config.encoder_hid_dim // count).to(self.unet.dtype)

    def get_timesteps(self, num_inference_steps: int, strength: float, device: Any = None) -> tuple[Tensor, int]:
        """The last int(N strength) of the N times, as diffusers' image-to-image pipelines count them."""
        executed = min(int(num_inference_steps * strength), num_inference_steps)
        return self.scheduler.timesteps[num_inference_steps - executed :], executed

    @torch.no_grad()
    def __call__(  # noqa: PLR0913, PLR0917 (the arguments of diffusers' pipelines)
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate, or where there is an `image` (pictures, or latents in the denoiser's scale) edit from the strength's level."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._guidance_scale = guidance_scale
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        times, executed = self.get_timesteps(num_inference_steps, strength if image is not None else 1.0)
        if executed < 1:
            raise ValueError(f"strength {strength} runs no step of {num_inference_steps}: raise either")
        side = self.unet.config.sample_size
        shape = (len(prompts), self.unet.config.in_channels, side, side)
        if image is None:
            x = randn_tensor(shape, generator, self.device, self.unet.dtype) * self.scheduler.init_noise_sigma
        else:
            known = self._latents(image)
            x = self.scheduler.add_noise(known, randn_tensor(known.shape, generator, self.device, known.dtype), times[:1])
        classes = self.classes(prompts)
        if self.do_classifier_free_guidance:
            negative = [negative_prompt or ""] * len(prompts) if isinstance(negative_prompt, str | None) else list(negative_prompt)
            classes = torch.cat([self.classes(negative), classes])
        condition = self.tokens(classes)
        for t in self.progress_bar(times):
            shown = self.scheduler.scale_model_input(torch.cat([x, x]) if self.do_classifier_free_guidance else x, t)
            guess = self.unet(shown.to(self.unet.dtype), t, encoder_hidden_states=condition).sample
            if self.do_classifier_free_guidance:
                away, wanted = guess.chunk(2)
                guess = away + guidance_scale * (wanted - away)
            x = self.scheduler.step(guess, t, x, return_dict=False)[0]
        images = x
        if output_type != "latent":
            decoded = self.vae.decode((x / self.vae.config.scaling_factor).to(self.vae.dtype)).sample
            images = self.image_processor.postprocess(decoded, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _latents(self, image: Any) -> Tensor:
        ready: Tensor = self.image_processor.preprocess(image).to(self.device, self.unet.dtype)
        if ready.shape[1] == self.unet.config.in_channels:
            return ready
        latents: Tensor = self.vae.encode(ready.to(self.vae.dtype)).latent_dist.mean.to(ready) * self.vae.config.scaling_factor
        return latents


def class_tokens(classes: Tensor, count: int, tokens: int) -> Tensor:
    """Class indices [B], each below `count`, as one-hot rows [B, tokens, tokens x count] into a table of `tokens` entries a class."""
    places = torch.arange(tokens, device=classes.device) * count + classes[:, None]
    return torch.nn.functional.one_hot(places, tokens * count)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
