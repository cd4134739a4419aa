"""The prompts that ask for no change, literally as NoOp-Bench published them, final periods included."""

from __future__ import annotations

#: The name of a set to its prompts. None stands for the image's own caption.
PROMPT_SETS: dict[str, tuple[str | None, ...]] = {
    "null": ("Make no change.", "Identity.", "Do nothing."),
    "copy": (
        "Copy this image exactly, pixel-perfect. Do not change any color, texture, lighting, structure, geometry, or detail. "
        "Produce an exact reconstruction with zero modifications.",
        "Return the exact same input image without any edits. Do not alter the pixels, style, shapes, objects, or composition. "
        "Reproduce it identically with absolutely no changes.",
        "Make zero transformations to the image. No enhancement, no correction, no editing. Output the identical image exactly as "
        "provided, with no modifications of any kind.",
    ),
    "identity": ("Preserve the input image exactly. Do not introduce new content. Maintain identical colors, structures, and textures.",),
    "empty": ("",),
    "caption": (None,),
}
NEGATIVE = "No blur, no added objects, no color shifts, no structural changes."
