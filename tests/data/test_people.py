"""What is understood of a set of images is printed in one line, and is what was meant."""

from hrvqvae.data.loading import load_images
from hrvqvae.utils.progress import note_once
from tests.conftest import parametrize
from tests.data.people import PEOPLE, write
from tests.data.stored import folder_config


@parametrize("people", PEOPLE, ids=range(len(PEOPLE)))
def test_what_is_meant_is_understood(people, tmp_path, caplog):
    note_once.cache_clear()
    folder = tmp_path / "set"
    write(people, folder)
    config = folder_config(folder, labels=people.labels, test_fraction=0.25)
    splits = [load_images(config, split) for split in ("train", "test")]
    assert all(images.pixels.shape[1:] == (3, 16, 16) for images in splits)
    count, understood = people.meaning
    assert sum(map(len, splits)) == count
    lines = [line for line in caplog.messages if line.startswith(f"{folder}: ")]
    assert sum(line.endswith(understood) for line in lines) == 1, lines
    assert people.note in caplog.text
    assert len(caplog.messages) == 1 + bool(people.note), caplog.messages
