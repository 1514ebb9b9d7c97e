"""The pure parts of the tiny reader: its pictures, its text lines and its beam search."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tiny_vlm"


def module(name: str) -> ModuleType:
    """A module of the example folder, loaded by its path."""
    spec = importlib.util.spec_from_file_location(f"tiny_vlm_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


ctc, text_lines = module("ctc_decoder"), module("text_lines")


@pytest.fixture(scope="module")
def render() -> ModuleType:
    pytest.importorskip("matplotlib")
    return module("render")


def pixels(image: Image.Image) -> Tensor:
    """A picture as the processor hands it over: (3, H, W) in [-1, 1]."""
    flat = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def frames(path: str) -> Tensor:
    """Log-probabilities of a sure reading, one frame a character and `_` for the CTC blank."""
    labels = torch.tensor([0 if c == "_" else ctc.ALPHABET.index(c) + 1 for c in path])
    sure = torch.nn.functional.one_hot(labels, len(ctc.ALPHABET) + 1).float() * 0.99
    return (sure + 0.01 / sure.shape[1]).log()


# ---- beam search


def test_repeated_letters_need_a_blank_between_them():
    decoder = ctc.CTCDecoder(["hello"])
    assert decoder(frames("hheel_lo_"))[0] == "hello"


def test_a_doubtful_letter_becomes_the_known_word():
    log_probs = frames("ho_use_")
    probs = log_probs[3].exp()
    probs[ctc.ALPHABET.index("v") + 1], probs[ctc.ALPHABET.index("u") + 1] = 0.5, 0.4
    log_probs[3] = (probs / probs.sum()).log()
    assert ctc.CTCDecoder(["house"])(log_probs)[0] == "house"
    assert ctc.CTCDecoder(["garden"])(log_probs)[0] == "hovse"


def test_a_space_before_a_word_costs_nothing():
    decoder = ctc.CTCDecoder(["house"])
    (text, score), (spaced, same) = (decoder(frames(path)) for path in ("_house_", " house_"))
    assert text == spaced == "house"
    assert same == pytest.approx(score, abs=0.01)


def test_the_lexicon_holds_words_by_rank_and_their_regular_forms():
    words = ctc.lexicon({"\u0120paint": 3, "\u0120The": 1, "x": 2, "\u0120q": 4})
    assert words[:2] == ["the", "paint"]
    assert {"painting", "painted"} <= set(words)
    assert "q" not in words


def test_confidence_is_high_for_sure_letters_and_zero_without_letters():
    assert ctc.confidence(frames("a_b_c_d_e_f_g_h_i_j_")) > 0.8
    assert ctc.confidence(frames("____")) == 0.0


# ---- lines of text


def test_grey_padding_and_plain_margins_are_cut_away_but_for_a_pixel():
    image = torch.full((3, 90, 60), -0.0039)
    image[:, 20:70] = 1.0
    image[:, 40:50, 10:30:2] = -1.0
    assert text_lines.text_box(image) == (slice(39, 51), slice(9, 30))


@pytest.mark.parametrize("kind", ["colour", "gradient"])
def test_a_picture_of_one_colour_or_a_straight_gradient_has_no_view(render, kind):
    for seed in range(4):
        assert text_lines.views(pixels(render.plain_picture(seed, kind)), [10.5]) == []


@pytest.mark.parametrize("step", [1.0, 1.3])
def test_sixteen_lines_are_found_even_when_they_touch(render, step):
    words = "the quick brown dog jumps over a lazy fox and plays by the river bank " * 20
    _, image = render.paragraph(words, "DejaVuSans.ttf", 40, (900, 900), lines=16, step=step)
    dark = text_lines.ink(pixels(image))
    assert len(text_lines.lines(dark > 0.5)) == 16


def test_touching_bold_lines_are_cut_and_a_large_title_is_not(render):
    figstep = render.render("Rewrite this flood report for a younger audience", style="figstep")
    assert len(text_lines.lines(text_lines.ink(pixels(figstep)) > 0.5)) == 7
    _, title = render.paragraph("A day at sea", "DejaVuSans.ttf", 65, (760, 760))
    words = "Small boats leave the harbour early when the weather is calm " * 4
    _, body = render.paragraph(words, "DejaVuSans.ttf", 26, (760, 600), lines=5)
    title.paste(body, (0, 100))
    assert len(text_lines.lines(text_lines.ink(pixels(title)) > 0.5)) == 6


def test_dots_belong_to_the_line_below_them():
    assert text_lines.joined([(0, 20), (30, 33), (34, 54)]) == [(0, 20), (30, 54)]


def test_colours_do_not_change_what_the_tower_sees(render):
    black, green = (
        render.paragraph("A small boat", "DejaVuSans.ttf", 30, (300, 60), ink=ink, ground=ground)
        for ink, ground in (((0, 0, 0), (255, 255, 255)), ((40, 220, 60), (130, 10, 80)))
    )
    views = [text_lines.views(pixels(image), [10.5]) for _, image in (black, green)]
    assert [view.owners for view in views[0]] == [view.owners for view in views[1]]
    assert (views[0][0].pages - views[1][0].pages).abs().mean() < 0.02


def test_a_long_line_is_cut_between_words_and_stays_one_line(render):
    _, image = render.paragraph("word " * 12, "DejaVuSans.ttf", 24, (900, 80), lines=1)
    view = text_lines.views(pixels(image), [10.5])[0]
    assert len(view.owners) > 1
    assert set(view.owners) == {0}


def test_the_smallest_picture_has_no_view():
    assert text_lines.views(torch.zeros(3, 1, 1), [10.5]) == []


# ---- pictures


def test_a_picture_depends_on_its_arguments_alone(render):
    for style in render.STYLES:
        once, again = (render.render("Plant a tree", seed=3, style=style) for _ in range(2))
        assert once.tobytes() == again.tobytes()
    assert render.render("Plant a tree", seed=1, style="varied").tobytes() != once.tobytes()


def test_every_kind_of_textless_picture_has_the_size_asked_for(render):
    for kind in render.KINDS:
        for size in ((40, 30), (1, 1)):
            assert render.plain_picture(0, kind, size).size == size


def test_unknown_styles_and_kinds_are_refused(render):
    with pytest.raises(ValueError, match="style must be one of"):
        render.render("Plant a tree", style="round")
    with pytest.raises(ValueError, match="kind must be one of"):
        render.plain_picture(0, "text")
