"""Exported encoders: onnxruntime and transformers must compute what ours does."""

import copy
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoFeatureExtractor, HubertForCTC, HubertModel

from sjepa.core.errors import UserError
from sjepa.core.files import printable
from sjepa.core.onnx_files import TOLERANCE, session
from sjepa.entrypoints import export
from sjepa.gmm.diagonal import DiagonalGMM
from sjepa.modules.transformer import TransformerShape
from sjepa.s_jepa.export import onnx as onnx_export
from sjepa.s_jepa.export.onnx import WaveformToFeatures, quantise_before_moving, write_int8, write_onnx
from sjepa.s_jepa.export.parity import Difference, compare
from sjepa.s_jepa.hubert import load_hubert, save_hubert
from sjepa.s_jepa.model import SJEPA
from sjepa.s_jepa.modules.encoder import Encoder, EncoderShape
from sjepa.s_jepa.network import model_shape
from sjepa.s_jepa.plan import plan
from sjepa.s_jepa.schema import load_config
from sjepa.s_jepa.weights import Weights, save_weights

SIZES = [
    "model.size=tiny",
    "model.overrides={conv_channels: 24, width: 32, num_layers: 2, num_heads: 2, ffn_width: 48, predictor_heads: 2}",
    "gmm.ema_layer=1",
]


def stirred(module):
    """Every parameter moved a little, so that none is left at a value that hides a mistake."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module")
def encoder():
    shape = EncoderShape(24, 2, TransformerShape(32, 2, 48), position_kernel=16, position_groups=4)
    return stirred(Encoder(shape))


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    path, model = tmp_path_factory.mktemp("onnx") / "encoder.onnx", WaveformToFeatures(encoder, all_layers=True)
    write_onnx(model, path, metadata={"note": "é"})
    return path, model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file as a run leaves it."""
    config = load_config(None, [*SIZES, "run_name=r"])
    stage = plan(config, 10).at(0)
    model = stirred(SJEPA(model_shape(config, stage.num_clusters)))
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    written = Weights(model, DiagonalGMM(stage.num_clusters, 39, features="mfcc39"), config.model_dump(mode="json", by_alias=True),
                      {"name": "phase 1", "phase": 1, "targets": "mfcc", "visible_loss": True}, {"epoch": 3, "step": 40})  # fmt: skip
    save_weights(path, written)
    return path, model.encoder


@pytest.mark.slow
def test_all_batches_lengths_and_paddings_agree(exported, encoder):
    """1, 2 and 5 clips of 400 samples to 30 s, padded with noise ten times as loud."""
    difference = compare(encoder, exported[0])
    assert difference.largest < TOLERANCE
    assert difference.cosine > 1 - 1e-6


@pytest.mark.slow
def test_the_comparison_sees_a_difference(exported, encoder, tmp_path, monkeypatch):
    """In the weights, in the number of frames, and in what was written otherwise for the file."""
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.encoder.layers[1].final_layer_norm.bias[3] += 0.001
    assert compare(other, exported[0]).largest > TOLERANCE
    fewer = copy.deepcopy(encoder)
    fewer.geometry = replace(encoder.geometry, kernels=(*encoder.geometry.kernels[:-1], 3))
    assert compare(fewer, exported[0]).largest > TOLERANCE
    monkeypatch.setattr(onnx_export, "_HIDDEN", 0.0)  # padded frames are heard
    write_onnx(WaveformToFeatures(encoder, all_layers=False), tmp_path / "a.onnx", metadata={})
    assert compare(encoder, tmp_path / "a.onnx").largest > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("fill", [0.7, float("nan"), float("inf")])
def test_padding_and_neighbours_change_nothing(exported, encoder, fill):
    path, _ = exported
    runtime, rng = session(path, threads=2), np.random.default_rng(0)
    clip = 0.1 * rng.standard_normal((1, 9000)).astype(np.float32)
    alone = runtime.run(None, {"waveform": clip, "lengths": np.array([9000])})
    padded = np.concatenate(
        [np.pad(clip, ((0, 0), (0, 7000)), constant_values=fill), rng.standard_normal((1, 16000)).astype(np.float32)]
    )
    together = runtime.run(None, {"waveform": padded, "lengths": np.array([9000, 16000])})
    frames = int(alone[1][0])
    assert together[1].tolist() == [frames, 49]
    assert np.abs(together[0][0, :frames] - alone[0][0]).max() < 1e-5
    assert not together[0][0, frames:].any()
    ours = encoder(torch.from_numpy(clip))
    assert np.abs(alone[2][0, 0] - ours.layers[0][0].detach().numpy()).max() < 1e-5


@pytest.mark.slow
def test_the_file_says_what_it_is(exported):
    proto = onnx.load(exported[0])
    onnx.checker.check_model(proto)
    dims = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*proto.graph.input, *proto.graph.output)
    }
    assert dims == {"waveform": ["batch", "samples"], "lengths": ["batch"], "features": ["batch", "frames", 32],
                    "feature_lengths": ["batch"], "layers": ["batch", 2, "frames", 32]}  # fmt: skip
    assert {entry.key: entry.value for entry in proto.metadata_props}["note"] == "é"
    assert not any("original" in tensor.name for tensor in proto.graph.initializer)  # weight norm is folded


