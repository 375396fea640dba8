"""VOC folders of every layout."""

from folders import picture, voc_xml

from ssdkern.data import open_dataset, summarize


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
