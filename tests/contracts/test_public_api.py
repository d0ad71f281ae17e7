"""The public names, and that each can be imported."""

import pytest

import builder

NAMES = [
    "BuilderError", "Problem", "build", "code", "explain", "hold_frozen", "initial_values", "initialise",
    "lightning_module", "load_weights", "parameters", "prove", "read_stats", "save", "verify",
]  # fmt: skip


def test_public_names_are_these():
    assert sorted(builder.__all__) == NAMES
    assert dir(builder) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_importable_and_described(name):
    assert getattr(builder, name).__doc__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = builder.biuld


def test_function_is_not_hidden_by_the_module_of_its_name():
    import builder.build
    import builder.code
    import builder.explain
    import builder.verify

    assert all(map(callable, (builder.build, builder.code, builder.explain, builder.verify)))
