"""Args under which the model files of published size are built in a test."""

SMALL = {  # args under which a model file of published size is built in a test
    "bert": {"vocab": 50, "context": 16, "d": 32, "depth": 1, "hidden": 64},
    "complex": {"entities": 50, "relations": 10, "d": 8},
    "distmult": {"entities": 50, "relations": 10, "d": 8},
    "dlrm": {"bottom": [32], "top": [32], "tables": [20, 10]},
    "gpt2": {"vocab": 50, "context": 16, "d": 32, "heads": 2, "depth": 2},
    "llama3": {"vocab": 50, "d": 32, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 64},
    "lstm": {"features": 8, "hidden": 16},
    "mixer": {"image": 32, "patch": 8, "classes": 10, "d": 16, "depth": 2, "tokens": 8, "channels": 32},
    "resnet18": {"classes": 10, "widths": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "resnet50": {"classes": 10, "stem_width": 8, "widths": [16, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "rotate": {"entities": 50, "relations": 10, "d": 8},
    "skipgram": {"vocab": 50, "d": 8},
    "t5_encoder": {"vocab": 50, "d": 32, "heads": 2, "width": 16, "depth": 2, "hidden": 64},
    "transe": {"entities": 50, "relations": 10, "d": 8},
    "transformer_encoder": {"d": 32, "heads": 2, "depth": 2, "hidden": 64},
    "vae": {"pixels": 49, "hidden": 16, "latent": 3},
    "vit": {"image": 32, "classes": 10, "d": 32, "heads": 2, "depth": 2, "hidden": 64},
}