@pytest.mark.slow
def test_eight_bits_are_in_every_matrix_product_with_weights(encoder, tmp_path):
    model = WaveformToFeatures(encoder, all_layers=False, for_int8=True)
    write_int8(model, tmp_path / "a.onnx", metadata={"width": "32"})
    difference = compare(encoder, tmp_path / "a.onnx")
    assert difference.cosine > 0.95  # of a model with random weights, width 32
    proto = onnx.load(tmp_path / "a.onnx")
    assert ("width", "32") in [(entry.key, entry.value) for entry in proto.metadata_props]
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    nodes = proto.graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("Conv") == 1  # the positions
    layers, convolutions = len(encoder.encoder.layers), len(encoder.feature_extractor.conv_layers) - 1
    assert kinds.count("MatMulInteger") == 6 * layers + 1 + convolutions
    assert "ConvInteger" not in kinds
    makers = {name: node for node in nodes for name in node.output}
    before = [makers[node.input[0]].op_type for node in nodes if node.op_type == "DynamicQuantizeLinear"]
    assert not {"Concat", "Slice", "Reshape"} & set(before)  # these rearrange bytes, not floats


def test_quantisation_moves_before_what_rearranges_its_input():
    """Values stay the same: a rearranged tensor has the range of the whole."""
    helper, kind = onnx.helper, onnx.TensorProto
    x = np.arange(-10.0, 14.0, dtype=np.float32).reshape(1, 4, 6)
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Reshape", ["r", "shape"], ["pairs"]),
            helper.make_node("Slice", ["r", "from", "to", "axis"], ["next"]),
            helper.make_node("Concat", ["pairs", "next"], ["both"], axis=2),
            helper.make_node("DynamicQuantizeLinear", ["both"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
            helper.make_node("DynamicQuantizeLinear", ["r"], ["q2", "s2", "z2"]),  # has nothing to pass
            helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["y2"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind.FLOAT, [1, 4, 6])],
        [helper.make_tensor_value_info(name, kind.FLOAT, None) for name in ("y", "y2")],
        [
            onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            for name, values in {"shape": [1, 2, 12], "from": [2], "to": [4], "axis": [1]}.items()
        ],
        value_info=[helper.make_tensor_value_info("both", kind.FLOAT, [1, 2, 18])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def run():
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )

    before = run()
    quantise_before_moving(model.graph)
    for one, other in zip(before, run(), strict=True):
        assert np.array_equal(one, other)
    assert [node.op_type for node in model.graph.node][:2] == ["Relu", "DynamicQuantizeLinear"]


@pytest.mark.slow
def test_transformers_loads_the_folder_as_it_is(encoder, tmp_path):
    save_hubert(tmp_path / "hf", encoder)
    model, report = HubertModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    wave = 0.1 * torch.randn(2, 20000)
    with torch.no_grad():
        theirs = model.eval()(wave, output_hidden_states=True)
        ours = encoder(wave)
    assert (theirs.last_hidden_state - ours.features_BTD).abs().max() < 1e-4
    for own, layer in zip(ours.layers, theirs.hidden_states[1:], strict=True):
        assert (own - layer).abs().max() < 1e-4
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "hf")
    taken = extractor(wave[0].numpy(), sampling_rate=16000, return_tensors="pt").input_values
    assert torch.equal(taken[0], wave[0])
    again = Encoder(encoder.shape)
    load_hubert(tmp_path / "hf", again)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), encoder.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_fine_tuning_for_recognition_starts_from_the_folder(encoder, tmp_path):
    """The example of the README."""
    save_hubert(tmp_path / "hf", encoder)
    torch.manual_seed(0)
    model = HubertForCTC.from_pretrained(tmp_path / "hf", vocab_size=12, ctc_loss_reduction="mean")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    wave, labels = 0.1 * torch.randn(2, 16000), torch.randint(1, 12, (2, 8))
    losses = []
    for _ in range(12):
        loss = model.train()(wave, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_command_writes_all_of_it(weights, tmp_path, capsys):
    path, _ = weights
    options = [f"init_weights={path}", f"onnx_path={tmp_path / 'out/encoder.onnx'}", "export.quantize=int8"]
    assert export.export_encoder(load_config(None, options)) == 0
    told = capsys.readouterr().out
    assert "differs from the encoder by" in told
    assert "cosine to float32 at least" in told
    assert sorted(item.relative_to(tmp_path).as_posix() for item in tmp_path.rglob("*") if item.is_file()) == [
        "out/encoder.int8.onnx", "out/encoder.onnx", "out/hf/README.md", "out/hf/config.json", "out/hf/model.safetensors", "out/hf/preprocessor_config.json"
    ]  # fmt: skip
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "out/encoder.onnx").metadata_props}
    assert about["training"] == "r, epoch 3, step 40, phase 1"
    assert about["weights"] == printable(str(path))
    assert (about["sample_rate"], about["hop_samples"], about["width"], about["num_layers"]) == (
        "16000",
        "320",
        "32",
        "2",
    )
    assert json.loads((tmp_path / "out/hf/config.json").read_text())["hidden_size"] == 32


@pytest.mark.slow
def test_a_file_that_disagrees_is_removed(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "compare", lambda *_: Difference(0.5, 0.9, "2 × 0.4 s"))
    with pytest.raises(
        UserError, match=r"encoder\.onnx: removed, since it differs from the encoder by 5\.0e-01 \(2 × 0\.4 s\)"
    ):
        export.export_encoder(
            load_config(None, [f"init_weights={weights[0]}", f"onnx_path={tmp_path / 'encoder.onnx'}"])
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "init_weights: name the weights to export"),
        (["init_weights=nowhere.pt"], "nowhere.pt: no such file"),
        (["init_weights=x.pt", "onnx_path=a.bin"], r"onnx_path: a\.bin does not end in \.onnx"),
    ],
)
def test_mistakes_are_one_clear_line(options, message):
    with pytest.raises(UserError, match=message):
        export.export_encoder(load_config(None, options))
