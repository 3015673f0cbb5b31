"""VRT against golden vectors, and under changes that must keep its numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from fedvsr import models
from fedvsr.models import _deform, _windows, vrt
from fedvsr.models._attention import WindowAttention, window_plan
from fedvsr.models._deform import deform_conv3x3
from fedvsr.models.vrt import network as vrt_network
from tests.golden import recipe
from tests.unit.models.checks import (
    check_clips_do_not_mix,
    check_equal_gradients,
    gradients,
    kept_bytes,
)
from tests.unit.models.small import SMALL

CPU = torch.device("cpu")


def small(**settings) -> nn.Module:
    network = models.build("vrt", **(SMALL["vrt"] | settings))
    recipe.fill(network)
    return network


def clip(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# The published networks differ from the default one only in these shapes.
OFFSETS = "pa_deform.conv_offset."
SIX_FRAMES = {"relative_position_bias_table": (2475, 6), "relative_position_index": (384, 384)}
VARIANTS = {
    "federated": ({}, 32_577_991, {}),
    "16 frames": (
        {"pa_frames": 6, "deformable_groups": 24},
        35_134_783,
        {
            f"{OFFSETS}0.weight": (120, 486, 3, 3),
            f"{OFFSETS}6.weight": (648, 120, 3, 3),
            f"{OFFSETS}6.bias": (648,),
        },
    ),
    "6 frames": (
        {
            "img_size": (6, 64, 64),
            "window_size": (6, 8, 8),
            "pa_frames": 2,
            "deformable_groups": 12,
        },
        30_676_435,
        {
            f"{OFFSETS}0.weight": (120, 242, 3, 3),
            f"{OFFSETS}6.weight": (324, 120, 3, 3),
            f"{OFFSETS}6.bias": (324,),
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_is_the_published_one(variant):
    settings, count, shapes = VARIANTS[variant]
    network = models.build("vrt", **settings)
    want = []
    for name, shape, dtype, learned in recipe.manifest("vrt"):
        for ending, other in shapes.items():
            shape = other if name.endswith(ending) else shape
        if variant == "6 frames" and shape in ((3375, 6), (512, 512)):
            shape = SIX_FRAMES[name.rpartition(".")[2]]
        want.append((name, shape, dtype, learned))
    assert recipe.state_of(network) == want
    assert sum(p.numel() for p in network.parameters()) == count


def test_defaults_are_the_paper():
    paper = recipe.load("models", "vrt_full").meta["config"]
    assert vrt.Config(**paper) == vrt.Config()


@pytest.mark.parametrize(
    "name", ["vrt_tiny1", "vrt_tiny2", pytest.param("vrt_full", marks=pytest.mark.slow)]
)
def test_network_golden(name):
    # The derivative of a bilinear sample jumps at whole coordinates, and the alignments of seven
    # stages amplify rounding: an input off by 1e-7 moves gradient norms as far as this.
    case = recipe.load("models", name)
    mode = "blocks" if name == "vrt_full" else "none"
    network = models.build("vrt", **case.meta["config"], checkpointing=mode)
    recipe.check_network(case, network, usual=1e-3, largest=3e-2)


def test_mutual_attention_golden():
    case = recipe.load("modules", "winattn_vrt_mutual")
    asked = case.meta["config"]
    module = WindowAttention(asked["dim"], tuple(asked["window_size"]), asked["num_heads"], True)
    recipe.fill(module)
    x, masks = case.tensor("in_x").requires_grad_(), case.tensor("in_mask")
    # Windows come in runs of equal masks; in the case, masks take turns.
    runs = torch.unflatten(x, 0, (-1, len(masks))).transpose(0, 1).flatten(0, 1)
    out = module(runs, tuple((1, mask) for mask in masks))
    out = torch.unflatten(out, 0, (len(masks), -1)).transpose(0, 1).flatten(0, 1)
    recipe.check_module(case, module, [out], {"x": x})


@pytest.mark.parametrize("kind", ["mutual", "self"])
def test_group_golden(kind):
    case = recipe.load("modules", f"tmsag_vrt_{kind}_shift_pad")
    asked = case.meta["config"]
    rates = [0.0] * asked["depth"]
    module = vrt_network._Group(
        vrt.Config(), asked["dim"], asked["num_heads"], tuple(asked["window_size"]), rates,
        mutual=kind == "mutual",
    )  # fmt: skip
    recipe.fill(module)
    x = case.tensor("in_x").requires_grad_()
    out = module(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    recipe.check_module(case, module, [out], {"x": x})


def test_guided_deformable_convolution_golden():
    case = recipe.load("modules", "dcn_vrt_pa6")
    asked = case.meta["config"]
    module = vrt_network.GuidedDeformConv(
        asked["args"][0], 3, asked["deformable_groups"], asked["max_residue_magnitude"]
    )
    recipe.fill(module)
    names = ("x", "warp0", "warp1", "warp2", "cur", "flow0", "flow1", "flow2")
    inputs = {name: case.tensor(f"in_{name}").requires_grad_() for name in names}
    x, *frames = inputs.values()
    out = module(x, torch.cat(frames[:4], dim=1), frames[4:])
    recipe.check_module(case, module, [out], inputs)


@pytest.mark.parametrize("lean", [False, True])
def test_deformable_convolution_is_torchvisions(monkeypatch, lean):
    # One image at a time.
    monkeypatch.setattr(_deform, "_CHUNK_SAMPLES", 1)
    draw = torch.Generator().manual_seed(1)
    shapes = {"x": (2, 12, 7, 9), "offset": (2, 3 * 18, 7, 9), "mask": (2, 3 * 9, 7, 9)}
    shapes |= {"weight": (4, 6, 3, 3), "bias": (4,)}
    args = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    got, want = ({n: a.clone().requires_grad_() for n, a in args.items()} for _ in range(2))
    out = deform_conv3x3(*got.values(), lean=lean)
    x, offset, mask, weight, bias = want.values()
    reference = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    assert torch.allclose(out, reference, atol=1e-5)
    for result in (out, reference):
        result.square().sum().backward()
    for name in args:
        assert torch.allclose(got[name].grad, want[name].grad, rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("size", [(4, 8, 12), (5, 9, 10), (2, 4, 9)])
def test_windows_are_joined_as_they_were_cut(size):
    plan = window_plan(size, (2, 4, 4), (1, 2, 2), CPU)
    x = torch.rand(2, *size, 3)
    windows = plan.partition(x)
    assert windows.shape[1] == 32
    assert torch.equal(plan.join(windows), x)


def test_masks_separate_what_the_shift_brought_together():
    size, window, shift = (4, 8, 12), (2, 4, 4), (1, 2, 2)
    plan = window_plan(size, window, shift, CPU)
    # The side of the wrap-around that a token comes from, along each axis.
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), dim=-1)
    windows = plan.partition(places[None].float())
    beyond = windows < torch.tensor(shift)  # shifted tokens below `shift` are wrapped around
    at_end = torch.tensor([s - w for s, w in zip(size, window, strict=True)])
    last = (windows >= at_end + torch.tensor(shift)).any(1, keepdim=True)
    region = beyond & last
    want = (region[:, :, None] != region[:, None]).any(-1)
    masks = [
        torch.zeros(32, 32) if mask is None else mask
        for count, mask in plan.groups
        for _ in range(count)
    ]
    assert torch.equal(torch.stack(masks), want * -100.0)
    assert [count for count, _ in plan.groups] == [2, 1, 2, 1, 2, 1, 2, 1]


def test_short_axes_are_one_window_without_shift():
    plan = window_plan((2, 8, 4), (2, 4, 4), (1, 2, 2), CPU)
    assert (plan.window, plan.shift) == ((2, 4, 4), (0, 2, 0))
    plan = window_plan((3, 8, 8), (8, 4, 4), (4, 0, 0), CPU)
    assert (plan.window, plan.shift, plan.padded) == ((3, 4, 4), (0, 0, 0), (3, 8, 8))


def test_no_plan_is_made_twice():
    network, lq = small(), clip(1, 3, 3, 40, 40)
    with torch.no_grad():
        network(lq)
        plans = dict(window_plan.results)
        network(lq)
    assert plans
    assert window_plan.results == plans


def test_trains_after_inference_mode():
    window_plan.results.clear()
    network, lq = small(), clip(1, 3, 3, 40, 40)
    with torch.inference_mode():
        network(lq)
    gradients(network, lq)


@pytest.mark.parametrize("mode", ["attention", "blocks"])
def test_checkpointing_changes_no_gradient(mode):
    lq = clip(2, 2, 3, 40, 40)
    results = []
    for settings in ({}, {"checkpointing": mode}):
        network = small(**settings, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        results.append(gradients(network, lq))
    (sr, want), (got_sr, got) = results
    assert torch.equal(got_sr, sr)
    check_equal_gradients(got, want, rtol=1e-3, atol=1e-6)


def test_checkpointing_keeps_less():
    lq = clip(1, 3, 3, 40, 40)
    modes = ("none", "attention", "blocks")
    kept = {mode: kept_bytes(small(checkpointing=mode), lq) for mode in modes}
    assert kept["blocks"] < 0.5 * kept["attention"] < 0.4 * kept["none"]


def test_chunks_change_no_number(monkeypatch):
    lq = clip(1, 3, 3, 40, 40, seed=2)
    sr, want = gradients(small(), lq)
    # A frame at a time. Strips of rows (see test_basicvsrpp) add gradients in another order, and
    # this network turns a change of 1e-7 in its input into one of 0.07.
    monkeypatch.setattr(_deform, "_CHUNK_SAMPLES", 9 * 8 * 40 * 40)
    monkeypatch.setattr(_windows, "_CHUNK_LOGITS", 1)
    got_sr, got = gradients(small(), lq)
    assert torch.allclose(got_sr, sr, atol=1e-5)
    check_equal_gradients(got, want, rtol=1e-3, atol=1e-6)
    # Strips of eight rows give the same output here too.
    monkeypatch.setattr(_deform, "_CHUNK_SAMPLES", 9 * 8 * 40 * 8)
    with torch.no_grad():
        assert torch.allclose(small()(lq), sr, atol=1e-5)


def test_drop_rates_rise_and_start_over_in_the_second_group():
    network = models.build(
        "vrt", **(SMALL["vrt"] | {"depths": (4,) * 7 + (2, 2)}), drop_path_rate=0.31
    )
    step = 0.31 / 31  # 32 blocks
    stage, last = network.stage2, network.stage8[2]
    rates = [
        [block.drop_rate / step for block in group.blocks]
        for group in (stage.residual_group1, stage.residual_group2, last.residual_group)
    ]
    assert [rate for group in rates for rate in group] == pytest.approx([4, 5, 6, 4, 30, 31])


def test_drop_path_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1, 1, 1, 1)
    ((kept, again),) = _windows.draw_paths(ones, [0.25], training=True)
    assert kept is not None
    assert again is not None
    assert not torch.equal(kept, again)
    dropped = _windows.add_branch(0 * ones, ones, 0.25, kept)
    assert set(dropped.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(dropped.mean() - 1) < 0.02
    assert _windows.draw_paths(ones, [0.25], training=False) == [(None, None)]
    assert _windows.draw_paths(ones, [0.0], training=True) == [(None, None)]
    assert torch.equal(_windows.add_branch(ones, ones, 0.25, None), 2 * ones)


@pytest.mark.gpu
def test_drop_path_keeps_the_mean_on_a_gpu():
    torch.manual_seed(0)
    x = torch.randn(20_000, 1, device="cuda")
    (first, _), (kept, again) = _windows.draw_paths(x, [0.0, 0.25], training=True)
    assert kept is not None
    assert not torch.equal(kept, again)
    assert torch.equal(_windows.add_branch(x, x, 0.0, first), 2 * x)
    added = _windows.add_branch(0 * x, torch.ones_like(x), 0.25, kept)
    assert set(added.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(added.mean().item() - 1) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_branch_on_a_gpu_has_the_gradients_of_addcmul(dtype):
    """There, one operation does what `addcmul` does in two backward."""
    results = []
    for add in (torch.addcmul, _windows._AddScaled.apply):
        torch.manual_seed(0)
        x = torch.randn(4, 3, 5, requires_grad=True)
        branch = torch.randn(4, 3, 5).to(dtype).requires_grad_()
        out = add(x, branch, torch.tensor([0.0, 1.25, 1.25, 0.0])[:, None, None])
        gradients = torch.autograd.grad(out.square().sum(), (x, branch))
        results.append((out, *gradients))
    for want, got in zip(*results, strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_drop_path_draws_the_same_in_each_precision(dtype):
    results = []
    for x in (torch.ones(64, 1), torch.ones(64, 1, dtype=dtype)):
        torch.manual_seed(0)
        results.append(_windows.draw_paths(x, [0.1, 0.2], training=True))
    for (a, b), (c, d) in zip(*results, strict=True):
        assert torch.equal(a, c.float())
        assert torch.equal(b, d.float())


def test_clips_of_a_batch_do_not_mix():
    check_clips_do_not_mix(small(), clip(2, 3, 3, 40, 40), atol=1e-4)


@pytest.mark.parametrize("checkpointing", ["none", "attention", "blocks"])
def test_trains_under_autocast(checkpointing):
    # With fresh weights: those of the golden cases amplify rounding a hundredfold.
    torch.manual_seed(0)
    network = models.build("vrt", **SMALL["vrt"], checkpointing=checkpointing).eval()
    lq = clip(1, 2, 3, 40, 40, seed=3)
    with torch.no_grad():
        sr = network(lq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got_sr = network(lq)
    got_sr.float().square().mean().backward()
    base = F.interpolate(lq[0], scale_factor=4, mode="bilinear")
    assert (got_sr - sr).norm() / (sr - base).norm() < 0.03
    for p in network.parameters():
        assert p.grad.isfinite().all()
        assert p.grad.dtype == torch.float32


def test_restoring_without_enlarging():
    network, lq = small(upscale=1), clip(1, 2, 3, 40, 48)
    assert network.spec.scale == 1
    assert network.get_submodule(network.spec.features).out_channels == 3
    with torch.no_grad():
        assert network(lq).shape == lq.shape
        network.conv_last.weight.zero_()
        network.conv_last.bias.zero_()
        # What the network makes is added to its input.
        torch.testing.assert_close(network(lq), lq)


def test_twofold_enlargement():
    with torch.no_grad():
        assert small(upscale=2)(clip(1, 2, 3, 40, 48)).shape == (1, 2, 3, 80, 96)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 3, 40, 40), "at least 2 frames, in multiples of 1, not 1"),
        ((1, 3, 3, 24, 40), "at least 32 x 32 pixels, in multiples of 8, not 24 x 40"),
        ((1, 3, 3, 40, 44), "in multiples of 8, not 40 x 44"),
        ((1, 3, 1, 40, 40), r"takes \(B, T, 3, H, W\), not"),
    ],
)
def test_refuses_sizes_it_cannot_take(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))


def test_spec():
    rules = vrt.spec(vrt.Config())
    assert (rules.scale, rules.min_frames, rules.frames_multiple) == (4, 3, 1)
    assert (rules.min_size, rules.size_multiple, rules.charbonnier_eps) == (64, 8, 1e-9)
    assert vrt.spec(vrt.Config(pa_frames=6, deformable_groups=24)).min_frames == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dims": (8,) * 9}, "embed_dims has 9 entries"),
        ({"num_heads": (7,) * 13}, "120 must be a multiple of 4 and of its 7 heads"),
        ({"embed_dims": (120,) * 6 + (60,) + (180,) * 6}, "one width for the first 7"),
        ({"indep_reconsts": (3,)}, "3 is not a final group; those are 7 to 12"),
        ({"deformable_groups": 15}, "deformable_groups = 15"),
        ({"depths": (0,) * 13}, "at least 1"),
        ({"window_size": (0, 8, 8)}, "sizes must be 1 to"),
        ({"pa_frames": 3}, "pa_frames"),
    ],
)
def test_refuses_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValidationError, match=message):
        vrt.Config(**settings)
