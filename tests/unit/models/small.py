"""Settings of small networks, for tests that build several."""

# Small, and with every kind of layer that the network has.
SMALL = {
    "vrt": {
        "window_size": (2, 4, 4),
        "depths": (2,) * 7 + (2, 2),
        "embed_dims": (8,) * 7 + (12, 12),
        "num_heads": (2,) * 9,
        "indep_reconsts": (8,),
        "pa_frames": 2,
        "deformable_groups": 2,
    },
    "rvrt": {
        "num_blocks": (1, 1, 1),
        "embed_dims": (12, 12, 12),
        "num_heads": (2, 2, 2),
        "deformable_groups": 4,
        "attention_heads": 4,
        "window_size": (2, 4, 4),
    },
    "iart": {"mid_channels": 8, "embed_dim": 12, "depths": (2,), "num_heads": (2,)},
    "basicvsrpp": {"mid_channels": 8, "num_blocks": 1},
    "tiny": {"channels": 4, "blocks": 1},
}
