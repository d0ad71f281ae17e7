"""The public names, and that each can be imported."""

import pytest

import builder

NAMES = ["BuilderError", "Problem", "build", "code", "lightning_module", "parameters", "prove", "read_stats"]


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

    assert callable(builder.build)
    assert callable(builder.code)
