"""What `diffprobe models` lists: names that need no download, and the forms that name others."""

CATALOGUE = {
    "embedded": "text to 64 x 64 scenes, variance-preserving, ships with the package (edits, generates; default)",
    "exact:gaussian": "one Gaussian with known variances: its exact denoiser, a linear codec, an exact editor",
    "exact:gmm": "a mixture of Gaussians with its exact denoiser and posterior, a linear codec, an exact editor",
    "exact:identity": "an editor that changes nothing: what is left is the codec",
    "<folder>": "whatever `save_pretrained` wrote: Stable Diffusion 1.x, 2.x, XL and 3, as deployed",
    "<owner>/<name>": "the same from the hub or its cache; HF_HOME and HF_HUB_OFFLINE are honoured",
}
