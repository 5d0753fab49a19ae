"""Which models there are, and that names with slashes can be asked for."""

import openai
import pytest
from conftest import connect


def test_the_list_has_aliases(client):
    names = [model.id for model in client.models.list()]
    assert "team/fast" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["team/fast", "team%2Ffast"])
def test_a_model_with_a_slash_is_found_in_both_spellings(client, name):
    answer = client.get(f"/models/{name}", cast_to=object)
    assert answer["id"] == "team/fast"
    assert answer["object"] == "model"


def test_retrieve_as_the_client_spells_it(client):
    model = client.models.retrieve("team/fast")
    assert (model.id, model.object) == ("team/fast", "model")


def test_a_model_that_does_not_exist(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("team/slow")
    assert caught.value.code == "model_not_found"


def test_the_list_needs_a_key():
    with pytest.raises(openai.AuthenticationError):
        connect("tk-nobody").models.list()
