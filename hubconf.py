"""Entry points for torch.hub: `torch.hub.load("mokira3d48/sjepa", "encoder", "best.pt")`."""

dependencies = ["torch", "numpy", "librosa", "pydantic", "safetensors", "scipy", "soundfile", "yaml"]


def encoder(weights, layer=-1):
    """The encoder of a weights file, a Hugging Face folder, or hf://OWNER/NAME; see
    `sjepa.load_encoder`."""
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).parent / "src"))
    from sjepa import load_encoder

    return load_encoder(weights, layer=layer)
