"""Folders of every layout: written by the exporters or by hand, and read back."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ssdkern.data import (
    SyntheticScenes,
    open_dataset,
    summarize,
    write_coco,
    write_voc,
    write_yolo,
)

WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}
SIZE = (72, 96)


def scenes(count, seed):
    return SyntheticScenes(count, SIZE, seed, num_classes=4)


def picture(path, size=(30, 20), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def voc_xml(path, objects, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{b[0]}</xmin>"
        f"<ymin>{b[1]}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for name, b, difficult in objects
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    path.write_text(f"<annotation>{sides}{rows}</annotation>")


@pytest.mark.parametrize("kind", WRITERS)
def test_round_trip(tmp_path, kind):
    sets = {"train": scenes(6, 0), "val": scenes(3, 1)}
    folder = WRITERS[kind](sets, tmp_path / "set", suffix=".png")
    for split, wanted in sets.items():
        found = open_dataset(folder, split)
        assert (found.format, found.splits) == (kind, ["train", "val"])
        assert len(found) == len(wanted)
        assert not found.problems and not found.notes
        # VOC folders do not state an order of classes: it is alphabetical there
        names = sorted(wanted.class_names) if kind == "voc" else wanted.class_names
        assert found.class_names == names
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
            assert [names[k - 1] for k in ours.labels] == [
                wanted.class_names[k - 1] for k in theirs.labels
            ]
            assert ours.size == SIZE and ours.boxes.dtype == np.float32
            assert ours.labels.dtype == np.int64 and not ours.difficult.any()
            np.testing.assert_allclose(ours.area, theirs.area, rtol=1e-4)


@pytest.mark.parametrize("kind", WRITERS)
def test_test_falls_back_on_val_and_says_so(tmp_path, kind):
    folder = WRITERS[kind]({"train": scenes(4, 0), "val": scenes(2, 1)}, tmp_path)
    found = open_dataset(folder, "test")
    assert len(found) == 2
    assert "no test split: val stands in for it" in summarize(found)
    held = open_dataset(folder, "val", val_fraction=0.25)
    assert len(held) == 1 and "train" in held.paths[0]
    with pytest.raises(ValueError, match=r"want a split of .*'train', 'val'.*, got 'extra'"):
        open_dataset(folder, "extra")


@pytest.mark.parametrize("kind", WRITERS)
def test_val_is_held_back_from_train(tmp_path, kind):
    folder = WRITERS[kind]({"train": scenes(20, 0)}, tmp_path)
    train, val = open_dataset(folder, "train"), open_dataset(folder, "val")
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.paths) & set(val.paths)
    assert "4 of 20 pictures of train held back as val" in train.notes[0]
    assert open_dataset(folder, "val").paths == val.paths
    assert len(open_dataset(folder, "val", val_fraction=0.5)) == 10
    assert len(open_dataset(folder, "train+val")) == 20


def test_test_stands_in_for_val_unless_told_otherwise(tmp_path):
    folder = write_voc({"train": scenes(10, 0), "test": scenes(3, 1)}, tmp_path)
    assert len(open_dataset(folder, "train")) == 10
    val = open_dataset(folder, "val")
    assert val.paths == open_dataset(folder, "test").paths
    assert "test stands in for it" in val.notes[0]
    held = open_dataset(folder, "val", val_fraction=0.3)
    rest = open_dataset(folder, "train", val_fraction=0.3)
    assert (len(rest), len(held)) == (7, 3)
    assert len(open_dataset(folder, "test", val_fraction=0.3)) == 3


def test_voc_beside_the_pictures_in_split_folders(tmp_path):
    for split, count in (("train", 3), ("valid", 2)):
        for index in range(count):
            picture(tmp_path / split / f"{split}{index}.JPG")
            voc_xml(tmp_path / split / f"{split}{index}.xml", [("cat", (1, 2, 11, 12), 0)])
    picture(tmp_path / "train" / "alone.jpeg")
    picture(tmp_path / "images" / "readme.png")
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert train.splits == ["train", "val"]
    assert (len(train), len(val)) == (4, 2)
    assert [len(sample.labels) for sample in train] == [0, 1, 1, 1]
    assert "1 pictures without objects" in summarize(train)


def test_voc_devkit_of_two_years_with_masks(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        home = tmp_path / "VOCdevkit" / year
        for name in ("000001", f"{year}_a"):
            picture(home / "JPEGImages" / f"{name}.jpg")
            picture(home / "SegmentationClass" / f"{name}.png")
            voc_xml(home / "Annotations" / f"{name}.xml", [("dog", (1, 1, 9, 9), 1)])
        lists = home / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "trainval.txt").write_text(f"000001\n{year}_a\n")
        (lists / "dog_trainval.txt").write_text(f"000001  1\n{year}_a -1\n")
        (lists / "val.txt").write_text("000001  1\n")
    everything = open_dataset(tmp_path, "trainval")
    assert len(everything) == 4
    assert everything.splits == [
        *("VOC2007/trainval", "VOC2007/val", "VOC2012/trainval", "VOC2012/val"),
        *("trainval", "val"),
    ]
    assert all(path.endswith(".jpg") for path in everything.paths)
    assert everything[0].difficult.tolist() == [True]
    assert len(open_dataset(tmp_path, "VOC2007/trainval+VOC2012/val")) == 3
    assert len(open_dataset(tmp_path, "val")) == 2
    assert [path[-6:] for path in open_dataset(tmp_path, "train").paths] == ["_a.jpg"] * 2


def test_voc_without_annotations_folder_and_folders_of_other_names(tmp_path):
    picture(tmp_path / "a" / "JPEGImages" / "x.jpg")
    voc_xml(tmp_path / "a" / "JPEGImages" / "x.xml", [("cat", (1.5, 2.25, 11.75, 12), 0)])
    lists = tmp_path / "a" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("x\n")
    found = open_dataset(tmp_path / "a")
    assert found[0].boxes.tolist() == [[1.5, 2.25, 11.75, 12.0]]

    picture(tmp_path / "b" / "images" / "y.jpg")
    picture(tmp_path / "b" / "annotations" / "trimaps" / "y.png")
    voc_xml(tmp_path / "b" / "annotations" / "xmls" / "y.xml", [("cat", (1, 2, 11, 12), 0)], None)
    found = open_dataset(tmp_path / "b")
    assert [len(found), found.paths[0][-5:], len(found.labels)] == [1, "y.jpg", 1]
    assert found.size(0) == (20, 30)
    assert "single picture" in found.notes[0]


def test_class_list_fixes_the_order(tmp_path):
    picture(tmp_path / "x.jpg")
    voc_xml(tmp_path / "x.xml", [("cat", (1, 2, 11, 12), 0)])
    (tmp_path / "labels.txt").write_text("BACKGROUND\nzebra\ncat\n")
    found = open_dataset(tmp_path)
    assert found.class_names == ["zebra", "cat"]
    assert found[0].labels.tolist() == [2]
    assert "no boxes of 1 classes: zebra" in summarize(found)


def coco(images, annotations, categories=None):
    categories = categories or [{"id": 90, "name": "last"}, {"id": 3, "name": "first"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_coco_official_layout_crowds_and_sparse_ids(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, count in (("train2017", 2), ("val2017", 1)):
        images, annotations = [], []
        for index in range(count):
            picture(tmp_path / split / f"{index}.jpg")
            image = {"id": 10 + index, "file_name": f"{index}.jpg", "height": 20, "width": 30}
            images.append(image)
        box = {"id": 1, "image_id": 10, "bbox": [1, 2, 10.5, 4], "area": 17.5}
        annotations = [
            {**box, "category_id": 90, "iscrowd": 0},
            {**box, "id": 2, "category_id": 3, "iscrowd": 1},
        ]
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(coco(images, annotations)))
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps({"images": []}))
    found = open_dataset(tmp_path, "train")
    assert (found.format, found.splits, len(found)) == ("coco", ["train", "val"], 2)
    assert (found.class_names, found.category_ids) == (["first", "last"], [3, 90])
    sample = found.annotation(0)
    assert sample.image_id == 10 and sample.crowds
    assert sample.labels.tolist() == [2, 1]
    assert sample.difficult.tolist() == [False, True]
    assert sample.area.tolist() == [17.5, 17.5]
    assert sample.boxes.tolist()[0] == [1, 2, 11.5, 6]
    assert len(found[1].labels) == 0
    assert open_dataset(tmp_path, "val").annotation_file.endswith("instances_val2017.json")


def test_coco_json_beside_the_pictures(tmp_path):
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        images = [{"id": i, "file_name": f"{split}{i}.jpg"} for i in range(count)]
        for image in images:
            picture(tmp_path / split / image["file_name"])
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco(images, [])))
    assert [len(open_dataset(tmp_path, s)) for s in ("train", "val", "test")] == [3, 1, 2]
    assert open_dataset(tmp_path, "val")[0].size == (20, 30)


def test_coco_with_missing_pictures_says_how_many(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in range(3)]
    picture(tmp_path / "pictures" / "1.jpg")
    (tmp_path / "labels.json").write_text(json.dumps(coco(images, [])))
    found = open_dataset(tmp_path, "train")
    assert len(found) == 1
    assert "2 pictures are not there, such as pictures/2.jpg" in summarize(found)
    (tmp_path / "pictures" / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"labels.json: want its pictures below"):
        open_dataset(tmp_path, "train")


def test_yolo_layouts(tmp_path):
    source = write_yolo({"train": scenes(3, 0), "val": scenes(2, 1)}, tmp_path / "a")
    names = open_dataset(source).class_names

    # train/images, train/labels, and a data.yaml that leads one folder up
    other = tmp_path / "b"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(source / kind / split, other / split / kind)
    lines = ["train: ../train/images", "val: ../val/images", f"nc: {len(names)}", f"names: {names}"]
    (other / "data.yaml").write_text("\n".join(lines))
    assert [len(open_dataset(other, s)) for s in ("train", "val")] == [3, 2]
    np.testing.assert_array_equal(open_dataset(other).boxes, open_dataset(source).boxes)

    # everything in one folder, with classes.txt
    flat = tmp_path / "c"
    shutil.copytree(source / "images" / "train", flat)
    shutil.copytree(source / "labels" / "train", flat, dirs_exist_ok=True)
    (flat / "classes.txt").write_text("\n".join(names))
    found = open_dataset(flat, "train+val")
    assert len(found) == 3 and found.class_names == names
    assert len(found.boxes) == len(open_dataset(source).boxes)
    (flat / "classes.txt").unlink()
    assert open_dataset(flat).class_names[0] == "0"
    assert "called by their numbers" in open_dataset(flat).notes[-1]

    # lists of pictures
    (source / "train.txt").write_text("./images/train/train_000001.jpg\n")
    config = (source / "data.yaml").read_text().replace("train: images/train", "train: train.txt")
    (source / "data.yaml").write_text(config)
    assert open_dataset(source).ids == ["train_000001"]


def test_yolo_outlines_become_boxes(tmp_path):
    picture(tmp_path / "images" / "a.png", (100, 50))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.8\n")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    sample = open_dataset(tmp_path)[0]
    np.testing.assert_allclose(sample.boxes, [[10, 10, 50, 40]], atol=1e-4)
    assert sample.labels.tolist() == [2]


def test_two_formats_need_a_word(tmp_path):
    picture(tmp_path / "a.jpg")
    voc_xml(tmp_path / "a.xml", [("cat", (1, 2, 11, 12), 0)])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"want one format, got \['voc', 'yolo'\]"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, format="yolo").format == "yolo"
    with pytest.raises(ValueError, match="want format of"):
        open_dataset(tmp_path, format="kitti")


def test_a_folder_without_annotations(tmp_path):
    picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"want VOC xml.*got none in .*\(1 pictures\)"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="want a folder"):
        open_dataset(tmp_path / "a.jpg")
