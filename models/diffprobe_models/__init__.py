"""The further models of diffprobe's embedded family: folders beside this file, which `diffprobe.load` finds by name."""
