"""COCO folders of every layout, and planted faults, told with their object."""

import json

import pytest
from folders import picture

from ssdkern.data import open_dataset, summarize


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


def test_coco_splits_that_are_joined_number_their_categories_alike(tmp_path):
    box = {"id": 1, "image_id": 1, "category_id": 90, "bbox": [1, 2, 10, 4]}
    for split, categories in (("train", None), ("val", [{"id": 90, "name": "first"}])):
        picture(tmp_path / split / f"{split}.jpg")
        images = [{"id": 1, "file_name": f"{split}.jpg", "height": 20, "width": 30}]
        path = tmp_path / f"instances_{split}.json"
        path.write_text(json.dumps(coco(images, [box], categories)))
    for split, name in (("train", "last"), ("val", "first")):
        found = open_dataset(tmp_path, split)
        assert found.class_names[found.labels[0] - 1] == name
    with pytest.raises(ValueError, match=r"_val\.json: want the categories of .*_train\.json, \{"):
        open_dataset(tmp_path, "train+val")


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


def faulty(tmp_path, image=None, annotation=None, category=None):
    picture(tmp_path / "train" / "a.jpg", (100, 50))
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
def test_faulty_faulty(tmp_path, fault, message):
    with pytest.raises(ValueError, match=r"instances_train.json: " + message):
        open_dataset(faulty(tmp_path, **fault), "train+val")


def test_empty_coco_boxes_name_their_object(tmp_path):
    found = open_dataset(faulty(tmp_path, annotation={"bbox": [5, 6, 0, 4]}), "train+val")
    assert found.dropped == 1
    assert found.problems[0].message == "annotations[1] box [5, 6, 5, 10] has zero area: dropped"


def test_broken_json(tmp_path):
    faulty(tmp_path)
    path = tmp_path / "instances_train.json"
    path.write_text('{"images": [],\n "annotations": [],\n "categories": [}')
    with pytest.raises(ValueError, match=r"instances_train.json:3: want json, got Expecting"):
        open_dataset(tmp_path)
