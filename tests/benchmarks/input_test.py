import importlib.util
import io
import re

import pytest
from PIL import Image

from tests.data.photos import make_photo
from tests.training.tiny import ROOT


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_of_input', ROOT / 'benchmarks' / 'input.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_has_its_speed_and_its_ratio(benchmark, capsys):
    benchmark.main(['--batches=1', '--batch-size=4', '--image-size=32', '--repeats=1'])
    rows = re.findall(r'│ (\S.*?) +│ +(\d+) │ +(\d+\.\d\d) │', capsys.readouterr().out)
    assert [name for name, _, _ in rows] == [benchmark.DECODER, *benchmark.VARIANTS]
    speeds = {name: int(speed) for name, speed, _ in rows}
    assert rows[0][2] == '1.00' and all(speed > 0 for speed in speeds.values())
    for name, _, ratio in rows:
        assert float(ratio) == pytest.approx(speeds[name] / speeds[benchmark.DECODER], rel=0.05, abs=0.02)


def test_without_draft_a_photo_is_decoded_whole(benchmark):
    def size_of_draft():
        photo = Image.open(io.BytesIO(make_photo(0, (64, 48))))
        photo.draft(None, (32, 24))
        return photo.size

    with benchmark.whole_photos():
        assert size_of_draft() == (64, 48)
    assert size_of_draft() == (32, 24)
