"""Folders of images: every file gives the pixels it shows, or is refused by name; none is left out without a word."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from torch_fidelity_lsh import calculate_metrics
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.fidelity.images import ImageFolder, list_images

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "save_cpu_ram": True, "fid": True}


@pytest.fixture
def pixels():
    """A picture, 24 x 16 x 3, and its grey version, 24 x 16; uint8."""
    colour = torch.randint(0, 256, (24, 16, 3), dtype=torch.uint8).numpy()
    return colour, colour[..., 0]


def read(path):
    return ImageFolder([str(path)])[0].permute(1, 2, 0).numpy()


def saved(tmp_path, name, array, mode=None, **options):
    path = tmp_path / name
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", None), ("a.png", "RGBA"), ("a.bmp", None), ("a.tiff", None), ("a.webp", None), ("a.ppm", None)],
)
def test_colours_are_read_as_they_are(name, mode, pixels, tmp_path):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(read(saved(tmp_path, name, pixels[0], mode, **options)), pixels[0])


def test_a_palette_and_black_and_white_are_read_as_their_colours(pixels, tmp_path):
    path = saved(tmp_path, "a.png", pixels[0] // 128 * 255, "P")
    assert np.array_equal(read(path), np.asarray(Image.open(path).convert("RGB")))
    bits = (pixels[1] > 127) * np.uint8(255)
    assert np.array_equal(read(saved(tmp_path, "b.png", bits, "1")), grey(bits))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_give_the_picture_that_eight_bits_give(name, pixels, tmp_path):
    path = saved(tmp_path, name, pixels[1].astype(np.uint16) * 257)
    assert np.array_equal(read(path), grey(pixels[1]))


def test_a_greymap_of_sixteen_bits(pixels, tmp_path):
    path = tmp_path / "a.pgm"
    values = (pixels[1].astype(np.uint16) * 257).astype(">u2")
    path.write_bytes(b"P5 16 24 65535\n" + values.tobytes())
    assert np.array_equal(read(path), grey(pixels[1]))


def test_a_folder_of_sixteen_bits_is_as_near_as_its_eight_bits(counting_extractor, tmp_path):
    for bits, factor in (("8", 1), ("16", 257)):
        (tmp_path / bits).mkdir()
        for index in range(8):
            drawn = np.random.default_rng(index).integers(256, size=(16, 16))
            values = (drawn * factor).astype(np.uint8 if bits == "8" else np.uint16)
            saved(tmp_path / bits, f"{index}.png", values)
    assert calculate_metrics(input1=tmp_path / "16", input2=tmp_path / "8", **CALL) == pytest.approx(
        {"frechet_inception_distance": 0}, abs=1e-4
    )


def test_photos_are_turned_upright(pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: the picture is to be turned clockwise.
    assert np.array_equal(read(saved(tmp_path, "a.png", pixels[0], exif=exif)), np.rot90(pixels[0], -1))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.tiff", lambda grey: Image.fromarray(grey.astype(np.float32) / 255), "samples are 32-bit floating point"),
        ("a.tiff", lambda grey: Image.fromarray(grey.astype(np.int32)), "samples are 32-bit integers"),
        ("a.png", lambda grey: Image.merge("LA", [Image.fromarray(grey)] * 2), "transparent pixels; flatten it"),
    ],
)
def test_what_has_no_one_right_reading_is_refused_by_name(name, make, message, pixels, counting_extractor, tmp_path):
    make(pixels[1]).save(tmp_path / name)
    with pytest.raises(ValueError, match=rf'input1: cannot read image ".*{name}": .*{message}'):
        calculate_metrics(input1=tmp_path, input2=tmp_path, samples_find_ext="png,tiff", **CALL)
    assert counting_extractor.created == 0


def test_a_colour_that_stands_for_transparent_is_refused(pixels, tmp_path):
    for name, values in (("a.png", pixels[0]), ("b.png", pixels[1].astype(np.uint16) * 257)):
        given = tuple(int(c) for c in values[0, 0]) if values.ndim == 3 else int(values[0, 0])
        path = saved(tmp_path, name, values, transparency=given)
        if "transparency" in Image.open(path).info:
            with pytest.raises(ValueError, match="transparent pixels"):
                read(path)


def test_an_animation_is_refused(pixels, tmp_path):
    frames = [Image.fromarray(pixels[0]), Image.fromarray(255 - pixels[0])]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="it holds 2 frames; save each as a file"):
        read(tmp_path / "a.gif")


def test_resizing_is_torchvisions_as_upstream_does_it(image_folders):
    from torch_fidelity.utils import prepare_input_from_descriptor

    settings = {"samples_find_deep": False, "samples_resize_and_crop": 20, "verbose": False}
    theirs = prepare_input_from_descriptor({"input": image_folders[0]}, **settings)
    files = list_images(image_folders[0], False, "png,jpg,jpeg").files
    assert files == theirs.files
    ours = ImageFolder(files, 20)
    assert all(torch.equal(ours[index], theirs[index]) for index in range(len(theirs)))


@pytest.fixture
def mixed_folder(pixels, tmp_path):
    """A folder of 4 png, 6 webp, 3 png in a sub-folder, and a text."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for index in range(6):
        saved(folder, f"{index}.webp", pixels[0])
    for index in range(4):
        saved(folder, f"{index}.PNG", pixels[0])
    for index in range(3):
        saved(folder / "deep", f"{index}.png", pixels[0])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_that_are_left_out_are_counted(mixed_folder, counting_extractor):
    with pytest.warns(UserWarning, match=r'4 of 13 images in ".*" are used.*left out: 6 \.webp, 3 in sub-folders'):
        calculate_metrics(input1=mixed_folder, input2=mixed_folder, **CALL)
    assert counting_extractor.images == 8


def test_a_folder_with_images_elsewhere_does_not_claim_to_hold_none(mixed_folder, counting_extractor):
    message = r"holds no images with the extensions jpg \(left out: 7 \.png, 6 \.webp\); samples_find_ext changes these"
    with pytest.raises(ValueError, match=message):
        calculate_metrics(input1=mixed_folder, input2=mixed_folder, samples_find_ext="jpg", **CALL)
    shutil.rmtree(mixed_folder / "deep")
    (mixed_folder / "deep").mkdir()
    for path in mixed_folder.glob("*.PNG"):
        path.rename(mixed_folder / "deep" / path.name)
    with pytest.raises(ValueError, match=r"left out: 6 \.webp, 4 in sub-folders"):
        calculate_metrics(input1=mixed_folder, input2=mixed_folder, **CALL)


@pytest.mark.parametrize("extensions", [".png,.webp", "PNG,WEBP", " png , .WebP,", "png,webp"])
def test_extensions_may_have_a_dot_and_any_case(extensions, mixed_folder, counting_extractor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = {**CALL, "samples_find_ext": extensions, "samples_find_deep": True}
        calculate_metrics(input1=mixed_folder, input2=mixed_folder, **call)
    assert counting_extractor.images == 26


def test_the_command_says_in_a_line_what_is_left_out(mixed_folder, counting_extractor, capsys):
    folders = ["--input1", str(mixed_folder), "--input2", str(mixed_folder)]
    assert main([*folders, "--fid", "--feature-extractor", "counting", "--cpu", "--silent", "--no-cache"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(' "')[0] for line in lines] == [
        f"fidelity-lsh: warning: input{side}: 4 of 13 images in" for side in (1, 2)
    ]
