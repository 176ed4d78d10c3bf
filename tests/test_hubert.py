"""Starting from a Hugging Face folder; transformers writes it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCTC,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from sjepa import load_encoder
from sjepa.core.errors import UserError
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.hubert import load_hubert, save_hubert
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape

CONFIG = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": [16] * 7,
          "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}  # fmt: skip


def encoder(**changes):
    return Encoder(EncoderShape(16, 2, TransformerShape(32, 2, 64), position_groups=4, **changes)).eval()


@pytest.mark.parametrize("kind", [HubertModel, HubertForCTC])
def test_features_are_those_of_the_model_in_the_folder(tmp_path, kind):
    torch.manual_seed(0)
    model = kind(HubertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path)
    ours = encoder()
    load_hubert(tmp_path, ours)
    audio = 0.3 * torch.randn(2, 16000)
    base = model if kind is HubertModel else model.hubert
    with torch.no_grad():
        difference = (ours(audio).features_BTD - base(audio).last_hidden_state).abs().max()
    assert difference < 1e-4


def test_names_of_older_weight_norms_are_understood(tmp_path):
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        tensors[f"encoder.pos_conv_embed.conv.{old}"] = tensors.pop(
            f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
        )
    save_file(tensors, tmp_path / "model.safetensors")
    ours, audio = encoder(), 0.3 * torch.randn(2, 16000)
    load_hubert(tmp_path, ours)
    with torch.no_grad():
        assert (ours(audio).features_BTD - model(audio).last_hidden_state).abs().max() < 1e-4


def test_what_cannot_be_used_is_said_and_nothing_is_changed(tmp_path):
    HubertModel(HubertConfig(**CONFIG)).save_pretrained(tmp_path)
    ours = encoder()
    before = {name: value.clone() for name, value in ours.state_dict().items()}

    def reason():
        with pytest.raises(UserError) as error:
            load_hubert(tmp_path, ours)
        return str(error.value)

    config = json.loads((tmp_path / "config.json").read_text())
    for change, text in (
        ({"feat_extract_norm": "layer"}, "feat_extract_norm 'layer' where 'group'"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12 where model.size describes 2"),
        ({"model_type": "wav2vec2"}, "model_type 'wav2vec2'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        assert text in reason()
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("encoder.layer_norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert "lacks 1 tensors of the encoder" in reason()
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert "damaged" in reason()
    (tmp_path / "model.safetensors").unlink()
    assert "holds no model.safetensors" in reason()
    (tmp_path / "config.json").unlink()
    assert "holds no config.json" in reason()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("normalises", [True, False])
def test_a_folder_of_any_size_is_an_encoder_to_use(tmp_path, normalises):
    """Its features are what transformers computes from recordings that its own feature extractor
    prepared."""
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalises)
    extractor.save_pretrained(tmp_path)
    audio = 0.3 * torch.randn(16000) + 0.1
    prepared = extractor(audio.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    encoder = load_encoder(tmp_path)
    padded = torch.stack([torch.cat([audio, torch.ones(4000)]), torch.randn(20000)])
    with torch.no_grad():
        expected = model(prepared, output_hidden_states=True).hidden_states
        layers = encoder(padded, torch.tensor([16000, 20000]), layer="all")[:, 0, :49]
    assert len(layers) == len(expected) - 1
    for own, theirs in zip(layers, expected[1:], strict=True):
        assert (own - theirs[0]).abs().max() < 1e-4


@pytest.mark.parametrize("statistics", ["corpus", "clip", "both"])
def test_a_log_mel_encoder_goes_to_transformers_with_its_own_code(tmp_path, statistics):
    """`AutoModel` and the pipeline load the folder; padded clips have the features that they have
    with us."""
    torch.manual_seed(0)
    ours = encoder(frontend="logmel", mel_statistics=statistics)
    ours.feature_extractor.measure(torch.randn(300, 80) * 2 - 4)
    save_hubert(tmp_path, ours)
    theirs = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    audio, samples = 0.3 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    mask = torch.arange(16000) < samples[:, None]
    with torch.no_grad():
        expected = ours(audio, samples).features_BTD
        found = theirs(audio.masked_fill(~mask, float("nan")), attention_mask=mask.long()).last_hidden_state
    for row, frames in enumerate((49, 27)):
        assert (found[row, :frames] - expected[row, :frames]).abs().max() < 1e-4
    back = load_encoder(tmp_path)
    assert torch.equal(back(audio, samples), expected)
    extract = pipeline("feature-extraction", model=str(tmp_path), trust_remote_code=True)
    features = extract(audio[0].numpy(), return_tensors=True)
    assert (features[0] - expected[0]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="feat_extract_norm"):  # else it would be HuBERT with random convolutions
        HubertModel.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again/config.json").read_text())
    assert saved["feat_extract_norm"] == "mel"


def test_a_folder_is_not_for_an_encoder_with_another_frontend(tmp_path):
    mel, waves = encoder(frontend="logmel"), encoder()
    for name, own, other in (("waveform", waves, mel), ("logmel", mel, waves)):
        save_hubert(tmp_path / name, own)
        with pytest.raises(UserError, match=f"needs model.frontend: {name}"):
            load_hubert(tmp_path / name, other)
        config = json.loads((tmp_path / name / "config.json").read_text())  # of earlier exports, too
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"feat_extract_norm": "group"}))
        load_hubert(tmp_path / name, own)
    config = json.loads((tmp_path / "logmel/config.json").read_text())
    (tmp_path / "logmel/config.json").write_text(json.dumps(config | {"mel_hop": 100}))
    with pytest.raises(UserError, match="mel_hop 100 where 160 is needed"):
        load_encoder(tmp_path / "logmel")


@pytest.mark.parametrize("frontend", ["waveform", "logmel"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float64, 1e-4)])
def test_other_precisions_give_the_same_features(tmp_path, frontend, dtype, most):
    torch.manual_seed(0)
    changes = {"frontend": "logmel", "mel_statistics": "both"} if frontend == "logmel" else {}
    save_hubert(tmp_path, encoder(**changes))
    audio, lengths = 0.3 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    expected = load_encoder(tmp_path)(audio, lengths)
    for given in (audio, audio.to(dtype)):
        found = load_encoder(tmp_path).to(dtype)(given, lengths)
        assert found.dtype == dtype
        assert (found[0].float() - expected[0]).abs().max() < most  # of values of about 1


def test_weights_in_parts_are_read(tmp_path):
    torch.manual_seed(0)
    model = HubertModel(HubertConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    audio = 0.3 * torch.randn(1, 8000)
    with torch.no_grad():
        assert (load_encoder(tmp_path)(audio) - model(audio).last_hidden_state).abs().max() < 1e-4
    next(tmp_path.glob("model-00002*.safetensors")).unlink()
    with pytest.raises(UserError, match="holds no model-00002"):
        load_encoder(tmp_path)


def test_pickled_weights_are_refused_with_what_converts_them(tmp_path):
    HubertModel(HubertConfig(**CONFIG)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no model\.safetensors, and pytorch_model\.bin .*save_pretrained"):
        load_encoder(tmp_path)


def test_another_epsilon_is_refused(tmp_path):
    HubertModel(HubertConfig(**CONFIG, layer_norm_eps=0.1)).save_pretrained(tmp_path)
    for load in (load_encoder, lambda folder: load_hubert(folder, encoder())):
        with pytest.raises(UserError, match=r"layer_norm_eps 0\.1 where 1e-05 is needed"):
            load(tmp_path)


@pytest.mark.parametrize("frontend", ["waveform", "logmel"])
def test_the_readmes_fine_tuning_starts_from_the_encoder(tmp_path, frontend):
    torch.manual_seed(0)
    ours = encoder(**({"frontend": "logmel", "mel_statistics": "both"} if frontend == "logmel" else {}))
    save_hubert(tmp_path, ours)
    model = AutoModelForCTC.from_pretrained(
        tmp_path, trust_remote_code=True, vocab_size=8, ctc_loss_reduction="mean"
    ).eval()
    audio, lengths = 0.3 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    mask = (torch.arange(16000) < lengths[:, None]).long()
    model.freeze_feature_encoder()
    states = model(audio[:1], attention_mask=mask[:1], output_hidden_states=True).hidden_states
    assert (states[-1] - ours(audio[:1]).features_BTD).abs().max() < 1e-4
    labels = torch.tensor([[1, 2, 3], [4, 5, -100]])
    loss = model(audio * mask, attention_mask=mask, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    if frontend == "logmel":
        with torch.no_grad():
            other = model(audio * mask + 1e3 * (1 - mask), attention_mask=mask, labels=labels).loss
        assert torch.allclose(loss, other, atol=1e-5)
