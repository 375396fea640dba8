"""Planted faults: each is told with its file and line, or dropped and counted there."""

import json
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


def coco(tmp_path, image=None, annotation=None, category=None):
    picture(tmp_path / "train" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50, **(image or {})}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **(annotation or {})},
        ],
        "categories": [{"id": 1, "name": "cat", **(category or {})}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"annotation": {"category_id": 7}}, r"annotations\[1\]: category_id 7 is no category"),
        ({"annotation": {"image_id": 7}}, r"annotations\[1\]: image_id 7 is no image"),
        ({"annotation": {"bbox": [1, 2, 3]}}, r"annotations\[1\]: want bbox as 4 numbers"),
        ({"annotation": {"bbox": [1, 2, 3, "4"]}}, r"annotations\[1\]: want bbox as 4 numbers"),
        ({"image": {"file_name": "../a.jpg"}}, r"images\[0\]: want id and a file_name inside"),
        ({"image": {"file_name": "/etc/a.jpg"}}, r"images\[0\]: want id and a file_name inside"),
        ({"image": {"file_name": "C:\\a.jpg"}}, r"images\[0\]: want id and a file_name inside"),
        ({"image": {"file_name": "a\0.jpg"}}, r"images\[0\]: want id and a file_name inside"),
        ({"category": {"id": "1"}}, r"categories\[0\]: want an id and a name"),
    ],
)
def test_faulty_coco(tmp_path, fault, message):
    with pytest.raises(ValueError, match=r"instances_train.json: " + message):
        open_dataset(coco(tmp_path, **fault), "train+val")


def test_empty_coco_boxes_name_their_object(tmp_path):
    found = open_dataset(coco(tmp_path, annotation={"bbox": [5, 6, 0, 4]}), "train+val")
    assert found.dropped == 1
    assert found.problems[0].message == "annotations[1] box [5, 6, 5, 10] has zero area: dropped"


def test_broken_json(tmp_path):
    coco(tmp_path)
    path = tmp_path / "instances_train.json"
    path.write_text('{"images": [],\n "annotations": [],\n "categories": [}')
    with pytest.raises(ValueError, match=r"instances_train.json:3: want json, got Expecting"):
        open_dataset(tmp_path)


def yolo(tmp_path, rows, config="names: [cat, dog]\ntrain: images\n"):
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(rows)
    (tmp_path / "data.yaml").write_text(config)
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 .5 .5 .1 .1\n2 .5 .5 .1 .1", r"a.txt:2: want a class of 0..1, got 2"),
        ("0 .5 .5 .1 .1\n\n0 .5 .5 .1", r"a.txt:3: want class cx cy w h, got 4 values"),
        ("0 .5 x .1 .1", r"a.txt:1: want numbers, got '0 .5 x .1 .1'"),
        ("-1 .5 .5 .1 .1", r"a.txt:1: want a class number from 0 to 99999, got -1"),
        ("nan .5 .5 .1 .1", r"a.txt:1: want a class number from 0 to 99999, got nan"),
        ("0 50 50 10 10", r"a.txt:1: want parts of the picture in 0..1, got 50 50 10 10"),
    ],
)
def test_faulty_yolo(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(yolo(tmp_path, rows), "train+val")


def test_bad_yolo_boxes_are_dropped_with_their_line(tmp_path):
    rows = "0 .5 .5 0 .1\n0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n1 .95 .5 .2 .1\n1 nan .5 .2 .1\n"
    found = open_dataset(yolo(tmp_path, rows), "train+val")
    assert (found.dropped, found.clipped, len(found.boxes)) == (2, 1, 2)
    assert sorted(problem.line for problem in found.problems) == [1, 3, 4, 5]
    np.testing.assert_allclose(found[0].boxes, [[45, 22.5, 55, 27.5], [85, 22.5, 100, 27.5]], 1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: [a]\nnc: 2\ntrain: images", r"data.yaml:2: want nc = 1, .* got 2"),
        ("names: {1: a}\ntrain: images", r"data.yaml:1: want names numbered from 0, got \[1\]"),
        ("names: 3\ntrain: images", r"data.yaml:1: want names as a list, got 3"),
        ("names: [a]\ntrain: nowhere", r"data.yaml:2: want train to name a folder .* 'nowhere'"),
        ("names: [a]\ntrain: ../../etc", r"data.yaml:2: want train to name a folder"),
        ("names: [a\ntrain: images", r"data.yaml:2: want yaml"),
        ("names: !!python/object/apply:os.getcwd []\ntrain: images", r"data.yaml:1: want yaml"),
    ],
)
def test_faulty_data_yaml(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(yolo(tmp_path, "0 .5 .5 .1 .1", config), "train+val")


def test_links_out_of_the_folder_need_a_word(tmp_path):
    outside = tmp_path / "outside"
    picture(outside / "a.jpg")
    inside = tmp_path / "set"
    (inside / "labels").mkdir(parents=True)
    (inside / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
    os.symlink(outside, inside / "images")
    with pytest.raises(ValueError, match=r"images: want files inside the data folder, got a link"):
        open_dataset(inside)
    assert len(open_dataset(inside, allow_outside=True)) == 1
    (inside / "images").unlink()
    os.symlink(outside / "a.jpg", inside / "a.jpg")
    with pytest.raises(ValueError, match=r"a.jpg: want files inside the data folder, got a link"):
        open_dataset(inside)


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


def test_a_link_in_a_circle_is_not_followed(voc):
    os.symlink(voc, voc / "again")
    assert len(open_dataset(voc, "train+val")) == 2
