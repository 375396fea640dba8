"""Folders for the tests of the readers: pictures of one colour, VOC annotations."""

from PIL import Image


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
