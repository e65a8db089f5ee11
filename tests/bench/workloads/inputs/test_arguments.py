"""Arguments of calls and of samplers that a workload gives: read, checked, keyed, and felt."""

import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.workloads import workload_name
from quantarena.bench.workloads.inputs.arguments import (
    CALL,
    canonical,
    changed,
    for_images,
    is_argument,
    pairs,
    require_arguments,
    require_options,
    values,
)


@pytest.mark.parametrize(
    ("text", "kept", "value"),
    [
        ("512", "512", 512),
        ("0.50", "0.5", 0.5),
        ("true", "true", True),
        ("null", "null", None),
        ("a dog", "a dog", "a dog"),
        ('"512"', '"512"', "512"),
        ('"a dog"', "a dog", "a dog"),
        ('""', '""', ""),
        ("[ 1, 2]", "[1,2]", [1, 2]),
        ('{"b": 1, "a": 2}', '{"a":2,"b":1}', {"a": 2, "b": 1}),
        ("50%&x=1?y", "50%&x=1?y", "50%&x=1?y"),
    ],
)
def test_a_value_is_json_or_text_and_survives_the_name(text, kept, value):
    assert canonical("call.x", text) == kept
    name = workload_name.with_options("emoji-t2i", (f"call.x={text}",))
    _, given = workload_name.split(name)
    assert given == {"call.x": kept}
    assert values(pairs(given, CALL, texts=True)) == {"x": value}
    assert workload_name.with_options(name, ()) == name


@pytest.mark.parametrize("text", ["NaN", "-inf", "{'a': 1}", "[1, 2"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(UserError, match=r"setting call\.x (must be a finite|is no JSON)"):
        canonical("call.x", text)


@pytest.mark.parametrize("key", ["call", "call.", "call.a b", "calls.x", "sampler", "sampler.1"])
def test_other_keys_are_no_arguments(key):
    assert not is_argument(key)


def test_an_argument_replaces_the_folder_s_own():
    base = pairs({"call.a": 1, "call.b": "x", "sampler.c": 1}, CALL, texts=False)
    given = pairs({"call.b": "2"}, CALL, texts=True)
    assert values(changed(base, given)) == {"a": 1, "b": 2}


def test_texts_of_prompts_are_given_once_for_each_image():
    given = pairs({"call.negative_prompt": "blur", "call.system_prompt": "x"}, CALL, texts=False)
    assert for_images(given, 2) == {"negative_prompt": ["blur", "blur"], "system_prompt": "x"}


TAKES = {"prompt", "guidance_scale", "latents", "max_sequence_length", "strength", "clip_skip"}
DEFAULTS = {"max_sequence_length": 256, "strength": 0.8, "guess": False}


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("guidance_scale", 3, "call.guidance_scale is set by guidance: leave"),
        ("num_inference_steps", 3, "is set by steps"),
        ("generator", 3, "is set by --seed:"),
        ("image", "x.png", "is set by images"),
        ("latents", [1], "call.latents cannot be set: noise is made of workload, seed and image"),
        ("output_type", "pil", "cannot be set: images are read as arrays"),
        ("callback_on_step_end", "f", "functions cannot be given"),
        ("prompt_embeds", [1], "it takes tensors or images"),
        ("max_sequence_lenght", 3, "P takes no argument .* did you mean max_sequence_length"),
        (
            "max_sequence_length",
            "many",
            'whole number, as the default 256 of P is, not "m',
        ),
        ("max_sequence_length", True, "must be a whole number"),
        ("max_sequence_length", 2.5, "must be a whole number"),
        ("strength", "0.5", "must be a number"),
    ],
)
def test_an_argument_that_cannot_be_given_is_named(name, value, line):
    with pytest.raises(UserError, match=line) as caught:
        require_arguments("P", TAKES, DEFAULTS, pairs({CALL + name: value}, CALL, texts=False), "w")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_sequence_length", 512), ("strength", 1), ("clip_skip", 2), ("strength", [0.1, 0.2])],
)
def test_others_are_taken(name, value):
    require_arguments("P", TAKES, DEFAULTS, pairs({CALL + name: value}, CALL, texts=False), "w")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("use_karas_sigmas", True, "S has no setting .* did you mean use_karras_sigmas"),
        ("use_karras_sigmas", 1, "must be true or false, as the default false of S is, not 1"),
    ],
)
def test_settings_of_a_sampler_are_held_to_its_class(name, value, line):
    given = pairs({f"sampler.{name}": value}, "sampler.", texts=False)
    with pytest.raises(UserError, match=line):
        require_options("S", {"use_karras_sigmas"}, {"use_karras_sigmas": False}, given, "w")
