"""Planted faults: each is told with its file and line, or dropped and counted there."""

import os

import numpy as np
import pytest
from PIL import Image

from ssdkern.data import check, damaged_pictures, open_dataset, summarize

XML = """<annotation>
  <size><width>100</width><height>50</height></size>
  <object>
    <name>cat</name>
    <bndbox>
      <xmin>{0}</xmin>
      <ymin>{1}</ymin>
      <xmax>{2}</xmax>
      <ymax>{3}</ymax>
    </bndbox>
  </object>
</annotation>
"""


def picture(path, size=(100, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def by_id(dataset):
    return {sample.image_id: sample for sample in dataset}


@pytest.fixture
def voc(tmp_path):
    """A set of two good pictures; the test writes bad.xml beside bad.jpg."""
    for name in ("bad", "good"):
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.xml").write_text(XML.format(10, 10, 40, 40))
    return tmp_path


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 20, 10, 20), "cat box [10, 20, 10, 20] has zero area: dropped"),
        ((10, 20, 10, 30), "cat box [10, 20, 10, 30] has zero area: dropped"),
        ((30, 20, 10, 30), "cat box [30, 20, 10, 30] is inverted: dropped"),
        (("nan", 20, 10, 30), "cat box [nan, 20, 10, 30] is not finite: dropped"),
        ((10, 20, "inf", 30), "cat box [10, 20, inf, 30] is not finite: dropped"),
        ((100, 20, 130, 30), "cat box [100, 20, 130, 30] lies outside the picture: dropped"),
    ],
)
def test_empty_boxes_are_dropped_and_counted(voc, box, message):
    (voc / "bad.xml").write_text(XML.format(*box))
    found = open_dataset(voc, "train+val")
    assert (found.dropped, found.clipped, len(found.boxes), len(found)) == (1, 0, 1, 2)
    assert found.problems == [(str(voc / "bad.xml"), 3, message)]
    assert f"{voc / 'bad.xml'}:3: {message}" in summarize(found)
    with pytest.raises(ValueError, match="want at most 10% of the boxes dropped, got 1 of 2"):
        check(found)


def test_boxes_are_clipped_and_told_beyond_one_pixel(voc):
    (voc / "bad.xml").write_text(XML.format(-5, 10, 101, 40))
    found = open_dataset(voc, "train+val")
    assert (found.dropped, found.clipped) == (0, 1)
    assert found.problems[0][1:] == (
        3,
        "cat box [-5, 10, 101, 40] reaches out of the picture: clipped",
    )
    assert by_id(found)["bad"].boxes.tolist() == [[0, 10, 100, 40]]
    (voc / "bad.xml").write_text(XML.format(0, 10, 101, 40))
    found = open_dataset(voc, "train+val")
    assert (found.clipped, found.problems) == (0, [])
    assert by_id(found)["bad"].boxes.tolist() == [[0, 10, 100, 40]]
    check(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (XML.format("ten", 1, 2, 3), r"bad.xml:6: want a number in <xmin>, got 'ten'"),
        (XML.replace("<ymax>{3}</ymax>", ""), r"bad.xml:3: want <bndbox> .* got no ymax"),
        (XML.replace("<name>cat</name>", ""), r"bad.xml:3: want a <name> in <object>, got none"),
        (XML.replace("</bndbox>", ""), r"bad.xml:11: want XML, got mismatched tag"),
        ("<annotation>\n\n<object>", r"bad.xml:3: want XML, got no element found"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
            r"bad.xml: want XML without entities, got EntitiesForbidden",
        ),
    ],
)
def test_faulty_xml(voc, text, message):
    (voc / "bad.xml").write_text(text.replace("{", "").replace("}", ""))
    with pytest.raises(ValueError, match=message):
        open_dataset(voc, "train+val")


def test_all_faults_are_told_at_once(voc):
    for name in ("bad", "good"):
        (voc / f"{name}.xml").write_text(XML.format("a", "b", 3, 4))
    with pytest.raises(ValueError) as caught:
        open_dataset(voc, "train+val")
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0][len(str(voc)) + 1 :] for line in lines] == [
        *("bad.xml:6", "bad.xml:7", "good.xml:6", "good.xml:7")
    ]


def test_unknown_class(voc):
    (voc / "classes.txt").write_text("dog\n")
    with pytest.raises(ValueError, match=r"bad.xml:3: want a class of dog, got 'cat'"):
        open_dataset(voc, "train+val")


def test_empty_xml_is_a_picture_without_objects(voc):
    (voc / "bad.xml").write_text("")
    found = by_id(open_dataset(voc, "train+val"))
    assert (len(found["bad"].labels), len(found["good"].labels)) == (0, 1)


def test_one_annotation_for_two_pictures(voc):
    picture(voc / "bad.png")
    with pytest.raises(ValueError, match=r"bad.xml: want one picture for it, got \['bad.jpg'"):
        open_dataset(voc)


def test_list_names_a_picture_that_is_not_there(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "JPEGImages" / "a.xml").write_text(XML.format(1, 2, 3, 4))
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n\n../../secret\nb\n")
    with pytest.raises(ValueError) as caught:
        open_dataset(tmp_path, "train")
    first, second = str(caught.value).splitlines()
    assert first.endswith("train.txt:3: no picture ../../secret in JPEGImages")
    assert second.endswith("train.txt:4: no picture b in JPEGImages")


def test_check_names_every_damaged_picture(voc):
    found = open_dataset(voc, "train+val")
    check(found, decode=True)
    picture(voc / "bad.jpg", (60, 40))
    whole = (voc / "good.jpg").read_bytes()
    (voc / "good.jpg").write_bytes(whole[: len(whole) // 2])
    assert len(damaged_pictures(found)) == 1
    with pytest.raises(ValueError) as caught:
        check(found, decode=True)
    first, second = sorted(str(caught.value).splitlines())
    assert first == f"{voc / 'bad.jpg'}: want 100x50 as annotated, got 60x40"
    assert second.startswith(f"{voc / 'good.jpg'}: want a whole picture, got a damaged one")


def test_check_refuses_an_empty_set(voc):
    for name in ("bad", "good"):
        (voc / f"{name}.xml").write_text("")
    with pytest.raises(ValueError, match=r"want boxes in split train\+val, got none on 2 pictures"):
        check(open_dataset(voc, "train+val"))
    with pytest.raises(ValueError, match="want pictures to train on, got an empty set"):
        check([])


def test_a_link_in_a_circle_is_not_followed(voc):
    os.symlink(voc, voc / "again")
    assert len(open_dataset(voc, "train+val")) == 2
